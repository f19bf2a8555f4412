"""Hooks of a training."""

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..clip import CachedTeacher


@HOOKS.register_module()
class EmbeddingCacheHook(Hook):
    """Checks stored embeddings against the training, before it.

    A config with a :class:`kdeov_mm.clip.CachedTeacher` needs it:
    ``default_hooks = dict(cache=dict(type="EmbeddingCacheHook"))``.
    """

    def before_train(self, runner: Runner) -> None:
        """Refuse to train with a store that does not fit."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        # a model's other teachers embed the images themselves: nothing to check
        if isinstance(model.teacher, CachedTeacher):
            data = runner.train_dataloader.dataset
            model.teacher.admit(data, model.pupils, model.data_preprocessor)
