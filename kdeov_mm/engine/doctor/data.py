"""Checks of the data: words, labels, pixels, objects."""

import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config

from ...datasets import AnnotationFile
from ...vocabulary import asked_groups, clean_name
from ..hooks import short_sides, too_small
from .finding import Checks, Finding, Stop, examples

# an image's id and one of its boxes, xyxy in whole pixels
BoxKey = tuple[str, int, int, int, int]


class ExaminedData(NamedTuple):
    """A data set with its first samples, after the pipeline."""

    name: str
    dataset: Any
    samples: list[dict[str, Any]]

    @property
    def words(self) -> tuple[str, ...]:
        """The names of the classes, as the text encoder reads them."""
        words = self.samples[0]["data_samples"].get("words", ()) if self.samples else ()
        return tuple(clean_name(own[0]) for own in words)


def innermost(dataset: Any) -> list[Any]:
    """The data sets, or their configs, inside wrappers."""
    if hasattr(dataset, "datasets"):
        return [part for inner in dataset.datasets for part in innermost(inner)]
    return innermost(dataset.dataset) if hasattr(dataset, "dataset") else [dataset]


def check_configured_words(cfg: Config, datasets: Mapping[str, Any]) -> Checks:
    """Class names in the configs of data sets: none empty, none twice."""
    # collect: the place in the config -> its words
    words: dict[str, Any] = {}
    for name, dataset in datasets.items():
        for part in innermost(dataset):
            if "classes" in (part.get("metainfo") or {}):
                words[f"metainfo.classes of the {name} data"] = part.metainfo["classes"]
            # LoadWords: the transform for data sets of other packages
            for step in part.get("pipeline", ()):
                if str(step["type"]).split(".")[-1] == "LoadWords":
                    words[f"words of LoadWords of the {name} data"] = step["words"]
    # the words of a training step, drawn from these
    if (cfg.model.get("vocabulary") or {}).get("size", 1) < 1:
        words["model.vocabulary, by its size"] = ()

    # without words nothing can be built; with one twice it can
    for place, names in words.items():
        names = [names] if isinstance(names, str) else list(names)
        if not names or not all(str(name).strip() for name in names):
            what = "an empty word" if names else "no words"
            raise Stop("empty vocabulary", f"{place}: {what}.")
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            yield Finding("word twice", f"{place}: {twice[:5]} appear more than once.")


def labelled_boxes(dataset: Any) -> Iterator[tuple[BoxKey, int]]:
    """All boxes with their labels, as the data set numbers them."""
    for info in map(dataset.get_data_info, range(len(dataset))):
        for box in info.get("instances", ()):
            x1, y1, x2, y2 = (round(float(v)) for v in box["bbox"])
            yield (str(info["img_id"]), x1, y1, x2, y2), box["bbox_label"]


def check_files(data: ExaminedData) -> Checks:
    """What the check of annotation files dropped or changed, and what it looked at."""
    for part in innermost(data.dataset):
        looked = getattr(part, "looked", None)
        if looked is None:
            yield f"{data.name} data: the sizes of its images were not compared."
        else:
            opened, total, missing = looked
            yield (
                f"{data.name} data: {opened} of {total} images were opened, to compare "
                f"their size with the file's; {missing} are not there."
            )
        # a few are accidents; many are a habit of the tool that wrote them
        for note in getattr(part, "checks", ()):
            text = f"{data.name} data: {note.text}"
            yield Finding("boxes changed", text) if note.many else text


def check_labels(data: ExaminedData) -> Checks:
    """Compare labels with the names in the annotation files."""
    words = data.words
    if not words:
        raise Stop("empty vocabulary", f"no words in samples of the {data.name} data.")
    compared, without_word = 0, 0
    unnamed: list[str] = []
    wrong: list[str] = []
    parts = innermost(data.dataset)  # without repetitions
    for part in parts:
        # the truth is what the files say, not what the data set makes of it
        names_of = names_in_files(part)
        for names in names_of.values():
            unnamed += names - set(words)
        for key, label in labelled_boxes(part):
            without_word += label >= len(words)
            if key in names_of and label < len(words):
                compared += 1
                # boxes of two classes may coincide: either name is right
                if words[label] not in names_of[key]:
                    real = " or ".join(sorted(names_of[key]))
                    wrong.append(f"'{real}' is called '{words[label]}'")

    yield (
        f"{data.name} data: {sum(map(len, parts))} images, {len(words)} words, "
        f"{compared} labels compared with their files; {len(unnamed)} boxes in the "
        f"files have no word{examples(unnamed)}."
    )
    labels = sum(1 for part in parts for _ in labelled_boxes(part))
    if labels and not compared:
        yield f"{data.name} data: none of {labels} boxes was compared with a file."
    # findings: too few words, or another order
    if without_word:
        what = f"{without_word} boxes have labels beyond the {len(words)} words."
        yield Finding("boxes without words", f"{data.name} data: {what}")
    if wrong:
        what = f"{len(wrong)} of {compared} labels have another name than in the file"
        yield Finding("class order", f"{data.name} data: {what}{examples(wrong)}.")


def names_in_files(dataset: Any) -> dict[BoxKey, set[str]]:
    """Each box's class names, read from COCO's JSON or VOC's XML files themselves."""
    names: dict[BoxKey, set[str]] = defaultdict(set)
    # COCO: one file, boxes as xywh
    if str(getattr(dataset, "ann_file", "")).endswith(".json"):
        file = AnnotationFile(Path(dataset.ann_file).read_bytes(), dataset.ann_file)
        infos = map(dataset.get_data_info, range(len(dataset)))
        sizes = {info["img_id"]: (info["width"], info["height"]) for info in infos}
        file.fill_sizes(lambda image: sizes.get(image["id"], (10**9, 10**9)))
        file.check_boxes()
        content = file.content
        categories = {c["id"]: clean_name(c["name"]) for c in content["categories"]}
        for box in content["annotations"]:
            x, y, width, height = box["bbox"]
            corners = (round(x), round(y), round(x + width), round(y + height))
            key = (str(box["image_id"]), *corners)
            names[key].add(categories[box["category_id"]])
        return names
    # VOC: a file for each image; other formats have no names to compare
    for info in map(dataset.get_data_info, range(len(dataset))):
        if not Path(info.get("xml_path", "")).is_file():
            continue
        for thing in ET.parse(info["xml_path"]).iter("object"):
            # it counts pixels from 1, mmdet from 0
            x1, y1, x2, y2 = (
                round(float(thing.findtext(f"bndbox/{side}") or 0) - 1)
                for side in ("xmin", "ymin", "xmax", "ymax")
            )
            corners = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
            name = clean_name(thing.findtext("name") or "")
            names[(str(info["img_id"]), *corners)].add(name)
    return names


def check_pixels(cfg: Config, data: ExaminedData) -> Checks:
    """Compare the pipeline's pixels with what the preprocessor expects."""
    low = min(s["inputs"].min().item() for s in data.samples)
    high = max(s["inputs"].max().item() for s in data.samples)
    pixels = f"{low:.2f} to {high:.2f}"
    yield f"{data.name} pixels after the pipeline: {pixels} (0 to 255?)."
    # the teacher undoes the preprocessor's normalisation alone
    preprocessor = cfg.model.data_preprocessor
    normalises = preprocessor.get("mean") is not None
    has_teacher = data.name == "train" and cfg.model.get("teacher")
    # colour distortions may leave 0 to 255 a little
    if (normalises or has_teacher) and (low < -60 or high <= 20):
        second = "model.data_preprocessor" if normalises else "the teacher"
        what = f"{data.name} pixels are {pixels}, and {second} normalises them again."
        yield Finding("normalised twice", what)
    elif normalises and max(std := preprocessor.get("std") or [1.0]) < 2:
        what = f"model.data_preprocessor.std is {std}, for pixels of {pixels}."
        yield Finding("wrong statistics", what)


def held_out_names(test: ExaminedData) -> set[str]:
    """Classes that must not be learnt from boxes, by the test data's groups."""
    groups: dict[str, set[str]] = defaultdict(set)
    for part in innermost(test.dataset):
        for group, names in asked_groups(part.metainfo).items():
            groups[group] |= set(map(clean_name, names))
    # where there are base classes, all others are held out
    base = groups.pop("base", None)
    if base is None:
        return groups["novel"] | groups["rare"]
    return set().union(*groups.values()) - base


def check_held_out(train: ExaminedData, test: ExaminedData) -> Checks:
    """No held-out class among the boxes or the words of the training."""
    words, held_out = train.words, held_out_names(test)
    boxes = Counter(
        words[label]
        for part in innermost(train.dataset)
        for _, label in labelled_boxes(part)
        if label < len(words)
    )
    without = [word for word in words if not boxes[word]]
    yield (
        f"training boxes: {boxes.total()} of {len(boxes)} words; {len(without)} words "
        f"have no box{examples(without)}; {len(held_out)} classes are held out."
    )
    # boxes of a held-out class are worse than its name: one finding is enough
    boxed, named = sorted(held_out & set(boxes)), sorted(held_out & set(words))
    if boxed:
        what = f"{sum(boxes[word] for word in boxed)} boxes of {len(boxed)} held-out"
        yield Finding("novel boxes", f"{what} classes{examples(boxed)} in training.")
    elif named:
        what = f"{len(named)} held-out classes are among the training words"
        yield Finding("novel words", f"{what}{examples(named)}.")


def check_objects(train: ExaminedData) -> Checks:
    """Enough of the images' objects are left after the pipeline."""
    # those of the same images: another one may have ten times as many
    in_files = Counter(
        image
        for part in innermost(train.dataset)
        for (image, *_), _ in labelled_boxes(part)
    )
    samples = [sample["data_samples"] for sample in train.samples]
    expected = sum(in_files[str(s.img_id)] for s in samples) / len(samples)
    kept = sum(len(s.gt_instances) + len(s.ignored_instances) for s in samples)
    left = kept / len(samples)
    objects = f"{expected:.2f} objects per image in the files, {left:.2f} after the"
    yield f"objects per image: {objects} pipeline ({len(samples)} images)."
    # crops and mosaics change their number, but hardly halve it
    if left < 0.5 * expected or not in_files:
        yield Finding("objects lost", f"{objects} pipeline.")
    # so small that no location learns them
    sides = [short_sides(s.gt_instances.bboxes) for s in samples]
    if what := too_small(torch.cat(sides)):
        yield Finding("small objects", what)
