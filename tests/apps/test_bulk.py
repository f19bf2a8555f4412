"""Boxes of very many images: files of rows, and what the killed leave."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from PIL import Image

from kdeov_mm import KDEOV
from kdeov_mm.apps.search import ImageIndex
from kdeov_mm.inference.results import Result, to_coco
from kdeov_mm.inference.sources import ImageSource, list_sources
from kdeov_mm.vocabulary import as_vocabulary

from ..conftest import ROOT, WORDS, load_tool, run_env
from ..inference.test_api import scene, write_joint
from ..inference.test_masks import write_student

bulk = pytest.importorskip(
    "kdeov_mm.apps.bulk", reason='pip install "kdeov_mm[scale]"', exc_type=ImportError
)
rows = pytest.importorskip("kdeov_mm.apps.rows", exc_type=ImportError)
NUMBER = 40
PROMPT = {"RAY_worker_niceness": "0"}  # Ray's workers let other tests go first


class Student:
    """Finds as many boxes as an image has rows; may wait, or end its process."""

    def __init__(self, wait: float = 0, trap: Path | None = None) -> None:
        self.wait, self.trap = wait, trap
        self.seen: list[str] = []

    def names(self) -> Sequence[str]:
        return WORDS

    def stream(self, sources: Sequence[ImageSource], **_: Any) -> Iterator[Result]:
        for source in sources:
            time.sleep(self.wait)
            # the first process that comes by; each, where the trap is a folder
            if self.trap and source.name.endswith("7.png") and self.trap.exists():
                if self.trap.is_file():
                    self.trap.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            self.seen.append(source.name)
            try:
                ((_, image),) = source.images()
            except OSError as error:
                yield Result(source, error=str(error))
            else:
                yield Result(source, None, image, found(*image.shape[:2]))


def found(height: int, width: int) -> DetDataSample:
    sample = DetDataSample(metainfo=dict(ori_shape=(height, width)))
    sample.pred_instances = InstanceData(
        bboxes=torch.rand(height, 4, generator=torch.Generator().manual_seed(width)),
        scores=torch.linspace(1, 0.3, height),
        labels=torch.arange(height) % len(WORDS),
    )
    return sample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of 1 to 5 rows, and one that is none."""
    root = tmp_path / "images"
    (root / "a").mkdir(parents=True)
    for i in range(NUMBER - 1):
        pixels = np.full((1 + i % 5, 10 + i, 3), i, np.uint8)
        Image.fromarray(pixels).save(root / ("a", "")[i % 2] / f"{i}.png")
    (root / "bad.png").write_text("no image")
    return root


def rows_of(shards: Path) -> list[dict[str, Any]]:
    files = sorted(shards.glob("*.parquet"))
    return [row for file in files for row in bulk.parquet.read_table(file).to_pylist()]


def assert_all(shards: Path, folder: Path) -> None:
    """A row for each image, once, as a student finds it in this process."""
    sources = list_sources(folder)
    by_name = {row["file_name"]: row for row in rows_of(shards)}
    assert len(rows_of(shards)) == len(by_name) == len(sources)
    for result in Student().stream(sources):
        row = by_name[result.name]
        assert (row["path"], row["size"], row["mtime"]) == result.source.stamp()
        assert (row["error"] is None) == (result.error is None)
        if result.image is not None:
            assert (row["height"], row["width"]) == result.image.shape[:2]
            assert len(row["boxes"]) == row["height"]
    assert by_name["bad.png"]["boxes"] is None


# ------------------------------------------------------------------ one worker


def worker(folder: Path, make: Callable[[], Student]) -> Any:
    return bulk.Worker(folder, rows.BOXES, partial(rows.find_boxes, make, {}))


def shards_of(detector: Any, sources: Sequence[ImageSource], total: int) -> list[Any]:
    parts = bulk.parted(sources, total)
    return [detector.shard(i, total, part) for i, part in enumerate(parts)]


def test_a_second_run_searches_what_is_new_changed_or_was_unreadable(
    folder: Path, tmp_path: Path
) -> None:
    student = Student()
    detector = worker(tmp_path, lambda: student)
    ((searched, kept, (error,)),) = shards_of(detector, list_sources(folder), 1)
    assert (searched, kept) == (NUMBER, 0) and "bad.png" in error
    assert_all(tmp_path, folder)
    # nothing to do: no model, and the file stays as it is
    (folder / "bad.png").unlink()
    Image.new("RGB", (5, 5)).save(folder / "new.png")
    Image.new("RGB", (9, 3)).save(folder / "1.png")
    student.seen.clear()
    again = partial(shards_of, detector, list_sources(folder), 1)
    assert again() == [(2, NUMBER - 2, [])]
    assert {*student.seen} == {"new.png", "1.png"}
    file = bulk.shard_file(tmp_path, 0, 1)
    before = file.stat().st_mtime_ns
    detector.load, detector.find = None, None
    assert again() == [(0, NUMBER, [])] and file.stat().st_mtime_ns == before
    # a damaged file is made anew
    detector.find = rows.find_boxes(lambda: student, {})
    file.write_bytes(file.read_bytes()[:-9])
    assert again() == [(NUMBER, 0, [])]


def test_more_images_have_more_files_and_the_rows_of_fewer(
    folder: Path, tmp_path: Path
) -> None:
    student = Student()
    detector = worker(tmp_path, lambda: student)
    shards_of(detector, list_sources(folder / "a"), 2)
    student.seen.clear()
    done = shards_of(detector, list_sources(folder), 8)
    known = len([*(folder / "a").iterdir()])
    assert sum(kept for _, kept, _ in done) == known
    assert len(student.seen) == NUMBER - known
    for file in tmp_path.glob("*-of-0002.parquet"):
        file.unlink()
    # names are now below the larger folder
    assert_all(tmp_path, folder)


def test_the_files_say_in_cocos_json_what_the_results_say(
    folder: Path, tmp_path: Path
) -> None:
    sources = list_sources(folder)
    shards_of(worker(tmp_path, Student), sources, 4)
    target = tmp_path / "detections.json"
    images, boxes = rows.write_detections(tmp_path, target, WORDS)
    said = json.loads(target.read_text())
    assert (len(said["images"]), len(said["annotations"])) == (images, boxes)
    assert [b["id"] for b in said["annotations"]] == [*range(1, boxes + 1)]
    wanted = to_coco(Student().stream(sources), WORDS)
    assert plain(said) == plain(wanted) and said["categories"] == wanted["categories"]


def plain(content: dict[str, Any]) -> dict[str, list[Any]]:
    """Images' boxes by name, without ids, which are of the order."""
    images = {i.pop("id"): i for i in content["images"]}
    boxes: dict[int, list[Any]] = {i: [] for i in images}
    for box in content["annotations"]:
        del box["id"]
        boxes[box.pop("image_id")].append(box)
    return {i["file_name"]: [i, boxes[key]] for key, i in images.items()}


def test_rows_of_masks_say_what_the_interface_says(
    load_config: Callable[..., Config], folder: Path, tmp_path: Path
) -> None:
    student = KDEOV.from_checkpoint(write_student(tmp_path, load_config))
    student.batch_size = 16
    words, options = as_vocabulary(WORDS), dict(threshold=0.1, size=64)
    load = partial(rows.find_masks, lambda: student, words, options)
    masks = bulk.Worker(tmp_path / "out", rows.MASKS, load)
    (tmp_path / "out").mkdir()
    ((searched, _, (error,)),) = shards_of(masks, list_sources(folder), 1)
    assert searched == NUMBER and "bad.png" in error
    for row in rows_of(tmp_path / "out"):
        if row["error"] is not None:
            assert row["mask"] is row["areas"] is None
            continue
        (wanted,) = student.segment(row["path"], words, **options)
        mask = cv2.imdecode(np.frombuffer(row["mask"], np.uint8), cv2.IMREAD_UNCHANGED)
        assert (mask.astype(int) - 1 == wanted["labels"].numpy()).all()
        assert mask.shape == (row["height"], row["width"])
        areas = {area["name"]: area["area"] for area in row["areas"]}
        assert {*areas} == {*wanted["names"]} and sum(areas.values()) == (
            mask > 0
        ).sum()


def test_which_file_has_an_image_is_said_by_its_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is named from: workers elsewhere have another working folder."""

    def places(given: Any) -> dict[Path, int]:
        parts = bulk.parted(list_sources(given), 4)
        return {s.path: i for i, part in enumerate(parts) for s in part}

    monkeypatch.chdir(folder)
    wanted = places(folder)
    assert all(path.is_absolute() for path in wanted)
    assert places(".") == wanted and {*wanted.values()} == {*range(4)}
    assert places("a").items() < wanted.items()


def test_videos_are_refused(tmp_path: Path) -> None:
    film = ImageSource("film.mp4", tmp_path / "film.mp4")
    with pytest.raises(ValueError, match=r"image files alone, not film\.mp4"):
        bulk.find_all([film], tmp_path / "out", rows.BOXES, Student, workers=1)


def test_without_new_images_no_worker_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(bulk, "_cluster")
    assert not [*bulk.embed_all(KDEOV, [], workers=1)]


def test_members_of_a_shard_have_rows_by_their_addresses(
    folder: Path, tmp_path: Path
) -> None:
    """What was found is kept, until the shard changes."""
    file = tmp_path / "0.tar"

    def pack() -> list[ImageSource]:
        with tarfile.open(file, "w") as shard:
            shard.add(folder, "")
        return list_sources(file)

    made = worker(tmp_path / "out", Student)
    made.folder.mkdir()
    shards_of(made, pack(), 2)
    by_path = {row["path"]: row for row in rows_of(made.folder)}
    assert len(by_path) == NUMBER
    assert by_path[f"tar://a/0.png::{file}"]["file_name"] == "a/0.png"
    assert "no format" in by_path[f"tar://bad.png::{file}"]["error"]
    # the unreadable one is tried again
    done = shards_of(made, list_sources(file), 2)
    assert [sum(n) for n in zip(*((a, b) for a, b, _ in done))] == [1, NUMBER - 1]
    done = shards_of(made, pack(), 2)
    assert sum(kept for _, kept, _ in done) == 0


# ---------------------------------------------------------------- many workers

DRIVER = """
import sys
from functools import partial
from pathlib import Path
from kdeov_mm.inference.sources import list_sources
from tests.apps.test_bulk import Student, bulk, rows

bulk.SHARD, bulk.DEATHS = 5, 2
folder, out, wait, trap, address = sys.argv[1:]
make = partial(Student, float(wait), Path(trap))
load = partial(rows.find_boxes, make, {})
sources = list_sources(folder)
where = dict(workers=2, address=address or None)
print(bulk.find_all(sources, Path(out), rows.BOXES, load, **where))
"""


def drive(folder: Path, out: Path, wait: float = 0, address: str = "") -> Any:
    command = [sys.executable, "-c", DRIVER, folder, out, wait, out / "trap", address]
    return subprocess.Popen(
        [*map(str, command)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=run_env(**PROMPT),
    )


def wait_for_files(out: Path, number: int, driver: Any) -> dict[Path, int]:
    while len(files := [*out.glob("*.parquet")]) < number:
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.05)
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.mark.slow
def test_a_killed_driver_is_gone_on_with(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    driver = drive(folder, out, wait=0.2)
    done = wait_for_files(out, 2, driver)
    driver.kill()
    driver.wait()
    assert len([*out.glob("*.parquet")]) < 8
    second = drive(folder, out)
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 0, said
    # files with an unreadable image are made anew
    same = [f for f, when in done.items() if f.stat().st_mtime_ns == when]
    assert len(same) >= len(done) - 1 and len([*out.iterdir()]) == 8
    assert_all(out, folder)


@pytest.mark.slow
@pytest.mark.parametrize("always", [False, True])
def test_a_killed_worker_has_a_successor(
    folder: Path, tmp_path: Path, always: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    trap = out / "trap"
    trap.mkdir() if always else trap.touch()
    driver = drive(folder, out)
    said, _ = driver.communicate(timeout=300)
    if always:  # a file of images that ends each worker is named
        assert driver.returncode == 1 and "2 workers died on file" in said
        return
    assert driver.returncode == 0 and not trap.exists(), said
    assert "bad.png" in said
    assert_all(out, folder)


@pytest.mark.slow
def test_a_node_may_be_lost(folder: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    head = dict(num_cpus=1, include_dashboard=False, object_store_memory=bulk.STORE)
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        node = cluster.add_node(num_cpus=1, object_store_memory=bulk.STORE)
        out = tmp_path / "out"
        driver = drive(folder, out, wait=0.2, address=cluster.address)
        wait_for_files(out, 2, driver)
        cluster.remove_node(node, allow_graceful=False)
        said, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0, said
        assert_all(out, folder)
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_workers_find_what_one_process_finds(
    load_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Workers read the list and the images, and load the model."""
    for key, value in PROMPT.items():
        monkeypatch.setenv(key, value)
    checkpoint = write_joint(tmp_path, load_config)
    for i in range(6):
        Image.fromarray(scene(40 + i, 60, seed=i)).save(tmp_path / f"{i}.png")
    with tarfile.open(tmp_path / "more.tar", "w") as shard:
        shard.add(tmp_path / "0.png", "7.png")
    names = "".join(f"{i}.png\n" for i in (*range(6), 9)) + "more.tar\n"
    (tmp_path / "list.csv").write_text(f"path\n{names}")
    tool, contents = load_tool("detect"), []
    for name, more in (("one", []), ("two", ["--workers", "2"])):
        given = [checkpoint, tmp_path / "list.csv", "--words", ", ".join(WORDS)]
        given += ["--threshold", 0.8, "--no-drawings", "--out", tmp_path / name, *more]
        assert tool.main([*map(str, given)]) == 1
        assert "9.png does not exist" in capsys.readouterr().err
        contents.append(json.loads((tmp_path / name / "detections.json").read_text()))
    assert len(contents[0]["annotations"]) > 5
    assert plain(contents[0]) == plain(contents[1])
    # the folder of the one is not of the other
    given[-2:] = []
    assert tool.main([*map(str, given)]) == 2
    assert "(shards)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("deaths", [1, 3])
def test_workers_embed_what_one_process_embeds(
    deaths: int,
    load_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that dies while it embeds has a successor; not for ever."""
    for key, value in PROMPT.items():
        monkeypatch.setenv(key, value)
    checkpoint, folder = write_joint(tmp_path, load_config), tmp_path / "images"
    folder.mkdir()
    for i in range(100):
        Image.fromarray(scene(40 + i % 9, 60, seed=i)).save(folder / f"{i}.png")
    (folder / "bad.png").write_text("no image")

    def make() -> KDEOV:
        model: Any = KDEOV.from_checkpoint(checkpoint)
        real = model.encode_image

        def encode(images: Any) -> Any:
            done = len([*tmp_path.glob("death*")])
            if done < deaths:
                (tmp_path / f"death{done}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return real(images)

        model.encode_image = encode
        return model

    model = KDEOV.from_checkpoint(checkpoint)
    index = ImageIndex(model, folder, tmp_path / "workers")
    embed = partial(bulk.embed_all, make, workers=1)
    if deaths == 3:
        with pytest.raises(ChildProcessError, match="died 3 times"):
            index.update(embed=embed)
        return
    done = index.update(embed=embed)
    assert done == dict(added=101, removed=0, unreadable=1, images=100)
    assert len([*tmp_path.glob("death*")]) == 1
    alone = ImageIndex(model, folder, tmp_path / "alone")
    alone.update()
    ours, wanted = (
        {row["path"]: row for row in each.table.search().to_list()}
        for each in (index, alone)
    )
    assert ours.keys() == wanted.keys()
    for path, row in wanted.items():
        assert ours[path]["error"] == row["error"]
        if row["vector"] is not None:
            np.testing.assert_allclose(ours[path]["vector"], row["vector"], atol=2e-3)


@pytest.mark.slow
def test_workers_colour_what_one_process_colours(
    load_config: Callable[..., Config],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for key, value in PROMPT.items():
        monkeypatch.setenv(key, value)
    tool, words = load_tool("segment"), ", ".join(WORDS)
    checkpoint = write_student(tmp_path, load_config)
    given = [str(checkpoint), str(folder), "--words", words, "--out"]
    assert tool.main([*given, str(tmp_path / "one")]) == 1
    more = [str(tmp_path / "two"), "--workers", "2"]
    assert tool.main([*given, *more]) == 1
    assert "bad.png" in capsys.readouterr().err
    for row in rows_of(tmp_path / "two/shards"):
        file = tmp_path / "one/masks" / f"{row['file_name']}.png"
        assert row["mask"] == (file.read_bytes() if file.exists() else None)
    # the folder of some words is not of others
    given[3] = WORDS[0]
    assert tool.main([*given, *more]) == 2
    assert "other settings (words)" in capsys.readouterr().err
