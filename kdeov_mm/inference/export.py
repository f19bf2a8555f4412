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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from mmcv.cnn.utils import fuse_conv_bn
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.export import Dim

from ..files import write_whole
from ..models import FoldedDetector, HeadInput, KDEOVDetector, TextEmbeds, words_of
from ..models.folded import describe, fuse_before_words
from ..models.pixels import as_if_alone
from ..models.postprocess import (
    above,
    best_boxes,
    best_words,
    clipped,
    is_agnostic,
    is_simple,
    least_logit,
    max_boxes,
    peaks,
    rescaled,
    set_suppression,
    suppresses,
)
from ..models.student import Student
from ..vocabulary import Asked, Vocabulary, as_vocabulary
from .api import input_scale, normalisation

try:
    import onnx
    import onnxruntime
except ImportError as error:
    raise ImportError(
        f"ONNX files need more packages ({error}): pip install 'kdeov_mm[onnx]'"
    ) from error

OPSET = 18
TOLERANCE = 1e-3  # boxes in pixels, scores in [0, 1]
NOISE = 3  # times what float32's rounding changes in PyTorch, beside the tolerance
FOLDED, VOCABULARY = "folded", "vocabulary"
# Which of all boxes remain: suppression class by class, then the best of each image.
# rows (n, 3): image, class, location; rank (n,): of a box among those of its image.
SUPPRESSION = """
<ir_version: 10, opset_import: ["" : 18]>
suppression (
    float[batch, places, 4] all_boxes, float[batch, words, places] all_scores,
    float[1] score_threshold, float[1] iou_threshold, int64[1] limit
) => (
    float[found, 4] boxes, float[found] scores, int64[found] labels, int64[found] image
) {
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    last_axis = Constant<value_ints = [1]>()
    image_and_location = Constant<value_ints = [0, 2]>()
    off_and_on = Constant<value_ints = [0, 1]>()
    chosen = NonMaxSuppression(
        all_boxes, all_scores, limit, iou_threshold, score_threshold
    )
    chosen_scores = GatherND(all_scores, chosen)
    number = Shape(chosen_scores)
    sorted_scores, order = TopK(chosen_scores, number)
    rows = Gather(chosen, order)
    image_of_row = Gather<axis = 1>(rows, zero)
    batch_size = Shape<start = 0, end = 1>(all_boxes)
    is_of = OneHot(image_of_row, batch_size, off_and_on)
    counted = CumSum(is_of, zero)
    own = Mul(counted, is_of)
    rank = ReduceSum<keepdims = 0>(own, last_axis)
    keep = LessOrEqual(rank, limit)
    scores = Compress<axis = 0>(sorted_scores, keep)
    kept = Compress<axis = 0>(rows, keep)
    image = Gather<axis = 1>(kept, zero)
    labels = Gather<axis = 1>(kept, one)
    where = Gather<axis = 1>(kept, image_and_location)
    boxes = GatherND(all_boxes, where)
}
"""

# Across words: of each place its best word alone takes part.
ACROSS_WORDS = {
    "    chosen = ": """    best = ReduceMax<keepdims = 1>(all_scores, last_axis)
    words_of_places = ArgMax<axis = 1, keepdims = 0>(all_scores)
    chosen = """,
    "all_boxes, all_scores, limit": "all_boxes, best, limit",
    "GatherND(all_scores, chosen)": "GatherND(best, chosen)",
    "    labels = Gather<axis = 1>(kept, one)\n": "",
    "    boxes = GatherND": """    labels = GatherND(words_of_places, where)
    boxes = GatherND""",
}


# With nms=None: the best of each image, word and place.
BEST = """
<ir_version: 10, opset_import: ["" : 18]>
best_of_each (
    float[batch, places, 4] all_boxes, float[batch, words, places] all_scores,
    float[1] score_threshold, int64[1] limit
) => (
    float[found, 4] boxes, float[found] scores, int64[found] labels, int64[found] image
) {
    one = Constant<value_ints = [1]>()
    flat = Flatten<axis = 1>(all_scores)
    all = Shape<start = 1, end = 2>(flat)
    number = Min(limit, all)
    best, where = TopK(flat, number)
    enough = Greater(best, score_threshold)
    rows = NonZero(enough)
    image_and_rank = Transpose<perm = [1, 0]>(rows)
    of_image = GatherND(best, image_and_rank)
    found_number = Shape(of_image)
    scores, order = TopK(of_image, found_number)
    kept = Gather(image_and_rank, order)
    index = GatherND(where, kept)
    places = Shape<start = 1, end = 2>(all_boxes)
    labels = Div(index, places)
    place = Mod(index, places)
    zero = Constant<value_int = 0>()
    image = Gather<axis = 1>(kept, zero)
    columns = Unsqueeze(image, one)
    place_columns = Unsqueeze(place, one)
    image_and_place = Concat<axis = 1>(columns, place_columns)
    boxes = GatherND(all_boxes, image_and_place)
}
"""

# Where the scores are those of some of the words: which these are.
SOME_WORDS = {
    ", int64[1] limit\n": """, int64[1] limit,
    int64[batch, words] of_words
""",
    "    labels = Div(index, places)\n": "    row = Div(index, places)\n",
    "    boxes = GatherND": """    row_columns = Unsqueeze(row, one)
    image_and_row = Concat<axis = 1>(columns, row_columns)
    labels = GatherND(of_words, image_and_row)
    boxes = GatherND""",
}


class Graph(nn.Module):
    """What is exported: images [and text embeddings] -> all boxes and scores.

    Args:
        detector: whose graph it is.
        one_each: scores are 0 but for those of :func:`peaks`.
        words: n, for scores of the :func:`best_words` of each image alone; less than K.
    """

    def __init__(
        self,
        detector: KDEOVDetector | FoldedDetector,
        one_each: bool = False,
        words: int | None = None,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.one_each = one_each
        self.words = words
        self.outputs = ["boxes", "scores", *([] if words is None else ["words"])]

    def forward(
        self, images: Tensor, vectors: Tensor | None = None, owner: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """(B, 3, H, W), (W, D) and (W,) -> (B, N, 4) and (B, K, N).

        With ``words``: (B, n, N), and (B, n) the word of each.
        """
        feats: Any = self.detector.extract_feat(images)
        if vectors is not None:
            text = TextEmbeds(vectors, owner)
            feats = HeadInput(self.detector.fused(feats, text), text)
        logits, sides = self.detector.bbox_head(feats)
        which: list[Tensor] = []
        if self.words is not None:
            logits, *which = best_words(logits, self.words)
        if self.one_each:
            pairs = zip(logits, peaks(logits))
            logits = [level.masked_fill(~kept, -torch.inf) for level, kept in pairs]
        scores = torch.cat([level.flatten(2) for level in logits], 2).sigmoid()
        return self.detector.bbox_head.decode(sides), scores, *which


class FixedPadding(nn.Module):
    """A ``Conv2dAdaptivePadding`` (EfficientNet's) for sizes that its stride divides.

    Its padding is the same for all of these, and is not computed in the graph: the
    exporter does not come to an end with it.

    Args:
        conv: the convolution.
    """

    def __init__(self, conv: Conv2dAdaptivePadding) -> None:
        super().__init__()
        self.conv = conv
        # with h / s steps of s pixels the last window ends k - s pixels after h
        sizes = zip(conv.kernel_size, conv.dilation, conv.stride)
        rows, columns = (max(d * (k - 1) + 1 - s, 0) for k, d, s in sizes)
        self.margins = (columns // 2, -(-columns // 2), rows // 2, -(-rows // 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        conv = self.conv
        more = conv.stride, conv.padding, conv.dilation, conv.groups
        return F.conv2d(F.pad(x, self.margins), conv.weight, conv.bias, *more)


def fix_padding(graph: nn.Module) -> None:
    """Put :class:`FixedPadding` about all convolutions that need it, in place."""
    for module in [*graph.modules()]:
        for name, child in module.named_children():
            if isinstance(child, Conv2dAdaptivePadding):
                setattr(module, name, FixedPadding(child))


def export_onnx(
    detector: KDEOVDetector,
    path: str | Path,
    words: Asked | None = None,
    nms: bool = False,
    size: int | None = None,
    agnostic: bool = False,
) -> dict[str, float]:
    """Write an ONNX file, checked against the detector in PyTorch.

    Batch, height and width (multiples of 32) are free. With ``words`` they are folded
    in: no text product is left. Without, the vocabulary is the input ``text``.

    Args:
        detector: a trained detector, with its config as ``cfg``; it stays as it is.
        path: of the file.
        words: see :func:`kdeov_mm.vocabulary.as_vocabulary`.
        nms: the suppression of ``test_cfg`` is part of the graph.
        size: longer side of the images in pixels, for the metadata; None: that of the
            test pipeline in ``detector.cfg``.
        agnostic: suppress across words; False: as ``test_cfg`` says.

    Returns:
        The largest differences to PyTorch: ``boxes`` in pixels, ``scores``.

    Raises:
        ValueError: no words; a suppression that is no plain one, with ``nms``; the
            ``'max'`` of synonyms, without ``words``; or onnxruntime's results differ.
    """
    if getattr(detector, "cfg", None) is None:
        raise ValueError("the detector has no config: set detector.cfg")
    test_cfg = _checked_cfg(detector, words, nms, agnostic)
    # traced on the CPU, in a copy where the detector is elsewhere
    vocabulary = None if words is None else as_vocabulary(words)
    if detector.training or next(detector.parameters()).device.type != "cpu":
        detector = copy.deepcopy(detector).cpu().eval()
    one_each = not suppresses(test_cfg)
    # the graph, traced with images and, where they are an input, vectors of any words
    sample = [torch.rand(2, 3, 96, 128)]
    if vocabulary is None:
        graph = Graph(fuse_before_words(copy.deepcopy(detector)), one_each)
        sample.append(random_vectors(detector, 7))
    else:
        # peaks cost much, and where they are part of the file it has few words' alone
        most = test_cfg.max_per_img
        fewer = most if nms and one_each and most < len(vocabulary.words) else None
        graph = Graph(detector.fold(vocabulary), one_each, fewer)
    fix_padding(graph)
    file = graph_to_onnx(graph, sample, graph.outputs)
    # nothing is written that says something else than PyTorch
    worst = _check(file, detector, vocabulary, one_each)
    if nms:
        file = with_suppression(file, test_cfg)
    suppression = _suppression_of(test_cfg, nms)
    props = metadata(detector, vocabulary, size, **suppression)
    add_metadata(file, props)
    onnx.checker.check_model(file, full_check=True)
    session_of(file.SerializeToString())
    write_whole(Path(path), file.SerializeToString())
    return worst


def _checked_cfg(
    detector: KDEOVDetector, words: Asked | None, nms: bool, agnostic: bool
) -> Any:
    """The ``test_cfg`` of a file; ValueError where there can be no such file."""
    test_cfg = copy.deepcopy(detector.bbox_head.test_cfg)
    set_suppression(test_cfg, agnostic=agnostic)
    if nms:
        check_simple(test_cfg)
    if words is None and detector.synonyms == "max":
        raise ValueError(
            "synonyms='max' has several vectors for a class, the input `text` has one: "
            "fold the words in, or export the model with synonyms='mean'."
        )
    return test_cfg


def graph_to_onnx(
    graph: nn.Module,
    sample: Sequence[Tensor],
    outputs: Sequence[str] = ("boxes", "scores"),
) -> Any:
    """An ONNX model.

    Args:
        graph: what is exported.
        sample: images (B, 3, H, W), and vectors (K, D) where they are an input: their
            values and sizes do not matter.
        outputs: their names.

    Raises:
        ValueError: a size that should be free became fixed.
    """
    # sizes that a client may choose: of images, and of vectors
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
        output_names=[*outputs],
        dynamic_shapes=tuple(free[: len(sample)]),
    )
    assert program is not None  # dynamo's exporter returns one
    file = program.model_proto
    # the exporter fixes a size that the graph depends on, and does not say so
    for value, sizes in zip(file.graph.input, free):
        fixed = value.type.tensor_type.shape.dim
        if any(not fixed[i].dim_param for i in sizes):
            raise ValueError(
                f"a size of the input {value.name!r} became fixed in the export, which "
                "this model's parts do not allow. Please report the config."
            )
    return file


def random_vectors(detector: Student, number: int) -> Tensor:
    """Unit vectors (number, D), of no words."""
    vectors = torch.randn(number, detector.text_encoder.embed_dims)
    return nn.functional.normalize(vectors)


def session_of(file: str | bytes) -> Any:
    """onnxruntime's session of a file, on the CPU."""
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def _check(
    file: Any, detector: KDEOVDetector, vocabulary: Vocabulary | None, one_each: bool
) -> dict[str, float]:
    """Differences of the file to the detector, at several sizes, batches and words."""
    # one image and a batch of three, sizes and words other than in the trace
    session = session_of(file.SerializeToString())
    # norms fused into convolutions: the same function, in another order of rounding
    rounded = Graph(fuse_conv_bn(copy.deepcopy(detector)), one_each)
    worst, noise = dict(boxes=0.0, scores=0.0), dict(boxes=0.0, scores=0.0)
    for shape, number in (((1, 3, 160, 160), 1), ((3, 3, 64, 224), 33)):
        torch.manual_seed(number)
        images = torch.rand(shape)
        feed = dict(images=images.numpy())
        if vocabulary is None:
            text = TextEmbeds(random_vectors(detector, number))
            feed["text"] = text.vectors.numpy()
        else:
            text = detector.embed(vocabulary)
        with torch.no_grad():
            expected = Graph(detector, one_each)(images, *text)
            others = rounded(images, *text)
        said = [*map(torch.from_numpy, session.run(None, feed))]
        if len(said) > 2:  # scores of some words
            expected, others = (_of_words(each, said[2]) for each in (expected, others))
            said[1] = torch.cat([said[1], _best_first(said[1], said[2].shape[1])], 1)
        for key, one, other, fused in zip(worst, expected, said, others):
            difference = float((one - other).abs().max())
            worst[key] = float(np.maximum(worst[key], difference))  # NaN stays
            noise[key] = max(noise[key], float((one - fused).abs().max()))
    # also refused: NaN
    most = {key: TOLERANCE + NOISE * noise[key] for key in worst}
    if not all(worst[key] <= most[key] for key in most):
        raise ValueError(
            f"onnxruntime does not say what PyTorch does: differences {worst}, at most "
            f"{most} expected. Nothing was written. Please report the config."
        )
    return worst


def _of_words(output: Sequence[Tensor], words: Tensor) -> list[Tensor]:
    """Boxes, and scores of words (B, n) with the n best of all behind them."""
    boxes, scores = output
    own = scores.gather(1, words[..., None].expand(-1, -1, scores.shape[2]))
    return [boxes, torch.cat([own, _best_first(scores, words.shape[1])], 1)]


def _best_first(scores: Tensor, number: int) -> Tensor:
    """(B, K, N) -> (B, n, N), each row a word's best score, the best word first."""
    best = scores.amax(2).topk(number).values
    return best[..., None].expand(-1, -1, scores.shape[2])


def check_simple(test_cfg: Any) -> None:
    """Refuse a config that asks for more than plain suppression.

    Raises:
        ValueError: it does.
    """
    if not is_simple(test_cfg):
        raise ValueError(
            "expected a test_cfg with multi_label=True, nms=dict(type='nms', "
            "iou_threshold=..., class_agnostic=...), max_per_img of at least 1 and no "
            "min_bbox_size, got "
            f"{dict(test_cfg)}: change it, or leave the suppression out."
        )


def with_suppression(file: Any, test_cfg: Any) -> Any:
    """The graph, and behind it what a ``test_cfg`` says of the boxes that stay.

    ``nms_pre`` is left out: it spares PyTorch work, which onnxruntime does.
    """
    text = SUPPRESSION if suppresses(test_cfg) else BEST
    if is_agnostic(test_cfg):
        for old, new in ACROSS_WORDS.items():
            text = text.replace(old, new)
    names = [value.name for value in file.graph.output]
    if "words" in names:
        for old, new in SOME_WORDS.items():
            text = text.replace(old, new)
    end = onnx.parser.parse_model(text)
    # thresholds: inputs of the text above, constants of the file
    constants: dict[str, np.ndarray] = dict(
        score_threshold=np.array([max(test_cfg.get("score_thr", 0), 0)], np.float32),
        limit=np.array([test_cfg.max_per_img], np.int64),
    )
    if suppresses(test_cfg):
        most = test_cfg.nms.iou_threshold
        constants["iou_threshold"] = np.array([most], np.float32)
    for name, value in constants.items():
        end.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    inputs = [value for value in end.graph.input if value.name not in constants]
    del end.graph.input[:]
    end.graph.input.extend(inputs)
    # merging needs one version of the format
    end.ir_version = file.ir_version
    # outputs of the one are inputs of the other
    start = onnx.compose.add_prefix(file, "detector_", rename_inputs=False)
    known = dict(boxes="all_boxes", scores="all_scores", words="of_words")
    pairs = [(f"detector_{name}", known[name]) for name in names]
    return onnx.compose.merge_models(start, end, io_map=pairs)


def metadata(
    model: Student, vocabulary: Vocabulary | None, size: int | None, **more: Any
) -> dict[str, str]:
    """What a client needs to know, as strings of JSON."""
    names = [own[0] for own in vocabulary.words] if vocabulary else []
    scale = input_scale(model.cfg)
    about = dict(
        made_by=f"kdeov_mm {version('kdeov_mm')}",
        form=VOCABULARY if vocabulary is None else FOLDED,
        names=names,
        encoder=model.text_encoder.made_by,
        embed_dims=model.text_encoder.embed_dims,
        normalisation=normalisation(model.data_preprocessor),
        size=size or scale[0],
        short_size=size or scale[1],
        stride=model.data_preprocessor.pad_size_divisor,
        config=model.cfg.pretty_text,
    )
    return {key: json.dumps(value) for key, value in dict(about, **more).items()}


def add_metadata(file: Any, about: dict[str, str]) -> None:
    """Write the metadata into a model."""
    onnx.helper.set_model_props(file, about)


def _suppression_of(cfg: Any, nms: bool) -> dict[str, Any]:
    """Thresholds: those of the suppression in the graph, or a client's to apply."""
    return dict(
        nms=nms,
        score_threshold=float(cfg.get("score_thr", 0)),
        # no boxes overlap by more than all
        iou_threshold=float(cfg.nms.get("iou_threshold", 1)) if cfg.nms else 1.0,
        max_per_image=int(cfg.max_per_img),
        agnostic=is_agnostic(cfg),
    )


def read_metadata(session: Any) -> dict[str, Any]:
    """The metadata of a file that :func:`export_onnx` wrote.

    Raises:
        ValueError: another program wrote it.
    """
    found = session.get_modelmeta().custom_metadata_map
    if "kdeov_mm" not in found.get("made_by", ""):
        raise ValueError("this ONNX file was not written by tools/export_onnx.py")
    return {key: json.loads(value) for key, value in found.items()}


@MODELS.register_module()
class ONNXDetector(Student, BaseDetector):
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
        self.session = session_of(file)
        self.metadata = read_metadata(self.session)
        self.text_encoder = MODELS.build(text_encoder)
        self.test_cfg = test_cfg
        # without suppression in the graph it is done here
        if not self.metadata["nms"]:
            check_simple(test_cfg)
        # pixels or vectors of another kind would give wrong boxes without an error
        own = dict(
            normalisation=normalisation(self.data_preprocessor),
            encoder=self.text_encoder.made_by,
        )
        for key, value in own.items():
            if self.metadata[key] != value:
                raise ValueError(
                    f"the file {file} and the config differ in their {key}: "
                    f"{self.metadata[key]} and {value}. Use the config it was exported "
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
        # words: an input of the file, or those it was made for
        names = [own[0] for own in words]
        feed: dict[str, Any] = {}
        if self.metadata["form"] == VOCABULARY:
            feed["text"] = self.embed(words, "cpu").vectors.numpy()
        elif names != self.metadata["names"]:
            raise ValueError(
                f"the file answers for {len(self.metadata['names'])} words, "
                f"{self.metadata['names'][:3]} ..., the samples ask for {len(names)}, "
                f"{names[:3]} ...: export it for these, or use the vocabulary form."
            )

        def ask(images: Tensor, samples: SampleList) -> list[InstanceData]:
            outputs = self.session.run(None, dict(feed, images=images.cpu().numpy()))
            return self._boxes([*map(torch.from_numpy, outputs)], samples, rescale)

        results = as_if_alone(batch_inputs, batch_data_samples, ask)
        cap = self.metadata["max_per_image"]
        cfg = dict(max_per_img=cap) if self.metadata["nms"] else self.test_cfg
        describe(batch_data_samples, results, words, cfg)
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _boxes(
        self, outputs: Sequence[Tensor], samples: SampleList, rescale: bool
    ) -> list[InstanceData]:
        """A session's outputs for B images -> boxes, image by image."""
        results = []
        for i, sample in enumerate(samples):
            meta = sample.metainfo
            if self.metadata["nms"]:
                # (n, 4), (n,), (n,) of all images, and the image of each
                boxes, scores, labels = (each[outputs[3] == i] for each in outputs[:3])
                boxes = clipped(rescaled(boxes, meta) if rescale else boxes, meta)
                found = InstanceData(bboxes=boxes, scores=scores, labels=labels)
            else:
                # (B, N, 4) and (B, K, N), still without suppression
                cfg = self.test_cfg
                logits = [outputs[1][i].T.logit()]
                scored = above(logits, least_logit(cfg), max_boxes(cfg))
                found = best_boxes(scored, outputs[0][i], meta, cfg, rescale)
            results.append(found)
        return results

    def _only_predicts(self, *_: Any) -> Any:
        """What mmdet asks of a detector, and no file has."""
        raise NotImplementedError("an ONNX file only predicts")

    extract_feat = loss = _forward = _only_predicts


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
