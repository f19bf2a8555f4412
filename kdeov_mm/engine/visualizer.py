"""mmdet's visualizer with names that can be read, and for label maps with gaps."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.font_manager import FontProperties
from mmdet.registry import VISUALIZERS
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData, PixelData

from ..inference.drawing import readable

NOTHING = 2**20  # no class


@VISUALIZERS.register_module()
class NamesVisualizer(DetLocalVisualizer):
    """Draws names in any script, and small images larger, so that they can be read.

    Args:
        min_side: pixels that the longer side of a small image grows to; not where
            there are masks or label maps.
        name, kwargs: those of ``mmdet.DetLocalVisualizer``.
    """

    # mmengine wants to see `name` among the arguments
    def __init__(
        self, name: str = "visualizer", min_side: int = 800, **kwargs: Any
    ) -> None:
        super().__init__(name, **kwargs)
        self.min_side = min_side

    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: DetDataSample | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As the parent's: draw an image (H, W, 3) uint8 RGB and its sample."""
        factor = self.min_side / max(image.shape[:2])
        if factor > 1 and data_sample is not None and _has_boxes_alone(data_sample):
            image = cv2.resize(
                image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC
            )
            data_sample = data_sample.cpu()  # a copy
            for instances in data_sample.values():
                if "bboxes" not in instances:  # none are ignored, say
                    continue
                boxes = getattr(instances.bboxes, "tensor", instances.bboxes)
                instances.bboxes = boxes * factor
        super().add_datasample(name, image, data_sample, *args, **kwargs)

    def draw_texts(
        self, texts: str | list[str], *args: Any, **kwargs: Any
    ) -> DetLocalVisualizer:
        """As the parent's, each text in a font that has its letters."""
        texts = [texts] if isinstance(texts, str) else texts
        written, fonts = zip(*(readable(text, 1) for text in texts))
        kwargs["font_properties"] = [FontProperties(fname=font.path) for font in fonts]
        # matplotlib sets what is between dollars as a formula
        plain = [text.replace("$", r"\$") for text in written]
        return super().draw_texts(plain, *args, **kwargs)


def _has_boxes_alone(sample: DetDataSample) -> bool:
    """Whether all that a sample holds are boxes, without masks."""
    values = sample.values()
    return all(isinstance(v, InstanceData) and "masks" not in v for v in values)


@VISUALIZERS.register_module()
class SegVisualizer(NamesVisualizer):
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
