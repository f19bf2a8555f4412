"""Processes of a training watch each other: one that stops ends the job."""

import atexit
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

BEAT = 2.0  # seconds between two beats
SILENCE = 20.0  # seconds; torchrun takes another 30 to end a process that is stopped


@HOOKS.register_module()
class HeartbeatHook(Hook):
    """A thread of each process tells the store that it lives, and looks at the others.

    A collective operation waits half an hour for a process that is stopped, as it must
    for one that validates alone. This thread beats while its process computes, and
    stops with it. In a single process it does nothing.
    """

    def before_train(self, runner: Runner) -> None:
        """Begin, once the data are read."""
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return
        shared = dist.distributed_c10d._get_default_store()
        while hasattr(shared, "underlying_store"):
            shared = shared.underlying_store
        if not isinstance(shared, dist.TCPStore):
            return
        # a connection of its own, that waits for nobody's collective operations
        own = dist.TCPStore(
            shared.host, shared.port, is_master=False, timeout=timedelta(seconds=60)
        )
        store = dist.PrefixStore("heartbeat", own)
        self._thread = threading.Thread(
            target=self._watch, args=[store], name="heartbeat", daemon=True
        )
        self._thread.start()
        # Python ends a thread that is inside the store by ending the whole process
        atexit.register(self.after_train)

    def after_train(self, runner: Runner | None = None) -> None:
        """End; the others go on without this process's beats."""
        self._done.set()
        if self._thread is not None:
            # the timer ends the job where the store does not answer
            self._thread.join()
            self._thread = None
            atexit.unregister(self.after_train)

    def _watch(self, store: dist.Store) -> None:
        rank, others = dist.get_rank(), {*range(dist.get_world_size())}
        others.remove(rank)
        # the beats of each, and when they last changed, by this process's clock
        seen: dict[int, tuple[int, float]] = {}
        before = time.monotonic()
        while not self._done.wait(BEAT):
            # the process that has the store may be the one that is stopped
            timer = threading.Timer(SILENCE, end_job, [[0]])
            timer.daemon = True
            timer.start()
            try:
                store.add(str(rank), 1)
                counts = {other: store.add(str(other), 0) for other in others}
            except RuntimeError:  # it is gone, which collective operations notice
                return
            finally:
                timer.cancel()
            # where all were stopped together, the others are given time to go on
            now = time.monotonic()
            if now - before > SILENCE / 2:
                seen.clear()
            before = now
            # those that have not begun, and those that have ended, are not waited for
            for other, count in counts.items():
                if other not in seen or seen[other][0] != count or count <= 0:
                    seen[other] = count, now
            silent = [r for r, (_, then) in seen.items() if now - then >= SILENCE]
            if silent:
                end_job(silent)
        try:
            store.set(str(rank), str(-(2**40)))
        except RuntimeError:  # the process that had the store has ended before
            return


@contextmanager
def lost_connections() -> Iterator[None]:
    """Say so where an operation with the other processes fails, as one has ended."""
    try:
        yield
    except RuntimeError as error:
        # NCCL's errors have a class, those of gloo the name of its files
        if not isinstance(error, dist.DistError) and "gloo/" not in str(error):
            raise
        raise SystemExit(
            "train.py: the connection to another process of this job was lost: it has "
            "ended, and its own messages say why, or its machine is gone. Go on from "
            f"the last checkpoint with --resume. ({str(error)[:300]})"
        ) from error


def end_job(silent: Sequence[int]) -> None:
    """Say which processes are silent, and end this one, whatever it waits for."""
    print(
        f"train.py: nothing was heard of process {', '.join(map(str, silent))} of this "
        f"job for {SILENCE:.0f} s: it is stopped, or its machine is gone. The training "
        "ends. See to that process (Ctrl-Z, memory, disk), then go on from the last "
        "checkpoint with --resume.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
