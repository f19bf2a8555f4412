"""All checks of a training config, in their order."""

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from . import data as data_checks
from . import model as model_checks
from .data import ExaminedData
from .finding import Checks, Stop, stage

BATCH_SIZE = 8  # at most; fewer where the data set is smaller


def examine(cfg: Config, num_batches: int = 3) -> Checks:
    """Build what a detector's config describes, and train a few batches of it.

    Args:
        cfg: a training config with ``train_dataloader`` and a head of boxes.
        num_batches: batches to look at.

    Yields:
        Observations, as lines to print, and :class:`Finding`.
    """
    try:
        with stage("data set"):
            init_default_scope(cfg.get("default_scope", "mmdet"))
        yield from _all_checks(cfg, num_batches)
    except Stop as stop:
        # e.g. without data there are no samples, and no batches
        yield stop.finding
        yield "The rest was not looked at."


def _all_checks(cfg: Config, num_batches: int) -> Checks:
    # validation data that is also the test data is examined once
    loaders = {n: cfg.get(f"{n}_dataloader") for n in ("train", "test", "val")}
    configs = {name: loader.dataset for name, loader in loaders.items() if loader}
    if configs.get("val") == configs.get("test"):
        configs.pop("val", None)

    # words first: with some mistakes in them no data set can be built
    yield from data_checks.check_configured_words(cfg, configs)
    examined = {}
    for name, dataset_cfg in configs.items():
        with stage("data set"):
            dataset = DATASETS.build(dataset_cfg)
        with stage("pipeline"):
            count = min(len(dataset), num_batches * BATCH_SIZE)
            samples = [dataset[i] for i in range(count)]
        examined[name] = ExaminedData(name, dataset, samples)

    # data: labels, pixels, held-out classes, objects
    for data in examined.values():
        with stage("data set"):
            yield from data_checks.check_files(data)
            yield from data_checks.check_labels(data)
        yield from data_checks.check_pixels(cfg, data)
    train = examined["train"]
    if "test" in examined:
        yield from data_checks.check_held_out(train, examined["test"])
    with stage("pipeline"):
        yield from data_checks.check_objects(train)

    # model: teacher, what learns, scores and losses of the first steps
    model = model_checks.build_model(cfg)
    with stage("teacher"):
        yield from model_checks.check_teacher(cfg, model, train.dataset)
    yield from model_checks.check_frozen(cfg, model)
    size = -(-len(train.samples) // num_batches)
    batches = [train.samples[i : i + size] for i in range(0, len(train.samples), size)]
    with stage("forward"):
        yield from model_checks.check_scores(model, batches[0])
    with stage("training step"):
        yield from model_checks.check_steps(model, batches)
