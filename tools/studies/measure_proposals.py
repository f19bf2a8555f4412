"""How many objects the proposals of a two-stage student cover.

    python tools/studies/measure_proposals.py CONFIG CHECKPOINT

On the config's test data: the share of objects of each group that some proposal
overlaps by at least half (IoU 0.5), for the best 10, 100 and 300 of an image.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torchvision.ops import box_iou
from tqdm import tqdm

from kdeov_mm.checkpoints import load_model

NUMBERS = (10, 100, 300)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("checkpoint")
    args = parser.parse_args(argv)
    cfg = Config.fromfile(args.config, lazy_import=False)
    if "rpn_head" not in cfg.model:
        parser.error(f"{args.config} has no rpn_head, and no proposals")
    for row in recalls(cfg, load_model(cfg, args.checkpoint).eval()):
        print(row)
    return 0


@torch.no_grad()
def recalls(cfg: Config, model: Any) -> list[str]:
    """A line for each group of classes."""
    loader = Runner.build_dataloader(cfg.test_dataloader)
    dataset = loader.dataset
    names, groups = dataset.metainfo["classes"], dataset.vocabulary.groups
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    objects = {info["img_id"]: info["instances"] for info in infos}
    # objects and, by number of proposals, those that are covered, by class
    total: Counter[str] = Counter()
    covered: dict[int, Counter[str]] = {number: Counter() for number in NUMBERS}
    for batch in tqdm(loader, "proposals"):
        data = model.data_preprocessor(batch, False)
        regions = model.rate_regions(data["inputs"], data["data_samples"])
        for i, sample in enumerate(data["data_samples"]):
            order = regions.sharpness[i].argsort(descending=True)
            its = [o for o in objects[sample.img_id] if not o["ignore_flag"]]
            # objects in pixels of the image, proposals in those of the input
            boxes = regions.boxes.new_tensor([o["bbox"] for o in its]).reshape(-1, 4)
            scale = boxes.new_tensor(sample.scale_factor).repeat(2)
            overlap = box_iou(boxes * scale, regions.boxes[i][order])
            labels = [names[o["bbox_label"]] for o in its]
            total.update(labels)
            for number in NUMBERS:
                found = (overlap[:, :number] >= 0.5).any(1)
                covered[number].update(n for n, f in zip(labels, found.tolist()) if f)
    lines = []
    for group, members in dict(all=names, **groups).items():
        count = sum(total[name] for name in members)
        shares = [sum(covered[n][name] for name in members) for n in NUMBERS]
        cells = [f"{s / max(count, 1):.3f} of {n}" for s, n in zip(shares, NUMBERS)]
        lines.append(f"{group} ({count} objects): {', '.join(cells)}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
