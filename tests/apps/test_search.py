"""A folder of images, found by words: what is on disk, what a killed run leaves."""

import io
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from kdeov_mm import KDEOV
from kdeov_mm.apps import search
from kdeov_mm.apps.search import Hit, ImageIndex, contact_sheet
from kdeov_mm.files import LOCK, locked
from kdeov_mm.inference.sources import ImageSource
from kdeov_mm.reader import read_image

from ..conftest import load_tool, run_env
from ..inference.test_api import scene, write_joint

GOOD, BAD = 40, 3
QUERIES = ("red ball", "an old house by the sea", "tall tree")


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, load_config: Callable[..., Config]
) -> Path:
    return write_joint(tmp_path_factory.mktemp("joint"), load_config)


@pytest.fixture(scope="module")
def student(checkpoint: Path) -> KDEOV:
    model = KDEOV.from_checkpoint(checkpoint)
    model.batch_size = 4
    return model


@pytest.fixture(scope="module")
def other(
    tmp_path_factory: pytest.TempPathFactory, load_config: Callable[..., Config]
) -> KDEOV:
    """A student of the same config, with other weights."""
    folder = tmp_path_factory.mktemp("other")
    return KDEOV.from_checkpoint(write_joint(folder, load_config, seed=1))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default store lies below the working directory."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty images in nested folders, three that are none, and other files."""
    root = tmp_path / "gallery"
    below = [root, root / "a", root / "a/b c", root / "år ☂"]
    for place in below:
        place.mkdir()
    endings = (".png", ".jpg", ".PNG", ".jpeg", ".bmp", ".webp")
    for i in range(GOOD):
        path = below[i % len(below)] / f"{i:02d}{endings[i % len(endings)]}"
        Image.fromarray(scene(20 + i, 60 - i, seed=i)).save(path)
    whole = (root / "a/01.jpg").read_bytes()
    (root / "a/broken.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "empty.png").write_bytes(b"")
    (root / "link.png").symlink_to(root / "nothing.png")
    (root / "notes.txt").write_text("no image")
    (root / "png").write_text("no image")
    return root


@pytest.fixture
def embedded(student: KDEOV, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of ``encode_image`` was given."""
    numbers: list[int] = []
    real = student.encode_image

    def encode(images: Any) -> torch.Tensor:
        numbers.append(len(images))
        return real(images)

    monkeypatch.setattr(student, "encode_image", encode)
    return numbers


def made(student: KDEOV, folder: Path, store: Path | str | None = None) -> ImageIndex:
    """An index that is up to date."""
    index = ImageIndex(student, folder, store)
    index.update()
    return index


def entries(index: ImageIndex) -> dict[str, dict[str, Any]]:
    """Rows by path; of a path that has several this fails."""
    table = index.table.to_arrow()
    mtime = table.column_names.index("mtime")
    rows = table.set_column(mtime, "mtime", table["mtime"].cast("int64")).to_pylist()
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}


def assert_whole(index: ImageIndex, student: KDEOV) -> None:
    """The table says of every image what the student says of it, and no more."""
    rows = entries(ImageIndex(student, index.folder, index.store))
    assert {*rows} == {
        str(path.relative_to(index.folder))
        for path in index.folder.rglob("*")
        if path.suffix.lower() in IMG_EXTENSIONS
    }
    good = {name: row for name, row in rows.items() if row["error"] is None}
    wanted = student.encode_image([index.folder / name for name in good]).numpy()
    for row, vector in zip(good.values(), wanted):
        np.testing.assert_allclose(row["vector"], vector, atol=1e-3)
        height, width, _ = read_image(index.folder / row["path"]).shape
        assert (row["height"], row["width"]) == (height, width)
    for name, row in rows.items():
        assert (row["vector"] is None) == (row["error"] is not None)
        path = index.folder / name
        if path.exists():
            about = path.stat()
            assert (row["size"], row["mtime"]) == (about.st_size, about.st_mtime_ns)
    assert rows == entries(index)
    names = {path.name for path in Path(index.store).iterdir()}
    assert names - {LOCK} == {"images.lance"}


# -------------------------------------------------------------------- searching


def test_all_images_of_the_folder_and_below_are_in_the_index(
    student: KDEOV, folder: Path
) -> None:
    index = ImageIndex(student, folder)
    done = index.update()
    assert done == dict(added=GOOD + BAD, removed=0, unreadable=BAD, images=GOOD)
    assert_whole(index, student)


def test_what_is_found_is_what_comparing_with_every_image_finds(
    student: KDEOV, folder: Path
) -> None:
    index = made(student, folder)
    paths = [folder / n for n, row in entries(index).items() if row["vector"]]
    embeds = student.encode_image(paths)
    firsts = set()
    for words in (*QUERIES, *F.normalize(torch.randn(8, embeds.shape[1]))):
        query = words
        if isinstance(words, str):
            (query,) = student.model.text_encoder([words])
        values, order = (embeds @ query).sort(descending=True)
        hits = index.search(words, top=7)
        assert [hit.path for hit in hits] == [paths[i] for i in order[:7]]
        scores = torch.tensor([hit.score for hit in hits])
        torch.testing.assert_close(scores, values[:7], atol=1e-3, rtol=1e-3)
        firsts.add(hits[0].path)
    assert len(firsts) > 2


def test_more_are_asked_than_there_are(student: KDEOV, folder: Path) -> None:
    index = made(student, folder)
    hits = index.search(QUERIES[0], top=10**6)
    assert len(hits) == len({hit.path for hit in hits}) == GOOD
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True) and -1 <= scores[-1] < scores[0] <= 1
    for top in (1, 5, 12, GOOD):
        assert index.search(QUERIES[0], top) == hits[:top]


def test_a_vector_is_looked_for_as_its_words_are(student: KDEOV, folder: Path) -> None:
    index = made(student, folder)
    (vector,) = student.model.text_encoder(["green star"])
    for form in (vector, vector.double(), vector.clone().requires_grad_()):
        assert index.search(form) == index.search("green star")
    image = folder / "a/b c/02.PNG"
    best, *_ = index.search(student.encode_image(image)[0])
    assert best.path == image and best.score == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("words", ["", "  "])
def test_no_words_are_refused(student: KDEOV, folder: Path, words: str) -> None:
    with pytest.raises(ValueError, match="word"):
        made(student, folder).search(words)


def test_without_lancedb_it_is_said_what_to_install(
    student: KDEOV, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a folder is embedded for nothing."""
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ImportError, match=r"pip install 'kdeov_mm\[search\]'"):
        ImageIndex(student, folder)


def test_an_empty_folder_says_that_there_is_nothing_to_search(
    student: KDEOV, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("no image")
    index = ImageIndex(student, tmp_path / "empty")
    nothing = dict(added=0, removed=0, unreadable=0, images=0)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"no image of .*{index.folder.name}"):
            index.search("red ball")
        assert index.update() == nothing
    with pytest.raises(ValueError, match="no image of"):
        ImageIndex(student, folder).search("red ball")  # before update


def test_what_is_no_folder_is_refused(student: KDEOV, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    for path in (tmp_path / "file", tmp_path / "nothing"):
        with pytest.raises(NotADirectoryError, match=f"{path.name} is no folder"):
            ImageIndex(student, path)


# ------------------------------------------------------------ following a folder


def test_a_second_run_embeds_nothing_and_writes_nothing(
    student: KDEOV, folder: Path, embedded: list[int]
) -> None:
    first = made(student, folder)
    wanted = [first.search(words) for words in QUERIES]
    files = {p: p.stat().st_mtime_ns for p in Path(first.store).rglob("*.*")}
    embedded.clear()
    second = ImageIndex(student, str(folder))
    done = second.update()
    assert done == dict(added=0, removed=0, unreadable=BAD, images=GOOD)
    assert [second.search(words) for words in QUERIES] == wanted
    assert not embedded and second.store == first.store
    assert {p: p.stat().st_mtime_ns for p in Path(first.store).rglob("*.*")} == files


@pytest.mark.parametrize("again", [True, False])
def test_new_changed_and_removed_images_are_followed(
    student: KDEOV, folder: Path, embedded: list[int], again: bool
) -> None:
    index = made(student, folder)
    index.search("red ball")
    new, changed, gone = folder / "new.png", folder / "00.png", folder / "a/25.jpg"
    Image.fromarray(scene(30, 30, seed=100)).save(new)
    Image.fromarray(scene(41, 47, seed=101)).save(changed)
    gone.unlink()
    embedded.clear()
    if again:
        index = ImageIndex(student, folder)
    done = index.update()
    assert done == dict(added=2, removed=1, unreadable=BAD, images=GOOD)
    assert sum(embedded) == 2
    assert_whole(index, student)
    paths = {hit.path for hit in index.search("red ball", GOOD)}
    assert len(paths) == GOOD and gone not in paths and {new, changed} <= paths


def test_the_time_of_change_alone_tells_that_an_image_changed(
    student: KDEOV, folder: Path, embedded: list[int]
) -> None:
    index, path = made(student, folder), folder / "04.bmp"
    size, before = path.stat().st_size, entries(index)["04.bmp"]
    with Image.open(path) as image:
        Image.new("RGB", image.size, "red").save(path)
    os.utime(path, ns=(0, before["mtime"] + 1))
    assert path.stat().st_size == size
    embedded.clear()
    assert index.update()["added"] == sum(embedded) == 1
    assert_whole(index, student)
    after = entries(index)["04.bmp"]["vector"]
    assert np.abs(np.subtract(after, before["vector"])).max() > 1e-3


def test_an_emptied_folder_has_an_empty_index(student: KDEOV, folder: Path) -> None:
    index = made(student, folder)
    for path in folder.rglob("*.*"):
        path.unlink()
    done = index.update()
    assert done == dict(added=0, removed=GOOD + BAD, unreadable=0, images=0)
    assert entries(ImageIndex(student, folder)) == {}
    with pytest.raises(ValueError, match="no image of"):
        index.search("red ball")


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    student: KDEOV, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, real = made(student, folder), os.scandir
    known = {*entries(index)}

    def closed(path: Any) -> Any:
        if Path(path) == folder / "a/b c":
            raise PermissionError(f"cannot list {path}")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", closed)
        with pytest.raises(PermissionError, match="b c"):
            index.update()
    assert {*entries(index)} == {*entries(ImageIndex(student, folder))} == known


def test_unreadable_files_are_counted_named_and_not_lost(
    student: KDEOV, folder: Path, embedded: list[int]
) -> None:
    index = made(student, folder)
    bad = {n: row for n, row in entries(index).items() if row["vector"] is None}
    assert {*bad} == {"a/broken.jpg", "empty.png", "link.png"}
    for name, row in bad.items():
        assert str(folder / name) in row["error"]
    embedded.clear()
    assert ImageIndex(student, folder).update()["unreadable"] == BAD
    assert not embedded  # and they are not tried again
    for name in bad:  # until they change
        (folder / name).unlink()
        Image.fromarray(scene(30, 30, seed=3)).save(folder / name)
    done = index.update()
    assert done == dict(added=BAD, removed=0, unreadable=0, images=GOOD + BAD)
    assert_whole(index, student)


def test_a_folder_of_unreadable_files_alone_is_no_end(
    student: KDEOV, tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    for i in range(6):
        (tmp_path / f"bad/{i}.png").write_text("no image")
    index = made(student, tmp_path / "bad")
    assert index.update() == dict(added=0, removed=0, unreadable=6, images=0)
    assert_whole(index, student)


def test_a_thread_of_an_image_is_no_end(student: KDEOV, folder: Path) -> None:
    """At the model's input it would be less than a pixel thin."""
    Image.new("RGB", (6000, 3)).save(folder / "thread.png")
    index = ImageIndex(student, folder)
    assert index.update()["images"] == GOOD + 1
    assert_whole(index, student)


def test_a_file_that_goes_while_the_folder_is_read_is_no_end(
    student: KDEOV, folder: Path
) -> None:
    def meanwhile(names: Iterable[str]) -> Iterable[str]:
        (folder / "00.png").unlink()
        Image.fromarray(scene(99, 88, seed=100)).save(folder / "04.bmp")
        return names

    index = ImageIndex(student, folder)
    assert index.update(meanwhile)["unreadable"] == BAD + 1
    assert "00.png" in entries(index)["00.png"]["error"]
    done = index.update()
    assert (done["removed"], done["added"]) == (1, 1)  # 04.bmp is read again
    assert_whole(index, student)


# --------------------------------------------------------------- what is killed


class Killed(BaseException):
    """The process is no more."""


# the step that is the last, the how manieth, images that are on disk by then
DEATHS = {
    "first batch": ("encode_image", 1, 0),
    "second shard": ("encode_image", 4, 8),
    "fifth shard": ("encode_image", 9, 32),
    "first write": ("_write", 1, 0),
    "third write": ("_write", 3, 16),
    "last write": ("_write", 6, 40),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_killed_run_is_gone_on_with(
    student: KDEOV,
    folder: Path,
    embedded: list[int],
    monkeypatch: pytest.MonkeyPatch,
    death: str,
) -> None:
    step, last, known = DEATHS[death]
    owner: Any = student if step == "encode_image" else ImageIndex
    real, calls = getattr(owner, step), []

    def die(*args: Any) -> Any:
        calls.append(step)
        if len(calls) == last:
            raise Killed
        return real(*args)

    monkeypatch.setattr(search, "LARGEST", 8)
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, die)
        with pytest.raises(Killed):
            made(student, folder)
    embedded.clear()
    index = ImageIndex(student, folder)
    assert index.table.count_rows() == known
    readable = index.table.count_rows("error is null")
    done = index.update()
    assert done == dict(
        added=GOOD + BAD - known, removed=0, unreadable=BAD, images=GOOD
    )
    assert sum(embedded) == GOOD - readable
    assert_whole(index, student)


def test_a_run_that_kill_9_ends_is_gone_on_with(
    student: KDEOV, checkpoint: Path, folder: Path, embedded: list[int], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    code = f"""
import os, signal
from kdeov_mm import KDEOV
from kdeov_mm.apps import search

search.LARGEST = 8
student = KDEOV.from_checkpoint({str(checkpoint)!r})
student.batch_size, real, calls = 4, student.encode_image, []

def encode(images):
    calls.append(len(images))
    if len(calls) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(images)

student.encode_image = encode
search.ImageIndex(student, {str(folder)!r}, {str(store)!r}).update()
"""
    died = subprocess.run(
        [sys.executable, "-c", code], env=run_env(), capture_output=True, text=True
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    index = ImageIndex(student, folder, store)
    assert index.table.count_rows() == 16
    readable = index.table.count_rows("error is null")
    done = index.update()
    assert done["images"] == GOOD and done["added"] == GOOD + BAD - 16
    assert sum(embedded) == GOOD - readable
    assert_whole(index, student)


class Numbered(KDEOV):
    """Made without weights; what it embeds is told by the rows alone."""

    def __init__(self) -> None:
        self.model: Any = SimpleNamespace(text_encoder=SimpleNamespace(embed_dims=16))


def numbered(size: int) -> np.ndarray:
    """A vector (16,) of a file of so many bytes."""
    vector = np.random.default_rng(size).standard_normal(16)
    return (vector / np.linalg.norm(vector)).astype(np.float16)


def open_numbered(folder: Path) -> ImageIndex:
    search._student_hash = lambda model: "numbered"  # type: ignore[assignment]
    search.PAUSE, search.SHARD, search.FRAGMENTS = 0, 4, 6
    return ImageIndex(Numbered(), folder / "images", folder / "store")


def write_numbered(folder: Path, ready: Any) -> None:
    """Follow files that grow, and go on until the process is killed."""
    index, step = open_numbered(folder), 0
    ready.set()
    while True:
        for path in sorted((folder / "images").iterdir()):
            path.write_bytes(b"x" * (1 + (path.stat().st_size + step) % 50))
        index.update(
            embed=lambda rows: (
                dict(row, vector=numbered(row["size"])) for row in [*rows]
            )
        )
        step += 1


def read_numbered(folder: Path, end: Any, seen: Any) -> None:
    """Whole states alone: each image once, with the vector of its size."""
    index = open_numbered(folder)
    while not end.is_set():
        rows = index.table.to_arrow().to_pylist()
        assert len({row["path"] for row in rows}) == len(rows) == 60
        assert all((row["vector"] == numbered(row["size"])).all() for row in rows)
        assert len(index.search(torch.randn(16), 5)) == 5
        with seen.get_lock():
            seen.value += 1
        time.sleep(0.1)


@pytest.mark.slow
def test_twenty_kills_of_a_writer_beside_three_readers(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(60):
        (tmp_path / f"images/{i}.png").write_bytes(b"x" * (i + 1))
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([search.__name__])
    # the table is whole before the first reader looks
    first = open_numbered(tmp_path)
    rows = lambda found: (dict(r, vector=numbered(r["size"])) for r in found)  # noqa: E731
    first.update(embed=rows)
    end, seen = processes.Event(), processes.Value("i", 0)
    readers = [
        processes.Process(target=read_numbered, args=(tmp_path, end, seen), daemon=True)
        for _ in range(3)
    ]
    for reader in readers:
        reader.start()
    moments = random.Random(0)
    for _ in range(20):
        ready = processes.Event()
        writer = processes.Process(
            target=write_numbered, args=(tmp_path, ready), daemon=True
        )
        writer.start()
        assert ready.wait(120)
        time.sleep(moments.random())
        writer.kill()
        writer.join()
    end.set()
    for reader in readers:
        reader.join(60)
    assert [reader.exitcode for reader in readers] == [0, 0, 0] and seen.value > 20
    # nothing is lost, and the next update says what the folder has
    index = open_numbered(tmp_path)
    assert index.table.version > 20  # some wrote before they died
    index.update(embed=rows)
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "images").iterdir()}
    assert {path: row["size"] for path, row in entries(index).items()} == sizes


def test_many_small_writes_are_put_together(
    student: KDEOV, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "LARGEST", 2)
    monkeypatch.setattr(search, "FRAGMENTS", 4)
    index = made(student, folder)
    assert index.table.stats()["fragment_stats"]["num_fragments"] <= 5
    assert_whole(index, student)


def test_a_reader_sees_what_another_process_has_written(
    student: KDEOV, folder: Path
) -> None:
    """Whole versions, and the newest: a handle need not be opened again."""
    reader, writer = ImageIndex(student, folder), made(student, folder)
    assert reader.search("red ball") == writer.search("red ball")
    (folder / "00.png").unlink()
    writer.update()
    assert reader.search("red ball", GOOD) == writer.search("red ball", GOOD)


# --------------------------------------------------------------- many, and some


def test_what_a_condition_leaves_out_is_not_looked_at(
    student: KDEOV, folder: Path
) -> None:
    index = made(student, folder)
    paths = {hit.path for hit in index.search("red ball", GOOD, "path like 'a/b c/%'")}
    assert paths == {*(folder / "a/b c").iterdir()}
    narrow = index.search("red ball", GOOD, "width < 30 and size > 0")
    every = index.search("red ball", GOOD)
    assert 0 < len(narrow) < GOOD and narrow == [hit for hit in every if hit in narrow]
    assert index.search("red ball", where="path = 'it''s none'") == []
    for bad in ("paths = 1", "path like", "", "1", "width > 'x'"):
        with pytest.raises(ValueError, match="where .*: no condition .*'width'"):
            index.search("red ball", where=bad)


def clustered(student: KDEOV, folder: Path, number: int) -> ImageIndex:
    """Rows of made-up vectors, and no files."""
    rng = np.random.default_rng(0)
    index = ImageIndex(student, folder)
    dims = index.schema.field("vector").type.list_size
    centres = rng.standard_normal((number // 50, dims))
    vectors = centres.repeat(50, 0) + 0.5 * rng.standard_normal((number, dims))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index._write(
        [dict(path="bad.png", size=0, mtime=0, error="no image")]
        + [
            dict(path=f"{i}.png", size=i, mtime=0, width=9, height=9, vector=vector)
            for i, vector in enumerate(vectors.astype(np.float16))
        ]
    )
    return index


def test_beyond_a_number_an_index_names_the_candidates(
    student: KDEOV,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    index = clustered(student, folder, 4000)
    monkeypatch.setattr(search, "EXACT", 1000)
    monkeypatch.setattr(index, "_found", lambda schema: rows_of(index))
    assert index.update()["images"] == 4000
    said = capsys.readouterr()
    assert "search index of 4,000 vectors: 00:0" in said.err
    recall = re.search(r"4,000 vectors: recall@12 (\d\.\d+) of exact search", said.out)
    assert recall and float(recall[1]) >= 0.95
    assert names_of(index) == {"ivf_32", "path_idx"}
    # what came after the index is found; what is asked beyond its partitions, too
    query = torch.randn(index.schema.field("vector").type.list_size)
    new = dict(path="new.png", size=1, mtime=0, vector=query.half().numpy())
    index._write([dict(new, vector=(query / query.norm()).half().numpy())])
    assert index.search(query)[0].path.name == "new.png"
    assert len(index.search(query, 4001)) == 4001
    assert len(index.search(query, 12, "size < 20")) == 12
    # an index is made again where there are four times as many images, not before
    index.update()
    assert not capsys.readouterr().out
    index.table.delete("size > 600")
    monkeypatch.setattr(search, "EXACT", 500)
    index.update()
    assert names_of(index) == {"ivf_16", "path_idx"}


def names_of(index: ImageIndex) -> set[str]:
    return {about.name for about in index.table.list_indices()}


def rows_of(index: ImageIndex) -> Any:
    """What :meth:`ImageIndex._found` says of a folder that has all rows' files."""
    return index.table.search().select(search.STAMP).to_arrow(), ImageSource


# ------------------------------------------------------------------- the store


@pytest.mark.parametrize("damage", [b"", b"text", None])
@pytest.mark.parametrize("part", ["*.manifest", "*.lance"])
def test_a_damaged_table_is_named_and_can_be_deleted(
    student: KDEOV, folder: Path, part: str, damage: bytes | None
) -> None:
    index = made(student, folder)
    for path in Path(index.store).rglob(part):
        if path.is_file():
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(ValueError, match="search.*damaged.*delete it"):
        ImageIndex(student, folder).search("red ball")
    shutil.rmtree(index.store)
    assert_whole(made(student, folder), student)


def test_an_index_of_an_older_version_is_named(
    student: KDEOV, folder: Path, tmp_path: Path
) -> None:
    """With what makes it anew."""
    (tmp_path / "store").mkdir()
    for name in ("index.json", "part-00000000.safetensors", "lock.tmp"):
        (tmp_path / "store" / name).write_text("{}")
    with pytest.raises(ValueError, match="older version.*rm -r .*store.*search_images"):
        ImageIndex(student, folder, tmp_path / "store")


def test_a_store_may_be_an_address(
    student: KDEOV, folder: Path, tmp_path: Path
) -> None:
    address = (tmp_path / "store").as_uri()
    index = made(student, folder, address)
    assert index.store == address and (tmp_path / "store/images.lance").is_dir()
    wanted = made(student, folder).search("red ball")
    assert ImageIndex(student, folder, address).search("red ball") == wanted


def test_a_name_that_is_not_utf8_is_a_row_with_an_error(
    student: KDEOV, folder: Path
) -> None:
    try:
        (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    index = made(student, folder)
    assert index.update() == dict(added=0, removed=0, unreadable=BAD + 1, images=GOOD)
    assert "caf" in entries(index)["caf\\udce9.png"]["error"]


def test_images_of_shards_lists_and_addresses(
    student: KDEOV, folder: Path, tmp_path: Path
) -> None:
    """The same vectors as of a folder, by whole paths and addresses."""
    wanted = made(student, folder).search("red ball", 3)
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        shard.add(folder, "")
    names = [str(p.relative_to(tmp_path)) for p in folder.rglob("*.png")]
    write_list = "path\n" + "\n".join([*names, names[0]])
    (tmp_path / "list.csv").write_text(write_list)
    memory = fsspec.filesystem("memory")
    for path in folder.rglob("*.*"):
        if path.is_file():
            memory.pipe(f"/gallery/{path.relative_to(folder)}", path.read_bytes())
    for given in (tmp_path / "0.tar", tmp_path / "list.csv", "memory://gallery"):
        index = made(student, given)
        assert index.update()["added"] == 0
        hits = index.search("red ball", 3)
        if given != tmp_path / "list.csv":  # of PNGs alone
            assert [h.name for h in hits] == [h.name for h in wanted]
            assert [h.score for h in hits] == [h.score for h in wanted]
        for hit in hits:
            (same,) = folder.rglob(hit.name)
            assert (hit.read() == read_image(same)).all()
        assert contact_sheet(hits, "red ball").size[1] > 100
    # one that is gone is gone from the index, too
    memory.rm(str(hits[0].path).removeprefix("memory://"))
    assert index.update()["removed"] == 1
    assert hits[0].path not in [h.path for h in index.search("red ball", GOOD)]
    memory.rm("/gallery", recursive=True)


def test_a_store_is_of_one_folder_and_one_student(
    student: KDEOV, other: KDEOV, folder: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    index = made(student, folder, store)
    before = {p: p.read_bytes() for p in store.rglob("*.*") if p.is_file()}
    for model, place in ((other, folder), (student, folder / "a")):
        with pytest.raises(ValueError, match=r"store is of .*name another place"):
            ImageIndex(model, place, store)
    assert {p: p.read_bytes() for p in before} == before
    assert entries(ImageIndex(student, folder, store)) == entries(index)


def test_every_folder_and_every_student_has_a_place_of_its_own(
    student: KDEOV, other: KDEOV, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    twin = tmp_path / "second" / folder.name  # another folder of that name
    twin.mkdir()
    asked = (
        (student, folder),
        (other, folder),
        (student, twin),
        (student, twin.parent),
    )
    stores = {ImageIndex(model, place).store for model, place in asked}
    assert len(stores) == 4
    assert all(Path(store).parent == Path("work_dirs/search") for store in stores)
    (tmp_path / "link").symlink_to(folder)
    known = ImageIndex(student, folder).store
    for spelling in (f"{folder}/", folder / "a/..", tmp_path / "link"):
        assert ImageIndex(student, spelling).store == known


def test_a_student_that_sees_images_otherwise_is_another(
    student: KDEOV, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [ImageIndex(student, folder).store]
    with monkeypatch.context() as patch:
        patch.setattr(student, "size", 128)
        stores.append(ImageIndex(student, folder).store)
    with monkeypatch.context() as patch:
        patch.setattr(student.model.global_head, "crop_sizes", (128, 160))
        stores.append(ImageIndex(student, folder).store)
    look = student.model.data_preprocessor
    for statistic in (look.mean, look.std):
        statistic += 1
        stores.append(ImageIndex(student, folder).store)
        statistic -= 1
    assert len({*stores}) == 5
    assert ImageIndex(student, folder).store == stores[0]


def test_a_folder_of_other_things_is_no_store(student: KDEOV, folder: Path) -> None:
    with pytest.raises(ValueError, match="not empty and holds no index"):
        ImageIndex(student, folder, folder / "a")
    assert not (folder / "a/images.lance").exists()


def test_two_runs_at_once_are_refused(
    student: KDEOV, folder: Path, embedded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ImageIndex(student, folder), ImageIndex(student, folder)
    real, refused = student.encode_image, []

    def encode(images: Any) -> torch.Tensor:
        if not refused:
            with pytest.raises(BlockingIOError, match="another process") as error:
                second.update()
            refused.append(error)
        return real(images)

    monkeypatch.setattr(student, "encode_image", encode)
    assert first.update()["images"] == GOOD and refused
    assert second.update()["images"] == GOOD
    assert_whole(second, student)
    store = Path(first.store)
    with locked(store), pytest.raises(BlockingIOError, match=store.name):
        first.update()


def test_the_table_says_what_it_is_of(student: KDEOV, folder: Path) -> None:
    about = made(student, folder).table.schema.metadata
    assert about[b"folder"].decode() == str(folder)
    assert re.fullmatch("[0-9a-f]{64}", about[b"student"].decode())


# --------------------------------------------------------------------- images


def make_hits(folder: Path, number: int) -> list[Hit]:
    """Hits of one colour each."""
    hits = []
    for i in range(number):
        path = folder / f"{i}.png"
        Image.new("RGB", (30 + 40 * (i % 3), 50), (5 * i, 0, 255 - 5 * i)).save(path)
        hits.append(Hit(path, 0.5 - 0.01 * i))
    return hits


def test_a_sheet_has_rows_of_columns(tmp_path: Path) -> None:
    hits = make_hits(tmp_path, 13)
    sizes = [contact_sheet(hits[:n], "title").size for n in range(14)]
    assert {width for width, _ in sizes} == {sizes[0][0]} and sizes[0][0] >= 4 * 200
    heights = [height for _, height in sizes]
    row = heights[1] - heights[0]
    assert row > 200
    assert heights == [heights[0] + row * -(-n // 4) for n in range(14)]
    narrow = contact_sheet(hits, "title", columns=2, side=50).size
    assert 2 * 50 < narrow[0] < sizes[0][0] and narrow[1] > 7 * 50


def test_hits_stand_in_reading_order_in_their_colours(tmp_path: Path) -> None:
    hits = make_hits(tmp_path, 7)
    sheet = np.asarray(contact_sheet(hits, "title", columns=3, side=60))
    heights = []
    for i, hit in enumerate(hits):
        y, x = (sheet == read_image(hit.path)[0, 0]).all(-1).nonzero()
        assert len(y) and max(np.ptp(y), np.ptp(x)) + 1 == 60
        assert x.mean() // (sheet.shape[1] / 3) == i % 3
        heights.append(y.mean())
    assert max(heights[:3]) < min(heights[3:6]) and max(heights[3:6]) < heights[6]


def test_a_removed_file_leaves_a_gap_in_the_sheet(tmp_path: Path) -> None:
    hits = make_hits(tmp_path, 5)
    whole = contact_sheet(hits, "title")
    hits[1].path.unlink()
    hits[3].path.write_text("no image")
    gaps = contact_sheet(hits, "title")
    assert gaps.size == whole.size
    changed = (np.asarray(gaps) != np.asarray(whole)).any(-1).mean()
    assert 0 < changed < 0.5


@pytest.mark.parametrize("size", [(1, 1), (6000, 3), (3, 6000), (1, 900)])
def test_any_image_fits_into_the_sheet(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / ("a very long name of a file " * 3 + "☂.png")
    Image.new("RGB", size).save(path)
    sheet = contact_sheet([Hit(path, -0.1)], "words ☂ " * 50)
    assert sheet.size == contact_sheet(make_hits(tmp_path, 1), "title").size


# --------------------------------------------------------------------- the tool


@pytest.fixture
def run(
    checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The tool over the gallery: what it returns, says and complains of."""
    tool = load_tool("search_images")

    def call(*args: str, folder: Path = folder) -> tuple[int, str, str]:
        words = [arg for arg in args if not arg.startswith("--")]
        options = [arg for arg in args if arg.startswith("--")]
        capsys.readouterr()
        code = tool.main([*words, str(folder), f"--checkpoint={checkpoint}", *options])
        return (code, *capsys.readouterr())

    return call


def hits_of(said: str) -> list[tuple[float, Path]]:
    """Scores and paths of the printed hits."""
    found = re.findall(r"^  (-?[01]\.\d{3})  (.+)$", said, re.M)
    return [(float(score), Path(path)) for score, path in found]


def test_the_tool_prints_and_draws_the_hits(
    run: Any, student: KDEOV, folder: Path
) -> None:
    code, said, complaints = run("red ball", "--top=5")
    assert code == 0
    assert f"{GOOD} images" in said and f"{BAD} files could not be read" in said
    assert "broken.jpg" in complaints and "empty.png" in complaints
    wanted = ImageIndex(student, folder).search("red ball", 5)
    assert [path for _, path in hits_of(said)] == [hit.path for hit in wanted]
    for (score, _), hit in zip(hits_of(said), wanted):
        assert score == pytest.approx(hit.score, abs=1e-3)
    with Image.open("work_dirs/search/hits.png") as sheet:
        assert sheet.size == contact_sheet(wanted, "title").size


def test_the_tool_answers_each_line_of_words_with_an_image(
    run: Any, tmp_path: Path
) -> None:
    out = tmp_path / "new/folder/found.jpg"
    code, said, _ = run("red ball", "tall tree", f"--out={out}", "--top=100")
    assert code == 0 and len(hits_of(said)) == 2 * GOOD
    assert sorted(p.name for p in out.parent.iterdir()) == ["found.jpg", "found_2.jpg"]
    assert '"red ball"' in said and '"tall tree"' in said
    code, said, _ = run("green star", "--top=1")
    assert code == 0 and f"{GOOD + BAD} were known, 0 new" in said


def test_the_tool_asks_the_terminal_until_an_empty_line(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("red ball\n tall tree \n\nblue\n"))
    code, said, _ = run("--interactive", "--top=2")
    assert code == 0 and re.findall('^"(.*)"', said, re.M) == ["red ball", "tall tree"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("tall tree"))  # and its end
    code, said, _ = run("red ball", "--interactive", "--top=2")
    assert code == 0 and re.findall('^"(.*)"', said, re.M) == ["red ball", "tall tree"]
    drawn = sorted(path.name for path in Path("work_dirs/search").glob("*.png"))
    assert drawn == ["hits.png", "hits_2.png"]


def test_the_tool_takes_a_config_and_a_place(
    run: Any, load_config: Callable[..., Config], tmp_path: Path
) -> None:
    load_config("kdeov_n_shapes_joint.py").dump(tmp_path / "config.py")
    store = tmp_path / "store"
    code, said, _ = run(
        "red ball",
        f"--config={tmp_path / 'config.py'}",
        f"--index={store}",
        f"--out={tmp_path / 'hits.png'}",
    )
    assert code == 0 and (store / "images.lance").is_dir() and str(store) in said
    assert not Path("work_dirs").exists()


@pytest.mark.parametrize("top", [0, -3])
def test_the_tool_is_asked_for_one_hit_at_least(
    run: Any, capsys: pytest.CaptureFixture[str], top: int
) -> None:
    with pytest.raises(SystemExit) as end:
        run("red ball", f"--top={top}")
    assert end.value.code == 2 and "--top is at least 1" in capsys.readouterr().err


def test_the_tool_without_words_says_how_to_ask(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == 2 and "say what to look for" in capsys.readouterr().err


def test_the_tool_names_what_is_missing(
    run: Any, load_config: Callable[..., Config], tmp_path: Path
) -> None:
    """A checkpoint, a checkpoint that is one, a folder, images, a word, a head."""
    code, _, complaint = run("red ball", f"--checkpoint={tmp_path / 'nothing.pth'}")
    assert code == 1 and re.search(r"nothing.pth does not exist; .*train", complaint)
    (tmp_path / "text.pth").write_text("no weights")
    code, _, complaint = run("red ball", f"--checkpoint={tmp_path / 'text.pth'}")
    assert code == 1 and "text.pth is no checkpoint" in complaint
    code, _, complaint = run("red ball", folder=tmp_path / "nowhere")
    assert code == 1 and "nowhere is no folder" in complaint
    (tmp_path / "empty").mkdir()
    code, _, complaint = run("red ball", folder=tmp_path / "empty")
    assert code == 1 and re.search("no image of .*empty", complaint)
    code, _, complaint = run("red ball", "--where=paths > 1")
    assert code == 1 and "No field named paths" in complaint
    code, _, complaint = run(" ")
    assert code == 1 and "word" in complaint
    load_config("kdeov_n_shapes.py").dump(tmp_path / "headless.py")
    code, _, complaint = run("red ball", f"--config={tmp_path / 'headless.py'}")
    assert code == 1 and "no global head" in complaint
