"""Which CLIP: from a name, a file or a folder to an open_clip model."""

import hashlib
import json
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from mmengine.logging import print_log
from torch import nn

from ..border import taken_apart

TEACHERS = {  # the tiny CLIPs of the built-in worlds of 360, 1203 and 501 classes
    "shapes": Path(__file__).parent / "shapes_teacher",
    "shapes-1203": Path(__file__).parent / "shapes_1203_teacher",
    "shapes-hard": Path(__file__).parent / "shapes_hard_teacher",
}
OPENAI = {  # OpenAI's names -> open_clip's, with the activation of OpenAI's weights
    "RN50": "RN50-quickgelu",
    "RN101": "RN101-quickgelu",
    "RN50x4": "RN50x4-quickgelu",
    "RN50x16": "RN50x16-quickgelu",
    "RN50x64": "RN50x64-quickgelu",
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
RANDOM = "random"  # ``pretrained`` of a CLIP that has learnt nothing


@dataclass(frozen=True)
class CLIPSource:
    """One CLIP: its architecture and the file that holds its weights.

    Args:
        model: ``'shapes'``, ``'shapes-1203'`` or ``'shapes-hard'`` (the tiny CLIPs of
            this package), ``'local-dir:FOLDER'`` as open_clip writes them (both bring
            their weights), an open_clip architecture name (``'ViT-B-32'``), or an
            open_clip JSON model config (``'my_clip.json'``).
        pretrained: a local weights file or an open_clip tag (``'openai'``; open_clip
            downloads it); or ``'random'``: random weights, the same each time, to try
            an architecture without a download.
        fetch: open_clip may download a tag; False for what strangers name.
    """

    model: str
    pretrained: str | None = None
    fetch: bool = True

    @classmethod
    def named(cls, name: str, pretrained: str | None = "openai") -> "CLIPSource":
        """The CLIP of OpenAI's names or any other, with OpenAI's weights by default.

        Args:
            name: ``'ViT-B/32'`` and the like, or a ``model`` of the class.
            pretrained: weights of the class; None: random ones. What brings its own
                weights keeps them.

        Raises:
            ValueError: there is no such CLIP.
        """
        if not isinstance(name, str) or not isinstance(pretrained, str | None):
            raise ValueError(
                f"a CLIP and its weights are names, got {name!r:.80} and "
                f"{pretrained!r:.80}"
            )
        source = cls(OPENAI.get(name, name))
        if source.folder is not None:
            return source
        if not name.endswith(".json") and source.model not in open_clip.list_models():
            raise ValueError(
                f"a CLIP is one of OpenAI's {[*OPENAI]}, one of {[*TEACHERS]}, which "
                "need no download, a name of open_clip.list_models(), or "
                f"'local-dir:FOLDER'; got {name!r}"
            )
        weights = RANDOM if pretrained is None else pretrained
        known = Path(weights).is_file() or weights == RANDOM
        if not known and not open_clip.get_pretrained_cfg(source.model, weights):
            raise ValueError(
                f"CLIP '{source.model}': pretrained={weights!r} is neither a file nor "
                "one of the tags "
                f"{open_clip.list_pretrained_tags_by_model(source.model)}"
            )
        return cls(source.model, weights)

    @property
    def folder(self) -> Path | None:
        """The folder with config and weights, where the source is one."""
        if self.model in TEACHERS:
            return TEACHERS[self.model]
        if self.model.startswith("local-dir:"):
            return Path(self.model.removeprefix("local-dir:")).expanduser()
        return None

    @property
    def is_local(self) -> bool:
        """Whether the weights are at hand without a download."""
        at_hand = self.folder is not None or self.is_random
        return at_hand or Path(self.pretrained or "").is_file()

    @property
    def is_random(self) -> bool:
        """Whether its weights are random ones."""
        return self.folder is None and self.pretrained == RANDOM

    def check_towers(self) -> None:
        """Refuse a CLIP of which a hub has the architecture or the tokenizer.

        Raises:
            FileNotFoundError, ValueError: it is one, or is not here; says what.
        """
        named = self.folder is None and not self.model.endswith(".json")
        if named and self.model not in open_clip.list_models():
            raise ValueError(f"'{self.model}' is no CLIP of open_clip.list_models()")
        # towers and tokenizers that it takes from a hub
        config = self.model_config()
        text, vision = (config.get(f"{part}_cfg") or {} for part in ("text", "vision"))
        hub = [text.get(key) for key in ("hf_model_name", "hf_tokenizer_name")]
        hub += [name for name in [str(vision.get("timm_model_name"))] if ":" in name]
        if self.folder is None and "siglip" in self.model.lower():
            hub.append("SigLIP's tokenizer")
        if any(hub):
            raise ValueError(f"CLIP '{self.model}' needs {[*filter(None, hub)]}")

    def _downloaded(self) -> Path | None:
        """The weights of a tag, where an earlier download from a hub has left them."""
        tag = open_clip.get_pretrained_cfg(self.model, self.pretrained or "")
        repository, _, name = tag.get("hf_hub", "").rpartition("/")
        names = (f"{Path(name).stem}.safetensors", name) if name else HUB_FILES
        found = (try_to_load_from_cache(repository, n) for n in names if repository)
        return next((Path(file) for file in found if isinstance(file, str)), None)

    @property
    def architecture(self) -> str:
        """The name open_clip builds the model from."""
        if self.folder is not None:
            return f"local-dir:{self.folder}"
        if not self.model.endswith(".json"):
            return self.model
        # a config file becomes one of open_clip's names
        path = Path(self.model)
        if not path.is_file():
            raise FileNotFoundError(
                f"CLIP model config {path} does not exist. Give a JSON file, "
                "an open_clip name such as 'ViT-B-32', or 'local-dir:FOLDER'."
            )
        open_clip.add_model_config(path)
        return path.stem

    def weights_file(self) -> Path:
        """The local weights file; a tag is downloaded once by open_clip."""
        # a folder brings its weights
        if self.folder is not None:
            files = sorted(self.folder.glob("open_clip_model*.safetensors"))
            files += sorted(self.folder.glob("open_clip_pytorch_model*.bin"))
            if files:
                return files[0]
            name = "open_clip_model.safetensors"
            raise FileNotFoundError(
                f"{self.folder} holds no open_clip weights ({name})"
            )
        # others need a file, or a tag that open_clip knows
        if self.pretrained and Path(self.pretrained).is_file():
            return Path(self.pretrained)
        tag = open_clip.get_pretrained_cfg(self.model, self.pretrained or "")
        if not tag:
            raise FileNotFoundError(
                f"CLIP '{self.model}': pretrained={self.pretrained!r} is neither a "
                "file nor a tag: set `pretrained` to a local file of weights or to one "
                f"of the tags {open_clip.list_pretrained_tags_by_model(self.model)}."
            )
        # with the wrong activation the vectors are wrong, and nothing else tells
        quick = [bool(c.get("quick_gelu")) for c in (tag, self.model_config())]
        if quick[0] != quick[1]:
            raise ValueError(
                f"the weights '{self.pretrained}' were trained with quick_gelu="
                f"{quick[0]}, but '{self.model}' has {quick[1]}: use "
                f"'{self.model}-quickgelu' for OpenAI's weights, the plain name else."
            )
        if found := self._downloaded():
            return found
        if not self.fetch:
            raise FileNotFoundError(
                f"the weights '{self.pretrained}' of CLIP '{self.model}' are not on "
                "this machine, and what a checkpoint names is not fetched: give its "
                "config too (--config, KDEOV.from_config), or fetch them once, "
                f"open_clip.create_model('{self.model}', '{self.pretrained}')."
            )
        return Path(open_clip.download_pretrained(tag))

    def model_config(self) -> dict[str, Any]:
        """The architecture, in open_clip's terms."""
        if self.folder is not None:
            return self._folder_config()["model_cfg"]
        # open_clip answers None for a name that it does not know
        config = open_clip.get_model_config(self.architecture)
        if config is None:
            raise ValueError(
                f"open_clip knows no model '{self.model}'; it knows "
                f"{open_clip.list_models()[:8]}, ... (open_clip.list_models())."
            )
        return config

    def _folder_config(self) -> dict[str, Any]:
        folder = self.folder or Path()
        # open_clip's own file: model_cfg and preprocess_cfg
        path = folder / "open_clip_config.json"
        if not path.is_file():
            raise FileNotFoundError(f"the CLIP's folder has no {path}")
        with taken_apart(f"{path} is no config of open_clip"):
            return dict(json.loads(path.read_text()))

    def weights_hash(self) -> str:
        """SHA-256 of the weights file, hexadecimal; of random ones, of their name."""
        if self.is_random:
            return hashlib.sha256(RANDOM.encode()).hexdigest()
        return file_sha256(self.weights_file())

    @property
    def identity(self) -> dict[str, str]:
        """Hashes of architecture and weights, wherever the files are."""
        # weights first: their message names what is missing
        weights = self.weights_hash()
        config = json.dumps(self.model_config(), sort_keys=True)
        digest = hashlib.sha256(config.encode()).hexdigest()
        return {"config_sha256": digest, "weights_sha256": weights}

    def load(self) -> nn.Module:
        """The whole frozen CLIP in eval mode, float32."""
        # without weights open_clip would only warn, and give random ones
        random = self.is_random
        weights = None if self.folder or random else str(self.weights_file())
        # it is loaded when first needed, maybe in a training step, whose random numbers
        # open_clip's initial weights must not take
        with torch.random.fork_rng(devices=[]):
            if random:
                torch.default_generator.manual_seed(0)
            model = open_clip.create_model(
                self.architecture, pretrained=weights, require_pretrained=not random
            )
        return model.float().eval().requires_grad_(False)

    def tokenizer(self) -> Any:
        """The tokenizer that belongs to the architecture."""
        return open_clip.get_tokenizer(self.architecture)

    def image_statistics(self) -> dict[str, Any]:
        """``mean`` and ``std`` (3 values, RGB in [0, 1]) of the image tower."""
        if self.folder is not None:
            return self._folder_config()["preprocess_cfg"]
        # other sources may say nothing, and most CLIPs take OpenAI's
        known = open_clip.get_pretrained_cfg(self.model, self.pretrained or "")
        if "mean" not in known or "std" not in known:
            print_log(
                f"CLIP '{self.model}' says no mean and std of its images: taking "
                "OpenAI's. Others are read from a folder, local-dir:FOLDER, whose "
                "open_clip_config.json has a preprocess_cfg.",
                "current",
                level=logging.WARNING,
            )
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        return {"mean": known.get("mean", mean), "std": known.get("std", std)}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    path = path.resolve()
    return _sha256(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _sha256(path: Path, mtime_ns: int) -> str:
    # an edited file has another time, so that it is read again
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
