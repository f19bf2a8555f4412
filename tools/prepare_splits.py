"""Make the open-vocabulary splits of COCO and LVIS; see docs/data.md.

COCO's 48 base and 17 novel classes are those of OVR-CNN (Zareian et al., CVPR 2021);
LVIS's base classes are its 866 frequent and common ones, its novel classes the 337
rare ones, as in ViLD (Gu et al., ICLR 2022).

A stock file is streamed, once for each of its lists and then for each split; ids alone
are held. kdeov_mm is not imported, because torch needs more memory than that.
"""

import argparse
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Container, Generator, Iterator
from contextlib import contextmanager
from inspect import GEN_CLOSED, getgeneratorstate
from itertools import groupby, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import ijson  # takes the fastest of its backends by itself
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
COCO_LISTS = json.loads((ROOT / "kdeov_mm/datasets/coco_groups.json").read_text())
COCO_GROUPS = {name: group for group, names in COCO_LISTS.items() for name in names}
# for COCO and LVIS: numbers of categories by group, of images and boxes of the stock
# files, and the splits
TABLE = json.loads(Path(__file__).with_suffix(".json").read_text())
COUNTS = {dataset: table["categories"] for dataset, table in TABLE.items()}
STOCK = {n: tuple(v) for table in TABLE.values() for n, v in table["stock"].items()}
MANIFEST, FORMAT = "splits.json", 1
LISTS_OF_CATEGORIES = {"neg_category_ids", "not_exhaustive_category_ids"}
MAX_ABSENT = 0.1  # of the ids listed for minival; 191 of 5,000 are in stock files
dumps = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
).encode
Record = dict[str, Any]  # a category, an image, an output's entry in the manifest


class Split(NamedTuple):
    """One output: its file name, its source's, and the groups it keeps, of COUNTS."""

    name: str
    source: str
    groups: tuple[str, ...]
    images: str  # "all", "boxed" (with a box that is kept), "listed" by the user


SPLITS = {
    dataset: tuple(Split(n, s, tuple(g), i) for n, s, g, i in table["splits"])
    for dataset, table in TABLE.items()
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
    names = dict.fromkeys(split.source for split in SPLITS[dataset])
    sources = {n: fingerprint(folder / n) for n in names if (folder / n).is_file()}
    if not sources:
        files = f"{', '.join(names)}: unpack the zip files of {TABLE[dataset]['page']}."
        raise FileNotFoundError(f"{folder} holds none of {files}")
    todo: dict[Split, Record] = {}
    for split in SPLITS[dataset]:
        ids = sorted(listed) if split.images == "listed" else None
        if split.source not in sources:
            say(f"{split.name}: not made, {split.source} is not in {folder}")
        elif ids == []:
            say(f"{split.name}: not made, the list of its image ids was not given")
        else:
            digest = ids and hashlib.sha256(dumps(ids).encode()).hexdigest()
            source = dict(sources[split.source], file=split.source)
            recipe = dict(format=FORMAT, source=source, ids_sha256=digest)
            state = state_of(folder / split.name, recipe, manifest.get(split.name, {}))
            say(f"{split.name}: {state}")
            if state.startswith("to be made"):
                todo[split] = recipe
    need = sum(recipe["source"]["bytes"] for recipe in todo.values())
    if (free := shutil.disk_usage(folder).free) < need:
        text = f"{free / 1e6:,.0f} MB free, the splits may need {need / 1e6:,.0f} MB"
        raise OSError(f"{folder} has {text}: make room, and run again.")
    for name, splits in groupby(todo, lambda split: split.source):
        stock = Source(folder / name, dataset)
        for split in splits:
            entry = make(split, todo[split], stock, listed)
            say(f"{split.name}: written; {describe(entry)}")
    return [split.name for split in todo]


def read_ids(path: Path) -> set[int]:
    """Image ids: one per line, a JSON list, or the images of an annotation file."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()[:1]
    if prefix := {b"{": "images.item.id", b"[": "item"}.get(start):
        ids = list(items(path, prefix))
    else:
        words = path.read_text(errors="replace").split()
        ids = [int(word) if word.isdecimal() else word for word in words]
    wrong = [i for i in ids if type(i) is not int]
    if wrong or not ids:
        forms = "one per line, a JSON list, or an annotation file with images"
        found = str((wrong or ["none"])[0])[:40]
        raise ValueError(f"{path}: expected image ids, {forms}; found {found!r}.")
    return set(ids)


class Source:
    """A stock file whose categories and images are checked; their ids."""

    def __init__(self, path: Path, dataset: str) -> None:
        self.path = path
        self.categories = {c["id"]: c for c in read_records(path, "categories")}
        names = {i: str(c.get("name")) for i, c in self.categories.items()}
        if twice := [name for name, n in Counter(names.values()).items() if n > 1]:
            raise refusal(path, f"category names are there twice: {twice[:5]}")
        self.groups = {i: COCO_GROUPS.get(name, "unknown") for i, name in names.items()}
        if dataset == "lvis":
            kinds = ((i, c.get("frequency")) for i, c in self.categories.items())
            self.groups = {i: str(kind or "unknown") for i, kind in kinds}
        if (counts := dict(Counter(self.groups.values()))) != COUNTS[dataset]:
            wanted = f"{dataset.upper()}'s {COUNTS[dataset]}, but {counts}"
            others = [n for n in names.values() if n not in COCO_GROUPS][:3] or "none"
            wrong = f"its categories are not {wanted}; not COCO's are {others}"
            raise refusal(path, wrong)
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
        raise ValueError(
            f"{absent:,} of the {len(chosen):,} listed image ids are not in "
            f"{source.path}, more than {MAX_ABSENT:.0%}: they are not LVIS minival's."
        )
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
    sources = dict(source_images=len(source.images), source_boxes=total)
    return dict(sources, images=images, boxes=dict(boxes), categories=len(groups))


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
    """A manifest entry in words."""
    boxes = ", ".join(f"{n:,} {group}" for group, n in entry["boxes"].items())
    text = f"{entry['images']:,} images, boxes: {boxes}; "
    if entry["ids_sha256"]:
        absent, listed = entry["ids_absent"], entry["ids_absent"] + entry["images"]
        text += f"{absent:,} of {listed:,} listed ids absent ({absent / listed:.1%}); "
    name = entry["source"]["file"]
    here = "{source_images:,} images and {source_boxes:,} boxes".format(**entry)
    stock = "{:,} images and {:,} boxes".format(*STOCK[name])
    other = f"the stock file has {stock}, this one has {here}"
    return f"{text}{name}: {f'{here}, as the stock file' if here == stock else other}"


def read_manifest(folder: Path) -> dict[str, Record]:
    """Output name to entry, from the manifest in `folder`; empty if none is there."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes()) if path.exists() else dict(splits={})
        return {name: dict(entry) for name, entry in content["splits"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{path} is no manifest of splits, or was damaged ({error!r})"
        advice = "move it and the splits beside it away, and run again."
        raise ValueError(f"{reason}: {advice}") from error


def read_records(path: Path, key: str, **known: Container[int]) -> Iterator[Record]:
    """Stream a top-level list: records with an id of their own, and known others."""
    ids: list[int] = []  # a set would need twice the memory
    for record in items(path, f"{key}.item"):
        fields = record if isinstance(record, dict) else {}
        if lacking := [n for n in ("id", *known) if type(fields.get(n)) is not int]:
            reason = f"one of its {key!r} has no whole number {lacking[0]!r}, only "
            raise refusal(path, f"{reason}{list(fields)}")
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
    expected = "Expected the instances file as it was published: see docs/data.md."
    return ValueError(f"{path}: {reason}. {expected}")


def items(path: Path, prefix: str) -> Iterator[Any]:
    """Stream the values at a prefix of a JSON file."""
    rest = blocks(path, prefix)

    def read(size: int) -> bytes:
        return next(rest, b"") if size else b""

    try:
        yield from ijson.items(SimpleNamespace(read=read), prefix, use_float=True)
    except ijson.JSONError as error:
        reason = f"is not JSON: {str(error).splitlines()[0]}"
        if getgeneratorstate(rest) == GEN_CLOSED:
            reason = f"ends early, after {path.stat().st_size:,} bytes: get it again"
        raise ValueError(f"{path} {reason}.") from error


def blocks(path: Path, what: str) -> Generator[bytes, None, None]:
    """The bytes of a file; a terminal shows how far it was read."""
    bar: Record = dict(desc=f"{path.name}, {what}", disable=None, leave=False)
    size = path.stat().st_size
    with path.open("rb") as file, tqdm.wrapattr(file, "read", size, **bar) as stream:
        while block := stream.read(2**16):
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
    root = "its annotations/ has the stock files (data/DATASET)"
    parser.add_argument("--root", type=Path, help=root)
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
