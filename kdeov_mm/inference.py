"""Images and words -> boxes, names, drawings."""

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.visualization import Visualizer
from PIL import Image, ImageOps
from torch import Tensor

from .models import KDEOVDetector
from .vocabulary import Vocabulary, Words


@dataclass
class Detections:
    """What was found in one image.

    Attributes:
        path: the file.
        sample: mmdet's sample, boxes xyxy in pixels of the file's image, with
            ``label_names``; None where the file could not be read.
        error: why it could not be read.
    """

    path: Path
    sample: DetDataSample | None = None
    error: str | None = None


def load_model(
    config: str | Path | Config, checkpoint: str | Path, device: str = "cpu"
) -> Any:
    """Build a trained model for inference; ``model.cfg`` is its config.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is of another model: most weights are missing.
    """
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(
            f"checkpoint {checkpoint} does not exist; train one with "
            "tools/train.py, or run `make demo`."
        )
    if not isinstance(config, Config):
        config = Config.fromfile(config, lazy_import=False)
    init_default_scope(config.get("default_scope", "mmdet"))
    if config.model.backbone.get("init_cfg"):  # its weights come with the checkpoint
        config = copy.deepcopy(config)
        config.model.backbone.init_cfg = None
    model = revert_sync_batchnorm(MODELS.build(config.model))
    content = load_checkpoint(model, str(checkpoint), map_location="cpu")
    own, held = model.state_dict(), content.get("state_dict", content)
    missing = [key for key in own if key not in held]
    if len(missing) > len(own) / 2:
        raise ValueError(
            f"{checkpoint} is of another model: {len(missing)} of the {len(own)} "
            f"weights that the config asks for are missing, e.g. {missing[:3]}"
        )
    model.dataset_meta = content.get("meta", {}).get("dataset_meta", {})
    model.cfg = config
    return model.to(device).eval()


def read_image(path: str | Path) -> np.ndarray:
    """Read any picture as (H, W, 3) uint8 BGR, mm's channel order.

    Gray, palette, 16-bit and transparent pictures are converted (transparency
    on white), EXIF orientation is applied.

    Raises:
        OSError: the file is missing, no picture, or ends early; names it.
    """
    try:
        with Image.open(path) as file:
            return to_bgr(file)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"cannot read image {path}: {error}") from error


def to_bgr(picture: Image.Image) -> np.ndarray:
    """Any PIL picture as (H, W, 3) uint8 BGR; see :func:`read_image`."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits of gray
        gray = np.asarray(picture).astype(np.float64) / 257
        picture = Image.fromarray(gray.clip(0, 255).astype(np.uint8))
    if "A" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture)
    return np.ascontiguousarray(np.asarray(picture.convert("RGB"))[..., ::-1])


@torch.no_grad()
def detect(
    model: KDEOVDetector,
    paths: Sequence[str | Path],
    words: Sequence[Words] | Vocabulary,
) -> Iterator[Detections]:
    """Find words in images, one result per path, in order.

    A file that cannot be read is logged, yields a result with ``error``, and
    the rest goes on.

    Args:
        model: from :func:`load_model`.
        paths: image files.
        words: any words; their number and order do not matter. A tuple of words are
            synonyms of the first one, as in a :class:`Vocabulary`.
    """
    if isinstance(paths, (str, Path)) or isinstance(words, str):
        raise ValueError("expected lists of paths and of words, got a single one")
    if isinstance(words, Vocabulary) and words.vectors:
        model.text_encoder.take(words)
    text = words.text if isinstance(words, Vocabulary) else tuple(words)
    pipeline = Compose(
        [
            dict(type="mmdet.LoadImageFromNDArray"),
            *(
                step
                for step in model.cfg.test_dataloader.dataset.pipeline
                if "Load" not in step["type"]  # pixels and words are at hand
            ),
        ]
    )
    for path in map(Path, paths):
        try:
            data = _prepare(pipeline, path, text)
        except OSError as error:
            print_log(str(error), "current", level=40)
            yield Detections(path, error=str(error))
            continue
        sample = model.test_step(pseudo_collate([data]))[0]
        yield Detections(path, sample)


def _prepare(pipeline: Compose, path: Path, text: tuple[Words, ...]) -> dict:
    """Read and resize; OSError names the file when either cannot be done."""
    image = read_image(path)
    try:
        return pipeline(dict(img=image, img_id=0, img_path=str(path), text=text))
    except cv2.error as error:  # a side of less than a pixel
        raise OSError(
            f"cannot resize image {path}, {image.shape[1]} x "
            f"{image.shape[0]} px: {error}"
        ) from error


def draw(
    image: np.ndarray,
    sample: DetDataSample,
    names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    marked: Collection[str] = (),
    mark: str = " (novel)",
    score_threshold: float = 0.3,
    side: int = 800,
) -> np.ndarray:
    """Draw ground truth (left, where the sample has it) and predictions.

    Args:
        image: (H, W, 3) uint8 RGB.
        sample: boxes in pixels of ``image``; labels index ``names``.
        names: class names.
        palette: an RGB colour per class.
        marked: names to write with ``mark``.
        score_threshold: predictions below are not drawn.
        side: the longer side of the picture, in pixels; small images grow.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    factor = max(side / max(image.shape[:2]), 1)
    large = np.asarray(
        Image.fromarray(image).resize(
            [max(round(n * factor), 1) for n in image.shape[1::-1]],
            Image.Resampling.BICUBIC,
        )
    )
    panels = []
    for key in ("gt_instances", "pred_instances"):
        if key not in sample:
            continue
        found = sample.get(key).cpu()
        if "scores" in found:
            found = found[found.scores >= score_threshold]
        titles = [names[i] + (mark if names[i] in marked else "") for i in found.labels]
        if "scores" in found:
            titles = [f"{t} {s:.2f}" for t, s in zip(titles, found.scores)]
        colors = [tuple(palette[i]) for i in found.labels]
        boxes = torch.as_tensor(found.bboxes) * factor
        panels.append(_draw_boxes(large, boxes, titles, colors))
    return np.concatenate(panels, 1)


def _draw_boxes(
    image: np.ndarray, boxes: Tensor, titles: list[str], colors: list[tuple]
) -> np.ndarray:
    """A copy of the image with boxes (n, 4), xyxy pixels, and their titles."""
    visualizer = Visualizer(image=image)
    if len(boxes):
        visualizer.draw_bboxes(boxes, edge_colors=colors, line_widths=3)
        visualizer.draw_texts(
            titles,
            boxes[:, :2] + 2,
            font_sizes=13,
            colors="white",
            bboxes=dict(facecolor="black", alpha=0.7, pad=1.5, edgecolor="none"),
        )
    return visualizer.get_image()
