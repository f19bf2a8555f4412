"""The frozen teacher: images, crops, dense maps and captions to vectors."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torchvision.ops import roi_align

from .originals import Originals, find_originals
from .source import CLIPSource
from .text import CLIPTextEncoder

# device -> precision of the tower, whatever the student's is; else float32
PRECISION = {"cuda": torch.float16}


@MODELS.register_module()
class CLIPImageTeacher:
    """Frozen CLIP image encoder, used only in training.

    It is no ``nn.Module``, so that its weights are neither trained nor saved in the
    student's checkpoint. On a GPU it computes in half precision, whatever the student
    does. :class:`CachedTeacher` answers the same from a store.

    Args:
        model, pretrained: see :class:`CLIPSource`.
        batch_size: images that pass the tower at once.
    """

    is_live = True

    def __init__(
        self, model: str, pretrained: str | None = None, batch_size: int = 2048
    ) -> None:
        self.source = CLIPSource(model, pretrained)
        self.batch_size = batch_size
        # the tower is loaded when an image is embedded, and follows it to its device
        self._tower: Any = None
        self._place: tuple[torch.device, torch.dtype] | None = None
        self.text_encoder = CLIPTextEncoder(model, pretrained)
        statistics = self.source.image_statistics()
        self._mean = torch.tensor(statistics["mean"]).view(1, 3, 1, 1)
        self._std = torch.tensor(statistics["std"]).view(1, 3, 1, 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CLIPImageTeacher":
        """One teacher for all copies of a student (moving averages): itself."""
        return self

    def _load(self, device: torch.device) -> Any:
        dtype = PRECISION.get(device.type, torch.float32)
        if (device, dtype) == self._place:
            return self._tower
        # a tower that was rounded is read anew where it has to be exact
        rounded = self._place is not None and self._place[1] != torch.float32
        if self._tower is None or (rounded and dtype == torch.float32):
            self._tower = self.source.load().visual
        own = device.type in PRECISION
        layout = torch.channels_last if own else torch.preserve_format
        self._tower.to(device, dtype, memory_format=layout)
        self._place = device, dtype
        self._mean = self._mean.to(device, non_blocking=True)
        self._std = self._std.to(device, non_blocking=True)
        return self._tower

    def check_heads(self, heads: Mapping[str, Any]) -> None:
        """Raise ValueError for distillation heads whose boxes only a store has."""
        if any("stored" in head.needs.sources for head in heads.values()):
            raise ValueError(
                "'stored' boxes come from a store: use model.teacher.type="
                "'CachedTeacher', or take 'stored' out of the heads' `sources`."
            )

    def for_batch(
        self, inputs: Tensor, samples: SampleList, preprocessor: Any
    ) -> "LiveBatch":
        """The teacher of a student's inputs (B, 3, H, W), as its preprocessor gave.

        Raises:
            ValueError: ``batch_augments`` with samples that have an original.
        """
        shapes = [sample.img_shape for sample in samples]
        pixels = undo_normalisation(preprocessor, inputs, shapes)
        originals = find_originals(preprocessor, samples, pixels)
        return LiveBatch(self, pixels, shapes, originals)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), RGB in [0, 1], of any size -> (N, D) unit vectors."""
        tower = self._load(images.device)
        images = self._normalised(images, _pair(tower.image_size))
        with self._own_precision(images.device):
            embeds = torch.cat([tower(part) for part in images.split(self.batch_size)])
        return F.normalize(embeds.float(), dim=-1)

    @torch.no_grad()
    def embed_images(self, images: Sequence[Tensor]) -> Tensor:
        """B images (3, h, w), RGB in [0, 1], of any sizes -> (B, D) unit vectors."""
        # images of one size are resized together; all pass the tower together
        if len({image.shape for image in images}) > 1:
            size = _pair(self._load(images[0].device).image_size)
            images = [_resized(image[None], size)[0] for image in images]
        return self(torch.stack(list(images)))

    def _normalised(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Images in [0, 1] as the tower takes them, resized if they need it."""
        images = _resized(images, size)
        # the bicubic filter overshoots at edges
        images = (images.clamp(0, 1) - self._mean) / self._std
        return images.to(PRECISION.get(images.device.type, images.dtype))

    @staticmethod
    def _own_precision(device: torch.device) -> AbstractContextManager:
        """Where the tower has a precision of its own, the student's does not matter."""
        own = device.type in PRECISION
        return torch.autocast(device.type, enabled=False) if own else nullcontext()

    @torch.no_grad()
    def embed_dense(self, pixels: Tensor) -> Tensor:
        """Embed patches: (B, 3, H, W), RGB in [0, 1] -> (B, D, h, w) unit vectors.

        The last block is replaced by its values, as in MaskCLIP (Zhou et al.,
        2022, section 3.2), and the position embeddings are interpolated to the
        image's size.

        Raises:
            TypeError: the image tower has no patches.
        """
        # the parts of the tower are used one by one
        tower = self._load(pixels.device)
        if not isinstance(tower, VisionTransformer):
            raise TypeError(
                f"dense patches need an open_clip VisionTransformer, CLIP "
                f"'{self.source.model}' has a {type(tower).__name__}: set `window` "
                "of DenseDistillation, which embeds crops instead."
            )
        # the nearest size that is a multiple of the patches
        patch = tower.patch_size[0]
        height, width = (max(round(n / patch), 1) for n in pixels.shape[-2:])
        images = self._normalised(pixels, (height * patch, width * patch))
        # the tower's own way from tokens to the space that it shares with text
        with self._own_precision(images.device):
            embeds = tower.ln_post(self._patch_values(tower, images))  # (B, hw, C)
            if tower.proj is not None:
                embeds = embeds @ tower.proj
        embeds = F.normalize(embeds.float(), dim=-1)
        # (B, hw, D) -> (B, D, h, w)
        return embeds.transpose(1, 2).unflatten(2, (height, width))

    @staticmethod
    def _patch_values(tower: VisionTransformer, images: Tensor) -> Tensor:
        """Normalised images -> values of the last attention, without its mixing."""
        # patches with position embeddings, interpolated from the tower's own grid
        feats = tower.conv1(images)
        place = tower.positional_embedding
        grid = place[1:].T.unflatten(1, tower.grid_size)[None]
        grid = F.interpolate(grid, feats.shape[-2:], mode="bicubic")
        tokens = (feats + grid).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, hw, C)
        first = (tower.class_embedding + place[0]).expand(len(tokens), 1, -1)
        tokens = tower.ln_pre(torch.cat([first, tokens], 1))
        # all blocks but the last see the whole image
        *blocks, last = tower.transformer.resblocks
        for block in blocks:
            tokens = block(tokens)
        # of query, key and value only the last, and without the class token
        attention = last.attn
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        values = F.linear(last.ln_1(tokens), weight.chunk(3)[2], bias.chunk(3)[2])
        return attention.out_proj(values)[:, 1:]

    @torch.no_grad()
    def embed_crops(
        self,
        pixels: Tensor,
        boxes: Sequence[Tensor],
        scales: Sequence[float] = (1.0, 1.5),
    ) -> Tensor:
        """Embed boxes: the sum over scales of crop embeddings, renormalised.

        The 1x and 1.5x crops are those of ViLD (Gu et al., 2021, section 3.3).

        Args:
            pixels: (B, 3, H, W), RGB in [0, 1].
            boxes: B tensors (n_b, 4), xyxy in pixels of ``pixels``.
            scales: crop sizes relative to the box, about its centre.

        Returns:
            (sum n_b, D) unit vectors, in the order of ``boxes``.
        """
        size = _pair(self._load(pixels.device).image_size)
        its = torch.cat([*boxes]).to(pixels.device, torch.float, non_blocking=True)
        numbers = [i for i, own in enumerate(boxes) for _ in range(len(own))]
        image = torch.tensor(numbers, dtype=torch.float)
        image = image[:, None].to(pixels.device, non_blocking=True)
        # at all scales: (S * R, 5), the image's number first
        limit = max(pixels.shape[-2:])
        scaled = [torch.cat([image, _scale_boxes(its, s, limit)], 1) for s in scales]
        # a black margin, so that a crop at the border does not depend on whether
        # the image was padded for its batch
        framed = F.pad(pixels.float(), (0, 1, 0, 1))
        crops = roi_align(framed, torch.cat(scaled), size, aligned=True)
        # each scale has unit vectors, so that small and large crops count alike
        each = self(crops).unflatten(0, (len(scales), len(its)))
        return F.normalize(each.sum(0), dim=-1)


def _scale_boxes(boxes: Tensor, scale: float, limit: int) -> Tensor:
    """Boxes (n, 4) xyxy, sides clipped to 1 px to ``limit``, then scaled."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).clamp(1, limit) * scale / 2
    return torch.cat([centre - half, centre + half], dim=1)


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (N, 3, H, W) of a size (height, width)."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def undo_normalisation(
    preprocessor: Any, inputs: Tensor, shapes: Sequence[tuple[int, ...]]
) -> Tensor:
    """A student's input (B, 3, H, W) as RGB in [0, 1], with black padding.

    Args:
        preprocessor: the student's.
        inputs: (B, 3, H, W), normalised.
        shapes: height and width of each image without its padding.
    """
    # mmdet's preprocessors say nothing of this in public
    pixels = inputs
    if preprocessor._enable_normalize:
        pixels = pixels * preprocessor.std + preprocessor.mean
    pixels = pixels / 255
    # what the preprocessor fills the padding with is not known here
    size = tuple(pixels.shape[-2:])
    if all(tuple(shape[:2]) == size for shape in shapes):
        return pixels
    # (B, H) and (B, W)
    rows, columns = (
        torch.arange(n) < torch.tensor([shape[side] for shape in shapes])[:, None]
        for side, n in enumerate(size)
    )
    image = rows[:, None, :, None] & columns[:, None, None]
    return pixels * image.to(pixels.device, non_blocking=True)


class LiveBatch(NamedTuple):
    """The answers of a teacher in memory; see :class:`TeacherBatch`.

    Attributes:
        teacher: embeds.
        pixels: (B, 3, H, W), RGB in [0, 1].
        shapes: height and width of each image in ``pixels``, without its padding.
        originals: what is cropped instead of ``pixels``; None: ``pixels``.
    """

    teacher: CLIPImageTeacher
    pixels: Tensor
    shapes: Sequence[tuple[int, ...]]
    originals: Originals | None = None

    def images(self) -> Tensor:
        """As :class:`TeacherBatch`: of an original, the part that the input shows."""
        if self.originals is not None:
            return self.teacher.embed_images(self.originals.windows(self.shapes))
        # without their padding, which would be read as a part of the image
        if {tuple(s[:2]) for s in self.shapes} == {tuple(self.pixels.shape[-2:])}:
            return self.teacher(self.pixels)
        parts = [image[:, : s[0], : s[1]] for image, s in zip(self.pixels, self.shapes)]
        return self.teacher.embed_images(parts)

    def crops(self, boxes: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
        """As :class:`TeacherBatch`.

        Those of an original do not depend on how the input was augmented. Where they
        reach beyond the input, the original goes on; beyond the image all is black.
        """
        if self.originals is None:
            return self.teacher.embed_crops(self.pixels, boxes, scales)
        pixels, boxes = self.originals.pixels, self.originals.boxes(boxes)
        return self.teacher.embed_crops(pixels, boxes, scales)

    def mirrored(self) -> "LiveBatch":
        """The batch of the same inputs mirrored left to right."""
        # the padding stays at the right
        pixels = self.pixels.clone()
        for image, (_, width, *_) in zip(pixels, self.shapes):
            image[..., :width] = image[..., :width].flip(-1)
        originals = self.originals and self.originals.mirrored(self.shapes)
        return self._replace(pixels=pixels, originals=originals)

    def dense(self) -> Tensor:
        """As :class:`TeacherBatch`: of the input itself, originals or not."""
        return self.teacher.embed_dense(self.pixels)

    def captions(self, captions: Sequence[str]) -> Tensor:
        """As :class:`TeacherBatch`."""
        text_encoder = self.teacher.text_encoder
        return text_encoder.embed_prompts(captions, self.pixels.device)

    def stored_boxes(self, index: int) -> Tensor:
        """None: :meth:`CLIPImageTeacher.check_heads` refuses heads that need them."""
        raise ValueError("a live teacher has no stored boxes")
