"""Configs as the tools read them: files with a word on slips, options that are read."""

import ast
import re
from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from .border import path_of

# what mmengine's Runner and the tools read; all else in a config is a variable of it
READ = (
    *("model", "data_preprocessor", "work_dir", "load_from", "resume", "launcher"),
    *(f"{split}_{part}" for split in ("train", "val", "test")
      for part in ("dataloader", "cfg", "evaluator")),
    *("optim_wrapper", "param_scheduler", "auto_scale_lr", "default_hooks"),
    *("custom_hooks", "env_cfg", "log_processor", "log_level", "visualizer"),
    *("default_scope", "randomness", "experiment_name", "runner_type", "doctor"),
    *("tta_model", "tta_pipeline"),
)  # fmt: skip
COMMA = "a string where names are expected: a tuple of one needs a comma"


class ConfigOptions(DictAction):
    """mmengine's ``DictAction``, which keeps the blanks in strings, and takes dicts."""

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        text = val.strip()
        # a list, tuple or dict of quoted strings, as Python writes it
        if text[:1] in "[({" and {*text} & {*"'\""}:
            try:
                values = ast.literal_eval(text)
            except (SyntaxError, ValueError):  # names without quotes, mmengine's
                values = None
            if isinstance(values, (list, tuple, dict)):
                return values
        # mmengine drops all blanks: those in strings are hidden from it
        text = re.sub(r"(?<=[\[(,])\s+|\s+(?=[\]),])", "", text)
        return _shown(DictAction._parse_iterable(text.replace(" ", "\0")))

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add options to those that were given before."""
        try:
            super().__call__(parser, namespace, values, option_string)
        except RecursionError as error:  # a bracket in the middle
            raise ArgumentError(
                self,
                "expected KEY=VALUE, a value as [1, 2], (1, 2) or {'name': 1}, got "
                f"{values}",
            ) from error
        except (AssertionError, ValueError) as error:
            raise ArgumentError(
                self, f"expected KEY=VALUE, got {values}: {error}"
            ) from error


def _shown(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_shown, value))
    return value.replace("\0", " ") if isinstance(value, str) else value


def config_of(
    config: str | Path | Config, options: Mapping[str, Any] | None = None
) -> Config:
    """A config, or what its file says, with options of a command line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read: a config is Python, and may raise anything; an
            option that nothing reads; or a string in place of names.
    """
    if isinstance(config, Config):
        return config
    path = path_of("a config", config)
    if not path.is_file():
        raise FileNotFoundError(f"config {path} does not exist, or is no file")
    try:
        cfg = Config.fromfile(path, lazy_import=False)
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {error}"
        # base = ("cat") + novel = (): mmengine names neither file nor line
        if isinstance(error, TypeError) and (slips := _strings_in_brackets(path)):
            why = f"{COMMA}: {'; '.join(slips)}"
        raise ValueError(f"config {path} cannot be read: {why}") from error
    if options:
        merge_options(cfg, options)
    for where, value in _classes(cfg.to_dict()):
        if isinstance(value, str) and not Path(value).is_file():
            raise ValueError(f"{path}: {where} = {value!r} is {COMMA}: ({value!r},)")
    return cfg


def work_dir_of(config: str | Path, cfg: Config, given: str | None) -> str:
    """The folder of a run: of the command line, of the config, or named after it.

    Raises:
        ValueError: it is no path; an empty one names no folder.
    """
    folder = cfg.get("work_dir") if given is None else given
    default = Path("work_dirs") / Path(config).stem
    return str(default if folder is None else path_of("--work-dir", folder))


def _strings_in_brackets(path: Path) -> list[str]:
    """The lines of a file that are ``name = ("...")``."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [(i, re.match(r"\s*\w+\s*=\s*\((['\"])[^'\"]*\1\)", line))
             for i, line in enumerate(lines, 1)]  # fmt: skip
    return [f"line {i}, {match[0].strip()}" for i, match in found if match]


def _classes(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The places in a config that hold names of classes, and what they hold."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        place = f"{where}.{key}" if where else str(key)
        if where.endswith("metainfo") and re.fullmatch(r"(\w+_)?classes", str(key)):
            yield place, inner
        elif isinstance(inner, (dict, list, tuple)):
            yield from _classes(inner, place)


def merge_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Change a config by options, ``model.backbone.depth`` -> value.

    Raises:
        ValueError: an option that nothing reads: a variable of the config, which was
            used when the file was read, or a key that is misspelt.
    """
    content = cfg.to_dict()
    for key in options:
        first = key.split(".")[0]
        if first in content and first not in READ:
            raise ValueError(_of_variable(key, content))
        _refuse_misspelt(key, content)
    cfg.merge_from_dict(dict(options))


def _of_variable(key: str, content: Mapping[str, Any]) -> str:
    """What is wrong with an option of a variable, and which entries it went into."""
    name = key.split(".")[0]
    places = [
        place
        for top in content
        if top in READ
        for place in _uses(content[top], content[name], top)
    ]
    advice = f"Set what it went into: {', '.join(places[:6])}" if places else ""
    return (
        f"--cfg-options {key}: nothing uses this entry. It is a variable, which the "
        "config's other entries took their values from when the file was read. "
        f"{advice or 'Change it in the file'}."
    )


def _uses(value: Any, variable: Any, where: str) -> Iterator[str]:
    """Entries that are the variable's value, begin with it, or are made of it."""
    same = type(value) is type(variable) and value == variable
    begins = isinstance(value, str) and isinstance(variable, str) and variable
    made = isinstance(value, (list, tuple)) and value and {*map(repr, value)} == {
        repr(variable)
    }  # fmt: skip
    if same or made or (begins and value.startswith(variable)):
        yield where
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _uses(inner, variable, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _uses(inner, variable, f"{where}.{number}")


def _refuse_misspelt(key: str, content: Mapping[str, Any]) -> None:
    """A key that is not there, and nearly one that is; or not known at the top."""
    value: Any = content
    path = key.split(".")
    for depth, part in enumerate(path):
        if isinstance(value, (list, tuple)):
            if not part.isdigit() or int(part) >= len(value):
                raise ValueError(
                    f"--cfg-options {key}: {'.'.join(path[:depth])} is a list of "
                    f"{len(value)}: expected a number below it, got {part!r}"
                )
            value = value[int(part)]
            continue
        if not isinstance(value, dict):
            return  # takes the place of what is no dictionary
        if part not in value and not (depth == 0 and part in READ):
            known = [str(k) for k in value] + ([*READ] if depth == 0 else [])
            close = get_close_matches(part, known, cutoff=0.85 if depth else 0.6)
            if close or depth == 0:
                hint = f", did you mean {' or '.join(close)}?" if close else "."
                raise ValueError(f"--cfg-options {key}: nothing reads {part!r}{hint}")
            return  # a further argument, which a class takes or refuses
        value = value.get(part, {})
