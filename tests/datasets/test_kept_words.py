"""What a student finds, as labels beside one's own."""

import json
from pathlib import Path

import pytest

from kdeov_mm.datasets.kept_words import with_found

from ..conftest import load_tool


def own() -> dict:
    box = dict(id=7, image_id=3, category_id=2, bbox=[0, 0, 10, 10], area=9, iscrowd=0)
    return dict(
        images=[dict(id=3, file_name="a.jpg"), dict(id=4, file_name="b.jpg")],
        annotations=[box],
        categories=[dict(id=2, name="toy robot")],
    )


def found() -> dict:
    """On a robot, beside it, of a low score, and in the other image; ids differ."""
    boxes = [
        (1, 1, [1, 0, 10, 10], 0.9),
        (1, 1, [30, 5, 10, 20], 0.8),
        (1, 2, [60, 5, 10, 20], 0.2),
        (2, 2, [1, 0, 10, 10], 0.5),
    ]
    return dict(
        images=[dict(id=1, file_name="a.jpg"), dict(id=2, file_name="b.jpg")],
        annotations=[
            dict(image_id=i, category_id=c, bbox=b, score=s) for i, c, b, s in boxes
        ],
        categories=[dict(id=1, name="cat"), dict(id=2, name="Toy_Robot")],
    )


def test_own_boxes_stay_and_cover_what_is_found_there() -> None:
    given = own()
    content, number = with_found(given, found())
    assert given == own()  # unchanged
    assert number == 2 and content["annotations"][0] == given["annotations"][0]
    assert [c["name"] for c in content["categories"]] == ["toy robot", "cat"]
    names = {c["id"]: c["name"] for c in content["categories"]}
    added = [(b["image_id"], names[b["category_id"]], b["bbox"], b["area"])
             for b in content["annotations"][1:]]  # fmt: skip
    assert added == [
        (3, "cat", [30, 5, 10, 20], 200),
        (4, "toy robot", [1, 0, 10, 10], 100),
    ]
    assert len({b["id"] for b in content["annotations"]}) == 3


def test_the_tool_refuses_what_does_not_go_together(tmp_path: Path) -> None:
    tool, files = load_tool("keep_words"), [tmp_path / f"{i}.json" for i in range(3)]
    for file, content in zip(files, (own(), found())):
        file.write_text(json.dumps(content))
    given = [*map(str, files)]
    tool.main(given)
    assert len(json.loads(files[2].read_text())["annotations"]) == 3
    with pytest.raises(SystemExit, match="--threshold"):
        tool.main([*given, "--threshold", "2"])
    files[1].write_text(json.dumps(dict(found(), images=[])))
    with pytest.raises(SystemExit, match="2 of 2 images.*run tools/detect.py"):
        tool.main(given)
    files[1].write_text("[]")
    with pytest.raises(SystemExit, match="are no COCO JSON and detections"):
        tool.main(given)
