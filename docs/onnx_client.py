"""Words to boxes with an exported file: numpy and onnxruntime, nothing else.

    python docs/onnx_client.py dogs.onnx image.npy
    python docs/onnx_client.py any.onnx image.npy words.safetensors

An image is an array (H, W, 3) of uint8, RGB; files other than .npy need Pillow. It is
resized in float, and by OpenCV in whole numbers: scores of resized images differ from
those of kdeov_mm in the third digit.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def load(path):
    """An onnxruntime session, and what the file says about itself."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    return session, {key: json.loads(value) for key, value in about.items()}


def load_words(path, about):
    """Names and unit vectors (K, D) of a file of `--save-words` (safetensors)."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    tensor = header["vectors"]
    begin, end = (start + offset for offset in tensor["data_offsets"])
    rows = np.frombuffer(data[begin:end], "<f4").reshape(tensor["shape"])
    metadata = header["__metadata__"]
    # files of version 0.1.0 have no "about"
    entry = "about" if "about" in metadata else "vocabulary"
    vocabulary = json.loads(metadata[entry])
    keys = ("config_sha256", "weights_sha256", "templates")
    if "weights_sha256" not in about["encoder"]:
        keys = ("model", "pretrained", "templates")
    if any(vocabulary["encoder"].get(k) != about["encoder"].get(k) for k in keys):
        raise ValueError("the vectors were made by another CLIP than the model learnt")
    row = {word: i for i, word in enumerate(vocabulary["rows"])}
    means = [rows[[row[w] for w in own]].mean(0) for own in vocabulary["words"]]
    vectors = np.stack(means)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [own[0] for own in vocabulary["words"]], vectors.astype(np.float32)


def read(path):
    """An image file as (H, W, 3) uint8 RGB, by the rules of kdeov_mm."""
    from PIL import Image, ImageOps

    image = Image.open(path)
    # it is not known what is black and what is white
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise ValueError(f"{path}: float or 32-bit pixels: save it with 8 or 16 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of gray
        gray = np.asarray(image).astype(float)
        if 0 < gray.max() < 2**14:
            print(f"{path} is almost black: of 65535, {gray.max():.0f} is its highest")
        image = Image.fromarray((gray / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:  # shows a white page
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def resize(image, height, width):
    """Bilinear, centres of pixels on centres."""
    for axis, size in enumerate((height, width)):
        old = image.shape[axis]
        at = (np.arange(size) + 0.5) * old / size - 0.5
        low = np.floor(at).astype(int)
        part = (at - low).reshape([-1 if i == axis else 1 for i in range(3)])
        first = np.take(image, low.clip(0, old - 1), axis)
        second = np.take(image, (low + 1).clip(0, old - 1), axis)
        image = first * (1 - part) + second * part
    return image


def prepare(image, about):
    """(H, W, 3) uint8 RGB -> the file's input (1, 3, h, w), and pixels per pixel."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected (H, W, 3) of uint8, got {image.shape}")
    height, width = image.shape[:2]
    short = about.get("short_size", about["size"])
    scale = min(about["size"] / max(height, width), short / min(height, width))
    small = [max(int(n * scale + 0.5), 1) for n in (height, width)]
    pixels = resize(image.astype(np.float64), *small).round()
    norm = about["normalisation"]
    if norm["channels"] == "BGR":
        pixels = pixels[..., ::-1]
    pixels = (pixels - norm["mean"]) / norm["std"]
    room = [-n % about["stride"] for n in small]
    pixels = np.pad(
        pixels,
        ((0, room[0]), (0, room[1]), (0, 0)),
        constant_values=norm["pad_value"],
    )
    factors = np.array([small[1] / width, small[0] / height] * 2)
    return pixels.transpose(2, 0, 1)[None].astype(np.float32), factors


def suppress(boxes, scores, threshold):
    """Indices of boxes (n, 4) that non-maximum suppression leaves, best first."""
    order, kept = np.argsort(-scores, kind="stable"), []
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        both = (high - low).clip(0).prod(1)
        order = order[both <= threshold * (area[best] + area[order] - both)]
    return np.array(kept, int)


def detect(session, about, image, names=None, vectors=None, score_threshold=0.3):
    """Boxes (n, 4) xyxy in pixels of the image, scores (n,), names; best first."""
    images, factors = prepare(image, about)
    feed = {"images": images}
    if about["form"] == "vocabulary":
        if vectors is None or vectors.shape != (len(names), about["embed_dims"]):
            raise ValueError("this file needs names and their vectors: load_words()")
        feed["text"] = vectors
    else:
        names = about["names"]
    if about["nms"]:
        boxes, scores, labels, _ = session.run(None, feed)
    else:
        boxes, scores = (output[0] for output in session.run(None, feed))
        labels, places = np.nonzero(scores > score_threshold)
        boxes, scores = boxes[places], scores[labels, places]
        kept = [np.zeros(0, int)]
        # within each word, or across words
        apart = labels * (not about.get("agnostic", False))
        for label in np.unique(apart):
            own = np.flatnonzero(apart == label)
            kept.append(own[suppress(boxes[own], scores[own], about["iou_threshold"])])
        kept = np.concatenate(kept)
        best = kept[np.argsort(-scores[kept], kind="stable")][: about["max_per_image"]]
        boxes, scores, labels = boxes[best], scores[best], labels[best]
    sure = scores > score_threshold
    boxes = boxes[sure] / factors
    height, width = image.shape[:2]
    boxes = boxes.clip(0, [width, height, width, height])
    return boxes, scores[sure], [names[i] for i in labels[sure]]


def main():
    """Read the command line, print boxes."""
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    model, file, *words = sys.argv[1:]
    session, about = load(model)
    image = np.load(file) if file.endswith(".npy") else read(file)
    asked = load_words(words[0], about) if words else ()
    for box, score, name in zip(*detect(session, about, image, *asked)):
        print(f"{name:30} {score:.3f}  " + " ".join(f"{n:.1f}" for n in box))


if __name__ == "__main__":
    main()
