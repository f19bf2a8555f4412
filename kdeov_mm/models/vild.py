"""ViLD: the two-stage student, whose proposals have embeddings in CLIP's space."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead
from mmdet.models.task_modules.assigners import AssignResult, MaxIoUAssigner
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.registry import DATASETS, MODELS, TASK_UTILS
from mmdet.structures import OptSampleList, SampleList
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torchvision.ops import box_iou

from ..vocabulary import Words, as_vocabulary
from .box_branches import without_autocast
from .distill.base import Distillation, RegionEmbeds, StudentBatch
from .postprocess import (
    above,
    best_boxes,
    is_simple,
    least_logit,
    max_boxes,
    suppresses,
)
from .random_vocabulary import RandomVocabulary
from .student import BoxQuery, Student, check_dims, training_progress, words_of
from .text_classifier import TextClassifier, TextEmbeds


class WordedMaps(tuple[Tensor, ...]):
    """Feature maps, and the words that their regions are scored for.

    mmdet's RoI head passes its maps on as they come: so the words reach its boxes.

    Attributes:
        words: K classes.
        text: their text embeddings.
        verified: (B, K) bool, which of them count in an image's loss; None: all.
    """

    words: tuple[Words, ...]
    text: TextEmbeds
    verified: Tensor | None = None


@TASK_UTILS.register_module()
class SparingAssigner(MaxIoUAssigner):
    """mmdet's, and what may be an object without a label is no background.

    Args:
        kwargs: those of ``mmdet.MaxIoUAssigner``.
    """

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
        **kwargs: Any,
    ) -> AssignResult:
        """As the parent's; background that overlaps an ``unlabelled`` one of the
        ignored boxes by more than half (IoU) is neither."""
        ignored = gt_instances_ignore
        if ignored is None or "unlabelled" not in ignored:
            return super().assign(pred_instances, gt_instances, ignored, **kwargs)
        marked = ignored.unlabelled
        rest = ignored[~marked]
        result = super().assign(pred_instances, gt_instances, rest, **kwargs)
        overlap = box_iou(pred_instances.priors, ignored.bboxes[marked]) > 0.5
        result.gt_inds[(result.gt_inds == 0) & overlap.any(1)] = -1
        return result


@MODELS.register_module()
class ViLDBBoxHead(ConvFCBBoxHead):
    """A region's embedding, and its box whatever its class.

    ViLD's region head (Gu et al., 2021, section 3.2): mmdet's ``ConvFCBBoxHead``, whose
    last layer gives an embedding in the teacher's space in place of scores.

    Args:
        embed_dims: dimension D of the teacher's space.
        temperature: of the softmax over words.
        background: a learnt vector stands for what is none of the words.
        kwargs: those of ``mmdet.ConvFCBBoxHead``; ``num_shared_fcs=2`` for its 2fc
            form, with ``num_shared_convs=4`` and one fc for 4conv1fc.
    """

    def __init__(
        self,
        embed_dims: int,
        temperature: float = 0.01,
        background: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=1, reg_class_agnostic=True, **kwargs)
        self.embed_dims = embed_dims
        self.fc_cls = nn.Linear(self.cls_last_dim, embed_dims)
        self.classifier = TextClassifier(
            embed_dims,
            learn_scale=False,
            background=background,
            temperature=temperature,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """RoI features (R, C, h, w) -> unit embeddings (R, D), box deltas (R, 4)."""
        embeds, deltas = super().forward(x)
        return F.normalize(embeds.float(), dim=1), deltas

    def logits(self, embeds: Tensor, text: TextEmbeds) -> Tensor:
        """Unit embeddings (R, D) and K classes -> logits (R, K), (R, K + 1) with the
        background last; in float32."""
        with without_autocast(embeds.device):
            return self.classifier(embeds, text)


@MODELS.register_module()
class ViLDRoIHead(StandardRoIHead):
    """Scores proposals for words, and pulls their embeddings to the teacher's.

    ViLD (Gu et al., 2021): a softmax over words and a background teaches embeddings by
    text, a distillation head of the detector by image. One head learns both, or a
    second one (``image_head``) the images alone, and both vote at test time
    (section 3.4): with the text's probability p and the image's q, without a
    background, a base word scores p^a q^(1 - a) and another one p^(1 - a) q^a.

    Args:
        image_head: config of a second :class:`ViLDBBoxHead`, which is distilled in
            place of ``bbox_head``; None for none.
        base: the words that had boxes in training, for the vote: a list of names, or a
            data set's class whose base classes they are, e.g. ``'OVCocoDataset'``.
        exponent: a, in [0, 1].
        objectness: b, in [0, 1]: scores are s^(1 - b) o^b with the RPN's objectness o
            of the proposal. ViLD's b is 0; without a text loss nothing else says what
            is background.
        kwargs: those of ``mmdet.StandardRoIHead``.
    """

    def __init__(
        self,
        image_head: dict[str, Any] | None = None,
        base: str | Sequence[str] = (),
        exponent: float = 2 / 3,
        objectness: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not (0 <= exponent <= 1 and 0 <= objectness <= 1):
            raise ValueError(
                "exponent and objectness lie in [0, 1], got "
                f"exponent={exponent}, objectness={objectness}"
            )
        if self.bbox_head.classifier.background is None:
            raise ValueError("bbox_head needs background=True: most proposals are that")
        self.exponent, self.objectness = exponent, objectness
        self.image_head: ViLDBBoxHead | None = None
        if image_head is not None:
            more = dict(with_reg=False, background=False)
            self.image_head = MODELS.build(image_head | more)
        names: Sequence[str] = base
        if isinstance(base, str):
            dataset = DATASETS.get(base)
            names = dataset.METAINFO.get("base_classes", ()) if dataset else ()
        if (image_head is not None or base) and not names:
            raise ValueError(
                "image_head votes with exponents for base and other words: set `base` "
                "to the names with boxes in training, or to a data set with base "
                f"classes, e.g. 'OVCocoDataset'; got {base!r}"
            )
        words = as_vocabulary(names).words if names else ()
        self.base = {word for own in words for word in own}

    @property
    def embedding_head(self) -> ViLDBBoxHead:
        """The head whose embeddings the teacher's are compared with."""
        return self.bbox_head if self.image_head is None else self.image_head

    def embed(self, x: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Unit embeddings (sum n_b, D) of B tensors (n_b, 4) of boxes."""
        rois = bbox2roi([*boxes])
        return self.embedding_head(self._pooled(x, rois))[0]

    def loss(
        self,
        x: WordedMaps,
        rpn_results_list: list[InstanceData],
        batch_data_samples: SampleList,
    ) -> dict[str, Tensor]:
        """As mmdet's: cross-entropy over the words and a background, boxes, masks."""
        # labels of the background are the number of the words of this step
        self.bbox_head.num_classes = len(x.words)
        return super().loss(x, rpn_results_list, batch_data_samples)

    def bbox_loss(
        self, x: WordedMaps, sampling_results: list[SamplingResult]
    ) -> dict[str, Any]:
        """As mmdet's, of the words that are verified in each image."""
        rois = bbox2roi([result.priors for result in sampling_results])
        output = self._bbox_forward(x, rois)
        # other words are not in the softmax; a proposal's own label is
        if x.verified is not None:
            labels = self.bbox_head.get_targets(sampling_results, self.train_cfg)[0]
            known = F.pad(x.verified, (0, 1), value=True)[rois[:, 0].long()]
            known = known.scatter(1, labels[:, None], True)
            output["cls_score"] = output["cls_score"].masked_fill(~known, -torch.inf)
        losses = self.bbox_head.loss_and_target(
            output["cls_score"],
            output["bbox_pred"],
            rois,
            sampling_results,
            self.train_cfg,
        )
        return dict(output, loss_bbox=losses["loss_bbox"])

    def _bbox_forward(self, x: WordedMaps, rois: Tensor) -> dict[str, Any]:
        feats = self._pooled(x, rois)
        embeds, deltas = self.bbox_head(feats)
        logits = self.bbox_head.logits(embeds, x.text)
        return dict(cls_score=logits, bbox_pred=deltas, bbox_feats=feats)

    def _pooled(self, x: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Features (R, C, h, w) of boxes (R, 5): the image's number, xyxy."""
        return self.bbox_roi_extractor(x[: self.bbox_roi_extractor.num_inputs], rois)

    def scores(self, x: WordedMaps, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (R, K) of words, float64, and box deltas (R, 4).

        Args:
            x: maps and words.
            rois: (R, 5), the image's number and xyxy.
        """
        output = self._bbox_forward(x, rois)
        # in double precision: the probabilities of sure boxes differ from 1 by little
        share = output["cls_score"].double().softmax(1)[:, : len(x.words)]
        if self.image_head is None:
            return share, output["bbox_pred"]
        # the vote, with exponents of base and other words
        embeds, _ = self.image_head(output["bbox_feats"])
        images = self.image_head.logits(embeds, x.text).double().softmax(1)
        known = [bool(self.base.intersection(own)) for own in x.words]
        chosen = torch.tensor(known, device=share.device)
        power = torch.where(chosen, self.exponent, 1 - self.exponent)
        return share**power * images ** (1 - power), output["bbox_pred"]

    def predict_bbox(
        self,
        x: WordedMaps,
        batch_img_metas: list[dict[str, Any]],
        rpn_results_list: list[InstanceData],
        rcnn_test_cfg: Any,
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Boxes of each image, selected as those of the one-stage student."""
        # proposals are no maps, and have no peaks to take in place of suppression
        if not is_simple(rcnn_test_cfg) or not suppresses(rcnn_test_cfg):
            raise ValueError(
                "expected a test_cfg.rcnn with multi_label=True, nms=dict(type='nms', "
                "iou_threshold=...) and max_per_img of at least 1, got "
                f"{dict(rcnn_test_cfg)}"
            )
        proposals = [result.bboxes for result in rpn_results_list]
        rois = bbox2roi(proposals)
        every, deltas = self.scores(x, rois)
        counts = [len(p) for p in proposals]
        results = []
        for meta, found, scores, sides in zip(
            batch_img_metas, rpn_results_list, every.split(counts), deltas.split(counts)
        ):
            boxes = self.bbox_head.bbox_coder.decode(
                found.bboxes, sides, max_shape=meta["img_shape"]
            )
            if self.objectness:
                share = found.scores[:, None] ** self.objectness
                scores = scores ** (1 - self.objectness) * share
            # logits, which the selection compares
            scored = above(
                [scores.logit()], least_logit(rcnn_test_cfg), max_boxes(rcnn_test_cfg)
            )
            # not rescaled they are clipped to the input: the mask branch takes them
            inside = meta if rescale else dict(meta, ori_shape=meta["img_shape"])
            results.append(best_boxes(scored, boxes, inside, rcnn_test_cfg, rescale))
        return results


@MODELS.register_module()
class ViLDDetector(Student, TwoStageDetector):
    """A two-stage detector whose proposals are scored for any words.

    images -> backbone -> FPN -> RPN: proposals whatever their class -> RoI head:
    boxes, and embeddings that are compared with the words'. Words, teacher,
    distillation, store and vocabulary are those of :class:`KDEOVDetector`.

    Args:
        text_encoder, teacher, distill, vocabulary, synonyms: as there.
        detector: arguments of ``mmdet.TwoStageDetector``; ``roi_head`` is a
            :class:`ViLDRoIHead`, and ``test_cfg.rcnn`` has the form of the one-stage
            student's ``test_cfg``.
    """

    global_head = None

    def __init__(
        self,
        text_encoder: dict[str, Any],
        teacher: dict[str, Any] | None = None,
        distill: dict[str, dict[str, Any]] | None = None,
        vocabulary: dict[str, Any] | None = None,
        synonyms: str = "mean",
        **detector: Any,
    ) -> None:
        super().__init__(**copy.deepcopy(detector))  # mmdet changes its configs
        self.text_encoder = MODELS.build(text_encoder)
        self.build_teaching(teacher, distill)
        self.vocabulary = RandomVocabulary(**(vocabulary or {}))
        self.set_synonyms(synonyms)
        # distributed training waits for ever for a parameter without a gradient
        kinds = {head.kind for head in self.distill_heads.values()}
        self.teaches_regions = "region" in kinds
        if self.roi_head.image_head is not None and not self.teaches_regions:
            self.roi_head.image_head.requires_grad_(False)
        self.check_clip()
        self.to(memory_format=torch.channels_last)

    @property
    def distill_heads(self) -> dict[str, Distillation]:
        """The modules that learn from the teacher, by name."""
        return dict(self.distill.items())

    @property
    def box_cfg(self) -> Any:
        """The part of ``test_cfg`` that says which boxes are kept."""
        return self.roi_head.test_cfg

    def check_clip(self) -> None:
        """As the parent's, and the dimensions of the region heads."""
        dims = self.text_encoder.embed_dims
        check_dims("roi_head.bbox_head", self.roi_head.bbox_head, dims)
        check_dims("roi_head.image_head", self.roi_head.embedding_head, dims)
        super().check_clip()

    def rate_regions(self, images: Tensor, samples: SampleList) -> RegionEmbeds:
        """Proposals of images (B, 3, H, W), for a :class:`RegionPicker`."""
        maps = self.extract_feat(images)
        return _as_regions(self.rpn_head.predict(maps, samples, rescale=False))

    def worded(
        self,
        inputs: Tensor,
        words: Sequence[Words],
        text: TextEmbeds,
        samples: SampleList = (),
    ) -> WordedMaps:
        """Images (B, 3, H, W) -> maps for the RoI head, with the words.

        Args:
            inputs: normalised and padded.
            words: K classes.
            text: their embeddings.
            samples: in training; which words are ``verified`` in each image.
        """
        # as compiled RoI operators read them, and boxes in full precision
        feats = self.extract_feat(inputs)
        maps = WordedMaps(feat.float().contiguous() for feat in feats)
        maps.words, maps.text = tuple(words), text
        if any("verified" in sample for sample in samples):
            every = torch.ones(len(words), dtype=torch.bool)
            rows = [sample.metainfo.get("verified", every) for sample in samples]
            maps.verified = torch.stack(rows).to(inputs.device)
        return maps

    def loss(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Images (B, 3, H, W) and samples with boxes -> named losses.

        Raises:
            ValueError: samples without words, or nothing teaches the image head.
        """
        if self.roi_head.image_head is not None and not self.teaches_regions:
            raise ValueError(
                "roi_head.image_head learns from the teacher alone, and would vote "
                "untaught: give model.distill a RegionDistillation, or leave it out."
            )
        # the words of this step, and labels that index them
        words, samples = self.vocabulary(batch_data_samples)
        text = self.embed(words, batch_inputs.device)
        maps = self.worded(batch_inputs, words, text, samples)
        # proposals, whatever the class
        outputs = self.rpn_head(maps)
        metas = [sample.metainfo for sample in samples]
        with torch.no_grad():
            proposals = self.rpn_head.predict_by_feat(
                *outputs, batch_img_metas=metas, cfg=self.train_cfg.rpn_proposal
            )
        # distillation, which also finds objects that nobody labelled
        regions = _as_regions(proposals)
        student = StudentBatch(
            maps,
            samples,
            text.vectors,
            regions,
            progress=training_progress(),
            embed_boxes=partial(self.roi_head.embed, maps),
        )
        losses = self.taught(student, batch_inputs)
        # detection, for which these are no background
        assert regions.unlabelled is not None
        for sample, boxes, marked in zip(samples, regions.boxes, regions.unlabelled):
            known, new = sample.ignored_instances.bboxes, boxes[marked]
            flags = torch.arange(len(known) + len(new), device=new.device) >= len(known)
            sample.ignored_instances = InstanceData(
                bboxes=torch.cat([known, new]), unlabelled=flags
            )
        things = [copy.copy(sample.gt_instances) for sample in samples]
        for its in things:
            its.labels = torch.zeros_like(its.labels)
        ignored = [sample.ignored_instances for sample in samples]
        losses.update(self.rpn_head.loss_by_feat(*outputs, things, metas, ignored))
        losses.update(self.roi_head.loss(maps, proposals, samples))
        return losses

    def find_boxes(
        self, images: Tensor, samples: SampleList, query: BoxQuery
    ) -> list[InstanceData]:
        """Boxes of images (n, 3, H, W) of one padded shape."""
        # thresholds of this call are not the model's
        head = copy.copy(self.roi_head)
        head.test_cfg = query.cfg
        assert query.text is not None
        maps = self.worded(images, query.words, query.text)
        proposals = self.rpn_head.predict(maps, samples, rescale=False)
        return head.predict(maps, proposals, samples, rescale=query.rescale)

    predict = Student.predict_boxes

    def _forward(
        self,
        batch_inputs: Tensor,
        batch_data_samples: OptSampleList = None,
    ) -> dict[str, Any]:
        """All outputs of the student for images, without post-processing.

        Args:
            batch_inputs: (B, 3, H, W).
            batch_data_samples: B samples with the same K classes as ``words``.

        Returns:
            ``text_features``: (K, D) unit vectors; ``visual_map``: the FPN's maps;
            ``proposals``: (R, 5), the image's number and xyxy; ``predictions``: a list
            of one tensor, logits (1, K, R) of their probabilities, and box deltas
            (R, 4).
        """
        words = words_of(batch_data_samples)
        text = self.embed(words, batch_inputs.device)
        maps = self.worded(batch_inputs, words, text)
        metas = [dict(img_shape=batch_inputs.shape[-2:])] * len(batch_inputs)
        found = self.rpn_head.predict_by_feat(
            *self.rpn_head(maps), batch_img_metas=metas, rescale=False
        )
        rois = bbox2roi([result.bboxes for result in found])
        scores, deltas = self.roi_head.scores(maps, rois)
        return dict(
            text_features=text.vectors,
            visual_map=maps,
            proposals=rois,
            predictions=([scores.logit(1e-6).float().T[None]], deltas),
        )


def _as_regions(proposals: Sequence[InstanceData]) -> RegionEmbeds:
    """Proposals of each image, as many of each; what fills up has no objectness."""
    number = max(max(map(len, proposals)), 1)
    missing = [number - len(its) for its in proposals]
    boxes = [F.pad(p.bboxes, (0, 0, 0, n)) for p, n in zip(proposals, missing)]
    scores = [F.pad(p.scores, (0, n)) for p, n in zip(proposals, missing)]
    stacked = torch.stack(scores).detach()
    unlabelled = torch.zeros_like(stacked, dtype=torch.bool)
    return RegionEmbeds(None, torch.stack(boxes).detach(), stacked, None, unlabelled)
