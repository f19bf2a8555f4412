"""What may be wrong with a training config: likely causes and fixes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Advice(NamedTuple):
    """The likely cause of a finding, and what to do."""

    cause: str
    fix: str


# name of a finding -> advice; configs accept findings by these names
ADVICE = {
    "empty vocabulary": Advice(
        "an empty list, no LoadWords, or no 'text' in meta_keys of PackDetInputs.",
        "name the classes (OVCocoDataset, LoadWords), and add 'text' to meta_keys.",
    ),
    "word twice": Advice("lists joined that overlap.", "give each class its own name."),
    "boxes without words": Advice(
        "LoadWords names fewer classes than the data set has.",
        "give LoadWords the data set's metainfo.classes.",
    ),
    "class order": Advice(
        "classes in another order than the labels (CocoDataset: the file's order).",
        "use OVCocoDataset, which matches by name, or list metainfo.classes and the "
        "words of LoadWords in the order of the labels.",
    ),
    "novel boxes": Advice(
        "the annotation file with all classes instead of the base classes' one.",
        "train on the base classes' file, else held-out classes are not held out.",
    ),
    "novel words": Advice(
        "the vocabulary of the test data in the training data.",
        "name the base classes only: a word without boxes is learnt as absent.",
    ),
    "objects lost": Advice(
        "strict crops or filters, unknown classes, mask transforms without masks.",
        "remove the pipeline's steps one by one; compare class names with the file's.",
    ),
    "normalised twice": Advice(
        "a Normalize step in the pipeline.",
        "remove Normalize; set mean and std of model.data_preprocessor.",
    ),
    "wrong statistics": Advice(
        "mean and std for pixels in [0, 1].", "multiply mean and std by 255."
    ),
    "another teacher": Advice(
        "one of the two was changed.",
        "give both the same `model` and `pretrained`: only then vectors compare.",
    ),
    "cache of another teacher": Advice(
        "the CLIP in the config was changed after the store was made.",
        "name the CLIP of the store in model.teacher and model.text_encoder, or make a "
        "store of this one: python tools/cache_embeddings.py CONFIG --store FOLDER.",
    ),
    "cache": Advice(
        "a store of another data set, pipeline or heads, or a config without its hook.",
        "python tools/cache_embeddings.py CONFIG --store FOLDER; in the config, "
        "default_hooks=dict(cache=dict(type='EmbeddingCacheHook')).",
    ),
    "frozen student": Advice(
        "frozen_stages, requires_grad=False, or a learning rate of 0 (lr_mult).",
        "train it, or load trained weights (load_from, init_cfg).",
    ),
    "flat scores": Advice(
        "words that the CLIP does not distinguish, or a temperature of 0.",
        "look at the names; check the CLIP's weights.",
    ),
    "no prior": Advice(
        "the head's bias was not initialised to the log prior.",
        "set head_module.prior_size and prior_words, call init_weights.",
    ),
    "loss not finite": Advice(
        "overflow in half precision, or bad weights or inputs.",
        "train in full precision; look at that module.",
    ),
    "zero loss": Advice(
        "its loss_weight is 0, or there is nothing to learn from.",
        "set its loss_weight; look at objects and positives above.",
    ),
    "no positives": Advice(
        "no boxes, or boxes outside the image.", "look at the boxes after the pipeline."
    ),
    "no gradient": Advice(
        "its losses are switched off, or do not depend on it.",
        "look at the loss terms above.",
    ),
    "data set": Advice(
        "a path, a class name or an argument of the data set.",
        "what the message says; tools/make_shapes.py writes data/shapes.",
    ),
    **dict.fromkeys(
        ("pipeline", "model", "teacher", "forward", "training step"),
        Advice("what the message says.", "the observations above may tell more."),
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
