"""The local page: what it answers, and what a browser shows of it."""

import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import httpx
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from kdeov_mm import KDEOV
from kdeov_mm.apps import answers
from kdeov_mm.apps.search import ImageIndex
from kdeov_mm.datasets import shapes
from kdeov_mm.reader import read_image

from ..conftest import ROOT, load_tool, run_env
from ..inference.test_api import scene, write_joint

web = pytest.importorskip("kdeov_mm.apps.web", reason='pip install "kdeov_mm[web]"')

BOXES = 5  # that the student finds in any image
ASKED = "red ball, blue cube,\n red  ball,, Green star,green star"
WORDS = ["red ball", "blue cube", "Green star"]


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, load_config: Callable[..., Config]
) -> Path:
    few = {"model.test_cfg.max_per_img": BOXES}
    return write_joint(tmp_path_factory.mktemp("joint"), load_config, **few)


@pytest.fixture(scope="module")
def student(checkpoint: Path) -> KDEOV:
    return KDEOV.from_checkpoint(checkpoint)


@pytest.fixture
def headless(student: KDEOV, monkeypatch: pytest.MonkeyPatch) -> KDEOV:
    """The student without its global head."""
    monkeypatch.setitem(student.model._modules, "global_head", None)
    return student


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of all kinds, and files that are none."""
    root = tmp_path_factory.mktemp("files")
    image = Image.fromarray(scene(120, 160))
    image.save(root / "rgb.png")
    image.convert("L").save(root / "gray.png")
    image.convert("RGBA").save(root / "rgba.png")
    image.convert("P").save(root / "palette.gif")
    image.convert("CMYK").save(root / "cmyk.jpg")
    sixteen = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(sixteen).save(root / "16.tif")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    image.save(root / "turned.jpg", exif=exif)
    (root / "notes.png").write_text("no image")
    (root / "empty.png").write_bytes(b"")
    whole = (root / "turned.jpg").read_bytes()
    (root / "half.jpg").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images in two folders, and one that is none."""
    root = tmp_path_factory.mktemp("gallery")
    (root / "below").mkdir()
    for i in range(8):
        place = root / "below" if i % 2 else root
        Image.fromarray(scene(60 + i, 80, seed=i)).save(place / f"{i}.png")
    (root / "broken.png").write_text("no image")
    return root


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices lie below the working directory."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def expected(student: KDEOV, path: Path, threshold: float) -> list[list[Any]]:
    """The rows of the table, of the student itself."""
    (found,) = student.open_vocabulary_detect(path, WORDS, threshold)
    return [
        [name, *numbers]
        for name, *numbers in zip(
            found["names"], found["scores"].tolist(), *found["boxes"].T.tolist()
        )
    ]


def assert_rows(rows: list[list[Any]], wanted: list[list[Any]]) -> None:
    assert [row[0] for row in rows] == [row[0] for row in wanted]
    for row, other in zip(rows, wanted):
        assert row[1] == pytest.approx(other[1], abs=6e-4)
        assert row[2:] == pytest.approx(other[2:], abs=0.06)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# --------------------------------------------------------------------- find


@pytest.mark.parametrize(
    "name",
    ["rgb.png", "gray.png", "rgba.png", "palette.gif", "cmyk.jpg", "16.tif"]
    + ["turned.jpg"],
)
def test_words_are_found_in_images_of_all_kinds(
    student: KDEOV, files: Path, name: str
) -> None:
    drawn, rows, said = answers.find(student, files / name, ASKED, 0.1)
    assert len(rows) == BOXES
    assert_rows(rows, expected(student, files / name, 0.1))
    assert said.startswith(f"{BOXES} boxes of ") and said.endswith(" ms.")
    height, width = read_image(files / name).shape[:2]
    assert (height > width) == (name == "turned.jpg")
    assert drawn.shape == (800 * height // max(height, width),
                           800 * width // max(height, width), 3)  # fmt: skip
    plain = np.asarray(Image.fromarray(scene(120, 160)).resize((800, 600)))
    if name == "rgb.png":
        assert 0.005 < (np.abs(drawn.astype(int) - plain) > 90).mean() < 0.5


def test_nothing_above_the_threshold_is_said(student: KDEOV, files: Path) -> None:
    drawn, rows, said = answers.find(student, files / "rgb.png", ASKED, 0.99)
    assert drawn is not None and rows == []
    assert said.startswith("Nothing found above 0.99:")


@pytest.mark.parametrize("name", ["notes.png", "empty.png", "half.jpg", "absent.png"])
def test_a_file_that_is_no_image_is_named(
    student: KDEOV, files: Path, name: str
) -> None:
    drawn, rows, said = answers.find(student, files / name, ASKED)
    assert drawn is None and rows == []
    assert said.startswith(f"The file {name} is no image, or a damaged one")
    assert str(files) not in said


def test_an_image_of_too_many_pixels_is_refused_unread(
    student: KDEOV, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (8000, 5001)).save(path)
    monkeypatch.setattr(answers, "read_image", None)
    said = answers.find(student, path, ASKED)[2]
    assert "large.png has 8000 x 5001 pixels, more than 40 million" in said
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own limit
    assert "large.png is too large" in answers.find(student, path, ASKED)[2]


def test_what_is_missing_is_said(student: KDEOV, files: Path) -> None:
    assert answers.find(student, None, ASKED)[2].startswith("There is no image")
    for words in ("", " ,\n, _ ", None):
        said = answers.find(student, files / "rgb.png", words)[2]
        assert said.startswith("There are no words")
    many = ",".join(f"word {i}" for i in range(2001))
    assert "2001 words" in answers.find(student, files / "rgb.png", many)[2]
    assert len(answers.split_words(many.removesuffix(",word 2000"))) == 2000


def test_a_word_that_is_a_book_is_refused_at_once(student: KDEOV, files: Path) -> None:
    answer = answers.find(student, files / "rgb.png", "a" * 10**7)
    assert "10000000 letters, at most 300" in answer.sentence and answer.drawing is None


def test_words_are_asked_once_and_as_they_are_written(
    student: KDEOV, files: Path
) -> None:
    assert answers.split_words(ASKED) == WORDS
    odd = "$x_2^, \\frac{$1}{, <b>bold</b>, 猫, 🚲"
    drawn, rows, _ = answers.find(student, files / "rgb.png", odd, 0.1)
    assert drawn is not None and len(rows) == BOXES
    assert {row[0] for row in rows} <= {*answers.split_words(odd)}


@pytest.mark.parametrize("size", [(1, 1), (4000, 30), (3, 2500)])
def test_images_of_any_shape_are_drawn_in_a_size_to_show(
    student: KDEOV, tmp_path: Path, size: tuple[int, int]
) -> None:
    path = tmp_path / "odd.png"
    Image.new("RGB", size, "teal").save(path)
    drawn, rows, _ = answers.find(student, path, ASKED, 0.1)
    assert max(drawn.shape) in (800, 1600)
    for row in rows:
        assert 0 <= row[2] <= row[4] <= size[0] and 0 <= row[3] <= row[5] <= size[1]


# ------------------------------------------------------------------- search


def test_a_folder_is_ordered_by_its_index(student: KDEOV, gallery: Path) -> None:
    search = answers.FolderSearch(student, gallery)
    assert "cosine" in search.order
    hits, number = search(["red ball", "blue cube"])
    assert number == len(hits) == 8
    index = ImageIndex(student, gallery)
    index.update()
    scores: dict[Path, float] = {}
    for word in ("red ball", "blue cube"):
        for hit in index.search(word):
            scores[hit.path] = max(hit.score, scores.get(hit.path, -1))
    assert [hit.path for hit in hits] == sorted(scores, key=lambda p: -scores[p])


def test_a_folder_is_ordered_by_boxes_without_a_global_head(
    headless: KDEOV, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = answers.FolderSearch(headless, gallery)
    assert "best box" in search.order and "no global head" in search.order
    seen: list[Path] = []
    hits, number = search(WORDS, lambda paths: seen.extend(paths) or paths)
    assert number == len(hits) == 8 and len(seen) == 9
    best = {p: expected(headless, p, 0.1)[0][1] for p in gallery.rglob("[0-9].png")}
    assert [hit.path for hit in hits] == sorted(best, key=lambda p: -best[p])
    monkeypatch.setattr(answers, "MAX_DETECTED", 3)
    assert search(WORDS)[1] <= 3
    monkeypatch.setattr(answers, "MIN_SCORE", 1.0)
    assert search(WORDS)[0] == []


def test_a_folder_without_images_is_named(headless: KDEOV, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none has no images"):
        answers.FolderSearch(headless, tmp_path / "none")(WORDS)


def test_examples_are_unseen_scenes_with_novel_things(tmp_path: Path) -> None:
    examples = answers.write_examples(tmp_path)
    assert len(examples) == 6
    for path, text in examples:
        words = text.split(", ")
        assert {*words} <= {*shapes.CLASSES} and {*words} & {*shapes.NOVEL_CLASSES}
        assert read_image(path).shape == (shapes.SIZE, shapes.SIZE, 3)


# --------------------------------------------------------------- the server


@pytest.fixture(scope="module")
def address(
    student: KDEOV, gallery: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The served page."""
    scratch = tmp_path_factory.mktemp("examples")
    page = web.build_page(student, answers.write_examples(scratch), gallery)
    yield web.serve(page, port=free_port())
    page.close()


def test_words_of_strangers_are_not_kept_on_disk(address: str, student: KDEOV) -> None:
    assert student.model.text_encoder.most_words == web.KEPT_WORDS


# `hblkhd` of glibc's mallinfo2: bytes in blocks of their own. In another process: one
# that has room in its heap does not ask for blocks
BLOCKS = """
import ctypes
import numpy as np
from kdeov_mm.apps import web

class Allocated(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks"
    _fields_ = [(name, ctypes.c_size_t) for name in [*names.split(), "keepcost"]]

look = getattr(ctypes.CDLL(None), "mallinfo2", None)
if look is not None:
    look.restype = Allocated
    assert web.steady_memory()
    # by itself glibc would from now on keep blocks of this size in its heap
    np.empty(20 * 2**20, np.uint8)
    before = look().hblkhd
    block = np.empty(8 * 2**20, np.uint8)
    assert look().hblkhd >= before + block.nbytes
    del block
    assert look().hblkhd == before
"""


def test_large_blocks_go_back_to_the_system_whatever_was_freed_before() -> None:
    subprocess.run([sys.executable, "-c", BLOCKS], check=True)


def test_an_empty_host_is_refused() -> None:
    with pytest.raises(ValueError, match="--host: expected a name or an address"):
        web.serve(None, host="")


IMAGE = {"_type": "gradio.FileData"}
NOT_GIVEN = [
    dict(path=str(ROOT / "docs/demo.jpg")),
    dict(path=str(ROOT / "docs/demo.jpg"), meta=IMAGE),
    dict(path="https://example.org/a.png", meta=IMAGE),
    dict(path="a\0.png"),
    dict(path=3),
    "a.png",
    {},
]
BAD: dict[str, tuple[Any, int, str]] = {
    **{
        f"file {i}": ([x, "a", 0.1, False], 400, "no image")
        for i, x in enumerate(NOT_GIVEN)
    },
    "few": ([None], 400, "Expected 4 inputs, got 1"),
    "many": ([None, "a", 0.1, False, 1], 400, "Expected 4 inputs, got 5"),
    "number": ([None, 3, 0.1, False], 400, "Words: expected text"),
    "list": ([None, ["a"], 0.1, False], 400, "Words: expected text"),
    "text": ([None, "a", "b", False], 400, "Threshold: expected a number"),
    "nan": ('{"data": [null, "a", NaN, false]}', 400, "Threshold: expected a number"),
    "no list": ({"a": 1}, 400, "a list of its inputs"),
    "no dict": ("[]", 400, "a list of its inputs"),
    "no json": ("{{{", 400, "this is none"),
    "deep": ("[" * 99999, 400, "this is none"),
    "long": ([None, "a" * 2**21, 0.1, False], 413, "too large"),
}


@pytest.mark.parametrize(("asked", "status", "said"), BAD.values(), ids=[*BAD])
def test_a_bad_question_is_answered_with_a_sentence(
    address: str,
    asked: Any,
    status: int,
    said: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    places = {"call/find": asked if isinstance(asked, str) else dict(data=asked)}
    # as the page asks it
    if isinstance(asked, list):
        (index,) = (n for n, name in web_page(address).items() if name == "find")
        places["queue/join"] = dict(data=asked, fn_index=index, session_hash="x")
    for place, content in places.items():
        body = content if isinstance(content, str) else json.dumps(content)
        answer = httpx.post(f"{address}gradio_api/{place}", content=body)
        assert answer.status_code == status and said in answer.json()["detail"]
    assert "Traceback" not in "".join(capfd.readouterr())


def web_page(address: str) -> dict[int, str]:
    """The questions of the page by their numbers."""
    config = httpx.get(f"{address}config").json()
    return {d["id"]: d["api_name"] for d in config["dependencies"]}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("call/nothing", 404),
        ("call/v2/find", 404),
        ("run/find", 404),
        ("component_server", 404),
        ("upload", 400),
    ],
)
def test_other_requests_are_refused(
    address: str, path: str, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = httpx.post(f"{address}gradio_api/{path}", json=dict(data=[]))
    assert answer.status_code == status
    elsewhere = httpx.get(f"{address}gradio_api/file=https://example.org/a.png")
    assert elsewhere.status_code == 403
    assert "Traceback" not in "".join(capfd.readouterr())


def test_uploads_have_a_limit_whatever_they_say_of_themselves(address: str) -> None:
    url = f"{address}gradio_api/upload"
    half = [("files", (f"{i}.png", bytes(6 * 2**20))) for i in range(2)]
    assert httpx.post(url, files=half).status_code == 413

    def chunks() -> Iterator[bytes]:
        yield b"--x\r\nContent-Disposition: form-data; name=f; filename=a\r\n\r\n"
        yield from (bytes(2**20) for _ in range(12))

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    # it may hang up on who still sends
    with contextlib.suppress(httpx.TransportError):
        assert httpx.post(url, content=chunks(), headers=kind).status_code == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "[::1"}, 403),
    ],
)
def test_requests_of_other_pages_are_refused(
    address: str, headers: dict[str, str], status: int
) -> None:
    port = str(urlparse(address).port)
    given = {k: v.replace("{port}", port) for k, v in headers.items()}
    assert httpx.get(address, headers=given).status_code == status


def sync_api() -> Any:
    """Playwright, in its place: it is not needed for the other tests."""
    return pytest.importorskip("playwright.sync_api")


@pytest.fixture
def browser_page(address: str) -> Iterator[Any]:
    """A page in Chromium; any request elsewhere and any error of it fail the test."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    complaints: list[str] = []

    def guard(route: Any) -> None:
        if urlparse(route.request.url).hostname == "127.0.0.1":
            route.continue_()
        else:
            complaints.append(route.request.url)
            route.abort()

    def listen(message: Any) -> None:
        if message.type == "error":
            complaints.append(message.text)

    with sync_api().sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(10_000)
        page.route("**/*", guard)
        page.on("console", listen)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        yield page
        browser.close()
    assert complaints == []


def said(count: int, threshold: float = 0.3) -> re.Pattern[str]:
    """The sentence of so many boxes."""
    if not count:
        return re.compile(rf"^Nothing found above {threshold:.2f}: ")
    return re.compile(rf"^{count} box(es)? of \d words? in ")


def rows_of(page: Any) -> list[list[Any]]:
    """The table as it is shown."""
    rows = page.get_by_role("row").filter(has=page.get_by_role("gridcell"))
    cells = [row.get_by_role("gridcell").all_inner_texts() for row in rows.all()]
    return [[name.strip(), *map(float, numbers)] for name, *numbers in cells]


def test_a_browser_finds_words_by_keyboard(
    browser_page: Any, student: KDEOV, files: Path
) -> None:
    page, expect = browser_page, sync_api().expect
    result = page.get_by_label("Result").first
    image, upload = page.locator("#image img"), page.locator("input[type=file]")
    words = page.get_by_role("textbox", name="Words").first
    expect(page).to_have_title("kdeov_mm: words in, boxes out")
    words.press("Enter")
    expect(result).to_have_value("There is no image: choose, drop or paste one.")

    upload.first.set_input_files(files / "turned.jpg")
    image.wait_for()
    words.fill(ASKED)
    words.press("Enter")
    expect(result).to_have_value(said(BOXES))
    assert_rows(rows_of(page), expected(student, files / "turned.jpg", 0.3))
    shown = page.get_by_alt_text("The image with the boxes that were found")
    assert shown.evaluate("image => image.naturalHeight") == 800

    for key in ("Tab", "Tab", "End"):  # past the threshold's number, to its slider
        page.keyboard.press(key)
    expect(result).to_have_value(said(0, 1.0))
    expect(page.get_by_role("gridcell")).to_have_count(0)
    page.keyboard.press("Home")
    expect(result).to_have_value(said(BOXES))
    scores = [row[1] for row in rows_of(page)]
    middle = next(n / 100 for n in range(101) if n / 100 > scores[-1])
    for _ in range(round(100 * middle)):
        page.keyboard.press("ArrowRight")
    wanted = expected(student, files / "turned.jpg", middle)
    assert len(wanted) < BOXES
    expect(page.get_by_role("spinbutton").first).to_have_value(f"{middle:g}")
    expect(result).to_have_value(said(len(wanted), middle))
    assert_rows(rows_of(page), wanted)
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Find")).to_be_focused()
    for typed, count in (("7", 0), ("", BOXES)):
        page.get_by_role("spinbutton").first.fill(typed)
        page.keyboard.press("Tab")
        expect(result).to_have_value(said(count, 1.0))


def test_a_browser_is_told_what_a_file_is_and_tries_an_example(
    browser_page: Any, files: Path
) -> None:
    page, expect = browser_page, sync_api().expect
    result = page.get_by_label("Result").first
    words = page.get_by_role("textbox", name="Words").first
    page.locator("input[type=file]").first.set_input_files(files / "notes.png")
    page.locator("#image img").wait_for(state="attached")
    words.fill(ASKED)
    page.get_by_role("button", name="Find").press("Enter")
    expect(result).to_have_value(re.compile("^The file notes.png is no image"))
    page.locator(".gallery-item").first.press("Enter")
    expect(result).to_have_value(said(BOXES))
    scene = shapes.draw_scene(shapes.scene_rng(0, 1, answers.EXAMPLES[0]))
    names = [shapes.CLASSES[label] for label in scene.labels]
    expect(words).to_have_value(", ".join(names))
    assert {row[0] for row in rows_of(page)} <= {*names}


def test_words_that_look_like_a_page_are_shown_as_text(
    browser_page: Any, files: Path
) -> None:
    page, expect = browser_page, sync_api().expect
    odd = "<img src=x onerror=document.title='owned'>"
    script = "<script>document.title='owned'</script>"
    page.locator("input[type=file]").first.set_input_files(files / "rgb.png")
    page.locator("#image img").wait_for()
    words = page.get_by_role("textbox", name="Words").first
    words.fill(f"{odd}\n{script}\n<b>bold</b>")
    words.press("Enter")
    expect(page.get_by_label("Result").first).to_have_value(said(BOXES))
    shown = {row[0] for row in rows_of(page)}
    assert shown and shown <= {odd, script, "<b>bold</b>"}
    expect(page).to_have_title("kdeov_mm: words in, boxes out")
    assert page.locator("img[src=x]").count() == 0


def test_a_browser_searches_a_folder(browser_page: Any, gallery: Path) -> None:
    page, expect = browser_page, sync_api().expect
    page.get_by_role("tab", name="Search").click()
    words = page.get_by_role("textbox", name="Words").filter(visible=True).first
    words.fill("red ball")
    words.press("Enter")
    result = page.get_by_label("Result").filter(visible=True)
    expect(result).to_have_value(re.compile(r"^8 of 8 images in "))
    captions = page.locator(".caption-label").all_inner_texts()
    scores = [float(caption.split()[0]) for caption in captions]
    assert scores == sorted(scores, reverse=True)
    assert {c.split()[1] for c in captions} == {f"{i}.png" for i in range(8)}


# ----------------------------------------------------------------- the tool


def test_the_tool_serves_until_it_is_interrupted(
    checkpoint: Path, gallery: Path
) -> None:
    port = free_port()
    tool = subprocess.Popen(
        [sys.executable, ROOT / "tools/web.py", checkpoint]
        + ["--images", gallery, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=run_env(),
    )
    try:
        assert tool.stdout is not None
        address = f"http://127.0.0.1:{port}/"
        assert any(line.startswith(address) for line in tool.stdout)
        assert "kdeov_mm" in httpx.get(address).text
        tool.send_signal(signal.SIGINT)
        assert tool.wait(timeout=20) == 0
    finally:
        tool.kill()


def test_the_tool_says_what_is_missing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint, one that is, a folder, a port that is free, a port that is one."""
    tool = load_tool("web")
    assert tool.main([]) == 2
    assert "run `make demo` first" in capsys.readouterr().err
    assert tool.main([str(tmp_path / "no.pth")]) == 2
    assert "no.pth does not exist" in capsys.readouterr().err
    for wrong in (["--images", str(tmp_path / "nowhere")], ["--port", "70000"]):
        with pytest.raises(SystemExit) as end:
            tool.main([str(checkpoint), *wrong])
        assert end.value.code == 2 and wrong[0] in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert tool.main([str(checkpoint), "--port", str(port)]) == 2
    assert f"127.0.0.1:{port}: the port is taken" in capsys.readouterr().err


def test_the_newest_checkpoint_is_the_default(tmp_path: Path) -> None:
    tool = load_tool("web")
    for time, name in enumerate(("demo/iter_800", "demo/iter_400")):
        path = Path(f"work_dirs/{name}.pth")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (time, time))
    assert tool.default_checkpoint() == path
    joint = Path("work_dirs/kdeov_n_shapes_joint/iter_1.pth")
    joint.parent.mkdir()
    joint.touch()
    os.utime(joint, (0, 0))
    assert tool.default_checkpoint() == joint


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "kdeov_mm.apps.web")
    with pytest.raises(ImportError, match=r'pip install "kdeov_mm\[web\]"'):
        importlib.import_module("kdeov_mm.apps.web")
