"""Laws of the package's form: what it imports, and how its functions look."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmdet.registry import MODELS

from .conftest import ROOT, run_env

PACKAGE = sorted((ROOT / "kdeov_mm").rglob("*.py"))
TOOLS = sorted((ROOT / "tools").glob("*.py"))
OPTIONAL = (
    *("gradio", "lancedb", "onnx", "onnxruntime", "onnxscript", "pyarrow"),
    *("ray", "supervision"),
)
ABSENT = ("fcntl", "ijson")  # of other systems; of some environments
MAX_LINES = 60

# What may be asked of an object that is not ours: line -> why there is no other way.
GUESSES = {
    'and getattr(tower, "text_pool_type", None) == "argmax"': "open_clip: towers of "
    "other packages have no such attribute",
}

WITHOUT = """
import builtins, importlib, pkgutil

absent = {absent}
import_of_python = builtins.__import__

def import_what_is_there(name, globals=None, *args, **kwargs):
    importer = (globals or {{}}).get("__name__", "")
    if importer.startswith("kdeov_mm") and name.partition(".")[0] in absent:
        raise ImportError("no module named " + name)
    return import_of_python(name, globals, *args, **kwargs)

builtins.__import__ = import_what_is_there
import kdeov_mm

absent = {optional}
for module in pkgutil.walk_packages(kdeov_mm.__path__, "kdeov_mm."):
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        assert "kdeov_mm[" in str(error), module.name
"""


def test_the_package_is_imported_without_fcntl_ijson_and_the_extras() -> None:
    """And every module of it without the extras, or it says which one it needs."""
    code = WITHOUT.format(absent=ABSENT + OPTIONAL, optional=OPTIONAL)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=run_env()
    )
    assert done.returncode == 0, done.stderr


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_no_function_is_longer_than_a_page() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length(node)} lines"
        for path in PACKAGE
        for node in functions(path)
        if length(node) > MAX_LINES
    ]
    assert not long


def test_a_distillation_head_takes_the_student_and_the_teacher() -> None:
    from kdeov_mm.models.distill.base import Distillation

    heads = {
        head
        for head in MODELS.module_dict.values()
        if isinstance(head, type) and issubclass(head, Distillation)
    }
    assert len(heads) >= 4  # regions, dense maps, attention, whole images
    for head in heads:
        _, *rest = inspect.signature(head.loss).parameters.values()
        kinds = {parameter.kind for parameter in rest}
        assert len(rest) == 2, f"{head.__name__}.loss takes {len(rest)} arguments"
        assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}, head.__name__


@pytest.mark.parametrize("room", ["models", "clip"])
def test_no_protocol_is_guessed(room: str) -> None:
    guesses = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in PACKAGE
        if ROOT / "kdeov_mm" / room in path.parents
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\b(has|get)attr\(", line) and line.strip() not in GUESSES
    ]
    assert not guesses


def test_every_allowed_guess_is_still_made() -> None:
    text = "".join(path.read_text() for path in PACKAGE)
    assert [line for line in GUESSES if line not in text] == []


def imports(path: Path) -> Iterator[str]:
    """The first names of all imported modules, wherever in the file they stand."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or ".").partition(".")[0] if not node.level else "."


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.stem)
def test_a_tool_imports_no_other_tool(path: Path) -> None:
    others = {tool.stem for tool in TOOLS} | {"tools", "studies", "."}
    assert not others & set(imports(path))
