"""Which novel classes a checkpoint has been trained on, as far as it declares.

A checkpoint says which classes its last training had boxes of, and which classes the
weights that it began with were trained on, where their file says so
(:class:`kdeov_mm.engine.TrainingRecordHook`). Of other weights the config declares the
label sets, ``pretraining = ["objects365v1"]``, or ``[]`` for weights that were trained
without labels. What is not declared is called unclear, never clean.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mmdet import datasets
from mmengine.fileio import load
from mmengine.runner import CheckpointLoader
from open_clip import IMAGENET_CLASSNAMES

from ..border import items_of, taken_apart
from ..checkpoints import read_checkpoint, read_config
from ..vocabulary import clean_name
from ..yolo_world import PRETRAINING, is_yolo_world, state_of

# those of ImageNet are labels of images, all others boxes
LABEL_SETS: Mapping[str, tuple[str, ...]] = {
    "coco": datasets.CocoDataset.METAINFO["classes"],
    "objects365v1": datasets.Objects365V1Dataset.METAINFO["classes"],
    "objects365v2": datasets.Objects365V2Dataset.METAINFO["classes"],
    "lvis": datasets.LVISV1Dataset.METAINFO["classes"],
    "voc": datasets.VOCDataset.METAINFO["classes"],
    "imagenet-1k": tuple(IMAGENET_CLASSNAMES),
}
# names of one thing, as _spellings writes them
_ONE_THING = (
    "airplane aeroplane plane airliner, bus autobus minibus, cat kitty kitten, "
    "couch sofa, motorcycle motorbike, tv television tvmonitor, donut doughnut, "
    "cellphone mobilephone cellulartelephone, tie necktie, cow cattle ox, "
    "keyboard computerkeyboard, hairdrier hairdryer, remote remotecontrol"
)
_SAME = [sorted(names.split()) for names in _ONE_THING.split(", ")]


def leak_report(
    checkpoint: str | Path, novel: Sequence[str], declared: Sequence[str] | None = None
) -> dict[str, Any]:
    """Novel classes among the labels that a checkpoint was trained with.

    Args:
        checkpoint: mmengine's checkpoint.
        novel: class names.
        declared: label sets (keys of ``LABEL_SETS``) of the weights it began with,
            instead of what its config says.

    Returns:
        ``found``: label set (``trained_on``: the last training's) -> novel name -> its
        name there. ``began_with``: files of weights. ``unclear``: what is not known.
        ``clean``: False where a novel class was found, None where something is unclear.
        ``captions``: file of captions that were learnt -> :func:`named_in_captions`,
        None where the file is not there, or has none. Captions are no labels: they do
        not count.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: ``declared`` names a label set that is not known, or the checkpoint
            is damaged.
    """
    novel = items_of("class names", novel)
    if not all(isinstance(name, str) for name in novel):
        raise ValueError(f"expected a list of class names, got {novel!r:.80}")
    declared = None if declared is None else items_of("label sets", declared)
    if unknown := [n for n in declared or () if n not in [*LABEL_SETS]]:
        raise ValueError(f"label sets {unknown} are not known; known: {[*LABEL_SETS]}")
    # an address is mmengine's to fetch
    content = (
        CheckpointLoader.load_checkpoint(str(checkpoint), map_location="cpu")
        if "://" in str(checkpoint)
        else read_checkpoint(checkpoint)
    )
    with taken_apart(f"{checkpoint} says of its training what cannot be read"):
        record = training_record(content)
        leaks, unclear = _leaks(novel, record, "trained_on", declared)
    # a leak is certain; that there is none only where nothing is unclear
    clean = False if any(leaks.values()) else None if unclear else True
    report = dict(checkpoint=str(checkpoint), novel=len(novel), found=leaks)
    captions = {
        file: _named(file, novel) if Path(file).is_file() else None
        for file in record["captions"]
    }
    report.update(began_with=record["files"], unclear=unclear, clean=clean)
    return dict(report, captions=captions)


def _named(file: str, novel: Sequence[str]) -> dict[str, int] | None:
    try:
        return named_in_captions(file, novel)
    except (AttributeError, LookupError, TypeError, ValueError):  # of something else
        return None


def named_in_captions(file: str | Path, novel: Sequence[str]) -> dict[str, int]:
    """Novel classes that captions name: name -> number of images, most of them first.

    Args:
        file: captions in COCO's format.
        novel: class names.
    """
    # ways to write a name, and its plural, as letters without spaces
    names: dict[str, str] = {}
    for name in novel:
        exact, loose = _forms(name)
        for form in (*exact, *loose):
            ends = dict(y="ies", f="ves", fe="ves")
            plurals = [form.removesuffix(e) + p for e, p in ends.items()]
            names |= dict.fromkeys((form, f"{form}s", f"{form}es", *plurals), name)
    # images of each class: one to three words in a row are a name
    images: dict[str, set[Any]] = {}
    with taken_apart(f"{file} holds no captions in COCO's format"):
        # mmengine would unpickle a file that a checkpoint calls *.pkl
        for annotation in load(str(file), file_format="json")["annotations"]:
            image = annotation["image_id"]
            words = re.findall(r"[^\W_]+", annotation["caption"].lower())
            starts = ((i, n) for n in (1, 2, 3) for i in range(len(words) - n + 1))
            for i, n in starts:
                if (named := names.get("".join(words[i : i + n]))) is not None:
                    images.setdefault(named, set()).add(image)
    return {n: len(i) for n, i in sorted(images.items(), key=lambda x: -len(x[1]))}


def _leaks(
    novel: Sequence[str],
    record: Mapping[str, Any],
    source: str,
    declared: Sequence[str] | None = None,
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Leaks by label set, and what is unclear, of a record and what it began with."""
    leaks: dict[str, dict[str, str]] = {}
    unclear = list(record["unclear"])
    # labels of the training, with their synonyms
    if labels := record["labels"]:
        # mm's ImageNet has several names in one: "tabby, tabby cat"
        names = [n.strip() for label in labels for n in label.split(",") if n.strip()]
        leaks[source] = overlap(novel, names, kinds=len(names) > len(labels))
    # label sets of the weights that it began with
    sets = record["pretraining"] if declared is None else declared
    for name in sets or ():
        if name in LABEL_SETS:
            leaks[name] = overlap(novel, LABEL_SETS[name], kinds=name == "imagenet-1k")
        else:
            known = f"which is not known here; known: {[*LABEL_SETS]}"
            unclear.append(f"it declares the label set {name!r}, {known}")
    # what these files say themselves, whatever is declared
    began = [_leaks(novel, own, file) for file, own in record["weights"].items()]
    for found, _ in began:
        leaks.update(found)
    if sets is None:
        unclear += record["undeclared"]
        for file, (_, doubts) in zip(record["weights"], began):
            unclear += [f"{file}: {sentence}" for sentence in doubts]
    return leaks, unclear


def training_record(content: Any) -> dict[str, Any]:
    """What a checkpoint's content says of the labels that it was trained with.

    Of a training that was resumed that is the record of the part before, which
    :class:`kdeov_mm.engine.hooks.TrainingRecordHook` keeps, and its own labels.

    Returns:
        ``labels``: names of classes with boxes, synonyms included. ``files``: of the
        weights it began with. ``weights``: those of the files that say what they were
        trained on, with their own records. ``pretraining``: label sets of the files,
        None where the config declares none. ``captions``: files of captions that were
        learnt. ``undeclared``, ``unclear``: sentences on what is not known of these
        weights, and of the training itself.
    """
    # a file of YOLO-World names one of its data sets
    if isinstance(content, Mapping) and is_yolo_world(state_of(content)):
        nothing: dict[str, Any] = dict(labels=[], files=[], weights={}, captions=[])
        return dict(nothing, pretraining=PRETRAINING, undeclared=[], unclear=[])
    meta = content.get("meta") or {} if isinstance(content, Mapping) else {}
    # the config is read, never run
    config = read_config(meta.get("cfg"))
    unclear = []
    # mmdet 2 wrote CLASSES into meta itself
    trained = {str(k).lower(): v for k, v in (meta.get("dataset_meta") or meta).items()}
    synonyms = [word for own in trained.get("synonyms") or () for word in own]
    labels = [*(trained.get("classes") or ()), *synonyms]
    if not labels:
        unclear.append("it does not say which classes it was trained on")
    if config is not None and _is_mixture(config.get("train_dataloader")):
        unclear.append("it was trained on several data sets, and names one's classes")
    captions = [] if config is None else _caption_files(config)
    # the first part of a training says what it began with
    if before := meta.get("resumed"):
        before.setdefault("captions", [])
        parts = dict(labels=labels, unclear=unclear, captions=captions)
        merged = {k: [*dict.fromkeys([*before[k], *new])] for k, new in parts.items()}
        return dict(dict(before, weights=before.get("weights") or {}), **merged)
    declared = None if config is None else config.get("pretraining")
    files = [] if config is None else weight_files(config)
    weights = meta.get("began_with") or {}
    record: dict[str, Any] = dict(labels=labels, files=files, weights=weights)
    record["pretraining"] = [declared] if isinstance(declared, str) else declared
    resumed = "resumed" not in meta and bool((config or {}).get("resume"))
    silent = [file for file in files if file not in weights]
    undeclared = _undeclared(config, silent, resumed)
    return dict(record, undeclared=undeclared, unclear=unclear, captions=captions)


def _undeclared(
    config: Mapping[str, Any] | None, files: list[str], resumed: bool
) -> list[str]:
    """What a config without ``pretraining`` leaves unclear."""
    advice = (
        f"set `pretraining = [...]` in the config to some of {[*LABEL_SETS]}, or to [] "
        "for weights that were trained without labels"
    )
    if config is None:
        return [f"it has no config that can be read; {advice} (or --pretraining)"]
    if files:
        return [f"it began with the weights {files}, of undeclared labels: {advice}"]
    if resumed:
        return [f"it was resumed, so its config does not say from what: {advice}"]
    return []


def overlap(
    novel: Iterable[str], labels: Iterable[str], kinds: bool = False
) -> dict[str, str]:
    """Novel classes that a label set names: novel name -> its name there.

    Args:
        novel: class names.
        labels: names of the label set.
        kinds: a label whose last word is the novel class is one of it ("tabby cat").
    """
    # form -> label, as it is and without its remark in brackets; the first label wins
    whole: dict[str, str] = {}
    plain: dict[str, str] = {}
    for label in labels:
        exact, loose = _forms(label)
        if kinds:
            exact = (*exact, *_forms(label.split()[-1])[0])
        for forms, known in ((exact, whole), (loose, plain)):
            for form in forms:
                known.setdefault(form, label)
    matches = {}
    for name in novel:
        exact, loose = _forms(name)
        # of two names with a remark in brackets, the remarks have to agree
        keys = [(whole, exact), (plain, exact), (whole, loose)]
        labels_of = (known[f] for known, forms in keys for f in forms if f in known)
        if (match := next(labels_of, None)) is not None:
            matches[name] = match
    return matches


@cache
def _forms(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ways to write a name, as it is and without its remark in brackets."""
    text = clean_name(name).lower()
    plain = re.sub(r"\(.*?\)", " ", text)
    return _spellings(text), _spellings(plain) if plain != text else ()


def _spellings(text: str) -> tuple[str, ...]:
    """Letters and digits alone, singular, and some synonyms."""
    forms: dict[str, None] = {}
    # "monitor/tv" is the whole, "monitor" and "tv"
    for part in (text, *text.split("/")):
        letters = re.sub(r"[^\w]|_", "", part)
        forms[letters] = None
        # short words, as "bus", are not shortened to one or two letters
        for end, instead in (
            ("s", ""),
            ("es", ""),
            ("ies", "y"),
            ("ves", "f"),
            ("ves", "fe"),
        ):
            if letters.endswith(end) and len(letters) > len(end) + 2:
                forms[letters.removesuffix(end) + instead] = None
    # and the other names of the same thing
    for form in [*forms]:
        for same in _SAME:
            if form in same:
                forms.update(dict.fromkeys(same))
    return tuple(filter(None, forms))


def weight_files(config: Mapping[str, Any]) -> list[str]:
    """Weights that the student began with: not those of CLIP."""
    # of another checkpoint, and of parts of the model
    files = [str(config["load_from"])] if config.get("load_from") else []

    def walk(value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if key in ("checkpoint", "pretrained") and isinstance(inner, str):
                    files.append(inner)
                elif key not in ("text_encoder", "teacher"):
                    walk(inner)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                walk(inner)

    walk(config.get("model"))
    return files


def _caption_files(config: Mapping[str, Any]) -> list[str]:
    """Files of captions that a training learnt from, by InfoNCE."""
    files: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, Mapping):
            if value.get("type") in ("LoadCaptions", "CaptionDataset"):
                folder, file = value.get("data_root") or "", value.get("ann_file")
                files.extend([str(Path(folder, file))] if file else [])
            value = [*value.values()]
        if isinstance(value, (list, tuple)):
            for inner in value:
                walk(inner)

    # captions that nothing is compared with teach nothing
    if "InfoNCE" in _types(config.get("model")):
        walk(config.get("train_dataloader"))
    return files


def _types(value: Any) -> set[Any]:
    """All types in a config."""
    if isinstance(value, Mapping):
        return {value.get("type")}.union(*map(_types, value.values()))
    if isinstance(value, (list, tuple)):
        return set().union(*map(_types, value))
    return set()


def _is_mixture(value: Any) -> bool:
    """Whether a data loader's config has a ``datasets`` list somewhere."""
    if isinstance(value, Mapping):
        return "datasets" in value or any(_is_mixture(v) for v in value.values())
    return isinstance(value, (list, tuple)) and any(map(_is_mixture, value))


def describe_leaks(report: Mapping[str, Any]) -> str:
    """The report as lines."""
    # the novel classes by label set, with their names there where they differ
    lines = [f"Leak report of {report['checkpoint']}, {report['novel']} novel classes:"]
    for source, hits in report["found"].items():
        what = "boxes in training" if source == "trained_on" else f"'{source}'"
        named = [n if n == there else f"{n} ({there})" for n, there in hits.items()]
        novel = f"{len(hits)} novel: {', '.join(named)}" if hits else "none"
        lines.append(f"  {what}: {novel}")
    for file, counts in report["captions"].items():
        where = f"captions that were learnt ({file})"
        if counts is None:
            lines.append(
                f"  {where}: not there to be read, they may name novel classes"
            )
            continue
        most = ", ".join(f"{n} ({c} images)" for n, c in [*counts.items()][:5])
        lines.append(f"  {where} name {len(counts)} novel{most and ': '}{most}")
    # then what is not known, and what follows from all of it
    lines += [f"  {sentence}" for sentence in report["unclear"]]
    verdict = {
        True: "no novel class is among the declared labels",
        False: "NOT open-vocabulary figures: novel classes had labels",
        None: "cannot be told",
    }
    return "\n".join([*lines, f"  verdict: {verdict[report['clean']]}"])
