"""A file of weights from a server of this machine: whole, in parts, wrong, missing."""

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from .conftest import load_tool

CONTENT = bytes(range(256)) * 100
SHA = hashlib.sha256(CONTENT).hexdigest()
NAME = f"weights-{SHA[:8]}.pth"


class Server(BaseHTTPRequestHandler):
    """Sends one file from where it is asked, and closes early where it shall."""

    asked: list[str | None] = []
    ranges = True
    stop: int | None = None

    def do_GET(self) -> None:
        begin = int((self.headers["Range"] or "bytes=0-")[6:-1]) if self.ranges else 0
        self.asked.append(self.headers["Range"])
        if ".pth" not in self.path:
            return self.send_error(404)
        if begin >= len(CONTENT):
            return self.send_error(416)
        self.send_response(206 if self.ranges else 200)
        self.send_header("Content-Length", str(len(CONTENT) - begin))
        self.end_headers()
        self.wfile.write(CONTENT[begin : self.stop])

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server with one file."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Server.asked, Server.ranges, Server.stop = [], True, None
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("ranges", [True, False])
def test_what_was_interrupted_goes_on_where_it_stopped(
    hub: str, tmp_path: Path, ranges: bool, capsys: Any
) -> None:
    tool, Server.stop, Server.ranges = load_tool("download"), 9000, ranges
    given = [f"{hub}/{NAME}?download=true", "--folder", str(tmp_path)]
    with pytest.raises(SystemExit, match="closed before the end.*part is kept"):
        tool.main(given)
    assert (tmp_path / f"{NAME}.part").read_bytes() == CONTENT[:9000]
    Server.stop = None
    tool.main(given)
    assert [*tmp_path.iterdir()] == [tmp_path / NAME]
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert Server.asked == ["bytes=0-", "bytes=9000-"]
    assert "as expected" in capsys.readouterr().err
    # what is there is compared, and not asked for again
    tool.main(given)
    assert len(Server.asked) == 2
    (tmp_path / NAME).rename(tmp_path / f"{NAME}.part")
    Server.ranges = True
    tool.main(given)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_another_file_is_not_kept(hub: str, tmp_path: Path) -> None:
    tool = load_tool("download")
    for more in ([f"{hub}/w-0badc0de.pth"], [f"{hub}/{NAME}", "--sha256", "ab12"]):
        with pytest.raises(SystemExit, match=f"{SHA}, expected"):
            tool.main([*more, "--folder", str(tmp_path)])
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_reached_says_what_to_do(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = load_tool("download")
    for address, reason in {
        f"{hub}/none.txt": "the server says 404",
        "http://127.0.0.1:9/a.pth": "on a machine that has it.*https_proxy",
        "file:///etc/passwd": "expected a name or https",
    }.items():
        with pytest.raises(SystemExit, match=reason):
            tool.main([address, "--folder", str(tmp_path)])
    # a proxy of the environment is asked in place of the host
    monkeypatch.setenv("http_proxy", hub)
    tool.main([f"http://no.such.host.invalid/{NAME}", "--folder", str(tmp_path)])
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_the_names_of_the_page_are_addresses_of_the_hub() -> None:
    tool = load_tool("download")
    page = Path(tool.__file__).parents[1] / "configs/yoloworld/README.md"
    names = re.findall(r"^\| `(yolo_world_\S+\.pth)`", page.read_text(), re.M)
    assert len(names) == 3
    assert all(f"({tool.HUB}{name})" in page.read_text() for name in names)
