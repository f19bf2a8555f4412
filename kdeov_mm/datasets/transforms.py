"""Pipeline steps that mmdet does not have."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import PackDetInputs
from mmdet.registry import TRANSFORMS
from mmengine.fileio import load

from ..vocabulary import as_vocabulary

# what mmdet keeps by default, and what students and metrics of ours ask for
META_KEYS = (
    *("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    *("flip", "flip_direction", "words", "gt_label", "caption", "captions"),
    *("verified_labels", "not_exhaustive_labels", "label_weights"),  # OVLVISDataset's
)


@TRANSFORMS.register_module()
class PackInputs(PackDetInputs):
    """mmdet's PackDetInputs, which also keeps words, label and captions of a sample.

    Args:
        meta_keys: what the sample keeps, as far as the pipeline made it.
    """

    def __init__(self, meta_keys: Sequence[str] = META_KEYS) -> None:
        super().__init__(tuple(meta_keys))


@TRANSFORMS.register_module()
class LoadWords(BaseTransform):
    """Give samples of any data set their vocabulary.

    For data sets other than :class:`OVCocoDataset`, whose labels index
    ``words`` (mmdet's XML data sets: the words are ``metainfo.classes``).

    Args:
        words: names in label order; a tuple of words are synonyms.
    """

    def __init__(self, words: Sequence[str | Sequence[str]]) -> None:
        if isinstance(words, str) or not words:
            raise ValueError(f"expected a list of words, got {words!r}")
        self.words = as_vocabulary(words).words

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``words``.

        Raises:
            ValueError: a label has no word.
        """
        # else the loss would fail far from here, on a device without a message
        labels = [i["bbox_label"] for i in results.get("instances", ())]
        if any(label >= len(self.words) for label in labels):
            raise ValueError(
                f"{results.get('img_path')} has label {max(labels)}, but "
                f"LoadWords got {len(self.words)} words: give it the "
                "data set's metainfo.classes."
            )
        results["words"] = self.words
        return results


def clean_caption(annotation: Mapping[str, Any]) -> str:
    """A caption in one line: some of COCO's have line breaks."""
    return " ".join(annotation["caption"].split())


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
            sentences = self.captions.setdefault(annotation["image_id"], [])
            sentences.append(clean_caption(annotation))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``caption``.

        Raises:
            ValueError: the image has none.
        """
        # those of the file, or those that the data set gave the sample
        captions = results.get("captions")
        if self.ann_file is not None:
            captions = self.captions.get(results["img_id"])
        if not captions:
            raise ValueError(
                f"image {results['img_id']} ({results.get('img_path')}) has no caption "
                f"in {self.ann_file or 'its data set'}: give LoadCaptions the captions "
                "of this data set, or use CaptionDataset."
            )
        results["caption"] = captions[np.random.randint(len(captions))]
        return results
