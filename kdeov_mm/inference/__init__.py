"""Trained models on images, videos and folders; their results; ONNX files."""

from .api import KDEOV
from .inferencer import KDEOVInferencer
