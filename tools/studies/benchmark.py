"""How fast: ours against closed-set YOLOv8, in one run, in turn.

    python tools/studies/benchmark.py                        # CPU, about 10 minutes
    python tools/studies/benchmark.py --checkpoint work_dirs/demo/iter_800.pth \\
        --ultralytics ultra/bin/python --table       # what the README shows

Every model sees the same picture of 640 px, batch 1, and they take turns, so that their
ratios hold on a noisy machine. Two figures for each: `network` is pixels to scores and
boxes; `whole` adds preprocessing and the suppression, at the thresholds of COCO's
evaluation (0.001, IoU 0.7, 300 boxes). Weights and words are random where no checkpoint
is named. Ultralytics' models run in an environment of their own, see
benchmark_ultralytics.py. Peak memory is of a process that runs that model alone.
Writes docs/benchmark.json and docs/benchmark.png; --table the table of the README.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import kdeov_mm  # isort: skip

import matplotlib.pyplot as plt
import numpy as np
import onnx
import onnxruntime
import open_clip
import torch
import torch.nn.functional as F
from mmcv.cnn.utils import fuse_conv_bn
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from kdeov_mm.clip import CLIPTextEncoder
from kdeov_mm.datasets import shapes
from kdeov_mm.inference.export import Graph, graph_to_onnx, with_suppression
from kdeov_mm.models import KDEOVDetector, OVHead
from kdeov_mm.models.folded import fuse_before_words
from kdeov_mm.vocabulary import Vocabulary

plt.switch_backend("Agg")
ROOT = Path(__file__).resolve().parents[2]
JSON = ROOT / "docs/benchmark.json"
PLOT = ROOT / "docs/benchmark.png"
README = ROOT / "README.md"
BEGIN, END = "<!-- begin benchmark -->", "<!-- end benchmark -->"
OURS = "configs/_base_/models/kdeov_yolov8_n_clip.py"
CLOSED = "configs/_base_/models/yolov8_n.py"
WIDTH = dict(n=0.25, s=0.5)
FILTER = 1000  # promising places, where there are very many words
TEST = dict(score_thr=0.001, max_per_img=300)
TRAINED = "configs/kdeov/kdeov_n_shapes.py"
MMYOLO, FOLDED = "mmyolo YOLOv8, closed-set", "ours, folded"
MANY = 5000  # words, from which on the filter is used
KINDS = ("network", "whole")
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


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    init_default_scope("mmdet")
    if args.one is not None:
        return measure_one(args)
    report: dict[str, Any] = dict(machine=machine(args.device), size=args.side)
    report["command"] = command(args)
    parts = dict(
        speed=time_models,
        filter=share_kept,
        vocabulary=time_vocabulary,
        training=time_training,
    )
    for name in args.parts:
        report[name] = parts[name](args)
        print(json.dumps({name: report[name]}, indent=1), flush=True)
    if args.keep and args.out.exists():
        report = {**json.loads(args.out.read_text()), **report}
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    if "speed" in report:
        plot(report, args.out.with_suffix(".png"))
    if args.table:
        fill(README, table(report))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="a trained detector, besides")
    parser.add_argument("--sizes", nargs="+", default=["n", "s"], choices=["n", "s"])
    parser.add_argument("--words", type=int, nargs="+", default=[80, 1203, 13000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--scenes", type=int, default=20, help="for --parts filter")
    parser.add_argument("--side", type=int, default=640, help="pixels")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--ultralytics", help="python of an environment that has it")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["speed", "filter", "vocabulary", "training"],
        choices=["speed", "filter", "vocabulary", "training"],
    )
    parser.add_argument("--no-memory", action="store_true", help="leave memory out")
    parser.add_argument("--out", type=Path, default=JSON)
    parser.add_argument("--keep", action="store_true", help="other parts of --out stay")
    parser.add_argument("--table", action="store_true", help="fill the README's table")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side % 32 or args.rounds < 2:
        parser.error("--side is a multiple of 32, --rounds at least 2")
    if args.checkpoint and not args.checkpoint.is_file():
        parser.error(f"--checkpoint {args.checkpoint} does not exist")
    return args


def command(args: argparse.Namespace) -> str:
    """What was asked for, without this machine's places."""
    given = "python tools/studies/benchmark.py"
    given += f" --rounds {args.rounds} --device {args.device}"
    given += f" --checkpoint {args.checkpoint}" if args.checkpoint else ""
    return given + (" --ultralytics ultra/bin/python" if args.ultralytics else "")


def machine(device: str) -> str:
    """What the figures were measured on, in words."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return (
        f"{torch.get_num_threads()} threads, {platform.machine()}, "
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    )


# ------------------------------------------------------------------------ models


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
    marks = (
        "big",
        "small",
        "old",
        "new",
        "shiny",
        "dull",
        "soft",
        "hard",
        "wet",
        "dry",
    )
    known = shapes.WORLD_1203.classes
    more = (f"{mark} {word}" for mark in marks for word in known)
    names = [*known, *more, *(f"thing {i}" for i in range(number))]
    return tuple(names[:number])


def ours(args: argparse.Namespace, size: str) -> KDEOVDetector:
    """Our detector for CLIP ViT-B/32, random weights, and vectors for its words."""
    torch.manual_seed(0)
    cfg = config(OURS, size)
    cfg.update(teacher=None, distill=None)
    model = MODELS.build(cfg)
    model.init_weights()
    names = some_words(max(args.words))
    rows = F.normalize(torch.randn(len(names), model.text_encoder.embed_dims), dim=1)
    made_by = model.text_encoder.made_by
    model.text_encoder.take(
        Vocabulary(names, vectors=dict(zip(names, rows)), encoder=made_by)
    )
    return model.to(args.device).eval()


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


# ------------------------------------------------------------------------- calls


def torch_calls(model: Any, image: np.ndarray, text: Any = None) -> list[Call]:
    """The network and the whole way of a picture (H, W, 3) uint8 BGR."""
    meta: dict[str, Any] = dict(
        img_shape=image.shape[:2], ori_shape=image.shape[:2], scale_factor=(1.0, 1.0)
    )
    if text is not None:
        meta["text"] = text
    pixels = torch.from_numpy(image).permute(2, 0, 1)

    def data() -> dict[str, Any]:
        return dict(inputs=[pixels], data_samples=[DetDataSample(metainfo=meta)])

    ready = model.data_preprocessor(data(), False)

    @torch.no_grad()
    def network() -> int:
        if text is None:
            model.bbox_head(model.extract_feat(ready["inputs"]))
        else:
            model.bbox_head(model._feats_and_text(ready["inputs"], text))
        return 0

    @torch.no_grad()
    def whole() -> int:
        return len(model.test_step(data())[0].pred_instances)

    # with promising places, the network and the suppression are not apart
    return [whole if getattr(model.bbox_head, "places", None) else network, whole]


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
        model.bbox_head.decode = partial(OVHead.decode, model.bbox_head)
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
            listed.append(
                Entry(
                    f"ours, {args.checkpoint.parent.name}",
                    "n",
                    number,
                    lambda k=number: folded_calls(trained(args), k, image),  # type: ignore[misc]
                )
            )
    return listed


def entries_of(
    args: argparse.Namespace, scratch: Path, size: str, image: np.ndarray
) -> list[Entry]:
    """Those of one size."""
    first = args.words[0]

    def add(name: str, words: int, make: Callable[[], list[Call]]) -> None:
        listed.append(Entry(name, size, words, make))

    def folded(words: int, **options: Any) -> list[Call]:
        return folded_calls(ours(args, size), words, image, **options)

    def free(words: int) -> list[Call]:
        return torch_calls(ours(args, size), image, some_words(words))

    def closed_onnx() -> list[Call]:
        write_onnx(scratch, f"closed_{size}", closed(args, size, True).cpu())
        return onnx_calls(scratch, f"closed_{size}", image, None)

    def folded_onnx(words: int) -> list[Call]:
        name = f"folded_{size}_{words}"
        write_onnx(scratch, name, ours(args, size).fold(some_words(words)).cpu())
        return onnx_calls(scratch, name, image, None)

    def input_onnx(words: int) -> list[Call]:
        model = ours(args, size).cpu()
        text = model.text_encoder(some_words(words))
        write_onnx(scratch, f"input_{size}", fuse_before_words(model), text[:7])
        return onnx_calls(scratch, f"input_{size}", image, text.numpy())

    listed: list[Entry] = []
    add(MMYOLO, 80, lambda: torch_calls(closed(args, size, True), image))
    add(
        f"{MMYOLO}, BN apart", 80, lambda: torch_calls(closed(args, size, False), image)
    )
    add(f"{FOLDED}, BN apart", first, lambda: folded(first, fuse=False))
    add(f"{MMYOLO}, ONNX", 80, closed_onnx)
    for number in args.words:
        many = number > MANY
        places = FILTER if many else None
        add(FOLDED, number, partial(folded, number, places=places))
        if many:
            add(f"{FOLDED}, all places", number, partial(folded, number, places=None))
            continue
        add("ours, words free", number, partial(free, number))
        add(f"{FOLDED}, ONNX", number, partial(folded_onnx, number))
        add("ours, words an input, ONNX", number, partial(input_onnx, number))
    return listed


def folded_calls(
    model: KDEOVDetector, words: int, image: np.ndarray, **options: Any
) -> list[Call]:
    """The calls of a folded detector, with the filter where there are many words."""
    if "fuse" not in options and words > MANY:
        options.setdefault("places", FILTER)
    return torch_calls(model.fold(some_words(words), **options), image)


def picture(side: int) -> np.ndarray:
    """Scenes of the built-in world, side by side: (side, side, 3) uint8 BGR."""
    tiles = [
        shapes.draw_scene(shapes.scene_rng(0, 1, i), shapes.WORLD_1203).image
        for i in range(16)
    ]
    rows = [np.concatenate(tiles[i : i + 4], 1) for i in range(0, 16, 4)]
    whole = Image.fromarray(np.concatenate(rows)).resize((side, side))
    return np.ascontiguousarray(np.asarray(whole)[..., ::-1])


# ------------------------------------------------------------------------- speed


class Peer:
    """Ultralytics' models, in their own environment."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self.process = subprocess.Popen(
            [args.ultralytics, ROOT / "tools/studies/benchmark_ultralytics.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=scratch,
            env={**os.environ, "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"},
        )
        np.save(scratch / "picture.npy", picture(args.side))
        settings = dict(
            image=str(scratch / "picture.npy"),
            threads=torch.get_num_threads(),
            size=args.side,
            score_threshold=TEST["score_thr"],
            iou_threshold=0.7,
            most=TEST["max_per_img"],
            device=args.device,
        )
        self.version = self.ask(settings=settings)["version"]
        self.number = 0

    def ask(self, **question: Any) -> dict[str, Any]:
        """A question, and its answer."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps(question), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("benchmark:"):
                return json.loads(line.removeprefix("benchmark:"))
        raise SystemExit(
            "the environment of --ultralytics failed; its message is above"
        )

    def add(self, file: str, words: int) -> list[Callable[[], float]]:
        """Build a model; its calls, which return seconds."""
        self.ask(build=[file, words])
        number, self.number = self.number, self.number + 1
        return [partial(self._seconds, number, kind) for kind in (0, 1)]

    def _seconds(self, number: int, kind: int) -> float:
        return self.ask(run=[number, kind])["seconds"]


def peers(args: argparse.Namespace) -> Iterator[tuple[str, str, int, str]]:
    """Name, size, words and file of ultralytics' models."""
    for size in args.sizes:
        yield "ultralytics YOLOv8", size, 80, f"yolov8{size}.yaml"
        for number in (k for k in args.words if k <= MANY):
            yield "YOLO-World v2", size, number, f"yolov8{size}-worldv2.yaml"
            yield "YOLOE", size, number, f"yoloe-v8{size}.yaml"
            yield "YOLOE, folded", size, number, f"yoloe-v8{size}.yaml folded"


def seconds_of(call: Call, device: str) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def time_models(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows: milliseconds, median and quartiles of both kinds, and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        rows: list[dict[str, Any]] = []
        runs: list[list[Callable[[], float]]] = []
        for entry in entries(args, scratch):
            calls = entry.make()
            rows.append(dict(name=entry.name, size=entry.size, words=entry.words))
            runs.append([partial(seconds_of, call, args.device) for call in calls])
            print(f"built {rows[-1]}: {calls[1]()} boxes", flush=True)
        own = len(rows)
        if args.ultralytics:
            peer = Peer(args, scratch)
            for name, size, words, file in peers(args):
                rows.append(dict(name=name, size=size, words=words))
                runs.append(peer.add(file, words))
                print(f"built {rows[-1]} of ultralytics {peer.version}", flush=True)
        times: list[list[list[float]]] = [[[], []] for _ in runs]
        for turn in range(args.rounds + 1):
            for timed, own_times in zip(runs, times):
                for call, seconds in zip(timed, own_times):
                    call()  # threads of the one before may still be spinning
                    seconds.append(call())
            print(f"turn {turn} of {args.rounds}", flush=True)
        for row, own_times in zip(rows, times):
            for kind, seconds in zip(KINDS, own_times):
                quartiles = statistics.quantiles(seconds[1:], n=4)
                row[kind] = [round(1000 * value, 2) for value in quartiles]
        if not args.no_memory:
            for number, row in enumerate(rows[:own]):
                row["memory"] = peak_memory(args, scratch, number)
    return rows


def peak_memory(args: argparse.Namespace, scratch: Path, number: int) -> float:
    """MiB that an entry takes in a process of its own, above what its libraries do."""
    command = [sys.executable, __file__, "--one", str(number), "--side", str(args.side)]
    command += ["--device", args.device, "--words", *map(str, args.words)]
    command += ["--sizes", *args.sizes, "--out", str(scratch)]
    if args.checkpoint:
        command += ["--checkpoint", str(args.checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def measure_one(args: argparse.Namespace) -> int:
    """Print the peak memory of an entry, in MiB."""
    entry = entries(args, args.out)[args.one]
    before = resident("VmRSS")
    calls = entry.make()
    for _ in range(3):
        calls[1]()
    if args.device == "cpu":
        print(round(resident("VmHWM") - before))
    else:
        print(round(torch.cuda.max_memory_allocated() / 2**20))
    return 0


def resident(key: str) -> float:
    """MiB of this process in memory: now (VmRSS), or at most since it began (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise ValueError(f"this system does not tell {key}")


# ------------------------------------------------------------- filter, words, training


@torch.no_grad()
def share_kept(args: argparse.Namespace) -> dict[str, Any]:
    """How much of the exact result :class:`PromisingPlaces` keeps, over scenes.

    ``scores``: of the 300 best pairs of a place and a word; ``boxes``: of the boxes
    after the suppression, at most 300, those that come out again within half a pixel.
    """
    model = trained(args) if args.checkpoint else ours(args, "n")
    words = some_words(max(args.words))
    exact, near = model.fold(words), model.fold(words, places=FILTER)
    kept: dict[str, list[float]] = dict(scores=[], boxes=[])
    for i in range(args.scenes):
        scene = shapes.draw_scene(shapes.scene_rng(0, 1, i), shapes.WORLD_1203)
        whole = Image.fromarray(scene.image).resize((args.side, args.side))
        image = np.ascontiguousarray(np.asarray(whole)[..., ::-1])
        kept["scores"].append(share_of_places(exact, near, image))
        one, other = (boxes_of(each, image) for each in (exact, near))
        far = torch.cdist(one.bboxes, other.bboxes, p=torch.inf)
        far = far + (one.labels[:, None] != other.labels) * 1e4
        if len(one):
            kept["boxes"].append((far.amin(1) < 0.5).float().mean().item())
    return dict(
        model=str(args.checkpoint or "random weights"),
        words=len(words),
        places=FILTER,
        scenes=args.scenes,
        **{key: round(statistics.mean(v), 5) for key, v in kept.items() if v},
        worst_scene={key: round(min(v), 5) for key, v in kept.items() if v},
    )


def boxes_of(model: Any, image: np.ndarray) -> Any:
    """All that a folded detector finds in a picture."""
    meta = dict(img_shape=image.shape[:2], ori_shape=image.shape[:2])
    sample = DetDataSample(metainfo=dict(meta, scale_factor=(1.0, 1.0)))
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    return model.test_step(dict(inputs=[pixels], data_samples=[sample]))[
        0
    ].pred_instances


def share_of_places(exact: Any, near: Any, image: np.ndarray) -> float:
    """Of the 300 best scores, the share on places that the filter lets through."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    data = exact.data_preprocessor(dict(inputs=[pixels], data_samples=None), False)
    module = exact.bbox_head.head_module
    hidden, layers, _, _ = module.apart(exact.extract_feat(data["inputs"]))
    rows = [level[0].flatten(1).T for level in hidden]
    best: list[Tensor] = [torch.zeros(0), torch.zeros(0, dtype=torch.long)]
    start = 0
    for level, (kernel, bias) in zip(rows, layers):
        for part in range(0, len(level), 1000):
            scores = torch.addmm(bias, level[part : part + 1000], kernel.T).cpu()
            values, at = scores.flatten().topk(300)
            best[0] = torch.cat([best[0], values])
            best[1] = torch.cat([best[1], at // len(kernel) + part + start])
        start += len(level)
    places = best[1][best[0].topk(300).indices]
    return torch.isin(places, near.bbox_head.places(rows).cpu()).float().mean().item()


@torch.no_grad()
def time_vocabulary(args: argparse.Namespace) -> dict[str, float]:
    """To 80 new words with a text tower of a ViT-B/32's size, random weights."""
    figures: dict[str, list[float]] = dict(new_words_s=[], cached_words_ms=[])
    with tempfile.TemporaryDirectory() as folder:
        save_tower(Path(folder))
        encoder = CLIPTextEncoder(f"local-dir:{folder}", cache_dir=f"{folder}/cache")
        model = ours(args, "n")
        model.text_encoder = encoder
        image = picture(args.side)
        words = [word.split(" ", 1)[-1] for word in some_words(13000)][1203:]
        encoder(["thing"])  # the tower is loaded
        detector = model.fold(["thing"])
        for turn in range(6):
            new = tuple(f"{word} {turn}" for word in dict.fromkeys(words))[:80]
            started = time.perf_counter()
            model.fold(new, into=detector)
            figures["new_words_s"].append(time.perf_counter() - started)
            started = time.perf_counter()
            model.fold(new, into=detector)
            figures["cached_words_ms"].append(1000 * (time.perf_counter() - started))
        calls = torch_calls(model, image, new)
        inside = []
        for _ in range(4):
            started = time.perf_counter()
            encoder.encode(new)
            calls[1]()
            inside.append(time.perf_counter() - started)
    figures["image_with_text_tower_s"] = inside
    return {key: round(statistics.median(v[1:]), 4) for key, v in figures.items()}


def save_tower(folder: Path) -> None:
    """A CLIP ViT-B/32 with random weights, in open_clip's layout."""
    cfg = open_clip.get_model_config("ViT-B-32")
    model = open_clip.CLIP(**cfg)
    save_file(model.state_dict(), str(folder / "open_clip_model.safetensors"))
    half = dict(mean=[0.5] * 3, std=[0.5] * 3)
    about = dict(model_cfg=cfg, preprocess_cfg=half)
    (folder / "open_clip_config.json").write_text(json.dumps(about))


def time_training(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of the demo's training, and the share of time without data."""
    cfg = Config.fromfile(str(ROOT / TRAINED), lazy_import=False)
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=30, val_interval=10**6)
    cfg.default_hooks.logger.interval = 1
    cfg.param_scheduler = None
    cfg.log_level = "ERROR"
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        runner = Runner.from_cfg(cfg)
        runner.train()
    history = runner.message_hub.log_scalars
    whole, data = (
        history[f"train/{key}"].data[0][10:] for key in ("time", "data_time")
    )
    return dict(
        config=TRAINED,
        batch_size=cfg.train_dataloader.batch_size,
        images_per_s=round(cfg.train_dataloader.batch_size / statistics.mean(whole), 1),
        share_waiting_for_data=round(sum(data) / sum(whole), 4),
    )


# -------------------------------------------------------------------------- results


def table(report: dict[str, Any]) -> list[str]:
    """The README's table: the whole way, and what it is of closed-set YOLOv8's."""
    rows = report["speed"]
    sizes = [size for size in WIDTH if any(row["size"] == size for row in rows)]
    heads = [f"YOLOv8-{size}, ms | of closed-set" for size in sizes]
    lines = ["| | words | " + " | ".join(heads) + " | peak memory, MiB |"]
    lines.append("|---" * (3 + 2 * len(sizes)) + "|")
    names = dict.fromkeys((row["words"], row["name"]) for row in rows)
    for words, name in sorted(names, key=lambda key: key[0]):
        cells, memory = [], []
        for size in sizes:
            own = {(r["words"], r["name"]): r for r in rows if r["size"] == size}
            row = own.get((words, name))
            if row is None:
                cells += ["", ""]
                continue
            low, middle, high = row["whole"]
            ratio = middle / own[80, MMYOLO]["whole"][1]
            cells += [f"{middle:.0f} ({low:.0f} to {high:.0f})", f"{ratio:.2f}"]
            memory += [str(row["memory"])] if "memory" in row else []
        shown = f"**{name}**" if name.startswith(FOLDED) else name
        cells = [shown, f"{words:,}", *cells, ", ".join(memory)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def fill(page: Path, lines: Sequence[str]) -> None:
    """Put lines between the marks of a page."""
    content = page.read_text()
    start, end = content.index(BEGIN) + len(BEGIN), content.index(END)
    page.write_text(content[:start] + "\n" + "\n".join(lines) + "\n" + content[end:])


def plot(report: dict[str, Any], path: Path) -> None:
    """Bars of the whole way of a picture, both sizes."""
    sizes = [s for s in WIDTH if any(row["size"] == s for row in report["speed"])]
    most = max(sum(r["size"] == s for r in report["speed"]) for s in sizes)
    figure, axes = plt.subplots(
        1, len(sizes), figsize=(6.4 * len(sizes), 0.26 * most + 1), squeeze=False
    )
    for axis, size in zip(axes[0], sizes):
        rows = [row for row in report["speed"] if row["size"] == size]
        rows.sort(key=lambda row: -row["whole"][1])
        colors = [
            "#d55e00" if r["name"].startswith("ours") else "#999999" for r in rows
        ]
        middle = [row["whole"][1] for row in rows]
        spread = np.abs([np.subtract(r["whole"][::2], r["whole"][1]) for r in rows]).T
        labels = [f"{row['name']}, {row['words']:,} words" for row in rows]
        axis.barh(labels, middle, xerr=spread, color=colors, ecolor="#555555")
        axis.set_title(f"YOLOv8-{size}, {report['size']} px, ms per picture")
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
