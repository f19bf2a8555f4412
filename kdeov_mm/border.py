"""What comes from outside, checked where it comes in, with a sentence for the user."""

import argparse
import os
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

# what content of another shape raises, where it is taken apart
ODD = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError),
    *(RuntimeError, TypeError, ValueError),
)
HOME = Path(__file__).parent


def whole_number(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number of at least, and at most, so much.

    Raises:
        ValueError: it is none.
    """
    good = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not good or value < least or (most is not None and value > most):
        upper = "" if most is None else f" and at most {most}"
        raise ValueError(
            f"{name} is at least {least}{upper}, a whole number, got {value!r:.80}"
        )
    return int(value)


def real_number(
    name: str, value: Any, low: float, high: float, place: str = "[{}, {}]"
) -> float:
    """A number in ``[low, high]``; one element of an array or a tensor is one, too.

    Args:
        name: for the message.
        value: what was given.
        low, high: the least and the greatest.
        place: how both are written; with a round bracket the end is not allowed.

    Raises:
        ValueError: it is none, or not finite.
    """
    if isinstance(value, (np.ndarray, Tensor)) and value.shape == ():
        value = value.item()
    inside = (
        isinstance(value, (int, float, np.integer, np.floating))
        and low <= value <= high
    )
    if (
        not inside
        or (value == low and place[0] == "(")
        or (value == high and place[-1] == ")")
    ):
        span = place.format(low, high)
        raise ValueError(f"{name} lies in {span}, got {value!r:.80}")
    return float(value)


def path_of(what: str, value: Any) -> Path:
    """A path that names something.

    Raises:
        ValueError: it is empty, or no path.
    """
    named = isinstance(value, (str, Path)) and str(value).strip()
    if not named or "\0" in str(value) or not 0 < len(_encoded(value)) <= 4096:
        raise ValueError(f"{what}: expected a path, got {value!r:.80}")
    return Path(value)


def _encoded(path: str | Path) -> bytes:
    """A path as the system knows it; empty where it can have no such file."""
    try:
        return os.fsencode(path)
    except UnicodeEncodeError:
        return b""


def items_of(what: str, values: Any) -> list[Any]:
    """The items of a list, a tuple, an array or a generator.

    Raises:
        ValueError: something else; sets have no order, and dictionaries say more.
    """
    refused = isinstance(values, (str, bytes, Mapping, Set, Tensor, type))
    zero_dims = isinstance(values, np.ndarray) and not values.ndim
    if refused or zero_dims or not isinstance(values, Iterable):
        raise ValueError(f"expected a list of {what}, got {values!r:.80}")
    return [*values]


@contextmanager
def taken_apart(what: str) -> Iterator[None]:
    """Say of what someone wrote that it has another form than is expected.

    Raises:
        ValueError: in the place of what its content raises.
    """
    try:
        yield
    except ODD as error:
        said = str(error) if type(error) is ValueError else f"{error!r}"
        raise ValueError(f"{what}: {said:.500}") from error


@contextmanager
def built(what: str) -> Iterator[None]:
    """Say of a config that nothing can be made of it: its parts may raise anything.

    Raises:
        ValueError: in the place of any other error; those of files stay.
    """
    try:
        yield
    except (ImportError, OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{what}: {type(error).__name__}: {error}") from error


@contextmanager
def sentences(tool: str, folder: str | Path | None = None) -> Iterator[None]:
    """End a tool with a sentence where what it was given is wrong.

    What this package did not foresee is named with its type, and its traceback is kept.

    Args:
        tool: its name, e.g. ``'train.py'``.
        folder: for the file of a traceback; None: the system's for temporary files.

    Raises:
        SystemExit: with the sentence.
    """
    try:
        yield
    except Exception as error:
        raise SystemExit(f"{tool}: {_told(error, tool, folder)}") from error


def _told(error: Exception, tool: str, folder: str | Path | None) -> str:
    """An error as a sentence, and where its traceback is."""
    frame = [*traceback.walk_tb(error.__traceback__)][-1][0]
    raised_here = Path(frame.f_code.co_filename).is_relative_to(HOME)
    # those of files and of Python's grammar name what is wrong, whoever raises them
    if raised_here or isinstance(error, (ImportError, OSError, SyntaxError)):
        return str(error)
    with tempfile.NamedTemporaryFile(
        "w", prefix=f"{tool}-", suffix=".txt", dir=folder, delete=False
    ) as file:
        file.writelines(traceback.format_exception(error))
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    return f"{said:.1000}\nThis was not foreseen; its traceback is in {file.name}"


def given_path(value: str) -> Path:
    """A path on a command line, as argparse's ``type``: an empty one names nothing."""
    try:
        return path_of("it", value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
