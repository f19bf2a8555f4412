"""Loops: a training that is resumed ends with the same bits; several tests in one."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.registry import LOOPS
from mmengine.dist import broadcast
from mmengine.runner import IterBasedTrainLoop, Runner, TestLoop
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..datasets.sampler import STEP, ResumableSampler, SeededDataset, seed_from

LOOK_EVERY = 25  # steps on a GPU; the log's interval, which waits as well
OVERFLOWS = 10  # steps in a row that a scaler of half precision may leave out
RECORD = "data_sequence"  # what the order of the data depends on, in a checkpoint


@LOOPS.register_module()
class ResumableTrainLoop(IterBasedTrainLoop):
    """mmengine's loop by iterations, whose random numbers depend on the step alone.

    The random numbers of a step (words, places) are a function of seed, step and rank;
    those of a sample (augmentation) of seed and its position, see
    :class:`ResumableSampler`. A resumed training begins its data at the position of its
    step, without reading what came before.

    Args:
        runner: mmengine's.
        dataloader: its config, with ``sampler=dict(type="ResumableSampler")``.
        **kwargs: of ``IterBasedTrainLoop``: ``max_iters``, ``val_interval``, ...

    Raises:
        TypeError: the data loader is no config, or has another sampler.
    """

    def __init__(self, runner: Runner, dataloader: Any, **kwargs: Any) -> None:
        loader = _build_loader(runner, dataloader)
        self.sampler = _sampler_of(loader, dataloader)
        # the parent starts the loader that it is given, before the step is known from
        # which to go on: one without workers, which is not used
        super().__init__(runner, DataLoader(loader.dataset), **kwargs)
        self.dataloader = loader
        self._in_a_row = 0  # steps whose loss was no number
        self._seen: list[tuple[int, dict[str, Tensor], list[Any]]] = []

    def run(self) -> nn.Module:
        """Train from the step of the checkpoint, or from the first."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.begin_data()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._decide_current_val_interval()
            # validation, by mmengine's rules
            last = self._iter == self._max_iters
            due = last or self._iter % self.val_interval == 0
            if (
                self.runner.val_loop is not None
                and self._iter >= self.val_begin
                and due
            ):
                self.runner.val_loop.run()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def begin_data(self) -> None:
        """Start the data at the present step; warn of what an exact resume forbids."""
        # a checkpoint brings its seed; all ranks share one order
        seed = torch.tensor(self.runner.seed)
        broadcast(seed)
        self.seed = int(seed)
        sampler, batch_size = self.sampler, self.dataloader.batch_size or 1
        sampler.seed, sampler.start = self.seed, self._iter * batch_size
        # what the checkpoint says of its data
        record = dict(
            images=sampler.size,
            batch_size=batch_size,
            processes=sampler.world_size,
            shuffle=sampler.shuffle,
        )
        if self._iter > 0:
            held = self.runner.message_hub.get_info(RECORD, {})
            self._compare(held if isinstance(held, dict) else {}, record)
        self.runner.message_hub.update_info(RECORD, record)
        self.dataloader_iterator = iter(self.dataloader)

    def run_iter(self, data_batch: Sequence[dict]) -> None:
        """One step, with its own random numbers.

        Raises:
            FloatingPointError: the loss is no finite number.
        """
        seed_from(STEP, self.seed, self._iter, self.runner.rank)
        self.runner.call_hook(
            "before_train_iter", batch_idx=self._iter, data_batch=data_batch
        )
        losses = self.runner.model.train_step(
            data_batch, optim_wrapper=self.runner.optim_wrapper
        )
        # before hooks save what it made of the weights
        self.check_losses(losses, data_batch)
        self.runner.call_hook(
            "after_train_iter",
            batch_idx=self._iter,
            data_batch=data_batch,
            outputs=losses,
        )
        self._iter += 1

    def check_losses(self, losses: dict[str, Any], data_batch: Any) -> None:
        """End a training whose loss is not finite; nothing is saved any more.

        On a GPU it is looked at every so many steps, and before a checkpoint is saved:
        each look waits for all that the GPU has to do.

        Raises:
            FloatingPointError: names step, terms and images, and what to do.
        """
        total = losses.get("loss") if isinstance(losses, dict) else None
        if not isinstance(total, Tensor):
            return
        # not the pictures, which would stay in memory
        samples = data_batch.get("data_samples") if isinstance(data_batch, dict) else ()
        samples = samples if isinstance(samples, (list, tuple)) else ()
        ids = [getattr(s, "metainfo", {}).get("img_id") for s in samples]
        values = {k: v.detach() for k, v in losses.items() if isinstance(v, Tensor)}
        self._seen.append((self._iter, values, ids))
        if total.device.type == "cpu" or len(self._seen) == LOOK_EVERY:
            self.look_at_losses()

    def look_at_losses(self) -> None:
        """As :meth:`check_losses`, of the steps since the last look.

        Where a scaler of half precision leaves out a step that overflows, one such step
        is no harm, but many in a row are.
        """
        seen, self._seen = self._seen, []
        scaler = getattr(self.runner.optim_wrapper, "loss_scaler", None)
        allowed = OVERFLOWS if scaler is not None and scaler.is_enabled() else 0
        for step, losses, ids in seen:
            self._in_a_row = 0 if losses["loss"].isfinite() else self._in_a_row + 1
            if self._in_a_row > allowed:
                values = {key: float(value) for key, value in losses.items()}
                wrong = {k: v for k, v in values.items() if not math.isfinite(v)}
                kept = self.runner.message_hub.get_info("last_ckpt", None)
                raise FloatingPointError(
                    f"step {step + 1}: {wrong} of images {ids}. The training ends; the "
                    f"last checkpoint is {kept or 'not written yet'}. Look at the data "
                    "and the first losses with tools/doctor.py CONFIG, and lower the "
                    "learning rate."
                )

    def _compare(self, held: dict[str, Any], record: dict[str, Any]) -> None:
        changed = [
            f"{key} was {held.get(key, 'not recorded')}, is {value}"
            for key, value in record.items()
            if held.get(key) != value
        ]
        if changed:
            self.runner.logger.log(
                logging.WARNING,
                f"This training goes on from step {self._iter}, but will not end as "
                f"the undisturbed one: {'; '.join(changed)}. The steps that are left, "
                "their learning rates and the seed are the checkpoint's; the images "
                "are those of this step in the new sequence.",
            )
        # checkpoints of 0.1.0, whose losses were sums over the batch
        if not held:
            self.runner.logger.log(
                logging.WARNING,
                "The checkpoint is of an earlier version, whose gradients were larger "
                "and clipped at 10. AdamW remembers that for some thousand steps and "
                "moves less: begin anew with these weights (load_from=CKPT, without "
                "--resume), or finish the training with the earlier version.",
            )


def _build_loader(runner: Runner, dataloader: Any) -> DataLoader:
    """The loader of a config, its samples seeded one by one."""
    if not isinstance(dataloader, dict):
        raise TypeError(
            "ResumableTrainLoop builds its data loader from a config, "
            f"train_dataloader=dict(...), got a {type(dataloader).__name__}"
        )
    seeded = dict(type=SeededDataset, dataset=dataloader["dataset"])
    return runner.build_dataloader(dict(dataloader, dataset=seeded), runner.seed)


def _sampler_of(loader: DataLoader, dataloader: dict[str, Any]) -> ResumableSampler:
    """The loader's sampler; TypeError unless it can begin anywhere."""
    # a batch sampler, too, leaves the loader with another one
    if not isinstance(loader.sampler, ResumableSampler):
        found = {key: dataloader.get(key) for key in ("sampler", "batch_sampler")}
        raise TypeError(
            "ResumableTrainLoop needs to know which images a step has: expected "
            "train_dataloader.sampler=dict(type='ResumableSampler', shuffle=True) and "
            f"no batch_sampler, got {found}. Set these (with _delete_=True where a "
            "_base_ has another), or train_cfg.type='IterBasedTrainLoop', which on "
            "--resume reads all past data again and draws other random numbers."
        )
    return loader.sampler


@LOOPS.register_module()
class TestSuiteLoop(TestLoop):
    """mmengine's test, and others of the same model after it, in one run.

    A detector with a global head is tested on boxes, captions and single objects. All
    metrics are logged and written together, each report under its own protocol.

    Args:
        runner: mmengine's.
        dataloader: of the first test, ``test_dataloader``.
        evaluator: of the first test, ``test_evaluator``.
        others: name -> ``dict(dataloader=..., evaluator=...)``.
        fp16: mmengine's.

    Raises:
        ValueError: metrics of two tests would have the same names.
    """

    __test__ = False  # pytest takes the name for a test
    dataloader: Any
    evaluator: Any

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        evaluator: Any,
        others: Mapping[str, Mapping[str, Any]] | None = None,
        fp16: bool = False,
    ) -> None:
        super().__init__(runner, dataloader, evaluator, fp16)
        self.tests = {"test": (self.dataloader, self.evaluator)}
        for name, test in (others or {}).items():
            loop = TestLoop(runner, test["dataloader"], test["evaluator"], fp16)
            self.tests[name] = loop.dataloader, loop.evaluator
        # metrics are told apart by their prefixes
        sets = [{m.prefix for m in e.metrics} for _, e in self.tests.values()]
        prefixes = [prefix for each in sets for prefix in each]
        twice = sorted({str(p) for p in prefixes if prefixes.count(p) > 1})
        if twice:
            raise ValueError(
                f"the tests {[*self.tests]} have metrics with the same prefix, {twice}:"
                " give each evaluator another `prefix`."
            )
        runner.visualizer.dataset_meta = getattr(
            self.dataloader.dataset, "metainfo", None
        )

    def run(self) -> dict[str, Any]:
        """Test one after the other; the metrics of all."""
        first = self.dataloader, self.evaluator
        self.runner.call_hook("before_test")
        self.runner.call_hook("before_test_epoch")
        self.runner.model.eval()
        metrics: dict[str, Any] = {}
        for name, test in self.tests.items():
            # hooks and the parent's step know the test of the loop
            self.dataloader, self.evaluator = test
            if len(self.tests) > 1:
                self.runner.logger.info(f"{name}: {len(self.dataloader)} batches")
            for i, batch in enumerate(self.dataloader):
                self.run_iter(i, batch)
            metrics.update(self.evaluator.evaluate(len(self.dataloader.dataset)))
        self.dataloader, self.evaluator = first
        self.runner.call_hook("after_test_epoch", metrics=metrics)
        self.runner.call_hook("after_test")
        return metrics
