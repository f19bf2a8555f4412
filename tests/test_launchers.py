"""The shell scripts that start a training or a test on several GPUs and machines."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from .apps.test_web import free_port
from .conftest import ROOT, run_env
from .test_tools import LAUNCHER

# a Python that runs another file in the place of tools/train.py
PYTHON = """#!{python}
import os, sys
args = [{script!r} if a.endswith("/train.py") else a for a in sys.argv[1:]]
os.execv(sys.executable, [sys.executable, *args])
"""


def kill(agent: subprocess.Popen) -> None:
    """Kill an agent and its processes, each of which is in a session of its own."""
    with suppress(FileNotFoundError, ProcessLookupError):
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text()
        for pid in (agent.pid, *map(int, children.split())):
            os.kill(pid, signal.SIGKILL)


def write_command(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize("script", ["dist_train", "dist_test"])
def test_the_launchers_pass_their_arguments_on(script: str) -> None:
    """`echo` in the place of Python shows the command."""
    tool, given = script.removeprefix("dist_"), ["a b.py"]
    given += ["c.pth"] if tool == "test" else []
    done = subprocess.run(
        ["bash", str(ROOT / f"tools/{script}.sh"), *given, "8", "--amp", "x=1"],
        capture_output=True,
        text=True,
        env=run_env(PYTHON="echo", PORT="123"),
    )
    words = done.stdout.split()
    assert "--nproc_per_node=8" in words and "--master_port=123" in words
    assert f"{tool}.py {' '.join(given)} --launcher pytorch --amp x=1" in done.stdout


def test_machines_that_do_not_know_where_to_meet_are_told() -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "tools/dist_train.sh"), "c.py", "8"],
        capture_output=True,
        text=True,
        env=run_env(PYTHON="echo", NNODES="2", MASTER_ADDR=""),
    )
    assert done.returncode and "MASTER_ADDR: NNODES is 2: name the" in done.stderr
    assert not done.stdout


def test_the_slurm_script_starts_an_agent_on_each_machine(tmp_path: Path) -> None:
    write_command(tmp_path / "srun", '#!/bin/sh\necho "$MASTER_ADDR $NNODES $@"\n')
    write_command(tmp_path / "scontrol", "#!/bin/sh\necho a; echo b\n")
    job = dict(SLURM_JOB_NODELIST="[a-b]", SLURM_NNODES="2", SLURM_JOB_ID="12345")
    done = subprocess.run(
        ["bash", str(ROOT / "tools/slurm_train.sh"), "c.py", "--amp"],
        capture_output=True,
        text=True,
        env=run_env(PATH=f"{tmp_path}:{os.environ['PATH']}", **job),
        cwd=ROOT,
    )
    command = "bash tools/dist_train.sh c.py 8 --resume --amp"
    assert done.stdout == f"a 2 {command}\n", done.stderr


@pytest.mark.slow
def test_two_machines_go_on_when_one_of_them_comes_back(
    load_config: Callable[..., Config], tmp_path: Path
) -> None:
    """Two agents of two processes stand for them; all of one is killed."""
    cfg = load_config("kdeov_n_shapes.py")
    cfg.train_dataloader.update(batch_size=1, num_workers=0, persistent_workers=False)
    cfg.train_cfg.update(max_iters=12, val_interval=12)
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=-1)
    cfg.model_wrapper_cfg = dict(  # mmengine's default is a GPU
        type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False
    )
    cfg.dump(tmp_path / "tiny.py")
    script, python = tmp_path / "run.py", tmp_path / "python"
    script.write_text(LAUNCHER.format(tools=str(ROOT / "tools"), tool="train"))
    write_command(python, PYTHON.format(python=sys.executable, script=str(script)))
    place = tmp_path / "work"
    settings = dict(
        NNODES="2", MASTER_ADDR="127.0.0.1", PORT=str(free_port()), PYTHON=str(python)
    )
    settings |= dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")

    def machine(name: str) -> subprocess.Popen:
        given = [str(tmp_path / "tiny.py"), "2", "--resume", "--work-dir", str(place)]
        return subprocess.Popen(
            ["bash", str(ROOT / "tools/dist_train.sh"), *given],
            env=run_env(**settings),
            stdout=(tmp_path / name).open("w"),
            stderr=subprocess.STDOUT,
        )

    machines = [machine("first")]
    try:
        # the machine that all meet at is not the one that is lost
        while socket.socket().connect_ex(("127.0.0.1", int(settings["PORT"]))):
            assert machines[0].poll() is None
            time.sleep(0.1)
        machines.append(machine("second"))
        while not (place / "iter_4.pth").exists():
            assert [m.poll() for m in machines] == [None, None]
            time.sleep(0.1)
        kill(machines[1])
        assert machines[1].wait() == -signal.SIGKILL
        assert not (place / "iter_12.pth").exists()
        machines[1] = machine("again")
        ends = [m.wait(timeout=300) for m in machines]
    finally:
        for each in machines:
            kill(each)
    said = "".join((tmp_path / name).read_text() for name in ("first", "again"))
    assert ends == [0, 0], said[-5000:]
    assert "resumed epoch" in said and "connection to another process" in said
    weights = torch.load(place / "iter_12.pth", weights_only=True)["state_dict"]
    assert all(w.isfinite().all() for w in weights.values())
