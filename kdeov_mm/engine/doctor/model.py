"""Checks of the model: teacher, trained parameters, first scores and steps."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from ...models import RegionDistillation
from .finding import Checks, Finding, Stop, stage

PARTS = ("backbone", "neck", "bbox_head")


def build_model(cfg: Config) -> Any:
    """The detector of a config, in training."""
    clips = cfg.model.get("teacher"), cfg.model.text_encoder
    names = [(c.get("model"), c.get("pretrained")) for c in clips if c]
    if len(set(names)) > 1:
        stored = str(cfg.model.teacher.type).endswith("CachedTeacher")
        raise Stop(
            "cache of another teacher" if stored else "another teacher",
            f"model.teacher is the CLIP {names[0]}, model.text_encoder is {names[1]}.",
        )
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
    if not isinstance(teacher, CachedTeacher):
        return

    hooks = [*cfg.get("default_hooks", {}).values(), *cfg.get("custom_hooks", ())]
    if not any(hook and "EmbeddingCacheHook" in str(hook["type"]) for hook in hooks):
        raise Stop(
            "cache",
            "no EmbeddingCacheHook: stored embeddings are not checked, and the teacher "
            "refuses to give them out.",
        )
    try:
        teacher.admit(dataset, model.pupils, model.data_preprocessor)
    except (StoreMismatch, OSError, ValueError) as error:
        other = "is of another teacher" in str(error)
        name = "cache of another teacher" if other else "cache"
        raise Stop(name, str(error)) from error
    yield f"store: {teacher.folder}, of this teacher, data set and pipeline."


def check_frozen(cfg: Config, model: Any) -> Checks:
    """Parts of the student that no optimizer step can change."""
    # id of a parameter -> learning rate
    rates: dict[int, float] = {}
    if "optim_wrapper" in cfg:
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        for group in wrapper.optimizer.param_groups:
            rates.update({id(p): group["lr"] for p in group["params"]})

    init = cfg.model.backbone.get("init_cfg") or {}
    pretrained = init.get("type") == "Pretrained" or bool(cfg.get("load_from"))
    for name in PARTS:
        total, learning = 0, 0
        for p in getattr(model, name).parameters():
            total += p.numel()
            if p.requires_grad and rates.get(id(p), 1.0) > 0:
                learning += p.numel()
        share = learning / total
        yield f"{name}: {share:.0%} of its parameters are trained."
        # a pretrained backbone may be frozen, a new one not even in part
        enough = 0.5 if pretrained else 1.0
        if share < enough and not (pretrained and name == "backbone"):
            yield Finding(
                "frozen student", f"{share:.0%} of the {name}'s parameters are trained."
            )


@torch.no_grad()
def check_scores(model: Any, batch: Sequence[Any]) -> Checks:
    """Scores before the first step: near their prior, different between words."""
    data = model.data_preprocessor(pseudo_collate(batch), True)
    words = data["data_samples"][0].metainfo["text"]
    samples = [DetDataSample(metainfo=dict(text=words))] * len(batch)
    levels = model(data["inputs"], samples, mode="tensor")["predictions"][0]
    logits = torch.cat([m.flatten(2) for m in levels], 2)  # L x (B, K, h, w) -> B, K, N

    mean = logits.sigmoid().mean().item()
    spread = logits.std(1).mean().item() if len(words) > 1 else float("nan")
    yield f"scores at step 0: mean {mean:.5f}, spread over words {spread:.3f} logits."
    if spread < 1e-3:
        yield Finding(
            "flat scores",
            f"all {len(words)} words get the same score (spread {spread:.1e}).",
        )
    if mean > 0.2:
        yield Finding(
            "no prior",
            f"the mean score at step 0 is {mean:.2f}: the class loss starts very high.",
        )


def check_steps(model: Any, batches: Sequence[Sequence[Any]]) -> Checks:
    """Loss terms, positives and gradients of a few batches."""
    not_finite = watch_outputs(model)
    positives = watch_positives(model)
    heads = watch_terms(model)
    # own boxes are random in the warm-up: begin after it
    for module in model.modules():
        if isinstance(module, RegionDistillation):
            module.steps.fill_(module.warmup)

    means: Counter[str] = Counter()
    for batch in batches:
        data = model.data_preprocessor(pseudo_collate(batch), True)
        total, terms = model.parse_losses(model(**data, mode="loss"))
        total.backward()
        terms.pop("loss")
        for name, value in terms.items():
            means[name] += value.item() / len(batches)

    yield "loss terms: " + ", ".join(f"{k} {v:.3g}" for k, v in means.items())
    yield "positives per level: " + ", ".join(map(str, positives.values()))
    for name, value in means.items():
        yield from check_term(
            f"{name} of {heads.get(name, 'bbox_head')}", value, not_finite
        )
    if not positives.total():
        yield Finding("no positives", "no location is assigned to any object.")
    for name in PARTS:
        learning = [p for p in getattr(model, name).parameters() if p.requires_grad]
        gradients = [p.grad for p in learning if p.grad is not None]
        if learning and not any(gradient.any() for gradient in gradients):
            yield Finding("no gradient", f"no gradient reaches the {name}.")


def check_term(term: str, value: float, not_finite: Sequence[str]) -> Checks:
    """Whether a loss term is a number, and not 0."""
    if value - value != 0:
        module = not_finite[0] if not_finite else "none: it comes from the loss itself"
        yield Finding(
            "loss not finite",
            f"{term} is {value}; first module with such an output: {module}.",
        )
    elif value == 0:
        yield Finding("zero loss", f"{term} is 0 in all batches.")


def watch_outputs(model: Any) -> list[str]:
    """Names of modules whose output is not finite; filled by the forward passes."""
    names: list[str] = []

    def look(name: str, module: Any, inputs: Any, output: Any) -> None:
        parts = output if isinstance(output, (list, tuple)) else [output]
        if any(isinstance(p, Tensor) and not p.isfinite().all() for p in parts):
            names.append(name)

    for name, module in model.named_modules():
        module.register_forward_hook(partial(look, name))
    return names


def watch_positives(model: Any) -> Counter[int]:
    """Positive locations by level; filled by the forward passes."""
    positives: Counter[int] = Counter()
    head = model.bbox_head

    def count(module: Any, inputs: Any, result: dict[str, Tensor]) -> None:
        mask = result["fg_mask_pre_prior"]  # (B, N)
        for level, part in enumerate(mask.split(head.num_level_priors, 1)):
            positives[level] += int(part.sum())

    head.assigner.register_forward_hook(count)
    return positives


def watch_terms(model: Any) -> Mapping[str, str]:
    """Loss term -> the distillation head that returned it; filled by the steps."""
    owners: dict[str, str] = {}

    def watched(name: str, loss: Callable, *args: Any) -> dict[str, Tensor]:
        terms = loss(*args)
        module = f"distill.{name}" if name in model.distill else name
        for key in terms:
            # of two heads with a term of one name, the model renames the second
            owners.setdefault(key, module)
            owners[f"{key}_{name}"] = module
        return terms

    for name, head in model.pupils.items():
        head.loss = partial(watched, name, head.loss)
    return owners
