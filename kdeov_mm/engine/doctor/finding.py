"""What may be wrong with a training config: likely causes and fixes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

# name of a finding -> the likely cause, what to do; configs accept findings by name
ADVICE = {
    "empty vocabulary": (
        "an empty list, no LoadWords, or no 'words' in meta_keys of PackDetInputs.",
        "name the classes (OVCocoDataset, LoadWords), and add 'words' to meta_keys.",
    ),
    "word twice": ("lists joined that overlap.", "give each class its own name."),
    "boxes without words": (
        "LoadWords names fewer classes than the data set has.",
        "give LoadWords the data set's metainfo.classes.",
    ),
    "class order": (
        "classes in another order than the labels (CocoDataset: the file's order).",
        "use OVCocoDataset, or list metainfo.classes and LoadWords in that order.",
    ),
    "novel boxes": (
        "the annotation file with all classes instead of the base classes' one.",
        "train on the base classes' file, else held-out classes are not held out.",
    ),
    "novel words": (
        "the vocabulary of the test data in the training data.",
        "name the base classes only: a word without boxes is learnt as absent.",
    ),
    "objects lost": (
        "strict crops or filters, unknown classes, mask transforms without masks.",
        "remove the pipeline's steps one by one; compare class names with the file's.",
    ),
    "normalised twice": (
        "a Normalize step in the pipeline.",
        "remove Normalize; set mean and std of model.data_preprocessor.",
    ),
    "wrong statistics": ("mean and std for [0, 1].", "multiply mean and std by 255."),
    "another teacher": (
        "one of the two was changed.",
        "give both the same `model` and `pretrained`: only then vectors compare.",
    ),
    "cache of another teacher": (
        "the CLIP in the config was changed after the store was made.",
        "name the CLIP of the store, or run tools/cache_embeddings.py with this one.",
    ),
    "cache": (
        "a store of another data set, pipeline or heads, or a config without its hook.",
        "run tools/cache_embeddings.py; default_hooks.cache.type='EmbeddingCacheHook'.",
    ),
    "frozen student": (
        "frozen_stages, requires_grad=False, or a learning rate of 0 (lr_mult).",
        "train it, or load trained weights (load_from, init_cfg).",
    ),
    "flat scores": (
        "words that the CLIP does not distinguish, or a temperature of 0.",
        "look at the names; check the CLIP's weights.",
    ),
    "no prior": (
        "the head's bias was not initialised to the log prior.",
        "set head_module.prior_size and prior_words, call init_weights.",
    ),
    "loss not finite": (
        "overflow in half precision, or bad weights or inputs.",
        "train in full precision; look at that module.",
    ),
    "zero loss": (
        "its loss_weight is 0, or there is nothing to learn from.",
        "set its loss_weight; look at objects and positives above.",
    ),
    "no positives": (
        "no boxes in the images.",
        "look at the boxes after the pipeline.",
    ),
    "no gradient": ("no loss depends on it.", "look at the loss terms above."),
    "data set": (
        "a path, a class name or an argument of the data set.",
        "what the message says; tools/make_shapes.py writes data/shapes.",
    ),
    **dict.fromkeys(
        ("pipeline", "model", "teacher", "forward", "training step"),
        ("what the message says.", "the observations above may tell more."),
    ),
}


class Finding(NamedTuple):
    """Something wrong: a name among :data:`ADVICE`, and what was found."""

    name: str
    what: str


# what a check yields: an observation to print, or something wrong
Checks = Iterator[str | Finding]


class Stop(Exception):
    """A finding after which nothing else can be checked."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(what)
        self.finding = Finding(name, what)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Turn any failure, e.g. of a third party's module, into a finding."""
    try:
        yield
    except Stop:
        raise
    except Exception as error:
        raise Stop(name, f"{type(error).__name__}: {error}") from error


def examples(names: Iterable[str]) -> str:
    """The first three different names in brackets, or nothing."""
    listed = list(dict.fromkeys(names))
    more = ", ..." if len(listed) > 3 else ""
    return f" ({', '.join(listed[:3])}{more})" if listed else ""
