"""Whole images: captions, folders of classes, objects cut out of their images."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmcv.transforms import BaseTransform
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.dataset import BaseDataset
from mmengine.fileio import load
from open_clip import IMAGENET_CLASSNAMES
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from ..vocabulary import Vocabulary, clean_name
from .coco import OVCocoDataset, ShapesDataset
from .lvis import OVLVISDataset
from .transforms import clean_caption

# CLIP's names of ImageNet's classes, of which two are there twice
IMAGENET = tuple(
    {744: "projectile", 836: "sunglass"}.get(i, name)
    for i, name in enumerate(IMAGENET_CLASSNAMES)
)


@DATASETS.register_module()
class CaptionDataset(BaseDataset):
    """Images with their captions, in COCO's format: five each in COCO itself.

    Each sample has ``captions``, a tuple of sentences.

    Args:
        ann_file: JSON with ``images`` and ``annotations`` of ``image_id`` and
            ``caption``.
        data_prefix: ``img`` is the folder of the images.
        ids_file: only these images, see :func:`read_ids`; None for all. Karpathy's
            test images are part of COCO's train2017: a training leaves them out.
        exclude: leave these out, and take all others.
        split: of a Karpathy file.
        kwargs: those of ``mmengine.dataset.BaseDataset``.

    Raises:
        ValueError: a caption without an image, an image without a caption, or ids of
            images that the file does not list.
    """

    def __init__(
        self,
        *args: Any,
        ids_file: str | None = None,
        exclude: bool = False,
        split: str = "test",
        **kwargs: Any,
    ) -> None:
        self.ids = read_ids(ids_file, split) if ids_file else None
        self.ids_file = ids_file
        self.exclude = exclude
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One record per image."""
        content = self._selected(load(self.ann_file))
        # image id -> its captions
        captions: dict[Any, list[str]] = {i["id"]: [] for i in content["images"]}
        for annotation in content["annotations"]:
            if annotation["image_id"] not in captions:
                raise ValueError(
                    f"{self.ann_file}: caption {annotation.get('id')} is of image "
                    f"{annotation['image_id']}, which the file does not list"
                )
            captions[annotation["image_id"]].append(clean_caption(annotation))
        # an image without a caption could not be trained on, nor found
        if silent := [i for i, sentences in captions.items() if not any(sentences)]:
            raise ValueError(
                f"{self.ann_file}: {len(silent)} images have no caption, e.g. "
                f"{silent[:5]}: leave them out of `images`."
            )
        # mmengine writes the prefix img as img_path
        folder = Path(self.data_prefix.get("img_path", self.data_prefix.get("img", "")))
        return [
            dict(
                img_id=image["id"],
                img_path=str(folder / image["file_name"]),
                height=image.get("height"),
                width=image.get("width"),
                captions=tuple(filter(None, captions[image["id"]])),
            )
            for image in content["images"]
        ]

    def _selected(self, content: dict[str, Any]) -> dict[str, Any]:
        """The images of ``ids_file`` alone, or all others, with their captions."""
        if self.ids is None:
            return content
        listed = {image["id"] for image in content["images"]}
        # a gallery that lacks images would be an easier one
        missing = self.ids - listed
        if missing and not self.exclude:
            raise ValueError(
                f"{len(missing)} of the {len(self.ids)} images of {self.ids_file} are "
                f"not in {self.ann_file}, e.g. {sorted(missing)[:5]}: Karpathy's test "
                "images are those of captions_val2014.json."
            )
        kept = listed - self.ids if self.exclude else self.ids
        return dict(
            images=[i for i in content["images"] if i["id"] in kept],
            annotations=[
                a
                for a in content["annotations"]
                if a["image_id"] in kept or a["image_id"] not in listed
            ],
        )


def read_ids(file: str | Path, split: str = "test") -> set[int]:
    """Ids of images.

    Args:
        file: a text file with one id per line; a JSON list of ids; or Karpathy's
            ``dataset_coco.json`` (Karpathy and Fei-Fei, 2015), ``images`` with
            ``cocoid`` and ``split``.
        split: of Karpathy's file, e.g. ``'test'``, 5,000 images.

    Raises:
        ValueError: the file is none of these, or has no image of that split.
    """
    path = Path(file)
    try:
        if path.suffix != ".json":
            return {int(line) for line in path.read_text().split()}
        content = load(str(path))
        if isinstance(content, list):
            return {int(i) for i in content}
        splits = {image["split"] for image in content["images"]}
        ids = {int(i["cocoid"]) for i in content["images"] if i["split"] == split}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: expected one id per line, a JSON list of ids, or Karpathy's "
            f"dataset_coco.json ({type(error).__name__}: {error})"
        ) from error
    if not ids:
        raise ValueError(
            f"{file} has no image of split {split!r}, only {sorted(splits)}"
        )
    return ids


@DATASETS.register_module()
class ImageFolderDataset(BaseDataset):
    """A folder with a folder of images for each class: ImageNet's layout.

    Each sample has ``gt_label`` and ``words``, those of all classes.

    Args:
        data_root: the folder, whose folders are the classes.
        vocabulary: the words of the folders: a list, a file of
            :meth:`Vocabulary.load`, or ``'imagenet-1k'``, CLIP's names of its classes.
            Those that are the folders' names are matched by name (of WordNet's ids,
            ``n01440764``, the synonyms are the words), others by the folders'
            alphabetical order. None: the folders' own names.
        synonyms: carry the synonyms of the vocabulary's file too.
        kwargs: those of ``mmengine.dataset.BaseDataset``.

    Raises:
        ValueError: the vocabulary does not fit the folders.
        FileNotFoundError: no folder of classes, or a class without an image.
    """

    def __init__(
        self,
        data_root: str,
        vocabulary: str | Sequence[str] | None = None,
        synonyms: bool = False,
        **kwargs: Any,
    ) -> None:
        folders, self._index = find_classes(data_root)
        classes = _vocabulary(vocabulary, folders)
        if len(classes) != len(folders):
            raise ValueError(
                f"{data_root} has {len(folders)} folders ({folders[:3]}, ...), the "
                f"vocabulary {len(classes)} words: give one word per folder, in the "
                "folders' alphabetical order, or their names."
            )
        self.words = (classes if synonyms else classes.without_synonyms()).words
        meta = dict(classes.metainfo, folders=tuple(folders))
        super().__init__(
            metainfo={**meta, **(kwargs.pop("metainfo", None) or {})},
            data_root=data_root,
            data_prefix=dict(img=""),
            **kwargs,
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """One record per image."""
        files = make_dataset(self.data_root, self._index, IMG_EXTENSIONS)
        return [
            dict(
                img_id=str(Path(path).relative_to(self.data_root)),
                img_path=path,
                gt_label=label,
                words=self.words,
            )
            for path, label in files
        ]


def _vocabulary(
    vocabulary: str | Sequence[str] | None, folders: list[str]
) -> Vocabulary:
    """The classes of folders, in their order."""
    if vocabulary == "imagenet-1k":
        return Vocabulary(IMAGENET)
    if isinstance(vocabulary, str):
        classes = Vocabulary.load(vocabulary)
    else:
        classes = Vocabulary(tuple(vocabulary or folders))
    # words that are no folder's name belong to the folders by their order
    place = {clean_name(name): i for i, name in enumerate(classes.names)}
    wanted = [clean_name(folder) for folder in folders]
    if not {*place} & {*wanted}:
        return classes
    if {*place} != {*wanted}:
        raise ValueError(
            "some words are the folders' names, and some are not: "
            f"{sorted({*place} ^ {*wanted})[:6]}. Give the folders' names, or other "
            "words in the folders' alphabetical order."
        )
    classes = classes.select([place[name] for name in wanted])
    # WordNet's ids are no words: their synonyms are
    synonyms = tuple(words[1:] for words in classes.words)
    if all(synonyms) and all(re.fullmatch(r"n\d{8}", folder) for folder in folders):
        return Vocabulary(tuple(words[0] for words in synonyms), synonyms)
    return classes


@DATASETS.register_module()
class CropDataset(OVCocoDataset):
    """The boxes of a detection data set as images of one object each.

    Each sample has ``gt_label``, ``words`` and ``crop``, the box xyxy in pixels that
    :class:`CropToBox` cuts out. Boxes smaller than ``min_size`` and crowds are left
    out.

    Args:
        min_size: pixels of the shorter side, at least.
        kwargs: those of :class:`OVCocoDataset`.
    """

    def __init__(self, *args: Any, min_size: float = 1.0, **kwargs: Any) -> None:
        self.min_size = min_size
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One record per box."""
        records = []
        for image in super().load_data_list():
            for i, box in enumerate(image.pop("instances")):
                # crowds are several objects
                x1, y1, x2, y2 = box["bbox"]
                if box["ignore_flag"] or min(x2 - x1, y2 - y1) < self.min_size:
                    continue
                record = dict(image, img_id=f"{image['img_id']}/{i}")
                record.update(crop=tuple(box["bbox"]), gt_label=box["bbox_label"])
                records.append(record)
        return records

    def filter_data(self) -> list[dict[str, Any]]:
        """All of them: mmdet would drop records without ``instances``."""
        return self.data_list


@DATASETS.register_module()
class ShapesCrops(CropDataset, ShapesDataset):
    """The objects of the built-in world, one by one."""


@DATASETS.register_module()
class LVISCrops(CropDataset, OVLVISDataset):
    """The objects of LVIS, one by one."""


@TRANSFORMS.register_module()
class CropToBox(BaseTransform):
    """Cut the sample's ``crop`` out of its image."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replace the image; whole pixels, at least one."""
        height, width = results["img"].shape[:2]  # (H, W, 3)
        # a box of a fraction of a pixel keeps the pixel that it begins in
        x1, y1, x2, y2 = (round(side) for side in results["crop"])
        x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
        part = results["img"][y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
        results["img"] = part
        results["img_shape"] = results["ori_shape"] = part.shape[:2]
        return results
