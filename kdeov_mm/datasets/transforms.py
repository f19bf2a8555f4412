"""Pipeline steps that mmdet does not have."""

from collections.abc import Sequence
from typing import Any

from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS


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
        """Add ``text``.

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
        results["text"] = self.words
        return results
