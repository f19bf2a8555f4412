"""mmdet's inferencer for any words: images, folders, videos, large images."""

import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.apis import DetInferencer
from mmdet.structures import DetDataSample, SampleList
from mmdet.visualization import get_palette
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from tqdm import tqdm

from ..border import path_of, real_number, whole_number
from ..files import write_whole
from ..options import config_of
from ..vocabulary import Asked, Vocabulary, as_vocabulary
from .api import KDEOV
from .drawing import Drawings, draw
from .images import in_batches
from .results import Result
from .slices import predict_in_slices
from .sources import ImageSource, Input, list_sources

MIN_SLICE = 32  # pixels: a location of the coarsest map


class KDEOVInferencer(DetInferencer):
    """Find words in images, videos and folders of them.

    An mmdet inferencer: constructor, call, answer and the folders of its results are
    ``DetInferencer``'s; inputs are those of :func:`list_sources`, arrays BGR as in mm.
    What comes out is RGB.

    Words are a list, in which a tuple of words are synonyms; a string with commas; a
    file of :meth:`Vocabulary.load`; or a :class:`Vocabulary`, with vectors (the text
    tower is not needed then) or without. They are embedded once.

    >>> words = ["red ring", ("blue star", "azure star")]
    >>> inferencer = KDEOVInferencer(None, "student.pth")  # doctest: +SKIP
    >>> for result in inferencer.stream("photos/", words):  # doctest: +SKIP
    ...     print(result.name, result.sample.pred_instances.label_names)

    Args:
        model: a config, or its file; None: the one in the checkpoint, which is read as
            data and not run.
        weights: a checkpoint; None: the model is not trained, which is said.
        device: default: what mmengine finds.
        scope: of mm's registries.
        palette: of mmdet's ``get_palette``; ``'none'``: random colours, each
            time the same.
        show_progress: a bar on stderr.
        words: what is asked where a call does not say.

    Raises:
        FileNotFoundError, ValueError: of a config, checkpoint or vocabulary; or the
            model finds no boxes.
    """

    def __init__(
        self,
        model: str | Path | Config | None = None,
        weights: str | Path | None = None,
        device: str | None = None,
        scope: str = "mmdet",
        palette: str = "none",
        show_progress: bool = True,
        *,
        words: Asked | None = None,
    ) -> None:
        # mm would take a path that does not exist for a name of its model zoo
        if model is not None and not isinstance(model, Config):
            model = config_of(model)
        if model is None and weights is None:
            raise ValueError("expected a config, a checkpoint, or both; got neither")
        super().__init__(model, weights, device, scope, palette, show_progress)
        self.cfg = self.model.cfg
        self.words = None if words is None else as_vocabulary(words)
        # a model without boxes and vectors of another CLIP are refused now
        student = KDEOV(self.model)
        student.check_detects()
        if self.words:
            student.query(self.words)

    def _init_model(
        self, cfg: Any, weights: str | Path | None, device: str = "cpu"
    ) -> Any:
        if not cfg and weights is not None:
            return KDEOV.from_checkpoint(weights, device).model
        if isinstance(cfg, ConfigDict):
            cfg = Config(cfg)
        return KDEOV.from_config(cfg, weights, device).model

    def _no_part(self, cfg: Any) -> None:
        """:class:`KDEOV` prepares images, and :func:`.drawing.draw` draws."""

    _init_pipeline = _init_collate = _init_visualizer = _no_part

    def stream(
        self,
        inputs: Input | Sequence[Input],
        words: Asked | None = None,
        *,
        batch_size: int = 1,
        score_threshold: float | None = None,
        slices: int | None = None,
        overlap: float = 0.2,
        every: int = 1,
        agnostic: bool = False,
        threads: int = 0,
    ) -> Iterator[Result]:
        """Find words, a result at a time: for folders and videos of any length.

        A file that cannot be read is logged, its result has an ``error``, and the rest
        goes on.

        Args:
            inputs: see :func:`list_sources`.
            words: see the class; None: those of the constructor.
            batch_size: images, frames or slices that pass the model at once; the
                boxes are those of each alone.
            score_threshold: boxes below are left out; None: the model's ``test_cfg``'s.
            slices: side of square tiles in pixels, which are searched besides the whole
                image, see :func:`predict_in_slices`; None for none.
            overlap: of neighbouring tiles, a fraction of their side, at least.
            every: of a video, one frame in so many.
            agnostic: suppress across words: an object gets its best word alone.
            threads: that read ahead (on a GPU one more finds ahead); 0: none.

        Returns:
            A generator of results, in the order of the inputs.

        Raises:
            FileNotFoundError, ValueError: of inputs, words or arguments.
        """
        # all is checked before the first result is asked for
        sources = list_sources(inputs)
        every = whole_number("every", every)
        if slices is not None:
            slices = whole_number("slices", slices, MIN_SLICE)
        overlap = real_number("overlap", overlap, 0, 1, "[{}, {})")
        student = KDEOV(self.model, batch_size)
        asked = self._vocabulary(words)  # embedded once for all images
        query = student.query(asked, score_threshold, agnostic=agnostic)

        def predict(images: Sequence[np.ndarray]) -> SampleList:
            if slices is None:
                return student.predict(images, query)
            return [
                predict_in_slices(student, i, query, slices, overlap) for i in images
            ]

        read = _read(sources, every)
        if threads:
            read = _read_ahead(sources, every, threads, 2 * batch_size)
        results = _with_samples(read, predict, batch_size)
        on_gpu = next(self.model.parameters()).is_cuda
        return _found_ahead(results, batch_size) if threads and on_gpu else results

    def _vocabulary(self, words: Asked | None) -> Vocabulary:
        words = self.words if words is None else words
        if words is None:
            raise ValueError(
                'say what to look for: words=["solid red ring", ...], here or in the '
                "constructor."
            )
        return as_vocabulary(words)

    def names(self, words: Asked | None = None) -> tuple[str, ...]:
        """The K names that labels index: of each class its first word."""
        return tuple(own[0] for own in self._vocabulary(words).words)

    def drawing(
        self, result: Result, names: Sequence[str], pred_score_thr: float = 0.3
    ) -> np.ndarray:
        """A result's image with boxes and names, (H', W', 3) uint8 RGB.

        An image is at least 800 px large; a video's frame keeps its size.

        Raises:
            ValueError: the image could not be read.
        """
        if result.image is None or result.sample is None:
            raise ValueError(f"{result.name} cannot be drawn: {result.error}")
        # random colours are the same each time: mmdet seeds them
        palette = "random" if self.palette == "none" else self.palette
        return draw(
            result.image,
            result.sample,
            names,
            get_palette(palette, len(names)),
            score_threshold=pred_score_thr,
            min_side=800 if result.frame is None else 1,
        )

    def __call__(
        self,
        inputs: Input | Sequence[Input],
        words: Asked | None = None,
        batch_size: int = 1,
        *,
        return_vis: bool = False,
        no_save_vis: bool = False,
        pred_score_thr: float = 0.3,
        return_datasamples: bool = False,
        no_save_pred: bool = True,
        out_dir: str | Path = "",
        **options: Any,
    ) -> dict[str, list[Any]]:
        """Find words in all inputs; results are kept in memory, see :meth:`stream`.

        Args:
            inputs, words, batch_size, options: as in :meth:`stream`.
            return_vis: return drawings.
            no_save_vis, no_save_pred: do not write drawings, predictions.
            pred_score_thr: boxes below are not drawn; predictions have them.
            return_datasamples: predictions are mm's samples, not dictionaries.
            out_dir: drawings are written to its ``vis/``, predictions, a JSON for each
                image and frame, to its ``preds/``; empty: nothing is written.

        Returns:
            ``predictions``, one for each image and frame: ``labels``, ``scores``,
            ``bboxes`` (xyxy) and ``label_names``, or a sample; of an image that cannot
            be read ``error`` (a sample has it in its metainfo). ``visualization``: with
            ``return_vis`` as many drawings (H, W, 3) uint8 RGB, None of such an image.

        Raises:
            FileNotFoundError, ValueError: as :meth:`stream`; or there is a camera.
        """
        pred_score_thr = real_number("pred_score_thr", pred_score_thr, 0, 1)
        folder = path_of("out_dir", out_dir) if out_dir else None
        sources, names = _ending(list_sources(inputs)), self.names(words)
        results = self.stream(sources, words, batch_size=batch_size, **options)
        # DetInferencer's folders
        vis = folder / "vis" if folder and not no_save_vis else None
        preds = folder / "preds" if folder and not no_save_pred else None
        answer: dict[str, list[Any]] = dict(predictions=[], visualization=[])
        written: set[Path] = set()
        with Drawings(vis or Path(), options.get("every", 1)) as drawings:
            for result in tqdm(results, disable=not self.show_progress):
                # predictions: to the disk as JSON, to the caller as asked
                prediction = self._prediction(result)
                if preds:
                    _write_json(preds, result.name, prediction, written)
                prediction = _sample(result) if return_datasamples else prediction
                answer["predictions"].append(prediction)
                # drawings: of an image that could not be read there is None
                drawing = None
                if result.sample is not None and (vis or return_vis):
                    drawing = self.drawing(result, names, pred_score_thr)
                if drawing is not None and vis:
                    drawings.add(result, drawing)
                if return_vis:
                    answer["visualization"].append(drawing)
        return answer

    def _prediction(self, result: Result) -> dict[str, Any]:
        """A result as DetInferencer's dictionary, with names."""
        if result.sample is None:
            return dict(error=result.error)
        names = result.sample.pred_instances.label_names
        return dict(self.pred2dict(result.sample), label_names=names)


def _ending(sources: Iterable[ImageSource]) -> list[ImageSource]:
    """Sources that have an end.

    Raises:
        ValueError: there is a camera among them.
    """
    found = [*sources]
    if any(source.camera is not None for source in found):
        raise ValueError("a camera has no end: loop over stream() instead.")
    return found


def _sample(result: Result) -> DetDataSample:
    """mm's sample; of an image that could not be read it has an ``error``."""
    about = dict(img_path=_img_path(result), error=result.error)
    return result.sample or DetDataSample(metainfo=about)


def _img_path(result: Result) -> str:
    """The file or the address; of an image in memory its name."""
    return str(result.path or result.source.file or result.name)


def _read(sources: Iterable[ImageSource], every: int) -> Iterator[Result]:
    """Images and frames, without boxes yet."""
    for source in sources:
        try:
            for frame, image in source.images(every):
                yield Result(source, frame, image)
        except OSError as error:
            print_log(str(error), "current", level=logging.ERROR)
            yield Result(source, error=str(error))


def _read_ahead(
    sources: Iterable[ImageSource], every: int, threads: int, ahead: int
) -> Iterator[Result]:
    """The same, with so many images read in threads before they are asked for."""
    waiting: deque[Callable[[], Iterable[Result]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for source in sources:
            own = _read([source], every)
            # a video's frames would not have room
            late = partial(iter, own) if source.is_video else None
            waiting.append(late or pool.submit(list, own).result)
            if len(waiting) > ahead:
                yield from waiting.popleft()()
        for part in waiting:
            yield from part()


def _with_samples(
    results: Iterator[Result],
    predict: Callable[[Sequence[np.ndarray]], SampleList],
    batch_size: int,
) -> Iterator[Result]:
    """The same results with samples, of images that pass the model together."""
    for batch in in_batches(results, batch_size):
        samples = iter(predict([r.image for r in batch if r.image is not None]))
        # unreadable ones keep their place
        for result in batch:
            if result.image is not None:
                result.sample = next(samples)
                result.sample.set_metainfo(dict(img_path=_img_path(result)))
            yield result


def _found_ahead(results: Iterator[Result], ahead: int) -> Iterator[Result]:
    """The same results, so many of them found in a thread before they are asked for."""
    pool = ThreadPoolExecutor(1)
    waiting = deque(pool.submit(next, results, None) for _ in range(ahead))
    try:
        while (result := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, results, None))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _write_json(folder: Path, name: str, content: Any, written: set[Path]) -> None:
    """A result's JSON; of a.jpg and a.png the second keeps its whole name."""
    path = folder / Path(name).with_suffix(".json")
    if path in written:
        path = folder / f"{name}.json"
    written.add(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content).encode())
