"""Data sets whose labels and words cannot drift apart."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS

from ..options import COMMA
from ..vocabulary import Vocabulary, as_metainfo, asked_groups
from . import shapes

# OVR-CNN's 48 base and 17 novel classes; the other 15 are in neither
_LISTS = json.loads(Path(__file__).with_name("coco_groups.json").read_text())
COCO_GROUPS: dict[str, tuple[str, ...]] = {g: tuple(n) for g, n in _LISTS.items()}
COCO_BASE, COCO_NOVEL = COCO_GROUPS["base"], COCO_GROUPS["novel"]


class COCOByName(COCO):
    """COCO index whose category ids are in the order of the names asked.

    The stock one has them in the file's order, so label i need not be class i: a
    silent permutation.
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
        # a name that is there twice could belong to either
        by_name: dict[str, list[int]] = {}
        for category in self.dataset["categories"]:
            by_name.setdefault(category["name"], []).append(category["id"])
        wrong = [n for n in cat_names if len(by_name.get(n, ())) != 1]
        if wrong:
            raise ValueError(
                f"{len(wrong)} of {len(cat_names)} classes are not exactly once among "
                f"the categories of the annotation file: {wrong[:5]}. The file has "
                f"{list(by_name)[:5]}, ...; make metainfo.classes and the file agree."
            )
        return [by_name[name][0] for name in cat_names]


@DATASETS.register_module()
class OVCocoDataset(CocoDataset):
    """COCO-format data whose samples carry their vocabulary.

    Each sample has ``words``, per class a tuple of its cleaned name and synonyms; label
    i is ``words[i]`` whatever the order of categories in the file.

    Args:
        vocabulary: which words are asked: ``'all'`` classes of the metainfo, one of
            its groups (``'base'``, ``'novel'``, ...), or a file of
            :meth:`kdeov_mm.vocabulary.Vocabulary.load`.
        synonyms: carry the synonyms of the vocabulary's file too.
        kwargs: those of ``mmdet.CocoDataset``.
    """

    METAINFO = dict(
        CocoDataset.METAINFO,
        base_classes=COCO_BASE,
        novel_classes=COCO_NOVEL,
        base_novel_classes=tuple(
            n for n in CocoDataset.METAINFO["classes"] if n in {*COCO_BASE, *COCO_NOVEL}
        ),
    )
    COCOAPI = COCOByName

    def __init__(
        self,
        *args: Any,
        vocabulary: str | None = None,
        synonyms: bool = False,
        **kwargs: Any,
    ) -> None:
        # mmdet would ask for each of its letters
        if isinstance((kwargs.get("metainfo") or {}).get("classes"), str):
            raise ValueError(f"metainfo.classes is {COMMA}: {kwargs['metainfo']}")
        # the classes are those of the vocabulary, or of the metainfo
        self.synonyms: dict[str, tuple[str, ...]] = {}
        if vocabulary is not None:
            if kwargs.get("metainfo"):
                raise ValueError("give `vocabulary` or `metainfo`, not both")
            kwargs["metainfo"] = self._asked(vocabulary)
        if synonyms and not self.synonyms:
            raise ValueError(
                "synonyms=True needs a vocabulary file that has them, got "
                f"vocabulary={vocabulary!r}"
            )
        self.synonyms = self.synonyms if synonyms else {}
        # a checkpoint keeps the metainfo, and with it what it was trained on
        if self.synonyms:
            kwargs["metainfo"]["synonyms"] = tuple(self.synonyms.values())
        super().__init__(*args, **kwargs)

    def _asked(self, vocabulary: str) -> dict[str, Any]:
        """The metainfo that differs from the class's own."""
        # a file, with classes and synonyms of its own
        if Path(vocabulary).suffix:
            content = Vocabulary.load(vocabulary)
            self.synonyms = dict(zip(content.names, content.words))
            return content.metainfo
        # all classes of the data set, or one of its groups
        if vocabulary == "all":
            return {}
        meta = self.METAINFO
        groups = asked_groups(meta)
        if vocabulary not in groups:
            raise ValueError(
                f"vocabulary is 'all', one of {[*groups]}, or a file such as "
                f"words.txt, got {vocabulary!r}"
            )
        # each class keeps its colour
        names = groups[vocabulary]
        palette = dict(zip(meta["classes"], meta["palette"]))
        return dict(classes=names, palette=[palette[n] for n in names])

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The classes that are asked, in the order of the labels."""
        meta = self.metainfo  # a copy, each time
        words = tuple(self.synonyms.get(name, (name,)) for name in meta["classes"])
        return Vocabulary(tuple(meta["classes"]), words, asked_groups(meta))

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """One image's record, with ``words``."""
        return dict(super().get_data_info(idx), words=self.vocabulary.words)


@DATASETS.register_module()
class ShapesDataset(OVCocoDataset):
    """The built-in world; see :mod:`kdeov_mm.datasets.shapes`."""

    METAINFO = dict(
        as_metainfo(shapes.WORLD_360.groups),
        classes=shapes.CLASSES,
        palette=list(shapes.PALETTE),
    )
