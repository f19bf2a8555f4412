"""Files written atomically, and folders that one process at a time may write."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = "lock.tmp"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically: it has all of its new content, or is as it was."""
    # two writers at once must not share a scratch file
    writer = f"{os.getpid()}-{threading.get_ident()}"
    scratch = path.with_name(f"{path.name}.{writer}.tmp")
    with scratch.open("wb") as file:
        file.write(data)
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
