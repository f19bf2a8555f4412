"""What the documentation shows does run."""

import json
import re
import subprocess
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

import kdeov_mm
from kdeov_mm.models.pretrained import take_pretrained
from kdeov_mm.vocabulary import Vocabulary

from .conftest import EMBED_DIMS, ROOT, moved, run_env
from .inference.test_api import scene, write_joint
from .test_configs import OneStep

PAGE = (ROOT / "docs/custom_dataset.md").read_text()


def block(language: str, beginning: str, page: str = PAGE) -> str:
    """The code block of the page that holds `beginning`."""
    blocks = re.findall(rf"```{language}\n(.*?)```", page, re.S)
    (found,) = (code for code in blocks if beginning in code)
    return found


@pytest.fixture
def my_data(tmp_path: Path) -> Path:
    """Cats, dogs and zebras in COCO's format, with a category too many."""
    root, rng = tmp_path / "my_data", np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    names = ("zebra", "dog", "ship", "cat")
    for split in ("train", "val"):
        images = []
        for i in range(4):
            pixels = rng.integers(256, size=(60, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"images/{split}{i}.jpg")
            size = dict(width=80, height=60)
            images.append(dict(id=i, file_name=f"{split}{i}.jpg", **size))
        boxes = [
            dict(id=4 * i + k, image_id=i, category_id=k, bbox=[9 * k, 9, 30, 30])
            for i in range(4)
            for k in range(4)
        ]
        (root / f"{split}.json").write_text(
            json.dumps(
                dict(
                    images=images,
                    annotations=[dict(b, area=900, iscrowd=0) for b in boxes],
                    categories=[dict(id=k, name=n) for k, n in enumerate(names)],
                )
            )
        )
    return root


def test_the_coco_config_of_the_page_trains_and_tests(
    my_data: Path, tmp_path: Path, tiny_clip: str
) -> None:
    path = tmp_path / "my_data.py"
    path.write_text(
        block("python", "My data: COCO JSON").replace(
            "./kdeov_n", f"{ROOT}/configs/kdeov/kdeov_n"
        )
    )
    cfg = Config.fromfile(path, lazy_import=False)
    cfg = Config(moved(cfg.to_dict(), {"data/my_data/": f"{my_data}/"}))
    cfg.model.text_encoder.model = tiny_clip
    cfg.model.bbox_head.head_module.embed_dims = EMBED_DIMS
    cfg.update(work_dir=str(tmp_path / "work"), experiment_name="my_data")
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        assert loader.dataset.type == "OVCocoDataset"
        assert "vocabulary" not in loader.dataset
    runner, once = Runner.from_cfg(cfg), OneStep()
    runner.register_hook(once)
    runner.train()
    assert once.losses["loss_bbox"] > 0
    dataset = runner.train_dataloader.dataset
    assert dataset.get_data_info(0)["words"] == (("cat",), ("dog",))
    assert len(dataset.get_data_info(0)["instances"]) == 2
    assert {"ov/AP50", "ov/base_AP50", "ov/novel_AP50"} <= set(runner.test())


def test_the_lines_for_a_real_clip_fit_the_demo(
    load_config: Callable[..., Config],
) -> None:
    scope: dict[str, dict] = {}
    exec(block("python", "ViT-B-32-quickgelu"), scope)
    cfg = load_config("kdeov_n_shapes.py", clip=False)
    cfg.merge_from_dict(dict(model=scope["model"]))
    for part, kind in (
        (cfg.model.text_encoder, "CLIPTextEncoder"),
        (cfg.model.teacher, "CLIPImageTeacher"),
    ):
        assert part.type == kind and part.model == "ViT-B-32-quickgelu"
    assert cfg.model.bbox_head.head_module.embed_dims == 512


def test_the_lines_for_another_backbone_fit_its_config(
    load_config: Callable[..., Config],
) -> None:
    scope: dict[str, dict] = {}
    exec(block("python", "torchvision://resnet50"), scope)
    cfg = load_config("ablations/backbone_resnet50.py")
    cfg.merge_from_dict(dict(model=scope["model"]))
    model = MODELS.build(cfg.model)
    (entry,) = take_pretrained(model.backbone)
    assert entry["checkpoint"] == "torchvision://resnet50"
    assert model.data_preprocessor.mean.flatten().tolist()[0] == pytest.approx(123.675)


def test_the_lists_of_the_page(raccoons: Path, tmp_path: Path) -> None:
    """The shell's lines, as a stranger types them, in an empty folder."""
    lines = block("bash", 'ln -s "$RACCOON"')
    lines = lines.replace("160", "5").replace("+161", "+6")
    done = subprocess.run(
        ["bash", "-euc", lines],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=run_env(RACCOON=str(raccoons)),
    )
    assert done.returncode == 0, done.stderr
    test = (tmp_path / "data/raccoon/test.txt").read_text().split()
    assert test == ["r-5", "r-6", "r-7"]


def test_the_page_about_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/vocabulary.md").read_text()
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("cat, kitty\ndog\n")
    Path("words.json").write_text('[["cat", "kitty"], "dog"]')
    lvis = dict(id=1, name="cat", synonyms=["cat"], frequency="r")
    Path("lvis_v1_val.json").write_text(json.dumps(dict(categories=[lvis])))
    scope: dict[str, Any] = {}
    exec(block("python", "words.txt", page), scope)
    assert scope["words"].groups["novel"] == ("cat",)
    exec(block("python", "neighbours", page), scope)
    assert Vocabulary.load("words.safetensors").names == scope["words"].names


def test_the_page_on_images_does_run(
    load_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = (ROOT / "docs/images.md").read_text()
    checkpoint = write_joint(tmp_path, load_config)
    for name, size in (("a.jpg", (90, 60)), ("b.png", (40, 40))):
        Image.fromarray(scene(*size)).save(tmp_path / name)
    code = block("python", "from kdeov_mm import KDEOV", page)
    code = code.replace("work_dirs/kdeov_n_shapes_joint/iter_800.pth", str(checkpoint))
    monkeypatch.chdir(tmp_path)
    said: dict[str, Any] = {}
    exec(code, said)
    assert said["images"].shape == (2, EMBED_DIMS)
    assert said["texts"].shape == (1, EMBED_DIMS)
    assert said["logits"].shape == (1, 2)
    assert set(said["found"][0]) == {"boxes", "scores", "labels", "names"}


def test_the_documents_calls_do_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of the page of names, one after the other, with the built-in CLIP."""
    page = (ROOT / "docs/names.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.S))
    smaller = {
        "ViT-B/32": "shapes",
        "create_clip_model(device=device)": (
            "create_clip_model(device, 'shapes', backbone_pretrained=None)"
        ),
        "224": "64",
        "torch.randn(32,": "torch.randn(4,",
        "49408, (32, 77)": "49408, (4, 16)",
        "torch.ones(32, 77)": "torch.ones(4, 16)",
        "range(64)": "range(4)",
        "batch_size=16": "batch_size=2",
        "num_epochs=10": "num_epochs=2",
    }
    for old, new in smaller.items():
        assert old in code, old
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["image_embeddings"].shape == (4, 128)
    assert scope["text_embeddings"].shape == (1, 128)
    assert scope["logits"].shape == (4, 3) and len(scope["detections"]) == 4
    assert scope["spatial"].shape == (4, 128, 8, 8)
    assert scope["outputs"]["logits"].shape == (4, 4)
    assert len(scope["losses"]) == 2
    assert scope["student"].encode_image(scene(60, 80)).shape == (1, 128)
    assert scope["image_embeds"].shape == scope["text_embeds"].shape == (4, 128)


PAGES = [
    *("README.md", "CONTRIBUTING.md"),
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")),
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("configs/*/README.md")),
]


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    files = set(re.findall(r"(?:configs|tools|docs|kdeov_mm|tests)/[\w/]+\.\w+", text))
    files -= {"configs/kdeov/my_data.py", "configs/kdeov/CONFIG.py"}  # the reader's
    assert [file for file in sorted(files) if not (ROOT / file).is_file()] == []
    links = set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text))
    folder = (ROOT / page).parent
    assert [link for link in sorted(links) if not (folder / link).exists()] == []


def test_the_names_that_the_page_of_names_gives_exist() -> None:
    page = (ROOT / "docs/names.md").read_text()
    names = sorted(set(re.findall(r"`(kdeov_mm(?:\.\w+)+)`", page)))
    assert len(names) > 20
    for name in names:
        attrgetter(name.removeprefix("kdeov_mm."))(kdeov_mm)
    for name in set(re.findall(r"`(mm\w+\.\w+)`", page)):
        assert MODELS.get(name), name
    files = re.findall(r"(?:configs|tools)/[\w/]+\.py", page)
    assert files and all((ROOT / file).is_file() for file in files)


def test_the_page_of_names_has_the_parts_that_the_designs_name() -> None:
    left = re.findall(r"^\| (.*?) \|", (ROOT / "docs/names.md").read_text(), re.M)
    mapped = set(re.findall(r"`(\w+)`", " ".join(left)))
    assert mapped >= {
        "KDEOVModel",
        "FrozenCLIPTextEncoder",
        "LightweightVisualBackbone",
        "ProjectionNetwork",
        "SpatialProjection",
        "CrossModalFusionModule",
        "DistillationLoss",
        "CrossModalAlignmentLoss",
        "FeatureAlignmentLoss",
        "encode_image",
        "encode_text",
        "get_spatial_embeddings",
        "zero_shot_classify",
        "open_vocabulary_detect",
        "train_feature_alignment",
        "logit_scale",
        *("clip_model_name", "backbone_type", "fusion_type", "device"),
        *("visual_features", "text_features", "logits"),
        *("visual_map", "fused_map", "predictions"),
        "SegStudent",
        "CLIPTeacher",
        *("CLIP", "CLIPImageEncoder", "CLIPTextEncoder", "create_clip_model"),
        *("input_ids", "attention_mask"),
        *("get_trainable_parameters", "print_parameter_summary"),
    }
