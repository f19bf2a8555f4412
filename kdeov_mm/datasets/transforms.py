"""Pipeline steps that mmdet does not have."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.image import imresize, rescale_size
from mmcv.transforms import BaseTransform
from mmcv.transforms import LoadImageFromFile as _LoadImageFromFile
from mmdet.datasets.transforms import PackDetInputs, YOLOXHSVRandomAug
from mmdet.registry import TRANSFORMS
from mmengine.fileio import get, load

from ..reader import BROKEN, decode_image
from ..vocabulary import as_vocabulary

# what mmdet keeps by default, and what students and metrics of ours ask for
META_KEYS = (
    *("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    *("flip", "flip_direction", "words", "gt_label", "caption", "captions"),
    *("verified_labels", "not_exhaustive_labels", "label_weights"),  # OVLVISDataset's
)
# pixels of the input by which steps round boxes
BOX_TOLERANCE = 2


@TRANSFORMS.register_module()
class LoadImageFromFile(_LoadImageFromFile):
    """mm's ``LoadImageFromFile``, with the reader of :mod:`kdeov_mm.reader`.

    Within mmdet's scope it takes the place of mm's, so that any config of a training or
    a test sees the pixels that inference sees: mm's reads colours below transparent
    pixels, and no floats. Arguments are mm's; with ``color_type`` other than
    ``'color'``, mm's reads.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Add ``img``, (H, W, 3) uint8 BGR, and its sizes.

        Raises:
            OSError: the file is missing, no image, or one that is refused; names it.
        """
        if self.color_type != "color" or self.file_client_args is not None:
            return super().transform(results)
        path = results["img_path"]
        try:
            image = decode_image(get(path, self.backend_args), path, "BGR")
        except BROKEN as error:
            if self.ignore_empty:
                return None
            kind = type(error) if isinstance(error, FileNotFoundError) else OSError
            raise kind(f"cannot read image {path}: {error}") from error
        results["img"] = image.astype(np.float32) if self.to_float32 else image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


@TRANSFORMS.register_module()
class PackInputs(PackDetInputs):
    """mmdet's PackDetInputs, which also keeps words, label and captions of a sample.

    After :class:`KeepOriginal` the sample also has

    - ``original``: (3, H, W) uint8, the channels in the order of ``inputs``;
    - ``homography_matrix`` in its metainfo: (3, 3), from pixels of ``original`` to
      pixels of the input;
    - ``visible`` in its ``gt_instances``: (n,), the part of each box of the original
      that the input shows, by area.

    Args:
        meta_keys: what the sample keeps, as far as the pipeline made it.
    """

    def __init__(self, meta_keys: Sequence[str] = META_KEYS) -> None:
        super().__init__(tuple(meta_keys))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """As the parent's.

        Raises:
            ValueError: steps after :class:`KeepOriginal` turn the image, or move it
                without recording how; or pixels are no finite numbers.
        """
        image = results.get("img", np.zeros(0, np.uint8))
        # of these the parent takes the planes as they are, instead of copying pixels
        if image.dtype == np.uint8 and image.ndim == 3:
            results["img"] = in_planes(image)
        # the parent copies metainfo deeply, and there may be thousands of words
        plain = {k: v for k, v in results.items() if k not in self.meta_keys}
        packed = super().transform(plain)
        sample = packed["data_samples"]
        for key in self.meta_keys:
            if key in results:
                sample.set_field(results[key], key, field_type="metainfo")
        # one such picture would make all weights NaN
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise ValueError(
                f"{results.get('img_path')} has pixels that are no finite numbers: "
                "look at the file, and at the steps of the pipeline."
            )
        # nor has a label map other values, which would be classes, or end a GPU's work
        ours = "seg_table" in results and "gt_seg_map" in results  # of a SegDataset
        labels = results["gt_seg_map"] if ours else np.zeros(0, np.int16)
        words = len(results.get("words", ()))
        if labels.size and not -2 <= labels.min() <= labels.max() < words:
            raise ValueError(
                f"{results.get('img_path')} has labels {labels.min()} to "
                f"{labels.max()}, and {words} words: steps that fill what is not "
                "labelled fill it with -2: dict(type='Pad', pad_val=dict(img=0, "
                "seg=-2), ...)."
            )
        if "original" in results:
            original = torch.from_numpy(results["original"]).permute(2, 0, 1)
            sample.set_data(dict(original=original.contiguous()))
            matrix = results["homography_matrix"]
            sample.set_field(matrix, "homography_matrix", field_type="metainfo")
            # those of ignored boxes are not among the instances
            visible = torch.from_numpy(_visible_parts(results)).float()
            ignored = results.get("gt_ignore_flags", np.zeros(len(visible), bool))
            sample.gt_instances.visible = visible[np.asarray(ignored) == 0]
        return packed


def _visible_parts(results: dict[str, Any]) -> np.ndarray:
    """How much of a box of the original each box of the input is: (n,) in [0, 1].

    ValueError where ``homography_matrix`` turns boxes, or is not all that was done.
    """
    where, matrix = results.get("img_path"), results["homography_matrix"]
    advice = (
        "Put those steps before KeepOriginal, or take KeepOriginal out: the teacher "
        "then crops the input."
    )
    if np.abs(matrix[[0, 1, 2, 2], [1, 0, 0, 1]]).max() > 1e-6:
        raise ValueError(
            f"{where}: steps after KeepOriginal rotate or shear the image, so that "
            f"boxes of the input are no boxes of the original. {advice}"
        )
    # the original's boxes (m, 4) in the input; a mirror swaps their ends
    ends = results["original_boxes"].reshape(-1, 2, 2) * matrix[[0, 1], [0, 1]]
    ends = ends + matrix[:2, 2]
    whole = np.concatenate([ends.min(1), ends.max(1)], 1)
    # each box of the input (n, 4) lies in one of them, of which it is the visible part
    boxes = _corners(results)
    beyond = (whole - boxes[:, None]) * (1, 1, -1, -1)  # (n, m, 4), pixels
    inside = (beyond <= BOX_TOLERANCE).all(2)
    # not all steps record what they do; then the boxes are elsewhere
    if not inside.any(1).all():
        raise ValueError(
            f"{where}: the boxes are not where homography_matrix puts those of the "
            "image that KeepOriginal kept. Either a step after it moves pixels without "
            "recording it (RandomAffine, Mosaic, MixUp, Expand and others), or boxes "
            f"are loaded after it. {advice}"
        )
    # what of it is in the input, whether or not the steps cut boxes at its border
    height, width = results["img"].shape[:2]
    boxes = boxes.clip(0, (width, height) * 2)
    areas, wholes = ((b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, whole))
    parts = areas[:, None] / wholes.clip(min=1e-6) * inside
    return parts.max(1, initial=0).clip(max=1)


def _corners(results: dict[str, Any]) -> np.ndarray:
    """The boxes of a sample in a pipeline, of any of mmdet's kinds: (n, 4) xyxy."""
    boxes = results.get("gt_bboxes", ())
    corners = torch.as_tensor(getattr(boxes, "tensor", boxes), dtype=torch.float32)
    return corners.reshape(-1, 4).numpy().copy()


@TRANSFORMS.register_module()
class KeepOriginal(BaseTransform):
    """Keep the image as it is here: the live teacher crops from it, not from the input.

    For training pipelines, after the boxes are loaded and before what is augmented.
    Jitter makes thumbnails of objects, in other colours and mirrored, which a CLIP
    names less well; as ViLD's, the teacher's embeddings do not depend on it. Where
    images are very large, a ``Resize`` before it bounds the memory.
    :class:`PackInputs` hands the image on. Of the steps that move pixels, mmdet's
    Resize, RandomCrop, RandomFlip and what is made of them may follow, and
    :class:`LargeScaleJitter`.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``original``, (H, W, 3) uint8, and begin ``homography_matrix`` anew.

        Raises:
            ValueError: the image is not (H, W, 3) uint8.
        """
        image = results["img"]
        if image.dtype != np.uint8 or image.ndim != 3:
            raise ValueError(
                "KeepOriginal expects an image (H, W, 3) of uint8, got "
                f"{image.shape} of {image.dtype}: put it before steps that make floats "
                "(PhotoMetricDistortion), and load images without to_float32."
            )
        # later steps may write into the image and its boxes
        results["original"] = in_planes(image)
        results["original_boxes"] = _corners(results)
        # mmdet's steps multiply what they do into it
        results["homography_matrix"] = np.eye(3, dtype=np.float32)
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@TRANSFORMS.register_module()
class HSVJitter(YOLOXHSVRandomAug):
    """mmdet's ``YOLOXHSVRandomAug``: the same pixels to the bit, in half of its time.

    Saturation and value are added by one saturating operator of OpenCV; with the hue,
    which goes round, all three are looked up in a table. An image that is not changed
    stays as it is, where mmdet's rounds it to HSV and back. Arguments are mmdet's.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change ``img``, (H, W, 3) uint8 BGR; a new array."""
        hue, saturation, value = map(int, self._get_hsv_gains())
        if not (hue or saturation or value):
            return results
        pixels = cv2.cvtColor(results["img"], cv2.COLOR_BGR2HSV)
        if hue:
            table = np.arange(256)[:, None] + (hue, saturation, value)
            table[:, 0] %= 180
            pixels = cv2.LUT(pixels, table.clip(0, 255).astype(np.uint8)[None])
        else:
            gains = (0, saturation, value, 0)  # a scalar, which its types leave out
            cv2.add(pixels, gains, dst=pixels)  # type: ignore[call-overload]
        results["img"] = cv2.cvtColor(pixels, cv2.COLOR_HSV2BGR, dst=pixels)
        return results


@TRANSFORMS.register_module()
class LargeScaleJitter(BaseTransform):
    """Resize by a random factor and cut a random square: ViLD's and Detic's jitter.

    What mmdet's ``RandomResize`` (``keep_ratio``), ``RandomCrop`` and
    ``FilterAnnotations`` draw and keep, but an enlarged image is cut before it is
    resized, so that no pixel is computed that is thrown away. The cut is at whole
    pixels of the image; boxes and ``homography_matrix`` follow it exactly, within half
    such a pixel of what mmdet's steps give.

    Args:
        size: side of the square in pixels. A factor of 1 fits the longer side to it.
        ratio_range: the least and the largest factor.
        min_box: boxes stay whose visible part is wider and higher, in pixels.
        colours: a step for pixels alone, done before or after the resize, where there
            are fewer of them.

    Raises:
        ValueError: sizes or factors that are not positive.
    """

    def __init__(
        self,
        size: int,
        ratio_range: tuple[float, float] = (0.1, 2.0),
        min_box: float = 0.0,
        colours: dict[str, Any] | None = None,
    ) -> None:
        if size < 1 or not 0 < ratio_range[0] <= ratio_range[1] or min_box < 0:
            raise ValueError(
                "expected a size of 1 or more, positive factors in order and min_box "
                f"of 0 or more, got {size}, {ratio_range}, {min_box}"
            )
        self.size, self.ratio_range, self.min_box = size, ratio_range, min_box
        self.colours = None if colours is None else TRANSFORMS.build(colours)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change ``img``, (H, W, 3), the boxes and the masks.

        Raises:
            ValueError: the sample has a label map, which is not cut.
        """
        if "gt_seg_map" in results:
            raise ValueError(
                "LargeScaleJitter cuts boxes and masks only: for label maps use "
                "RandomResize and RandomCrop."
            )
        image = results["img"]
        sizes = np.array(image.shape[1::-1])
        # the size of the whole, and the square in it
        low, high = self.ratio_range
        side = int(self.size * (np.random.random_sample() * (high - low) + low))
        whole = np.array(rescale_size(tuple(sizes), (side, side)))
        new = whole.clip(max=self.size)
        first = np.array([np.random.randint(n + 1) for n in (whole - new)[::-1]])[::-1]
        # the same in pixels of the image
        begin = np.round(first * sizes / whole).astype(int)
        end = np.round((first + new) * sizes / whole).astype(int)
        begin = np.minimum(begin, end - 1)
        scale = new / (end - begin)
        # colours where there are fewer pixels
        results["img"] = image[begin[1] : end[1], begin[0] : end[0]]
        enlarged = new.prod() > (end - begin).prod()
        if self.colours and enlarged:
            results = self.colours(results)
        results["img"] = imresize(results["img"], tuple(map(int, new)))
        if self.colours and not enlarged:
            results = self.colours(results)
        results["img_shape"] = results["img"].shape[:2]
        results["scale_factor"] = tuple(map(float, scale))
        # as mmdet's steps, into what was done before
        matrix = np.diag([*scale, 1.0])
        matrix[:2, 2] = -begin * scale
        before = results.get("homography_matrix", np.eye(3))
        results["homography_matrix"] = (matrix @ before).astype(np.float32)
        keep = self._cut_boxes(results, begin, scale)
        if "gt_masks" in results:
            cut = results["gt_masks"][keep].crop(np.concatenate([begin, end]))
            results["gt_masks"] = cut.resize(results["img_shape"])
        return results

    def _cut_boxes(
        self, results: dict[str, Any], begin: np.ndarray, scale: np.ndarray
    ) -> Any:
        """Move the boxes, cut them at the border, and leave out what is too small.

        Returns:
            What indexes the objects that stay.
        """
        if "gt_bboxes" not in results:
            return slice(None)
        boxes = (_corners(results).reshape(-1, 2, 2) - begin) * scale
        boxes = boxes.clip(0, results["img_shape"][::-1]).astype(np.float32)
        keep = (boxes[:, 1] - boxes[:, 0] > self.min_box).all(1)
        # of the kind that LoadAnnotations made
        kept = torch.from_numpy(boxes[keep].reshape(-1, 4))
        results["gt_bboxes"] = type(results["gt_bboxes"])(kept)
        for key in ("gt_bboxes_labels", "gt_ignore_flags"):
            if key in results:
                results[key] = results[key][keep]
        return keep.nonzero()[0]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(size={self.size}, ratio_range={self.ratio_range}, "
            f"min_box={self.min_box}, colours={self.colours})"
        )


def in_planes(image: np.ndarray) -> np.ndarray:
    """A copy of an image (H, W, C) uint8, as a view of its planes (C, H, W).

    Steps see the same pixels, and packing finds the planes made. OpenCV splits pixels
    in a third of the time of a transposed copy.
    """
    # OpenCV would copy a mirrored view, which is what mm's flips give
    mirrored = image.strides[1] < 0
    image = image[:, ::-1] if mirrored else image
    planes = np.empty((image.shape[2], *image.shape[:2]), np.uint8)
    cv2.split(image, [*planes])
    if mirrored:
        for plane in planes:
            cv2.flip(plane, 1, dst=plane)
    return planes.transpose(1, 2, 0)


@TRANSFORMS.register_module()
class LoadWords(BaseTransform):
    """Give samples of any data set their vocabulary.

    For data sets other than :class:`OVCocoDataset`, whose labels index
    ``words`` (mmdet's XML data sets: the words are ``metainfo.classes``).

    Args:
        words: names in label order; a tuple of words are synonyms.
    """

    def __init__(self, words: Sequence[str | Sequence[str]]) -> None:
        if isinstance(words, str) or not words:
            raise ValueError(f"expected a list of words, got {words!r}")
        self.words = as_vocabulary(words).words

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``words``.

        Raises:
            ValueError: a label has no word.
        """
        # else the loss would fail far from here, on a device without a message
        labels = [i["bbox_label"] for i in results.get("instances", ())]
        if any(label >= len(self.words) for label in labels):
            raise ValueError(
                f"{results.get('img_path')} has label {max(labels)}, but "
                f"LoadWords got {len(self.words)} words: give it the "
                "data set's metainfo.classes."
            )
        results["words"] = self.words
        return results


def clean_caption(annotation: Mapping[str, Any]) -> str:
    """A caption in one line: some of COCO's have line breaks."""
    return " ".join(annotation["caption"].split())


@TRANSFORMS.register_module()
class LoadCaptions(BaseTransform):
    """Give each sample one of its image's captions, or several, others each time.

    Args:
        ann_file: captions in COCO's format, for the images of the data set; None for
            those of :class:`CaptionDataset`.
        number: captions of a sample. An image with fewer has some of them twice.
    """

    def __init__(self, ann_file: str | None = None, number: int = 1) -> None:
        if number < 1:
            raise ValueError(f"number of captions is at least 1, got {number}")
        self.ann_file = ann_file
        self.number = number
        self.captions: dict[Any, list[str]] = {}
        for annotation in load(ann_file)["annotations"] if ann_file else ():
            sentences = self.captions.setdefault(annotation["image_id"], [])
            sentences.append(clean_caption(annotation))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``caption``, a string; a tuple of several.

        Raises:
            ValueError: the image has none.
        """
        # those of the file, or those that the data set gave the sample
        captions = results.get("captions")
        if self.ann_file is not None:
            captions = self.captions.get(results["img_id"])
        if not captions:
            raise ValueError(
                f"image {results['img_id']} ({results.get('img_path')}) has no caption "
                f"in {self.ann_file or 'its data set'}: give LoadCaptions the captions "
                "of this data set, or use CaptionDataset."
            )
        if self.number == 1:
            results["caption"] = captions[np.random.randint(len(captions))]
            return results
        # all of them before any comes again
        order = [i % len(captions) for i in range(self.number)]
        shuffled = np.random.permutation(len(captions))
        results["caption"] = tuple(captions[shuffled[i]] for i in order)
        return results
