"""ONNX files of a student of masks: words folded in, or as a run-time input."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files import write_whole
from ..models import SegStudent, TextEmbeds
from ..vocabulary import Asked, Words, as_vocabulary
from .export import (
    TOLERANCE,
    add_metadata,
    fix_padding,
    graph_to_onnx,
    metadata,
    random_vectors,
    session_of,
)


class MaskGraph(nn.Module):
    """What is exported of a :class:`SegStudent`: images [and words] -> shares.

    Args:
        model: the student.
        words: K classes; None: their vectors are an input.
    """

    def __init__(self, model: SegStudent, words: Sequence[Words] | None) -> None:
        super().__init__()
        self.model = model
        self.words = words or ()
        self.text = model.embed_words(words, torch.device("cpu")) if words else None

    def forward(self, images: Tensor, vectors: Tensor | None = None) -> Tensor:
        """(B, 3, H, W), (K, D) -> (B, K, H, W), background last where there is one."""
        text = self.text if vectors is None else TextEmbeds(vectors)
        logits = self.model.seg_head(self.model.embed_pixels(images), self.words, text)
        size = images.shape[-2:]
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits.softmax(1)


@torch.no_grad()
def export_masks(
    model: SegStudent,
    path: str | Path,
    words: Asked | None = None,
    size: int | None = None,
) -> float:
    """Write an ONNX file of a student of masks, checked against PyTorch.

    Inputs as of :func:`export_onnx`; the output ``shares`` (B, K, H, W) is each word's
    at each pixel of the input, in [0, 1], one channel more with a background, the last.

    Args:
        model: with its config as ``cfg``.
        path: of the file.
        words: to fold in; None: they are the input ``text``. A closed head has its
            classes.
        size: see :func:`export_onnx`.

    Returns:
        The largest difference of a share.

    Raises:
        ValueError: no words, or onnxruntime's results differ.
    """
    model = copy.deepcopy(model).cpu().eval()
    vocabulary = None if words is None else as_vocabulary(words)
    if vocabulary is None and model.seg_head.classes is not None:
        vocabulary = as_vocabulary(model.seg_head.classes)
    fix_padding(model)
    graph = MaskGraph(model, None if vocabulary is None else vocabulary.words).eval()
    sample = [torch.rand(2, 3, 96, 128)]
    if vocabulary is None:
        sample.append(random_vectors(model, 7))
    graph(*sample)  # words that a closed head does not know are said here
    file = graph_to_onnx(graph, sample, ["shares"])
    # other sizes, batches and words than in the trace
    session, worst = session_of(file.SerializeToString()), 0.0
    for shape, number in (((1, 3, 160, 160), 1), ((3, 3, 64, 224), 33)):
        given = [torch.rand(shape)]
        given += [random_vectors(model, number)] if vocabulary is None else []
        feed = {n: g.numpy() for n, g in zip(("images", "text"), given)}
        difference = np.abs(session.run(None, feed)[0] - graph(*given).numpy()).max()
        worst = max(worst, float(difference))
    if not worst <= TOLERANCE:
        raise ValueError(f"onnxruntime does not say what PyTorch does: {worst}")
    add_metadata(file, metadata(model, vocabulary, size))
    write_whole(Path(path), file.SerializeToString())
    return worst
