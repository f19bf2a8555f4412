"""Time, memory and exactness of retrieval recall on a large made-up gallery.

    python tools/studies/time_retrieval.py            # 100,000 images, 500,000 captions

Random unit vectors; half of the captions lie near their image. A sample of images and
captions is ranked again, each against the whole gallery, in double precision.
"""

import argparse
import resource
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdeov_mm.evaluation.image_text import BLOCK, TIE, retrieval_ranks


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--captions", type=int, default=500_000)
    parser.add_argument("--dims", type=int, default=512)
    parser.add_argument("--sample", type=int, default=100, help="ranked again")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    images, captions, owner = gallery(args.images, args.captions, args.dims)
    start = time.perf_counter()
    found = retrieval_ranks(images, captions, owner, BLOCK)
    took = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for kind, ranks in zip(("image to text", "text to image"), found):
        recalls = [f"{(ranks < k).double().mean().item():.4f}" for k in (1, 5, 10)]
        print(f"{kind}: recall at 1, 5, 10: {', '.join(recalls)}")
    print(f"{took:.0f} s, peak memory of the process {peak:.2f} GiB")
    wrong, precise = 0, (images.double(), captions.double())
    for i in torch.randint(len(images), (args.sample,)).tolist():
        score = precise[1] @ precise[0][i]
        mine = owner == i
        rank = (score[~mine] >= score[mine].max() - TIE).sum()
        wrong += int(found[0][i] != rank)
    for i in torch.randint(len(captions), (args.sample,)).tolist():
        score = precise[0] @ precise[1][i]
        others = torch.arange(len(images)) != owner[i]
        rank = (score[others] >= score[owner[i]] - TIE).sum()
        wrong += int(found[1][i] != rank)
    print(f"{args.sample} images and {args.sample} captions ranked again, one by one:")
    print(f"{wrong} of {2 * args.sample} ranks differ")


def gallery(count: int, number: int, dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors (N, D) and (M, D), and the image of each caption (M,)."""
    images = F.normalize(torch.randn(count, dims), dim=1)
    owner = torch.arange(number) % count
    captions = F.normalize(torch.randn(number, dims), dim=1)
    captions[::2] += 0.2 * images[owner[::2]]
    return images, F.normalize(captions, dim=1), owner


if __name__ == "__main__":
    main()
