"""Which novel classes a checkpoint has been trained on, as far as it declares.

A checkpoint says which classes its last training had boxes of. Of the weights that it
began with it knows only the file: a config declares their label sets, ``pretraining =
["objects365v1"]``, or ``[]`` for weights that were trained without labels.
"""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mmdet.datasets import (
    CocoDataset,
    LVISV1Dataset,
    Objects365V1Dataset,
    Objects365V2Dataset,
    VOCDataset,
)
from mmengine.runner import CheckpointLoader
from open_clip import IMAGENET_CLASSNAMES

from ..vocabulary import clean_name

# those of ImageNet are labels of images, all others boxes
LABEL_SETS: Mapping[str, tuple[str, ...]] = {
    "coco": CocoDataset.METAINFO["classes"],
    "objects365v1": Objects365V1Dataset.METAINFO["classes"],
    "objects365v2": Objects365V2Dataset.METAINFO["classes"],
    "lvis": LVISV1Dataset.METAINFO["classes"],
    "voc": VOCDataset.METAINFO["classes"],
    "imagenet-1k": tuple(IMAGENET_CLASSNAMES),
}
_SAME = (  # names of one thing in these sets
    {"airplane", "aeroplane", "plane"},
    {"couch", "sofa"},
    {"motorcycle", "motorbike"},
    {"tv", "television", "tvmonitor"},
    {"cell phone", "mobile phone", "cellular telephone"},
    {"donut", "doughnut"},
    {"tie", "necktie"},
    {"keyboard", "computer keyboard"},
    {"dining table", "diningtable"},
    {"potted plant", "pottedplant"},
    {"hair drier", "hair dryer"},
    {"remote", "remote control"},
    {"cow", "cattle"},
)


def leak_report(
    checkpoint: str | Path,
    novel: Sequence[str],
    declared: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Novel classes among the labels that a checkpoint was trained with.

    Args:
        checkpoint: mmengine's checkpoint.
        novel: class names; of synonyms, one is enough to be given.
        declared: label sets (keys of ``LABEL_SETS``, or names of a list of one's own)
            of the weights it began with, instead of what its config says.

    Returns:
        ``trained_on`` and, per declared label set, the novel classes found: novel
        name -> its name there. ``began_with``: files of weights. ``undeclared``:
        whether there are such files, and nothing is declared. ``clean``: True, False,
        or None where it cannot be told.

    Raises:
        ValueError: a label set that is not known.
    """
    meta = CheckpointLoader.load_checkpoint(str(checkpoint), map_location="cpu")
    meta = meta.get("meta", {}) if isinstance(meta, Mapping) else {}
    config = _read_config(str(meta.get("cfg", "")))
    trained = (meta.get("dataset_meta") or {}).get("classes")
    if declared is None:
        declared = config["pretraining"]
    unknown = [name for name in declared or () if name not in LABEL_SETS]
    if unknown:
        raise ValueError(f"label sets {unknown} are not known; known: {[*LABEL_SETS]}")
    found = {name: overlap(novel, LABEL_SETS[name]) for name in declared or ()}
    if trained is not None:
        found = {"trained_on": overlap(novel, trained), **found}
    undeclared = bool(config["began_with"]) and declared is None
    clean: bool | None = not any(found.values())
    if clean and (undeclared or trained is None):
        clean = None
    return dict(
        checkpoint=str(checkpoint),
        novel=len(novel),
        found=found,
        began_with=config["began_with"],
        undeclared=undeclared,
        clean=clean,
    )


def overlap(novel: Iterable[str], labels: Iterable[str]) -> dict[str, str]:
    """Novel classes that a label set names: novel name -> its name there."""
    there = {form: label for label in labels for form in _forms(label)}
    hits = {}
    for name in novel:
        match = next((there[form] for form in _forms(name) if form in there), None)
        if match is not None:
            hits[name] = match
    return hits


@cache
def _forms(name: str) -> tuple[str, ...]:
    """Ways to write a name: without a remark in brackets, singular, synonyms."""
    plain = clean_name(re.sub(r"\(.*?\)", " ", name.replace("_", " "))).lower()
    parts = [clean_name(name).lower(), plain, *(p.strip() for p in plain.split("/"))]
    if "/" in plain:
        parts += [p.strip() for p in plain.split("/")]
    forms = dict.fromkeys(parts)
    for part in parts:
        if part.endswith("s") and not part.endswith("ss"):
            forms[part[:-1]] = None
        for same in _SAME:
            if part in same:
                forms.update(dict.fromkeys(sorted(same)))
    return tuple(form for form in forms if form)


def _read_config(text: str) -> dict[str, Any]:
    """What a checkpoint's config says of its weights, without running it."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        tree = ast.Module([], [])
    declared: list[str] | None = None
    files = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, _literal(node.value)
            if name == "pretraining" and isinstance(value, (list, tuple)):
                declared = [str(v) for v in value]
            if name == "load_from" and value:
                files.append(str(value))
        if isinstance(node, ast.keyword) and node.arg == "checkpoint":
            value = _literal(node.value)
            if isinstance(value, str):
                files.append(value)
    return dict(pretraining=declared, began_with=files)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def describe_leaks(report: Mapping[str, Any]) -> str:
    """The report as lines."""
    lines = [f"Leak report of {report['checkpoint']}, {report['novel']} novel classes:"]
    for source, hits in report["found"].items():
        what = "boxes in training" if source == "trained_on" else f"'{source}'"
        named = ", ".join(
            name if name == there else f"{name} ({there})"
            for name, there in hits.items()
        )
        lines.append(f"  {what}: {f'{len(hits)} novel: {named}' if hits else 'none'}")
    if report["undeclared"]:
        lines.append(
            f"  it began with the weights {report['began_with']}, whose labels nobody "
            "declares: set `pretraining = [...]` in the config to "
            f"{[*LABEL_SETS]}, or to [] for weights without labels."
        )
    verdict = {
        True: "no novel class is among the declared labels",
        False: "NOT open-vocabulary figures: novel classes had labels",
        None: "cannot be told",
    }
    return "\n".join([*lines, f"  verdict: {verdict[report['clean']]}"])
