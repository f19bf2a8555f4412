"""Splits of COCO and LVIS: what is kept, what is refused, what it costs."""

import json
import mmap
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from kdeov_mm.datasets import OVLVISDataset
from kdeov_mm.datasets.annotations import category_ids
from kdeov_mm.datasets.coco import COCO_GROUPS
from kdeov_mm.evaluation import RULES, GroundTruth, Predictions
from kdeov_mm.evaluation.average_precision import precision_table

from ..conftest import ROOT, load_tool, run_env
from ..standins import COCO_CLASSES, COCO_IDS

splits = load_tool("prepare_splits")
Record = dict[str, Any]
FLOATS = (0.1 + 0.2, 702.1057499999998, 1e-7, 1e22, 5e-324, 640.0, 239.97)


def coco_file(seed: int = 0) -> Record:
    """Thirty images in the format of COCO's instances; six have no box."""
    rng = random.Random(seed)
    images = [
        dict(
            license=3,
            file_name=f"{i:012d}.jpg",
            coco_url=f"http://images.cocodataset.org/train2017/{i:012d}.jpg",
            height=427,
            width=640,
            date_captured="2013-11-14 17:02:52",
            flickr_url='http://farm9.staticflickr.com/é/猫 "\\\n.jpg',
            id=i,
        )
        for i in rng.sample(range(1, 600_000), 30)
    ]
    # The first twelve images have one group each, so that some of them go.
    groups = [*COCO_GROUPS.values()]
    choice = {i["id"]: groups[k // 4] for k, i in enumerate(images[:12])}
    boxes = [coco_box(rng, images[rng.randrange(24)]["id"], choice) for _ in range(300)]
    return dict(
        info=dict(description="made up", version="1.0"),
        licenses=[dict(id=3, name="none", url="")],
        images=images,
        annotations=[dict(b, id=900_100_000_000 + k) for k, b in enumerate(boxes)],
        categories=[
            dict(supercategory="thing", id=i, name=name)
            for i, name in zip(COCO_IDS, COCO_CLASSES)
        ],
    )


def coco_box(
    rng: random.Random, image: int, choice: dict[int, Iterable[str]]
) -> Record:
    name = rng.choice(list(choice.get(image, COCO_CLASSES)))
    crowd = int(rng.random() < 0.1)
    polygons = [[rng.uniform(0, 640) for _ in range(8)], list(FLOATS) + [3, 0, -1]]
    rle = dict(counts=[272, 2, 4, 4], size=[427, 640])
    return dict(
        segmentation=rle if crowd else polygons,
        area=rng.choice(FLOATS),
        iscrowd=crowd,
        image_id=image,
        bbox=[round(rng.uniform(0, 400), 2) for _ in range(3)] + [17],
        category_id=COCO_IDS[COCO_CLASSES.index(name)],
    )


def lvis_file(seed: int = 0) -> Record:
    """Forty images in the format of LVIS v1, the categories in no order at all."""
    rng = random.Random(seed)
    frequencies = list("f" * 405 + "c" * 461 + "r" * 337)
    rng.shuffle(frequencies)
    names = OVLVISDataset.METAINFO["classes"]
    categories = [
        dict(
            frequency=frequency,
            id=i,
            synset=f"{name}.n.01",
            image_count=7,
            instance_count=9,
            synonyms=[name],
            name=name,
        )
        | {"def": "made up"}
        for i, (name, frequency) in enumerate(zip(names, frequencies), start=1)
    ]
    images = [
        dict(
            id=i,
            height=480,
            width=640,
            license=1,
            coco_url=f"http://images.cocodataset.org/val2017/{i:012d}.jpg",
            neg_category_ids=rng.sample(range(1, 1204), 9),
            not_exhaustive_category_ids=rng.sample(range(1, 1204), 3),
        )
        for i in rng.sample(range(1, 600_000), 40)
    ]
    boxes = [
        dict(
            area=rng.choice(FLOATS),
            id=k,
            segmentation=[[rng.uniform(0, 640) for _ in range(10)]],
            image_id=images[rng.randrange(36)]["id"],
            bbox=[rng.uniform(0, 400) for _ in range(4)],
            category_id=rng.randrange(1, 1204),
        )
        for k in range(1, 301)
    ]
    return dict(
        info=dict(description="made up"),
        licenses=[],
        images=images,
        annotations=boxes,
        categories=categories,
    )


MADE_UP = {"coco": coco_file, "lvis": lvis_file}


def put(folder: Path, dataset: str, **contents: Record) -> list[Path]:
    """Both stock files of a data set, made up or as given by `train` and `val`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(s.source for s in splits.SPLITS[dataset])
    for seed, (name, part) in enumerate(zip(names, ("train", "val"))):
        content = contents.get(part) or MADE_UP[dataset](seed)
        (folder / name).write_text(json.dumps(content))
    return [folder / name for name in names]


def make(dataset: str, folder: Path, ids: Path | None = None) -> tuple[list[str], str]:
    """What was written, and the report."""
    lines: list[str] = []
    return splits.make_splits(dataset, folder, ids, lines.append), "\n".join(lines)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def group_of(category: Record) -> str:
    """The group of a category, found again in another way."""
    if "frequency" in category:
        return category["frequency"]
    found = [g for g in ("base", "novel") if category["name"] in COCO_GROUPS[g]]
    return found[0] if found else "other"


def expected(
    source: Record, groups: str, images: Callable[[int, set[int]], bool]
) -> Record:
    """A split by the slow way: everything in memory, in plain loops."""
    kept = [c for c in source["categories"] if group_of(c) in groups.split()]
    ids = [c["id"] for c in kept]
    boxes = [a for a in source["annotations"] if a["category_id"] in ids]
    boxed = {a["image_id"] for a in boxes}
    chosen = [dict(i) for i in source["images"] if images(i["id"], boxed)]
    for image in chosen:
        for key in set(image) & {"neg_category_ids", "not_exhaustive_category_ids"}:
            image[key] = [i for i in image[key] if i in ids]
    names = [i["id"] for i in chosen]
    return dict(
        categories=kept,
        annotations=[a for a in boxes if a["image_id"] in names],
        images=chosen,
    )


def boxed_only(image: int, boxed: set[int]) -> bool:
    return image in boxed


def any_image(image: int, boxed: set[int]) -> bool:
    return True


def same(path: Path, wanted: Record) -> None:
    """Equal to the last digit: 1 is not 1.0 here."""
    found = json.loads(path.read_text())
    assert found.pop("info")["description"].startswith(path.name)
    assert sorted(found) == sorted(wanted)
    for key, records in wanted.items():
        assert len(found[key]) == len(records) > 0
        assert json.dumps(found[key]) == json.dumps(records)


# ---------------------------------------------------------------------- what is kept


def test_the_lists_of_48_and_17() -> None:
    base, novel, other = COCO_GROUPS.values()
    assert [*COCO_GROUPS] == ["base", "novel", "other"]
    assert (len(base), len(novel), len({*base, *novel})) == (48, 17, 65)
    for names in (base, novel, other):
        assert list(names) == [name for name in COCO_CLASSES if name in names]
    assert set(COCO_CLASSES) == {*base, *novel, *other}


@pytest.mark.parametrize(
    ("name", "part", "groups", "images"),
    [
        ("ov_coco_train_base.json", 0, "base", boxed_only),
        ("ov_coco_val_65.json", 1, "base novel", boxed_only),
        ("ov_coco_val_80.json", 1, "base novel other", any_image),
    ],
)
def test_coco(
    name: str, part: int, groups: str, images: Callable[..., bool], tmp_path: Path
) -> None:
    sources = put(tmp_path, "coco")
    assert name in make("coco", tmp_path)[0]
    source = json.loads(sources[part].read_text())
    same(tmp_path / name, expected(source, groups, images))
    kept = json.loads((tmp_path / name).read_text())
    assert {a["iscrowd"] for a in kept["annotations"]} == {0, 1}
    ids = category_ids(kept["categories"], COCO_GROUPS["base"])
    assert ids == [COCO_IDS[COCO_CLASSES.index(n)] for n in COCO_GROUPS["base"]]
    fewer = len(kept["images"]) < len(source["images"])
    assert fewer == (images is boxed_only)


@pytest.mark.parametrize(
    ("name", "part", "groups"),
    [("lvis_v1_train_base.json", 0, "f c"), ("lvis_v1_val_rare.json", 1, "r")],
)
def test_lvis(name: str, part: int, groups: str, tmp_path: Path) -> None:
    sources = put(tmp_path, "lvis")
    written, report = make("lvis", tmp_path)
    assert name in written and "lvis_v1_minival.json" not in written
    assert "lvis_v1_minival.json: not made, the list" in report
    source = json.loads(sources[part].read_text())
    same(tmp_path / name, expected(source, groups, any_image))
    assert len(json.loads((tmp_path / name).read_text())["images"]) == 40


@pytest.mark.parametrize("form", ["lines", "list", "annotation file"])
def test_minival(form: str, tmp_path: Path) -> None:
    source = lvis_file(1)
    ids = [i["id"] for i in source["images"][::2]] + [10**7]
    file = tmp_path / "ids"
    file.write_text(
        {
            "lines": "\n".join(map(str, ids)) + "\n\n",
            "list": json.dumps(ids, indent=1),
            "annotation file": "\n"
            + json.dumps(dict(images=[dict(id=i) for i in ids])),
        }[form]
    )
    put(tmp_path / "a", "lvis", val=source)
    report = make("lvis", tmp_path / "a", file)[1]
    assert "1 of 21 listed ids absent (4.8%)" in report
    wanted = expected(source, "f c r", lambda image, boxed: image in ids)
    same(tmp_path / "a/lvis_v1_minival.json", wanted)
    assert make("lvis", tmp_path / "a", file)[0] == []
    file.write_text(json.dumps(ids[:9]))
    assert make("lvis", tmp_path / "a", file)[0] == ["lvis_v1_minival.json"]


@pytest.mark.parametrize(
    ("absent", "ok"), [(0, True), (4, True), (5, False), (40, False)]
)
def test_ids_that_are_absent(absent: int, ok: bool, tmp_path: Path) -> None:
    source, file = lvis_file(1), tmp_path / "ids"
    ids = [i["id"] for i in source["images"][absent:]] + list(
        range(10**7, 10**7 + absent)
    )
    file.write_text(json.dumps(ids))
    put(tmp_path / "a", "lvis", val=source)
    if ok:
        assert (
            f"{absent} of 40 listed ids absent" in make("lvis", tmp_path / "a", file)[1]
        )
        return
    with pytest.raises(ValueError, match=f"{absent} of the 40 listed .* more than 10%"):
        make("lvis", tmp_path / "a", file)
    assert not (tmp_path / "a/lvis_v1_minival.json").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "found 'none'"),
        ("12\nthirteen\n", "found 'thirteen'"),
        ("[1, 2.5]", "found '2.5'"),
        ('{"annotations": []}', "found 'none'"),
        ('{"images": [{"id": 1}', "ends early"),
    ],
)
def test_lists_of_ids_that_are_none(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text(text)
    with pytest.raises(ValueError, match=f"{tmp_path}/ids.*{reason}"):
        splits.read_ids(tmp_path / "ids")


def test_the_order_of_the_lists_in_a_source_does_not_matter(tmp_path: Path) -> None:
    source, outputs = coco_file(), set()
    for k, order in enumerate(permutations(("images", "annotations", "categories"))):
        folder = tmp_path / str(k)
        permuted = {key: source[key] for key in (*order, "info", "licenses")}
        put(folder, "coco", train=permuted, val=permuted)
        make("coco", folder)
        found = contents(folder)
        outputs.add(b"".join(found[s.name] for s in splits.SPLITS["coco"]))
    assert len(outputs) == 1


# ------------------------------------------------------------------- what is refused


def refused(folder: Path, dataset: str, reason: str) -> None:
    """Nothing but an error, which names the file and the reason."""
    before = contents(folder)
    (name,) = (n for n in before if not n.startswith("."))
    with pytest.raises(ValueError, match=reason) as error:
        make(dataset, folder)
    assert str(folder / name) in str(error.value)
    assert contents(folder) == before


@pytest.mark.parametrize("place", range(20))
def test_a_truncated_file(place: int, tmp_path: Path) -> None:
    path, other = put(tmp_path, "coco")
    other.unlink()
    data = path.read_bytes()
    size = place * (len(data) - 1) // 19
    path.write_bytes(data[:size])
    refused(tmp_path, "coco", f"ends early, after {size:,} bytes")


def without(key: str) -> Callable[[Record], object]:
    return lambda source: source.pop(key)


def change(key: str, **fields: Any) -> Callable[[Record], object]:
    """Change the second of a list's records."""
    return lambda source: source[key][1].update(fields)


WRONG: list[tuple[str, Callable[[Record], object], str]] = [
    *(
        ("coco", without(k), f"it has no '{k}'")
        for k in ("categories", "images", "annotations")
    ),
    ("coco", lambda s: s.update(images=[]), "it has no 'images'"),
    ("coco", lambda s: s.update(images={"id": 1}), "it has no 'images'"),
    ("coco", lambda s: s.update(images=[7]), "one of its 'images' has no .* 'id'"),
    ("coco", change("images", id="1"), "one of its 'images' has no whole number 'id'"),
    ("coco", lambda s: s["annotations"][3].pop("category_id"), "no .* 'category_id'"),
    ("coco", change("annotations", image_id=5.0), "has no whole number 'image_id'"),
    ("coco", change("annotations", image_id=-5), "unknown image_id -5"),
    ("coco", change("annotations", category_id=12), "unknown category_id 12"),
    ("coco", change("annotations", bbox=["1", 2, 3, 4]), "has no box.*'1' is no num"),
    ("coco", change("annotations", bbox=[1, 2, 3]), "has no box.*3 numbers in place"),
    ("coco", change("images", file_name=3), "has no text as its 'file_name'"),
    ("coco", change("images", width="a"), "width that is no number of pixels: 'a'"),
    ("coco", change("images", height=-1), "height that is no number of pixels: -1"),
    ("coco", lambda s: s["images"].append(s["images"][0]), "twice among its 'images'"),
    (
        "coco",
        change("annotations", id=900_100_000_000),
        "twice among its 'annotations'",
    ),
    ("coco", change("categories", id=1), "id 1 is twice among its 'categories'"),
    ("coco", change("categories", name="person"), r"names are there twice: \['person'"),
    ("coco", change("categories", name="bike"), r"'unknown': 1.*\['bike'\]"),
    ("coco", lambda s: s["categories"].pop(), "not COCO's .* but {'base': 47"),
    (
        "coco",
        lambda s: s.update(lvis_file()),
        "categories are not COCO's .*aerosol_can",
    ),
    ("lvis", lambda s: s.update(coco_file()), "not LVIS's .*{'unknown': 80}; .*none"),
    (
        "lvis",
        change("categories", frequency="x"),
        "not LVIS's .*'r': 337}, but .*'x': 1",
    ),
    ("lvis", change("annotations", category_id=1204), "unknown category_id 1204"),
    ("lvis", lambda s: s["categories"].pop(), "not LVIS's .*'r': 337}, but"),
]


@pytest.mark.parametrize(("dataset", "spoil", "reason"), WRONG)
def test_a_wrong_file(
    dataset: str, spoil: Callable[[Record], object], reason: str, tmp_path: Path
) -> None:
    source = MADE_UP[dataset]()
    spoil(source)
    path, other = put(tmp_path, dataset, train=source)
    other.unlink()
    refused(tmp_path, dataset, reason)


def test_the_validation_file_under_the_name_of_the_training_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would become the base training set, and be tested on."""
    monkeypatch.setitem(splits.STOCK, "instances_val2017.json", (30, 300))
    _, other = put(tmp_path, "coco")
    other.unlink()
    refused(tmp_path, "coco", "it has the 30 images of instances_val2017.json")


def test_a_captions_file(tmp_path: Path) -> None:
    source = coco_file()
    captions = [dict(image_id=1, id=1, caption="a cat")]
    for categories in ({}, dict(categories=source["categories"])):
        folder = tmp_path / str(len(categories))
        content = dict(images=source["images"], annotations=captions, **categories)
        put(folder, "coco", train=content)[1].unlink()
        reason = "no .* 'category_id'.*'caption'" if categories else "no 'categories'"
        refused(folder, "coco", reason)


@pytest.mark.parametrize("text", ["PK\3\4 zipped", "<html>", '{"a": [1,]}', "[1] [2]"])
def test_a_file_that_is_not_json(text: str, tmp_path: Path) -> None:
    path, other = put(tmp_path, "coco")
    other.unlink()
    path.write_text(text)
    refused(tmp_path, "coco", "is not JSON: .*(error|rror)")


def test_brackets_in_brackets_are_refused_before_they_take_memory(
    tmp_path: Path,
) -> None:
    path, other = put(tmp_path, "coco")
    other.unlink()
    path.write_text('{"images": ' + "[" * 10**6)
    refused(tmp_path, "coco", "more than 1,000 brackets are open")


def test_no_source_at_all(tmp_path: Path) -> None:
    for dataset, page in (("coco", "cocodataset.org"), ("lvis", "lvisdataset.org")):
        with pytest.raises(FileNotFoundError, match=f"holds none of .*zip.*{page}"):
            make(dataset, tmp_path)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "coco")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match="has 0 MB free, the splits may need"):
            make("coco", tmp_path)
    assert len(contents(tmp_path)) == 2
    make("coco", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert make("coco", tmp_path)[0] == []  # nothing to write, no space needed


# ---------------------------------------------------------------- whole, or not there


@pytest.mark.parametrize("record", [1, 50, 200])
def test_an_interrupted_run_leaves_nothing(
    record: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = put(tmp_path, "coco")
    other.unlink()
    before = contents(tmp_path)
    records, left = splits.read_records, [record]

    def interrupted(path: Path, key: str, **known: Any) -> Iterable[Record]:
        for item in records(path, key, **known):
            left[0] -= key == "annotations"
            if not left[0]:
                raise KeyboardInterrupt
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(splits, "read_records", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make("coco", tmp_path)
    assert contents(tmp_path) == before
    make("coco", tmp_path)
    good = contents(tmp_path)
    path.write_text(json.dumps(coco_file(5)))
    left[0] = record
    monkeypatch.setattr(splits, "read_records", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make("coco", tmp_path)
    assert contents(tmp_path) == {**good, path.name: path.read_bytes()}


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    put(tmp_path, "coco")
    assert len(make("coco", tmp_path)[0]) == 3
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    written, report = make("coco", tmp_path)
    assert written == [] and report.count("already there, whole") == 3
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        put(tmp_path / folder, "lvis")
        make("lvis", tmp_path / folder)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes() + b" "), "edited or damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "edited or damaged"),
        (lambda path: path.unlink(), "to be made"),
    ],
)
def test_a_damaged_output_is_made_again(
    spoil: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    put(tmp_path, "coco")
    make("coco", tmp_path)
    good = contents(tmp_path)
    spoil(tmp_path / "ov_coco_val_65.json")
    written, report = make("coco", tmp_path)
    assert written == ["ov_coco_val_65.json"]
    assert re.search(f"ov_coco_val_65.json: .*{reason}", report)
    assert contents(tmp_path) == good


def test_another_source_gives_another_output(tmp_path: Path) -> None:
    put(tmp_path, "coco")
    make("coco", tmp_path)
    put(tmp_path, "coco", train=coco_file(7))
    written, report = make("coco", tmp_path)
    assert written == ["ov_coco_train_base.json"]
    assert "to be made again, its source has changed" in report


@pytest.mark.parametrize("name", ["ov_coco_val_80.json", "splits.json"])
def test_what_others_wrote_stays(name: str, tmp_path: Path) -> None:
    put(tmp_path, "coco")
    (tmp_path / name).write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(
        (OSError, ValueError), match=f"{tmp_path / name} is .*[Mm]ove it"
    ):
        make("coco", tmp_path)
    assert contents(tmp_path) == before


# -------------------------------------------------------------------- what is written


def test_the_manifest(tmp_path: Path) -> None:
    sources = put(tmp_path, "coco")
    make("coco", tmp_path)
    put(tmp_path, "lvis")
    make("lvis", tmp_path)  # both data sets can share a folder
    manifest = json.loads((tmp_path / "splits.json").read_text())["splits"]
    assert len(manifest) == 5
    for name, entry in manifest.items():
        for path, note in ((tmp_path / name, entry), (None, entry["source"])):
            path = path or tmp_path / note["file"]
            done = subprocess.run(["sha256sum", path], capture_output=True, check=True)
            assert note["sha256"] == done.stdout.split()[0].decode()
            assert note["bytes"] == path.stat().st_size
        content = json.loads((tmp_path / name).read_text())
        group = {c["id"]: group_of(c) for c in content["categories"]}
        boxes = Counter(group[a["category_id"]] for a in content["annotations"])
        assert entry["boxes"] == boxes
        assert entry["images"] == len(content["images"])
        assert entry["categories"] == len(content["categories"])
        assert entry["format"] == splits.FORMAT
    entry = manifest["ov_coco_val_65.json"]
    assert entry["source"]["file"] == sources[1].name
    assert (entry["source_images"], entry["source_boxes"]) == (30, 300)


def test_the_report_compares_with_the_stock_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = coco_file()
    train["images"].pop()  # one without boxes
    put(tmp_path, "coco", train=train)
    monkeypatch.setitem(splits.STOCK, "instances_val2017.json", (30, 300))
    for _ in range(2):
        report = make("coco", tmp_path)[1].splitlines()
        lines = {line.split(":")[0]: line for line in report}
        assert lines["ov_coco_val_80.json"].endswith(
            "instances_val2017.json: 30 images and 300 boxes, as the stock file"
        )
        assert lines["ov_coco_train_base.json"].endswith(
            "the stock file has 118,287 images and 860,001 boxes, "
            "this one has 29 images and 300 boxes"
        )


def tool(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tools/prepare_splits.py", *args],
        capture_output=True,
        text=True,
        env=run_env(),
    )


def test_the_tool(tmp_path: Path) -> None:
    done = tool("coco", "--root", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "cocodataset.org" in done.stderr and done.stderr.count("\n") == 1
    train, val = put(tmp_path / "annotations", "lvis")
    train.unlink()
    done = tool("lvis", "--root", tmp_path, "--minival-ids", val)
    assert (done.returncode, done.stderr) == (0, "")
    assert "lvis_v1_train_base.json: not made, lvis_v1_train.json is not" in done.stdout
    assert "0 of 40 listed ids absent" in done.stdout
    assert (tmp_path / "annotations/lvis_v1_minival.json").is_file()
    val.write_text("[")
    done = tool("lvis", "--root", tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{val} ends early, after 1 bytes" in done.stderr


# -------------------------------------------------------------------- what it costs

FULL_IMAGES, FULL_BOXES = 118_287, 1_200_000
# In a process of its own: Linux counts the parent's memory at the fork as the child's.
PEAK = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(child.pid, 0)
print("peak", usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def write_full_size(path: Path) -> None:
    """A file of the size of train2017, by strings; box k is of class k % 80."""
    rng = random.Random(0)
    polygons = [
        ", ".join(f"{rng.uniform(0, 640):.2f}" for _ in range(24)) for _ in range(997)
    ]
    address = "http://images.cocodataset.org/train2017"
    with path.open("w") as file:
        categories = [dict(id=i, name=n) for i, n in zip(COCO_IDS, COCO_CLASSES)]
        file.write('{"info": {}, "licenses": [], "images": [')
        file.write(
            ", ".join(
                f'{{"license": 3, "file_name": "{i:012d}.jpg", "coco_url": "{address}/'
                f'{i:012d}.jpg", "height": 427, "width": 640, "date_captured": '
                f'"2013-11-14 17:02:52", "flickr_url": "http://farm9.staticflickr.com'
                f'/8186/{i:010d}_4e622c8349_z.jpg", "id": {i}}}'
                for i in range(FULL_IMAGES)
            )
        )
        file.write('], "annotations": [')
        for start in range(0, FULL_BOXES, 10_000):
            file.write(", " if start else "")
            file.write(
                ", ".join(
                    f'{{"segmentation": [[{polygons[k % 997]}]], "area": {k}.0625, '
                    f'"iscrowd": 0, "image_id": {k % FULL_IMAGES}, "bbox": [{k % 510}.'
                    f'29, {k % 325}.58, 127.45, 98.2], "category_id": '
                    f'{COCO_IDS[k % 80]}, "id": {900_000 + k}}}'
                    for k in range(start, start + 10_000)
                )
            )
        file.write(f'], "categories": {json.dumps(categories)}}}')


@pytest.mark.slow
def test_the_size_of_train2017_in_little_memory(tmp_path: Path) -> None:
    """About a minute. The bound asked for is 4 times the file, this one is 0.6."""
    path = tmp_path / "annotations/instances_train2017.json"
    path.parent.mkdir()
    write_full_size(path)
    size = path.stat().st_size
    command = ["tools/prepare_splits.py", "coco", "--root", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=run_env(),
    )
    assert done.returncode == 0, done.stderr
    peak = 1024 * int(done.stdout.split("peak ")[1])
    print(f"file {size / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
    assert size > 400e6 and peak < 0.6 * size
    output = path.with_name("ov_coco_train_base.json")
    entry = json.loads(path.with_name("splits.json").read_text())["splits"][output.name]
    assert (entry["source_images"], entry["source_boxes"]) == (FULL_IMAGES, FULL_BOXES)
    assert entry["boxes"] == {"base": FULL_BOXES * 48 // 80}
    with (
        output.open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as m,
    ):
        assert m[:1] + m[-3:] == b"{}]}"
        ids = sum(1 for _ in re.finditer(rb'"bbox":', m))
    assert ids == entry["boxes"]["base"]
    shutil.rmtree(path.parent)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco", "lvis"])
def test_a_file_of_full_size_is_loaded_and_evaluated(name: str, tmp_path: Path) -> None:
    """118,287 images and 1.2 million boxes: the truth as predictions scores one."""
    path = tmp_path / "full.json"
    write_full_size(path)
    content = json.loads(path.read_text())
    path.unlink()
    if name == "lvis":
        as_lvis(content)
        (tmp_path / "lvis.json").write_text(json.dumps(content))
        dataset: Any = OVLVISDataset(
            ann_file=str(tmp_path / "lvis.json"), pipeline=[], data_prefix=dict(img="")
        )
        assert len(dataset) == FULL_IMAGES
        info = dataset.get_data_info(5)
        assert len(info["words"]) == 1203 and info["instances"]
        del dataset
    truth = GroundTruth(content)
    boxes = Predictions.from_coco([dict(a, score=0.5) for a in content["annotations"]])
    del content
    table = precision_table(truth, boxes, RULES[name])
    assert table[table > -1].mean() == pytest.approx(1)


def as_lvis(content: Record) -> None:
    """The same file with LVIS's fields and classes; box k is of class k % 1203."""
    content["categories"] = lvis_file()["categories"]
    for k, box in enumerate(content["annotations"]):
        box["category_id"] = 1 + k % 1203
        del box["iscrowd"]
    for image in content["images"]:
        del image["file_name"]
        image.update(neg_category_ids=[1, 2, 3], not_exhaustive_category_ids=[4])
