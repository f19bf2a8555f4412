"""Hooks of mmengine."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.evaluation import CocoMetric, LVISMetric
from mmdet.registry import HOOKS
from mmengine.dist import all_reduce, broadcast, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from ..border import taken_apart
from ..clip import CachedTeacher
from ..datasets import OVCocoDataset
from ..evaluation.leaks import training_record, weight_files
from ..files import write_whole
from ..models.pretrained import read_weights
from ..models.student import Student, words_of_sample
from ..vocabulary import refuse_equal
from .loop import ResumableTrainLoop


@HOOKS.register_module()
class EmbeddingCacheHook(Hook):
    """Compares stored embeddings with the training, before it."""

    def before_train(self, runner: Runner) -> None:
        """Refuse to train with a store that does not fit."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        # a live teacher embeds what it is given: nothing to compare
        if isinstance(model.teacher, CachedTeacher):
            data = runner.train_dataloader.dataset
            model.teacher.admit(data, model.distill_heads, model.data_preprocessor)


@HOOKS.register_module()
class DistinctWordsHook(Hook):
    """Looks, before the first step, whether the CLIP can tell the words apart."""

    def __init__(self) -> None:
        self.looked = False

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Refuse words that are the same to the CLIP, see :func:`refuse_equal`."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if self.looked or not isinstance(model, Student):
            return
        self.looked = True
        samples = [s for s in data_batch["data_samples"] if "words" in s]
        for words in {words_of_sample(sample) for sample in samples}:
            firsts = [own[0] for own in words]
            vectors = dict(zip(firsts, model.text_encoder(firsts)))
            refuse_equal(words, vectors, model.text_encoder)


@HOOKS.register_module()
class TrainingRecordHook(Hook):
    """Keeps in checkpoints what the leak report reads and their config does not say.

    These are what the parts before a resumption began with and were trained on, and
    the classes that files of weights name: these may be gone when it is written.
    """

    def __init__(self) -> None:
        self.before: dict[str, Any] | None = None
        self.weights: dict[str, dict[str, Any]] = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep the record of the checkpoint that is resumed."""
        # weights of another training (load_from) are what this one begins with
        if runner.cfg.get("resume"):
            self.before = training_record(checkpoint)

    def before_train(self, runner: Runner) -> None:
        """Keep the records of the files of weights that name their classes."""
        # the first part of a resumed training has them
        files = [] if self.before else weight_files(runner.cfg.to_dict())
        for file in files:
            try:
                with taken_apart(file):
                    record = training_record(read_weights(file))
            # not ours to load: it stays unclear
            except (OSError, ValueError):
                continue
            if record["labels"]:
                self.weights[file] = record

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Write both; a ``resumed`` of None says that nothing was resumed."""
        checkpoint["meta"].update(resumed=self.before, began_with=self.weights)


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Looks for data that make a training, or its figures, mean nothing.

    Before validation and testing: mmdet's own COCO and LVIS metrics number classes in
    their file's order, our data sets in that of the words. In the first steps of a
    training: objects that are too small for the finest level of a detector to learn.

    Args:
        steps: training steps whose objects are looked at.
    """

    def __init__(self, steps: int = 10) -> None:
        self.steps = steps
        self.sides: list[Tensor] = []

    def before_val(self, runner: Runner) -> None:
        """Refuse a metric that names classes otherwise.

        Raises:
            ValueError: names both orders.
        """
        loop = runner.val_loop
        check_stock_metrics(loop.dataloader.dataset, loop.evaluator.metrics)

    def before_test(self, runner: Runner) -> None:
        """Refuse a metric that names classes otherwise; as ``before_val``."""
        loop = runner.test_loop
        check_stock_metrics(loop.dataloader.dataset, loop.evaluator.metrics)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Warn once where most objects are too small."""
        if len(self.sides) == self.steps or not isinstance(data_batch, dict):
            return
        samples = data_batch.get("data_samples") or ()
        boxes = [
            sample.gt_instances.bboxes
            for sample in samples
            if "bboxes" in sample.get("gt_instances", ())
        ]
        self.sides.append(
            torch.cat([short_sides(b) for b in boxes or [torch.empty(0)]])
        )
        if len(self.sides) == self.steps and (what := too_small(torch.cat(self.sides))):
            runner.logger.warning(f"In the first {self.steps} steps, {what}")


def short_sides(boxes: Any) -> Tensor:
    """(n,) the shorter sides of boxes (n, 4) xyxy, in pixels of the input."""
    boxes = getattr(boxes, "tensor", boxes).reshape(-1, 4)
    return (boxes[:, 2:] - boxes[:, :2]).min(1).values


def too_small(sides: Tensor, stride: int = 8) -> str | None:
    """What to say of objects that are too small for a detector; None where few are.

    Args:
        sides: (n,) shorter sides in pixels of the input.
        stride: of the finest level. A box narrower than 1.5 strides has at most one
            of its locations in it, or none.
    """
    small = int((sides < 1.5 * stride).sum())
    if 2 * small <= len(sides):
        return None
    return (
        f"{small} of {len(sides)} objects are narrower than {1.5 * stride:g} pixels of "
        f"the input, 1.5 strides of the finest level ({stride}): few locations lie in "
        "them, and little is learnt, though losses fall. Train on larger images (the "
        "scale of Resize), or on cut-outs of them."
    )


def check_stock_metrics(dataset: Any, metrics: Sequence[Any]) -> None:
    """Refuse mmdet's metrics where they would name our data set's labels otherwise.

    Raises:
        ValueError: a metric numbers the classes in the order of its file, and the data
            set in that of its words; names both.
    """
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    ours = getattr(dataset, "cat_ids", None)
    if not isinstance(dataset, OVCocoDataset) or not ours:
        return
    for metric in metrics:
        if not isinstance(metric, CocoMetric):  # LVISMetric is one, too
            continue
        # LVIS's asks all of its file; without a file the samples' labels are taken
        lvis = isinstance(metric, LVISMetric)
        api = metric._lvis_api if lvis else metric._coco_api
        if api is None:
            continue
        names = {} if lvis else dict(cat_names=dataset.metainfo["classes"])
        theirs = api.get_cat_ids(**names)
        if list(theirs) != list(ours):
            raise ValueError(
                f"{type(metric).__name__} numbers the classes in the order of its file "
                f"(categories {list(theirs)[:5]}, ...), the data set in the order of "
                f"its words (categories {list(ours)[:5]}, ...): each class would be "
                "compared with another. Take OpenVocabularyMetric (classwise=True has "
                "the AP of each class), or list the classes in the file's order."
            )


def refuse_broken_weights(runner: Runner, step: int) -> None:
    """End a training whose weights are not finite, in all processes together.

    Raises:
        FloatingPointError: says which checkpoint is the last.
    """
    state = runner.model.state_dict().values()
    finite = [value.isfinite().all() for value in state if value.is_floating_point()]
    good = torch.stack(finite).all().float() if finite else torch.ones(1)
    all_reduce(good, "min")
    if not good:
        kept = runner.message_hub.get_info("last_ckpt", None)
        raise FloatingPointError(
            f"after step {step} weights are no finite numbers, though the loss was: a "
            f"gradient was not. The training ends; the last checkpoint is "
            f"{kept or 'not written yet'}. Look at the first steps with "
            "tools/doctor.py CONFIG, and lower the learning rate."
        )


@register_backend("atomic")
class AtomicBackend(LocalBackend):
    """Local files, written atomically."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file: it has all of its new content, or is as it was."""
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, obj)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's hook, so that a kill at any moment leaves a checkpoint to resume from.

    On a local disk, checkpoints and ``last_checkpoint`` are written atomically. An old
    checkpoint is removed when the new one and ``last_checkpoint`` are there. All
    processes go on with what the checkpoint holds.
    """

    keep_ckpt_ids: deque[int]

    def before_train(self, runner: Runner) -> None:
        """Remove what a killed training left unfinished."""
        self._refuse_others(runner)
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend:
            self.backend_args = dict(backend="atomic")
            if is_main_process():
                for path in Path(self.out_dir).glob("*.pth.*.tmp"):
                    path.unlink()

    def _refuse_others(self, runner: Runner) -> None:
        """Forget what a checkpoint names for removal and no training of here wrote.

        mmengine removes the best checkpoint, a folder too, when there is a better one.
        """
        info = runner.message_hub.runtime_info
        work_dir = Path(runner.work_dir)
        own = {work_dir.resolve()}
        if self.out_dir:
            own.add(Path(self.out_dir, work_dir.resolve().name).resolve())
        for key in [key for key in info if str(key).startswith("best_ckpt")]:
            path = Path(str(info[key]))
            if path.resolve().parent not in own or not path.name.startswith("best_"):
                del info[key]
        steps = info.get("keep_ckpt_ids")
        steps = steps if isinstance(steps, list) else []
        info["keep_ckpt_ids"] = [step for step in steps if isinstance(step, int)]

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict[str, Any]
    ) -> None:
        # neither a loss nor weights that are no numbers are saved over good ones
        if isinstance(runner.train_loop, ResumableTrainLoop):
            runner.train_loop.look_at_losses()
        refuse_broken_weights(runner, step)
        # the statistics of norms (and other buffers) that only other processes have are
        # in no checkpoint: all go on with those of the first
        for buffer in runner.model.buffers():
            broadcast(buffer)
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        # a checkpoint names those beside it: where a training is killed before it
        # removes the oldest, the resumed one does
        limited = self.max_keep_ckpts > 0
        old = [i for i in self.keep_ckpt_ids if i != step] if limited else []
        if limited:
            runner.message_hub.update_info("keep_ckpt_ids", [*old, step])
        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_whole(
                Path(runner.work_dir) / "last_checkpoint", self.last_ckpt.encode()
            )
        # now those that are too many
        if limited:
            excess = max(len(old) + 1 - self.max_keep_ckpts, 0)
            self.keep_ckpt_ids = deque([*old[excess:], step])
            if is_main_process():
                for path in map(self._path, old[:excess]):
                    if self.file_backend.isfile(path):
                        self.file_backend.remove(path)

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(
            self.out_dir, self.filename_tmpl.format(step)
        )
