"""The frozen teacher: images, crops, dense maps and captions to vectors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torchvision.ops import roi_align

from .source import CLIPSource
from .text import CLIPTextEncoder


@MODELS.register_module()
class CLIPImageTeacher:
    """Frozen CLIP image encoder, used only in training.

    It is no ``nn.Module`` on purpose: its weights are neither trained nor
    saved in the student's checkpoint. It follows its input to the device.
    :class:`kdeov_mm.clip.CachedTeacher` answers the same from a store.

    Args:
        model: see :class:`CLIPSource`.
        pretrained: see :class:`CLIPSource`.
        batch_size: images that pass the tower at once.
    """

    is_live = True

    def __init__(
        self, model: str, pretrained: str | None = None, batch_size: int = 512
    ) -> None:
        self.source = CLIPSource(model, pretrained)
        self.batch_size = batch_size
        self._tower: Any = None
        self._sentences = CLIPTextEncoder(model, pretrained)
        statistics = self.source.image_statistics()
        self._mean = torch.tensor(statistics["mean"]).view(1, 3, 1, 1)
        self._std = torch.tensor(statistics["std"]).view(1, 3, 1, 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CLIPImageTeacher":
        """One teacher for all copies of a student (moving averages): itself."""
        return self

    def _load(self, device: torch.device) -> Any:
        if self._tower is None:
            self._tower = self.source.load().visual
        self._tower.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self._tower

    def check_heads(self, heads: Mapping[str, Any]) -> None:
        """Refuse distillation heads whose boxes only a store has.

        Raises:
            ValueError: names the source, and what to set.
        """
        if any("stored" in head.needs.sources for head in heads.values()):
            raise ValueError(
                "'stored' boxes come from a store: use model.teacher.type="
                "'CachedTeacher', or take 'stored' out of the heads' `sources`."
            )

    def for_batch(
        self, inputs: Tensor, samples: SampleList, preprocessor: Any
    ) -> "LiveBatch":
        """The teacher of a student's inputs.

        Args:
            inputs: (B, 3, H, W), as the student's preprocessor made them.
            samples: B samples.
            preprocessor: the student's, whose normalisation is undone.
        """
        shapes = [sample.img_shape for sample in samples]
        pixels = undo_normalisation(preprocessor, inputs, shapes)
        return LiveBatch(self, pixels, shapes)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (N, 3, H, W), RGB in [0, 1]; resized to the tower's input.

        Returns:
            (N, D) unit vectors.
        """
        tower = self._load(images.device)
        size = _pair(tower.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(
                images, size, mode="bicubic", antialias=True, align_corners=False
            )
        images = (images.clamp(0, 1) - self._mean) / self._std
        embeds = torch.cat([tower(part) for part in images.split(self.batch_size)])
        return F.normalize(embeds.float(), dim=-1)

    def embed_images(self, pixels: Tensor, shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """Embed images without their padding.

        Args:
            pixels: (B, 3, H, W), RGB in [0, 1].
            shapes: height and width of each image in ``pixels``.

        Returns:
            (B, D) unit vectors.
        """
        sizes = [(shape[0], shape[1]) for shape in shapes]
        embeds: dict[int, Tensor] = {}
        for height, width in dict.fromkeys(sizes):
            which = [i for i, size in enumerate(sizes) if size == (height, width)]
            embeds.update(zip(which, self(pixels[which, :, :height, :width])))
        return torch.stack([embeds[i] for i in range(len(sizes))])

    @torch.no_grad()
    def embed_dense(self, pixels: Tensor) -> Tensor:
        """Embed patches: a map in the teacher's space.

        The last block is replaced by its values, as in MaskCLIP (Zhou et al.,
        2022, section 3.2), and the position embeddings are interpolated to the
        image's size.

        Args:
            pixels: (B, 3, H, W), RGB in [0, 1].

        Returns:
            (B, D, h, w), unit vectors at each of the patches.

        Raises:
            TypeError: the image tower is no open_clip ``VisionTransformer``.
        """
        tower = self._load(pixels.device)
        if not isinstance(tower, VisionTransformer):
            raise TypeError(
                f"dense patches need an open_clip VisionTransformer, CLIP "
                f"'{self.source.model}' has a {type(tower).__name__}: set `window` "
                "of DenseDistillation, which embeds crops instead."
            )
        patch = tower.patch_size[0]
        height, width = (max(round(n / patch), 1) for n in pixels.shape[-2:])
        images = F.interpolate(
            pixels, (height * patch, width * patch), mode="bicubic", antialias=True
        )
        images = (images.clamp(0, 1) - self._mean) / self._std
        tokens = self._patch_values(tower, images)  # (B, hw, width of the tower)
        embeds = tower.ln_post(tokens)
        if tower.proj is not None:
            embeds = embeds @ tower.proj
        embeds = F.normalize(embeds.float(), dim=-1)
        return embeds.transpose(1, 2).unflatten(2, (height, width))

    @staticmethod
    def _patch_values(tower: VisionTransformer, images: Tensor) -> Tensor:
        """Normalised images -> values of the last attention, without its mixing."""
        feats = tower.conv1(images)
        place = tower.positional_embedding
        grid = place[1:].T.unflatten(1, tower.grid_size)[None]
        grid = F.interpolate(grid, feats.shape[-2:], mode="bicubic")
        tokens = (feats + grid).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, hw, C)
        first = (tower.class_embedding + place[0]).expand(len(tokens), 1, -1)
        tokens = tower.ln_pre(torch.cat([first, tokens], 1))
        *blocks, last = tower.transformer.resblocks
        for block in blocks:
            tokens = block(tokens)
        attention = last.attn
        values = F.linear(
            last.ln_1(tokens),
            *(
                p.chunk(3)[2]
                for p in (attention.in_proj_weight, attention.in_proj_bias)
            ),
        )
        return attention.out_proj(values)[:, 1:]

    def embed_captions(
        self, captions: Sequence[str], device: torch.device | str = "cpu"
    ) -> Tensor:
        """Embed N sentences as they are: (N, D) unit vectors on ``device``."""
        return self._sentences.embed_prompts(captions, device)

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
        limit = max(pixels.shape[-2:])
        # a black margin, so that a crop at the border does not depend on whether
        # the image was padded for its batch
        framed = F.pad(pixels.float(), (0, 1, 0, 1))
        embeds = [
            self(
                roi_align(
                    framed,
                    [_scale_boxes(b, s, limit) for b in boxes],
                    size,
                    aligned=True,
                )
            )
            for s in scales
        ]
        return F.normalize(torch.stack(embeds).sum(0), dim=-1)


def _scale_boxes(boxes: Tensor, scale: float, limit: int) -> Tensor:
    """Boxes (n, 4) xyxy, sides clipped to 1 px to ``limit``, then scaled."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).clamp(1, limit) * scale / 2
    return torch.cat([centre - half, centre + half], dim=1).float()


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def undo_normalisation(
    preprocessor: Any, inputs: Tensor, shapes: Sequence[tuple[int, ...]]
) -> Tensor:
    """The pixels of a student's input, for the teacher.

    Args:
        preprocessor: the student's.
        inputs: (B, 3, H, W), normalised.
        shapes: height and width of each image without its padding.

    Returns:
        (B, 3, H, W), RGB in [0, 1], the padding black.
    """
    pixels = inputs
    if preprocessor._enable_normalize:
        pixels = pixels * preprocessor.std + preprocessor.mean
    pixels = pixels / 255
    for image, (height, width, *_) in zip(pixels, shapes):
        image[:, height:] = 0
        image[..., width:] = 0
    return pixels


class LiveBatch:
    """The answers of a teacher in memory.

    Args:
        teacher: embeds.
        pixels: (B, 3, H, W), RGB in [0, 1].
        shapes: height and width of each image in ``pixels``, without its padding.
    """

    def __init__(
        self,
        teacher: CLIPImageTeacher,
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
