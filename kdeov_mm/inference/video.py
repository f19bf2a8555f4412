"""Videos: their frames as RGB arrays, one by one."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from mmengine.logging import print_log

VIDEO_EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


class VideoInfo(NamedTuple):
    """What a file claims of itself; 0 where it does not say."""

    fps: float
    num_frames: int


def video_info(path: Path) -> VideoInfo:
    """Frames per second and number of frames.

    Raises:
        OSError: the file cannot be read.
    """
    capture = _open(path)
    fps = capture.get(cv2.CAP_PROP_FPS)
    num_frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return VideoInfo(fps, max(num_frames, 0))


def read_frames(video: Path | int, every: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """Numbers and frames (H, W, 3) uint8 RGB of a video.

    Args:
        video: a file, or the number of a camera.
        every: one frame in so many.

    Raises:
        OSError: the file cannot be read, or the camera cannot be opened.
    """
    capture, number = _open(video), 0
    claimed = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    # grabbing passes a frame by, which is cheaper than decoding it
    try:
        while capture.grab():
            if number % every == 0:
                good, frame = capture.retrieve()
                if not good:
                    break
                yield number, np.ascontiguousarray(frame[..., ::-1])  # OpenCV's is BGR
            number += 1
    finally:
        capture.release()
    # a damaged file ends early, and claims more
    if not number:
        raise OSError(f"cannot read video {video}: it has no frame")
    if number < claimed:
        print_log(
            f"{video} has {number} frames that can be read, of {claimed}.",
            "current",
            level=logging.WARNING,
        )


def _open(video: Path | int) -> cv2.VideoCapture:
    if isinstance(video, Path) and not video.is_file():
        raise FileNotFoundError(f"video {video} does not exist")
    capture = cv2.VideoCapture(video if isinstance(video, int) else str(video))
    if not capture.isOpened():
        name = f"of camera {video}" if isinstance(video, int) else video
        raise OSError(f"cannot read video {name}")
    return capture
