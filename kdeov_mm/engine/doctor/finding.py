"""What may be wrong with a training config."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

# name of a finding -> its likely cause, and the fix; configs accept findings by name
ADVICE: dict[str, dict[str, str]] = json.loads(
    Path(__file__).with_name("advice.json").read_text()
)


class Finding(NamedTuple):
    """Something wrong: a name among :data:`ADVICE`, and what was found."""

    name: str
    what: str


# what a check yields: an observation to print, or something wrong
Checks = Iterator[str | Finding]


class Stop(Exception):
    """A finding after which nothing else can be checked."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(what)
        self.finding = Finding(name, what)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Turn any failure, e.g. of a third party's module, into a finding."""
    try:
        yield
    except Stop:
        raise
    except Exception as error:
        raise Stop(name, f"{type(error).__name__}: {error}") from error


def examples(names: Iterable[str]) -> str:
    """The first three different names in brackets, or nothing."""
    listed = list(dict.fromkeys(names))
    more = ", ..." if len(listed) > 3 else ""
    return f" ({', '.join(listed[:3])}{more})" if listed else ""
