"""What AP does not tell: boxes for what is not there, and what a score is worth."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .average_precision import Array, Predictions, Rules, Truth, outcomes

RECALLS = (0.3, 0.5, 0.7)
BINS = 10


def reliability(
    truth: Truth,
    found: Predictions,
    rules: Rules,
    groups: Mapping[str, Sequence[str]],
) -> dict[str, dict[str, Any]]:
    """False positives on images without the class, and calibration, per group.

    Args:
        truth: annotations; LVIS's negative categories, or else (all annotated) every
            class without a box, are verified not to be in an image.
        found: predictions.
        rules: which of them count.
        groups: group -> class names.

    Returns:
        group -> :func:`false_positives` and :func:`calibration`.
    """
    verdicts = outcomes(truth, found, rules)
    pairs = truth.pair(found.images, found.categories)
    labels = pairs % len(truth.categories)
    absent = truth.absent(rules.federated)
    flag = "ignore" if rules.federated else "iscrowd"
    objects = [
        i for i in truth.objects(rules.federated) if not truth.boxes[i].get(flag, 0)
    ]
    object_labels = truth.pairs[objects] % len(truth.categories)
    index = {name: i for i, name in enumerate(truth.names)}
    result = {}
    for group, names in groups.items():
        asked = np.zeros(len(index), bool)
        asked[[index[n] for n in names]] = True
        mine = asked[labels]
        wrong_there = mine & (verdicts == 0) & np.isin(pairs, absent)
        result[group] = false_positives(
            found.scores[mine & (verdicts == 1)],
            found.scores[wrong_there],
            int(asked[object_labels].sum()),
            int(asked[absent % len(index)].sum()),
        )
        counts = mine & (verdicts >= 0)
        result[group]["calibration"] = calibration(
            found.scores[counts], verdicts[counts] == 1
        )
    return result


def false_positives(
    right: Array, wrong: Array, objects: int, questions: int
) -> dict[str, Any]:
    """False positives per image verified not to contain the asked class.

    The score threshold is the highest at which a share of the objects is found; how
    many boxes of a class are then drawn in an image without it?

    Args:
        right: (n,) scores of right boxes.
        wrong: (m,) scores of boxes of a class in images verified not to contain it.
        objects: how many there are to find.
        questions: pairs of an image and a class that it is verified not to contain.

    Returns:
        ``objects``, ``questions`` and for each recall of ``RECALLS`` the threshold and
        the false positives per question; None where that recall is never reached.
    """
    ranked = -np.sort(-right)
    at: dict[str, dict[str, float | None]] = {}
    for recall in RECALLS:
        needed = int(np.ceil(recall * objects - 1e-9))
        if not objects or not questions or needed > len(ranked):
            at[f"{recall:.1f}"] = dict(threshold=None, per_image=None)
            continue
        threshold = float(ranked[max(needed, 1) - 1])
        at[f"{recall:.1f}"] = dict(
            threshold=threshold,
            per_image=float((wrong >= threshold).sum() / questions),
        )
    return dict(objects=objects, questions=questions, at_recall=at)


def calibration(scores: Array, right: Array) -> dict[str, Any]:
    """How often a score is right.

    The expected calibration error (Naeini et al., 2015; Guo et al., 2017) in ``BINS``
    equal bins.

    Args:
        scores: (n,) in [0, 1].
        right: (n,) bool.

    Returns:
        ``ece`` (None where there are no boxes); per bin its limits, boxes, mean score
        and share of right ones; and ``at_0.7``, the share of right boxes among scores
        from 0.65 to 0.75 (None where there is none).
    """
    which = (scores * BINS).astype(int).clip(0, BINS - 1)
    number = np.bincount(which, minlength=BINS)
    safe = number.clip(1)
    score = np.bincount(which, scores, BINS) / safe
    share = np.bincount(which, right.astype(float), BINS) / safe
    near = (scores >= 0.65) & (scores < 0.75)
    return dict(
        ece=float((number * abs(score - share)).sum() / len(scores))
        if len(scores)
        else None,
        bins=[
            dict(low=i / BINS, high=(i + 1) / BINS, boxes=n, score=s, right=r)
            for i, (n, s, r) in enumerate(
                zip(number.tolist(), score.tolist(), share.tolist())
            )
        ],
        **{
            "at_0.7": float(right[near].mean()) if near.any() else None,
            "boxes_at_0.7": int(near.sum()),
        },
    )
