"""Boxes by a computation of fixed shapes, which a GPU repeats without the host."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.structures import SampleList
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .fixed_boxes import fixed_settings, read_fixed
from .postprocess import is_simple
from .student import BoxQuery

MOST = 1000  # boxes of an image: suppression compares four times as many in pairs
Function = Callable[..., Tensor]


def capture(function: Function, inputs: Sequence[Tensor], pool: Any) -> Function:
    """A function of tensors as a CUDA graph: the launches of all its kernels at once.

    Not tried on a GPU yet.

    Args:
        function: its result's shape depends on the shapes of its inputs alone, and no
            value is looked at on the way.
        inputs: an example.
        pool: of ``torch.cuda.graph_pool_handle``, for what it needs on the way.

    Returns:
        The same for inputs of these shapes; the next call overwrites what it returned.
    """
    kept = [each.clone() for each in inputs]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(kept[0].device):
        # libraries choose and load their kernels in the first calls, on a stream apart
        apart = torch.cuda.Stream()
        apart.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(apart):
            for _ in range(3):
                function(*kept)
        torch.cuda.current_stream().wait_stream(apart)
        # other threads may allocate meanwhile
        with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
            result = function(*kept)

    def replay(*given: Tensor) -> Tensor:
        for old, new in zip(kept, given):
            old.copy_(new, non_blocking=True)
        graph.replay()
        return result

    return replay


class StaticForm:
    """A detector's boxes on a GPU: one computation for each shape of its inputs.

    From the network to the suppressed boxes no value is looked at; what was found comes
    to the host in one copy. The first time, a shape is computed as any other; from the
    second on it is a CUDA graph. An image is asked again, in the form of a CPU, where
    the fixed number of scores does not suffice (:func:`fixed_boxes`). Where no graph
    can be made a warning says so, and each call computes. Threads take turns. A
    detector without it (``detector.static = None``) computes as on a CPU.

    Args:
        capture: see :func:`capture`.
        device: type of the devices on which it is used.
        shapes: whose graphs are kept; that which was not asked for longest goes.
    """

    def __init__(
        self,
        capture: Callable[..., Function] = capture,
        device: str = "cuda",
        shapes: int = 16,
    ) -> None:
        self.capture, self.device, self.shapes = capture, device, shapes
        # None: a shape that has come once
        self.kept: OrderedDict[Any, Function | None] = OrderedDict()
        self.weights: list[Tensor] = []  # that the graphs read, and where they lie
        self.places: list[int] = []
        self.pool: Any = None
        self.lock = threading.Lock()

    def __reduce__(self) -> Any:
        # of a copied model other weights are read
        return type(self), (self.capture, self.device, self.shapes)

    def suits(self, model: nn.Module, images: Tensor, cfg: Any) -> bool:
        """Whether it gives what a ``test_cfg`` asks for, here."""
        plain = images.device.type == self.device and not torch.is_grad_enabled()
        plain = plain and not (model.training or torch.is_autocast_enabled(self.device))
        return plain and is_simple(cfg) and cfg.max_per_img <= MOST

    def drop(self) -> None:
        """Forget all graphs, and give their memory back: the model has other parts."""
        with self.lock:
            self.kept.clear()
            self.weights, self.places, self.pool = [], [], None

    def find(
        self,
        model: nn.Module,
        function: Function,
        inputs: Sequence[Tensor],
        samples: SampleList,
        query: BoxQuery,
        ask: Callable[[Tensor, SampleList], list[InstanceData]],
    ) -> list[InstanceData]:
        """Boxes of images of one padded shape, on the host.

        Args:
            model: whose weights ``function`` reads.
            function: ``inputs`` -> what :func:`fixed_boxes` gives.
            inputs: images (B, 3, H, W), and what else is not the model's.
            samples: B samples.
            query: what the function was made for.
            ask: the form of a CPU: images and samples -> boxes.
        """
        settings = (len(query.words), *fixed_settings(query.cfg))
        found = self._computed(model, function, inputs, settings)
        results = [
            read_fixed(rows, sample.metainfo, query.cfg, query.rescale)
            for rows, sample in zip(found, samples)
        ]
        again = [i for i, result in enumerate(results) if result is None]
        if again:
            answers = ask(inputs[0][again], [samples[i] for i in again])
            for i, answer in zip(again, answers):
                results[i] = answer.cpu()
        return results

    def _computed(
        self,
        model: nn.Module,
        function: Function,
        inputs: Sequence[Tensor],
        settings: tuple[Any, ...],
    ) -> Tensor:
        """What the function gives, on the host."""
        key = (settings, *((i.shape, i.dtype, i.device) for i in inputs))
        with self.lock:
            # weights that were moved, converted or swapped are elsewhere
            if self.places != [each.data_ptr() for each in self.weights]:
                self.kept.clear()
            if not self.kept:
                self.weights = [*model.parameters(), *model.buffers()]
                self.places = [each.data_ptr() for each in self.weights]
            if key not in self.kept:
                compute, self.kept[key] = function, None
            else:
                compute = self.kept[key] or self._captured(function, inputs)
                self.kept[key] = compute
            self.kept.move_to_end(key)
            if len(self.kept) > self.shapes:
                self.kept.popitem(last=False)
            # the next call overwrites it
            return compute(*inputs).cpu()

    def _captured(self, function: Function, inputs: Sequence[Tensor]) -> Function:
        try:
            if self.pool is None and self.device == "cuda":
                self.pool = torch.cuda.graph_pool_handle()
            return self.capture(function, inputs, self.pool)
        except RuntimeError as error:
            print_log(
                f"This detector gave no CUDA graph, so the host starts each of its "
                f"kernels, which is slower; `static = None` avoids the try: {error}",
                "current",
                level=logging.WARNING,
            )
            return function
