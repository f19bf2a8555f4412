"""What models that take tensors share: images, texts, and the mm model behind."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoints import load_model
from ..clip import CLIPSource
from ..clip.text import sentences_of
from ..inference.api import KDEOV
from ..models.pixels import filled_part

Texts: TypeAlias = str | Sequence[str] | Tensor
T = TypeVar("T")

MAX_VALUE = 1000  # of a normalised image; a CLIP's are between -3 and 3
SIZE = (640, 640)  # of the images that KDEOV prepares; tensors keep their own


class TensorModel(nn.Module):
    """A student that takes tensors, as the models of the design documents do.

    Images are (B, 3, H, W), RGB floats normalised by the CLIP's mean and std, of any
    size; they are padded to multiples of 32, and the padding is no part of them. Texts
    are sentences, as they are, or tokens (N, context) of the CLIP. A new model is in
    eval mode. The frozen CLIP has no gradient and is no part of the state; it is loaded
    when first needed.

    Attributes:
        student: the mm model; its ``cfg`` is a config as the rest of the package takes.
        kdeov: the same student for files, PIL images and arrays.

    Args:
        model: config of the mm model, without preprocessor and CLIP.
        source: the CLIP of texts and teacher.
        device: where it runs.
    """

    def __init__(
        self, model: dict[str, Any], source: CLIPSource, device: str | torch.device
    ) -> None:
        super().__init__()
        # pixels as the CLIP takes them
        statistics = source.image_statistics()
        mean, std = ([255 * v for v in statistics[key]] for key in ("mean", "std"))
        preprocessor = dict(
            type="DetDataPreprocessor",
            mean=mean,
            std=std,
            bgr_to_rgb=True,
            pad_size_divisor=32,
        )
        # the model, and the part of a config that inference reads
        clip = dict(model=source.model, pretrained=source.pretrained)
        model = dict(
            model,
            data_preprocessor=preprocessor,
            text_encoder=dict(type="CLIPTextEncoder", **clip),
            teacher=dict(type="CLIPImageTeacher", **clip),
        )
        resize = dict(type="Resize", scale=SIZE, keep_ratio=True)
        loader = dict(dataset=dict(pipeline=[resize]))
        config = Config(dict(model=model, test_dataloader=loader))
        self.student = load_model(config, None, str(device))
        self.kdeov = KDEOV(self.student)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.student.parameters()).device

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> unit vectors (B, D), with gradient."""
        inputs, samples = self.prepare(images)
        filled = filled_part(samples).to(inputs.device)
        return self.student.global_head.embed(self.student.extract_feat(inputs), filled)

    def encode_text(self, text: Texts) -> Tensor:
        """N sentences, or tokens (N, context) -> unit vectors (N, D)."""
        return self.kdeov.encode_text(text)

    def tokenize(self, text: str | Sequence[str]) -> Tensor:
        """N sentences -> tokens (N, context); of OpenAI's CLIPs ``clip.tokenize``'s."""
        texts = sentences_of([text] if isinstance(text, str) else text)
        return self.student.text_encoder.source.tokenizer()(texts)

    def teacher_features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> the frozen CLIP's own unit vectors (B, D)."""
        return self.student.teacher_batch(*self.prepare(images)).images()

    def prepare(self, images: Tensor) -> tuple[Tensor, list[DetDataSample]]:
        """Images (B, 3, H, W) -> padded ones on the model's device, and their samples.

        Raises:
            ValueError: no floats, another layout, or no images.
        """
        _check_images(images)
        # zeros at the right and below, as mm's preprocessor pads
        height, width = images.shape[-2:]
        inputs = F.pad(
            images.to(self.device, torch.float32), (0, -width % 32, 0, -height % 32)
        )
        size, padded = (height, width), tuple(inputs.shape[-2:])
        meta = dict(
            img_shape=size,
            ori_shape=size,
            batch_input_shape=padded,
            pad_shape=padded,
            scale_factor=(1.0, 1.0),
        )
        return inputs, [DetDataSample(metainfo=meta) for _ in inputs]


def global_head(dims: int, **projection: Any) -> dict[str, Any]:
    """Config of a global head of D dimensions with the losses of feature alignment."""
    return dict(
        type="GlobalHead",
        projection=dict(type="GlobalProjection", embed_dims=dims, **projection),
        distances=dict(cosine=dict(type="CosineDistance")),
        contrast=dict(type="InfoNCE"),
    )


def choose(what: str, name: Any, choices: Mapping[Any, T]) -> T:
    """The choice of a name.

    Raises:
        ValueError: there is none; names the others.
    """
    if name not in [*choices]:
        raise ValueError(f"{what} is one of {[*choices]}, got {name!r}")
    return choices[name]


def _check_images(images: Any) -> None:
    got = type(images).__name__
    if isinstance(images, Tensor):
        got = f"{images.dtype} of {tuple(images.shape)}"
        right = images.ndim == 4 and images.shape[1] == 3 and images.numel()
        dense = images.layout == torch.strided and not images.is_meta
        if right and dense and images.is_floating_point():
            # normalised values are small; NaN is not below anything
            if images.detach().abs().max() < MAX_VALUE:
                return
            got += " with numbers that are not finite, or far from any normalised image"
    raise ValueError(
        "expected a tensor (B, 3, H, W) of floats normalised by CLIP's mean and std, "
        f"as CLIP's own preprocessing gives them; got {got}. For files and pixels from "
        "0 to 255 use kdeov_mm.KDEOV (the attribute `kdeov` of this model)."
    )
