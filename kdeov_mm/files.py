"""Folders that several processes may write, and that a killed one leaves whole."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file; it has all of its new content, or is as it was."""
    scratch = path.with_suffix(".tmp")
    with scratch.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other writers out; what a killed one left unfinished is removed.

    Raises:
        BlockingIOError: another process is filling this folder.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise BlockingIOError(
            f"another process is filling {folder}: wait for it, or stop it"
        ) from error
    try:
        for path in folder.glob("*.tmp"):
            path.unlink()
        yield
    finally:
        os.close(handle)
