"""The teacher's embeddings on disk."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor

from kdeov_mm.clip import (
    CachedTeacher,
    CLIPImageTeacher,
    EmbeddingStore,
    StoreMismatch,
    TeacherBatch,
)
from kdeov_mm.clip.cached_teacher import _check_heads
from kdeov_mm.clip.store import SHARD
from kdeov_mm.datasets.transforms import META_KEYS
from kdeov_mm.files import locked
from kdeov_mm.models import DenseDistillation, words_of
from kdeov_mm.models.distill.regions import block_boxes
from kdeov_mm.vectors import read_vectors, write_vectors

from ..conftest import EMBED_DIMS, ROOT, load_tool, run_env, write_clip
from ..operators import operators_of_step

SCALES = (1.0, 1.5)
COSINE = dict(cosine=dict(type="CosineDistance"))


@pytest.fixture(scope="module")
def config(
    load_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Config:
    """A cached training on the tiny world: crops, windows, captions."""
    cfg = load_config("ablations/global_contrast.py")
    folder = tmp_path_factory.mktemp("store") / "embeddings"
    cfg.model.teacher = dict(
        type="CachedTeacher", store=str(folder), model=cfg.model.text_encoder.model
    )
    cfg.model.distill.image.projection.embed_dims = EMBED_DIMS
    sources = ("truth", "blocks")
    cfg.model.distill.update(
        region=dict(type="RegionDistillation", distances=COSINE, sources=sources),
        dense=dict(type="DenseDistillation", distances=COSINE, window=48),
    )
    cfg.default_hooks.cache = dict(type="EmbeddingCacheHook")
    return cfg


@pytest.fixture(scope="module")
def config_file(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "cached.py"
    config.dump(path)
    return path


@pytest.fixture(scope="module")
def tool() -> Any:
    return load_tool("cache_embeddings")


@pytest.fixture(scope="module")
def store(config: Config, config_file: Path, tool: Any) -> EmbeddingStore:
    assert tool.main([str(config_file), "--dense", "--shard-size", "5"]) == 0
    return EmbeddingStore(config.model.teacher.store)


@pytest.fixture(scope="module")
def dataset(config: Config) -> Any:
    init_default_scope("mmdet")
    return DATASETS.build(config.train_dataloader.dataset)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def admitted(config: Config, dataset: Any, **changes: Any) -> CachedTeacher:
    teacher = CachedTeacher(
        **{k: v for k, v in config.model.teacher.items() if k != "type"} | changes
    )
    teacher.admit(dataset, {}, MODELS.build(config.model.data_preprocessor))
    return teacher


def answering(teacher: Any, batch: dict[str, Any]) -> TeacherBatch:
    return teacher.for_batch(batch["inputs"], batch["samples"], batch["preprocessor"])


# ---------------------------------------------------------------- cached = live


@pytest.fixture(params=[False, True], ids=["as it is", "mirrored"])
def batch(request: Any, config: Config, dataset: Any) -> Iterator[dict[str, Any]]:
    """The student's inputs of five images, all mirrored or none."""
    flip = next(t for t in dataset.pipeline.transforms if "Flip" in type(t).__name__)
    before, flip.prob = flip.prob, float(request.param)
    data = pseudo_collate([dataset.prepare_data(i) for i in (0, 7, 11, 3, 4)])
    flip.prob = before
    preprocessor = MODELS.build(config.model.data_preprocessor)
    data = preprocessor(data, True)
    samples = data["data_samples"]
    assert all(s.metainfo.get("flip", False) == request.param for s in samples)
    yield dict(inputs=data["inputs"], samples=samples, preprocessor=preprocessor)


def test_a_larger_batch_has_hardly_more_operators_from_the_store(
    config: Config, dataset: Any, store: EmbeddingStore
) -> None:
    cfg = Config(config.to_dict()).model
    cfg.distill = dict(region=cfg.distill.region)
    model = MODELS.build(cfg).train()
    model.teacher.admit(dataset, model.distill_heads, model.data_preprocessor)
    data = pseudo_collate([dataset.prepare_data(i) for i in range(4)])
    model.embed(words_of(data["data_samples"]))
    few, many = (operators_of_step(model, data, times) for times in (1, 4))
    assert many.number < 1.1 * few.number
    # values of the file, on the host
    assert {*many.stops} == {"_local_scalar_dense"}


def test_half_precision_reads_the_same_from_the_store(
    config: Config, dataset: Any, store: EmbeddingStore, batch: dict[str, Any]
) -> None:
    truth = [s.gt_instances.bboxes for s in batch["samples"]]
    texts = [s.caption for s in batch["samples"]]

    def answers() -> list[Tensor]:
        cached = answering(admitted(config, dataset), batch)
        crops = cached.crops(truth, SCALES)
        return [crops, cached.images(), cached.dense(), cached.captions(texts)]

    expected = answers()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, answers(), expected))


def test_cached_equals_live(
    config: Config, dataset: Any, store: EmbeddingStore, batch: dict[str, Any]
) -> None:
    samples = batch["samples"]
    live = answering(CLIPImageTeacher(config.model.text_encoder.model), batch)
    cached = answering(admitted(config, dataset), batch)
    truth = [s.gt_instances.bboxes for s in samples]
    blocks = [block_boxes(s.img_shape, (2, 3, 4)) for s in samples]
    texts = [s.caption for s in samples]

    def answers(teacher: TeacherBatch) -> dict[str, Tensor]:
        return dict(
            images=teacher.images(),
            truth=teacher.crops(truth, SCALES),
            blocks=teacher.crops(blocks, SCALES),
            dense=teacher.dense(),
            captions=teacher.captions(texts),
        )

    wanted, got = answers(live), answers(cached)
    for name, vectors in wanted.items():
        assert got[name].shape == vectors.shape and got[name].dtype == torch.float32
        assert (got[name] - vectors).abs().max() < 1e-3, name
    assert wanted["truth"].std(0).max() > 1e-2  # the boxes do look different


@pytest.mark.parametrize("flip", [0.0, 1.0], ids=["as it is", "mirrored"])
def test_cached_equals_live_where_the_original_is_kept(
    flip: float, config: Config, tool: Any, tmp_path: Path
) -> None:
    """In a store of its own: the teacher's pixels are others."""
    cfg = Config(config.to_dict())
    cfg.model.teacher.store = str(tmp_path / "store")
    cfg.model.distill.pop("dense")
    steps = cfg.train_dataloader.dataset.pipeline
    place = next(i for i, step in enumerate(steps) if step.type == "Resize")
    steps[place].update(scale=(96, 64), keep_ratio=False)
    resized = DATASETS.build(cfg.train_dataloader.dataset)
    steps.insert(place, dict(type="KeepOriginal"))
    cfg.dump(tmp_path / "cached.py")
    assert tool.main([str(tmp_path / "cached.py")]) == 0
    with pytest.raises(StoreMismatch, match="is of another pixels"):
        admitted(cfg, resized)
    # the same answers, and those of larger crops than the input has
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    dataset.pipeline.transforms[-2].prob = flip
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    data = preprocessor(pseudo_collate([dataset.prepare_data(i) for i in (0, 7)]), True)
    samples = data["data_samples"]
    batch = dict(inputs=data["inputs"], samples=samples, preprocessor=preprocessor)
    live: Any = answering(CLIPImageTeacher(cfg.model.text_encoder.model), batch)
    cached = answering(admitted(cfg, dataset), batch)
    truth = [sample.gt_instances.bboxes for sample in samples]
    crops = live.crops(truth, SCALES)
    assert (cached.crops(truth, SCALES) - crops).abs().max() < 1e-3
    assert (cached.images() - live.images()).abs().max() < 1e-3
    small = live._replace(originals=None).crops(truth, SCALES)
    assert (small - crops).abs().max() > 1e-2


def test_the_losses_of_a_cached_training_are_those_of_a_live_one(
    config: Config, dataset: Any, store: EmbeddingStore, batch: dict[str, Any]
) -> None:
    losses = []
    for kind in ("CachedTeacher", "CLIPImageTeacher"):
        cfg = Config(dict(model=config.model.to_dict())).model
        if kind == "CLIPImageTeacher":
            cfg.teacher = dict(type=kind, model=cfg.text_encoder.model)
        torch.manual_seed(0)
        model = MODELS.build(cfg).train()
        if kind == "CachedTeacher":
            model.teacher.admit(dataset, model.distill_heads, model.data_preprocessor)
        torch.manual_seed(1)
        losses.append(model.loss(batch["inputs"], batch["samples"]))
    assert {"loss_dense_cosine", "loss_region_cosine"} < set(losses[0])
    for name in losses[0]:
        if name.split("_")[1] not in ("cls", "bbox", "dfl"):
            torch.testing.assert_close(
                losses[0][name], losses[1][name], rtol=2e-3, atol=1e-3
            )


def test_a_training_runs_from_the_store_alone(
    config: Config,
    store: EmbeddingStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = Config(config.to_dict())
    cfg.update(work_dir=str(tmp_path), experiment_name="cached")
    cfg.train_cfg.max_iters, cfg.param_scheduler = 1, []
    runner = Runner.from_cfg(cfg)
    monkeypatch.setattr(
        "kdeov_mm.clip.CLIPImageTeacher.__call__", lambda *_: pytest.fail("live")
    )
    assert runner.train() is not None and runner.iter == 1


def test_without_the_hook_no_embedding_is_given_out(config: Config) -> None:
    teacher = CachedTeacher(store="anywhere", model=config.model.text_encoder.model)
    with pytest.raises(RuntimeError, match="EmbeddingCacheHook"):
        teacher.for_batch(torch.zeros(0, 3, 64, 64), [], None)


def test_what_the_store_does_not_hold_is_named(
    config: Config, dataset: Any, store: EmbeddingStore, batch: dict[str, Any]
) -> None:
    samples = batch["samples"]
    cached = answering(admitted(config, dataset), batch)
    moved = [s.gt_instances.bboxes + 0.5 for s in samples]
    with pytest.raises(ValueError, match="does not hold the box"):
        cached.crops(moved, SCALES)
    with pytest.raises(ValueError, match="scales"):
        cached.crops(moved, (3.0,))
    with pytest.raises(ValueError, match="caption 'no such'"):
        cached.captions(["no such"] * len(samples))
    with pytest.raises(KeyError, match="no image 'x'"):
        store["x"]


# -------------------------------------------------------------------- refusals


def test_a_store_of_another_teacher_is_refused(
    config: Config, dataset: Any, store: EmbeddingStore, tmp_path: Path
) -> None:
    other = write_clip(tmp_path / "other", seed=1)
    with pytest.raises(StoreMismatch, match="is of another teacher"):
        admitted(config, dataset, model=other)


def test_a_store_of_other_boxes_is_refused(
    config: Config, store: EmbeddingStore, world: Path
) -> None:
    cfg = Config(config.to_dict()).train_dataloader.dataset
    cfg.update(vocabulary="all", ann_file="annotations/instances_train_all.json")
    with pytest.raises(StoreMismatch, match="is of another data"):
        admitted(config, DATASETS.build(cfg))


def test_a_store_of_other_pixels_is_refused(
    config: Config, store: EmbeddingStore
) -> None:
    cfg = Config(config.to_dict()).train_dataloader.dataset
    resize = next(step for step in cfg.pipeline if step.type == "Resize")
    resize.scale = (96, 96)
    with pytest.raises(StoreMismatch, match="is of another pixels"):
        admitted(config, DATASETS.build(cfg))


@pytest.mark.parametrize(
    "step",
    [
        dict(type="PhotoMetricDistortion"),
        dict(type="RandomAffine"),
        dict(type="RandomCrop", crop_size=(64, 64)),
        dict(type="RandomResize", scale=(160, 160), ratio_range=(0.5, 2)),
        dict(type="CachedMosaic", img_scale=(160, 160)),
        dict(type="RandomErasing", n_patches=1, ratio=0.1),
        dict(type="RandomFlip", prob=0.5, direction="vertical"),
        dict(type="RandomFlip", prob=[0.3, 0.3], direction=["horizontal", "diagonal"]),
    ],
    ids=lambda step: step["type"],
)
def test_a_pipeline_that_changes_pixels_is_refused_with_the_reason(
    step: dict[str, Any], config: Config, store: EmbeddingStore
) -> None:
    cfg = Config(config.to_dict()).train_dataloader.dataset
    cfg.pipeline.insert(3, step)
    with pytest.raises(StoreMismatch, match=f"(?s){step['type']}.*live teacher"):
        admitted(config, DATASETS.build(cfg))


def test_a_step_that_the_config_calls_neutral_passes(
    config: Config, store: EmbeddingStore
) -> None:
    cfg = Config(config.to_dict()).train_dataloader.dataset
    cfg.pipeline.insert(3, dict(type="RandomErasing", n_patches=1, ratio=0.1))
    data = DATASETS.build(cfg)
    with pytest.raises(StoreMismatch, match="RandomErasing"):
        admitted(config, data)
    teacher = admitted(config, data, neutral=["RandomErasing"])
    assert teacher.for_batch(torch.zeros(0, 3, 64, 64), [], None).ids == []


def test_images_that_are_repeated_are_stored_once(
    config: Config, store: EmbeddingStore, tool: Any, tmp_path: Path
) -> None:
    """Repeat factor sampling, as in LVIS: one store with it and without."""
    cfg = Config(config.to_dict())
    cfg.train_dataloader.dataset = dict(
        type="ClassBalancedDataset",
        oversample_thr=1.0,
        dataset=cfg.train_dataloader.dataset,
    )
    repeated = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(repeated) > len(repeated.dataset) == store.manifest["images"]
    admitted(config, repeated)
    cfg.dump(tmp_path / "repeated.py")
    folder = str(tmp_path / "store")
    assert tool.main([str(tmp_path / "repeated.py"), "--dense", "--store", folder]) == 0
    other = EmbeddingStore(folder).manifest
    assert other | dict(shard_size=5) == store.manifest | dict(shard_size=5)


def test_boxes_that_move_are_refused_at_the_start(
    config: Config, dataset: Any, store: EmbeddingStore
) -> None:
    teacher = CachedTeacher(config.model.teacher.store, config.model.teacher.model)
    preprocessor = MODELS.build(config.model.data_preprocessor)
    head = MODELS.build(dict(type="RegionDistillation", distances=COSINE))
    with pytest.raises(StoreMismatch, match=r"the head crops .*own"):
        teacher.admit(dataset, dict(crops=head), preprocessor)


def test_a_pipeline_must_say_whether_it_mirrored(
    config: Config, store: EmbeddingStore
) -> None:
    cfg = Config(config.to_dict()).train_dataloader.dataset
    pack = cfg.pipeline[-1]
    pack.meta_keys = tuple(key for key in META_KEYS if key != "flip")
    with pytest.raises(StoreMismatch, match="whether an image was mirrored"):
        admitted(config, DATASETS.build(cfg))
    cfg = Config(config.to_dict()).train_dataloader.dataset
    cfg.pipeline.insert(3, dict(type="RandomFlip", prob=0.5))
    with pytest.raises(StoreMismatch, match="2 RandomFlip steps"):
        admitted(config, DATASETS.build(cfg))


@pytest.mark.parametrize(
    "changes, reason",
    [
        (dict(sources=("truth", "stored")), "--proposals"),
        (dict(sources=("truth", "blocks"), grids=(5,)), "the crops of"),
        (dict(sources=("truth",), scales=(1.0, 2.0)), "the crops of"),
    ],
)
def test_heads_that_ask_for_more_than_the_store_holds_are_refused_at_the_start(
    changes: dict[str, Any],
    reason: str,
    config: Config,
    dataset: Any,
    store: EmbeddingStore,
) -> None:
    teacher = CachedTeacher(config.model.teacher.store, config.model.teacher.model)
    preprocessor = MODELS.build(config.model.data_preprocessor)
    head = dict(type="RegionDistillation", distances=COSINE)
    wanted = MODELS.build({**head, "sources": ("truth",)})
    teacher.admit(dataset, dict(crops=wanted), preprocessor)
    with pytest.raises(StoreMismatch, match=f"(?s)the head crops needs .*{reason}"):
        teacher.admit(dataset, dict(crops=MODELS.build(head | changes)), preprocessor)


def test_an_unfinished_store_is_refused_at_the_start(
    config: Config, dataset: Any, store: EmbeddingStore
) -> None:
    path = store.shard_file(2)
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="goes on where it stopped"):
        admitted(config, dataset)
    path.write_bytes(data)


def test_a_config_without_a_teacher_has_nothing_to_keep(
    config: Config, tool: Any, tmp_path: Path, capsys: Any
) -> None:
    cfg = Config(config.to_dict())
    cfg.model.update(teacher=None, distill=None)
    cfg.dump(tmp_path / "none.py")
    assert tool.main([str(tmp_path / "none.py"), "--store", str(tmp_path / "s")]) == 1
    assert "no model.teacher" in capsys.readouterr().err


def test_a_training_with_an_unfit_pipeline_fails_at_its_start(
    config: Config, store: EmbeddingStore, tmp_path: Path
) -> None:
    cfg = Config(config.to_dict())
    cfg.update(work_dir=str(tmp_path), experiment_name="unfit")
    cfg.train_dataloader.dataset.pipeline.insert(3, dict(type="PhotoMetricDistortion"))
    runner = Runner.from_cfg(cfg)
    with pytest.raises(StoreMismatch, match="PhotoMetricDistortion"):
        runner.train()
    assert runner.iter == 0


def test_the_tool_refuses_another_store_with_exit_code_1(
    config_file: Path, store: EmbeddingStore, tool: Any, capsys: Any
) -> None:
    before = content(store.folder)
    assert tool.main([str(config_file), "--shard-size", "5"]) == 1  # not --dense
    assert "is of another dense" in capsys.readouterr().err
    assert content(store.folder) == before


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize("harm", ["cut", "changed", "removed", "emptied", "swapped"])
def test_a_damaged_shard_is_found_and_made_again(
    harm: str,
    config: Config,
    config_file: Path,
    dataset: Any,
    store: EmbeddingStore,
    tool: Any,
    capsys: Any,
) -> None:
    before, path = content(store.folder), store.shard_file(1)
    data = bytearray(path.read_bytes())
    if harm == "removed":
        path.unlink()
    else:
        middle = len(data) // 2
        data[middle] ^= 1
        if harm == "swapped":
            data = bytearray(store.shard_file(0).read_bytes())
        path.write_bytes(data[: dict(cut=middle, emptied=0).get(harm, len(data))])
    with pytest.raises((ValueError, FileNotFoundError), match=r"cache_embeddings.py"):
        EmbeddingStore(store.folder)[dataset.get_data_info(0)["img_id"]]
    assert tool.main([str(config_file), "--dense", "--shard-size", "5"]) == 0
    assert content(store.folder) == before
    said = capsys.readouterr().out
    assert f"{len(dataset) - 5} of them were there already" in said
    assert ("damaged" in said) == (harm != "removed")


@pytest.mark.parametrize("name", ["ids", "captions", "ends", "crops", "image"])
def test_a_shard_of_another_form_is_damaged(
    name: str, store: EmbeddingStore, tmp_path: Path
) -> None:
    """With a checksum that is right: someone has written it so."""
    shutil.copytree(store.folder, tmp_path / "store")
    path = EmbeddingStore(tmp_path / "store").shard_file(1)
    tensors, about = read_vectors(path, SHARD)
    if name in tensors:
        tensors[name] = tensors[name] * 3
    else:
        about[name] = None
    write_vectors(path, SHARD, tensors, about)
    assert not EmbeddingStore(tmp_path / "store").is_whole(1)


def test_a_folder_of_other_things_is_no_place_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(StoreMismatch, match="is not empty and holds no store"):
        EmbeddingStore(tmp_path, dict(images=1))
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.slow
def test_killed_five_times_and_finished_is_as_undisturbed(
    config: Config, config_file: Path, tmp_path: Path
) -> None:
    """kill -9 at random moments; and a left-over of a write goes away."""
    script = str(ROOT / "tools/cache_embeddings.py")

    def command(folder: Path) -> list[str]:
        return [
            sys.executable, script, str(config_file), "--shard-size", "1",
            "--store", str(folder),
        ]  # fmt: skip

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    env = run_env(OMP_NUM_THREADS="1")
    quiet: dict[str, Any] = dict(
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    subprocess.run(command(whole), check=True, **quiet)
    moments = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(command(killed), **quiet)
        wanted = len(list(killed.glob("shard-*"))) + moments.randint(0, 3)
        while process.poll() is None and len(list(killed.glob("shard-*"))) < wanted:
            time.sleep(0.001)
        time.sleep(moments.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed.is_dir(), "killed before anything was written each time"
    (killed / "shard-00000.tmp").write_bytes(b"half")
    subprocess.run(command(killed), check=True, **quiet)
    assert content(killed) == content(whole)


@pytest.mark.slow
def test_workers_write_what_one_process_writes(
    config: Config, config_file: Path, store: EmbeddingStore, tmp_path: Path
) -> None:
    """Also where one of its own shards is there, and where a worker has an error."""
    pytest.importorskip("ray")
    script, folder = str(ROOT / "tools/cache_embeddings.py"), tmp_path / "store"
    whole = content(store.folder)

    def run(file: Path) -> subprocess.CompletedProcess:
        given = ["--dense", "--shard-size", "5", "--store", str(folder)]
        return subprocess.run(
            [sys.executable, script, str(file), *given, "--workers", "2"],
            env=run_env(RAY_worker_niceness="0"),
            capture_output=True,
            text=True,
        )

    shutil.copytree(store.folder, folder)
    store_file = EmbeddingStore(folder).shard_file
    store_file(0).unlink()
    store_file(2).write_bytes(b"half")
    done = run(config_file)
    assert done.returncode == 0, done.stderr
    assert "5 of them were there already" in done.stdout + done.stderr
    assert content(folder) == whole


def test_two_writers_do_not_meet(
    config_file: Path, store: EmbeddingStore, tool: Any, capsys: Any
) -> None:
    with locked(store.folder):
        code = tool.main([str(config_file), "--dense", "--shard-size", "5"])
    assert code == 1 and "another process" in capsys.readouterr().err


# ------------------------------------------------------------------- proposals


def test_an_earlier_students_boxes_are_stored_and_come_mirrored(
    config: Config, dataset: Any, tool: Any, tmp_path: Path, batch: dict[str, Any]
) -> None:
    cfg = Config(config.to_dict())
    cfg.model.teacher.store = str(tmp_path / "store")
    cfg.model.distill.region.sources = ("truth", "stored")
    path, weights = tmp_path / "stored.py", tmp_path / "student.pth"
    cfg.dump(path)
    assert tool.main([str(path)]) == 1  # no checkpoint
    student = Config(dict(model=cfg.model.to_dict())).model
    student.update(teacher=None, distill=None)
    torch.manual_seed(0)
    torch.save(MODELS.build(student).state_dict(), weights)
    assert tool.main([str(path), "--proposals", str(weights)]) == 0
    manifest = json.loads((tmp_path / "store/store.json").read_text())
    assert manifest["proposals_sha256"]
    # boxes chosen in another way are another store's
    cfg.model.distill.region.label_iou = 0.2
    cfg.dump(path)
    assert tool.main([str(path), "--proposals", str(weights)]) == 1
    cached = answering(admitted(cfg, dataset), batch)
    boxes = [cached.stored_boxes(i) for i in range(5)]
    assert 0 < sum(map(len, boxes)) <= 25
    live = answering(CLIPImageTeacher(cfg.model.text_encoder.model), batch)
    torch.testing.assert_close(
        cached.crops(boxes, SCALES), live.crops(boxes, SCALES), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("dense", [True, False])
def test_maps_of_patches_need_a_store_that_has_them(dense: bool) -> None:
    held = dict(dense=dense, captions=True, proposals_sha256="x", needs=[])
    store: Any = SimpleNamespace(folder=Path("store"), manifest=held)
    heads = dict(patches=DenseDistillation(COSINE))
    if dense:
        _check_heads(store, heads)
        return
    with pytest.raises(StoreMismatch, match="patches needs .* dense maps"):
        _check_heads(store, heads)
