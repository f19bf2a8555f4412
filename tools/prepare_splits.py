"""Make the open-vocabulary splits of COCO and LVIS; see docs/data.md.

COCO's 48 base and 17 novel classes are those of OVR-CNN (Zareian et al., CVPR 2021);
LVIS's base classes are its 866 frequent and common ones, its novel classes the 337
rare ones, as in ViLD (Gu et al., ICLR 2022).

A stock file is streamed, once for each of its lists: images are held as compact JSON,
annotations never. kdeov_mm is not imported, because torch needs more memory than that.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import ijson  # takes the fastest of its backends by itself
from tqdm import tqdm

CLASS_LISTS = Path(__file__).parents[1] / "kdeov_mm/datasets/coco_groups.json"
COCO_GROUPS = {
    name: group
    for group, names in json.loads(CLASS_LISTS.read_text()).items()
    for name in names
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
COCO_TRAIN, COCO_VAL, LVIS_TRAIN, LVIS_VAL = STOCK
DOWNLOADS = {
    "coco": "annotations_trainval2017.zip from https://cocodataset.org/#download",
    "lvis": "lvis_v1_train.json.zip and lvis_v1_val.json.zip from "
    "https://www.lvisdataset.org/dataset",
}
MANIFEST, FORMAT = "splits.json", 1
MAX_ABSENT = 0.1  # of the ids listed for minival; 191 of 5,000 are in stock files
Entry = dict[str, Any]  # an output's entry in the manifest


class Split(NamedTuple):
    """One output: its file name, its source's, and the groups it keeps, of COUNTS."""

    name: str
    source: str
    groups: tuple[str, ...]
    images: str = "all"  # or "boxed" (with a box that is kept), "listed" by the user


class Source(NamedTuple):
    """What is held of a stock file: by category id, and images as compact JSON."""

    path: Path
    categories: dict[int, dict[str, Any]]
    groups: dict[int, str]
    images: dict[int, bytes]


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


def make_splits(
    dataset: str, folder: Path, minival_ids: Path | None, say: Callable[[str], object]
) -> list[str]:
    """Write the splits whose stock files are in `folder`, and a manifest beside them.

    What is there, whole and of the same source, is left alone. Returns the names of the
    files that were written; `say` gets each line of the report.
    """
    listed = read_ids(minival_ids) if minival_ids else set()
    manifest = read_manifest(folder)
    todo: dict[Split, Entry] = {}
    sources = dict.fromkeys(split.source for split in SPLITS[dataset])
    there = {n: fingerprint(folder / n) for n in sources if (folder / n).is_file()}
    if not there:
        files = f"{', '.join(sources)}: download and unpack {DOWNLOADS[dataset]}."
        raise FileNotFoundError(f"{folder} holds none of {files}")
    for split in SPLITS[dataset]:
        ids = sorted(listed) if split.images == "listed" else None
        if split.source not in there:
            say(f"{split.name}: not made, {split.source} is not in {folder}")
        elif ids == []:
            say(f"{split.name}: not made, the list of its image ids was not given")
        else:
            digest = ids and hashlib.sha256(dumps(ids)).hexdigest()
            source = dict(there[split.source], file=split.source)
            recipe = dict(format=FORMAT, source=source, ids_sha256=digest)
            entry = manifest.get(split.name, {})
            if state := why_make(folder / split.name, recipe, entry):
                todo[split] = recipe
            say(f"{split.name}: {state or 'already there, whole; ' + describe(entry)}")
    free = shutil.disk_usage(folder).free
    if free < (need := sum(recipe["source"]["bytes"] for recipe in todo.values())):
        raise OSError(
            f"{folder} has {free / 1e6:,.0f} MB free, the splits may need "
            f"{need / 1e6:,.0f} MB: make room, and run again."
        )
    for name in dict.fromkeys(split.source for split in todo):
        stock = read_source(folder / name, dataset)
        for split in (split for split in todo if split.source == name):
            entry = make(split, todo[split], stock, listed)
            say(f"{split.name}: written; {describe(entry)}")
    return [split.name for split in todo]


def read_ids(path: Path) -> set[int]:
    """Image ids: one per line, a JSON list, or the images of an annotation file."""
    with path.open("rb") as file:
        prefix = {b"{": "images.item.id", b"[": "item"}.get(file.read(64).lstrip()[:1])
    with reading(path, "ids") as stream:
        if prefix:
            ids = list(ijson.items(stream, prefix))
        else:
            words = stream.read().decode(errors="replace").split()
            ids = [int(word) if word.isdecimal() else word for word in words]
    wrong = [i for i in ids if type(i) is not int]
    if wrong or not ids:
        raise ValueError(
            f"{path}: expected image ids, one per line, or a JSON list of them, or an "
            f"annotation file with images; found {str((wrong or ['none'])[0])[:40]!r}."
        )
    return set(ids)


def why_make(path: Path, recipe: Entry, entry: Entry) -> str:
    """Why an output is to be made; empty when it is there as it should be."""
    if not path.exists():
        return "to be made"
    if not entry:
        raise FileExistsError(
            f"{path} is in the way: {MANIFEST} beside it does not list it, so it was "
            "not made here. Move it away, or delete it."
        )
    if any(entry.get(key) != value for key, value in recipe.items()):
        return "to be made again, its source has changed (or the ids, or this tool)"
    if any(entry.get(key) != value for key, value in fingerprint(path).items()):
        return "to be made again, it was edited or damaged: its checksum differs"
    return ""


def read_source(path: Path, dataset: str) -> Source:
    """Check the categories and images of a stock file, and hold them."""
    categories = {record["id"]: record for record in read_records(path, "categories")}
    names = Counter(str(record.get("name")) for record in categories.values())
    if twice := [name for name, number in names.items() if number > 1]:
        raise refusal(path, f"category names are there twice: {twice[:5]}")
    groups = {
        i: COCO_GROUPS.get(str(record.get("name")), "unknown")
        if dataset == "coco"
        else str(record.get("frequency", "unknown"))
        for i, record in categories.items()
    }
    if (counts := dict(Counter(groups.values()))) != COUNTS[dataset]:
        unknown = [name for name in names if name not in COCO_GROUPS][:3] or "none"
        reason = f"its categories are not {dataset.upper()}'s {COUNTS[dataset]}, but "
        raise refusal(path, f"{reason}{counts}; not among COCO's 80 are {unknown}")
    images = {record["id"]: dumps(record) for record in read_records(path, "images")}
    # A validation file under a training file's name would be trained and tested on.
    if len(images) != STOCK[path.name][0]:
        for name, (number, _) in STOCK.items():
            if number == len(images):
                raise refusal(path, f"it has the {number:,} images of {name}")
    return Source(path, categories, groups, images)


def make(split: Split, recipe: Entry, source: Source, listed: set[int]) -> Entry:
    """Write a split, whole or not at all, and list it; its entry in the manifest."""
    chosen = listed if split.images == "listed" else set()
    absent = len(chosen - source.images.keys())
    if absent > MAX_ABSENT * len(chosen):
        raise ValueError(
            f"{absent:,} of the {len(chosen):,} listed image ids are not in "
            f"{source.path}, more than {MAX_ABSENT:.0%}: the list is not LVIS "
            "minival's, whose images are those of COCO's val2017."
        )
    path = source.path.with_name(split.name)
    with moved_into(path) as partial:
        with partial.open("wb") as file:
            counts = write(file, split, source, chosen)
        entry = {**recipe, **fingerprint(partial), **counts, "ids_absent": absent}
        # Listed before it is there, so that no file of ours seems someone else's.
        splits = {**read_manifest(path.parent), split.name: entry}
        with moved_into(path.with_name(MANIFEST)) as manifest:
            text = json.dumps(dict(splits=splits), indent=2, sort_keys=True)
            manifest.write_text(text + "\n")
    return entry


def write(file: IO[bytes], split: Split, source: Source, chosen: set[int]) -> Entry:
    """Write a split, of the images `chosen` or of all; its numbers."""
    groups = {i: g for i, g in source.groups.items() if g in split.groups}
    boxes = Counter(dict.fromkeys(split.groups, 0))
    boxed: set[int] = set()
    total = 0

    def annotations() -> Iterator[bytes]:
        nonlocal total
        for record in read_annotations(source):
            total += 1
            image, group = record["image_id"], groups.get(record["category_id"])
            if group and (not chosen or image in chosen):
                boxes[group] += 1
                boxed.add(image)
                yield dumps(record)

    info = dict(description=f"{split.name}, made from {split.source}")
    head = dict(info=info, categories=[source.categories[i] for i in groups])
    file.write(dumps(head)[:-1])  # its closing brace comes at the end
    write_list(file, "annotations", annotations())
    # Images come last, because only now is it known which have a box.
    kept = dict(all=source.images.keys(), boxed=boxed, listed=chosen)[split.images]
    records = (record for i, record in source.images.items() if i in kept)
    images = write_list(file, "images", (only_ids_of(groups, r) for r in records))
    file.write(b"}")
    counts = dict(images=images, boxes=dict(boxes), categories=len(groups))
    return dict(counts, source_images=len(source.images), source_boxes=total)


def write_list(file: IO[bytes], key: str, records: Iterable[bytes]) -> int:
    """Write a top-level list, one record at a time; their number."""
    number = 0
    file.write(f',"{key}":['.encode())
    for number, record in enumerate(records, start=1):
        file.write(b"," + record if number > 1 else record)
    file.write(b"]")
    return number


def only_ids_of(groups: dict[int, str], image: bytes) -> bytes:
    """An image whose lists of category ids (LVIS has them) name kept ones only."""
    record = json.loads(image)
    for key in {*record} & {"neg_category_ids", "not_exhaustive_category_ids"}:
        record[key] = [i for i in record[key] if i in groups]
    return dumps(record)


def describe(entry: Entry) -> str:
    """A manifest entry in words."""
    boxes = ", ".join(f"{number:,} {group}" for group, number in entry["boxes"].items())
    text = f"{entry['images']:,} images, boxes: {boxes}; "
    if entry["ids_sha256"]:
        absent, listed = entry["ids_absent"], entry["ids_absent"] + entry["images"]
        text += f"{absent:,} of {listed:,} listed ids absent ({absent / listed:.1%}); "
    name = entry["source"]["file"]
    here = "{source_images:,} images and {source_boxes:,} boxes".format(**entry)
    stock = "{:,} images and {:,} boxes".format(*STOCK[name])
    other = f"the stock file has {stock}, this one has {here}"
    return f"{text}{name}: {f'{here}, as the stock file' if here == stock else other}"


def read_manifest(folder: Path) -> dict[str, Entry]:
    """Output name to entry, from the manifest in `folder`; empty if none is there."""
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


def read_annotations(source: Source) -> Iterator[dict[str, Any]]:
    """The annotations of a stock file, each with a known image and category."""
    known: dict[str, Container[int]]
    known = dict(image_id=source.images, category_id=source.groups)
    for record in read_records(source.path, "annotations", ("id", *known)):
        for key, ids in known.items():
            if record[key] not in ids:
                reason = f"annotation {record['id']} has unknown {key} {record[key]}"
                raise refusal(source.path, reason)
        yield record


def read_records(
    path: Path, key: str, ids: Sequence[str] = ("id",)
) -> Iterator[dict[str, Any]]:
    """Stream the records of a top-level list; each has its ids, and its own once."""
    seen: set[int] = set()
    with reading(path, key) as stream:
        for record in ijson.items(stream, f"{key}.item", use_float=True):
            fields = record if isinstance(record, dict) else {}
            if lacking := [n for n in ids if type(fields.get(n)) is not int]:
                reason = f"one of its {key!r} has no whole number {lacking[0]!r}"
                raise refusal(path, f"{reason}, only {list(fields)}")
            if record["id"] in seen:
                raise refusal(path, f"id {record['id']} is twice among its {key!r}")
            seen.add(record["id"])
            yield record
    if not seen:
        raise refusal(path, f"it has no {key!r}, or an empty list, as a captions file")


def refusal(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path}: {reason}. Expected the instances file as it was published; see "
        "docs/data.md for which, and where from."
    )


class Stream:
    """A file that shows how far it was read, and knows when it was read to its end."""

    def __init__(self, file: IO[bytes], bar: tqdm) -> None:
        self.file, self.bar, self.ended = file, bar, False

    def read(self, size: int = -1) -> bytes:
        """Some bytes."""
        data = self.file.read(size)
        self.bar.update(len(data))
        self.ended = not data
        return data


@contextmanager
def reading(path: Path, what: str) -> Iterator[Stream]:
    """The file with a progress bar (on a terminal); JSON errors get its name."""
    size = path.stat().st_size
    style: dict[str, Any] = dict(unit="B", unit_scale=True, disable=None, leave=False)
    bar = tqdm(total=size, desc=f"{path.name}, {what}", **style)
    with path.open("rb") as file, bar:
        stream = Stream(file, bar)
        try:
            yield stream
        except ijson.JSONError as error:
            reason = f"is not JSON: {str(error).splitlines()[0]}"
            if stream.ended:
                reason = f"ends early, after {size:,} bytes: download it again"
            raise ValueError(f"{path} {reason}.") from error


@contextmanager
def moved_into(path: Path) -> Iterator[Path]:
    """A path to write at: moved to `path` at the end, deleted on an error."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def fingerprint(path: Path) -> Entry:
    digest = hashlib.sha256()
    with reading(path, "checksum") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return dict(sha256=digest.hexdigest(), bytes=path.stat().st_size)


ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def dumps(value: Any) -> bytes:
    return ENCODER.encode(value).encode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=SPLITS)
    parser.add_argument(
        "--root", type=Path, help="its annotations/ has the stock files (data/DATASET)"
    )
    parser.add_argument(
        "--minival-ids",
        type=Path,
        metavar="FILE",
        help="image ids of LVIS minival: one per line, a JSON list, or an annotation "
        "file of these images, as COCO's instances_val2017.json",
    )
    args = parser.parse_args()
    if args.minival_ids and args.dataset != "lvis":
        parser.error("--minival-ids is for lvis")
    folder = (args.root or Path("data") / args.dataset) / "annotations"
    try:
        make_splits(args.dataset, folder, args.minival_ids, tqdm.write)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was not written whole is not there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
