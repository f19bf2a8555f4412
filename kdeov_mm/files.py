"""Files written atomically, and folders that one process at a time may write."""

import json
import os
import platform
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

from filelock import FileLock, Timeout

LOCK = "lock.tmp"
# what torch.load raises for a file that is no checkpoint, or only a part of one
BROKEN = (UnpicklingError, EOFError, LookupError, RuntimeError, ValueError)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically: it has all of its new content, or is as it was."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write bit by bit, that has its place when it is whole."""
    if not path.parent.is_dir() or path.is_dir():
        raise NotADirectoryError(
            f"cannot write {path}: it is a folder, or {path.parent} is none"
        )
    # two writers at once must not share a scratch file, be it on two machines
    writer = f"{platform.node()}-{os.getpid()}-{threading.get_ident()}"
    scratch = path.with_name(f"{path.name}.{writer}.tmp")
    with scratch.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other writers out; remove what a killed one left unfinished.

    Raises:
        BlockingIOError: another process is writing to this folder.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(
            f"another process is filling {folder}: wait for it, or stop it"
        ) from error
    try:
        for path in folder.glob("*.tmp"):
            if path.name != LOCK:
                path.unlink()
        yield
    finally:
        lock.release()


def claim(manifest: Path, kind: str, settings: Mapping[str, Any], advice: str) -> None:
    """Make a folder for results of some settings, or check that it is one.

    Args:
        manifest: the file in the folder that holds the settings.
        kind: what the folder holds, e.g. ``'index'``.
        settings: what results depend on, as JSON.
        advice: what to do where the folder is of other settings.

    Raises:
        ValueError: it has other files, results of other settings, or is damaged.
    """
    folder = manifest.parent
    nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{folder}: {nearest} is a file, expected a folder")
    folder.mkdir(parents=True, exist_ok=True)
    # a folder of other things is left alone
    if not manifest.exists():
        if any(file.suffix != ".tmp" for file in folder.iterdir()):
            raise ValueError(
                f"{folder} is not empty and holds no {kind}: name another folder."
            )
        write_whole(manifest, json.dumps(settings, indent=1).encode())
    try:
        held = dict(json.loads(manifest.read_text()))
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{manifest} is damaged ({error}): {advice}") from error
    if other := [key for key in settings if held.get(key) != settings[key]]:
        raise ValueError(
            f"{folder} is of other settings ({', '.join(other)}): {advice}"
        )
