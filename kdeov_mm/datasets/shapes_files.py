"""The built-in world as files: images, LVIS-format instances, captions, maps."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from ..border import whole_number
from .shapes import WORLDS, draw_scene
from .worlds import Scene, World, scene_rng

FORMAT = 1
SPLITS = ("train", "val")


def write_world(
    root: str | Path,
    seed: int = 0,
    num_train: int = 4000,
    num_val: int = 500,
    progress: Callable[[Iterable], Iterable] = iter,
    world: str = "360",
) -> bool:
    """Write images, LVIS-format instances, captions and semantic maps.

    The same arguments write the same bytes, and all of them or none.

    Args:
        root: folder of the world.
        seed: of the scenes; 7000 and 7001 are the teacher's, 9000 is the start's of
            the hard world's students.
        num_train: training images.
        num_val: validation images.
        progress: wraps the loop over images, e.g. ``tqdm``.
        world: a key of ``WORLDS``.

    Returns:
        True when written, False when this very world was there already.

    Raises:
        OSError, ValueError: it holds something else, the disk is full, or seed < 0.
    """
    root, drawn = Path(root), WORLDS[world]
    recipe = _recipe(world, seed=seed, num_train=num_train, num_val=num_val)
    if _is_there(root, recipe):
        return False
    # what an interrupted run left
    scratch = root.with_name(f"{root.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    digest = hashlib.sha256()

    def write(path: str, data: bytes) -> None:
        (scratch / path).parent.mkdir(parents=True, exist_ok=True)
        (scratch / path).write_bytes(data)
        digest.update(data)

    # images, which do not depend on each other, and what is in them
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    jobs = [(s, i) for s in SPLITS for i in range(recipe[f"num_{s}"])]
    for split, index in progress(jobs):
        rng = scene_rng(seed, SPLITS.index(split), index)
        scene = draw_scene(rng, drawn, split == "train" or drawn.odds_in_val)
        name = f"{split}/{index + 1:06d}"
        records[split].append(_record(rng, scene, name, index + 1, drawn))
        for path, data in _images(scene, name):
            write(path, data)
    for path, content in _annotation_files(records, drawn):
        write(path, json.dumps(content).encode())
    # moved into place once it is whole
    manifest = dict(recipe, sha256=digest.hexdigest())
    (scratch / "world.json").write_text(json.dumps(manifest, indent=2) + "\n")
    scratch.replace(root)
    return True


def _recipe(world: str, **numbers: int) -> dict[str, Any]:
    """What the files of a world depend on; the first ones' keys are the fewest."""
    recipe: dict[str, Any] = dict(format=FORMAT, **numbers)
    if world != "360":
        recipe["world"] = int(world) if world.isdigit() else world
    # files of an earlier edition are another world
    if WORLDS[world].edition > 1:
        recipe["edition"] = WORLDS[world].edition
    return recipe


def _is_there(root: Path, recipe: dict[str, Any]) -> bool:
    """Whether this world is there, whole; raises when something is in the way."""
    whole_number("seed", recipe["seed"], least=0)
    if root.is_file():
        raise NotADirectoryError(f"{root} is a file, expected a folder")
    if not root.is_dir() or not any(root.iterdir()):
        return False
    # never overwrite what somebody may need
    advice = "Choose another folder (--root) or delete this one."
    if not (root / "world.json").is_file():
        raise FileExistsError(f"{root} is not empty and holds no world. {advice}")
    found = json.loads((root / "world.json").read_text())
    found.pop("sha256", None)
    if found != recipe:
        raise FileExistsError(
            f"{root} holds another world: {found}, asked for {recipe}. {advice}"
        )
    # the same world, but somebody may have deleted images
    for split in SPLITS:
        count = len(list((root / "images" / split).glob("*.jpg")))
        if count != recipe[f"num_{split}"]:
            raise FileExistsError(
                f"{root} is damaged: {count} of {recipe[f'num_{split}']} {split} "
                f"images are there. {advice}"
            )
    return True


def _images(scene: Scene, name: str) -> list[tuple[str, bytes]]:
    """JPEG image, and 16-bit PNG of label + 1 with 0 for background."""
    semantic = np.zeros(scene.image.shape[:2], np.uint16)
    for label, mask in zip(scene.labels, scene.masks):
        semantic[mask] = label + 1
    png = cv2.imencode(".png", semantic)[1].tobytes()
    return [(f"images/{name}.jpg", jpeg(scene)), (f"semantic/{name}.png", png)]


def jpeg(scene: Scene) -> bytes:
    """The file of a scene's image."""
    # cv2 writes BGR
    bgr = np.ascontiguousarray(scene.image[..., ::-1])
    quality = [cv2.IMWRITE_JPEG_QUALITY, scene.quality]
    return cv2.imencode(".jpg", bgr, quality)[1].tobytes()


def _record(
    rng: np.random.Generator, scene: Scene, name: str, image_id: int, world: World
) -> dict[str, Any]:
    """One image in LVIS's terms, its objects and its captions."""
    # captions first, as their random numbers are
    labels = scene.labels.tolist()
    captions = (world.describe or partial(_captions, world=world))(rng, labels)
    # now and then a kind is given instead of its member: "vehicle", not "red car"
    given = [_given(rng, label, world) for label in labels]
    # boxes as xywh, masks as RLE, category ids from 1
    objects = []
    for label, mask, (x1, y1, x2, y2) in zip(given, scene.masks, scene.boxes.tolist()):
        rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
        outline = dict(size=[world.size] * 2, counts=rle["counts"].decode())
        target: dict[str, Any] = dict(image_id=image_id, category_id=label + 1)
        target.update(bbox=[x1, y1, x2 - x1, y2 - y1], area=int(mask.sum()), iscrowd=0)
        objects.append(dict(target, segmentation=outline))
    # classes of which more is there than boxes: hidden parts, members and their kinds
    present = {*labels, *given, *scene.unboxed}
    kinds = {world.kinds[i] for i in present if i in world.kinds}
    unboxed = {i for i, other in zip(labels, given) if i != other} | {*scene.unboxed}
    own = {world.kinds[i] for i in given if i in world.kinds}
    unboxed |= own & {*given}
    image: dict[str, Any] = dict(
        id=image_id,
        file_name=f"{Path(name).name}.jpg",
        width=world.size,
        height=world.size,
        coco_url=f"file:///shapes/{name}.jpg",
        neg_category_ids=sorted(_negatives(rng, present | kinds, world)),
        not_exhaustive_category_ids=sorted(i + 1 for i in unboxed),
    )
    # in worlds that repeat a class one of two objects of a class may have no box
    if world.repeats and (left_out := _left_out(rng, objects)) is not None:
        more = objects.pop(left_out)["category_id"]
        unfinished = {*image["not_exhaustive_category_ids"], more}
        image["not_exhaustive_category_ids"] = sorted(unfinished)
    return dict(image=image, objects=objects, captions=captions)


def _captions(rng: np.random.Generator, labels: list[int], world: World) -> list[str]:
    """All objects in the order drawn, all in another, and one."""
    names = [world.classes[i] for i in labels]
    order = [f"a {names[i]}" for i in rng.permutation(len(names))]
    every = " and ".join(f"a {n}" for n in names)
    return [f"a picture of {every}", ", ".join(order), order[0]]


def _given(rng: np.random.Generator, label: int, world: World) -> int:
    """The label that an annotator gives: the object's class or the kind of it."""
    if label not in world.kinds or rng.integers(100) >= world.by_kind:
        return label
    return world.kinds[label]


def _negatives(rng: np.random.Generator, present: set[int], world: World) -> list[int]:
    """Category ids that are verified to be absent.

    20 random ones; in worlds with odds 40, and those that differ from an object in one
    concept, all or some: those that a detector could take it for.
    """
    absent = [i + 1 for i in range(len(world.classes)) if i not in present]
    if world.odds is None:
        return rng.choice(absent, 20, False).tolist()
    # likely mistakes first: false positives on random classes are rare
    alike: set[int] = set()
    for label in sorted(present) if world.max_alike else present:
        others = [i for i in _alike(world, label) if i not in present]
        if world.max_alike and len(others) > world.max_alike:
            others = rng.choice(others, world.max_alike, False).tolist()
        alike.update(others)
    return list({i + 1 for i in alike} | {*rng.choice(absent, 40, False).tolist()})


@cache
def _alike(world: World, label: int) -> tuple[int, ...]:
    """The classes that share all but one of several concepts with one."""
    parts = [{*name.split()} for name in world.classes]
    shared = len(parts[label]) - 1
    return tuple(i for i, p in enumerate(parts) if len(p & parts[label]) == shared > 0)


def _left_out(rng: np.random.Generator, objects: list[dict[str, Any]]) -> int | None:
    """An object whose class is there twice, in one of four images that have one."""
    counts = Counter(o["category_id"] for o in objects)
    twice = [i for i, o in enumerate(objects) if counts[o["category_id"]] > 1]
    return int(rng.choice(twice)) if twice and rng.random() < 0.25 else None


def _annotation_files(
    records: dict[str, list[dict[str, Any]]], world: World
) -> Iterable[tuple[str, dict[str, Any]]]:
    """Path and content of every annotation file."""
    # the base file has the same images, without boxes of other classes
    classes = dict.fromkeys(("train_base", "train_all", "val"), world.classes)
    classes["train_base"] = world.groups["base"]
    for name, asked in classes.items():
        content = _instances(records[name.split("_")[0]], asked, world)
        yield f"annotations/instances_{name}.json", content
    for split, items in records.items():
        # ids of captions count from 1 in each file
        pairs = [(r["image"]["id"], c) for r in items for c in r["captions"]]
        captions = [
            dict(image_id=image, caption=caption, id=i)
            for i, (image, caption) in enumerate(pairs, 1)
        ]
        content = dict(images=[r["image"] for r in items], annotations=captions)
        yield f"annotations/captions_{split}.json", content


def _instances(
    records: list[dict[str, Any]], classes: tuple[str, ...], world: World
) -> dict[str, Any]:
    """LVIS-format instances; boxes of other classes are left out."""
    kept = {*classes}
    ids = {i: n for i, n in enumerate(world.classes, 1) if n in kept}
    objects = [o for r in records for o in r["objects"] if o["category_id"] in ids]
    # LVIS counts the boxes of each class, and the images that have one
    instances = Counter(o["category_id"] for o in objects)
    images = Counter(c for _, c in {(o["image_id"], o["category_id"]) for o in objects})
    return dict(
        info=dict(description="kdeov_mm shapes"),
        licenses=[],
        images=[r["image"] for r in records],
        annotations=[dict(o, id=i + 1) for i, o in enumerate(objects)],
        categories=[
            dict(
                id=i,
                name=name,
                synset=name.replace(" ", "_") + ".n.01",
                synonyms=[name, *world.synonyms.get(name, ())],
                frequency=world.frequency[name],
                image_count=images[i],
                instance_count=instances[i],
            )
            for i, name in ids.items()
        ],
    )
