"""How a door answers: with a sentence, with a result, or with a traceback."""

import contextlib
import io
import linecache
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from ..conftest import ROOT

SECONDS = 60  # that an answer may take
OURS = (str(ROOT / "kdeov_mm"), str(ROOT / "tools"))
# what our code raises on purpose
EXPECTED = (ImportError, OSError, TypeError, ValueError, FloatingPointError)


class Answer(NamedTuple):
    """What a door says to an input: its kind, and its words or its result."""

    kind: str  # 'sentence', 'result', 'traceback', 'hang'
    said: str
    result: Any = None


class Hang(BaseException):
    """A call that does not end; no handler of Exceptions catches it."""


def ask(call: Callable[[], Any]) -> Answer:
    """Call a door of the package."""
    try:
        with _limited():
            result = call()
    except Hang:
        return Answer("hang", "")
    except Exception as error:  # noqa: BLE001  (sorted by where it comes from)
        said = f"{type(error).__name__}: {error}"
        kind = "sentence" if _on_purpose(error) else "traceback"
        return Answer(kind, said if kind == "sentence" else _where(error) + said)
    return Answer("result", repr(result)[:200], result)


def ask_tool(main: Callable[..., Any], argv: list[str]) -> Answer:
    """Run a tool in this process, as its command line would."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    before = sys.argv
    sys.argv = ["tool.py", *argv]
    try:
        both = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with both[0], both[1], _limited():
            code = main(argv)
    except Hang:
        return Answer("hang", "")
    except SystemExit as ended:
        code = ended.code
    except Exception as error:  # noqa: BLE001  (a traceback is what is looked for)
        return Answer("traceback", f"{_where(error)}{type(error).__name__}: {error}")
    finally:
        sys.argv = before
    said = err.getvalue() + out.getvalue()
    if isinstance(code, str):
        code, said = 1, code + said
    if "Traceback (most recent" in said:
        return Answer("traceback", said[-500:])
    refused = bool(code) and isinstance(code, int)
    return Answer("sentence" if refused else "result", said[-600:], code)


def _on_purpose(error: BaseException) -> bool:
    """Whether our code raised it: a ``raise`` of ours, or a call with other names."""
    if not isinstance(error, EXPECTED):
        return False
    frames = [*traceback.walk_tb(error.__traceback__)]
    frame, line = frames[-1]
    file = frame.f_code.co_filename
    # a call that does not fit a signature is Python's own sentence
    if Path(file).is_relative_to(ROOT / "tests"):
        return isinstance(error, TypeError) and "argument" in str(error)
    text = linecache.getline(file, line).strip()
    return file.startswith(OURS) and text.startswith("raise")


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename.startswith(OURS)]
    named = [f"{Path(f.filename).name}:{f.lineno}" for f in own[-3:]]
    last = frames[-1]
    return f"{' '.join(named)} > {Path(last.filename).name}:{last.lineno} "


@contextlib.contextmanager
def _limited() -> Any:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
