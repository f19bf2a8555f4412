"""Files are written whole, and a folder has one writer."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import kdeov_mm.files
from kdeov_mm.files import LOCK, locked, write_whole

# the module by its path: a process that imports the package takes seconds
PROGRAM = "import runpy, sys; files = runpy.run_path(sys.argv[1]); "
HOLD = (
    PROGRAM + "import pathlib, time\n"
    "with files['locked'](pathlib.Path(sys.argv[2])):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(600)"
)
WRITE = (
    PROGRAM + "import pathlib\n"
    "for _ in range(40):\n"
    "    files['write_whole'](pathlib.Path(sys.argv[2]), sys.argv[3].encode() * 10**5)"
)


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, kdeov_mm.files.__file__]
    return subprocess.Popen(
        [*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


@contextmanager
def another_holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a folder."""
    process = start(HOLD, folder)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --------------------------------------------------------------- written whole


def test_a_file_has_its_new_content_and_nothing_is_left(tmp_path: Path) -> None:
    for content in (b"first and longer", b"second", b""):
        write_whole(tmp_path / "a.bin", content)
        assert (tmp_path / "a.bin").read_bytes() == content
        assert names(tmp_path) == ["a.bin"]


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "a.bin", b"old")

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_whole(tmp_path / "a.bin", b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"old"


def test_threads_that_write_one_file_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    contents = [bytes([i]) * (1000 + i) for i in range(8)]
    start_line = threading.Barrier(len(contents))

    def write(content: bytes) -> None:
        start_line.wait()
        for _ in range(20):
            write_whole(path, content)
            assert path.read_bytes() in contents

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(write, contents))
    assert names(tmp_path) == ["a.bin"]


def test_processes_that_write_one_file_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    writers = [start(WRITE, path, letter) for letter in "ab"]
    wholes = {b"a" * 10**5, b"b" * 10**5}
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.add(path.read_bytes())
        time.sleep(0.001)
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert seen and seen <= wholes and path.read_bytes() in wholes
    assert names(tmp_path) == ["a.bin"]


# ------------------------------------------------------------------ one writer


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(BlockingIOError, match=f"another process .*{tmp_path.name}")
    with another_holder(tmp_path), refused, locked(tmp_path):
        pytest.fail("two writers")


def test_a_killed_process_holds_the_lock_no_more(tmp_path: Path) -> None:
    with another_holder(tmp_path) as process:
        (tmp_path / "shard-00000.safetensors.1-2.tmp").write_bytes(b"half")
        (tmp_path / "shard-00001.safetensors").write_bytes(b"whole")
        process.kill()
        process.wait()
        with locked(tmp_path):  # and what it left unfinished is gone
            assert set(names(tmp_path)) - {LOCK} == {"shard-00001.safetensors"}


def test_the_refused_process_removes_nothing(tmp_path: Path) -> None:
    with another_holder(tmp_path):
        (tmp_path / "a.1-2.tmp").write_bytes(b"being written")
        with pytest.raises(BlockingIOError), locked(tmp_path):
            pass
        assert (tmp_path / "a.1-2.tmp").read_bytes() == b"being written"


def test_a_second_writer_of_this_process_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(BlockingIOError, match="another process")
    with locked(tmp_path), refused, locked(tmp_path):
        pytest.fail("two writers")


def test_the_lock_is_released_after_an_error_and_can_be_taken_again(
    tmp_path: Path,
) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    for _ in range(3):
        with locked(tmp_path):
            pass


def test_folders_have_locks_of_their_own(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    with (
        locked(tmp_path / "a"),
        locked(tmp_path / "b"),
        pytest.raises(BlockingIOError),
        locked(tmp_path / "a"),
    ):
        pytest.fail("two writers")
