"""Laws of each workaround, and a check that its symptom still exists.

When a ``test_symptom_*`` fails, a release has made that workaround superfluous: take
it out of ``kdeov_mm/compat.py``.
"""

import inspect
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmcv.ops import RoIAlign, batched_nms, nms, sigmoid_focal_loss
from mmcv.utils.ext_loader import check_ops_exist
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel, convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.optim import AmpOptimWrapper, build_optim_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from kdeov_mm import compat

COMPILED = "missing_ops" not in compat.apply()
WITHOUT_OPS = pytest.mark.skipif(COMPILED, reason="compiled mmcv is installed")
ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")

NO_PKG_RESOURCES = """
import importlib.util, sys
sys.modules.pop("pkg_resources", None)
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name == "pkg_resources":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Gone())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name == "pkg_resources" else find_spec(name, package))
"""


def run(code: str, *arguments: str) -> dict:
    """What the code prints last, as JSON, from a fresh interpreter."""
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------- is each workaround still needed?

SYMPTOMS = (
    NO_PKG_RESOURCES
    + """
import json
def error(code):
    try:
        exec(code, {})
    except Exception as caught:
        return f"{type(caught).__name__}: {caught}"
    return ""

found = {"ops": error("import mmcv.ops")}
import mmcv
real, mmcv.__version__ = mmcv.__version__, "2.2.0"
found["mmdet gate"] = error("import mmdet")
mmcv.__version__ = "2.1.0"
found["mmyolo gate"] = error("import mmyolo")
mmcv.__version__ = real
found["pkg_resources"] = error(
    "from mmengine.utils import get_installed_path; get_installed_path('mmdet')")
found["checkpoint"] = error('''
import io, torch
from mmengine.logging import HistoryBuffer
file = io.BytesIO()
torch.save(HistoryBuffer([1.0], [1]), file)
file.seek(0)
torch.load(file)
''')
found["amp"] = error('''
import torch
from mmengine.optim import AmpOptimWrapper
AmpOptimWrapper(optimizer=torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), 1))
''')
print(json.dumps(found))
"""
)


@pytest.fixture(scope="module")
def symptoms() -> dict[str, str]:
    """Error messages of the third parties, without this package."""
    return run(SYMPTOMS)


@WITHOUT_OPS
def test_symptom_ops(symptoms):
    assert "mmcv._ext" in symptoms["ops"]


def test_symptom_version_gates(symptoms):
    assert "MMCV==2.2.0 is used but incompatible" in symptoms["mmdet gate"]
    assert "MMCV==2.1.0 is used but incompatible" in symptoms["mmyolo gate"]


def test_symptom_pkg_resources(symptoms):
    assert "No module named 'pkg_resources'" in symptoms["pkg_resources"]


@pytest.mark.skipif("checkpoint_types" not in compat.apply(), reason="torch < 2.6")
def test_symptom_checkpoint(symptoms):
    assert "HistoryBuffer" in symptoms["checkpoint"]


@ON_CPU
def test_symptom_amp(symptoms):
    assert "only available" in symptoms["amp"]


# --------------------------------------------------------------- what is required


def test_apply_is_idempotent():
    before = set(torch.serialization.get_safe_globals())
    assert compat.apply() == compat.apply()
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("version", ["1.7.1", "2.0.0rc3", "2.3.0", "3.0.0"])
def test_mmcv_out_of_range_is_refused(monkeypatch, version):
    monkeypatch.setattr(mmcv, "__version__", version)
    with pytest.raises(ImportError, match=version):
        compat._require_mm_packages()


@pytest.mark.parametrize("version", ["2.0.0rc4", "2.0.1", "2.1.0", "2.2.0"])
def test_mmcv_in_range_is_accepted(monkeypatch, version):
    monkeypatch.setattr(mmcv, "__version__", version)
    assert compat._require_mm_packages() is None  # and raises nothing


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="mmengine.*pip install"):
        compat._require_mm_packages()


def test_wrong_torchvision_is_explained(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(compat.importlib, "import_module", broken)
    with pytest.raises(ImportError, match="not built for torch"):
        compat._require_matching_torchvision()


# -------------------------------------------------------------------- mmcv's ops


def boxes_and_scores(n: int = 120) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) with whole-number corners, much overlap; distinct scores (n,)."""
    rng = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 40, (n, 2), generator=rng)
    size = torch.randint(1, 40, (n, 2), generator=rng)
    boxes = torch.cat([corner, corner + size], 1).float()
    return boxes, torch.randperm(n, generator=rng).float() / n


def slow_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[int]:
    """The definition: best first, drop what overlaps a kept one."""
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        a = boxes[i].tolist()
        for j in kept:
            b = boxes[j].tolist()
            w = min(a[2], b[2]) - max(a[0], b[0]) + offset
            h = min(a[3], b[3]) - max(a[1], b[1]) + offset
            both = max(w, 0) * max(h, 0)
            area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
            area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
            if both > threshold * (area_a + area_b - both):
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_is_the_slow_one(offset):
    boxes, scores = boxes_and_scores()
    dets, kept = nms(boxes, scores, 0.45, offset=offset)
    assert kept.tolist() == slow_nms(boxes, scores, 0.45, offset)
    assert torch.equal(dets, torch.cat([boxes[kept], scores[kept, None]], 1))


def test_nms_score_threshold_and_max_num():
    boxes, scores = boxes_and_scores()
    _, kept = nms(boxes, scores, 0.45, score_threshold=0.5, max_num=7)
    expected = [i for i in slow_nms(boxes, scores, 0.45, 0) if scores[i] > 0.5]
    assert kept.tolist() == expected[:7]


def test_nms_of_nothing_and_of_numpy():
    dets, kept = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5) and kept.shape == (0,)
    boxes, scores = boxes_and_scores()
    _, kept = nms(boxes.numpy(), scores.numpy(), 0.45)
    assert kept.tolist() == slow_nms(boxes, scores, 0.45, 0)


@pytest.mark.parametrize(
    "class_agnostic, split_thr",  # above split_thr boxes, mmcv goes class by class
    [(False, 10_000), (False, 50), (True, 10_000)],
)
def test_batched_nms_is_nms_per_class(class_agnostic, split_thr):
    boxes, scores = boxes_and_scores()
    labels = torch.arange(len(boxes)) % 3
    cfg = dict(type="nms", iou_threshold=0.45, max_num=20, split_thr=split_thr)
    dets, kept = batched_nms(boxes, scores, labels, cfg, class_agnostic)
    groups = torch.zeros_like(labels) if class_agnostic else labels
    expected = []
    for group in groups.unique():
        index = (groups == group).nonzero().flatten()
        best = slow_nms(boxes[index], scores[index], 0.45, 0)
        expected += index[best].tolist()
    expected.sort(key=lambda i: -scores[i])
    assert kept.tolist() == expected[:20]
    assert torch.equal(dets[:, 4], scores[kept])


@WITHOUT_OPS
def test_nms_takes_half_types():
    boxes, scores = boxes_and_scores()
    for dtype in (torch.float16, torch.bfloat16):
        dets, kept = nms(boxes.to(dtype), scores.to(dtype), 0.45)
        assert dets.dtype == dtype and len(kept)


@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_samples_where_it_should(aligned):
    # On a ramp, bilinear sampling is exact: a cell holds the coordinate of its middle.
    ramp = torch.arange(32.0).expand(1, 1, 32, 32).contiguous()
    rois = torch.tensor([[0, 8.0, 12.0, 24.0, 28.0]])
    out = RoIAlign((4, 4), spatial_scale=0.5, sampling_ratio=2, aligned=aligned)(
        ramp, rois
    )
    middle = torch.tensor([5.0, 7.0, 9.0, 11.0]) - (0.5 if aligned else 0.0)
    torch.testing.assert_close(out[0, 0], middle.expand(4, 4))


def test_roi_align_gradient():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 12, 14, requires_grad=True)
    rois = torch.tensor([[0, 1, 2, 40, 30.0], [1, 3, 3, 9, 9.0], [1, -5, -5, 90, 90.0]])
    out = RoIAlign((3, 5), spatial_scale=0.25)(images, rois)
    weight = torch.randn_like(out)
    (gradient,) = torch.autograd.grad(out, images, weight)
    # The op is linear, so <out(v), w> = <v, gradient> for every v.
    other = torch.randn_like(images)
    moved = RoIAlign((3, 5), spatial_scale=0.25)(other, rois)
    torch.testing.assert_close((moved * weight).sum(), (other * gradient).sum())


@WITHOUT_OPS
def test_roi_align_under_autocast():
    images = torch.randn(1, 2, 8, 8, requires_grad=True)
    rois = torch.tensor([[0, 1, 1, 6, 6.0]])
    with torch.autocast("cpu", torch.bfloat16):
        half = images.to(torch.bfloat16)
        out = RoIAlign(2)(half, rois.to(half.dtype))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(images.grad.sum(), torch.tensor(8.0), rtol=0.02, atol=0)


@WITHOUT_OPS
def test_a_missing_op_is_named_when_called():
    from mmcv.ops import soft_nms

    with pytest.raises(NotImplementedError, match="softnms.*compiled"):
        soft_nms(*boxes_and_scores())
    with pytest.raises(NotImplementedError, match="max"):
        RoIAlign(2, pool_mode="max")(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5))
    with pytest.raises(NotImplementedError, match="sigmoid_focal_loss"):
        sigmoid_focal_loss(torch.zeros(1, 2), torch.tensor([0]))


@WITHOUT_OPS
def test_nobody_is_told_that_ops_are_compiled():
    from mmcv.utils import collect_env
    from mmengine.utils.dl_utils import mmcv_full_available

    assert not check_ops_exist() and not mmcv_full_available()
    assert collect_env()["MMCV Compiler"] == "n/a"


def test_mmengine_still_builds_optimizers_and_converts_norms():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    cfg = dict(
        optimizer=dict(type="SGD", lr=0.1, weight_decay=0.1),
        paramwise_cfg=dict(norm_decay_mult=0.0),
    )
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0, 0]
    synced = convert_sync_batchnorm(model, "torch")
    assert isinstance(synced[1], nn.SyncBatchNorm)
    assert not isinstance(revert_sync_batchnorm(synced)[1], nn.SyncBatchNorm)


# ----------------------------------------------------------------- version gates

LATER_MMCV = """
import json, sys
import mmcv
mmcv.__version__ = sys.argv[1]
if sys.argv[2]:
    import mmdet
import kdeov_mm, mmdet.models, mmyolo.models
print(json.dumps({
    "fixes": kdeov_mm.compat.apply(), "mmcv": mmcv.__version__,
    "mmdet": mmdet.mmcv_version[:2], "mmyolo": mmyolo.mmcv_version[:2]}))
"""


def test_a_later_mmcv_passes_when_mmdet_came_first():
    """As under mmdet's own tools, which import mmdet before the config names us."""
    found = run(LATER_MMCV, "2.1.0", "mmdet first")
    assert "version_gates" in found["fixes"]
    assert found["mmcv"] == "2.1.0"
    assert found["mmdet"] == found["mmyolo"] == [2, 1]


def test_mmcv_2_2_passes_both_gates_and_tells_the_truth_afterwards():
    found = run(LATER_MMCV, "2.2.0", "")
    assert found["mmcv"] == "2.2.0"
    assert found["mmdet"] == found["mmyolo"] == [2, 2]


# ----------------------------------------------------------------- pkg_resources


def test_mmdet_base_configs_without_pkg_resources(tmp_path):
    config = tmp_path / "config.py"
    config.write_text("_base_ = 'mmdet::_base_/schedules/schedule_1x.py'\n")
    code = """
import json, os, sys
import kdeov_mm
from mmengine.config import Config
from mmengine.utils import get_installed_path, is_installed
import mmdet
print(json.dumps({
    "fixes": kdeov_mm.compat.apply(),
    "epochs": Config.fromfile(sys.argv[1]).train_cfg.max_epochs,
    "path": get_installed_path("mmdet") == os.path.dirname(mmdet.__file__),
    "installed": [is_installed("mmdet"), is_installed("no_such_package")]}))
"""
    found = run(NO_PKG_RESOURCES + code, str(config))
    assert "pkg_resources" in found["fixes"]
    assert found["epochs"] == 12 and found["path"]
    assert found["installed"] == [True, False]


# ------------------------------------------------------------------- checkpoints


class Toy(BaseModel):
    """A line through points; `forward` as mmengine calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, x: Tensor, mode: str) -> dict[str, Tensor]:
        return {"loss": (self.line(x) - 3 * x).square().mean()}


class Record(Hook):
    """Learning rate and momentum of every iteration."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        group = runner.optim_wrapper.optimizer.param_groups[0]
        self.seen.append((group["lr"], group["momentum"]))


def train(work_dir: Path, epochs: int, resume: bool) -> tuple[Runner, Record]:
    torch.manual_seed(0)
    record = Record()
    points = [dict(x=torch.tensor([float(i)])) for i in range(4)]
    schedule = dict(T_max=8, by_epoch=False, end=8)
    runner = Runner(
        model=Toy(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=points,
            batch_size=2,
            collate_fn=dict(type="default_collate"),
            sampler=dict(type="DefaultSampler", shuffle=False),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01, momentum=0.9)),
        param_scheduler=[
            dict(type="CosineAnnealingLR", **schedule),
            dict(type="CosineAnnealingMomentum", eta_min=0.5, **schedule),
        ],
        custom_hooks=[dict(type="EMAHook"), record],
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1)),
        experiment_name=f"{work_dir.name}-{epochs}",
        resume=resume,
    )
    runner.train()
    return runner, record


def test_resume_goes_on_as_if_never_interrupted(tmp_path):
    whole, expected = train(tmp_path / "whole", 4, resume=False)
    _, first = train(tmp_path / "parts", 2, resume=False)
    rest, second = train(tmp_path / "parts", 4, resume=True)
    assert rest.iter == 8
    np.testing.assert_allclose(first.seen + second.seen, expected.seen)
    torch.testing.assert_close(rest.model.state_dict(), whole.model.state_dict())
    histories = [
        runner.message_hub.log_scalars["train/loss"].data[0] for runner in (whole, rest)
    ]
    np.testing.assert_allclose(*histories)


def test_checkpoint_types_come_back(tmp_path):
    saved = {
        "history": HistoryBuffer([1.5, 2.5], [1, 1]),
        "scalars": [np.float64(0.5), np.float32(2), np.int64(3), np.bool_(True)],
        "arrays": [np.arange(3), np.ones(2, np.float32), np.array([True])],
        "metainfo": ConfigDict(classes=("a", "b"), nested=dict(palette=[(1, 2, 3)])),
    }
    torch.save(saved, tmp_path / "file.pth")
    loaded = torch.load(tmp_path / "file.pth", weights_only=True)
    assert loaded["history"].mean() == 2.0
    assert loaded["scalars"] == saved["scalars"]
    for ours, theirs in zip(loaded["arrays"], saved["arrays"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert loaded["metainfo"] == saved["metainfo"]


@pytest.mark.parametrize("name", [b"numpy.core", b"numpy._core"])
def test_checkpoints_of_either_numpy_load(tmp_path, name):
    path = tmp_path / "file.pth"
    saved = [np.arange(3), np.float64(1.5)]
    torch.save(saved, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    for core in (b"numpy._core", b"numpy.core"):
        data = data.replace(b"c%b.multiarray\n" % core, b"c%b.multiarray\n" % name)
    path.write_bytes(data)
    array, scalar = torch.load(path, weights_only=True)
    assert array.tolist() == [0, 1, 2] and scalar == 1.5


class Attack:
    """Unpickling this calls a function of the attacker's choice."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], tuple(self.call[1:])


@pytest.mark.parametrize(
    "attack",
    [
        Attack(os.system, "exit 1"),
        Attack(eval, "1 + 1"),
        Attack(getattr, np.ndarray, "tofile"),
        Attack(getattr, HistoryBuffer, "__init__"),
    ],
)
def test_the_safety_stays_on(tmp_path, attack):
    torch.save(attack, tmp_path / "file.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "file.pth", weights_only=True)


# -------------------------------------------------------------------- AMP on CPU


@ON_CPU
def test_configs_train_in_float32_without_a_gpu():
    from kdeov_mm.engine import GPUAmpOptimWrapper

    model = nn.Linear(2, 1)
    wrapper = GPUAmpOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), 0.1))
    with wrapper.optim_context(model):
        assert model(torch.ones(1, 2)).dtype == torch.float32


@ON_CPU
def test_amp_trains_on_cpu_in_bfloat16():
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    wrapper = AmpOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), 0.1))
    with wrapper.optim_context(model):
        out = model(torch.ones(1, 2))
    assert out.dtype == torch.bfloat16
    wrapper.update_params(out.float().sum())
    torch.testing.assert_close(model.weight.detach(), before - 0.1)
    wrapper.load_state_dict(wrapper.state_dict())


def test_mmdet_still_calls_meshgrid_the_old_way() -> None:
    from mmdet.models.task_modules.prior_generators import MlvlPointGenerator

    assert "indexing" not in inspect.getsource(MlvlPointGenerator._meshgrid)


def test_the_first_answer_has_no_warning_of_it() -> None:
    code = """
import torch, kdeov_mm
from mmdet.models.task_modules.prior_generators import MlvlPointGenerator
MlvlPointGenerator([8]).grid_priors([(2, 2)], device="cpu")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
