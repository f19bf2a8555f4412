"""Make the open-vocabulary splits of COCO and LVIS; see docs/data.md.

A stock file is streamed, once for each of its lists and then for each split; ids alone
are held. kdeov_mm is not imported, because torch needs more memory than that.
"""

import argparse
import hashlib
import importlib.util
import json
import shutil
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import ijson  # takes the fastest of its backends by itself
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
COCO_LISTS = json.loads((ROOT / "kdeov_mm/datasets/coco_groups.json").read_text())
COCO_GROUPS = {name: group for group, names in COCO_LISTS.items() for name in names}
TABLE = json.loads(Path(__file__).with_suffix(".json").read_text())  # see Split
MAX_DEPTH = 1000  # of brackets in a file; those of annotations are five deep
COUNTS = {dataset: table["categories"] for dataset, table in TABLE.items()}
STOCK = {n: tuple(v) for table in TABLE.values() for n, v in table["stock"].items()}
MANIFEST, FORMAT = "splits.json", 1
LISTS_OF_CATEGORIES = {"neg_category_ids", "not_exhaustive_category_ids"}
MAX_ABSENT = 0.1  # of the ids listed for minival; 191 of 5,000 are in stock files
dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
Record = dict[str, Any]  # a category, an image, an output's entry in the manifest


def annotations_module() -> Any:
    """The data sets' check of boxes, read from its file: it needs no torch."""
    path = ROOT / "kdeov_mm/datasets/annotations.py"
    spec = importlib.util.spec_from_file_location("annotations", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


annotations = annotations_module()


class Split(NamedTuple):
    """One output: its file name, its source's, and the groups it keeps, of COUNTS."""

    name: str
    source: str
    groups: list[str]
    images: str  # "all", "boxed" (with a box that is kept), "listed" by the user


SPLITS = {d: [Split(*row) for row in t["splits"]] for d, t in TABLE.items()}


def make_splits(
    dataset: str, folder: Path, minival_ids: Path | None, say: Callable[[str], object]
) -> list[str]:
    """Write the splits in `folder` that are not there; their names."""
    listed = read_ids(minival_ids) if minival_ids else set()
    manifest = read_manifest(folder)
    names = dict.fromkeys(split.source for split in SPLITS[dataset])
    there = [name for name in names if (folder / name).is_file()]
    sources = {n: dict(fingerprint(folder / n), file=n) for n in there}
    if not sources:
        files = f"{', '.join(names)}: unpack the zips of {TABLE[dataset]['page']}"
        raise FileNotFoundError(f"{folder} holds none of {files}")
    todo: list[tuple[Split, Record]] = []
    for split in SPLITS[dataset]:
        ids = sorted(listed) if split.images == "listed" else None
        if split.source not in sources:
            say(f"{split.name}: not made, {split.source} is not in {folder}")
        elif ids == []:
            say(f"{split.name}: not made, the list of its image ids was not given")
        else:
            digest = ids and hashlib.sha256(dumps(ids).encode()).hexdigest()
            recipe = dict(
                format=FORMAT, source=sources[split.source], ids_sha256=digest
            )
            state = state_of(folder / split.name, recipe, manifest.get(split.name, {}))
            say(f"{split.name}: {state}")
            if state.startswith("to be made"):
                todo.append((split, recipe))
    need = sum(recipe["source"]["bytes"] for _, recipe in todo)
    if (free := shutil.disk_usage(folder).free) < need:
        text = f"{free / 1e6:,.0f} MB free, the splits may need {need / 1e6:,.0f} MB"
        raise OSError(f"{folder} has {text}: make room.")
    for name, outputs in groupby(todo, lambda output: output[0].source):
        stock = Source(folder / name, dataset)
        for split, recipe in outputs:
            entry = make(split, recipe, stock, listed)
            say(f"{split.name}: written; {describe(entry)}")
    return [split.name for split, _ in todo]


def read_ids(path: Path) -> set[int]:
    """Image ids: one per line, a JSON list, or the images of an annotation file."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()[:1]
    if prefix := {b"{": "images.item.id", b"[": "item"}.get(start):
        ids = list(items(path, prefix))
    else:
        words = path.read_text(errors="replace").split()
        ids = [int(word) if word.isdecimal() else word for word in words]
    if wrong := [i for i in ids or ["none"] if type(i) is not int]:
        forms = "one per line, a JSON list, or an annotation file with images"
        raise ValueError(
            f"{path}: expected image ids, {forms}; found {str(wrong[0])[:40]!r}."
        )
    return set(ids)


class Source:
    """A stock file whose categories and images are checked; their ids."""

    def __init__(self, path: Path, dataset: str) -> None:
        self.path = path
        self.categories = {c["id"]: c for c in read_records(path, "categories")}
        names = {i: str(c.get("name")) for i, c in self.categories.items()}
        if twice := [n for n, number in Counter(names.values()).items() if number > 1]:
            raise refusal(path, f"category names are there twice: {twice[:5]}")
        self.groups = {i: COCO_GROUPS.get(name, "unknown") for i, name in names.items()}
        if dataset == "lvis":
            kinds = ((i, c.get("frequency")) for i, c in self.categories.items())
            self.groups = {i: str(kind or "unknown") for i, kind in kinds}
        if (counts := dict(Counter(self.groups.values()))) != COUNTS[dataset]:
            others = [n for n in names.values() if n not in COCO_GROUPS][:3] or "none"
            wrong = f"not {dataset.upper()}'s {COUNTS[dataset]}, but {counts}"
            raise refusal(path, f"its categories are {wrong}; not COCO's are {others}")
        self.images = {image["id"] for image in read_records(path, "images")}
        # a validation file under a training file's name would be trained and tested on
        for name, (number, _) in STOCK.items():
            if number == len(self.images) != STOCK[path.name][0]:
                raise refusal(path, f"it has the {number:,} images of {name}")


def make(split: Split, recipe: Record, source: Source, listed: set[int]) -> Record:
    """Write a split, whole or not at all, and list it; its entry in the manifest."""
    chosen = listed if split.images == "listed" else source.images
    absent = len(chosen - source.images)
    if absent > MAX_ABSENT * len(chosen):
        few = (
            f"{absent:,} of the {len(chosen):,} listed ids, more than {MAX_ABSENT:.0%}"
        )
        raise ValueError(f"{few}, are not in {source.path}: not LVIS minival's.")
    path = source.path.with_name(split.name)
    with moved_into(path) as partial:
        counts = write(partial, split, source, chosen)
        entry = {**recipe, **fingerprint(partial), **counts, "ids_absent": absent}
        # listed before it is there, so that no file of ours seems someone else's
        splits = dict(splits={**read_manifest(path.parent), split.name: entry})
        with moved_into(path.with_name(MANIFEST)) as manifest:
            manifest.write_text(json.dumps(splits, indent=2, sort_keys=True) + "\n")
    return entry


def write(path: Path, split: Split, source: Source, chosen: set[int]) -> Record:
    """Write a split of the images `chosen`; its numbers."""
    groups = {i: g for i, g in source.groups.items() if g in split.groups}
    info = dict(description=f"{split.name}, made from {split.source}")
    head = dict(info=info, categories=[source.categories[i] for i in groups])
    known = dict(image_id=source.images, category_id=source.groups)
    boxes = Counter(dict.fromkeys(split.groups, 0))
    boxed: set[int] = set()
    total = images = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(dumps(head)[:-1] + ',"annotations":[')
        for record in read_records(source.path, "annotations", **known):
            total += 1
            group = groups.get(record["category_id"])
            if group and record["image_id"] in chosen:
                file.write("," * bool(boxed) + dumps(record))
                boxes[group] += 1
                boxed.add(record["image_id"])
        # images come last, because only now is it known which have a box
        kept = boxed if split.images == "boxed" else chosen
        file.write('],"images":[')
        for record in read_records(source.path, "images"):
            if record["id"] in kept:
                for key in record.keys() & LISTS_OF_CATEGORIES:
                    record[key] = [i for i in record[key] if i in groups]
                file.write("," * bool(images) + dumps(record))
                images += 1
        file.write("]}")
    numbers = dict(images=images, boxes=dict(boxes), categories=len(groups))
    return dict(numbers, source_images=len(source.images), source_boxes=total)


def state_of(path: Path, recipe: Record, entry: Record) -> str:
    """Whether an output is to be made, and why; or what is there, in words."""
    if not path.exists():
        return "to be made"
    if not entry:
        raise FileExistsError(f"{path} is not listed in {MANIFEST}. Move it away.")
    if {**entry, **recipe} != entry:
        return "to be made again, its source has changed (or the ids, or this tool)"
    if {**entry, **fingerprint(path)} != entry:
        return "to be made again, it was edited or damaged"
    return f"already there, whole; {describe(entry)}"


def describe(entry: Record) -> str:
    boxes = ", ".join(f"{n:,} {group}" for group, n in entry["boxes"].items())
    text = f"{entry['images']:,} images, boxes: {boxes}; "
    if entry["ids_sha256"]:
        absent, listed = entry["ids_absent"], entry["ids_absent"] + entry["images"]
        text += f"{absent:,} of {listed:,} listed ids absent ({absent / listed:.1%}); "
    text += f"{entry['source']['file']}: "
    here = "{source_images:,} images and {source_boxes:,} boxes".format(**entry)
    stock = "{:,} images and {:,} boxes".format(*STOCK[entry["source"]["file"]])
    other = f"the stock file has {stock}, this one has {here}"
    return text + (f"{here}, as the stock file" if here == stock else other)


def read_manifest(folder: Path) -> dict[str, Record]:
    """Output name to entry, from the manifest in `folder`; empty if none is there."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes()) if path.exists() else dict(splits={})
        return {name: dict(entry) for name, entry in content["splits"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{path} is no manifest of splits, or was damaged ({error!r})"
        raise ValueError(f"{reason}: move it and the splits away.") from error


def read_records(path: Path, key: str, **known: Container[int]) -> Iterator[Record]:
    """Stream a top-level list: records with an id of their own, and known others."""
    ids: list[int] = []  # a set would need twice the memory
    for record in items(path, f"{key}.item"):
        fields = record if isinstance(record, dict) else {}
        if lacking := [n for n in ("id", *known) if type(fields.get(n)) is not int]:
            reason = f"one of its {key!r} has no whole number {lacking[0]!r}, only "
            raise refusal(path, f"{reason}{list(fields)}")
        if key == "images" and (fault := annotations.image_fault(record)):
            raise refusal(path, f"image {record['id']} has {fault}")
        box = record.get("bbox")
        if key == "annotations" and (fault := annotations.box_fault(box)):
            reason = f"annotation {record['id']} has no box x, y, width, height"
            raise refusal(path, f"{reason}: {fault}")
        if unknown := [n for n in known if record[n] not in known[n]]:
            reason = f"one of its {key!r} has unknown {unknown[0]} "
            raise refusal(path, f"{reason}{record[unknown[0]]}")
        ids.append(record["id"])
        yield record
    if not ids:
        raise refusal(path, f"it has no {key!r}, or an empty list, as a captions file")
    ids.sort()
    if twice := [i for i, following in pairwise(ids) if i == following]:
        raise refusal(path, f"id {twice[0]} is twice among its {key!r}")


def refusal(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path}: {reason}. Expected the file as published: docs/data.md")


def items(path: Path, prefix: str) -> Iterator[Any]:
    """Stream the values at a prefix of a JSON file."""
    rest: Any = blocks(path, prefix)
    file = SimpleNamespace(read=lambda size: next(rest, b"") if size else b"")
    try:
        yield from ijson.items(file, prefix, use_float=True)
    except ijson.JSONError as error:
        reason = f"is not JSON: {str(error).splitlines()[0]}"
        if rest.gi_frame is None:  # read to its end
            reason = f"ends early, after {path.stat().st_size:,} bytes: get it again"
        raise ValueError(f"{path} {reason}.") from error


def blocks(path: Path, what: str) -> Iterator[bytes]:
    """The bytes of a file; a terminal shows how far it was read.

    Brackets in brackets, by the thousand, are refused: they would take all memory.
    """
    depth = 0
    bar: Record = dict(desc=f"{path.name}, {what}", disable=None, leave=False)
    size = path.stat().st_size
    with path.open("rb") as file, tqdm.wrapattr(file, "read", size, **bar) as stream:
        while block := stream.read(2**16):
            depth += sum(map(block.count, b"[{")) - sum(map(block.count, b"]}"))
            if depth > MAX_DEPTH:
                raise refusal(path, f"more than {MAX_DEPTH:,} brackets are open")
            yield block


@contextmanager
def moved_into(path: Path) -> Iterator[Path]:
    """A path to write at: moved to `path` at the end, deleted on an error."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def fingerprint(path: Path) -> Record:
    digest = hashlib.sha256()
    for block in blocks(path, "checksum"):
        digest.update(block)
    return dict(sha256=digest.hexdigest(), bytes=path.stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=SPLITS)
    parser.add_argument("--root", type=Path, help="has annotations/ (data/DATASET)")
    ids = "LVIS minival's image ids: one per line, a JSON list, or an annotation file"
    parser.add_argument("--minival-ids", type=Path, metavar="FILE", help=ids)
    args = parser.parse_args()
    if args.minival_ids and args.dataset != "lvis":
        parser.error("--minival-ids is for lvis")
    folder = (args.root or Path("data") / args.dataset) / "annotations"
    try:
        make_splits(args.dataset, folder, args.minival_ids, tqdm.write)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; what was not written whole is not there\n")


if __name__ == "__main__":
    main()
