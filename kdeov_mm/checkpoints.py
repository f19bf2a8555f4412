"""What a checkpoint says of itself, read as data and never run."""

import ast
from collections.abc import Mapping
from typing import Any


def read_config(config: Any, strict: bool = False) -> dict[str, Any] | None:
    """A checkpoint's config as plain data; None if there is none.

    mmengine stores its text: assignments of literals and ``dict(...)``. Other values
    are read as None.

    Args:
        config: the text, or a dictionary already.
        strict: refuse other values.

    Raises:
        ValueError: ``strict``, and a value is an expression; names its line.
    """
    if isinstance(config, Mapping):
        return dict(config)
    try:
        tree = ast.parse(str(config or ""))
    except SyntaxError:
        return None
    if len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr):  # JSON, a repr
        value = _literal(tree.body[0].value, strict)
        return value if isinstance(value, dict) else None
    values = {
        node.targets[0].id: _literal(node.value, strict)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return values or None


def _literal(node: ast.expr, strict: bool) -> Any:
    """A literal, with ``dict(...)`` calls."""
    if isinstance(node, ast.Call) and (not strict or _makes_dict(node)):
        first = _literal(node.args[0], strict) if node.args else {}
        own = {k.arg: _literal(k.value, strict) for k in node.keywords if k.arg}
        return {**(first if isinstance(first, dict) else {}), **own}
    if isinstance(node, ast.Dict) and not (strict and None in node.keys):
        pairs = zip(node.keys, node.values)
        return {
            _literal(k, strict): _literal(v, strict) for k, v in pairs if k is not None
        }
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_literal(item, strict) for item in node.elts]
        return tuple(items) if isinstance(node, ast.Tuple) else items
    if isinstance(node, ast.Name) and node.id in (
        named := dict(
            true=True, false=False, null=None, inf=float("inf"), nan=float("nan")
        )
    ):
        return named[node.id]
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        if strict:
            raise ValueError(
                f"line {node.lineno} of the checkpoint's config is no plain value "
                f"({ast.unparse(node)[:80]}): give the config file instead."
            ) from error
        return None


def _makes_dict(call: ast.Call) -> bool:
    """Whether a call is ``dict(...)`` of named values, and drops nothing here."""
    return (
        isinstance(call.func, ast.Name)
        and call.func.id in ("dict", "ConfigDict", "OrderedDict")
        and all(keyword.arg for keyword in call.keywords)
        and len(call.args) < 2
        and all(isinstance(value, (ast.Dict, ast.Call)) for value in call.args)
    )
