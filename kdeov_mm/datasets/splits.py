"""Open-vocabulary splits, made from the stock annotation files of COCO and LVIS.

COCO's 48 base and 17 novel classes are those of OVR-CNN (Zareian et al., CVPR 2021);
LVIS's base classes are its 866 frequent and common ones, its novel classes the 337
rare ones, as in ViLD (Gu et al., ICLR 2022). See ``docs/data.md``.

A stock file is streamed, once for each of its lists: images are held as compact JSON,
annotations never. ``tools/prepare_splits.py`` loads this module by its path, so it
imports neither torch nor mmdet.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ijson  # takes the fastest of its backends by itself
from tqdm import tqdm

COCO_BASE, COCO_NOVEL, COCO_OTHER = (
    tuple(names.split(","))
    for names in (
        "person,bicycle,car,motorcycle,train,truck,boat,bench,bird,horse,sheep,bear,"
        "zebra,giraffe,backpack,handbag,suitcase,frisbee,skis,kite,surfboard,bottle,"
        "fork,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,pizza,donut,"
        "chair,bed,toilet,tv,laptop,mouse,remote,microwave,oven,toaster,refrigerator,"
        "book,clock,vase,toothbrush",
        "airplane,bus,cat,dog,cow,elephant,umbrella,tie,snowboard,skateboard,cup,"
        "knife,cake,couch,keyboard,sink,scissors",
        "traffic light,fire hydrant,stop sign,parking meter,sports ball,baseball bat,"
        "baseball glove,tennis racket,wine glass,hot dog,potted plant,dining table,"
        "cell phone,teddy bear,hair drier",
    )
)
COCO_GROUPS = {
    **dict.fromkeys(COCO_BASE, "base"),
    **dict.fromkeys(COCO_NOVEL, "novel"),
    **dict.fromkeys(COCO_OTHER, "other"),
}
COUNTS = {  # categories by group; LVIS's are frequent, common, rare
    "coco": dict(base=48, novel=17, other=15),
    "lvis": dict(f=405, c=461, r=337),
}
STOCK = {  # images, boxes
    "instances_train2017.json": (118_287, 860_001),
    "instances_val2017.json": (5_000, 36_781),
    "lvis_v1_train.json": (100_170, 1_270_141),
    "lvis_v1_val.json": (19_809, 244_707),
}
DOWNLOADS = {
    "coco": "annotations_trainval2017.zip from https://cocodataset.org/#download",
    "lvis": "lvis_v1_train.json.zip and lvis_v1_val.json.zip from "
    "https://www.lvisdataset.org/dataset",
}
IDS = {
    "categories": ("id",),
    "images": ("id",),
    "annotations": ("id", "image_id", "category_id"),
}
MANIFEST, FORMAT = "splits.json", 1
MOST_ABSENT = 0.1  # of the ids listed for minival; 191 of 5,000 are so in stock files


@dataclass(frozen=True)
class Split:
    """One output: its file name, its source's, and what it keeps.

    Args:
        groups: of categories, see ``COUNTS``.
        images: ``'all'``, the ``'boxed'`` ones (with a box that is kept), or those
            ``'listed'`` by the user.
    """

    name: str
    source: str
    groups: tuple[str, ...]
    images: str = "all"


COCO_TRAIN, COCO_VAL, LVIS_TRAIN, LVIS_VAL = STOCK
SPLITS = {
    "coco": (
        Split("ov_coco_train_base.json", COCO_TRAIN, ("base",), "boxed"),
        Split("ov_coco_val_65.json", COCO_VAL, ("base", "novel"), "boxed"),
        Split("ov_coco_val_80.json", COCO_VAL, ("base", "novel", "other")),
    ),
    "lvis": (
        Split("lvis_v1_train_base.json", LVIS_TRAIN, ("f", "c")),
        Split("lvis_v1_val_rare.json", LVIS_VAL, ("r",)),
        Split("lvis_v1_minival.json", LVIS_VAL, ("f", "c", "r"), "listed"),
    ),
}


@dataclass(frozen=True)
class Source:
    """What is held of a stock file.

    Args:
        categories: category id to record.
        groups: category id to group, see ``COUNTS``.
        images: image id to record, as compact JSON.
    """

    path: Path
    categories: dict[int, dict[str, Any]]
    groups: dict[int, str]
    images: dict[int, bytes]


def make_splits(
    dataset: str,
    folder: str | Path,
    minival_ids: str | Path | None = None,
    say: Callable[[str], object] = print,
) -> list[str]:
    """Make the splits whose stock files are in ``folder``.

    They are written next to the stock files, with ``splits.json``, the manifest of
    checksums. Those that are there, whole and of the same source are left alone.

    Args:
        dataset: ``'coco'`` or ``'lvis'``.
        folder: folder of the annotation files.
        minival_ids: file with the ids of LVIS minival, see :func:`read_ids`.
        say: called with each line of the report.

    Returns:
        Names of the files that were written now.

    Raises:
        ValueError: a file is not what it should be.
        OSError: no stock file is there, something that was not made here is in the
            way, or the disk is full.
    """
    folder = Path(folder)
    listed = None if minival_ids is None else read_ids(minival_ids)
    manifest = _read_manifest(folder)
    todo: dict[Split, dict[str, Any]] = {}
    for split, recipe in _recipes(dataset, folder, listed, say).items():
        entry = manifest.get(split.name, {})
        state = _why_make(folder / split.name, recipe, entry)
        if state:
            todo[split] = recipe
        say(f"{split.name}: {state or 'already there, whole; ' + _told(entry)}")
    _check_space(folder, sum(recipe["source"]["bytes"] for recipe in todo.values()))
    for name in dict.fromkeys(split.source for split in todo):
        source = read_source(folder / name, dataset)
        for split in (split for split in todo if split.source == name):
            entry = _make(split, todo[split], source, listed)
            say(f"{split.name}: written; {_told(entry)}")
    return [split.name for split in todo]


def read_ids(path: str | Path) -> set[int]:
    """Image ids: one per line, a JSON list, or the images of an annotation file."""
    path = Path(path)
    with path.open("rb") as file:
        prefix = {b"{": "images.item.id", b"[": "item"}.get(file.read(64).lstrip()[:1])
    with _reading(path, "ids") as stream:
        if prefix:
            found = list(ijson.items(stream, prefix))
        else:
            words = stream.read().decode(errors="replace").split()
            found = [int(word) if word.isdecimal() else word for word in words]
    wrong = [i for i in found if type(i) is not int]
    if wrong or not found:
        raise ValueError(
            f"{path}: expected image ids, one per line, or a JSON list of them, or an "
            f"annotation file with images; found {str((wrong or ['none'])[0])[:40]!r}."
        )
    return set(found)


def read_source(path: Path, dataset: str) -> Source:
    """Check the categories and images of a stock file, and hold them.

    Raises:
        ValueError: the file is damaged, or not a stock file of ``dataset``.
    """
    categories = {record["id"]: record for record in _records(path, "categories")}
    names = Counter(str(record.get("name")) for record in categories.values())
    twice = [name for name, number in names.items() if number > 1]
    if twice:
        raise _refusal(path, f"category names are there twice: {twice[:5]}")
    groups = {
        i: COCO_GROUPS.get(str(record.get("name")), "unknown")
        if dataset == "coco"
        else str(record.get("frequency", "unknown"))
        for i, record in categories.items()
    }
    found = dict(Counter(groups.values()))
    if found != COUNTS[dataset]:
        unknown = [name for name in names if name not in COCO_GROUPS]
        raise _refusal(
            path,
            f"its categories are not {dataset.upper()}'s {COUNTS[dataset]}, but "
            f"{found}; not among COCO's 80 are {unknown[:3] or 'none'}",
        )
    images = {record["id"]: _dumps(record) for record in _records(path, "images")}
    numbers = {number: name for name, (number, _) in reversed(STOCK.items())}
    name = numbers.get(len(images), path.name)
    if name != path.name and len(images) != STOCK[path.name][0]:
        raise _refusal(path, f"it has the {len(images):,} images of {name}")
    return Source(path, categories, groups, images)


def _recipes(
    dataset: str, folder: Path, listed: set[int] | None, say: Callable[[str], object]
) -> dict[Split, dict[str, Any]]:
    """The splits that can be made, and from what; says which cannot."""
    names = dict.fromkeys(split.source for split in SPLITS[dataset])
    there = {n: _fingerprint(folder / n) for n in names if (folder / n).is_file()}
    if not there:
        raise FileNotFoundError(
            f"{folder} holds none of {', '.join(names)}: download and unpack "
            f"{DOWNLOADS[dataset]}."
        )
    recipes = {}
    for split in SPLITS[dataset]:
        ids = (listed or set()) if split.images == "listed" else None
        if split.source not in there:
            say(f"{split.name}: not made, {split.source} is not in {folder}")
        elif ids == set():
            say(f"{split.name}: not made, the list of its image ids was not given")
        else:
            source = dict(there[split.source], file=split.source)
            digest = ids and hashlib.sha256(_dumps(sorted(ids))).hexdigest()
            recipes[split] = dict(format=FORMAT, source=source, ids_sha256=digest)
    return recipes


def _why_make(path: Path, recipe: dict[str, Any], entry: dict[str, Any]) -> str:
    """Why the output is to be made; empty when it is there as it should be."""
    if not path.exists():
        return "to be made"
    if not entry:
        raise FileExistsError(
            f"{path} is in the way: {MANIFEST} beside it does not list it, so it was "
            "not made here. Move it away, or delete it."
        )
    if any(entry.get(key) != value for key, value in recipe.items()):
        return "to be made again, its source has changed (or the ids, or this tool)"
    if any(entry.get(key) != value for key, value in _fingerprint(path).items()):
        return "to be made again, it was edited or damaged: its checksum differs"
    return ""


def _make(
    split: Split, recipe: dict[str, Any], source: Source, listed: set[int] | None
) -> dict[str, Any]:
    """Write a split, whole or not at all, and list it; its entry in the manifest."""
    path = source.path.with_name(split.name)
    chosen = listed if split.images == "listed" else None
    absent = _count_absent(chosen, source)
    with _moved_into(path) as partial:
        with partial.open("wb") as file:
            counts = _write(file, split, source, chosen)
        entry = {**recipe, **_fingerprint(partial), **counts, "ids_absent": absent}
        # Listed before it is there, so that no file of ours seems someone else's.
        splits = {**_read_manifest(path.parent), split.name: entry}
        with _moved_into(path.with_name(MANIFEST)) as manifest:
            text = json.dumps(dict(splits=splits), indent=2, sort_keys=True)
            manifest.write_text(text + "\n")
    return entry


def _write(
    file: IO[bytes], split: Split, source: Source, chosen: set[int] | None
) -> dict[str, Any]:
    """Write a split, of the images ``chosen`` or of all; its numbers."""
    groups = {i: g for i, g in source.groups.items() if g in split.groups}
    boxes = Counter(dict.fromkeys(split.groups, 0))
    boxed: set[int] = set()
    total = 0

    def annotations() -> Iterator[bytes]:
        nonlocal total
        for record in _annotations(source):
            total += 1
            image, group = record["image_id"], groups.get(record["category_id"])
            if group and (chosen is None or image in chosen):
                boxes[group] += 1
                boxed.add(image)
                yield _dumps(record)

    info = dict(description=f"{split.name}, made from {split.source}")
    head = dict(info=info, categories=[source.categories[i] for i in groups])
    file.write(_dumps(head)[:-1])  # its closing brace comes at the end
    _write_list(file, "annotations", annotations())
    kept = boxed if split.images == "boxed" else chosen  # so images come last
    records = (r for i, r in source.images.items() if kept is None or i in kept)
    images = (_only_ids_of(groups, record) for record in records)
    number = _write_list(file, "images", images)
    file.write(b"}")
    return dict(
        images=number,
        boxes=dict(boxes),
        categories=len(groups),
        source_images=len(source.images),
        source_boxes=total,
    )


def _write_list(file: IO[bytes], key: str, records: Iterable[bytes]) -> int:
    """Write a top-level list, one record at a time; their number."""
    number = 0
    file.write(f',"{key}":['.encode())
    for number, record in enumerate(records, start=1):
        file.write(b"," + record if number > 1 else record)
    file.write(b"]")
    return number


def _only_ids_of(categories: Container[int], image: bytes) -> bytes:
    """An image whose lists of category ids (LVIS has them) name ``categories`` only."""
    if b'category_ids"' not in image:
        return image
    record = json.loads(image)
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        if key in record:
            record[key] = [i for i in record[key] if i in categories]
    return _dumps(record)


def _count_absent(listed: set[int] | None, source: Source) -> int:
    absent = len((listed or set()) - source.images.keys())
    if listed and absent > MOST_ABSENT * len(listed):
        raise ValueError(
            f"{absent:,} of the {len(listed):,} listed image ids are not in "
            f"{source.path}, more than {MOST_ABSENT:.0%}: the list is not LVIS "
            "minival's, whose images are those of COCO's val2017."
        )
    return absent


def _check_space(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need:
        raise OSError(
            f"{folder} has {free / 1e6:,.0f} MB free, the splits may need "
            f"{need / 1e6:,.0f} MB: make room, and run again."
        )


def _told(entry: dict[str, Any]) -> str:
    """A manifest entry in words."""
    boxes = ", ".join(f"{number:,} {group}" for group, number in entry["boxes"].items())
    words = [f"{entry['images']:,} images, boxes: {boxes}"]
    if entry["ids_sha256"]:
        absent = entry["ids_absent"]
        listed = absent + entry["images"]
        words += [f"{absent:,} of {listed:,} listed ids absent ({absent / listed:.1%})"]
    name, found = (
        entry["source"]["file"],
        (entry["source_images"], entry["source_boxes"]),
    )
    here, stock = (
        "{:,} images and {:,} boxes".format(*n) for n in (found, STOCK[name])
    )
    same = f"{here}, as the stock file"
    other = f"the stock file has {stock}, this one has {here}"
    return "; ".join([*words, f"{name}: {same if here == stock else other}"])


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Output name to entry, from the manifest in ``folder``; empty if none is there."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        splits = json.loads(path.read_bytes())["splits"]
        return {name: dict(entry) for name, entry in splits.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is no manifest of splits, or was damaged ({error!r}): move it and "
            "the splits beside it away, and run again."
        ) from error


def _annotations(source: Source) -> Iterator[dict[str, Any]]:
    """The annotations of a stock file, each with a known image and category."""
    for record in _records(source.path, "annotations"):
        for key, known in (("image_id", source.images), ("category_id", source.groups)):
            if record[key] not in known:
                reason = f"annotation {record['id']} has unknown {key} {record[key]}"
                raise _refusal(source.path, reason)
        yield record


def _records(path: Path, key: str) -> Iterator[dict[str, Any]]:
    """Stream the records of a top-level list; each has its ids, and its own once."""
    seen: set[int] = set()
    with _reading(path, key) as stream:
        for record in ijson.items(stream, f"{key}.item", use_float=True):
            fields = record if isinstance(record, dict) else {}
            lacking = [n for n in IDS[key] if type(fields.get(n)) is not int]
            if lacking:
                reason = f"one of its {key!r} has no whole number {lacking[0]!r}"
                raise _refusal(path, f"{reason}, only {list(fields)}")
            if record["id"] in seen:
                raise _refusal(path, f"id {record['id']} is twice among its {key!r}")
            seen.add(record["id"])
            yield record
    if not seen:
        raise _refusal(path, f"it has no {key!r}, or an empty list, as a captions file")


def _refusal(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path}: {reason}. Expected the instances file as it was published; see "
        "docs/data.md for which, and where from."
    )


@contextmanager
def _reading(path: Path, what: str) -> Iterator["_Stream"]:
    """The file with a progress bar (on a terminal); JSON errors get its name."""
    size = path.stat().st_size
    style: dict[str, Any] = dict(unit="B", unit_scale=True, disable=None, leave=False)
    bar = tqdm(total=size, desc=f"{path.name}, {what}", **style)
    with path.open("rb") as file, bar:
        stream = _Stream(file, bar)
        try:
            yield stream
        except ijson.JSONError as error:
            reason = f"is not JSON: {str(error).splitlines()[0]}"
            if stream.ended:
                reason = f"ends early, after {size:,} bytes: download it again"
            raise ValueError(f"{path} {reason}.") from error


class _Stream:
    """A file that shows how far it was read, and knows when it was read out."""

    def __init__(self, file: IO[bytes], bar: tqdm) -> None:
        self.file, self.bar, self.ended = file, bar, False

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.bar.update(len(data))
        self.ended = not data
        return data


@contextmanager
def _moved_into(path: Path) -> Iterator[Path]:
    """A path to write at: moved to ``path`` at the end, deleted on an error."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with _reading(path, "checksum") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return dict(sha256=digest.hexdigest(), bytes=path.stat().st_size)


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _dumps(value: Any) -> bytes:
    return _ENCODER.encode(value).encode()
