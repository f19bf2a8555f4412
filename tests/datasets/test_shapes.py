"""Laws of the built-in world."""

import hashlib
import importlib.util
import json
import shutil
from collections import Counter

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from kdeov_mm.datasets import hard_scenes, shapes, shapes_hard
from kdeov_mm.datasets.shapes_files import jpeg, write_world
from kdeov_mm.reader import decode_image


def load(root, name):
    return json.loads((root / "annotations" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "shapes"
    assert write_world(root, seed=3, num_train=20, num_val=6)
    return root


def test_groups_split_the_360_classes():
    groups = [shapes.BASE_CLASSES, shapes.COMBO_CLASSES, shapes.NOVEL_CLASSES]
    assert [len(g) for g in groups] == [200, 40, 120]
    assert sorted(sum(groups, ())) == sorted(shapes.CLASSES)
    assert len(set(shapes.CLASSES)) == len(shapes.PALETTE) == 360


def test_base_has_every_seen_concept_and_no_held_out_one():
    words = Counter(w for n in shapes.BASE_CLASSES for w in n.split())
    held_out = {*shapes.HELD_OUT_COLORS, *shapes.HELD_OUT_SHAPES}
    everything = {*shapes.FILLS, *shapes.COLORS, *shapes.SHAPES}
    assert set(words) == everything - held_out
    combo = {w for n in shapes.COMBO_CLASSES for w in n.split()}
    assert not combo & held_out
    assert all(set(n.split()) & held_out for n in shapes.NOVEL_CLASSES)


# what the shipped teacher and all results are of: another world has another name
DIGESTS = {
    "360": "a3e742ce0396fd08",
    "1203": "66f6287f5403d478",
    "hard": "ba2c848b79748cce",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_classes_groups_and_colours_stay_as_they_are(name):
    world = shapes.WORLDS[name]
    odds = None if world.odds is None else np.round(world.odds * 1e6).astype(int)
    told = [world.classes, world.groups, world.frequency, world.palette, world.repeats]
    text = json.dumps([*told, None if odds is None else odds.tolist()])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGESTS[name]


# of each scene the pixels times fixed random numbers
SCENES = {
    "360": [
        3.4,
        -33.7,
        -38.9,
        -41.3,
        -37.4,
        -16.9,
        -99.0,
        -28.9,
        -29.7,
        11.7,
        7.9,
        7.6,
    ],
    "1203": [
        -11.9,
        -87.9,
        -78.1,
        -23.5,
        -63.2,
        -60.6,
        -80.2,
        -63.6,
        -14.3,
        -25.0,
        -16.3,
        -52.5,
        -24.0,
        -40.7,
        -16.6,
        -36.2,
        74.4,
        -102.5,
        -11.4,
        -71.7,
        1.3,
        -95.5,
        -18.4,
        -55.6,
    ],
}


@pytest.mark.parametrize("name", SCENES)
def test_scenes_are_the_same_everywhere(name):
    """Whatever the versions of numpy and OpenCV: a grey level in some pixels is 0.1."""
    weights = np.random.default_rng(0).standard_normal((160, 160, 3)) / 277
    found = []
    for i in range(len(SCENES[name])):
        rng = shapes.scene_rng(0, 1, i)
        scene = shapes.draw_scene(rng, shapes.WORLDS[name], long_tail=i % 2 == 1)
        found.append((scene.image * weights).sum())
    assert found == pytest.approx(SCENES[name], abs=0.3)


def test_same_seed_gives_the_same_bytes(world, tmp_path):
    again = tmp_path / "again"
    write_world(again, seed=3, num_train=20, num_val=6)
    files = sorted(p.relative_to(world) for p in world.rglob("*.*"))
    assert len(files) == 2 * 26 + 5 + 1
    assert all((world / f).read_bytes() == (again / f).read_bytes() for f in files)


def test_another_seed_gives_other_pictures(world, tmp_path):
    other = tmp_path / "other"
    write_world(other, seed=4, num_train=1, num_val=1)
    name = "images/train/000001.jpg"
    assert (world / name).read_bytes() != (other / name).read_bytes()


def test_the_same_world_is_reused_and_another_one_refused(world):
    before = (world / "images/val/000001.jpg").stat().st_mtime_ns
    assert not write_world(world, seed=3, num_train=20, num_val=6)
    assert (world / "images/val/000001.jpg").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="another world.*--root"):
        write_world(world, seed=5, num_train=20, num_val=6)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="not empty"):
        write_world(tmp_path, num_train=1, num_val=1)


def test_no_folder_and_no_seed_are_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file, expected a folder"):
        write_world(tmp_path / "file", num_train=10**9)
    with pytest.raises(ValueError, match="seed is at least 0"):
        write_world(tmp_path / "world", seed=-1)


def test_an_interrupted_world_is_written_again(tmp_path):
    def stop(jobs):
        yield from list(jobs)[:2]
        raise KeyboardInterrupt

    root = tmp_path / "world"
    with pytest.raises(KeyboardInterrupt):
        write_world(root, 0, 3, 1, stop)
    assert not root.exists()
    assert write_world(root, 0, 1, 1)  # smaller: nothing stale is left
    assert len(list(root.glob("images/train/*"))) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["world"]


def test_a_world_with_a_missing_image_is_refused(tmp_path):
    root = tmp_path / "world"
    write_world(root, 0, 2, 1)
    (root / "images/train/000002.jpg").unlink()
    with pytest.raises(FileExistsError, match="damaged: 1 of 2 train"):
        write_world(root, 0, 2, 1)


def test_boxes_are_tight_around_visible_masks():
    for i in range(30):
        scene = shapes.draw_scene(shapes.scene_rng(0, 5, i))
        assert 1 <= len(scene.labels) <= 6
        assert scene.masks.sum(0).max() <= 1  # a pixel has one owner
        for mask, box in zip(scene.masks, scene.boxes):
            y, x = np.nonzero(mask)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert 15 <= max(box[2:] - box[:2]) <= 84


def test_base_file_has_no_box_of_another_class(world):
    base, everything = (load(world, f"instances_train_{n}") for n in ("base", "all"))
    names = {c["id"]: c["name"] for c in everything["categories"]}
    assert [c["name"] for c in base["categories"]] == list(shapes.BASE_CLASSES)
    assert {c["id"] for c in base["categories"]} <= set(names)
    assert {names[a["category_id"]] for a in base["annotations"]} <= set(
        shapes.BASE_CLASSES
    )
    kept = [
        a
        for a in everything["annotations"]
        if names[a["category_id"]] in shapes.BASE_CLASSES
    ]
    assert len(kept) == len(base["annotations"]) < len(everything["annotations"])
    assert len(base["images"]) == len(everything["images"]) == 20


def test_lvis_fields_say_what_the_images_hold(world):
    data = load(world, "instances_val")
    images = {c["id"]: set() for c in data["categories"]}
    for ann in data["annotations"]:
        images[ann["category_id"]].add(ann["image_id"])
        assert ann["area"] > 0 and len(ann["bbox"]) == 4
    for category in data["categories"]:
        assert category["image_count"] == len(images[category["id"]])
        assert category["frequency"] == shapes.FREQUENCY[category["name"]]
    for image in data["images"]:
        assert image["coco_url"].endswith(image["file_name"])
        assert not any(image["id"] in images[c] for c in image["neg_category_ids"])
        assert image["not_exhaustive_category_ids"] == []


# what is said of the scenes, without what is measured in them
RECORDS = {
    "360": "4e319ef40b5bfcb9",
    "1203": "79ace3dcb33696dd",
    "hard": "37ffc756f24622a7",
}


@pytest.mark.parametrize("name", RECORDS)
def test_captions_and_labels_stay_as_they_are(name, tmp_path):
    write_world(tmp_path / "w", num_train=9, num_val=4, world=name)
    digest = hashlib.sha256()
    for file in sorted(tmp_path.glob("w/annotations/*.json")):
        content = json.loads(file.read_text())
        for ann in content["annotations"]:
            for key in ("segmentation", "area", "bbox"):
                ann.pop(key, None)
        digest.update(json.dumps(content).encode())
    assert digest.hexdigest()[:16] == RECORDS[name]


def test_boxes_and_areas_are_those_of_the_outlines(world):
    for ann in load(world, "instances_train_all")["annotations"]:
        mask = mask_utils.decode(ann["segmentation"])
        assert mask.shape == (160, 160) and ann["area"] == mask.sum()
        assert ann["bbox"] == [*cv2.boundingRect(mask)]
        assert ann["iscrowd"] == 0


def test_captions_and_semantic_maps_agree_with_the_boxes(world):
    data, captions = load(world, "instances_val"), load(world, "captions_val")
    names = {c["id"]: c["name"] for c in data["categories"]}
    for image in data["images"]:
        present = {
            names[a["category_id"]]
            for a in data["annotations"]
            if a["image_id"] == image["id"]
        }
        text = next(
            a["caption"]
            for a in captions["annotations"]
            if a["image_id"] == image["id"]
        )
        assert all(name in text for name in present)
        path = world / "semantic/val" / image["file_name"].replace("jpg", "png")
        semantic = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        drawn = {shapes.CLASSES[i - 1] for i in np.unique(semantic) if i}
        assert semantic.dtype == np.uint16 and drawn == present


# ------------------------------------------------------------ the world of 8 classes


def test_the_new_domain_has_boxes_of_concepts_that_the_first_world_lacks(tmp_path):
    root = tmp_path / "shapes_8"
    assert write_world(root, num_train=30, num_val=30, world="8")
    for _, color, shape in map(str.split, shapes.NEW_CLASSES):
        assert color not in shapes.COLORS and shape not in shapes.SHAPES
    labelled = load(root, "instances_train_base")
    assert {c["name"] for c in labelled["categories"]} == {*shapes.NEW_CLASSES}
    # half of all objects are old ones, which nobody labelled, in both parts
    for split in ("train_all", "val"):
        ids = [
            a["category_id"] for a in load(root, f"instances_{split}")["annotations"]
        ]
        share = np.mean([i <= len(shapes.NEW_CLASSES) for i in ids])
        assert 0.35 < share < 0.65


# -------------------------------------------------------- the world of 1203 classes


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "shapes_1203"
    assert write_world(root, num_train=300, num_val=60, world="1203")
    return root


def test_the_larger_world_has_lvis_numbers_of_classes():
    world = shapes.WORLD_1203
    assert Counter(world.frequency.values()) == dict(f=405, c=461, r=337)
    assert len(set(world.classes)) == len(world.palette) == len(world.odds) == 1203
    base, novel = world.groups["base"], world.groups["novel"]
    assert (len(base), len(novel)) == (866, 337)
    held_out = set(shapes.HELD_OUT_1203)
    assert all(set(n.split()) & held_out for n in novel)
    seen = {w for n in base for w in n.split()}
    assert not seen & held_out and len(seen) == 5 + 14 + 18 - 5


def test_training_scenes_have_a_long_tail_and_no_rare_boxes(wide):
    everything, base = (
        load(wide, "instances_train_all"),
        load(wide, "instances_train_base"),
    )
    kind = {c["id"]: c["frequency"] for c in everything["categories"]}
    drawn = Counter(kind[a["category_id"]] for a in everything["annotations"])
    per_class = {k: drawn[k] / n for k, n in dict(f=405, c=461, r=337).items()}
    assert per_class["f"] > 1.2 * per_class["c"] > 1.4 * per_class["r"] > 0
    boxed = {kind[a["category_id"]] for a in base["annotations"]}
    assert boxed == {"f", "c"}
    assert len(base["categories"]) == 866 and len(everything["categories"]) == 1203


def test_confusable_classes_are_verified_to_be_absent(wide):
    val = load(wide, "instances_val")
    name = {c["id"]: c["name"] for c in val["categories"]}
    for image in val["images"]:
        there = {a["category_id"] for a in val["annotations"]
                 if a["image_id"] == image["id"]}  # fmt: skip
        there |= set(image["not_exhaustive_category_ids"])
        negative = set(image["neg_category_ids"])
        assert not there & negative
        alike = {
            i
            for i, n in name.items()
            for t in there
            if len({*n.split()} & {*name[t].split()}) == 2
        }
        assert alike - there <= negative
        assert len(negative) - len(alike - there) <= 40


def test_an_unfinished_class_has_an_object_more_than_boxes(wide):
    val = load(wide, "instances_val")
    unfinished = [i for i in val["images"] if i["not_exhaustive_category_ids"]]
    assert unfinished
    for image in unfinished:
        (label,) = image["not_exhaustive_category_ids"]
        file = wide / f"semantic/val/{image['id']:06d}.png"
        semantic = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        pair = (image["id"], label)
        boxes = [
            a for a in val["annotations"] if (a["image_id"], a["category_id"]) == pair
        ]
        labelled = sum(a["area"] for a in boxes)
        assert boxes and (semantic == label).sum() > labelled


def test_both_worlds_do_not_share_a_folder(wide):
    with pytest.raises(FileExistsError, match="another world"):
        write_world(wide, num_train=300, num_val=60)


# ------------------------------------------------------------------ the hard world


@pytest.fixture(scope="module")
def hard_scenes_drawn():
    world = shapes.WORLD_HARD
    return [
        shapes.draw_scene(shapes.scene_rng(0, i % 2, i), world, i % 2 == 0)
        for i in range(60)
    ]


@pytest.fixture(scope="module")
def hard(tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "shapes_hard"
    assert write_world(root, num_train=60, num_val=30, world="hard")
    return root


def test_hard_pixels_are_the_same_everywhere(hard_scenes_drawn):
    """To the last bit: they are drawn in integers. The files add a JPEG encoder's."""
    digest = hashlib.sha256()
    for scene in hard_scenes_drawn:
        for part in (scene.image, scene.labels, scene.boxes, scene.masks):
            digest.update(np.ascontiguousarray(part).tobytes())
    assert digest.hexdigest()[:16] == "89b07eecfd8cb39c"


def test_the_hard_world_of_an_earlier_edition_is_refused(hard, tmp_path):
    root = tmp_path / "old"
    shutil.copytree(hard, root)
    manifest = json.loads((root / "world.json").read_text())
    assert manifest.pop("edition") == 3
    (root / "world.json").write_text(json.dumps(manifest))
    with pytest.raises(FileExistsError, match="another world.*'edition': 3.*--root"):
        write_world(root, num_train=60, num_val=30, world="hard")


def test_no_rounding_of_the_hard_world_is_close(monkeypatch):
    """Another library of mathematics makes the same integers of its floats."""
    seen, rint = [], np.rint
    monkeypatch.setattr(np, "rint", lambda x: seen.append(np.ravel(x)) or rint(x))
    spec = importlib.util.find_spec("kdeov_mm.datasets.hard_scenes")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    rest = np.abs(np.modf(np.concatenate(seen))[0])
    assert len(rest) > 2000 and np.abs(rest - 0.5).min() > 1e-9


def test_hard_scenes_are_crowded_small_and_hidden(hard_scenes_drawn):
    counts, sides = [], []
    for scene in hard_scenes_drawn:
        objects = scene.labels < shapes_hard.OBJECTS
        counts.append(objects.sum())
        assert scene.image.shape == (320, 320, 3) and scene.image.dtype == np.uint8
        # objects share no pixel; the pixels of a part are those of its object
        whole = scene.masks[objects].sum(0)
        assert whole.max() == 1
        assert not (scene.masks[~objects].sum(0) > whole).any()
        for mask, box in zip(scene.masks, scene.boxes):
            assert box.tolist() == [*shapes.tight_box(mask)]
        sides.extend((scene.boxes[:, 2:] - scene.boxes[:, :2]).max(1))
    assert min(counts) >= 5 and max(counts) <= 25
    assert max(counts) - min(counts) >= 15
    assert min(sides) <= 9 and max(sides) >= 200


def test_hard_classes_have_lvis_shares_and_words_that_overlap():
    world = shapes.WORLD_HARD
    assert Counter(world.frequency.values()) == dict(f=178, c=181, r=142)
    assert len(set(world.classes)) == len(world.palette) == len(world.odds) == 501
    held_out = {*shapes_hard.HELD_OUT, *shapes_hard.HELD_OUT_PARTS}
    assert all(held_out & {*n.split()} for n in world.groups["novel"])
    seen = {w for n in world.groups["base"] for w in n.split()}
    everything = {w for n in world.classes for w in n.split()}
    assert seen == everything - held_out
    assert "violet automobile" in world.synonyms["purple car"]
    names = [*world.classes, *(s for other in world.synonyms.values() for s in other)]
    assert len(names) == len(set(names))
    assert world.kinds[world.classes.index("red car")] == world.classes.index("vehicle")


def test_hard_labels_are_federated(hard):
    val = load(hard, "instances_val")
    name = {c["id"]: c["name"] for c in val["categories"]}
    kinds, parts = {*shapes_hard.KINDS}, {*hard_scenes.PARTS}
    boxed, unfinished = set(), 0
    for image in val["images"]:
        there = {name[a["category_id"]] for a in val["annotations"]
                 if a["image_id"] == image["id"]}  # fmt: skip
        boxed |= there
        open_ = {name[i] for i in image["not_exhaustive_category_ids"]}
        absent = {name[i] for i in image["neg_category_ids"]}
        assert not absent & (there | open_) and 40 <= len(absent) <= 200
        # the kind of what is there is not absent, and complete where it is said alone
        for kind, nouns in shapes_hard.KINDS.items():
            if {n.split()[-1] for n in there} & {*nouns}:
                assert kind not in absent
                assert kind in open_ or kind not in there
        unfinished += len(open_)
        # every object of the map is in the labels, or its class or kind is unfinished
        file = hard / f"semantic/val/{image['id']:06d}.png"
        semantic = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        drawn = {name[i] for i in np.unique(semantic).tolist() if i}
        assert drawn <= there | open_
    assert unfinished and boxed & kinds and boxed & parts
    base = load(hard, "instances_train_base")
    groups = shapes.WORLD_HARD.groups
    assert {c["name"] for c in base["categories"]} == {*groups["base"]}
    (category,) = [c for c in val["categories"] if c["name"] == "pink cat"]
    assert category["synonyms"] == [
        "pink cat",
        "pink kitten",
        "rose cat",
        "rose kitten",
    ]


def test_hard_captions_name_some_of_the_objects(hard):
    val, captions = load(hard, "instances_val"), load(hard, "captions_val")
    world = shapes.WORLD_HARD
    name = {c["id"]: c["name"] for c in val["categories"]}
    for image in val["images"]:
        shown = {name[a["category_id"]] for a in val["annotations"]
                 if a["image_id"] == image["id"]}  # fmt: skip
        shown |= {name[i] for i in image["not_exhaustive_category_ids"]}
        words = {w for n in shown for w in n.split()}
        words |= {shapes_hard.SYNONYMS.get(w, w) for w in words}
        words |= {world.classes[world.kinds[i]] for i, n in enumerate(world.classes)
                  if n in shown and i in world.kinds}  # fmt: skip
        own = [c["caption"] for c in captions["annotations"]
               if c["image_id"] == image["id"]]  # fmt: skip
        assert len(own) == 3
        said = {w for c in own for w in c.split()}
        known = {w for n in world.classes for w in n.split()}
        known |= {*shapes_hard.SYNONYMS.values()}
        assert said & known <= words


def test_the_file_of_a_scene_has_its_colours() -> None:
    scene = shapes.draw_scene(np.random.default_rng(0), shapes.WORLD_360)
    read = decode_image(jpeg(scene), "scene.jpg").astype(float)
    differences = [
        np.abs(read - scene.image[..., order]).mean()
        for order in ([0, 1, 2], [2, 1, 0])
    ]
    assert differences[0] < 4 < differences[1]
