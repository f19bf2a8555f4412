"""Hooks of mmengine."""

from typing import Any

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..clip import CachedTeacher
from ..evaluation.leaks import training_record


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
class TrainingRecordHook(Hook):
    """Keeps in checkpoints what the parts before a resumption were trained on.

    The leak report reads it: the config of a resumed training does not say what the
    training began with.
    """

    def __init__(self) -> None:
        self.before: dict[str, Any] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep the record of the checkpoint that is resumed."""
        # weights of another training (load_from) are what this one begins with
        if runner.cfg.get("resume"):
            self.before = training_record(checkpoint)

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Write it to the new one; None says that nothing was resumed."""
        checkpoint["meta"]["resumed"] = self.before
