"""Checks of the model: teacher, trained parameters, first scores and steps."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from torch import Tensor

from ...clip import CachedTeacher, StoreMismatch
from ...clip.cached_teacher import teacher_identity
from ...models.pretrained import pretrained_cfgs
from .finding import Checks, Finding, Stop, stage

PARTS = ("backbone", "neck", "bbox_head", "rpn_head", "roi_head")


def build_model(cfg: Config) -> Any:
    """The detector of a config, in training."""
    teacher, words = cfg.model.get("teacher"), cfg.model.text_encoder
    # the model would refuse two CLIPs, too, but not name a store
    if teacher and any(teacher.get(k) != words.get(k) for k in ("model", "pretrained")):
        stored = teacher.type.endswith("CachedTeacher")
        name = "cache of another teacher" if stored else "another teacher"
        raise Stop(name, f"model.teacher is {teacher}, model.text_encoder {words}.")
    with stage("model"):
        model = MODELS.build(cfg.model)
        model.init_weights()
        return model.train()


def check_teacher(cfg: Config, model: Any, dataset: Any) -> Checks:
    """Hashes of the CLIPs, and whether a store belongs to this training."""
    words = model.text_encoder.identity
    yield f"words: CLIP '{words['model']}', weights {words['weights_sha256'][:16]}."
    teacher = model.teacher
    if teacher is None:
        yield "teacher: none, no distillation."
        return
    weights = teacher_identity(teacher.source)["weights_sha256"]
    yield f"teacher: weights {weights[:16]}."
    # a live teacher embeds the images itself: nothing to compare
    if not isinstance(teacher, CachedTeacher):
        return

    # without the hook a training would fail at its first step
    hooks = [*cfg.get("default_hooks", {}).values(), *cfg.get("custom_hooks", ())]
    if not any(hook and "EmbeddingCacheHook" in str(hook["type"]) for hook in hooks):
        raise Stop("cache", "no EmbeddingCacheHook: nothing checks the store.")
    try:
        teacher.admit(dataset, model.distill_heads, model.data_preprocessor)
    except (StoreMismatch, OSError, ValueError) as error:
        other = " of another teacher" if "is of another teacher" in str(error) else ""
        raise Stop(f"cache{other}", str(error)) from error
    yield f"store: {teacher.folder}, of this teacher, data set and pipeline."


def check_frozen(cfg: Config, model: Any) -> Checks:
    """Parts of the student that no optimizer step can change."""
    # id of a parameter -> its learning rate
    rates: dict[int, float] = {}
    if "optim_wrapper" in cfg:
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        for group in wrapper.optimizer.param_groups:
            rates.update({id(p): group["lr"] for p in group["params"]})

    # how much has to be trained: pretrained weights may stay as they are
    files = pretrained_cfgs(cfg.model.backbone.get("init_cfg"))
    pretrained = bool(files or cfg.get("load_from"))
    for name in parts_of(model):
        parameters = list(getattr(model, name).parameters())
        learning = [p for p in parameters if p.requires_grad and rates.get(id(p), 1)]
        share = sum(p.numel() for p in learning) / sum(p.numel() for p in parameters)
        what = f"{share:.0%} of the {name}'s parameters are trained."
        yield what
        # a pretrained backbone may be frozen, a new one not even in part
        enough = 1.0 if not pretrained else 0.0 if name == "backbone" else 0.5
        if share < enough:
            yield Finding("frozen student", what)


@torch.no_grad()
def check_scores(model: Any, batch: Sequence[Any]) -> Checks:
    """Scores before the first step: near their prior, different between words."""
    # all words of the data, not the random ones of a step
    data = model.data_preprocessor(pseudo_collate(batch), True)
    words = data["data_samples"][0].metainfo["words"]
    samples = [DetDataSample(metainfo=dict(words=words))] * len(batch)
    levels = model(data["inputs"], samples, mode="tensor")["predictions"][0]
    logits = torch.cat([m.flatten(2) for m in levels], 2)  # L (B, K, h, w) -> (B, K, N)

    mean = logits.sigmoid().mean().item()
    spread = logits.std(1).mean().item() if len(words) > 1 else float("nan")
    yield f"scores at step 0: mean {mean:.5f}, spread over words {spread:.3f} logits."
    if spread < 1e-3:
        what = f"all {len(words)} words get the same score (spread {spread:.1e})."
        yield Finding("flat scores", what)
    # shares of two stages sum to 1 over few words
    if mean > 0.2 and not hasattr(model, "roi_head"):
        what = f"the mean score at step 0 is {mean:.2f}: a very large class loss."
        yield Finding("no prior", what)


def check_steps(model: Any, batches: Sequence[Sequence[Any]]) -> Checks:
    """Loss terms, positives and gradients of a few batches."""
    # filled by hooks during the steps
    not_finite = watch_outputs(model)
    positives = watch_positives(model)

    # loss term -> its mean over the batches
    means: Counter[Any] = Counter()
    for batch in batches:
        data = model.data_preprocessor(pseudo_collate(batch), True)
        total, terms = model.parse_losses(model(**data, mode="loss"))
        total.backward()
        del terms["loss"]
        means.update({k: v.item() / len(batches) for k, v in terms.items()})

    # observations, then what is wrong with the terms
    yield "loss terms: " + ", ".join(f"{k} {v:.3g}" for k, v in means.items())
    yield f"positives per level: {', '.join(map(str, positives.values()))}"
    for name, mean in means.items():
        term = f"{name} of {module_of(model, name)}"
        if not math.isfinite(mean):
            first = next(iter(not_finite), "none: it comes from the loss itself")
            what = f"{term} is {mean}; first module with such an output: {first}."
            yield Finding("loss not finite", what)
        # a distance of distillation may be small; that of a detector's boxes may not
        elif "loss" in name and (
            mean == 0 or abs(mean) < 1e-6 and module_of(model, name) == "bbox_head"
        ):
            yield Finding("zero loss", f"{term} is {mean:.2g} in all batches.")
    # what the losses reach: locations, and parameters of each part
    if not positives.total():
        yield Finding("no positives", "no location is assigned to any object.")
    for name in parts_of(model):
        learning = [p for p in getattr(model, name).parameters() if p.requires_grad]
        if learning and not any(p.grad is not None and p.grad.any() for p in learning):
            yield Finding("no gradient", f"no gradient reaches the {name}.")


def parts_of(model: Any) -> list[str]:
    """The names of a detector's parts, of one stage or two."""
    return [name for name in PARTS if hasattr(model, name)]


def watch_outputs(model: Any) -> list[str]:
    """Names of modules whose output is not finite; filled by the forward passes."""
    names: list[str] = []

    def look(name: str, module: Any, inputs: Any, output: Any) -> None:
        parts = output if isinstance(output, (list, tuple)) else [output]
        # the first name is the cause: later modules only pass it on
        if any(isinstance(p, Tensor) and not p.isfinite().all() for p in parts):
            names.append(name)

    for name, module in model.named_modules():
        module.register_forward_hook(partial(look, name))
    return names


def watch_positives(model: Any) -> Counter[Any]:
    """Positives, filled by the forward passes: locations by stride, small first, or
    all proposals of a two-stage detector."""
    positives: Counter[Any] = Counter()
    if hasattr(model, "roi_head"):
        sampler = model.roi_head.bbox_sampler
        draw = sampler.sample

        def drawn(*args: Any, **kwargs: Any) -> Any:
            result = draw(*args, **kwargs)
            positives["proposals"] += len(result.pos_priors)
            return result

        sampler.sample = drawn
        return positives

    def count(module: Any, inputs: Any, result: dict[str, Tensor]) -> None:
        # centres and strides of the locations (N, 4), and what is matched (B, N)
        strides, mask = inputs[2][:, 2], result["fg_mask_pre_prior"]
        for stride in strides.unique().tolist():
            positives[stride] += int(mask[:, strides == stride].sum())

    model.bbox_head.assigner.register_forward_hook(count)
    return positives


def module_of(model: Any, term: str) -> str:
    """The module of a loss term; of two with the same term, the second's is renamed."""
    for name, head in model.distill_heads.items():
        if {term, term.removesuffix(f"_{name}")} & set(head.loss_names):
            return f"distill.{name}" if name in model.distill else name
    if hasattr(model, "roi_head"):
        return "rpn_head" if "rpn" in term else "roi_head"
    return "bbox_head"
