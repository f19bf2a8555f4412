"""Packaging of kdeov_mm.

The mm packages are an extra: an environment that has its own mmcv keeps it.
OpenCV comes with mmengine, as the build of the user's choice.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "kdeov_mm/__init__.py").read_text(), re.M
)
README = ROOT / "README.md"

MM = [
    "mmengine==0.10.7",
    "mmcv-lite==2.0.1",
    "mmdet==3.3.0",
    "mmyolo==0.6.0",
    "setuptools<82",  # mmengine imports pkg_resources and distutils
]
SEARCH = ["lancedb>=0.40"]
SCALE = ["ray>=2.60", "pyarrow"]
WEB = ["gradio>=6", *SEARCH]
ONNX = ["onnx", "onnxruntime", "onnxscript"]
DEV = [
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "hypothesis",
    "ruff",
    "mypy",
    "tensorboard",
    "playwright",
    "supervision",
]

setup(
    name="kdeov_mm",
    version=VERSION[1] if VERSION else None,
    description="CLIP distilled into small mmdetection models: open-vocabulary "
    "detection, classification, retrieval and segmentation",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="GPL-3.0-or-later",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["kdeov_mm", "kdeov_mm.*"]),
    package_data={
        "kdeov_mm": [
            "clip/shapes_*teacher/*",
            "datasets/*.json",
            "engine/doctor/*.json",
        ]
    },
    install_requires=[
        "torch>=2.4",
        "torchvision",
        "numpy",
        "open_clip_torch>=2.24",
        "filelock",
        "fsspec",  # shards, object stores; torch needs it, too
        "safetensors",
        "scipy",
        "tqdm",
        "faster-coco-eval>=1.6.5",
        "ijson",  # of tools/prepare_splits.py alone
    ],
    extras_require={
        "mm": MM,
        "search": SEARCH,
        "scale": SCALE,
        "web": WEB,
        "onnx": ONNX,
        "dev": [*DEV, *WEB, *ONNX, *SCALE],
    },
)
