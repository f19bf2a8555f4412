"""What a teacher says of one batch: live or from the store, by the same methods."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from .teacher import CLIPImageTeacher


class TeacherBatch(Protocol):
    """The teacher's answers for a batch of B images. All are unit vectors."""

    def images(self) -> Tensor:
        """Whole images without their padding: (B, D)."""

    def crops(self, boxes: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
        """Crops of B tensors of boxes (n_b, 4), xyxy in pixels of the padded input.

        Args:
            boxes: of each image.
            scales: crop sizes relative to the box; the embeddings are summed and
                normalised again.

        Returns:
            (sum n_b, D), in the order of the boxes.
        """

    def dense(self) -> Tensor:
        """Patches of the padded input: (B, D, h, w)."""

    def captions(self, captions: Sequence[str]) -> Tensor:
        """One caption for each image: (B, D)."""

    def stored_boxes(self, index: int) -> Tensor:
        """An earlier student's boxes (n, 4) in the image of this index."""


class LiveBatch:
    """The answers of a teacher in memory.

    Args:
        teacher: embeds.
        pixels: (B, 3, H, W), RGB in [0, 1].
        shapes: height and width of each image in ``pixels``, without its padding.
    """

    def __init__(
        self,
        teacher: "CLIPImageTeacher",
        pixels: Tensor,
        shapes: Sequence[tuple[int, ...]],
    ) -> None:
        self.teacher = teacher
        self.pixels = pixels
        self.shapes = shapes

    def images(self) -> Tensor:
        """As :class:`TeacherBatch`."""
        return self.teacher.embed_images(self.pixels, self.shapes)

    def crops(self, boxes: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
        """As :class:`TeacherBatch`."""
        return self.teacher.embed_crops(self.pixels, boxes, scales)

    def dense(self) -> Tensor:
        """As :class:`TeacherBatch`."""
        return self.teacher.embed_dense(self.pixels)

    def captions(self, captions: Sequence[str]) -> Tensor:
        """As :class:`TeacherBatch`."""
        return self.teacher.embed_captions(captions, self.pixels.device)

    def stored_boxes(self, index: int) -> Tensor:
        """None: a student with such boxes is refused before."""
        raise ValueError("a live teacher has no stored boxes")
