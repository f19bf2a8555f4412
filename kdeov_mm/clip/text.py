"""Class names to unit vectors in the teacher's space, cached on disk."""

import copy
import hashlib
import json
import os
from collections import ChainMap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.logging import print_log
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..vocabulary import Vocabulary, clean_name
from .source import CLIPSource

PACK = 512  # tokens that are read together
DEFAULT_TEMPLATES = ("{}", "a {}", "a photo of a {}", "a picture of a {}")


@MODELS.register_module()
class CLIPTextEncoder:
    """Frozen CLIP text tower behind a cache.

    A word's vector is the mean over templates of the normalised text
    embeddings, normalised again (prompt ensembling of CLIP, Radford et al.,
    2021, section 3.1.4). It is no ``nn.Module`` on purpose: nothing of it is
    trained, counted or saved in a checkpoint. The tower is loaded only when a
    word is missing from the cache.

    Args:
        model: see :class:`CLIPSource`.
        pretrained: see :class:`CLIPSource`.
        templates: prompts with one ``{}`` each.
        cache_dir: folder of the cache; ``$KDEOV_CACHE``, else
            ``~/.cache/kdeov_mm``.
        vocabulary: file of :meth:`Vocabulary.save`, whose vectors are taken as they
            are: words that it has need neither cache nor tower.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        cache_dir: str | None = None,
        vocabulary: str | None = None,
    ) -> None:
        if not templates or any(t.count("{}") != 1 for t in templates):
            raise ValueError(
                f"every template needs exactly one {{}}, got {list(templates)}"
            )
        self.source = CLIPSource(model, pretrained)
        self.templates = tuple(templates)
        self.cache_dir = Path(
            cache_dir
            or os.environ.get("KDEOV_CACHE")
            or Path.home() / ".cache/kdeov_mm"
        ).expanduser()
        self._tower: Any = None
        self._tokenize: Any = None
        self._given: dict[str, Tensor] = {}
        self._vectors: dict[str, Tensor] = {}
        if vocabulary:
            self.take(Vocabulary.load(vocabulary))

    def take(self, vocabulary: Vocabulary) -> None:
        """From now on use the vectors of a vocabulary that this CLIP made.

        Raises:
            ValueError: another CLIP or other templates did.
        """
        theirs, mine = vocabulary.encoder, self.made_by
        keys = {"model", "pretrained", "templates"}
        if "weights_sha256" in theirs and "weights_sha256" in mine:
            keys = {"config_sha256", "weights_sha256", "templates"}
        if any(theirs.get(key) != mine.get(key) for key in keys):
            raise ValueError(
                f"the vectors of the vocabulary were made by {dict(theirs)}, but this "
                f"model uses {mine}. Vectors of two CLIPs or of other templates do not "
                "compare: set model.text_encoder to the former, or embed the words "
                "anew."
            )
        self._given.update(vocabulary.vectors)

    @property
    def embed_dims(self) -> int:
        """Dimension D of the vectors."""
        return self.source.model_config()["embed_dim"]

    @property
    def is_local(self) -> bool:
        """Whether the weights are at hand without a download."""
        return self.source.is_local

    @property
    def made_by(self) -> dict[str, str]:
        """As :attr:`identity`; the hashes only where the weights are at hand."""
        if self.is_local:
            made_by = self.identity
        else:
            templates = json.dumps(self.templates)
            made_by = {"model": self.source.model, "templates": templates}
        if self.source.pretrained:
            made_by["pretrained"] = str(self.source.pretrained)
        return made_by

    @property
    def identity(self) -> dict[str, str]:
        """What the vectors depend on, as strings."""
        return {
            "model": self.source.model,
            **self.source.identity,
            "templates": json.dumps(self.templates),
        }

    @property
    def cache_file(self) -> Path:
        """The cache of this CLIP and these templates."""
        key = hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()
        return self.cache_dir / f"text-{key[:16]}.safetensors"

    def __call__(self, names: Sequence[str]) -> Tensor:
        """Embed words.

        Args:
            names: K words; cleaned by :func:`clean_name`.

        Returns:
            (K, D) float32 unit vectors on the CPU, in the order of ``names``.

        Raises:
            ValueError: no names, or an empty one.
        """
        if isinstance(names, str):
            raise ValueError(f"expected a list of words, got the string {names!r}")
        words = [clean_name(name) for name in names]
        if not words or not all(words):
            raise ValueError(
                f"expected at least one word and no empty words, got {list(names)[:10]}"
            )
        others = [w for w in dict.fromkeys(words) if w not in self._given]
        if others and self._given and not self.is_local:
            raise ValueError(
                f"{others[:5]} are not in the vocabulary's file, and the weights of "
                f"CLIP '{self.source.model}' are not at hand to embed them: add them "
                "to the file, or set `pretrained` to a local file of weights."
            )
        if others and not self._vectors and self.cache_file.exists():
            self._vectors = self.load_cache(self.cache_file)
        missing = [w for w in others if w not in self._vectors]
        if missing:
            self._vectors.update(zip(missing, self.encode(missing)))
            self._save_cache()
        known = ChainMap(self._given, self._vectors)
        return torch.stack([known[word] for word in words])

    def encode(self, words: Sequence[str]) -> Tensor:
        """K words as they are -> (K, D) unit vectors, without the cache."""
        embeds = [
            self.embed_prompts([template.format(word) for word in words])
            for template in self.templates
        ]
        # (T, K, D) -> (K, D)
        return F.normalize(torch.stack(embeds).mean(0), dim=-1)

    def num_parameters(self) -> int:
        """Parameters of the text tower, which is loaded for it."""
        return sum(p.numel() for p in self._load().parameters())

    def _load(self) -> Any:
        if self._tower is None:
            print_log(
                f"Loading the text tower of CLIP '{self.source.model}'", "current"
            )
            self._tower = self.source.load()
            del self._tower.visual  # 60 % of a ViT-B/32
            self._tokenize = self.source.tokenizer()
        return self._tower

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)  # the student's must not round the cache
    @torch.autocast("cuda", enabled=False)
    def embed_prompts(
        self,
        prompts: Sequence[str] | Tensor,
        device: torch.device | str = "cpu",
        chunk: int = 256,
    ) -> Tensor:
        """Embed whole sentences, as they are, without the cache.

        Args:
            prompts: N sentences, or their tokens (N, context).
            device: where the tower computes.
            chunk: sentences that pass the tower at once.

        Returns:
            (N, D) float32 unit vectors on ``device``.
        """
        tower = self._load().to(device)
        if isinstance(prompts, Tensor):
            tokens = prompts
        elif isinstance(prompts, str) or not all(isinstance(p, str) for p in prompts):
            raise ValueError(f"expected a list of sentences, got {prompts!r:.200}")
        else:
            tokens = self._tokenize(list(prompts))
        if tokens.ndim != 2 or tokens.shape[1] != tower.context_length:
            raise ValueError(
                f"expected tokens (N, {tower.context_length}) of CLIP "
                f"'{self.source.model}', got {tuple(tokens.shape)}"
            )
        if not _looks_back(tower):
            parts = [
                tower.encode_text(part.to(device), normalize=True)
                for part in tokens.split(chunk)
            ]
            return torch.cat(parts)
        parts = []
        for reader, text, ends in _packed(tower, tokens.cpu()):
            said = reader.to(device).encode_text(text.to(device), normalize=True)
            parts.append(said[0, ends.to(device)])
        return torch.cat(parts)

    def load_cache(self, path: Path) -> dict[str, Tensor]:
        """Read a cache file made by this CLIP with these templates.

        Raises:
            ValueError: the file was made by another CLIP or other templates.
        """
        with safe_open(str(path), framework="pt") as file:
            made_by = dict(file.metadata() or {})
            names = json.loads(made_by.pop("names", "[]"))
            if made_by != self.identity:
                raise ValueError(
                    f"The text embeddings in {path} were made by {made_by}, "
                    f"but this model uses {self.identity}. Vectors of two "
                    "CLIPs do not compare: delete the file, or configure the "
                    "CLIP that made it."
                )
            vectors = file.get_tensor("vectors")
        return dict(zip(names, vectors))

    def _save_cache(self) -> None:
        """Write all known vectors; a reader sees the old file or the new."""
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        target = self.cache_file
        scratch = target.with_suffix(f".{os.getpid()}.tmp")
        save_file(
            {"vectors": torch.stack(list(self._vectors.values()))},
            str(scratch),
            metadata={"names": json.dumps(list(self._vectors)), **self.identity},
        )
        scratch.replace(target)


def _looks_back(tower: Any) -> bool:
    """Whether a token's embedding depends on it and those before it alone."""
    return (
        isinstance(tower, open_clip.CLIP)
        and tower.attn_mask is not None
        and getattr(tower, "text_pool_type", None) == "argmax"
    )


def _packed(tower: Any, tokens: Tensor) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Sentences one after the other, as one, without what is computed for nothing.

    The attention of CLIP's text tower looks back only. So what comes after a sentence's
    end, most of its 77 tokens, changes nothing of its embedding; and the beginning that
    all sentences share ("a photo of a") needs to be read once. An attention mask and
    positions make a tower read them so.

    Args:
        tower: a CLIP.
        tokens: (N, context).

    Yields:
        A tower with the same weights; tokens (1, T) of some sentences, in order; which
        of them end one, (n,).
    """
    lengths = (tokens.argmax(1) + 1).tolist()  # the end has the highest number
    same = (tokens == tokens[:1]).all(0).long().cumprod(0)
    shared = min(int(same.sum()), min(lengths) - 1)
    first = 0
    while first < len(tokens):
        last, total = first, shared
        while last < len(tokens) and (last == first or total < PACK):
            total += lengths[last] - shared
            last += 1
        own = torch.tensor(lengths[first:last]) - shared
        ends = shared + own.cumsum(0) - 1
        # (T,): the sentence of each token, -1 of those that are shared; its position
        member = torch.arange(len(own)).repeat_interleave(own)
        member = torch.cat([torch.full((shared,), -1), member])
        order = torch.arange(total)
        starts = torch.cat([ends - own + 1, torch.zeros(1, dtype=torch.long)])
        position = order - starts[member] + shared * (member >= 0)
        text = tokens[first + member.clamp(min=0), position]
        seen = (member == -1) | (member == member[:, None])
        hidden = ~(seen & (order <= order[:, None]))
        reader = copy.copy(tower)
        reader.text_pool_type = "none"  # the embeddings of all tokens
        weights = dict(tower._parameters)
        weights["positional_embedding"] = nn.Parameter(
            tower.positional_embedding[position.to(tower.positional_embedding.device)]
        )
        mask = torch.zeros(total, total).masked_fill(hidden, -torch.inf)
        reader._parameters = weights
        reader._buffers = {**tower._buffers, "attn_mask": mask.to(tower.attn_mask)}
        yield reader, text[None], ends
        first = last
