"""Image files of object stores, and members of ``.tar`` shards, by fsspec."""

import glob
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..reader import image_of
from .images import natural_key

SHARD = ".tar"  # WebDataset's
PACKED = (".tgz", ".tar.gz", ".tar.zst", ".tar.bz2", ".tar.xz")
BLOCK = 2**16  # bytes that are read at a time, of a shard's headers
WEB = ("http", "https", "ftp")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://?")


@dataclass(frozen=True)
class StoredImage:
    """An image file that has no path of its own.

    Attributes:
        address: as fsspec takes it: ``s3://bucket/a.jpg``; of a member of a shard
            ``tar://a.jpg::s3://bucket/0000.tar``, or ``tar://a.jpg::/data/0000.tar``.
        first, end: bytes of the shard that are the member's; None: all of the file.
    """

    address: str
    first: int | None = None
    end: int | None = None

    @property
    def place(self) -> PurePosixPath:
        """As a path: below the shard it is in, which is below its store."""
        member, _, shard = self.address.rpartition("::")
        scheme, _, file = shard.rpartition("://")
        inside = member.partition("://")[2]
        return PurePosixPath("/", scheme, file.lstrip("/"), inside)

    def read(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB, as :func:`kdeov_mm.reader.read_image` gives it.

        Raises:
            OSError: it cannot be read, or is no image; names it.
        """
        with _reached(self.address):
            store, file = _opened(self.address)
            data = store.cat_file(file, start=self.first, end=self.end)
        return image_of(data, self.address)

    def stamp(self) -> tuple[str, int, int] | None:
        """Address, bytes and time of change (ns, of its shard); None: it is gone."""
        try:
            with _reached(self.address):
                store, file = _opened(self.address)
                size = store.size(file)
                changed = store.modified(file).timestamp()
        except OSError:
            return None
        if self.first is not None and self.end is not None:
            size = self.end - self.first
        return self.address, size, round(changed * 1e6) * 1000


Members: TypeAlias = dict[str, dict[str, StoredImage]]  # by shard and address


def is_address(given: str) -> bool:
    """Whether it is one, and no path.

    >>> [is_address(s) for s in ("s3://b/a.jpg", "tar://a.jpg::0.tar", "C:/a.jpg")]
    [True, True, False]
    """
    return bool(_ADDRESS.match(given))


def is_shard(given: str) -> bool:
    """Whether it is a path, or a glob, of shards."""
    return given.lower().endswith((SHARD, *PACKED))


def list_stored(given: str, known: Members | None = None) -> list[StoredImage]:
    """The images of an address, or of a shard.

    Args:
        given: the address of a file, a folder (all that begins with it and ``/``), or a
            glob; or a shard's path. Of a folder and of a glob images are taken, and the
            members of shards. ``tar://MEMBER::SHARD`` is one member.
        known: shards that were listed for members; more of them are added.

    Raises:
        FileNotFoundError: there is nothing there, or no image; names it.
        ImportError: fsspec has no package for this kind of address; it names one.
        OSError: the store cannot be reached, or a shard is damaged.
        ValueError: an address of the web, or none that fsspec knows.
    """
    if given.lower().endswith(PACKED):
        raise ValueError(
            f"{given}: the members of a compressed shard cannot be read one by one: "
            "unpack it to a .tar"
        )
    found = _ADDRESS.match(given)
    _refuse_web(given)
    if "::" in given:
        return [_member(given, {} if known is None else known)]
    with _reached(given):
        store, file = _opened(given if found else str(Path(given).absolute()))
        files = _found(store, file)
        scheme = f"{found[1]}://" if found else ""
        images = [
            image
            for name in files
            for image in _images(store, name, scheme + name.removeprefix(scheme))
        ]
    if not images:
        raise FileNotFoundError(f"{given} has no images {IMG_EXTENSIONS}")
    return images


def of_list(given: str, known: Members) -> list[StoredImage]:
    """What an address in a list means: as :func:`list_stored`, but an image is not
    looked for."""
    _refuse_web(given)
    if given.lower().endswith(IMG_EXTENSIONS) and "::" not in given:
        return [StoredImage(_checked(given, given))]
    return list_stored(given, known)


def _refuse_web(given: str) -> None:
    found = _ADDRESS.match(given)
    if found and found[1].lower() in WEB:
        raise ValueError(
            f"{given} is an address of the internet, and this works offline: download "
            "it first, and give the file."
        )


def read_bytes(address: str) -> bytes:
    """The content of a file; raises an OSError that names it."""
    _refuse_web(address)
    with _reached(address):
        store, file = _opened(address)
        return store.cat_file(file)


def _found(store: Any, file: str) -> list[str]:
    """Files of a path, a folder or a glob of a store."""
    # a name may have the characters of a glob, so a file comes first
    if store.isfile(file):
        return [file]
    if glob.has_magic(file):
        known = store.glob(file, detail=True)
        names = [name for name, about in known.items() if about["type"] == "file"]
    else:
        names = store.find(file)
    return sorted(names, key=lambda name: natural_key(PurePosixPath(name)))


def _images(store: Any, file: str, address: str) -> Iterable[StoredImage]:
    """The file, if it is an image; of a shard its members."""
    if file.lower().endswith(IMG_EXTENSIONS):
        return [StoredImage(_checked(address, file))]
    if file.lower().endswith(SHARD):
        return _members(store, file, address)
    return []


def _members(store: Any, file: str, address: str) -> Iterable[StoredImage]:
    """Images of a shard, of which only the headers are read: a block about each."""
    found = {}  # of a name that is there twice, the last one counts
    options = dict(block_size=BLOCK, cache_type="readahead")
    try:
        with (
            store.open(file, "rb", **options) as raw,
            tarfile.open(fileobj=raw, mode="r:") as shard,
        ):
            for member in shard:
                name, first = member.name, member.offset_data
                if member.isreg() and name.lower().endswith(IMG_EXTENSIONS):
                    whole = f"tar://{_checked(name, name)}::{address}"
                    found[name] = StoredImage(whole, first, first + member.size)
    except (tarfile.TarError, EOFError) as error:
        raise OSError(f"shard {address} is damaged, or none: {error}") from error
    return found.values()


def _member(address: str, known: Members) -> StoredImage:
    """One of a shard, as a row of results names it."""
    name, _, shard = address.partition("::")
    if not name.startswith("tar://"):
        raise ValueError(f"{address}: expected tar://MEMBER::SHARD")
    if shard not in known:
        known[shard] = {image.address: image for image in list_stored(shard)}
    if address not in known[shard]:
        raise FileNotFoundError(f"{shard} has no image {name.removeprefix('tar://')}")
    return known[shard][address]


def _checked(whole: str, name: str) -> str:
    """A name below which results may be written."""
    if ".." in PurePosixPath(name).parts:
        raise ValueError(f"{whole}: results of it would leave their folder")
    return whole


def _opened(address: str) -> tuple[Any, str]:
    """The store and the file in it; of a member's address, its shard."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(address.rpartition("::")[2])
    except ValueError as error:
        raise ValueError(
            f"{address} is an address that fsspec does not take: {error}"
        ) from error


@contextmanager
def _reached(address: str) -> Iterator[None]:
    """What packages of stores raise, with the address.

    Raises:
        ImportError, OSError, ValueError: in the place of anything.
    """
    try:
        yield
    except (ImportError, ValueError):
        raise
    except OSError as error:
        if address in str(error):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        raise kind(f"{address}: {error}") from error
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise OSError(f"cannot reach {address}: {said:.500}") from error
