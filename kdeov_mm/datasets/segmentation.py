"""Label maps of any PNG: what a pixel is of, nothing of the kind, or not labelled."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.datasets import BaseSegDataset, VOCDataset
from mmdet.datasets.ade20k import ADE20KSegDataset
from mmdet.datasets.coco_semantic import CocoSegDataset
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.fileio import list_from_file
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..vocabulary import Vocabulary, as_metainfo, asked_groups
from . import shapes
from .shapes_hard import KINDS

BACKGROUND = -1  # of a label map: none of the words
IGNORED = -2  # not labelled
_UNKNOWN = -3  # values that a mask must not have
_EXAMPLES = 5  # names in a message
_ORIENTATION = 0x0112  # EXIF's tag; 5 to 8 are quarter turns

# the zero-shot literature's splits: Xian et al. (2019, SPNet) for COCO-Stuff and VOC,
# Bucher et al. (2019, ZS3Net) for Pascal Context
VOC_UNSEEN = ("pottedplant", "sheep", "sofa", "train", "tvmonitor")
STUFF_UNSEEN = (
    *("frisbee", "skateboard", "cardboard", "carrot", "scissors", "suitcase"),
    *("giraffe", "cow", "road", "wall-concrete", "tree", "grass", "river", "clouds"),
    "playingfield",
)
CONTEXT_UNSEEN = (
    *("cow", "motorbike", "sofa", "cat", "boat", "fence", "bird", "tvmonitor"),
    *("keyboard", "aeroplane"),
)
# ids that COCO's 182 categories leave out
_COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
# how names that are written together are read
_SPELLED = {
    "pottedplant": "potted plant",
    "tvmonitor": "tv monitor",
    "diningtable": "dining table",
    "bedclothes": "bed clothes",
    "playingfield": "playing field",
}


class MaskError(ValueError):
    """A mask that is missing, of another kind or size, or has values of no class."""


def read_mask(path: str | Path) -> np.ndarray:
    """The values of a mask, (H, W) int32: palette, grey (8 or 16 bit) or bits.

    Raises:
        MaskError: it has colours, or is no image.
        FileNotFoundError: it is not there.
    """
    try:
        with Image.open(path) as file:
            if file.mode not in ("P", "L", "1", "I", "I;16", "I;16B"):
                raise MaskError(
                    f"{path} is an image of colours ({file.mode}): a mask has one "
                    "value for each pixel, the number of its class. Write it as a PNG "
                    "of a palette, or grey."
                )
            return np.asarray(file).astype(np.int32)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MaskError(f"{path} is no image, or a damaged one: {error}") from error


@DATASETS.register_module()
class SegDataset(BaseSegDataset):
    """Images and masks in two folders; samples carry their words.

    The masks are PNG files of the images' names and sizes, each pixel the number of its
    class. Pixels of classes that are not asked (``vocabulary``) are not labelled: they
    teach nothing, and do not count in a metric.

    Args:
        vocabulary: words that are asked: ``'all'`` classes, or one of the groups in the
            metainfo (``'base'``, ``'novel'``).
        values: of each class of the metainfo, its value in the masks; None: those of
            the data set (:attr:`VALUES`), or 1, 2, ... where 0 is background.
        background: the value of pixels that are none of the classes; None: there are
            no such pixels.
        ignored: values of pixels that nobody labelled.
        labelled: part of the images that have a mask, in (0, 1]; of the others every
            pixel is ignored. Which, depends on ``seed`` alone.
        seed: of the choice of labelled images.
        checked: masks that are read at once, to see that their sizes and values are
            right, spread over the data set; None: all.
        kwargs: those of ``mmdet.BaseSegDataset``; ``metainfo`` may have ``classes``,
            groups (``base_classes``) and ``palette``.

    Raises:
        MaskError: masks are missing, of another size, or have values of no class.
        ValueError: arguments that do not go together.
    """

    METAINFO: Mapping[str, Any] = {}
    VALUES: Sequence[int] | None = None

    def __init__(
        self,
        *args: Any,
        vocabulary: str = "all",
        values: Sequence[int] | None = None,
        background: int | None = 0,
        ignored: Sequence[int] = (255,),
        labelled: float = 1.0,
        seed: int = 0,
        checked: int | None = 100,
        metainfo: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0 < labelled <= 1:
            raise ValueError(f"labelled is a part, in (0, 1], got {labelled}")
        meta = {**self.METAINFO, **(metainfo or {})}
        names = meta.get("classes") or ()
        if isinstance(names, str):  # a file, as mmengine reads it
            names = list_from_file(names)
        names = tuple(names)
        if not names:
            raise ValueError("a SegDataset needs metainfo.classes, the names in order")
        # which of the classes are asked, each with its colour
        asked = names
        if vocabulary != "all":
            groups = asked_groups(dict(meta, classes=names))
            if vocabulary not in groups:
                raise ValueError(
                    f"vocabulary is 'all' or one of {[*groups]}, got {vocabulary!r}"
                )
            asked = groups[vocabulary]
        if meta.get("palette"):
            colours = dict(zip(names, meta["palette"]))
            meta["palette"] = [colours[n] for n in asked]
        meta["classes"] = asked
        self.vocabulary = Vocabulary(asked, (), asked_groups(meta))
        # value of a pixel -> label
        values = self.VALUES if values is None else values
        values = range(1, len(names) + 1) if values is None else values
        if len(values) != len(names):
            raise ValueError(f"{len(values)} values for {len(names)} classes")
        every = [*values, *ignored, *([] if background is None else [background])]
        if twice := sorted({v for v in every if every.count(v) > 1}):
            raise ValueError(
                f"the values {twice[:_EXAMPLES]} of a mask mean two things: set "
                f"`values`, `background` ({background}) and `ignored` ({ignored}) so "
                "that each value means one."
            )
        self.table = np.full(2**16, _UNKNOWN, np.int16)
        self.table[list(ignored)] = IGNORED
        if background is not None:
            self.table[background] = BACKGROUND
        number = {name: i for i, name in enumerate(asked)}
        self.table[list(values)] = [number.get(n, IGNORED) for n in names]
        self.labelled, self.seed, self.checked = labelled, seed, checked
        super().__init__(*args, metainfo=meta, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One record per image; the labelled ones have a mask, some have been read."""
        folder, records = self._records()
        # which images are labelled, whatever their order on the disk
        number = max(round(self.labelled * len(records)), 1)
        order = np.random.default_rng(self.seed).permutation(len(records))
        for i in order[number:]:
            records[i]["seg_map_path"] = None
        for key, what in (("img_path", "images"), ("seg_map_path", "masks")):
            missing = [r[key] for r in records if r[key] and not Path(r[key]).is_file()]
            if missing:
                raise MaskError(
                    f"{len(missing)} of {len(records)} {what} are not there, e.g. "
                    f"{missing[:_EXAMPLES]}: set data_prefix.{key} and the suffixes."
                )
        for record in records:
            path = Path(record["img_path"])
            record["img_id"] = str(path.relative_to(folder).with_suffix(""))
        # a few, spread over the data set; later ones as they are read
        masks = [r for r in records if r["seg_map_path"]]
        checked = len(masks) if self.checked is None else self.checked
        for record in masks[:: max(len(masks) // max(checked, 1), 1)][:checked]:
            size = displayed_size(record["img_path"])
            label_map(record["seg_map_path"], size, self.table)
        return records

    def _records(self) -> tuple[str, list[dict[str, Any]]]:
        """The folder of the images, and mmdet's records of them."""
        folder = self.data_prefix.get("img_path")
        if not folder or not self.data_prefix.get("seg_map_path"):
            raise ValueError(
                "a SegDataset needs data_prefix=dict(img_path=..., seg_map_path=...), "
                f"the folders of images and masks, got {self.data_prefix}"
            )
        if self.ann_file and not Path(self.ann_file).exists():
            raise FileNotFoundError(
                f"{self.ann_file} is not there: it lists the images, a name in each "
                "line. docs/data.md says what to download."
            )
        # an empty line is no image
        every = super().load_data_list()
        records = [r for r in every if Path(r["img_path"]).name != self.img_suffix]
        # without a list, images of another suffix would be left out in silence
        files = [] if self.ann_file else [*Path(folder).rglob("*.*")]
        left = {f.suffix for f in files if f.suffix.lower() in IMG_EXTENSIONS}
        left -= {Path(f"a{self.img_suffix}").suffix}
        if Path(self.data_prefix["seg_map_path"]).is_relative_to(folder):
            left -= {Path(f"a{self.seg_map_suffix}").suffix}  # masks among them
        if left or not records:
            raise MaskError(
                f"{folder} has {len(records)} images {self.img_suffix}, and files "
                f"{sorted(left)}: set data_prefix.img_path and img_suffix; rename "
                "files, so that all images have one suffix."
            )
        return folder, records

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """One image's record, with ``words`` and the table of its masks."""
        info = super().get_data_info(idx)
        return dict(info, words=self.vocabulary.words, seg_table=self.table)


def displayed_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image as mm reads it: turned as its EXIF says."""
    with Image.open(path) as image:
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
        size = (image.height, image.width)
    return size[::-1] if turned else size


def label_map(path: str, size: tuple[int, int], table: np.ndarray) -> np.ndarray:
    """The labels of a mask: (H, W) int16, in [0, K), BACKGROUND or IGNORED.

    Args:
        path: of the mask.
        size: height and width of its image.
        table: (65536,) int16, the label of each value.

    Raises:
        MaskError: another size, or values without a label.
    """
    values = read_mask(path)
    if values.shape != size:
        raise MaskError(
            f"{path} has {values.shape[1]} x {values.shape[0]} pixels, its image "
            f"{size[1]} x {size[0]}: a mask has the size of its image as it is shown "
            "(turned, where EXIF says so)."
        )
    inside = values.clip(0, len(table) - 1)
    labels = table[inside]
    wrong = (labels == _UNKNOWN) | (inside != values)
    if wrong.any():
        found = np.unique(values[wrong])[:_EXAMPLES].tolist()
        known = np.flatnonzero(table != _UNKNOWN)
        raise MaskError(
            f"{path} has values of no class: {found}, in {int(wrong.sum())} pixels. "
            f"The classes have {known.min()} to {known.max()}, {len(known)} values "
            "with background and ignored ones: set `values`, `background`, `ignored`, "
            "or metainfo.classes."
        )
    return labels


@TRANSFORMS.register_module()
class LoadLabelMap(BaseTransform):
    """Read a sample's mask; all is ignored where the image has no labels.

    In a training before the steps that move pixels, which also move the labels; in a
    test behind them, since predictions have the size of the original.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``gt_seg_map``, (H, W) int16.

        Raises:
            MaskError: as :func:`label_map`.
        """
        size, path = results["ori_shape"][:2], results["seg_map_path"]
        if path is None:
            results["gt_seg_map"] = np.full(size, IGNORED, np.int16)
        else:
            results["gt_seg_map"] = label_map(path, size, results["seg_table"])
        return results


def _split(classes: Sequence[str], unseen: Sequence[str]) -> dict[str, Any]:
    """Classes as a text encoder reads them, in two groups: ``base`` and ``novel``."""
    spelled = {name: _SPELLED.get(name, name.replace("-", " ")) for name in classes}
    novel = tuple(spelled[name] for name in unseen)
    base = tuple(name for name in spelled.values() if name not in novel)
    return dict(as_metainfo(dict(base=base, novel=novel)), classes=(*spelled.values(),))


@DATASETS.register_module()
class VOCSegDataset(SegDataset):
    """Pascal VOC 2012: 20 classes and background; 15 seen, 5 unseen."""

    METAINFO = dict(
        _split(VOCDataset.METAINFO["classes"], VOC_UNSEEN),
        palette=VOCDataset.METAINFO["palette"],
    )


@DATASETS.register_module()
class COCOStuffDataset(SegDataset):
    """COCO-Stuff 164k, ``stuffthingmaps``: 171 classes; 156 seen, 15 unseen."""

    METAINFO = dict(
        _split(CocoSegDataset.METAINFO["classes"], STUFF_UNSEEN),
        palette=CocoSegDataset.METAINFO["palette"],
    )
    VALUES = tuple(i - 1 for i in range(1, 183) if i not in _COCO_GAPS)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **dict(dict(background=None), **kwargs))


@DATASETS.register_module()
class PascalContextDataset(SegDataset):
    """Pascal Context: 59 classes, the rest is not labelled; 49 seen, 10 unseen."""

    METAINFO = _split(
        (
            *("aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird"),
            *("boat", "book", "bottle", "building", "bus", "cabinet", "car", "cat"),
            *("ceiling", "chair", "cloth", "computer", "cow", "cup", "curtain"),
            *("dog", "door", "fence", "floor", "flower", "food", "grass", "ground"),
            *("horse", "keyboard", "light", "motorbike", "mountain", "mouse"),
            *("person", "plate", "platform", "pottedplant", "road", "rock", "sheep"),
            *("shelves", "sidewalk", "sign", "sky", "snow", "sofa", "table", "track"),
            *("train", "tree", "truck", "tvmonitor", "wall", "water", "window"),
            "wood",
        ),
        CONTEXT_UNSEEN,
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        default = dict(background=None, ignored=(0, 255))
        super().__init__(*args, **dict(default, **kwargs))


@DATASETS.register_module()
class ADE20KDataset(SegDataset):
    """ADE20K: 150 classes, 0 is not labelled."""

    METAINFO = dict(
        classes=ADE20KSegDataset.METAINFO["classes"],
        palette=ADE20KSegDataset.METAINFO["palette"],
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        default = dict(background=None, ignored=(0, 255))
        super().__init__(*args, **dict(default, **kwargs))


@DATASETS.register_module()
class ShapesSegDataset(SegDataset):
    """The built-in world's masks: 360 classes and background."""

    METAINFO = dict(
        as_metainfo(shapes.WORLD_360.groups),
        classes=shapes.CLASSES,
        palette=list(shapes.PALETTE),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **dict(dict(ignored=()), **kwargs))


@DATASETS.register_module()
class ShapesHardSegDataset(SegDataset):
    """The hard world's masks: objects and parts, and background.

    Kinds have no pixels: those of a car are not a "vehicle" beside.
    """

    METAINFO = dict(
        {
            f"{group}_classes": tuple(n for n in names if n not in KINDS)
            for group, names in shapes.WORLD_HARD.groups.items()
        },
        classes=shapes.WORLD_HARD.classes[: -len(KINDS)],
        palette=list(shapes.WORLD_HARD.palette[: -len(KINDS)]),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **dict(dict(ignored=()), **kwargs))
