"""Pipeline steps that mmdet does not have."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmengine.fileio import load


@TRANSFORMS.register_module()
class LoadWords(BaseTransform):
    """Give samples of any data set their vocabulary.

    For data sets other than :class:`OVCocoDataset`, whose labels index
    ``words`` (mmdet's XML data sets: the words are ``metainfo.classes``).

    Args:
        words: names in label order.
    """

    def __init__(self, words: Sequence[str]) -> None:
        if isinstance(words, str) or not words:
            raise ValueError(f"expected a list of words, got {words!r}")
        self.words = tuple(words)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``words``.

        Raises:
            ValueError: a label has no word.
        """
        labels = [i["bbox_label"] for i in results.get("instances", ())]
        if any(label >= len(self.words) for label in labels):
            raise ValueError(
                f"{results.get('img_path')} has label {max(labels)}, but "
                f"LoadWords got {len(self.words)} words: give it the "
                "data set's metainfo.classes."
            )
        results["words"] = tuple((word,) for word in self.words)
        return results


@TRANSFORMS.register_module()
class LoadCaptions(BaseTransform):
    """Give each sample one of its image's captions, another one each time.

    Args:
        ann_file: captions in COCO's format, for the images of the data set; None for
            those of :class:`CaptionDataset`.
    """

    def __init__(self, ann_file: str | None = None) -> None:
        self.ann_file = ann_file
        self.captions: dict[Any, list[str]] = {}
        for annotation in load(ann_file)["annotations"] if ann_file else ():
            texts = self.captions.setdefault(annotation["image_id"], [])
            texts.append(" ".join(annotation["caption"].split()))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``caption``.

        Raises:
            ValueError: the image has none.
        """
        if self.ann_file is None:
            texts = results.get("captions")
        else:
            texts = self.captions.get(results["img_id"])
        if not texts:
            raise ValueError(
                f"image {results['img_id']} ({results.get('img_path')}) has no caption "
                f"in {self.ann_file or 'its data set'}: give LoadCaptions the captions "
                "of this data set, or use CaptionDataset."
            )
        results["caption"] = texts[np.random.randint(len(texts))]
        return results
