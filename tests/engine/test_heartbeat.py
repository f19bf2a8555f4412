"""A process of a job that is stopped ends the others, with a sentence."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch.distributed as dist

from kdeov_mm.engine import heartbeat

from ..apps.test_web import free_port
from ..conftest import run_env

PROCESS = """
import sys, threading, time, torch, kdeov_mm
import torch.distributed as dist
from kdeov_mm.engine import heartbeat
heartbeat.BEAT, heartbeat.SILENCE = 0.2, 3.0
dist.init_process_group("gloo")
hook = heartbeat.HeartbeatHook()
hook.before_train(None)
print("begun", flush=True)
wait = float(sys.argv[1])
if dist.get_rank() == 0:
    time.sleep(wait)  # as one that validates alone
dist.barrier()
if sys.argv[2:] == ["fail"]:
    raise SystemExit(3)
hook.after_train(None)
# one that is inside the store when Python ends is the end of it by SIGABRT
assert "heartbeat" not in [thread.name for thread in threading.enumerate()]
print("ended", flush=True)
"""


def start(wait: float, *more: str) -> list[subprocess.Popen]:
    """Two processes, the first of which has the store and keeps the other waiting."""
    env = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE="2")
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(wait), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=run_env(**env, RANK=str(rank)),
        )
        for rank in range(2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_process_ends_the_job(stopped: int) -> None:
    processes = start(3600)
    try:
        for process in processes:
            assert process.stdout and process.stdout.readline() == "begun\n"
        time.sleep(1)
        os.kill(processes[stopped].pid, signal.SIGSTOP)
        other = processes[1 - stopped]
        assert other.wait(timeout=30) == 1
        assert other.stderr and f"of process {stopped} of this job" in (
            other.stderr.read()
        )
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_a_process_that_others_wait_for_does_not() -> None:
    for process in start(8):
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, "begun\nended\n"), err[-2000:]


@pytest.mark.slow
def test_an_error_ends_the_thread_too() -> None:
    for process in start(0, "fail"):
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (3, "begun\n"), err[-2000:]


@pytest.mark.parametrize(
    "error", [dist.DistBackendError("NCCL"), RuntimeError("a/gloo/pair.cc: reset")]
)
def test_a_lost_connection_is_said(error: RuntimeError) -> None:
    said = "connection to another process"
    with pytest.raises(SystemExit, match=said), heartbeat.lost_connections():
        raise error


def test_another_error_is_not_taken_for_a_lost_connection() -> None:
    with pytest.raises(RuntimeError, match="no shape"), heartbeat.lost_connections():
        raise RuntimeError("no shape")
