"""Evaluate a checkpoint: mm's command line over mmengine's Runner.

Writes figures.json, every figure with its protocol (of other tests of the config
figures_NAME.json), and leaks.json, the novel classes that the checkpoint had labels of.
"""

import argparse
import os
from collections.abc import Sequence

import kdeov_mm  # isort: skip  # noqa: F401  (compat comes before mmdet)


from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.fileio import dump
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from kdeov_mm.border import built, sentences
from kdeov_mm.checkpoints import (
    check_loaders,
    check_weights,
    read_checkpoint,
)
from kdeov_mm.evaluation import describe_leaks, leak_report
from kdeov_mm.models.postprocess import DEFAULT_IOU
from kdeov_mm.options import ConfigOptions, config_of, work_dir_of
from kdeov_mm.vocabulary import asked_groups


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint, or a file of export_onnx.py")
    parser.add_argument(
        "--work-dir", help="logs and figures go here (default: work_dirs/CONFIG_NAME)"
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="look at each image and its mirror image (tta_model, tta_pipeline)",
    )
    parser.add_argument("--out", help="dump predictions to this .pkl file")
    parser.add_argument("--show", action="store_true", help="show boxes")
    parser.add_argument("--show-dir", help="save images with boxes here")
    parser.add_argument(
        "--wait-time", type=float, default=2, help="seconds between shown images"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        help="override config entries: key=value ...",
    )
    parser.add_argument(
        "--launcher", default="none", choices=["none", "pytorch", "slurm", "mpi"]
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    args = parser.parse_args(argv)
    for name in ("out", "show_dir"):
        if (value := getattr(args, name)) is not None and not value.strip():
            parser.error(f"--{name.replace('_', '-')}: expected a path, got {value!r}")
    if args.out and not args.out.endswith((".pkl", ".pickle")):
        parser.error(f"--out must end in .pkl or .pickle, got {args.out}")
    # torch's launcher passes it as an argument, torchrun in the environment
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = parse_args(argv)
    with sentences("test.py"):
        runner = make_runner(args)
    with sentences("test.py", runner.work_dir):
        figures = runner.test()
        # an ONNX file does not tell what it was trained on
        if not args.checkpoint.endswith(".onnx"):
            report_leaks(runner, args.checkpoint)
    return figures


def make_runner(args: argparse.Namespace) -> Runner:
    """A runner of the test, with a model whose weights are the checkpoint's."""
    with built("--cfg-options"):
        cfg = config_of(args.config, args.cfg_options)
    if not isinstance(cfg.get("model"), dict):
        raise ValueError(f"{args.config} has no model")
    check_loaders(cfg, "test_dataloader")
    cfg.launcher = args.launcher
    cfg.work_dir = work_dir_of(args.config, cfg, args.work_dir)
    # a file of export_onnx.py takes the model's place, and has no weights to load
    is_onnx = args.checkpoint.endswith(".onnx")
    if is_onnx and cfg.model.type == "SegStudent":
        raise SystemExit("test.py: ONNX files of masks are not tested: give the .pth")
    if is_onnx:
        from kdeov_mm.inference.export import onnx_model  # an extra

        cfg.model = onnx_model(args.checkpoint, cfg.model)
        # a moving average is of weights
        cfg.custom_hooks = []
        # and it finds boxes alone
        if others := [*(cfg.test_cfg.get("others") or {})]:
            print(f"{args.checkpoint} is an ONNX file, NOT TESTED with it: {others}")
            cfg.test_cfg.others = None
    cfg.load_from = None if is_onnx else args.checkpoint
    if args.tta and is_onnx:
        raise SystemExit("test.py: --tta is for checkpoints: give the .pth")
    tta_model = with_tta(cfg) if args.tta else None
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    with built("the config cannot be built"):
        write_figures(cfg)
        runner = Runner.from_cfg(cfg)
        evaluator = runner.test_loop.evaluator
    if not is_onnx:
        refuse_other_weights(runner, args.checkpoint)
    if tta_model:
        runner.load_or_resume()
        runner.model = MODELS.build(ConfigDict(tta_model, module=runner.model))
    if args.out:
        evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    return runner


def with_tta(cfg: Config) -> ConfigDict:
    """Let a config test images and their mirror images, or by its ``tta_pipeline``.

    Boxes alone: other tests of a :class:`TestSuiteLoop` are of whole images.

    Returns:
        The config of the model around the detector.
    """
    if not {"bbox_head", "roi_head"} & {*cfg.model}:
        raise SystemExit("test.py: --tta is for detectors: this model finds no boxes")
    loader = cfg.test_dataloader.dataset
    while "dataset" in loader:
        loader = loader.dataset
    # all steps but the last, which packs; then both of the image
    flips = [dict(type="RandomFlip", prob=float(p)) for p in (0, 1)]
    both = dict(type="TestTimeAug", transforms=[flips, [loader.pipeline[-1]]])
    pipeline = cfg.get("tta_pipeline") or [*loader.pipeline[:-1], both]
    box_cfg = cfg.model.test_cfg.get("rcnn") or cfg.model.test_cfg
    # boxes of several views have to be suppressed, whatever the head
    nms = box_cfg.nms or dict(type="nms", iou_threshold=DEFAULT_IOU)
    kept = dict(nms=nms, max_per_img=box_cfg.max_per_img)
    around = cfg.get("tta_model") or dict(type="DetTTAModel", tta_cfg=kept)
    loader.pipeline = pipeline
    # the moving average is in a checkpoint's weights
    cfg.custom_hooks = []
    if others := [*((cfg.get("test_cfg") or {}).get("others") or {})]:
        print(f"--tta is of boxes, NOT TESTED with it: {others}")
        cfg.test_cfg.others = None
    return ConfigDict(around)


def refuse_other_weights(runner: Runner, checkpoint: str) -> None:
    """End where mmengine would log what is missing, or test what is no number."""
    if "://" in checkpoint:  # mmengine's to fetch
        return
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    check_weights(model, read_checkpoint(checkpoint), checkpoint)


def write_figures(cfg: Config) -> None:
    """Let our metrics write their figures, with their protocols, to the work directory.

    The first to ``figures.json``, others to ``figures_2.json`` and so on; those of the
    other tests of a :class:`TestSuiteLoop` to ``figures_NAME.json``.
    """
    others = (cfg.get("test_cfg") or {}).get("others") or {}
    tests = {"": cfg.get("test_evaluator")}
    tests.update({f"_{name}": test["evaluator"] for name, test in others.items()})
    ours = ("OpenVocabularyMetric", "RetrievalMetric", "SegMetric", "ZeroShotMetric")
    for name, evaluators in tests.items():
        evaluators = evaluators if isinstance(evaluators, list) else [evaluators or {}]
        # mmdet's own metrics write their results elsewhere
        known = [evaluator for evaluator in evaluators if evaluator.get("type") in ours]
        for number, evaluator in enumerate(known, 1):
            end = f"_{number}" if number > 1 else ""
            evaluator.setdefault("out_file", f"{cfg.work_dir}/figures{name}{end}.json")


def report_leaks(runner: Runner, checkpoint: str) -> None:
    """Log which novel classes the checkpoint had labels of, and write leaks.json."""
    meta = runner.test_loop.dataloader.dataset.metainfo
    novel = asked_groups(meta).get("novel")
    if novel is None or not is_main_process():
        return
    report = leak_report(checkpoint, novel)
    runner.logger.info(describe_leaks(report))
    dump(report, f"{runner.work_dir}/leaks.json", indent=1)


if __name__ == "__main__":
    main()
