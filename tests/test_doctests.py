"""The examples in the docstrings do run."""

import doctest
import importlib
import logging
from pathlib import Path

import pytest

import kdeov_mm

from .conftest import ROOT

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def with_examples() -> list[str]:
    """Modules of the package whose source shows an example; nothing is imported."""
    root = Path(kdeov_mm.__file__).parent
    return sorted(
        ".".join(("kdeov_mm", *path.relative_to(root).with_suffix("").parts))
        for path in root.rglob("*.py")
        if ">>> " in path.read_text()
    )


@pytest.mark.parametrize("name", with_examples())
def test_the_examples_of_a_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # examples name configs from there
    module = importlib.import_module(name.removesuffix(".__init__"))
    logging.disable()  # mmengine's log is on stdout
    try:
        result = doctest.testmod(module, optionflags=FLAGS)
    finally:
        logging.disable(logging.NOTSET)
    assert result.attempted and not result.failed  # the differences stand above
