"""Whole images: retrieval recall and zero-shot accuracy, pure functions and metrics."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import METRICS
from torch import Tensor

from .protocol_metric import ProtocolMetric

BLOCK = (2048, 8192)  # images and captions whose similarities are in memory at once
TIE = 1e-6  # scores closer than the rounding of a float32 product are equal


def retrieval_ranks(
    images: Tensor, captions: Tensor, owner: Tensor, block: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """How many wrong answers come before the right one, in both directions.

    An answer with the same score as the right one comes before it, so equal
    embeddings are never right. Similarities are made block by block, each once for
    both directions.

    Args:
        images: (N, D) unit vectors.
        captions: (M, D) unit vectors.
        owner: (M,) the image of each caption, in [0, N).
        block: images and captions of a block.

    Returns:
        Of each image (N,), the captions of other images that are as near as the
        nearest of its own, M where it has none; of each caption (M,), the other
        images that are as near as its own.
    """
    # (M,) similarity of each caption to its image; (N,) of each image's nearest one
    pieces = zip(captions.split(block[1]), owner.split(block[1]))
    own = torch.cat([(piece * images[o]).sum(1) for piece, o in pieces])
    best = own.new_full((len(images),), torch.inf)
    best = best.scatter_reduce(0, owner, own, "amax", include_self=False)
    before_own = images.new_zeros(len(images), dtype=torch.long)
    before_owner = images.new_zeros(len(captions), dtype=torch.long)
    for i in range(0, len(images), block[0]):
        some = slice(i, i + block[0])
        for j in range(0, len(captions), block[1]):
            others = slice(j, j + block[1])
            score = images[some] @ captions[others].T  # (n, D) @ (D, m) -> (n, m)
            # an image's own captions are no wrong answers
            row = owner[others] - i
            inside = ((row >= 0) & (row < len(score))).nonzero()[:, 0]
            score[row[inside], inside] = -torch.inf
            # how many are ahead; as floats, in place: no (n, m) mask is made
            ahead = torch.empty_like(score)
            torch.ge(score, (best[some] - TIE)[:, None], out=ahead)
            before_own[some] += ahead.sum(1).long()
            torch.ge(score, own[others] - TIE, out=ahead)
            before_owner[others] += ahead.sum(0).long()
    return before_own.masked_fill(best == torch.inf, len(captions)), before_owner


def retrieval_recall(
    images: Tensor,
    captions: Tensor,
    owner: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    block: tuple[int, int] = BLOCK,
) -> dict[str, float]:
    """Recall at k, of captions for an image and of images for a caption.

    An image is found when any of its captions is among the k nearest (of five, in
    COCO and Flickr30k). Give the gallery's sizes with the metrics: recall falls as a
    gallery grows.

    >>> images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> captions = torch.tensor([[1.0, 0.1], [0.1, 1.0], [0.9, 0.1]])
    >>> owner = torch.tensor([0, 1, 1])  # the third is of image 1, but nearer to 0
    >>> metrics = retrieval_recall(images, captions, owner, ks=(1,))
    >>> metrics["i2t_R@1"], round(metrics["t2i_R@1"], 3)
    (1.0, 0.667)

    Args:
        images: (N, D) embeddings, of any length but 0.
        captions: (M, D) embeddings.
        owner: (M,) the image of each caption, in [0, N).
        ks: the k.
        block: images and captions whose similarities are in memory at once.

    Returns:
        ``i2t_R@k`` and ``t2i_R@k`` in [0, 1], ``i2t_median_rank`` and
        ``t2i_median_rank`` from 1, and the gallery: ``images`` and ``captions``.

    Raises:
        ValueError: shapes that do not agree, an owner that is no image, an image
            without captions, or an embedding of zeros, NaN or infinity.
    """
    owner = owner.long()
    _check_gallery(images, captions, owner)
    images, captions = _unit(images, "image"), _unit(captions, "caption")
    ranks = dict(zip(("i2t", "t2i"), retrieval_ranks(images, captions, owner, block)))
    # found at k: fewer than k wrong answers come before
    metrics: dict[str, float] = {}
    for way, before in ranks.items():
        for k in ks:
            metrics[f"{way}_R@{k}"] = (before < k).double().mean().item()
        metrics[f"{way}_median_rank"] = before.median().item() + 1.0
    return dict(metrics, images=len(images), captions=len(captions))


def _check_gallery(images: Tensor, captions: Tensor, owner: Tensor) -> None:
    """Shapes agree, every caption has an image, and every image a caption."""
    if images.ndim != 2 or captions.ndim != 2 or images.shape[1] != captions.shape[1]:
        raise ValueError(
            "expected images (N, D) and captions (M, D), got "
            f"{tuple(images.shape)} and {tuple(captions.shape)}"
        )
    if owner.shape != captions.shape[:1] or not len(owner):
        raise ValueError(
            f"expected the owner of each of {len(captions)} captions, at least one, "
            f"got {tuple(owner.shape)}"
        )
    # captions of each image
    counts = torch.bincount(owner.clamp(min=0), minlength=len(images))
    if owner.min() < 0 or len(counts) > len(images) or not counts.all():
        raise ValueError(
            f"owners of captions lie in [{owner.min()}, {owner.max()}], images in "
            f"[0, {len(images)}), and {int((counts == 0).sum())} images have no "
            "caption: every caption needs an image, and every image a caption."
        )


def _unit(embeds: Tensor, kind: str) -> Tensor:
    """Unit vectors; the same tensor where they are already."""
    norm = embeds.float().norm(dim=1)
    wrong = ~(norm.isfinite() & (norm > 0))
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} {kind} embeddings have no direction (zeros, NaN or "
            f"infinity), the first is number {int(wrong.nonzero()[0])}"
        )
    # CLIP's are unit vectors: no second copy of a large gallery
    if embeds.dtype == torch.float32 and (norm - 1).abs().max() < 1e-5:
        return embeds
    return embeds.float() / norm[:, None]


def zero_shot_accuracy(
    ranking: Tensor, labels: Tensor, num_classes: int, ks: Sequence[int] = (1, 5)
) -> dict[int, Tensor]:
    """Share of the images of each class whose class is among the k best.

    >>> ranking = torch.tensor([[0, 1], [1, 0], [1, 0]])
    >>> rates = zero_shot_accuracy(ranking, torch.tensor([0, 0, 1]), 2, ks=(1, 2))
    >>> {k: rate.tolist() for k, rate in rates.items()}  # of class 0, of class 1
    {1: [0.5, 1.0], 2: [1.0, 1.0]}

    Args:
        ranking: (N, R) the classes of each image, best first; R at least max(ks).
        labels: (N,) in [0, num_classes).
        num_classes: number of classes K.
        ks: the k.

    Returns:
        k -> (K,) in [0, 1], NaN for classes without an image.

    Raises:
        ValueError: shapes that do not agree, a label that is no class, or a ranking
            that is too short.
    """
    # a ranking may be as short as the largest k
    need = min(max(ks), num_classes)
    if ranking.ndim != 2 or len(ranking) != len(labels) or ranking.shape[1] < need:
        raise ValueError(
            f"expected the best {need} classes of each of {len(labels)} images, got "
            f"{tuple(ranking.shape)}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels lie in [{labels.min()}, {labels.max()}], but there are "
            f"{num_classes} classes"
        )
    right = ranking == labels[:, None]  # (N, R)
    # per class; 0 / 0 is NaN where it has no image
    count = torch.bincount(labels, minlength=num_classes).double()
    return {
        k: torch.bincount(labels, right[:, :k].any(1).double(), minlength=num_classes)
        / count
        for k in ks
    }


@METRICS.register_module()
class RetrievalMetric(ProtocolMetric):
    """:func:`retrieval_recall` of a run, printed with the size of its gallery.

    The samples need ``visual_feature`` (D,) and ``caption_features`` (n, D), which
    :class:`kdeov_mm.models.ImageTextModel` adds where they have ``captions``.

    Args:
        ks: the k.
        kwargs: those of :class:`ProtocolMetric`.
    """

    default_prefix = "retrieval"

    def __init__(self, protocol: str, ks: Sequence[int] = (1, 5, 10), **kwargs: Any):
        super().__init__(protocol, **kwargs)
        self.ks = tuple(ks)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the embeddings of a batch."""
        for sample in data_samples:
            if "caption_features" not in sample:
                raise ValueError(
                    f"image {sample.get('img_id')} has no embeddings of captions: test "
                    "an ImageTextModel on a CaptionDataset, with PackInputs or with "
                    "'captions' among meta_keys."
                )
            pair = sample["visual_feature"], sample["caption_features"]
            self.results.append((sample["img_id"], *(part.cpu() for part in pair)))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Metrics of :func:`retrieval_recall`."""
        _, images, captions = zip(*self.unique(results))
        # image i owns the captions of its sample
        counts = torch.tensor([len(own) for own in captions])
        metrics = retrieval_recall(
            torch.stack(images),
            torch.cat(captions),
            torch.arange(len(images)).repeat_interleave(counts),
            self.ks,
        )
        # the gallery's sizes belong to the protocol
        gallery = {key: int(metrics.pop(key)) for key in ("images", "captions")}
        size = f"gallery: {gallery['images']} images, {gallery['captions']} captions"
        self.report(self.section(size, metrics), gallery=gallery, metrics=metrics)
        return {**metrics, **gallery}


@METRICS.register_module()
class ZeroShotMetric(ProtocolMetric):
    """Zero-shot top-1 and top-5: of images, mean over classes, of groups of classes.

    The samples need ``gt_label``, and ``ranking``, the best classes in order, which
    :class:`kdeov_mm.models.ImageTextModel` adds where they have ``words``. Groups are
    the data set's, as in :class:`OpenVocabularyMetric`; all words compete.

    Args:
        per_class: also write the metrics of each class to ``out_file``.
        kwargs: those of :class:`ProtocolMetric`.
    """

    default_prefix = "zero_shot"

    def __init__(self, protocol: str, per_class: bool = True, **kwargs: Any) -> None:
        super().__init__(protocol, **kwargs)
        self.per_class = per_class

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the best classes of each image of a batch."""
        for sample in data_samples:
            if "gt_label" not in sample or "ranking" not in sample:
                raise ValueError(
                    f"image {sample.get('img_id')} has no label, or was asked no words:"
                    " use PackInputs, or name 'gt_label' and 'words' among meta_keys."
                )
            # more than five are never asked for
            best = sample["ranking"][:5].cpu()
            self.results.append((sample["img_id"], best, sample["gt_label"]))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``top1`` and ``top5`` over images, and ``mean_`` over classes, in [0, 1]."""
        names = self.class_names
        _, rankings, given = zip(*self.unique(results))
        labels = torch.tensor(given)
        rates = zero_shot_accuracy(torch.stack(rankings), labels, len(names))
        images = torch.bincount(labels, minlength=len(names))  # (K,) of each class
        metrics = {}
        for group, members in {"": names, **self.groups}.items():
            # classes without an image have no rate, groups of such no metrics
            which = torch.tensor([names.index(name) for name in members])
            which = which[images[which] > 0]
            if not len(which):
                continue
            lead = f"{group}_" if group else ""
            for k, rate in rates.items():
                right = (rate[which] * images[which]).sum() / images[which].sum()
                metrics[f"{lead}top{k}"] = right.item()
                metrics[f"{lead}mean_top{k}"] = rate[which].mean().item()
        # the file also has each class that has an image
        content: dict[str, Any] = dict(images=len(labels), words=len(names))
        if self.per_class:
            content["classes"] = {
                name: dict(
                    images=int(images[i]),
                    **{f"top{k}": rate[i].item() for k, rate in rates.items()},
                )
                for i, name in enumerate(names)
                if images[i]
            }
        size = f"{len(labels)} images, {len(names)} words"
        self.report(self.section(size, metrics), **content, metrics=metrics)
        return metrics
