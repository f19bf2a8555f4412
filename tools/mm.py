"""Run a tool of mmdet with our configs: ``python tools/mm.py TOOL ARGUMENTS``.

    python tools/mm.py analyze_results CONFIG PREDICTIONS.pkl FOLDER
    python tools/mm.py confusion_matrix CONFIG PREDICTIONS.pkl FOLDER
    python tools/mm.py browse_dataset CONFIG --output-dir FOLDER --not-show

It registers this package's parts and mends what mmdet needs, then runs the file of
that name in mmdet's ``.mim/tools``; ``tools/test.py --out`` writes predictions.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

import kdeov_mm  # isort: skip  # noqa: F401  (compat comes before mmdet)

import matplotlib.pyplot as plt
import mmdet
import numpy as np
from mmdet.datasets import utils

from kdeov_mm.border import sentences
from kdeov_mm.datasets import LoadImageFromFile

LARGEST = 8000  # pixels of a side of a picture
draw = plt.subplots


def subplots(*args: Any, figsize: Any = None, dpi: Any = None, **more: Any) -> Any:
    """pyplot's, of a bounded size; a larger picture has no texts in its axes.

    mmdet's confusion matrix writes a number into each cell: of 361 classes a picture of
    five gigabytes, which takes very long and which nobody can read.
    """
    if figsize is None or max(figsize) * (dpi or 100) <= LARGEST:
        return draw(*args, figsize=figsize, dpi=dpi, **more)
    figure, axes = draw(*args, figsize=figsize, dpi=LARGEST / max(figsize), **more)
    for each in np.ravel(axes):
        each.text = lambda *_, **__: None
    return figure, axes


@sentences("mm.py")
def main() -> None:
    folder = Path(mmdet.__file__).parent / ".mim/tools"
    # of two of a name the one that is not for tracking, deeper in a folder of its own
    files = sorted(folder.rglob("*.py"), key=lambda path: -len(path.parts))
    tools = {path.stem: path for path in files}
    if len(sys.argv) < 2 or sys.argv[1] not in tools:
        sys.exit(f"{__doc__}\nTOOL is one of: {', '.join(tools)}")
    path = tools[sys.argv[1]]
    # mmdet knows steps that load by their class, and this one takes its step's place
    utils.LoadImageFromFile = LoadImageFromFile
    plt.subplots = subplots
    sys.argv = [str(path), *sys.argv[2:]]
    runpy.run_path(str(path), run_name="__main__")


if __name__ == "__main__":
    main()
