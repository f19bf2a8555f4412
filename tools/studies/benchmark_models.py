"""The models that benchmark.py times, and the calls of each."""

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import kdeov_mm  # isort: skip

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from mmcv.cnn.utils import fuse_conv_bn
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from PIL import Image

from kdeov_mm import yolo_world_v2_s
from kdeov_mm.datasets import shapes
from kdeov_mm.inference.export import Graph, graph_to_onnx, with_suppression
from kdeov_mm.models import KDEOVDetector, OVHead
from kdeov_mm.models.folded import fuse_before_words
from kdeov_mm.vocabulary import Asked, Vocabulary
from pages import ROOT

OURS = "configs/_base_/models/kdeov_yolov8_n_clip.py"
CLOSED = "configs/_base_/models/yolov8_n.py"
WIDTH = dict(n=0.25, s=0.5)
MMYOLO, FOLDED = "mmyolo YOLOv8, closed-set", "ours, folded"
LIGHT = "ours, light head, folded"
LIGHTER = "ours, light head and neck, folded"
WORLD = "ours, YOLO-World v2, folded"
MANY = 5000  # words, from which on the filter is used
FILTER = 1000  # candidate locations, where there are very many words
MARKS = ("big", "small", "old", "new", "shiny", "dull", "soft", "hard", "wet", "dry")
TEST = dict(score_thr=0.001, max_per_img=300)
Call = Callable[[], int]


@dataclass
class Entry:
    """A model with its words: what is timed.

    Attributes:
        name: as in the table.
        size: n or s.
        words: K.
        make: builds it; the calls of :data:`KINDS`, each returns a number of boxes.
    """

    name: str
    size: str
    words: int
    make: Callable[[], list[Call]]


def config(file: str, size: str) -> Any:
    """The model config of a file, at n or s."""
    cfg = Config.fromfile(str(ROOT / file), lazy_import=False)
    model = cfg.model
    for part in (model.backbone, model.neck, model.bbox_head.head_module):
        part.widen_factor = WIDTH[size]
    model.test_cfg.update(TEST)
    return model


def some_words(number: int) -> tuple[str, ...]:
    """Names: the classes of the larger world, and made-up things."""
    known = shapes.WORLD_1203.classes
    more = (f"{mark} {word}" for mark in MARKS for word in known)
    names = [*known, *more, *(f"thing {i}" for i in range(number))]
    return tuple(names[:number])


def our_config(size: str) -> Any:
    """Our detector for CLIP ViT-B/32, as it is tested."""
    cfg = config(OURS, size)
    cfg.update(teacher=None, distill=None)
    return cfg


def ours(args: argparse.Namespace, size: str) -> KDEOVDetector:
    """Our detector, random weights."""
    return built(args, our_config(size))


def light_config(size: str) -> Any:
    """The same with a light head, which suppresses nothing."""
    cfg = our_config(size)
    cfg.bbox_head.head_module.update(light=True)
    cfg.test_cfg.nms = None
    return cfg


def light(args: argparse.Namespace, size: str) -> KDEOVDetector:
    """Our detector with a light head, random weights."""
    return built(args, light_config(size))


def lighter(args: argparse.Namespace, size: str) -> KDEOVDetector:
    """With a light neck as well."""
    cfg = light_config(size)
    cfg.neck.type = "LightPAFPN"
    return built(args, cfg)


def yolo_world(args: argparse.Namespace, size: str) -> KDEOVDetector:
    """YOLO-World v2 as a detector of ours, random weights."""
    cfg = Config(dict(model=copy.deepcopy(yolo_world_v2_s.model))).model
    for part in (cfg.backbone, cfg.fusion, cfg.bbox_head.head_module):
        part.widen_factor = WIDTH[size]
    cfg.test_cfg.update(TEST)
    return built(args, cfg)


def built(args: argparse.Namespace, cfg: Any) -> KDEOVDetector:
    """A detector of random weights, the same each time."""
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    return model.to(args.device).eval()


def random_vocabulary(model: KDEOVDetector, number: int) -> Vocabulary:
    """Words with random vectors, which take no text tower."""
    names, encoder = some_words(number), model.text_encoder
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(number, encoder.embed_dims), dim=1)
    return Vocabulary(names, vectors=dict(zip(names, rows)), encoder=encoder.made_by)


def trained(args: argparse.Namespace) -> KDEOVDetector:
    """The detector of --checkpoint."""
    model = kdeov_mm.KDEOV.from_checkpoint(args.checkpoint, args.device).model
    model.bbox_head.test_cfg.update(TEST)
    return model


def closed(args: argparse.Namespace, size: str, fuse: bool) -> Any:
    """mmyolo's YOLOv8 for 80 classes, random weights."""
    torch.manual_seed(0)
    model = MODELS.build(config(CLOSED, size))
    model.init_weights()
    model.to(args.device, memory_format=torch.channels_last).eval()
    return fuse_conv_bn(model) if fuse else model


def picture(side: int) -> np.ndarray:
    """Scenes of the built-in world, side by side: (side, side, 3) uint8 BGR."""
    tiles = [
        shapes.draw_scene(shapes.scene_rng(0, 1, i), shapes.WORLD_1203).image
        for i in range(16)
    ]
    rows = [np.concatenate(tiles[i : i + 4], 1) for i in range(0, 16, 4)]
    whole = Image.fromarray(np.concatenate(rows)).resize((side, side))
    return np.ascontiguousarray(np.asarray(whole)[..., ::-1])


def torch_calls(
    model: Any, image: np.ndarray, words: Vocabulary | None = None
) -> list[Call]:
    """The network and the whole way of an image (H, W, 3) uint8 BGR.

    Words are those of a detector of ours that is not folded; embedded before.
    """
    meta: dict[str, Any] = dict(
        img_shape=image.shape[:2], ori_shape=image.shape[:2], scale_factor=(1.0, 1.0)
    )
    if words is not None:
        meta["words"] = words.words
        text = model.embed(words)
    pixels = torch.from_numpy(image).permute(2, 0, 1)

    def preprocess() -> dict[str, Any]:
        samples = [DetDataSample(metainfo=meta)]
        data = dict(inputs=[pixels], data_samples=samples)
        return model.data_preprocessor(data, False)

    inputs = preprocess()["inputs"]

    @torch.no_grad()
    def network() -> int:
        if words is None:
            model.bbox_head(model.extract_feat(inputs))
        else:
            model.bbox_head(model.head_input(inputs, words.words, text))
        return 0

    @torch.no_grad()
    def whole() -> int:
        data = preprocess()
        given = {} if words is None else dict(text=text)
        samples = model.predict(data["inputs"], data["data_samples"], **given)
        return len(samples[0].pred_instances)

    # with candidate locations, the network and the suppression are one
    return [whole if getattr(model, "candidates", None) else network, whole]


def folded_calls(
    args: argparse.Namespace,
    model: KDEOVDetector,
    words: Asked,
    image: np.ndarray,
    **options: Any,
) -> list[Call]:
    """Those of a folded detector."""
    folded = model.fold(words, **options)
    return torch_calls(folded.half() if args.half else folded, image)


def onnx_calls(scratch: Path, name: str, image: np.ndarray, text: Any) -> list[Call]:
    """The same for the ONNX files NAME.onnx and NAME_nms.onnx."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers = onnxruntime.get_available_providers()
    raw, full = (
        onnxruntime.InferenceSession(scratch / f"{name}{end}.onnx", options, providers)
        for end in ("", "_nms")
    )
    given = {} if text is None else dict(text=text)

    def ready() -> dict[str, Any]:
        pixels = image[None, ..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255
        return dict(images=pixels, **given)

    feed = ready()

    def network() -> int:
        raw.run(None, feed)
        return 0

    return [network, lambda: len(full.run(None, ready())[0])]


def write_onnx(scratch: Path, name: str, model: Any, text: Any = None) -> None:
    """NAME.onnx and NAME_nms.onnx, where they are not there yet."""
    if (scratch / f"{name}_nms.onnx").exists():
        return
    if not hasattr(model.bbox_head, "decode"):  # mmyolo's
        for part in ("decode", "_decode", "_points"):
            method = partial(getattr(OVHead, part), model.bbox_head)
            setattr(model.bbox_head, part, method)
    # a batch of two at another size: both are dynamic in the file
    sample = [torch.rand(2, 3, 96, 128), *([] if text is None else [text])]
    file = graph_to_onnx(Graph(model), sample)
    whole = with_suppression(file, model.bbox_head.test_cfg)
    onnx.save(file, scratch / f"{name}.onnx")
    onnx.save(whole, scratch / f"{name}_nms.onnx")


def entries(args: argparse.Namespace, scratch: Path) -> list[Entry]:
    """All that is timed in this process."""
    image = picture(args.side)
    listed: list[Entry] = []
    for size in args.sizes:
        listed += entries_of(args, scratch, size, image)
    if args.checkpoint:
        for number in args.words:
            name = f"ours, {args.checkpoint.parent.name}"
            make = partial(trained_calls, args, number, image)
            listed.append(Entry(name, "n", number, make))
    return listed


def trained_calls(
    args: argparse.Namespace, number: int, image: np.ndarray
) -> list[Call]:
    """Those of --checkpoint, with the filter where there are many words."""
    candidates = FILTER if number > MANY else None
    words = some_words(number)
    return folded_calls(args, trained(args), words, image, candidates=candidates)


def entries_of(
    args: argparse.Namespace, scratch: Path, size: str, image: np.ndarray
) -> list[Entry]:
    """Those of one size."""
    first = args.words[0]

    def add(name: str, words: int, make: Callable[[], list[Call]]) -> None:
        listed.append(Entry(name, size, words, make))

    def folded(number: int, build: Any = ours, **options: Any) -> list[Call]:
        model = build(args, size)
        words = random_vocabulary(model, number)
        return folded_calls(args, model, words, image, **options)

    def free(number: int) -> list[Call]:
        model = ours(args, size)
        words = random_vocabulary(model, number)
        return torch_calls(model.half() if args.half else model, image, words)

    def closed_onnx() -> list[Call]:
        write_onnx(scratch, f"closed_{size}", closed(args, size, True).cpu())
        return onnx_calls(scratch, f"closed_{size}", image, None)

    def folded_onnx(number: int, build: Any = ours) -> list[Call]:
        name, model = f"{build.__name__}_{size}_{number}", build(args, size)
        write_onnx(scratch, name, model.fold(random_vocabulary(model, number)).cpu())
        return onnx_calls(scratch, name, image, None)

    def input_onnx(number: int) -> list[Call]:
        model = ours(args, size).cpu()
        text = random_vocabulary(model, number).matrix()
        write_onnx(scratch, f"input_{size}", fuse_before_words(model), text[:7])
        return onnx_calls(scratch, f"input_{size}", image, text.numpy())

    # closed-set and folded, with BatchNorm folded and apart; ONNX; then more words
    listed: list[Entry] = []
    add(MMYOLO, 80, lambda: torch_calls(closed(args, size, True), image))
    add(
        f"{MMYOLO}, BN apart", 80, lambda: torch_calls(closed(args, size, False), image)
    )
    add(f"{FOLDED}, BN apart", first, lambda: folded(first, fuse=False))
    add(f"{MMYOLO}, ONNX", 80, closed_onnx)
    for number in args.words:
        many = number > MANY
        candidates = FILTER if many else None
        add(FOLDED, number, partial(folded, number, candidates=candidates))
        if many:
            add(f"{FOLDED}, all places", number, partial(folded, number))
            continue
        add(WORLD, number, partial(folded, number, yolo_world))
        for name, make in ((LIGHT, light), (LIGHTER, lighter)):
            add(name, number, partial(folded, number, make))
            add(f"{name}, ONNX", number, partial(folded_onnx, number, make))
        add("ours, words free", number, partial(free, number))
        add(f"{FOLDED}, ONNX", number, partial(folded_onnx, number))
        add("ours, words an input, ONNX", number, partial(input_onnx, number))
    return listed
