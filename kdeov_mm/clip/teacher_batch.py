"""The answers of a teacher for one batch: the same live and from a store."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class TeacherBatch(Protocol):
    """The teacher's answers for a batch of B images. All are unit vectors."""

    def images(self) -> Tensor:
        """What the inputs show of the images, without padding: (B, D)."""

    def crops(self, boxes: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
        """Crops of B tensors of boxes (n_b, 4), xyxy in pixels of the padded input.

        The embeddings of the crops at all ``scales``, sizes relative to the box, are
        summed and normalised again: (sum n_b, D), in the order of the boxes.
        """

    def dense(self) -> Tensor:
        """Patches of the padded input: (B, D, h, w)."""

    def captions(self, captions: Sequence[str]) -> Tensor:
        """One caption for each image: (B, D)."""

    def stored_boxes(self, index: int) -> Tensor:
        """An earlier student's boxes (n, 4) in the image of this index."""
