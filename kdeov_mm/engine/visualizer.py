"""mmdet's visualizer, for label maps in which some pixels are of no class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.registry import VISUALIZERS
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import PixelData

NOTHING = 2**20  # no class


@VISUALIZERS.register_module()
class SegVisualizer(DetLocalVisualizer):
    """Draws the classes of a label map; background and what is not labelled stay."""

    def _draw_sem_seg(
        self,
        image: np.ndarray,
        sem_seg: PixelData,
        classes: Sequence[str] | None,
        palette: Sequence[Any] | None,
    ) -> np.ndarray:
        # mmdet takes negative numbers for classes, counted from the last
        labels = sem_seg.sem_seg.cpu().long()
        labels = labels.masked_fill(labels < 0, NOTHING)
        given = PixelData(sem_seg=labels, metainfo=dict(ignore_index=NOTHING))
        return super()._draw_sem_seg(image, given, classes, palette)
