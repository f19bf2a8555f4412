"""Distillation of whole images, dense maps and attended locations."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdeov_mm.clip import CLIPImageTeacher
from kdeov_mm.datasets import LoadCaptions
from kdeov_mm.models import (
    AttentionDistillation,
    DenseDistillation,
    GlobalHead,
    RegionEmbeds,
    RegionPicker,
    StudentBatch,
)
from kdeov_mm.models.distill.dense import embedding_maps, window_grid
from kdeov_mm.models.distill.image import labels_of
from kdeov_mm.models.pixels import filled_part

from ..conftest import CLIP_CONFIG, EMBED_DIMS, make_sample

COSINE = dict(cosine=dict(type="CosineDistance"))
CHANNELS = [64, 128]


class Known:
    """A teacher with given answers."""

    def __init__(self, **answers: Tensor) -> None:
        self.answers = answers

    def images(self) -> Tensor:
        return self.answers["images"]

    def dense(self) -> Tensor:
        return self.answers["dense"]

    def captions(self, captions: Sequence[str]) -> Tensor:
        return self.answers["captions"]

    def crops(self, boxes: Any, scales: Any) -> Tensor:
        return self.answers["crops"]


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def make_feats(batch: int = 2, size: int = 8) -> list[Tensor]:
    sizes = [size, size // 2]
    return [torch.randn(batch, c, s, s) for c, s in zip(CHANNELS, sizes, strict=True)]


def make_head(pooling: str = "mean", **changes: Any) -> GlobalHead:
    projection = dict(
        type="GlobalProjection",
        in_channels=CHANNELS,
        embed_dims=EMBED_DIMS,
        pooling=pooling,
    )
    return GlobalHead(**{"projection": projection, **changes})


def make_locations(feats: Sequence[Tensor], side: int = 64) -> RegionEmbeds:
    batch, centres = len(feats[0]), []
    for feat in feats:
        points = (torch.arange(feat.shape[-1]) + 0.5) * side / feat.shape[-1]
        y, x = torch.meshgrid(points, points, indexing="ij")
        centres.append(torch.stack([x.flatten(), y.flatten()], 1))
    number = sum(len(c) for c in centres)
    return RegionEmbeds(
        torch.randn(batch, number, EMBED_DIMS, requires_grad=True),
        torch.zeros(batch, number, 4),
        torch.zeros(batch, number),
        torch.cat(centres),
    )


def make_cfg(distances: Any = None, **changes: Any) -> dict[str, Any]:
    """A global head for the base student."""
    projection = dict(
        type="GlobalProjection",
        in_channels=[256, 512, 1024],
        embed_dims=EMBED_DIMS,
        widen_factor=0.25,
    )
    return dict(
        type="GlobalHead", projection=projection, distances=distances, **changes
    )


SAMPLES = [make_sample(caption="a"), make_sample(caption="b")]


# ---------------------------------------------------------------------- global


def test_image_loss_is_zero_when_student_and_teacher_agree() -> None:
    head, feats = make_head(distances=COSINE), make_feats()
    same = Known(images=head.embed(feats, filled_part(SAMPLES)).detach())
    student = StudentBatch(feats, SAMPLES)
    assert head.loss(student, same)["loss_global_cosine"].abs() < 1e-5
    other = Known(images=unit(2, EMBED_DIMS))
    assert head.loss(student, other)["loss_global_cosine"] > 0.1


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_an_image_embedding_is_a_unit_vector_that_padding_does_not_change(
    pooling: str,
) -> None:
    head = make_head(pooling, distances=COSINE)
    small = make_feats(1, 8)
    padded = [F.pad(f, (0, f.shape[-1], 0, 0), value=7.0) for f in small]
    alone = head.embed(small, filled_part([make_sample()]))
    sample = make_sample()
    sample.set_metainfo(dict(batch_input_shape=(64, 128)))
    torch.testing.assert_close(head.embed(padded, filled_part([sample])), alone)
    torch.testing.assert_close(alone.norm(dim=-1), torch.ones(1))


def test_attention_pooling_is_the_weighted_mean_of_what_each_location_says() -> None:
    """By hand, location by location; so the order of the locations does not matter."""
    projection, feats = (
        make_head("attention", distances=COSINE).projection,
        make_feats(),
    )
    rows = []
    for feat, level in zip(feats, projection.levels, strict=True):
        rows += [
            level(feat[..., y, x])
            for y, x in torch.cartesian_prod(*map(torch.arange, feat.shape[-2:]))
        ]
    said = torch.stack(rows, 1)  # (B, N, D + 1)
    weights = said[..., -1:].exp() / said[..., -1:].exp().sum(1, keepdim=True)
    wanted = F.normalize((weights * said[..., :-1]).sum(1), dim=-1)
    torch.testing.assert_close(projection(feats, torch.ones(2, 2)), wanted)
    turned = [feat.flip(-1) for feat in feats]
    torch.testing.assert_close(projection(turned, torch.ones(2, 2)), wanted)
    with pytest.raises(ValueError, match="pooling is 'mean' or 'attention'"):
        make_head("max")


def test_captions_are_contrasted_and_their_absence_is_named() -> None:
    head, feats = make_head(contrast=dict(type="InfoNCE")), make_feats()
    same = Known(captions=head.embed(feats, filled_part(SAMPLES)).detach())
    (name,) = losses = head.loss(StudentBatch(feats, SAMPLES), same)
    assert name == "loss_global_contrast" and losses[name] >= 0
    with pytest.raises(ValueError, match="LoadCaptions"):
        head.loss(StudentBatch(feats, [make_sample()] * 2), same)


def test_of_several_captions_the_mean_is_learnt() -> None:
    head, feats = make_head(contrast=dict(type="InfoNCE")), make_feats()
    embeds = F.normalize(torch.randn(4, EMBED_DIMS), dim=1)
    vectors = dict(zip(("a", "b", "c", "d"), embeds))

    class Reading(Known):
        def captions(self, captions: Any) -> Tensor:
            return torch.stack([vectors[c] for c in captions])

    def loss(*captions: Any) -> Tensor:
        samples = [make_sample(caption=own) for own in captions]
        return head.loss(StudentBatch(feats, samples), Reading())[
            "loss_global_contrast"
        ]

    both = loss(("a", "b"), ("c", "d"))
    torch.testing.assert_close(both, (loss("a", "c") + loss("b", "d")) / 2)
    with pytest.raises(ValueError, match="shorter"):
        loss(("a", "b"), ("c",))


def test_a_head_that_learns_nothing_asks_no_teacher(
    build_detector: Callable[..., Any],
) -> None:
    assert not make_head().learns
    model = build_detector(distill=None, teacher=None, global_head=make_cfg())
    assert not model.distill_heads
    with pytest.raises(ValueError, match="global_head.*teacher"):
        build_detector(teacher=None, distill=None, global_head=make_cfg(COSINE))


def test_captions_belong_to_their_image(tmp_path: Any) -> None:
    path = tmp_path / "captions.json"
    texts = [dict(image_id=i // 2, caption=f" caption  {i}") for i in range(6)]
    path.write_text(__import__("json").dumps(dict(annotations=texts)))
    load = LoadCaptions(str(path))
    drawn = {load(dict(img_id=1))["caption"] for _ in range(50)}
    assert drawn == {"caption 2", "caption 3"}
    with pytest.raises(ValueError, match="image 9 .* has no caption"):
        load(dict(img_id=9))


# ----------------------------------------------------------------------- dense


@pytest.mark.parametrize("window", [None, 16])
def test_dense_loss_is_zero_when_the_maps_agree(window: int | None) -> None:
    feats = make_feats()[:1]
    locations = make_locations(feats)
    (said,) = embedding_maps(locations.embeds, feats)  # (B, D, 8, 8)
    answers = F.normalize(said.detach(), dim=1)
    same = Known(dense=answers, crops=answers.permute(0, 2, 3, 1).flatten(0, 2))
    head = DenseDistillation(COSINE, window=window, stride=8)
    student = StudentBatch(feats, SAMPLES, regions=locations)
    losses = head.loss(student, same)
    assert losses["loss_dense_cosine"].abs() < 1e-4
    other = Known(dense=answers.flip(2), crops=answers.flatten(0, 2).flip(0)[: 2 * 64])
    other.answers["crops"] = same.answers["crops"].flip(0)
    losses = head.loss(student, other)
    assert losses["loss_dense_cosine"] > 0.1


def test_maps_are_ordered_as_their_locations() -> None:
    feats = make_feats()
    locations = make_locations(feats)
    centres = locations.centres[None].expand(2, -1, -1)
    first, second = embedding_maps(centres, feats)
    assert first[0, :, 2, 5].tolist() == [44.0, 20.0]  # x, y at stride 8
    assert second[1, :, 0, 3].tolist() == [56.0, 8.0]


def test_windows_are_the_same_in_a_mirrored_image() -> None:
    boxes, (rows, columns) = window_grid((64, 100), 24, 16)
    assert (rows, columns) == (4, 6) and len(boxes) == 24
    mirrored = torch.stack(
        [100 - boxes[:, 2], boxes[:, 1], 100 - boxes[:, 0], boxes[:, 3]], 1
    ).unflatten(0, (rows, columns))
    torch.testing.assert_close(mirrored.flip(1).flatten(0, 1), boxes)


def test_dense_patches_are_the_last_layer_attending_to_itself(tiny_clip: str) -> None:
    """The slow way: the last attention with every patch masked but itself."""
    teacher = CLIPImageTeacher(tiny_clip)
    pixels = torch.rand(2, 3, 32, 32)
    tower = teacher._load(torch.device("cpu"))
    images = (pixels - teacher._mean) / teacher._std
    *blocks, last = tower.transformer.resblocks
    tokens = tower._embeds(images)
    for block in blocks:
        tokens = block(tokens)
    alone = torch.full((tokens.shape[1],) * 2, -torch.inf).fill_diagonal_(0)
    tokens = last.attention(last.ln_1(tokens), attn_mask=alone)
    slow = F.normalize(tower.ln_post(tokens)[:, 1:] @ tower.proj, dim=-1)
    side = 32 // CLIP_CONFIG["vision_cfg"]["patch_size"]
    slow = slow.transpose(1, 2).unflatten(2, (side, side))
    torch.testing.assert_close(
        teacher.embed_dense(pixels), slow.detach(), rtol=1e-4, atol=1e-5
    )
    assert teacher.embed_dense(torch.rand(1, 3, 64, 32)).shape[-2:] == (8, 4)


def test_a_tower_without_patches_is_refused(tiny_clip: str) -> None:
    teacher = CLIPImageTeacher(tiny_clip)
    teacher._tower = torch.nn.Conv2d(3, 3, 1)
    with pytest.raises(TypeError, match="set `window`"):
        teacher.embed_dense(torch.rand(1, 3, 32, 32))


# ------------------------------------------------------------------- attention


def test_attention_finds_the_location_that_says_what_the_teacher_says() -> None:
    feats = make_feats()
    locations, target = make_locations(feats), unit(2, EMBED_DIMS)
    head = AttentionDistillation(COSINE, temperature=0.01)
    student, teacher = StudentBatch(feats, SAMPLES), Known(images=target)
    apart = head.loss(student._replace(regions=locations), teacher)
    assert apart["loss_attention_cosine"] > 0.3
    embeds = locations.embeds.detach().clone()
    embeds[:, 17] = target * 4
    regions = locations._replace(embeds=embeds)
    found = head.loss(student._replace(regions=regions), teacher)
    assert found["loss_attention_cosine"] < 1e-3


def test_attention_does_not_see_the_padding() -> None:
    feats = make_feats()
    locations, target = make_locations(feats), unit(2, EMBED_DIMS)
    samples = [make_sample(shape=(64, 32))] * 2
    samples[0].set_metainfo(dict(batch_input_shape=(64, 64)))
    padding = locations.centres[:, 0] > 32
    embeds = locations.embeds.detach().clone()
    embeds[:, padding] = target[:, None]
    head = AttentionDistillation(COSINE)
    student, teacher = StudentBatch(feats, samples), Known(images=target)
    regions = locations._replace(embeds=embeds)
    torch.testing.assert_close(
        head.loss(student._replace(regions=locations), teacher),
        head.loss(student._replace(regions=regions), teacher),
    )


# ------------------------------------------------------------------------- all


def test_any_subset_of_heads_goes_on_one_detector(
    build_detector: Callable[..., Any],
) -> None:
    image = make_cfg(COSINE, contrast=dict(type="InfoNCE"))
    region = dict(
        type="RegionDistillation",
        distances=COSINE,
        sources=("truth", "random", "blocks"),
    )
    heads = dict(
        dense=dict(type="DenseDistillation", distances=COSINE),
        attention=dict(type="AttentionDistillation", distances=COSINE),
        region=region,
    )
    model = build_detector(distill=dict(_delete_=True, **heads), global_head=image)
    data = model.data_preprocessor(
        dict(
            inputs=[torch.randint(256, (3, 64, 64), dtype=torch.uint8)] * 2,
            data_samples=[
                make_sample([[8.0, 8, 40, 40]], [1], caption=text) for text in "ab"
            ],
        ),
        True,
    )
    losses = model.train()(**data, mode="loss")
    assert {k for k in losses if k.split("_")[1] not in ("cls", "bbox", "dfl")} == {
        "loss_global_cosine",
        "loss_global_contrast",
        "loss_dense_cosine",
        "loss_attention_cosine",
        "loss_region_cosine",
    }
    total, _ = model.parse_losses(losses)
    total.backward()
    for name, head in model.distill_heads.items():
        for parameter in head.parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_two_heads_of_a_kind_both_count(build_detector: Callable[..., Any]) -> None:
    region = dict(type="RegionDistillation", distances=COSINE, warmup=0)
    heads = dict(
        first=region | dict(sources=("truth",)),
        second=region | dict(sources=("blocks",)),
    )
    model = build_detector(distill=dict(_delete_=True, **heads))
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8)]
    samples = [make_sample([[8.0, 8, 40, 40]], [1])]
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), True)
    losses = model.train()(**data, mode="loss")
    assert {"loss_region_cosine", "loss_region_cosine_second"} < set(losses)
    assert losses["loss_region_cosine"] != losses["loss_region_cosine_second"]


def test_stored_boxes_need_a_store(build_detector: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="CachedTeacher"):
        build_detector(**{"distill.region.sources": ("truth", "stored")})


def test_dense_loss_does_not_see_the_padding() -> None:
    feats = make_feats()[:1]
    locations = make_locations(feats)
    (said,) = embedding_maps(locations.embeds, feats)
    same = F.normalize(said.detach(), dim=1)
    target = same.clone()
    target[..., 4:] = -target[..., 4:]
    samples = [make_sample(shape=(64, 32)) for _ in range(2)]
    for sample in samples:
        sample.set_metainfo(dict(batch_input_shape=(64, 64)))
    head = DenseDistillation(COSINE)
    student = StudentBatch(feats, samples, regions=locations)
    losses = head.loss(student, Known(dense=target))
    assert losses["loss_dense_cosine"].abs() < 1e-4


def test_labels_of_crops_leave_out_objects_that_are_mostly_cut_off() -> None:
    """They are no regions, so the labels of the others must not move up."""
    whole = make_sample([[0, 0, 9, 9], [5, 5, 30, 30], [8, 8, 40, 48]], [3, 1, 2])
    whole.gt_instances.visible = torch.tensor([0.2, 0.9, 1.0])
    regions = torch.tensor([[5.0, 5, 30, 30], [8, 8, 40, 48], [1, 1, 5, 5]])
    known = RegionPicker().seen_truth(whole).labels
    assert labels_of([known], [regions]).tolist() == [1, 2, -1]
