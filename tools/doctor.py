"""Look for what makes a training fail, before it runs.

    python tools/doctor.py CONFIG

Builds the config, passes a few batches through pipeline, student and losses, and
says in plain words what it found. Exit code 0: nothing wrong; 1: something is, with
its likely cause and the fix. What a config does on purpose it can accept:
``doctor = dict(accept=["novel boxes"])`` in the config.
"""

import argparse
import json
import sys
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import Tensor

from kdeov_mm.clip import CachedTeacher, StoreMismatch
from kdeov_mm.clip.cached_teacher import teacher_identity
from kdeov_mm.models import RegionDistillation
from kdeov_mm.vocabulary import asked_groups, clean_name

FAILURES = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Finding(NamedTuple):
    """Something wrong.

    Attributes:
        name: what a config's ``doctor.accept`` calls it.
        what: what was found.
        cause: the likely cause.
        fix: what to do.
    """

    name: str
    what: str
    cause: str
    fix: str


class Stop(Exception):
    """A finding after which nothing else can be looked at."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.what)
        self.finding = finding


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", help="training config")
    parser.add_argument("--batches", type=int, default=3, help="batches to look at")
    args = parser.parse_args(argv)
    if args.batches < 1:
        parser.error("--batches needs at least one")
    if not Path(args.config).is_file():
        parser.error(f"{args.config} does not exist")
    torch.manual_seed(0)
    MMLogger.get_instance("doctor", log_level="ERROR")  # mmengine lists all weights
    cfg = Config.fromfile(args.config, lazy_import=False)
    if not cfg.get("train_dataloader"):
        parser.error(f"{args.config} has no train_dataloader")
    if "bbox_head" not in cfg.model:
        parser.error(f"{args.config} has no bbox_head: detectors are examined here")
    accepted = set(cfg.get("doctor", {}).get("accept", ()))
    findings: list[Finding] = []
    try:
        findings.extend(examine(cfg, args.batches))
    except Stop as stop:
        findings.append(stop.finding)
        print("The rest was not looked at.")
    wrong = [f for f in findings if f.name not in accepted]
    for finding in findings:
        mark = "WRONG" if finding.name not in accepted else "accepted by the config"
        print(f"\n{mark}: {finding.name}\n  {finding.what}")
        print(f"  Likely cause: {finding.cause}\n  Fix: {finding.fix}")
    print(f"\n{len(wrong)} things are wrong." if wrong else "\nNothing is wrong.")
    return 1 if wrong else 0


def examine(cfg: Config, num_batches: int) -> Iterator[Finding]:
    """All findings; what is no finding is printed."""
    init_default_scope(cfg.get("default_scope", "mmdet"))
    loaders = dict(training="train_dataloader", test="test_dataloader")
    if cfg.get("val_dataloader") != cfg.get("test_dataloader"):
        loaders["validation"] = "val_dataloader"
    loaders = {name: loader for name, loader in loaders.items() if cfg.get(loader)}
    yield from vocabulary_of(cfg, loaders)
    datas = {name: build_data(cfg, loader) for name, loader in loaders.items()}
    train = datas["training"]
    count = num_batches * 8
    drawn = {
        name: attempt("pipeline", partial(draw, data, count))
        for name, data in datas.items()
    }
    for name, data in datas.items():
        words = words_of(drawn[name])
        yield from attempt("data set", partial(class_order, name, data, words))
        yield from pixels_of(cfg, name, drawn[name])
    words, samples = words_of(drawn["training"]), drawn["training"]
    if "test" in datas:
        yield from novel_leaks(train, datas["test"], words)
    yield from pipeline_of(train, samples)
    model = build_model(cfg)
    attempt("teacher", partial(check_teacher, cfg, model, train))
    yield from frozen(cfg, model)
    size = -(-len(samples) // num_batches)
    batches = [samples[i : i + size] for i in range(0, len(samples), size)]
    yield from attempt("forward", partial(logits_of, model, batches[0]))
    yield from attempt("training step", partial(some_steps, model, batches))


def draw(data: Any, count: int) -> list[Any]:
    """The first samples, through the pipeline."""
    return [data[i] for i in range(min(len(data), count))]


def attempt(name: str, work: Callable[[], Any]) -> Any:
    """The result of some work, a generator run to its end; a failure is a finding."""
    try:
        result = work()
        return list(result) if isinstance(result, Iterator) else result
    except (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        RuntimeError,
    ) as error:
        raise Stop(
            Finding(
                name,
                f"{type(error).__name__}: {error}",
                "what the message says.",
                "what the message says; the rest of the report may tell more.",
            )
        ) from error


# ------------------------------------------------------------------------- data


def vocabulary_of(cfg: Config, loaders: dict[str, str]) -> Iterator[Finding]:
    """Words before anything is built: building fails on some of these."""
    words: dict[str, Any] = {}
    for name, loader in loaders.items():
        for data in innermost(cfg[loader].dataset):
            if "classes" in (data.get("metainfo") or {}):
                words[f"metainfo.classes of the {name} data"] = data.metainfo["classes"]
            for step in data.get("pipeline", ()):
                if str(step["type"]).split(".")[-1] == "LoadWords":
                    words[f"words of LoadWords of the {name} data"] = step["words"]
    if (cfg.model.get("vocabulary") or {}).get("size", 1) < 1:
        words["model.vocabulary, by its size"] = ()
    for where, given in words.items():
        given = [given] if isinstance(given, str) else list(given)
        if not given or not all(str(word).strip() for word in given):
            raise Stop(
                Finding(
                    "empty vocabulary",
                    f"{where}: {'no words' if not given else 'an empty word'}.",
                    "a list that was meant to be filled, or the wrong variable.",
                    "name the classes, in the order of the labels.",
                )
            )
        twice = [word for word, count in Counter(given).items() if count > 1]
        if twice:
            yield Finding(
                "word twice",
                f"{where}: {twice[:5]} are there more than once.",
                "lists joined that overlap.",
                "give each class a name of its own.",
            )


def innermost(data: Any) -> list[Any]:
    """The configs of the data sets inside wrappers."""
    if "datasets" in data:
        return [part for inner in data["datasets"] for part in innermost(inner)]
    return innermost(data["dataset"]) if "dataset" in data else [data]


def build_data(cfg: Config, loader: str) -> Any:
    """A data set; a failure becomes a finding."""
    try:
        return DATASETS.build(cfg[loader].dataset)
    except FAILURES as error:
        raise Stop(
            Finding(
                "data set",
                f"{loader}.dataset cannot be built: {error}",
                "a path, a class name or an argument of the data set.",
                "what the message says; data/shapes is written by "
                "tools/make_shapes.py.",
            )
        ) from error


def parts_of(data: Any) -> list[Any]:
    """The data sets inside wrappers."""
    if hasattr(data, "datasets"):
        return [part for inner in data.datasets for part in parts_of(inner)]
    return parts_of(data.dataset) if hasattr(data, "dataset") else [data]


def labels_of(data: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each image's record with each of its boxes, as the data set numbers them."""
    for i in range(len(data)):
        info = data.get_data_info(i)
        for box in info.get("instances", ()):
            yield info, box


def words_of(samples: Sequence[Any]) -> tuple[str, ...]:
    """The words that samples carry, as the CLIP reads them."""
    words = samples[0]["data_samples"].metainfo.get("text", ()) if samples else ()
    words = (words,) if isinstance(words, str) else words
    return tuple(clean_name(w if isinstance(w, str) else w[0]) for w in words)


def class_order(name: str, data: Any, words: Sequence[str]) -> Iterator[Finding]:
    """Labels against the names in the annotation files."""
    if not words:
        raise Stop(
            Finding(
                "empty vocabulary",
                f"samples of the {name} data carry no words.",
                "no classes, no LoadWords, or 'text' is not among meta_keys of "
                "PackDetInputs.",
                "use OVCocoDataset or LoadWords, and add 'text' to meta_keys.",
            )
        )
    wrong: Counter[tuple[str, ...]] = Counter()
    count, beyond, unnamed = 0, 0, Counter[str]()
    for part in parts_of(data):
        truth = truth_of(part)
        for names in truth.values():
            unnamed.update(names - set(words))
        for info, box in labels_of(part):
            key = (str(info["img_id"]), *(round(float(v)) for v in box["bbox"]))
            label = box["bbox_label"]
            beyond += label >= len(words)
            if key in truth and label < len(words):
                count += 1
                if words[label] not in truth[key]:
                    wrong[(words[label], *sorted(truth[key]))] += 1
    print(
        f"{name} data: {len(data)} images, {len(words)} words, {count} labels "
        f"compared with their files; {sum(unnamed.values())} boxes in the files have "
        f"no word{some(list(unnamed))}."
    )
    if beyond:
        yield Finding(
            "boxes without words",
            f"{name} data: {beyond} boxes have labels beyond the {len(words)} words.",
            "LoadWords names fewer classes than the data set has.",
            "give LoadWords the data set's metainfo.classes.",
        )
    if wrong:
        examples = ", ".join(
            f"'{' or '.join(real)}' is called '{said}'"
            for (said, *real), _ in wrong.most_common(3)
        )
        yield Finding(
            "class order",
            f"{name} data: {sum(wrong.values())} of {count} labels have another "
            f"name than in the file: {examples}.",
            "the classes are listed in another order than the data set numbers them "
            "(mmdet's CocoDataset numbers in the file's order).",
            "use OVCocoDataset, which matches by name, or list the classes of "
            "metainfo and LoadWords in the order of the labels.",
        )


def truth_of(data: Any) -> dict[tuple, set[str]]:
    """(image id, box xyxy rounded) -> names, read from the files themselves."""
    truth: dict[tuple, set[str]] = defaultdict(set)
    if str(getattr(data, "ann_file", "")).endswith(".json"):
        content = json.loads(Path(data.ann_file).read_text())
        names = {c["id"]: clean_name(c["name"]) for c in content["categories"]}
        for a in content["annotations"]:
            key = (str(a["image_id"]), *xyxy(a["bbox"]))
            truth[key].add(names[a["category_id"]])
        return truth
    for info in (data.get_data_info(i) for i in range(len(data))):
        if not Path(info.get("xml_path", "")).is_file():
            continue
        for thing in ET.parse(info["xml_path"]).iter("object"):
            corners = [  # as mmdet reads them: VOC counts pixels from 1
                int(float(thing.findtext(f"bndbox/{key}") or 0)) - 1
                for key in ("xmin", "ymin", "xmax", "ymax")
            ]
            name = clean_name(thing.findtext("name") or "")
            truth[(str(info["img_id"]), *corners)].add(name)
    return truth


def xyxy(box: Sequence[float]) -> list[int]:
    """xywh -> rounded xyxy."""
    x, y, width, height = box
    return [round(x), round(y), round(x + width), round(y + height)]


def held_out(test: Any) -> set[str]:
    """Classes that must not be learnt from boxes, by the test data's groups."""
    groups: dict[str, set[str]] = defaultdict(set)
    for part in parts_of(test):
        for group, names in asked_groups(part.metainfo).items():
            groups[group] |= set(map(clean_name, names))
    base = groups.pop("base", None)
    if base is None:
        return groups.get("novel", set()) | groups.get("rare", set())
    return set().union(*groups.values()) - base


def novel_leaks(train: Any, test: Any, words: Sequence[str]) -> Iterator[Finding]:
    """Held-out classes among the boxes or the words of the training."""
    novel = held_out(test)
    boxes = Counter(
        words[box["bbox_label"]]
        for part in parts_of(train)
        for _, box in labels_of(part)
        if box["bbox_label"] < len(words)
    )
    without = [word for word in words if not boxes[word]]
    print(
        f"training boxes: {sum(boxes.values())} of {len(boxes)} words; "
        f"{len(without)} words have no box{some(without)}."
    )
    print(f"held-out classes by the test data's groups: {len(novel)}.")
    boxed = sorted(novel & set(boxes))
    if boxed:
        yield Finding(
            "novel boxes",
            f"{len(boxed)} held-out classes have {sum(boxes[w] for w in boxed)} boxes "
            f"in the training data{some(boxed)}.",
            "the annotation file with all classes instead of the base classes' one.",
            "train on the base classes' file; the figures of held-out classes mean "
            "nothing otherwise.",
        )
    named = sorted(novel & set(words))
    if named and not boxed:
        yield Finding(
            "novel words",
            f"{len(named)} held-out classes are among the training words{some(named)}.",
            "the vocabulary of the test data in the training data.",
            "give the training data the base classes only: a word without boxes is "
            "learnt as absent, also where it is not.",
        )


def some(names: Sequence[str]) -> str:
    """A few examples in brackets."""
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" * bool(names)


# --------------------------------------------------------------------- pipeline


def pipeline_of(train: Any, samples: Sequence[Any]) -> Iterator[Finding]:
    """Objects that come out of the pipeline."""
    parts = parts_of(train)
    boxes = sum(1 for part in parts for _ in labels_of(part))
    wanted = boxes / max(sum(map(len, parts)), 1)
    left = [len(s["data_samples"].gt_instances) for s in samples]
    found = sum(left) / len(left)
    print(
        f"objects per image: {wanted:.2f} in the files, {found:.2f} after the "
        f"pipeline ({len(samples)} images)."
    )
    if found < 0.5 * wanted or not sum(left):
        yield Finding(
            "objects lost",
            f"{found:.2f} of {wanted:.2f} objects per image survive the pipeline.",
            "crops or filters that are too strict, classes that the file does not "
            "have, or mask transforms on data without masks.",
            "take the pipeline's steps out one by one; compare the class names with "
            "the file's.",
        )


def pixels_of(cfg: Config, name: str, samples: Sequence[Any]) -> Iterator[Finding]:
    """What the student sees, against what the preprocessor expects."""
    low = min(s["inputs"].min().item() for s in samples)
    high = max(s["inputs"].max().item() for s in samples)
    std = torch.tensor(cfg.model.data_preprocessor.get("std") or [1.0]).float()
    print(f"{name} pixels out of the pipeline: {low:.2f} to {high:.2f} (0 to 255?).")
    normalises = cfg.model.data_preprocessor.get("mean") is not None
    taught = name == "training" and cfg.model.get("teacher")
    # distortions of colour may leave 0 to 255 a little
    if (normalises or taught) and (low < -60 or high <= 20):
        again = (
            "model.data_preprocessor normalises them once more"
            if normalises
            else "the teacher normalises them once more"
        )
        yield Finding(
            "normalised twice",
            f"the {name} pipeline hands over pixels of {low:.2f} to {high:.2f}, and "
            f"{again}.",
            "a Normalize step in the pipeline.",
            "take Normalize out of the pipeline; set mean and std of "
            "model.data_preprocessor.",
        )
    elif normalises and std.max() < 2:
        yield Finding(
            "wrong statistics",
            f"model.data_preprocessor.std is {std.tolist()}, for pixels up to "
            f"{high:.0f}.",
            "mean and std for pixels in [0, 1].",
            "multiply mean and std by 255.",
        )


# ------------------------------------------------------------------------ model


def build_model(cfg: Config) -> Any:
    """The detector; a failure becomes a finding."""
    teacher = cfg.model.get("teacher") or {}
    if teacher and any(
        teacher.get(key) != cfg.model.text_encoder.get(key)
        for key in ("model", "pretrained")
    ):
        stored = str(teacher["type"]).endswith("CachedTeacher")
        raise Stop(
            Finding(
                "cache of another teacher" if stored else "another teacher",
                f"model.teacher is the CLIP {teacher.get('model')!r}, "
                f"{teacher.get('pretrained')!r}; model.text_encoder is "
                f"{cfg.model.text_encoder.model!r}, "
                f"{cfg.model.text_encoder.get('pretrained')!r}.",
                "one of the two was changed.",
                "give both the same `model` and `pretrained`: vectors of two CLIPs "
                "do not compare.",
            )
        )
    model = attempt("model", lambda: MODELS.build(cfg.model))
    model.init_weights()
    return model.train()


def check_teacher(cfg: Config, model: Any, train: Any) -> None:
    """Hashes of the teacher, and whether a store is its own; else :class:`Stop`."""
    words = model.text_encoder.identity
    print(f"words: CLIP '{words['model']}', weights {words['weights_sha256'][:16]}.")
    teacher = model.teacher
    if teacher is None:
        print("teacher: none, no distillation.")
        return
    about = teacher_identity(teacher.source)
    print(f"teacher: weights {about['weights_sha256'][:16]}.")
    if not isinstance(teacher, CachedTeacher):
        return
    hooks = [*cfg.get("default_hooks", {}).values(), *cfg.get("custom_hooks", ())]
    if not any(hook and "EmbeddingCacheHook" in str(hook["type"]) for hook in hooks):
        raise Stop(
            Finding(
                "cache",
                "no EmbeddingCacheHook: stored embeddings are not checked, and are not "
                "given out.",
                "a config written by hand.",
                "default_hooks=dict(cache=dict(type='EmbeddingCacheHook')).",
            )
        )
    try:
        teacher.admit(train, model.pupils, model.data_preprocessor)
        print(f"store: {teacher.folder}, of this teacher, data set and pipeline.")
    except (StoreMismatch, OSError, ValueError) as error:
        another = "is of another teacher" in str(error)
        raise Stop(
            Finding(
                "cache of another teacher" if another else "cache",
                str(error),
                "the CLIP was changed after the store was made."
                if another
                else "the store does not fit the data set, the pipeline or the heads.",
                "make the store with this config: python tools/cache_embeddings.py "
                "CONFIG --store ANOTHER_FOLDER, or name the CLIP that made it.",
            )
        ) from error


def frozen(cfg: Config, model: Any) -> Iterator[Finding]:
    """Parts of the student that no optimizer step can change."""
    rates: dict[int, float] = {}
    if "optim_wrapper" in cfg:
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        for group in wrapper.optimizer.param_groups:
            rates.update({id(p): group["lr"] for p in group["params"]})
    init = cfg.model.backbone.get("init_cfg") or {}
    trained = init.get("type") == "Pretrained" or bool(cfg.get("load_from"))
    for name in ("backbone", "neck", "bbox_head"):
        parameters = list(getattr(model, name).parameters())
        learning = [
            p for p in parameters if p.requires_grad and rates.get(id(p), 1.0) > 0
        ]
        share = sum(p.numel() for p in learning) / sum(p.numel() for p in parameters)
        print(f"{name}: {share:.0%} of its parameters are trained.")
        # of a trained backbone, stages may be frozen; of a new one, nothing
        enough = 0.0 if trained and name == "backbone" else 0.5 if trained else 1.0
        if share < enough:
            yield Finding(
                "frozen student",
                f"{share:.0%} of the {name}'s parameters are trained.",
                "frozen_stages, requires_grad=False, or a learning rate of 0 "
                "(optim_wrapper.paramwise_cfg, lr_mult).",
                "train it, or load trained weights (load_from, init_cfg).",
            )


def logits_of(model: Any, batch: Sequence[Any]) -> Iterator[Finding]:
    """Scores at step 0: their prior, and whether words differ."""
    data = model.data_preprocessor(pseudo_collate(batch), True)
    words = tuple(data["data_samples"][0].metainfo["text"])
    samples = [DetDataSample(metainfo=dict(text=words))] * len(batch)
    with torch.no_grad():
        outputs = model(data["inputs"], samples, mode="tensor")
    logits = torch.cat(
        [o.flatten(2) for o in outputs["predictions"][0]], 2
    )  # (B, K, N)
    prior = logits.sigmoid().mean().item()
    apart = logits.std(1).mean().item() if len(words) > 1 else float("nan")
    print(f"scores at step 0: mean {prior:.5f}, spread over words {apart:.3f} logits.")
    if len(words) > 1 and apart < 1e-3:
        yield Finding(
            "flat scores",
            f"all {len(words)} words get the same score (spread {apart:.1e}).",
            "words that the CLIP does not tell apart, or a temperature of 0.",
            "look at the names; check the CLIP's weights.",
        )
    if prior > 0.2:
        yield Finding(
            "no prior",
            f"the mean score at step 0 is {prior:.2f}: the class loss starts huge.",
            "the head's bias was not initialised to the log prior.",
            "set head_module.prior_size and prior_words, call init_weights.",
        )


def some_steps(model: Any, batches: Sequence[Sequence[Any]]) -> Iterator[Finding]:
    """Positives, loss terms, and gradients of a few batches."""
    sums: dict[str, float] = defaultdict(float)
    levels: Counter[int] = Counter()
    broken: list[str] = []
    hooks = [
        module.register_forward_hook(lambda m, _, out, n=name: note(broken, n, out))
        for name, module in model.named_modules()
    ]
    watch_positives(model, levels)
    for module in model.modules():  # past the warm-up
        if isinstance(module, RegionDistillation):
            module.steps.fill_(module.warmup)
    for batch in batches:
        data = model.data_preprocessor(pseudo_collate(batch), True)
        losses = model(**data, mode="loss")
        total, terms = model.parse_losses(losses)
        total.backward()
        for name, value in terms.items():
            if name != "loss":
                sums[name] += value.item() / len(batches)
    for hook in hooks:
        hook.remove()
    print("loss terms: " + ", ".join(f"{k} {v:.3g}" for k, v in sums.items()))
    print("positives per level: " + ", ".join(f"{levels[k]}" for k in sorted(levels)))
    yield from terms_of(model, sums, broken)
    if not sum(levels.values()):
        yield Finding(
            "no positives",
            "no location is assigned to any object.",
            "no boxes, or boxes outside the image.",
            "look at the boxes after the pipeline.",
        )
    for name in ("backbone", "neck", "bbox_head"):
        part = list(getattr(model, name).parameters())
        learning = [p for p in part if p.requires_grad]
        if learning and not any(
            p.grad is not None and p.grad.abs().sum() > 0 for p in learning
        ):
            yield Finding(
                "no gradient",
                f"no gradient reaches the {name}.",
                "its losses are switched off, or it is cut from them.",
                "look at the loss terms above.",
            )


def note(broken: list[str], name: str, output: Any) -> None:
    """Remember the first module whose output is not finite."""
    parts = output if isinstance(output, (list, tuple)) else [output]
    if any(isinstance(p, Tensor) and not p.isfinite().all() for p in parts):
        broken.append(name)


def watch_positives(model: Any, levels: Counter[int]) -> None:
    """Count the assigner's positives by level, in ``levels``."""
    head = model.bbox_head

    def count(module: Any, inputs: Any, result: dict[str, Tensor]) -> None:
        mask = result["fg_mask_pre_prior"]
        for level, part in enumerate(mask.split(head.num_level_priors, 1)):
            levels[level] += int(part.sum())

    head.assigner.register_forward_hook(count)


def terms_of(
    model: Any, sums: dict[str, float], broken: list[str]
) -> Iterator[Finding]:
    """Loss terms that are zero or not finite."""
    for name, value in sums.items():
        head = next(
            (
                key
                for key, head in model.pupils.items()
                if {name, name.removesuffix(f"_{key}")} & set(loss_names(head))
            ),
            None,
        )
        module = f"distill.{head}" if head in model.distill else head or "bbox_head"
        if value != value or abs(value) == float("inf"):
            yield Finding(
                "loss not finite",
                f"{name} of {module} is {value}; first module with such an output: "
                f"{broken[0] if broken else 'none: it comes from the loss itself'}.",
                "overflow in half precision, or bad weights or inputs.",
                "train in full precision; look at that module.",
            )
        elif value == 0:
            yield Finding(
                "zero loss",
                f"{name} of {module} is 0 in all batches.",
                "its loss_weight is 0, or it finds nothing to learn from.",
                "set its loss_weight; look at objects and positives above.",
            )


def loss_names(head: Any) -> list[str]:
    """The loss terms that a distillation head may return."""
    kind = type(head).__name__.removesuffix("Distillation").removesuffix("Head").lower()
    terms = (*head.distances, "contrast", "calibration")
    return [f"loss_{kind}_{name}" for name in terms]


if __name__ == "__main__":
    sys.exit(main())
