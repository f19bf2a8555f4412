"""The local web page: an image and words in, boxes out; a folder searched by words."""

import ctypes
import platform
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from ..inference.api import KDEOV
from ..models import SegStudent
from .answers import FolderSearch, duration, find, segment, split_words

try:
    import gradio as gr
    from gradio.utils import get_upload_folder
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse

    from .guard import MAX_BYTES, Guard
except ImportError as error:
    raise ImportError(
        'the web page needs gradio: pip install "kdeov_mm[web]"'
    ) from error

MAX_WAITING = 1000  # questions in the queue
MAX_SESSIONS = 100  # whose inputs Gradio keeps in memory
KEPT_WORDS = 4000  # of users, in memory alone
LARGE = 2**18  # bytes of a block of memory that is given back to the system
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's mallopt
CSS = "#image img {width: 100%; height: 100%; object-fit: contain}"  # small ones grow


def build_page(
    model: KDEOV,
    examples: Sequence[tuple[Path, str]] = (),
    folder: str | Path | None = None,
) -> gr.Blocks:
    """The page, not yet served; see :func:`serve`.

    Args:
        model: what answers. Without a detection head there is no tab to find words; a
            :class:`SegStudent` has a tab of masks, and none to search.
        examples: images and their words, to try; see :func:`.answers.write_examples`.
        folder: of images to search; None for no tab to search.
    """
    # words of strangers fill neither memory nor disk
    encoder = getattr(model.model, "text_encoder", None)
    if encoder is not None:
        encoder.most_words = KEPT_WORDS
    with gr.Blocks(
        title="kdeov_mm: words in, boxes out",
        analytics_enabled=False,
        delete_cache=(3600, 3600),  # uploads are removed after an hour
    ) as page:
        masks = isinstance(model.model, SegStudent)
        answer = "masks" if masks else "boxes"
        gr.Markdown(f"# kdeov_mm\nWords in, {answer} out. All runs on this machine.")
        if getattr(model.model, "with_bbox", False):
            with gr.Tab("Find"):
                _find_tab(model, examples)
        if masks:
            with gr.Tab("Masks"):
                _mask_tab(model, examples)
        elif folder is not None:
            with gr.Tab("Search"):
                _search_tab(FolderSearch(model, folder))
        page.examples = [file for file, _ in examples]
    # one after the other, and none beside the queue
    return page.queue(max_size=MAX_WAITING, api_open=False)


class OwnPage:
    """Answers requests for its own names alone, made by its own pages.

    Another page in the same browser could ask what this one serves: under its own name,
    led here by DNS, or in a form.

    Args:
        app: what answers the others.
        names: hosts that it goes by; none: any.
    """

    def __init__(self, app: Any, names: Collection[str] = ()) -> None:
        self.app, self.names = app, {*names}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer 403."""
        if not self.names or scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {k: v.decode("latin-1") for k, v in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        try:
            known = urlsplit(f"//{host}").hostname in self.names
            own = origin is None or urlsplit(origin).netloc == host
        except ValueError:  # no host at all
            known = own = False
        if known and own:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            answer = PlainTextResponse("This page answers only itself.", 403)
            await answer(scope, receive, send)
        else:
            await send(dict(type="websocket.close", code=1008))


def steady_memory() -> bool:
    """Let glibc give large blocks back as they are freed; False: another C library.

    It would learn to keep blocks as large as a model's, in a heap of each thread, where
    small ones that stay lie between them: the server grew by 0.2 MB with each question.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_ARENA_MAX, 2))


def serve(page: gr.Blocks, host: str = "127.0.0.1", port: int = 7860) -> str:
    """Serve the page from a thread of its own, and return its address.

    On this machine alone, as by default, it answers by this machine's own names.

    Raises:
        OSError: the port is taken, or the host is none of this machine.
        ValueError: the host is empty, which would be any of its names.
    """
    if not host.strip():
        raise ValueError(f"--host: expected a name or an address, got {host!r}")
    steady_memory()
    # fonts of the system: Gradio's own are loaded from the internet
    local = ("127.0.0.1", "localhost", "::1")
    names = local if host in local else ()
    given = partial(_is_given, examples=page.examples)  # type: ignore[attr-defined]
    guards = [
        Middleware(OwnPage, names=names),
        Middleware(Guard, page=page, is_given=given),
    ]
    fonts: dict[str, Any] = dict(font=["system-ui", "sans-serif"])
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        prevent_thread_lock=True,
        quiet=True,
        max_file_size=MAX_BYTES,
        state_session_capacity=MAX_SESSIONS,
        run_history=False,
        footer_links=[],
        app_kwargs=dict(middleware=guards),
        css=CSS,
        theme=gr.themes.Default(**fonts, font_mono=["monospace"]),
    )
    return address


class Question(NamedTuple):
    """The left side of a tab: an image, words and a threshold.

    Attributes:
        inputs: image, words and threshold, and what else is asked.
        events: of whoever asks: button, Enter and slider.
        tried: the examples, which ask by themselves; None where there are none.
    """

    inputs: list[Any]
    events: list[Any]
    tried: Any

    def answered_by(self, answer: Callable[..., Any], outputs: Any, name: str) -> None:
        """Let all who ask be answered.

        Args:
            answer: path of the image or None, words, threshold and what else is
                asked -> the outputs.
            outputs: what shows them.
            name: of the question, for programs.
        """

        def ask(
            upload: dict[str, Any] | None, words: str, typed: float | None, *more: Any
        ) -> Any:
            # the guard let none but uploads and examples in
            path = Path(upload["path"]) if upload else None
            return answer(path, words, min(max(typed or 0.0, 0.0), 1.0), *more)

        # the model serves one request at a time
        asked: dict[str, Any] = dict(
            fn=ask,
            inputs=self.inputs,
            outputs=outputs,
            preprocess=False,  # Gradio's own reading of images has no message for users
            concurrency_id="model",
            trigger_mode="always_last",
            api_name=name,
        )
        gr.on(self.events, **asked)
        if self.tried:
            self.tried.load_input_event.then(**asked)


def _question(
    verb: str, hint: str, threshold: float, examples: Sequence[tuple[Path, str]]
) -> Question:
    """A column in which an image, words and a threshold are given."""
    with gr.Column(scale=2):
        sources: list[Any] = ["upload", "clipboard"]
        image = gr.Image(label="Image", sources=sources, height=300, elem_id="image")
        words = gr.Textbox(label="Words", info=hint, max_lines=6)
        slider = gr.Slider(0, 1, threshold, step=0.01, label="Threshold", buttons=[])
        button = gr.Button(verb, variant="primary")
        samples = [[str(path), text] for path, text in examples]
        tried = samples and gr.Examples(
            samples, [image, words], label="Examples", visible_columns=[0]
        )
    return Question(
        [image, words, slider],
        [button.click, words.submit, slider.change],
        tried or None,
    )


def _find_tab(model: KDEOV, examples: Sequence[tuple[Path, str]]) -> None:
    with gr.Row():
        hint = "Separated by commas or lines. Enter finds them."
        question = _question("Find", hint, 0.3, examples)
        agnostic = gr.Checkbox(label="One box for an object: its best word")
        question.inputs.append(agnostic)
        question.events.append(agnostic.change)
        with gr.Column(scale=3):
            alt = "The image with the boxes that were found"
            drawing = gr.Image(
                label="Boxes", height=440, buttons=["download"], alt_text=alt
            )
            sentence = gr.Textbox(label="Result")
            table = gr.Dataframe(
                headers=["name", "score", "x1", "y1", "x2", "y2"],
                datatype=["str", "number", "number", "number", "number", "number"],
                label="Boxes, in pixels of the image",
                column_widths=["36%", *["12.8%"] * 5],
                wrap=True,
            )
    outputs = [drawing, table, sentence]
    question.answered_by(partial(find, model), outputs, "find")


def _mask_tab(model: KDEOV, examples: Sequence[tuple[Path, str]]) -> None:
    with gr.Row():
        hint = "Separated by commas or lines. Enter colours them."
        question = _question("Colour", hint, 0.0, examples)
        with gr.Column(scale=3):
            alt = "The image, each pixel coloured by its word"
            drawing = gr.Image(
                label="Masks", height=520, buttons=["download"], alt_text=alt
            )
            sentence = gr.Textbox(label="Result")
    question.answered_by(partial(segment, model), [drawing, sentence], "segment")


def _is_given(path: Path, examples: Sequence[Path]) -> bool:
    """Whether a file was uploaded, or is an example: a request could name any other."""
    whole = path.resolve()
    own = [Path(get_upload_folder()), *(file.parent for file in examples)]
    return whole.is_file() and any(whole.is_relative_to(p.resolve()) for p in own)


def _search_tab(search: FolderSearch) -> None:
    def answer(
        words: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[list[tuple[Image.Image, str]], str]:
        def bar(paths: Iterable) -> Iterator:
            # a generator, because Gradio's bar fails when it is asked beyond its end
            yield from progress.tqdm(paths, desc="looking at images", unit="images")

        # what is wrong is said on the page
        try:
            start = time.perf_counter()
            hits, number = search(split_words(words), bar)
            took = time.perf_counter() - start
        except (ImportError, OSError, ValueError) as error:
            return [], str(error)
        shown = [(_thumbnail(h.read()), f"{h.score:.3f}  {h.name}") for h in hits]
        return shown, f"{len(hits)} of {number} images in {duration(took)}."

    # words above, images below
    hint = "Of several, separated by commas or lines: images of any."
    words = gr.Textbox(label="Words", info=hint, max_lines=6)
    button = gr.Button("Search", variant="primary")
    sentence = gr.Textbox(label="Result", info=search.order)
    gallery = gr.Gallery(
        label="Images, best first", show_label=False, columns=4, height=740
    )
    gr.on(
        [button.click, words.submit],
        answer,
        words,
        [gallery, sentence],
        show_progress_on=sentence,
        api_name="search",
        concurrency_id="model",
    )


def _thumbnail(pixels: np.ndarray) -> Image.Image:
    """Pixels (H, W, 3) for the gallery: browsers do not show every format."""
    image = Image.fromarray(pixels)
    image.thumbnail((480, 480))
    return image
