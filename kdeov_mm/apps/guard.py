"""What the page's server is asked, looked at before Gradio does anything with it."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from starlette.responses import JSONResponse

MAX_BYTES = 10 * 2**20  # of an uploaded file
MAX_ASKED = 2 * 2**20  # bytes of a question: 2000 words of 300 letters, and more
SLACK = 2**14  # of an upload, around its file
POSTS = ("cancel", "reset", "upload")  # beside questions; the page posts nothing else


class Refused(Exception):
    """A request that is not passed on: status and sentence."""


class Guard:
    """Answers a bad request with a sentence, where Gradio logs a traceback.

    A question has the inputs of its tab, of their types; a file is one that was
    uploaded: Gradio would fetch an address.

    Args:
        app: what answers the others.
        page: Gradio's Blocks.
        is_given: whether a path is an upload or an example.
    """

    def __init__(self, app: Any, page: Any, is_given: Callable[[Path], bool]) -> None:
        self.app, self.page, self.is_given = app, page, is_given

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or say what is wrong with it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def sent(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            if "://" in scope["path"]:  # Gradio asks where an address leads
                raise Refused(403, "Addresses of elsewhere are not opened.")
            if scope["method"] == "POST":
                receive = await self.look(scope["path"], scope["headers"], receive)
            await self.app(scope, receive, sent)
        except Exception as error:
            if started:
                raise
            # another error is one of Gradio's at a request that no page makes
            known = isinstance(error, Refused)
            status, said = error.args if known else (400, "There is no such request.")
            if not known:
                print_log(f"{scope['path'][:100]}: {error!r}", level=logging.WARNING)
            answer = JSONResponse(dict(detail=said), status)
            await answer(scope, receive, send)

    async def look(self, path: str, headers: Any, receive: Any) -> Any:
        """What passes a post's body on; Refused where it is large or no question."""
        _, _, place = path.rstrip("/").rpartition("/gradio_api/")
        verb, _, name = place.partition("/")
        # uploads pass by, and are counted
        if place in POSTS:
            return _counted(receive, headers, MAX_BYTES + SLACK)
        asks = ("queue/join", "run/predict")
        if place not in asks and (verb != "call" or not name or "/" in name):
            raise Refused(404, "There is no such request.")
        # questions are short, and read as a whole
        counted, body, more = _counted(receive, headers, MAX_ASKED), b"", True
        while more:
            message = await counted()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.check(body, name if verb == "call" else None, verb != "run")
        messages = [dict(type="http.request", body=body, more_body=False)]

        async def again() -> Any:
            return messages.pop() if messages else await receive()

        return again

    def check(self, body: bytes, name: str | None, queued: bool) -> None:
        """Refuse what is no question of the page.

        Args:
            body: JSON.
            name: of the question; None: ``fn_index`` says which.
            queued: it waits for its turn; others are those that do not need the model.
        """
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused(400, "A question is JSON: this is none.") from None
        given = asked.get("data") if isinstance(asked, dict) else None
        if not isinstance(given, list):
            raise Refused(400, 'A question is {"data": [...]}, a list of its inputs.')
        # which question
        index = asked.get("fn_index")
        found = [
            fn
            for number, fn in self.page.fns.items()
            if (number == index if name is None else fn.api_name == name)
            and (queued or not fn.queue)
        ]
        if not found or isinstance(index, bool):
            names = sorted({str(fn.api_name) for fn in self.page.fns.values() if fn.fn})
            raise Refused(404, f"There is no such question; there are {names}.")
        self.check_inputs(found[0].inputs, given)

    def check_inputs(self, wanted: Sequence[Any], given: Sequence[Any]) -> None:
        """Refuse inputs of another number or type, and files of elsewhere."""
        if len(given) != len(wanted):
            raise Refused(400, f"Expected {len(wanted)} inputs, got {len(given)}.")
        for part, value in zip(wanted, given):
            kind = type(part).__name__
            if value is None:
                continue
            if kind == "Textbox" and not isinstance(value, str):
                raise Refused(400, f"{part.label}: expected text.")
            numbers = isinstance(value, (int, float)) and not isinstance(value, bool)
            if kind == "Slider" and not (numbers and math.isfinite(value)):
                raise Refused(400, f"{part.label}: expected a number.")
            if kind == "Dataset" and value not in range(len(part.samples or ())):
                raise Refused(400, "There is no such example.")
            if kind == "Image":
                path = value.get("path") if isinstance(value, dict) else None
                if not isinstance(path, str) or not self._is_upload(path):
                    raise Refused(400, "This is no image of this page: upload one.")

    def _is_upload(self, path: str) -> bool:
        try:
            return "://" not in path and self.is_given(Path(path))
        except (OSError, ValueError):  # a name that no file can have
            return False


def _counted(receive: Any, headers: Any, most: int) -> Any:
    """Receive at most so many bytes; Refused if there are more, or are said to be."""
    said = f"This is too large: at most {most / 2**20:.0f} MiB are read."
    length = dict(headers).get(b"content-length", b"0")
    if not length.isdigit() or int(length) > most:
        raise Refused(413, said)
    seen = 0

    async def receive_some() -> Any:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.disconnect":
            return message
        seen += len(message.get("body", b""))
        if seen > most:
            raise Refused(413, said)
        return message

    return receive_some
