"""Data sets whose labels and words cannot drift apart."""

from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS

from . import shapes


class COCOByName(COCO):
    """COCO index that returns category ids in the order of the names asked.

    The stock one returns them in the file's order, so label i need not be
    class i: a silent permutation.
    """

    def get_cat_ids(
        self, cat_names: Any = (), sup_names: Any = (), cat_ids: Any = ()
    ) -> list[int]:
        """Ids of ``cat_names``, one each, in that order.

        Raises:
            ValueError: a name is missing from the file, or there twice.
        """
        if not cat_names:
            return super().get_cat_ids(cat_names, sup_names, cat_ids)
        by_name: dict[str, list[int]] = {}
        for category in self.dataset["categories"]:
            by_name.setdefault(category["name"], []).append(category["id"])
        wrong = [n for n in cat_names if len(by_name.get(n, ())) != 1]
        if wrong:
            raise ValueError(
                f"{len(wrong)} of {len(cat_names)} classes are not exactly "
                f"once among the categories of the annotation file: "
                f"{wrong[:5]}. The file has {list(by_name)[:5]}, ...; make "
                "metainfo.classes and the file agree."
            )
        return [by_name[name][0] for name in cat_names]


@DATASETS.register_module()
class OVCocoDataset(CocoDataset):
    """COCO-format data whose samples carry their vocabulary.

    Each sample has ``text``, the tuple of class names; label i is ``text[i]``
    whatever the order of categories in the file.
    """

    COCOAPI = COCOByName

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """One image's record, with ``text``."""
        info = super().get_data_info(idx)
        info["text"] = tuple(self.metainfo["classes"])
        return info


@DATASETS.register_module()
class ShapesDataset(OVCocoDataset):
    """The built-in world; see :mod:`kdeov_mm.datasets.shapes`.

    Args:
        vocabulary: ``'all'`` 360 words, or the 200 ``'base'`` words.
        kwargs: those of ``mmdet.CocoDataset``.
    """

    METAINFO = dict(
        classes=shapes.CLASSES,
        base_classes=shapes.BASE_CLASSES,
        combo_classes=shapes.COMBO_CLASSES,
        novel_classes=shapes.NOVEL_CLASSES,
        palette=list(shapes.PALETTE),
    )

    def __init__(self, *args: Any, vocabulary: str = "all", **kwargs: Any) -> None:
        if vocabulary not in ("all", "base"):
            raise ValueError(f"vocabulary is 'all' or 'base', got {vocabulary!r}")
        if vocabulary == "base":
            colour = dict(zip(shapes.CLASSES, shapes.PALETTE))
            kwargs["metainfo"] = dict(
                classes=shapes.BASE_CLASSES,
                palette=[colour[name] for name in shapes.BASE_CLASSES],
            )
        super().__init__(*args, **kwargs)
