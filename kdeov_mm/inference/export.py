"""ONNX files: the words folded in, or the vocabulary as a run-time input.

Inputs and outputs of the file:

- ``images`` (B, 3, H, W): resized, normalised, padded to multiples of ``stride`` at the
  right and the bottom; how is in the file's metadata.
- ``text`` (K, D): unit vectors of any K classes; only in the vocabulary form.
- ``boxes`` (B, N, 4), xyxy in pixels of the input, and ``scores`` (B, K, N) in [0, 1];
- or, with the suppression in the graph, ``boxes`` (n, 4), ``scores`` (n,), ``labels``
  (n,) and ``image`` (n,), the number in the batch, best first.

``docs/onnx_client.py`` is a client of numpy and onnxruntime alone.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.export import Dim

from .. import __version__
from ..files import write_whole
from ..models import FoldedDetector, KDEOVDetector
from ..models.folded import fuse_before_words, name_labels
from ..models.ov_head import HeadInput
from ..models.postprocess import (
    above,
    best_boxes,
    clipped,
    is_simple,
    least_logit,
    max_boxes,
    rescaled,
)
from ..models.student import merge_synonyms, words_of
from ..models.text_classifier import TextEmbeds
from ..vocabulary import Asked, Vocabulary, as_vocabulary
from .api import test_size

try:
    import onnx
    import onnxruntime
except ImportError as error:
    raise ImportError(
        f"ONNX files need more packages ({error}): pip install 'kdeov_mm[onnx]'"
    ) from error

OPSET = 18
TOLERANCE = 1e-3  # boxes in pixels, scores in [0, 1]
FOLDED, VOCABULARY = "folded", "vocabulary"
# What of all boxes stays: suppression class by class, then the best of each image.
SUPPRESSION = """
<ir_version: 10, opset_import: ["" : 18]>
suppression (
    float[batch, places, 4] all_boxes, float[batch, words, places] all_scores,
    float[1] score_threshold, float[1] iou_threshold, int64[1] most
) => (
    float[found, 4] boxes, float[found] scores, int64[found] labels, int64[found] image
) {
    chosen = NonMaxSuppression(
        all_boxes, all_scores, most, iou_threshold, score_threshold
    )
    score = GatherND(all_scores, chosen)
    zero = Constant<value_ints = [0]>()
    one = Constant<value_ints = [1]>()
    two = Constant<value_ints = [2]>()
    three = Constant<value_ints = [3]>()
    number = Shape(score)
    sorted_scores, order = TopK(score, number)
    rows = Gather(chosen, order)
    of_image = Slice(rows, zero, one, one)
    of_class = Slice(rows, one, two, one)
    of_place = Slice(rows, two, three, one)
    whole = Shape(all_boxes)
    batch_size = Slice(whole, zero, one)
    count = Squeeze(batch_size)
    zero_scalar = Squeeze(zero)
    one_scalar = Squeeze(one)
    numbers = Range(zero_scalar, count, one_scalar)
    is_of = Equal(of_image, numbers)
    counted = Cast<to = 7>(is_of)
    running = CumSum(counted, zero_scalar)
    own = Mul(running, counted)
    rank = ReduceSum<keepdims = 0>(own, one)
    keep = LessOrEqual(rank, most)
    scores = Compress<axis = 0>(sorted_scores, keep)
    kept_image = Compress<axis = 0>(of_image, keep)
    kept_class = Compress<axis = 0>(of_class, keep)
    kept_place = Compress<axis = 0>(of_place, keep)
    where = Concat<axis = 1>(kept_image, kept_place)
    boxes = GatherND(all_boxes, where)
    labels = Squeeze(kept_class, one)
    image = Squeeze(kept_image, one)
}
"""


class Graph(nn.Module):
    """What is exported: images [and words] -> all boxes and scores."""

    def __init__(self, detector: KDEOVDetector | FoldedDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(
        self, images: Tensor, text: Tensor | None = None, owner: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W), (W, D) and (W,) -> (B, N, 4) and (B, K, N)."""
        feats: Any = self.detector.extract_feat(images)
        if text is not None:
            if self.detector.fusion is not None:
                feats = self.detector.fusion(feats, text)
            feats = HeadInput(feats, TextEmbeds(text, owner))
        logits, sides = self.detector.bbox_head(feats)
        scores = torch.cat([level.flatten(2) for level in logits], 2).sigmoid()
        return self.detector.bbox_head.decode(sides), scores


def export_onnx(
    detector: KDEOVDetector,
    path: str | Path,
    words: Asked | None = None,
    nms: bool = False,
    size: int | None = None,
) -> dict[str, float]:
    """Write an ONNX file, checked against the detector in PyTorch.

    Batch, height and width (multiples of 32) are free. With ``words`` they are folded
    in: no text product is left. Without, the vocabulary is the input ``text``.

    Args:
        detector: a trained detector, with its config as ``cfg``; it stays as it is.
        path: of the file.
        words: K words; a tuple of words are synonyms.
        nms: the suppression of ``test_cfg`` is part of the graph.
        size: longer side of the pictures in pixels, for the metadata; None: that of the
            test pipeline in ``detector.cfg``.

    Returns:
        The largest differences to PyTorch: ``boxes`` in pixels, ``scores``.

    Raises:
        ValueError: no words; a suppression that is no plain one, with ``nms``; the
            ``'max'`` of synonyms, without ``words``; or onnxruntime says something
            else than PyTorch.
    """
    if getattr(detector, "cfg", None) is None:
        raise ValueError("the detector has no config: set detector.cfg")
    if nms:
        check_simple(detector.bbox_head.test_cfg)
    if words is None and detector.synonyms == "max":
        raise ValueError(
            "synonyms='max' has several vectors for a class, the input `text` has one: "
            "fold the words in, or export the model with synonyms='mean'."
        )
    vocabulary = None if words is None else as_vocabulary(words)
    if detector.training or next(detector.parameters()).device.type != "cpu":
        detector = copy.deepcopy(detector).cpu().eval()
    graph: Graph
    sample = [torch.rand(2, 3, 96, 128)]
    if vocabulary is None:
        graph = Graph(fuse_before_words(copy.deepcopy(detector)))
        sample.append(_some_words(detector, 7))
    else:
        graph = Graph(detector.fold(vocabulary))
    file = graph_to_onnx(graph, sample)
    worst = _check(file, detector, vocabulary)
    if nms:
        file = with_suppression(file, detector.bbox_head.test_cfg)
    onnx.helper.set_model_props(file, _metadata(detector, vocabulary, nms, size))
    onnx.checker.check_model(file, full_check=True)
    _session(file)
    write_whole(Path(path), file.SerializeToString())
    return worst


def graph_to_onnx(graph: "Graph", sample: Sequence[Tensor]) -> Any:
    """An ONNX model, with outputs ``boxes`` and ``scores``.

    Args:
        graph: what is exported.
        sample: images (B, 3, H, W), and words (K, D) where they are an input: their
            values and sizes do not matter.

    Raises:
        ValueError: a size that should be free became fixed.
    """
    free: list[dict[int, Any]] = [
        {0: Dim("batch"), 2: 32 * Dim("rows"), 3: 32 * Dim("columns")},
        {0: Dim("words")},
    ]
    program = torch.onnx.export(
        graph,
        tuple(sample),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=["images", "text"][: len(sample)],
        output_names=["boxes", "scores"],
        dynamic_shapes=tuple(free[: len(sample)]),
    )
    assert program is not None  # dynamo's exporter returns one
    file = program.model_proto
    for value, sizes in zip(file.graph.input, free):
        fixed = value.type.tensor_type.shape.dim
        if any(not fixed[i].dim_param for i in sizes):
            raise ValueError(
                f"a size of the input {value.name!r} became fixed in the export, which "
                "this model's parts do not allow. Please report the config."
            )
    return file


def _some_words(detector: KDEOVDetector, number: int) -> Tensor:
    """Unit vectors (number, D), of no words."""
    return nn.functional.normalize(
        torch.randn(number, detector.text_encoder.embed_dims)
    )


def _session(file: Any) -> Any:
    return onnxruntime.InferenceSession(
        file.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def _check(
    file: Any, detector: KDEOVDetector, words: Vocabulary | None
) -> dict[str, float]:
    """Differences of the file to the detector, at several sizes, batches and words."""
    session = _session(file)
    worst = dict(boxes=0.0, scores=0.0)
    given: tuple[Tensor, Tensor | None] = (torch.zeros(0), None)
    if words is not None:
        given = detector.embed(words, "cpu")
    for shape, number in (((1, 3, 160, 160), 1), ((3, 3, 64, 224), 33)):
        torch.manual_seed(number)
        images = torch.rand(shape)
        feed = dict(images=images.numpy())
        if words is None:
            given = (_some_words(detector, number), None)
            feed["text"] = given[0].numpy()
        with torch.no_grad():
            expected = Graph(detector)(images, *given)
        for key, one, other in zip(worst, expected, session.run(None, feed)):
            difference = float(np.abs(one.numpy() - other).max())
            worst[key] = float(np.maximum(worst[key], difference))  # NaN stays
    if not all(value <= TOLERANCE for value in worst.values()):
        raise ValueError(
            f"onnxruntime does not say what PyTorch does: differences {worst}, at most "
            f"{TOLERANCE} expected. Nothing was written. Please report the config."
        )
    return worst


def check_simple(test_cfg: Any) -> None:
    """Refuse a config that asks for more than plain suppression.

    Raises:
        ValueError: it does.
    """
    if not is_simple(test_cfg):
        raise ValueError(
            "expected a test_cfg with multi_label=True, nms=dict(type='nms', "
            "iou_threshold=...), max_per_img of at least 1 and no min_bbox_size, got "
            f"{dict(test_cfg)}: change it, or leave the suppression out."
        )


def with_suppression(file: Any, test_cfg: Any) -> Any:
    """The graph, and behind it the suppression of a ``test_cfg``.

    ``nms_pre`` is left out: it spares PyTorch work, which onnxruntime does.
    """
    end = onnx.parser.parse_model(SUPPRESSION)
    constants: dict[str, np.ndarray] = dict(
        score_threshold=np.array([max(test_cfg.get("score_thr", 0), 0)], np.float32),
        iou_threshold=np.array([test_cfg.nms.iou_threshold], np.float32),
        most=np.array([test_cfg.max_per_img], np.int64),
    )
    for name, value in constants.items():
        end.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    inputs = [value for value in end.graph.input if value.name not in constants]
    del end.graph.input[:]
    end.graph.input.extend(inputs)
    end.ir_version = file.ir_version
    start = onnx.compose.add_prefix(file, "detector_", rename_inputs=False)
    pairs = [("boxes", "all_boxes"), ("scores", "all_scores")]
    pairs = [(f"detector_{one}", other) for one, other in pairs]
    return onnx.compose.merge_models(start, end, io_map=pairs)


def _metadata(
    detector: KDEOVDetector,
    words: Vocabulary | None,
    nms: bool,
    size: int | None,
) -> dict[str, str]:
    """What a client needs to know, as strings of JSON."""
    cfg = detector.bbox_head.test_cfg
    names = [own[0] for own in words.words] if words else []
    return {
        key: json.dumps(value)
        for key, value in dict(
            made_by=f"kdeov_mm {__version__}",
            form=VOCABULARY if words is None else FOLDED,
            names=names,
            encoder=detector.text_encoder.made_by,
            embed_dims=detector.text_encoder.embed_dims,
            normalisation=_normalisation(detector.data_preprocessor),
            size=size or test_size(detector.cfg),
            stride=detector.data_preprocessor.pad_size_divisor,
            nms=nms,
            score_threshold=float(cfg.get("score_thr", 0)),
            iou_threshold=float(cfg.nms.get("iou_threshold", 1)),
            max_per_image=int(cfg.max_per_img),
            config=detector.cfg.pretty_text,
        ).items()
    }


def _normalisation(preprocessor: Any) -> dict[str, Any]:
    """What is done to pixels in [0, 255]."""
    used = preprocessor._enable_normalize
    return dict(
        channels="RGB" if preprocessor._channel_conversion else "BGR",
        mean=preprocessor.mean.flatten().tolist() if used else [0.0] * 3,
        std=preprocessor.std.flatten().tolist() if used else [1.0] * 3,
        pad_value=preprocessor.pad_value,
    )


def metadata(session: Any) -> dict[str, Any]:
    """The metadata of a file that :func:`export_onnx` wrote.

    Raises:
        ValueError: another program wrote it.
    """
    found = session.get_modelmeta().custom_metadata_map
    if "made_by" not in found or "kdeov_mm" not in found["made_by"]:
        raise ValueError("this ONNX file was not written by tools/export_onnx.py")
    return {key: json.loads(value) for key, value in found.items()}


@MODELS.register_module()
class ONNXDetector(BaseDetector):
    """An ONNX file as a detector of mmdet: to be evaluated as any other.

    Args:
        file: path of a file of :func:`export_onnx`.
        data_preprocessor: config; that of the model that was exported.
        text_encoder: config of the text encoder, for the vocabulary form.
        test_cfg: thresholds of the suppression, where it is not in the graph.

    Raises:
        ValueError: the file was made from another config.
    """

    def __init__(
        self,
        file: str,
        data_preprocessor: dict[str, Any],
        text_encoder: dict[str, Any],
        test_cfg: Any,
    ) -> None:
        super().__init__(data_preprocessor)
        self.session = onnxruntime.InferenceSession(
            file, providers=["CPUExecutionProvider"]
        )
        self.about = metadata(self.session)
        self.text_encoder = MODELS.build(text_encoder)
        self.test_cfg = test_cfg
        if not self.about["nms"]:
            check_simple(test_cfg)
        own = dict(
            normalisation=_normalisation(self.data_preprocessor),
            encoder=self.text_encoder.made_by,
        )
        for key, value in own.items():
            if self.about[key] != value:
                raise ValueError(
                    f"the file {file} and the config differ in their {key}: "
                    f"{self.about[key]} and {value}. Use the config it was exported "
                    "from."
                )

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """Images (B, 3, H, W) -> samples with boxes, scores and names.

        Raises:
            ValueError: samples that ask for other words than those folded in.
        """
        words = words_of(batch_data_samples)
        names = [own[0] for own in words]
        feed = dict(images=batch_inputs.cpu().numpy())
        if self.about["form"] == VOCABULARY:
            vectors = self.text_encoder([word for own in words for word in own])
            feed["text"] = merge_synonyms(vectors, words, "mean").vectors.numpy()
        elif names != self.about["names"]:
            raise ValueError(
                f"the file answers for {len(self.about['names'])} words, "
                f"{self.about['names'][:3]} ..., the samples ask for {len(names)}, "
                f"{names[:3]} ...: export it for these, or use the vocabulary form."
            )
        said = [torch.from_numpy(array) for array in self.session.run(None, feed)]
        results = []
        for i, sample in enumerate(batch_data_samples):
            meta = sample.metainfo
            if self.about["nms"]:
                boxes, scores, labels = (each[said[3] == i] for each in said[:3])
                boxes = clipped(rescaled(boxes, meta) if rescale else boxes, meta)
                found = InstanceData(bboxes=boxes, scores=scores, labels=labels)
            else:
                cfg = self.test_cfg
                logits = [said[1][i].T.logit()]
                best = above(logits, least_logit(cfg), max_boxes(cfg))
                found = best_boxes(best, said[0][i], meta, cfg, rescale)
            results.append(found)
        name_labels(results, words)
        return self.add_pred_to_datasample(batch_data_samples, results)

    def extract_feat(self, batch_inputs: Tensor) -> Any:
        """Not in the file.

        Raises:
            NotImplementedError: always, as the other two do.
        """
        raise NotImplementedError("an ONNX file only predicts")

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Any:
        """Not in the file."""
        raise NotImplementedError("an ONNX file does not learn")

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any = None) -> Any:
        raise NotImplementedError("an ONNX file only predicts")


def onnx_model(file: str, model: Any) -> dict[str, Any]:
    """The config of a file in the place of the model that it was made from.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the config takes the best of synonyms.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"{file} does not exist: write it with tools/export_onnx.py."
        )
    if model.get("synonyms", "mean") == "max":
        raise ValueError(
            "an ONNX file takes the mean of synonyms, the config their max"
        )
    kept = ("data_preprocessor", "text_encoder", "test_cfg")
    return dict(type="ONNXDetector", file=file, **{key: model[key] for key in kept})
