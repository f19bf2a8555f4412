"""The local web page: a picture and words in, boxes out; a folder searched by words."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..datasets import shapes
from ..inference.api import KDEOV
from ..inference.pictures import draw, read_image
from ..vocabulary import clean_name
from .search import Hit, ImageIndex

try:
    import gradio as gr
    from gradio.utils import get_upload_folder
except ImportError as error:
    raise ImportError(
        'the web page needs gradio: pip install "kdeov_mm[web]"'
    ) from error

MAX_BYTES = 10 * 2**20  # of an uploaded file
MAX_PIXELS = 40_000_000  # of a picture: 120 MB, once decoded
MAX_WORDS = 2000
MAX_DETECTED = 100  # pictures of a folder, where the detector must look at each
MAX_DRAWN = 1600  # pixels of the longer side that a browser is sent
TOP = 12  # pictures of an answer
LEAST = 0.1  # score of a box that makes a picture an answer
# Okabe and Ito's colours, which the colour-blind can tell apart
PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
EXAMPLES = (22, 6, 56, 44, 27, 70)  # validation scenes, each with novel things
CSS = "#picture img {width: 100%; height: 100%; object-fit: contain}"  # small ones grow
Answer = tuple[np.ndarray | None, list[list[str | float]], str]


def build_page(
    model: KDEOV,
    examples: Sequence[tuple[Path, str]] = (),
    folder: str | Path | None = None,
) -> gr.Blocks:
    """The page, not yet served; see :func:`serve`.

    Args:
        model: what answers. Without a detection head there is no tab to find words.
        examples: pictures and their words, to try; see :func:`write_examples`.
        folder: of pictures to search; None for no tab to search.
    """
    with gr.Blocks(
        title="kdeov_mm: words in, boxes out",
        analytics_enabled=False,
        delete_cache=(3600, 3600),  # nobody's pictures stay
    ) as page:
        gr.Markdown("# kdeov_mm\nWords in, boxes out. All of it runs on this machine.")
        if getattr(model.model, "with_bbox", False):
            with gr.Tab("Find"):
                _find_tab(model, examples)
        if folder is not None:
            with gr.Tab("Search"):
                _search_tab(FolderSearch(model, folder))
    return page


def serve(page: gr.Blocks, host: str = "127.0.0.1", port: int = 7860) -> str:
    """Serve the page from a thread of its own, and return its address.

    Raises:
        OSError: the port is taken, or the host is none of this machine.
    """
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        prevent_thread_lock=True,
        quiet=True,
        max_file_size=MAX_BYTES,
        run_history=False,
        footer_links=[],
        css=CSS,
        theme=gr.themes.Default(
            font=["system-ui", "sans-serif"], font_mono=["monospace"]
        ),
    )
    return address


def _find_tab(model: KDEOV, examples: Sequence[tuple[Path, str]]) -> None:
    def answer(
        upload: dict[str, Any] | None, words: str, typed: float | None
    ) -> Answer:
        path = Path(upload["path"]) if upload else None
        if path and not _is_given(path, [file for file, _ in examples]):
            raise gr.Error("This is no picture of this page.")
        return find(model, path, words, min(max(typed or 0.0, 0.0), 1.0))

    with gr.Row():
        with gr.Column(scale=2):
            sources: list[Any] = ["upload", "clipboard"]
            picture = gr.Image(
                label="Picture", sources=sources, height=300, elem_id="picture"
            )
            hint = "Separated by commas or lines. Enter finds them."
            words = gr.Textbox(label="Words", info=hint, max_lines=6)
            threshold = gr.Slider(0, 1, 0.3, step=0.01, label="Threshold", buttons=[])
            button = gr.Button("Find", variant="primary")
            samples = [[str(path), text] for path, text in examples]
            tried = samples and gr.Examples(
                samples, [picture, words], label="Examples", visible_columns=[0]
            )
        with gr.Column(scale=3):
            alt = "The picture with the boxes that were found"
            drawn = gr.Image(
                label="Boxes", height=440, buttons=["download"], alt_text=alt
            )
            said = gr.Textbox(label="Result")
            table = gr.Dataframe(
                headers=["name", "score", "x1", "y1", "x2", "y2"],
                datatype=["str", "number", "number", "number", "number", "number"],
                label="Boxes, in pixels of the picture",
                column_widths=["36%", *["12.8%"] * 5],
                wrap=True,
            )
    asked: dict[str, Any] = dict(
        fn=answer,
        inputs=[picture, words, threshold],
        outputs=[drawn, table, said],
        preprocess=False,  # Gradio's own reading of pictures has no sentence for users
        concurrency_id="model",
        trigger_mode="always_last",
        api_name="find",
    )
    gr.on([button.click, words.submit, threshold.change], **asked)
    if tried:
        tried.load_input_event.then(**asked)


def _is_given(path: Path, examples: Sequence[Path]) -> bool:
    """Whether a file was uploaded, or is an example: a request could name any other."""
    whole = path.resolve()
    own = [Path(get_upload_folder()), *(file.parent for file in examples)]
    return whole.is_file() and any(whole.is_relative_to(p.resolve()) for p in own)


def _search_tab(search: "FolderSearch") -> None:
    def answer(
        words: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[list[tuple[Image.Image, str]], str]:
        bar: Callable[[Iterable], Iterable] = lambda paths: progress.tqdm(  # noqa: E731
            paths, desc="looking at pictures", unit="pictures"
        )
        try:
            start = time.perf_counter()
            hits, number = search(split_words(words), bar)
            took = time.perf_counter() - start
        except (ImportError, OSError, ValueError) as error:
            return [], str(error)
        shown = [(_thumbnail(h.path), f"{h.score:.3f}  {h.path.name}") for h in hits]
        return shown, f"{len(hits)} of {number} pictures in {_duration(took)}."

    hint = "Of several, separated by commas or lines: pictures of any."
    words = gr.Textbox(label="Words", info=hint, max_lines=6)
    button = gr.Button("Search", variant="primary")
    said = gr.Textbox(label="Result", info=search.order)
    found = gr.Gallery(
        label="Pictures, best first", show_label=False, columns=4, height=740
    )
    gr.on(
        [button.click, words.submit],
        answer,
        words,
        [found, said],
        show_progress_on=said,
        api_name="search",
        concurrency_id="model",
    )


def find(
    model: KDEOV, path: str | Path | None, words: str, threshold: float = 0.3
) -> Answer:
    """Find words in a picture.

    Args:
        model: with a detection head.
        path: of a picture; None where none was chosen.
        words: separated by commas or lines.
        threshold: least score of a box, in [0, 1].

    Returns:
        The picture with the boxes (H, W, 3) uint8 RGB; of each box its name, score, and
        corners in pixels of the picture, best first; a sentence. Where the picture or
        the words are none, the sentence says what is amiss, and the rest is empty.
    """
    try:
        picture, names = read_picture(path), split_words(words)
        start = time.perf_counter()
        (found,) = model.open_vocabulary_detect(picture, names, threshold)
        took = time.perf_counter() - start
    except (OSError, ValueError) as error:  # of the text tower, too
        return None, [], str(error)
    boxes, scores = found["boxes"].cpu(), found["scores"].cpu()
    rows: list[list[str | float]] = [
        [name, round(score, 3), *(round(n, 1) for n in box)]
        for name, score, box in zip(found["names"], scores.tolist(), boxes.tolist())
    ]
    instances = InstanceData(bboxes=boxes, scores=scores, labels=found["labels"].cpu())
    drawn = draw_found(picture, instances, names)
    if not rows:
        said = f"Nothing found above {threshold:.2f}: try other words or a lower "
        return drawn, rows, f"{said}threshold."
    counts = _count(len(rows), "box", "boxes"), _count(len({*found["names"]}), "word")
    return drawn, rows, f"{counts[0]} of {counts[1]} in {_duration(took)}."


def draw_found(
    picture: np.ndarray, found: InstanceData, names: Sequence[str]
) -> np.ndarray:
    """The picture (H, W, 3) uint8 RGB with boxes, the best on top, at most 1600 px."""
    factor = min(MAX_DRAWN / max(picture.shape[:2]), 1)
    size = [max(round(n * factor), 1) for n in picture.shape[1::-1]]
    found.bboxes = found.bboxes * factor
    return draw(
        np.asarray(Image.fromarray(picture).resize(size)),
        DetDataSample(pred_instances=found),
        names,
        [PALETTE[i % len(PALETTE)] for i in range(len(names))],
        score_threshold=0,
    )


def read_picture(path: str | Path | None) -> np.ndarray:
    """An uploaded picture as (H, W, 3) uint8 RGB.

    Raises:
        ValueError: none was chosen, it is none, ends early, or has too many pixels.
    """
    if path is None:
        raise ValueError("There is no picture: choose, drop or paste one.")
    name = Path(path).name
    try:
        with Image.open(path) as file:
            width, height = file.size
        if width * height <= MAX_PIXELS:
            return np.ascontiguousarray(read_image(path)[..., ::-1])
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"The file {name} is no picture, or a damaged one: expected PNG, JPEG, "
            "WebP or another format of pictures. Choose another file."
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"The picture {name} is too large: {error}") from error
    raise ValueError(
        f"The picture {name} has {width} x {height} pixels, more than "
        f"{MAX_PIXELS / 1e6:.0f} million: make it smaller."
    )


def split_words(text: str | None) -> list[str]:
    """Words that are separated by commas or lines, each once.

    Raises:
        ValueError: there are none, or more than 2000.
    """
    words: dict[str, str] = {}
    for word in map(clean_name, re.split(r"[,\n]", text or "")):
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
    """Pictures of a folder, ordered by words.

    A model with a global head compares embeddings, which are kept on disk; another one
    looks for the words in each of the first 100 pictures.

    Args:
        model: with a global head or a detection head.
        folder: of pictures, with its subfolders.
    """

    def __init__(self, model: KDEOV, folder: str | Path) -> None:
        self.model, self.folder = model, Path(folder)
        self.embeds = model.model.global_head is not None
        self.index: ImageIndex | None = None

    @property
    def order(self) -> str:
        """What pictures are ordered by, a line for the page."""
        if self.embeds:
            return (
                f"Pictures of {self.folder}, by their embeddings' cosine to the words."
            )
        return (
            f"The first {MAX_DETECTED} pictures of {self.folder}, by their best box of "
            "the words: this model has no global head."
        )

    def __call__(
        self, words: Sequence[str], progress: Callable[[Iterable], Iterable] = iter
    ) -> tuple[list[Hit], int]:
        """The best pictures of any of the words, and how many were looked at.

        Raises:
            ImportError: faiss is not installed, and the model has a global head.
            OSError: the folder cannot be listed, or another process indexes it.
            ValueError: it has no picture that can be read.
        """
        if self.embeds:
            self.index = self.index or ImageIndex(self.model, self.folder)
            number = self.index.update(progress)["images"]
            hits = [hit for word in words for hit in self.index.search(word, TOP)]
        else:
            looked = [*self._best_boxes(words, progress)]
            hits, number = [hit for hit in looked if hit.score >= LEAST], len(looked)
        best: dict[Path, Hit] = {}
        for hit in sorted(hits, key=lambda hit: -hit.score):
            best.setdefault(hit.path, hit)
        return [*best.values()][:TOP], number

    def _best_boxes(
        self, words: Sequence[str], progress: Callable[[Iterable], Iterable]
    ) -> Iterator[Hit]:
        paths = sorted(
            path
            for path in self.folder.rglob("*")
            if path.name.lower().endswith(IMG_EXTENSIONS)
        )
        if not paths:
            raise ValueError(
                f"{self.folder} has no pictures: name another with --images"
            )
        for path in progress(paths[:MAX_DETECTED]):
            try:
                (found,) = self.model.open_vocabulary_detect(path, words, LEAST)
            except OSError:  # no picture, as the index leaves them out
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


def _thumbnail(path: Path) -> Image.Image:
    """A picture for the gallery, which browsers can show whatever its format."""
    picture = Image.fromarray(read_image(path)[..., ::-1])
    picture.thumbnail((480, 480))
    return picture


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
