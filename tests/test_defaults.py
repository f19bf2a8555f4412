"""Defaults are part of what a config means: it names what differs from them.

A checkpoint is rebuilt from its config, and results are those of a config: with another
default both would be of another model, without an error. Who changes one changes it
here too, and says so in the changelog.
"""

import hashlib
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from mmdet.registry import DATASETS

import kdeov_mm

DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "models": {
        "TextPAFPN": dict(image_pooling=False),
        "ImagePooling": dict(embed_dims=256, heads=8),
        "BatchPreprocessor": dict(non_blocking=True),
        "BatchPreprocessor.forward": dict(training=False),
        "KDEOVDetector": dict(frozen=False),
        "KDEOVDetector.predict": dict(rescale=True),
        "KDEOVDetector.fold": dict(fuse=True),
        "AttentionDistillation": dict(temperature=0.07),
        "StudentBatch": dict(progress=1.0),
        "Needs": dict(images=False, dense=False, captions=False, apart=False),
        "DenseDistillation": dict(stride=32, points=512),
        "ImageDistillation": dict(
            crops=0.0, crop_sizes=(64, 96, 128, 160), calibrate=0.0
        ),
        "Distance": dict(loss_weight=1.0),
        "RelationalDistance": dict(loss_weight=1.0, temperature=0.05),
        "WordDistance": dict(loss_weight=1.0, temperature=0.05),
        "ContrastiveDistance": dict(loss_weight=1.0, temperature=0.07, same=0.98),
        "InfoNCE": dict(loss_weight=1.0),
        "RegionDistillation": dict(
            match_iou=0.6, locations=10, background=False, temperature=0.05
        ),
        "StaticForm": dict(shapes=16),
        "KDEOVDetector.train": dict(mode=True),
        "RegionPicker": dict(
            proposals=5,
            grids=(2, 3, 4),
            nms_iou=0.5,
            warmup=0.0625,
            scales=(1.0, 1.5),
            min_side=0.0,
        ),
        "FoldedDetector.predict": dict(rescale=True),
        "unit_kernel": dict(ones=1),
        "FiLMFusion": dict(widen_factor=1.0),
        "CrossAttentionFusion": dict(widen_factor=1.0, num_heads=4),
        "ClassFiLM": dict(shift=True),
        "OVHead": dict(supervised=True),
        "OVHead.predict": dict(rescale=False),
        "OVHead.predict_by_feat": dict(rescale=True, with_nms=True),
        "OVHeadModule": dict(
            level_scales=False,
            centred=False,
            light=False,
            hidden_channels=80,
            l2_norm=False,
            prior_words=80,
            prior_size=640,
        ),
        "set_suppression": dict(agnostic=False),
        "GridHeadModule": dict(grid_side=3.0),
        "CandidateLocations": dict(number=1000, probes=1024),
        "GlobalProjection": dict(widen_factor=1.0, hidden_dims=512, norm=False),
        "RandomVocabulary": dict(size=80, min_size=40, federated=50),
        "PixelProjection": dict(hidden_channels=64, num_convs=2),
        "OpenSegHead": dict(background=True),
        "ClosedSegHead": dict(background=True),
        "SegStudent": dict(seg_weight=1.0, background_weight=1.0, label_stride=1),
        "Student.predict_boxes": dict(rescale=True),
        "initial_logit_scale": dict(temperature=0.07),
        "TextClassifier": dict(
            level_scales=False,
            embed_dims=0,
            num_biases=0,
            learn_scale=True,
            background=False,
            temperature=0.07,
            centred=False,
        ),
        "ViLDBBoxHead": dict(temperature=0.01, background=True),
        "ViLDRoIHead": dict(exponent=2 / 3, objectness=0.0),
        "ViLDRoIHead.predict_bbox": dict(rescale=False),
        "ViLDDetector.predict": dict(rescale=True),
    },
    "clip": {
        "CLIPSource": dict(fetch=True),
        "CLIPImageTeacher": dict(batch_size=2048),
        "CLIPImageTeacher.embed_crops": dict(scales=(1.0, 1.5)),
    },
    "evaluation": {
        "Rules": dict(
            federated=False, per_pair=10**9, per_image=10**9, per_class=10**9
        ),
        "Predictions": dict(corners=False),
        "OpenVocabularyMetric": dict(classwise=False, reliability=False),
        "retrieval_recall": dict(ks=(1, 5, 10), block=(2048, 8192)),
        "zero_shot_accuracy": dict(ks=(1, 5)),
        "RetrievalMetric": dict(ks=(1, 5, 10)),
        "ZeroShotMetric": dict(per_class=True),
        "overlap": dict(kinds=False),
        "SegMetric": dict(classwise=False),
    },
    "datasets": {
        "AnnotationFile": dict(outlines=True),
        "OVCocoDataset": dict(synonyms=False, checked=100),
        "OVXMLDataset": dict(checked=100),
        "CaptionDataset": dict(exclude=False),
        "ImageFolderDataset": dict(synonyms=False),
        "CropDataset": dict(min_size=1.0),
        "ResumableSampler": dict(shuffle=True),
        "SegDataset": dict(
            background=0, ignored=(255,), labelled=1.0, seed=0, checked=100
        ),
        "World": dict(repeats=0.0, odds_in_val=False, by_kind=0, size=160, edition=1),
        "Scene": dict(quality=95),
        "arc": dict(cx=0, cy=0),
        "LargeScaleJitter": dict(ratio_range=(0.1, 2.0), min_box=0.0),
        "with_found": dict(iou=0.5, threshold=0.3),
        "draw_scene": dict(long_tail=False),
        "write_world": dict(seed=0, num_train=4000, num_val=500),
        "LoadCaptions": dict(number=1),
    },
}


def is_numeric(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return bool(value) and all(map(is_numeric, value))
    return isinstance(value, (bool, int, float))


def functions(module: Any) -> Iterator[tuple[str, Any]]:
    """What is public and made here; a class stands for its arguments."""
    for name, made in vars(module).items():
        if name.startswith("_") or getattr(made, "__module__", "") != module.__name__:
            continue
        if inspect.isfunction(made):
            yield name, made
        elif inspect.isclass(made):
            own = vars(made)
            yield name, made.__new__ if "_fields" in own else own.get("__init__")
            for key, method in own.items():
                if not key.startswith("_"):
                    yield f"{name}.{key}", getattr(method, "__func__", method)


@pytest.mark.parametrize("room", DEFAULTS)
def test_defaults_stay_as_they_are(room: str) -> None:
    found = {}
    path, prefix = f"{kdeov_mm.__path__[0]}/{room}", f"kdeov_mm.{room}."
    for module in pkgutil.walk_packages([path], prefix):
        for name, made in functions(importlib.import_module(module.name)):
            known = inspect.isfunction(made)  # neither a property nor a constant
            parameters = inspect.signature(made).parameters if known else {}
            numbers = {k: p.default for k, p in parameters.items()}
            if numbers := {k: v for k, v in numbers.items() if is_numeric(v)}:
                found[name] = numbers
    assert found == DEFAULTS[room]


# figures, files and limits that are no arguments
CONSTANTS = {
    "clip.cached_teacher": dict(TOLERANCE=0.1),
    "clip.packing": dict(PACK=512),
    "clip.store": dict(FORMAT=2),
    "clip.text": dict(CHUNK=256, ROWS=96),
    "datasets.sampler": dict(ORDER=0, SAMPLE=1, STEP=2),
    "datasets.segmentation": dict(BACKGROUND=-1, IGNORED=-2),
    "datasets.shapes_files": dict(FORMAT=1),
    "datasets.transforms": dict(BOX_TOLERANCE=2),
    "evaluation.average_precision": dict(CHUNK_BOXES=200_000, CHUNK_PAIRS=400_000),
    "evaluation.image_text": dict(BLOCK=(2048, 8192), TIE=1e-6),
    "evaluation.reliability": dict(RECALLS=(0.3, 0.5, 0.7), BINS=10),
    "models.distill.regions": dict(MIN_VISIBLE=0.5, MIN_SIDE=4),
    "models.label_maps": dict(CHUNK=2**25, POINTS=100),
    "models.postprocess": dict(PART=2**25, BLOCK=64),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_stay_as_they_are(name: str) -> None:
    module = importlib.import_module(f"kdeov_mm.{name}")
    assert {k: getattr(module, k) for k in CONSTANTS[name]} == CONSTANTS[name]


# classes, groups and colours: labels index them, and groups are protocols
META = {
    "OVCocoDataset": "2ac952fc4d9e",
    "OVLVISDataset": "0a9b2c261f8c",
    "ShapesDataset": "4b30406fd46d",
    "Shapes1203Dataset": "e5a00c57c02c",
    "ShapesHardDataset": "603e4493199e",
    "VOCSegDataset": "c94b3971a0cc",
    "COCOStuffDataset": "cb634a2b102b",
    "PascalContextDataset": "4223b215aae2",
    "ADE20KDataset": "b97f47210207",
}


@pytest.mark.parametrize("name", META)
def test_classes_and_groups_stay_as_they_are(name: str) -> None:
    made = DATASETS.get(name)
    text = repr([made.METAINFO, getattr(made, "VALUES", None)])
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == META[name]
