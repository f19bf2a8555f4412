"""YOLO-World's public weights (AILab-CVC, GPL-3) in our detector.

Their ``.pth`` files are read by torch's safe unpickler, as all checkpoints are. Every
weight is used, in our detector or in the text tower, or the file is refused with a
sentence. Of the head, norm and temperature of a level become one BatchNorm:
``exp(s) * BN(W x + b)`` is a BatchNorm of ``W x`` with other numbers.
"""

import copy
import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from mmengine.logging import print_log
from safetensors.torch import save
from torch import Tensor, nn

from . import yolo_world_v2_s as page
from .files import write_whole

PLACES = {
    "backbone.image_model.": "backbone.",
    "neck.": "fusion.",
    "bbox_head.": "bbox_head.",
}
TEXT = "backbone.text_model.model."
HEAD = "bbox_head.head_module."
START = math.log(1 / 0.07)  # of our head's temperature
MAX_LOGIT_SCALE = math.log(100)
# size -> depth, width, channels of the last stage before it
SIZES = dict(
    s=(0.33, 0.5, 1024),
    m=(0.67, 0.75, 768),
    l=(1.0, 1.0, 512),
    x=(1.0, 1.25, 512),
    xl=(1.0, 1.5, 512),
)
GET = (
    "take a pre-trained file, e.g. yolo_world_v2_s_obj365v1_goldg_pretrain-55b943ea.pth"
)
# what they have seen: boxes, and phrases of GoldG (GQA, Flickr30k) and CC3M-lite
PRETRAINING: list[str] = page.pretraining
BAKED = (
    f"re-parameterised, and cannot be asked other words: {GET}, and fold your words "
    "into it (KDEOVDetector.fold). They are baked into its "
)
# parts of a name -> what such a file is, and what to do
OTHER_FORMS = {
    "attn_block.guide_weight": f"{BAKED}neck",
    "attn_block.guide_convs": f"{BAKED}neck, as convolutions",
    "cls_contrasts.0.conv.weight": f"{BAKED}head",
    "seg_preds": "YOLO-World-Seg, with a mask branch, which has no place here; the "
    f"detector it was made of does: {GET}",
    "embeddings": "prompt-tuned: its words are learnt vectors without a text; "
    f"{GET}, and fine-tune it with words (configs/yoloworld/README.md)",
    "adapter.0.weight": "prompt-tuned, with an adapter of the words, which has no "
    f"place here; {GET}",
    "image_prompt_encoder": "YOLO-World-Image, prompted by images, which have no place "
    f"here; {GET}",
}


def state_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights in a checkpoint, or in a state dict alone.

    mmengine writes the moving average in their place; where it is alone, it counts.
    """
    held = content.get("state_dict") or content.get("ema_state_dict") or content
    held = held if isinstance(held, Mapping) else {}
    return {
        str(key).removeprefix("module."): value
        for key, value in held.items()
        if isinstance(value, Tensor) and key != "steps"
    }


def is_yolo_world(state: Mapping[str, Any]) -> bool:
    """Whether these are names of YOLO-World's."""
    return "backbone.image_model.stem.conv.weight" in state


def kind_of(state: Mapping[str, Tensor]) -> str:
    """Version and size of YOLO-World's weights, e.g. ``'v2 s'``.

    Raises:
        ValueError: they are of another form; says of which, and what to do.
    """
    for part, sentence in OTHER_FORMS.items():
        if any(part in key for key in state if not key.startswith(TEXT)):
            raise ValueError(f"the file is of YOLO-World, but {sentence}.")
    if not any(key.endswith("attn_block.guide_fc.weight") for key in state):
        raise ValueError(
            "the file is of YOLO-World, but fine-tuned for a closed set, with a neck "
            f"that takes no words (EfficientCSPLayer): {GET}."
        )
    width = len(state["backbone.image_model.stem.conv.weight"])
    sizes = {round(64 * widen): name for name, (_, widen, _) in SIZES.items()}
    if width not in sizes:
        raise ValueError(
            f"the file is of YOLO-World, but of no known size: its first layer has "
            f"{width} channels, those of S, M, L, X and XL have {[*sizes]}."
        )
    version = 1 if any("text_enhancer" in key for key in state) else 2
    return f"v{version} {sizes[width]}"


def config_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config of weights: :mod:`kdeov_mm.yolo_world_v2_s`, of their size."""
    version, size = kind_of(state).split()
    depth, widen, last = SIZES[size]
    model: dict[str, Any] = copy.deepcopy(page.model)
    backbone, fusion = model["backbone"], model["fusion"]
    head = model["bbox_head"]["head_module"]
    # size; the last stage is as wide as the neck's
    backbone.update(last_stage_out_channels=last)
    for part in (backbone, fusion):
        part.update(deepen_factor=depth, widen_factor=widen)
    channels = [256, 512, last]
    fusion.update(in_channels=channels, out_channels=channels)
    head.update(in_channels=channels, widen_factor=widen)
    # dimensions of the text: 512, and 768 with CLIP ViT-L/14
    dims = len(state[f"{HEAD}cls_preds.0.2.weight"])
    fusion.update(text_dims=dims)
    head.update(embed_dims=dims)
    if dims == 768:
        model["text_encoder"].update(model="ViT-L-14-quickgelu")
    if version == "v1":
        fusion.update(image_pooling=True)
        head.update(projection_norm=None, l2_norm=True, level_scales=True)
    step = dict(type="Resize", scale=(640, 640), keep_ratio=True)
    loader = dict(dataset=dict(pipeline=[step]))
    return dict(model=model, test_dataloader=loader, pretraining=page.pretraining)


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of YOLO-World as :class:`KDEOVDetector` names them.

    Those of the text tower are left out, see :func:`write_text_tower`.

    Raises:
        ValueError: they are of another form, or some have no place.
    """
    version = kind_of(state)[:2]
    # the head's last layers are put together, other names change at their beginning
    ends = (".cls_contrasts.", ".2.weight", ".2.bias")
    moved, unknown = {}, []
    for key, value in state.items():
        place = next((p for p in PLACES if key.startswith(p)), None)
        if "cls_contrasts." in key or (
            key.startswith(f"{HEAD}cls_preds.") and key.endswith(ends)
        ):
            continue
        if place is not None:
            moved[PLACES[place] + key.removeprefix(place)] = value
        elif not key.startswith(TEXT):
            unknown.append(key)
    if unknown:
        raise ValueError(
            f"the file is of YOLO-World {version}, but {len(unknown)} of its weights "
            f"have no place here, e.g. {unknown[:3]}: {GET}."
        )
    return {**moved, **_last_layers(state, version)}


def _last_layers(state: Mapping[str, Tensor], version: str) -> dict[str, Tensor]:
    """The head's last layers: projections, norms, temperatures and biases."""

    def of(name: str) -> list[Tensor]:
        return [state[f"{HEAD}{name.format(i)}"] for i in range(3)]

    made: dict[str, Tensor] = {}
    weights, shifts = of("cls_preds.{}.2.weight"), of("cls_preds.{}.2.bias")
    scales = of("cls_contrasts.{}.logit_scale")
    at = "cls_preds.{}.2.project."
    made["classifier.bias"] = torch.stack(of("cls_contrasts.{}.bias")).flatten()
    for i, (weight, shift) in enumerate(zip(weights, shifts)):
        made[f"{at.format(i)}conv.weight"] = weight
        if version == "v1":
            made[f"{at.format(i)}conv.bias"] = shift
    # version 1: embeddings have unit length, and each level its own temperature
    if version == "v1":
        made["classifier.logit_scale"] = torch.stack(scales).flatten()
        if (made["classifier.logit_scale"] > MAX_LOGIT_SCALE).any():
            raise ValueError(
                "the file is of YOLO-World v1, with temperatures below 0.01, which "
                f"CLIP's head does not have: {GET}."
            )
        return {f"{HEAD}{key}": value for key, value in made.items()}
    # version 2: the projection's shift moves the mean of the norm, the temperature goes
    # into its factor, for embeddings that the head divides by sqrt(D)
    made["classifier.logit_scale"] = torch.tensor(START)
    for i, (shift, scale) in enumerate(zip(shifts, scales)):
        factor = scale.exp() * len(shift) ** 0.5 / math.exp(START)
        norm = {
            name: state[f"{HEAD}cls_contrasts.{i}.norm.{name}"]
            for name in ("weight", "bias", "running_mean", "running_var")
        }
        norm["weight"], norm["bias"] = norm["weight"] * factor, norm["bias"] * factor
        norm["running_mean"] = norm["running_mean"] - shift
        made |= {f"{at.format(i)}bn.{name}": value for name, value in norm.items()}
    return {f"{HEAD}{key}": value for key, value in made.items()}


def read_yolo_world(
    model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Read a detector's weights from a file of YOLO-World.

    A pre-hook, with the module, of ``load_state_dict``; other files stay as they are.

    Raises:
        ValueError: they are of another size, version or form.
    """
    if prefix or not is_yolo_world(state):
        return
    weights, own = renamed(state), model.state_dict()
    parts = tuple(PLACES.values())
    wrong = [k for k, v in weights.items() if k not in own or own[k].shape != v.shape]
    wrong += [
        key
        for key in own
        if key.startswith(parts)
        and key not in weights
        and not key.endswith("num_batches_tracked")
    ]
    if wrong:
        raise ValueError(
            f"the file is YOLO-World {kind_of(state)}, and the config asks for another "
            f"model: {len(wrong)} names or shapes differ, e.g. {wrong[:2]}. Take the "
            "config of that size in configs/yoloworld, or KDEOV.from_checkpoint(FILE), "
            "which reads the size from the file."
        )
    state.clear()
    state.update(weights)


def write_text_tower(state: Mapping[str, Tensor]) -> str | None:
    """Keep the text tower of YOLO-World's weights as a CLIP of open_clip's.

    It lies in the cache, ``$KDEOV_CACHE`` or ``~/.cache/kdeov_mm``, so that words need
    no other download. Its image tower is a tiny one that has learnt nothing.

    Args:
        state: weights of :func:`state_of`.

    Returns:
        ``model`` of :class:`kdeov_mm.clip.CLIPTextEncoder`; None: there is no tower.
    """
    theirs = {
        key.removeprefix(TEXT): value.float()
        for key, value in state.items()
        if key.startswith(TEXT) and not key.endswith("position_ids")
    }
    if not theirs:
        return None
    # the same weights have the same place
    digest = hashlib.sha256()
    for key in sorted(theirs):
        digest.update(theirs[key].contiguous().numpy().tobytes())
    cache = Path(os.environ.get("KDEOV_CACHE") or "~/.cache/kdeov_mm").expanduser()
    folder = cache / f"yolo-world-text-{digest.hexdigest()[:16]}"
    weights, about = folder / "open_clip_model.safetensors", "open_clip_config.json"
    if not weights.is_file():
        tensors = text_tower(theirs)
        config = tower_config(tensors)
        with torch.random.fork_rng(devices=[]):
            whole = open_clip.CLIP(**config)
        whole.load_state_dict({**whole.state_dict(), **tensors})
        folder.mkdir(parents=True, exist_ok=True)
        statistics = dict(
            mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
        )
        content = dict(model_cfg=config, preprocess_cfg=statistics)
        write_whole(folder / about, json.dumps(content).encode())
        write_whole(weights, save(whole.state_dict()))
    return f"local-dir:{folder}"


def text_tower(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text tower of Hugging Face's CLIP as open_clip names it."""
    at = "text_model.embeddings."
    made = {
        "token_embedding.weight": theirs[f"{at}token_embedding.weight"],
        "positional_embedding": theirs[f"{at}position_embedding.weight"],
        "text_projection": theirs["text_projection.weight"].T.contiguous(),
        "ln_final.weight": theirs["text_model.final_layer_norm.weight"],
        "ln_final.bias": theirs["text_model.final_layer_norm.bias"],
    }
    pairs = dict(
        layer_norm1="ln_1",
        layer_norm2="ln_2",
        **{"self_attn.out_proj": "attn.out_proj"},
        **{"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"},
    )
    layers = {k.split(".")[3] for k in theirs if k.startswith("text_model.encoder.")}
    for i in layers:
        old, new = f"text_model.encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            # queries, keys and values in one
            three = [theirs[f"{old}self_attn.{x}_proj.{kind}"] for x in "qkv"]
            made[f"{new}attn.in_proj_{kind}"] = torch.cat(three)
            for a, b in pairs.items():
                made[f"{new}{b}.{kind}"] = theirs[f"{old}{a}.{kind}"]
    return made


def tower_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """open_clip's config of a text tower, beside the least of image towers."""
    length, width = tensors["positional_embedding"].shape
    layers = {key.split(".")[2] for key in tensors if "resblocks" in key}
    return dict(
        embed_dim=tensors["text_projection"].shape[1],
        quick_gelu=True,  # OpenAI's
        vision_cfg=dict(image_size=32, patch_size=32, layers=1, width=64),
        text_cfg=dict(
            context_length=length,
            vocab_size=len(tensors["token_embedding.weight"]),
            width=width,
            heads=max(width // 64, 1),
            layers=len(layers),
        ),
    )


def config_with_words(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """:func:`config_of`, whose words are embedded by the file's own text tower."""
    config = config_of(state)
    tower = write_text_tower(state)
    if tower is not None:
        config["model"]["text_encoder"].update(model=tower, pretrained=None)
    else:
        print_log(
            "the file of YOLO-World holds no text model: words are embedded by "
            "OpenAI's CLIP, which open_clip downloads, or by a vocabulary's vectors "
            "(docs/vocabulary.md).",
            "current",
            level=logging.WARNING,
        )
    return config


def what_is(path: Path, error: Exception) -> str:
    """What a file is that torch cannot read as weights, and what to do."""
    with path.open("rb") as file:
        start = file.read(256)
    if start.lstrip()[:1] == b"<":
        return (
            "it is a web page: of a model hub take the address with /resolve/, the one "
            "with /blob/ is a page"
        )
    if "ultralytics" in str(error):
        return (
            "it is a whole model of ultralytics, which would run code: take the .pth "
            "of YOLO-World's own authors (configs/yoloworld/README.md)"
        )
    if path.suffix == ".onnx" or b"pytorch" in start[:64] or b"onnx" in start[:64]:
        return (
            "it is an ONNX file, a program without trainable weights: take the .pth it "
            "was made of; tools/test.py tests files of tools/export_onnx.py"
        )
    if start.startswith(b"PK"):
        size = path.stat().st_size
        return (
            f"it is a part of a checkpoint ({size:,} bytes), or damaged: download it "
            f"again, and compare the size ({error})"
        )
    return str(error)
