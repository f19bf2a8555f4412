"""What may be wrong with a training config: likely causes and fixes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Advice(NamedTuple):
    """The likely cause of a finding, and what to do."""

    cause: str
    fix: str


# name of a finding -> advice; configs accept findings by these names
ADVICE = {
    "empty vocabulary": Advice(
        "an empty list, the wrong variable, no LoadWords, or 'text' is not among "
        "meta_keys of PackDetInputs.",
        "name the classes in the order of the labels (OVCocoDataset, LoadWords), and "
        "add 'text' to meta_keys.",
    ),
    "word twice": Advice("lists joined that overlap.", "give each class its own name."),
    "boxes without words": Advice(
        "LoadWords names fewer classes than the data set has.",
        "give LoadWords the data set's metainfo.classes.",
    ),
    "class order": Advice(
        "the classes are listed in another order than the data set numbers them "
        "(mmdet's CocoDataset numbers in the file's order).",
        "use OVCocoDataset, which matches by name, or list the classes of metainfo "
        "and LoadWords in the order of the labels.",
    ),
    "novel boxes": Advice(
        "the annotation file with all classes instead of the base classes' one.",
        "train on the base classes' file; metrics of held-out classes mean nothing "
        "otherwise.",
    ),
    "novel words": Advice(
        "the vocabulary of the test data in the training data.",
        "give the training data the base classes only: a word without boxes is "
        "learnt as absent, even where its objects are.",
    ),
    "objects lost": Advice(
        "crops or filters that are too strict, classes that the file does not have, "
        "or mask transforms on data without masks.",
        "remove the pipeline's steps one by one; compare the class names with the "
        "file's.",
    ),
    "normalised twice": Advice(
        "a Normalize step in the pipeline.",
        "remove Normalize from the pipeline; set mean and std of "
        "model.data_preprocessor.",
    ),
    "wrong statistics": Advice(
        "mean and std for pixels in [0, 1].", "multiply mean and std by 255."
    ),
    "another teacher": Advice(
        "one of the two was changed.",
        "give both the same `model` and `pretrained`: vectors of two CLIPs are not "
        "comparable.",
    ),
    "cache of another teacher": Advice(
        "the CLIP in the config was changed after the store was made.",
        "give model.teacher and model.text_encoder the CLIP of the store, or make a "
        "store of this one: python tools/cache_embeddings.py CONFIG --store FOLDER.",
    ),
    "cache": Advice(
        "the store does not fit the data set, the pipeline or the heads, or the config "
        "was written by hand, without its hook.",
        "make the store with this config: python tools/cache_embeddings.py CONFIG "
        "--store FOLDER; set default_hooks=dict(cache=dict(type="
        "'EmbeddingCacheHook')).",
    ),
    "frozen student": Advice(
        "frozen_stages, requires_grad=False, or a learning rate of 0 "
        "(optim_wrapper.paramwise_cfg, lr_mult).",
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
        "its losses are switched off, or it is detached from them.",
        "look at the loss terms above.",
    ),
    "data set": Advice(
        "a path, a class name or an argument of the data set.",
        "what the message says; data/shapes is written by tools/make_shapes.py.",
    ),
    **dict.fromkeys(
        ("pipeline", "model", "teacher", "forward", "training step"),
        Advice(
            "what the message says.",
            "what the message says; the rest of the report may tell more.",
        ),
    ),
}
FAILURES = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Finding(NamedTuple):
    """Something wrong: a name among :data:`ADVICE`, and what was found."""

    name: str
    what: str

    @property
    def advice(self) -> Advice:
        """Cause and fix."""
        return ADVICE[self.name]


# what a check yields: an observation to print, or something wrong
Checks = Iterator[str | Finding]


class Stop(Exception):
    """A finding after which nothing else can be checked."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(what)
        self.finding = Finding(name, what)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Turn a failure into a :class:`Stop` of this name."""
    try:
        yield
    except FAILURES as error:
        raise Stop(name, f"{type(error).__name__}: {error}") from error


def examples(names: list[str]) -> str:
    """The first names in brackets, or nothing."""
    return f" ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" if names else ""
