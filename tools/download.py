"""Download a file of weights: ``python tools/download.py NAME [--folder FOLDER]``.

NAME is a file of YOLO-World's hub (configs/yoloworld/README.md), or any address. The
proxy is that of the environment (https_proxy); what was interrupted goes on where it
stopped. The SHA-256 is compared with --sha256, or with its beginning, which mm's tools
write at the end of a file's name. Nothing else in this repository downloads it.
"""

import argparse
import hashlib
import http.client
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from kdeov_mm.border import given_path, sentences

HUB = "https://huggingface.co/wondervictor/YOLO-World/resolve/main/"
BLOCK = 2**20  # bytes
TIMEOUT = 30  # seconds without an answer


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="file of the hub, or https://...")
    parser.add_argument(
        "--folder", type=given_path, default=Path(), help="(default: .)"
    )
    parser.add_argument("--sha256", help="of the file, in hexadecimal digits")
    args = parser.parse_args(argv)
    address = args.name if "://" in args.name else HUB + args.name
    with sentences("download.py"):
        print(download(address, args.folder, args.sha256))


def download(address: str, folder: Path, sha256: str | None = None) -> Path:
    """Download a file, or the rest of it, and compare its checksum.

    Args:
        address: http or https.
        folder: made as needed; a part is ``NAME.part``.
        sha256: hexadecimal digits, the first or all; None: those of the name.

    Returns:
        The file, whole; one that is there already is compared alone.

    Raises:
        OSError: it cannot be reached, or not be written.
        ValueError: the address is none, or the file is not the one asked for.
    """
    if not re.fullmatch(r"https?://[^/]+/.*[^/]", address):
        raise ValueError(f"expected a name or https://HOST/FILE, got {address}")
    name = address.split("?")[0].rsplit("/", 1)[-1]
    in_name = re.search(r"-([0-9a-f]{8})\.\w+$", name)
    expected = (sha256 or (in_name[1] if in_name else "")).lower()
    file, part = folder / name, folder / f"{name}.part"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _fetch(address, part)
        except (OSError, http.client.HTTPException) as error:
            raise OSError(_advice(address, part, error)) from error
    # what does not fit is not left where it would be taken for the file
    whole = file if file.exists() else part
    digest = hashlib.sha256()
    with whole.open("rb") as content:
        for block in iter(lambda: content.read(BLOCK), b""):
            digest.update(block)
    found = digest.hexdigest()
    if not found.startswith(expected):
        part.unlink(missing_ok=True)
        raise ValueError(
            f"{file} has the SHA-256 {found}, expected {expected}...: it is damaged "
            "or another file (a page to sign in?). Delete it, if it is still there, "
            "and try again."
        )
    compared = "as expected" if expected else "with nothing known to compare it with"
    print(f"SHA-256 {found}, {compared}.", file=sys.stderr)
    if whole == part:
        part.replace(file)
    return file


def _fetch(address: str, part: Path) -> None:
    """Append to a file what it lacks."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"})
    try:
        # an opener of its own reads the proxies that are set now
        answer = urllib.request.build_opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        # nothing follows what is there: it is whole, which its checksum says
        if error.code == 416 and have:
            return
        raise
    with answer:
        # a server that knows no ranges begins anew
        begun = have if answer.status == 206 else 0
        rest = int(answer.headers.get("Content-Length") or 0)
        bar = tqdm(
            desc=part.stem, initial=begun, total=begun + rest or None,
            unit="B", unit_scale=True,
        )  # fmt: skip
        with bar, part.open("ab" if begun else "wb") as out:
            while block := answer.read(BLOCK):
                out.write(block)
                bar.update(len(block))
    if rest and part.stat().st_size < begun + rest:
        raise OSError("the connection was closed before the end")


def _advice(address: str, part: Path, error: Exception) -> str:
    """What to do where a download fails."""
    if isinstance(error, urllib.error.HTTPError):
        what = f"the server says {error.code} ({error.reason}): is the name right?"
    else:
        what = (
            f"{getattr(error, 'reason', error)}. Without access to the internet, open "
            f"the address on a machine that has it and copy the file to "
            f"{part.parent.absolute()}; behind a proxy, set https_proxy."
        )
    rest = f" {part} is kept, the next run goes on from there." if part.exists() else ""
    return f"{address} cannot be downloaded: {what}{rest}"


if __name__ == "__main__":
    main()
