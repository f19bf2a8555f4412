"""What the web page answers, apart from how it looks: boxes, a folder in order."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmdet.visualization import get_palette
from PIL import Image

from ..datasets import shapes
from ..inference.api import KDEOV
from ..inference.drawing import draw, draw_labels
from ..inference.images import image_files
from ..reader import read_image
from ..vocabulary import clean_name
from .search import Hit, ImageIndex

MAX_PIXELS = 40_000_000  # of an image: 120 MB, once decoded
MAX_WORDS = 2000
MAX_LETTERS = 300  # of a word: four times what CLIP reads of it
MAX_DETECTED = 100  # images of a folder, where the detector must look at each
MAX_DRAWN = 1600  # pixels of the longer side that a browser is sent
MAX_HITS = 12  # images of an answer
MIN_SCORE = 0.1  # of a box that makes an image an answer
# Okabe and Ito's colours, which the colour-blind can tell apart
PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
EXAMPLES = (22, 6, 56, 44, 27, 70)  # validation scenes, each with novel things


class Answer(NamedTuple):
    """What the page shows.

    Attributes:
        drawing: (H, W, 3) uint8 RGB with the boxes; None where there is no image.
        rows: of each box its name, score, and corners in pixels of the image, best
            first.
        sentence: what was found, or what is wrong with image or words.
    """

    drawing: np.ndarray | None
    rows: list[list[str | float]]
    sentence: str


def find(
    model: KDEOV,
    path: str | Path | None,
    words: str,
    threshold: float = 0.3,
    agnostic: bool = False,
) -> Answer:
    """Find words in an image.

    Args:
        model: with a detection head.
        path: of an image; None where none was chosen.
        words: separated by commas or lines.
        threshold: least score of a box, in [0, 1].
        agnostic: an object gets its best word alone.
    """
    try:
        image, names = read_upload(path), split_words(words)
        start = time.perf_counter()
        query = model.query(names, threshold, 0.5, agnostic)
        (sample,) = model.predict([image], query)
        took = time.perf_counter() - start
    except (OSError, ValueError) as error:  # of the text tower, too
        return Answer(None, [], str(error))
    # the drawing, at most as large as a browser needs
    palette = [PALETTE[i % len(PALETTE)] for i in range(len(names))]
    drawing = draw(image, sample, names, palette, score_threshold=0, max_side=MAX_DRAWN)
    # numbers as the page's table shows them
    found = sample.pred_instances
    numbers = zip(found.scores.tolist(), found.bboxes.tolist())
    rows: list[list[str | float]] = [
        [name, round(score, 3), *(round(n, 1) for n in box)]
        for name, (score, box) in zip(found.label_names, numbers)
    ]
    if not rows:
        hint = "try other words or a lower threshold."
        return Answer(drawing, rows, f"Nothing found above {threshold:.2f}: {hint}")
    counts = (
        _count(len(rows), "box", "boxes"),
        _count(len({*found.label_names}), "word"),
    )
    return Answer(drawing, rows, f"{counts[0]} of {counts[1]} in {duration(took)}.")


def segment(
    model: KDEOV, path: str | Path | None, words: str, threshold: float = 0.0
) -> tuple[np.ndarray | None, str]:
    """Colour an image by words.

    Args:
        model: of a :class:`SegStudent`.
        path: of an image; None where none was chosen.
        words: separated by commas or lines.
        threshold: least share of a pixel's word, in [0, 1].

    Returns:
        The coloured image (H, W, 3) uint8 RGB, None where there is none; and what was
        found, or what is wrong.
    """
    try:
        image, names = read_upload(path), split_words(words)
        start = time.perf_counter()
        (found,) = model.segment(image, names, threshold)
        took = time.perf_counter() - start
    except (OSError, ValueError) as error:
        return None, str(error)
    # colours are all that tells words apart: beyond seven, others
    palette = (
        PALETTE if len(names) <= len(PALETTE) else get_palette("random", len(names))
    )
    labels = found["labels"].cpu().numpy()
    drawing = draw_labels(image, labels, names, palette, max_side=MAX_DRAWN)
    if not found["names"]:
        return drawing, "None of the words is there: try others."
    shares = [(labels == names.index(n)).mean() for n in found["names"]]
    parts = [f"{name} {share:.1%}" for name, share in zip(found["names"], shares)]
    return drawing, f"{', '.join(parts)} of the pixels, in {duration(took)}."


def read_upload(path: str | Path | None) -> np.ndarray:
    """An uploaded image as (H, W, 3) uint8 RGB.

    Raises:
        ValueError: none was chosen, it is none, ends early, or has too many pixels.
    """
    if path is None:
        raise ValueError("There is no image: choose, drop or paste one.")
    name = Path(path).name
    # the size is known before any pixel is decoded
    try:
        with Image.open(path) as file:
            width, height = file.size
        if width * height <= MAX_PIXELS:
            return read_image(path)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"The file {name} is no image, or a damaged one: expected PNG, JPEG, "
            "WebP or another format of images. Choose another file."
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"The image {name} is too large: {error}") from error
    raise ValueError(
        f"The image {name} has {width} x {height} pixels, more than "
        f"{MAX_PIXELS / 1e6:.0f} million: make it smaller."
    )


def split_words(text: str | None) -> list[str]:
    """Words that are separated by commas or lines, each once.

    >>> split_words("red ring,\\nblue star,, Red  ring")
    ['red ring', 'blue star']

    Raises:
        ValueError: there are none, more than 2000, or one of more than 300 letters.
    """
    # before anything is made of them
    text = text or ""
    longest = max(map(len, re.split(r"[,\n]", text)))
    if longest > MAX_LETTERS:
        raise ValueError(
            f"A word has {longest} letters, at most {MAX_LETTERS} are read: shorten it."
        )
    words: dict[str, str] = {}
    for word in map(clean_name, re.split(r"[,\n]", text)):
        if word:
            words.setdefault(word.casefold(), word)
    if not words:
        raise ValueError("There are no words: write some, separated by commas.")
    if len(words) > MAX_WORDS:
        raise ValueError(
            f"These are {len(words)} words, at most {MAX_WORDS} can be asked at once: "
            "leave some out."
        )
    return [*words.values()]


class FolderSearch:
    """Images of a folder, ordered by words.

    A model with a global head compares embeddings, which are kept on disk; another one
    looks for the words in each of the first 100 images.

    Args:
        model: with a global head or a detection head.
        folder: of images, with its subfolders.
    """

    def __init__(self, model: KDEOV, folder: str | Path) -> None:
        self.model, self.folder = model, Path(folder)
        self.embeds = model.model.global_head is not None
        self.index: ImageIndex | None = None

    @property
    def order(self) -> str:
        """What images are ordered by, a line for the page."""
        if self.embeds:
            return f"Images of {self.folder}, by their embeddings' cosine to the words."
        return (
            f"The first {MAX_DETECTED} images of {self.folder}, by their best box of "
            "the words: this model has no global head."
        )

    def __call__(
        self, words: Sequence[str], progress: Callable[[Iterable], Iterable] = iter
    ) -> tuple[list[Hit], int]:
        """The best images of any of the words, and how many were looked at.

        Raises:
            ImportError: lancedb is not installed, and the model has a global head.
            OSError: the folder cannot be listed, or another process indexes it.
            ValueError: it has no image that can be read.
        """
        # by embeddings, which need not be computed again; or by boxes
        if self.embeds:
            self.index = self.index or ImageIndex(self.model, self.folder)
            number = self.index.update(progress)["images"]
            hits = [hit for word in words for hit in self.index.search(word, MAX_HITS)]
        else:
            every = [*self._best_boxes(words, progress)]
            number, hits = len(every), [hit for hit in every if hit.score >= MIN_SCORE]
        # an image that several words find counts by the best of them
        best: dict[Path | str, Hit] = {}
        for hit in sorted(hits, key=lambda hit: -hit.score):
            best.setdefault(hit.path, hit)
        return [*best.values()][:MAX_HITS], number

    def _best_boxes(
        self, words: Sequence[str], progress: Callable[[Iterable], Iterable]
    ) -> Iterator[Hit]:
        """Images of the folder, each with the score of its best box."""
        paths = sorted(image_files(self.folder))
        if not paths:
            raise ValueError(f"{self.folder} has no images: name another with --images")
        for path in progress(paths[:MAX_DETECTED]):
            try:
                (found,) = self.model.open_vocabulary_detect(path, words, MIN_SCORE)
            except OSError:  # no image, as the index leaves them out
                continue
            yield Hit(path, max(found["scores"].tolist(), default=0.0))


def write_examples(folder: Path) -> list[tuple[Path, str]]:
    """Write six unseen scenes of the built-in world; their paths and words."""
    examples = []
    for index in EXAMPLES:
        scene = shapes.draw_scene(shapes.scene_rng(0, 1, index))
        path = folder / f"scene_{index}.png"
        Image.fromarray(scene.image).save(path)
        names = dict.fromkeys(shapes.CLASSES[label] for label in scene.labels)
        examples.append((path, ", ".join(names)))
    return examples


def duration(seconds: float) -> str:
    """``'1.5 s'``, or below a second ``'20 ms'``."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
