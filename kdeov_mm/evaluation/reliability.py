"""What AP does not tell: boxes for what is not there, and what a score is worth."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .average_precision import Array, GroundTruth, Predictions, Rules, outcomes

RECALLS = (0.3, 0.5, 0.7)
BINS = 10


def reliability(
    ground_truth: GroundTruth,
    predictions: Predictions,
    rules: Rules,
    groups: Mapping[str, Sequence[str]],
) -> dict[str, dict[str, Any]]:
    """False positives on images without the class, and calibration, per group.

    Args:
        ground_truth: annotations; LVIS's negative categories, or else (all annotated)
            every class without a box, are verified not to be in an image.
        predictions: boxes of the model.
        rules: which of them count.
        groups: group -> class names.

    Returns:
        group -> :func:`false_positives` and :func:`calibration`.
    """
    scores, number = predictions.scores.astype(float), len(ground_truth.names)
    verdicts = outcomes(ground_truth, predictions, rules)  # (N,) 1, 0 or -1
    pairs = ground_truth.pair(predictions.images, predictions.categories)
    # the pairs that ask a question: the class is verified not to be in the image
    absent = ground_truth.absent(rules.federated)
    # crowds, and what LVIS ignores, are not to be found
    flag = "ignore" if rules.federated else "iscrowd"
    known, boxes = ground_truth.objects(rules.federated), ground_truth.boxes
    objects = [i for i in known if not boxes[i].get(flag, 0)]
    object_labels = ground_truth.pairs[objects] % number
    result = {}
    for group, names in groups.items():
        # (K,) whether the group has the class, (N,) whether it has the box
        asked = np.isin(np.array(ground_truth.names), list(names))
        mine = asked[pairs % number]
        result[group] = false_positives(
            scores[mine & (verdicts == 1)],
            scores[mine & (verdicts == 0) & np.isin(pairs, absent)],
            int(asked[object_labels].sum()),
            int(asked[absent % number].sum()),
        )
        # what does not count says nothing of its score either
        counts = mine & (verdicts >= 0)
        right = verdicts[counts] == 1
        result[group]["calibration"] = calibration(scores[counts], right)
    return result


def false_positives(
    right: Array, wrong: Array, objects: int, questions: int
) -> dict[str, Any]:
    """False positives per image verified not to contain the asked class.

    The score threshold is the highest at which a share of the objects is found; how
    many boxes of a class are then drawn in an image without it?

    >>> right, wrong = np.array([0.9, 0.6, 0.5]), np.array([0.7, 0.2])
    >>> false_positives(right, wrong, objects=4, questions=2)["at_recall"]["0.5"]
    {'threshold': 0.6, 'per_image': 0.5}

    Args:
        right: (n,) scores of right boxes.
        wrong: (m,) scores of boxes of a class in images verified not to contain it.
        objects: how many there are to find.
        questions: pairs of an image and a class that it is verified not to contain.

    Returns:
        ``objects``, ``questions`` and for each recall of ``RECALLS`` the threshold and
        the false positives per question; None where that recall is never reached.
    """
    # the k-th best right box sets the threshold at which k objects are found
    ranked = -np.sort(-right)
    at: dict[str, dict[str, float | None]] = {}
    for recall in RECALLS:
        # 0.7 * 10 is a little more than 7, and asks for 7 all the same
        needed = int(np.ceil(recall * objects - 1e-9))
        at[f"{recall:.1f}"] = dict(threshold=None, per_image=None)
        if objects and questions and needed <= len(ranked):
            threshold = float(ranked[max(needed, 1) - 1])
            rate = float((wrong >= threshold).sum() / questions)
            at[f"{recall:.1f}"] = dict(threshold=threshold, per_image=rate)
    return dict(objects=objects, questions=questions, at_recall=at)


def calibration(scores: Array, right: Array) -> dict[str, Any]:
    """How often a score is right.

    The expected calibration error (Naeini et al., 2015; Guo et al., 2017) in ``BINS``
    equal bins.

    >>> scores, right = np.array([0.7, 0.7, 0.7, 0.7]), np.array([1, 1, 0, 0]) == 1
    >>> curve = calibration(scores, right)
    >>> round(curve["ece"], 2), curve["at_0.7"], curve["boxes_at_0.7"]
    (0.2, 0.5, 4)

    Args:
        scores: (n,) in [0, 1].
        right: (n,) bool.

    Returns:
        ``ece`` (None where there are no boxes); per bin its limits, boxes, mean score
        and share of right ones; and ``at_0.7``, the share of right boxes among scores
        from 0.65 to 0.75 (None where there is none).
    """
    # a score of 1.0 belongs to the last bin
    which = (scores * BINS).astype(int).clip(0, BINS - 1)
    # (BINS,) boxes, their mean score, the share of right ones; 0 in an empty bin
    boxes = np.bincount(which, minlength=BINS)
    score = np.bincount(which, scores, BINS) / boxes.clip(1)
    share = np.bincount(which, right.astype(float), BINS) / boxes.clip(1)
    error = (boxes * abs(score - share)).sum() / max(len(scores), 1)
    # 0.7 in the middle, which is an end of two of the bins
    near = (scores >= 0.65) & (scores < 0.75)
    columns = zip(range(BINS), boxes.tolist(), score.tolist(), share.tolist())
    return {
        "ece": float(error) if len(scores) else None,
        "bins": [
            dict(low=i / BINS, high=(i + 1) / BINS, boxes=n, score=s, right=r)
            for i, n, s, r in columns
        ],
        "at_0.7": float(right[near].mean()) if near.any() else None,
        "boxes_at_0.7": int(near.sum()),
    }
