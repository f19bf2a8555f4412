"""Hooks of mmengine."""

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..clip import CachedTeacher


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
