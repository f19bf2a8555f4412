"""Images of object stores and of shards."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from kdeov_mm.inference.sources import ImageSource, list_sources


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def shard(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return file.getvalue()


MEMBERS = {
    **{f"00{i}.png": png(i) for i in (1, 2)},
    "001.txt": b"a caption",
    "more/003.PNG": png(3),
    "bad.jpg": b"no image",
}
NAMES = ["001.png", "002.png", "more/003.PNG", "bad.jpg"]


def values(sources: list[ImageSource]) -> list[int]:
    """The grey level of each."""
    return [int(image[0, 0, 0]) for s in sources for _, image in s.images()]


@pytest.fixture
def store() -> Iterator[str]:
    """A bucket in memory."""
    files = {
        "photos/10.png": png(10),
        "photos/9.png": png(9),
        "photos/sub/a b.png": png(11),
        "photos/notes.txt": b"no image",
        "shards/0.tar": shard(MEMBERS),
    }
    memory = fsspec.filesystem("memory")
    for name, data in files.items():
        memory.pipe(f"/bucket/{name}", data)
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


def test_a_shard_is_its_images(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(shard(MEMBERS))
    (tmp_path / "1.tar").write_bytes(shard({"9.png": png(9)}))
    (one, *_) = sources = list_sources(tmp_path / "0.tar")
    assert [s.name for s in sources] == NAMES
    assert values(sources[:3]) == [1, 2, 3]
    with pytest.raises(OSError, match=r"tar://bad\.jpg::.*0\.tar: no format"):
        [*sources[3].images()]
    # a row of results names it, by which it is found again
    address, size, _ = one.stamp() or ("", 0, 0)
    assert address == one.file == f"tar://001.png::{tmp_path / '0.tar'}"
    assert size == len(MEMBERS["001.png"])
    (again,) = list_sources(address)
    assert values([again]) == [1] and again.stamp() == one.stamp()
    with pytest.raises(FileNotFoundError, match=r"0\.tar has no image 9\.png"):
        list_sources(address.replace("001", "9"))
    # several, by a glob
    many = list_sources(str(tmp_path / "*.tar"))
    assert [s.name for s in many] == [f"0.tar/{n}" for n in NAMES] + ["1.tar/9.png"]


def test_stamps_change_with_the_shard(tmp_path: Path) -> None:
    file = tmp_path / "0.tar"
    file.write_bytes(shard(MEMBERS))
    (source, *_) = list_sources(file)
    before = source.stamp()
    assert before == source.stamp()
    file.write_bytes(shard(MEMBERS))
    assert source.stamp() != before
    file.unlink()
    assert source.stamp() is None
    with pytest.raises(OSError, match=r"0\.tar"):
        [*source.images()]


def test_an_address_is_a_file_a_folder_or_a_glob(store: str, tmp_path: Path) -> None:
    folder = list_sources(f"{store}/photos")
    assert [s.name for s in folder] == ["9.png", "10.png", "sub/a b.png"]
    assert values(folder) == [9, 10, 11]
    assert values(list_sources(f"{store}/photos/9.png")) == [9]
    assert values(list_sources(f"{store}/photos/*.png")) == [9, 10]
    # a folder's shards, too, and shards by their address
    everything = [s.name for s in list_sources(f"{store}/**")]
    assert everything[3:] == [f"shards/0.tar/{n}" for n in NAMES]
    assert [s.name for s in list_sources(f"{store}/shards/*.tar")] == NAMES
    # stores and files of a disk have names of their own
    (tmp_path / "9.png").write_bytes(png(1))
    both = list_sources([tmp_path / "9.png", f"{store}/photos/9.png"])
    assert values(both) == [1, 9] and both[0].name != both[1].name
    stamp = folder[0].stamp()
    assert stamp and stamp == folder[0].stamp()
    assert stamp[:2] == (f"{store.replace('://', ':///')}/photos/9.png", len(png(9)))


def test_a_list_names_shards_and_addresses(store: str, tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(shard({"7.png": png(7)}))
    rows = ["path", "0.tar", f"{store}/photos/9.png", f"{store}/shards/0.tar"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    sources = list_sources(tmp_path / "list.csv")
    assert values(sources[:-1]) == [7, 9, 1, 2, 3]


def test_a_list_may_be_in_a_store_itself(store: str) -> None:
    """Relative names lie below it; images are not looked for."""
    rows = "path\nphotos/9.png\nshards/0.tar\nphotos/gone.png\n"
    fsspec.filesystem("memory").pipe("/bucket/list.csv", rows.encode())
    sources = list_sources(f"{store}/list.csv")
    assert values(sources[:4]) == [9, 1, 2, 3] and len(sources) == 6
    with pytest.raises(FileNotFoundError, match="photos/gone.png"):
        values(sources[-1:])
    assert sources[-1].stamp() is None
    with pytest.raises(FileNotFoundError, match="memory://bucket/gone.csv"):
        list_sources(f"{store}/gone.csv")


def test_of_a_name_that_is_there_twice_the_last_counts(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for value in (1, 2):
            (tmp_path / "a.png").write_bytes(png(value))
            archive.add(tmp_path / "a.png", "a.png")
    assert values(list_sources(tmp_path / "0.tar")) == [2]


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("gone.tar", FileNotFoundError, "gone.tar has no images"),
        ("memory://bucket/gone", FileNotFoundError, "memory://bucket/gone has no im"),
        ("memory://bucket/shards/*.jpg", FileNotFoundError, "has no images"),
        ("odd://bucket/a.jpg", ValueError, "does not take: Protocol not known"),
        ("https://host/a.jpg", ValueError, "works offline"),
        ("https://host/list.csv", ValueError, "works offline"),
        ("web.csv", ValueError, "http://host/a.jpg is an address.*works offline"),
        ("photos.tar.gz", ValueError, "compressed shard.*unpack"),
        ("empty.tar", FileNotFoundError, "empty.tar has no images"),
        ("cut.tar", OSError, "cut.tar is damaged"),
        ("text.tar", OSError, "text.tar is damaged, or none"),
        ("up.tar", ValueError, "would leave their folder"),
    ],
)
def test_what_is_no_store_is_refused(
    store: str, tmp_path: Path, name: str, error: type[Exception], match: str
) -> None:
    files = {
        "empty.tar": shard({"a.txt": b"a"}),
        "cut.tar": shard(MEMBERS)[:700],
        "text.tar": b"text" * 500,
        "web.csv": b"path\nhttp://host/a.jpg\n",
        "up.tar": shard({"../a.png": png(1)}),
    }
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    given = name if "://" in name else str(tmp_path / name)
    with pytest.raises(error, match=match):
        list_sources(given)
