"""Class names to unit vectors in the teacher's space, cached on disk."""

import hashlib
import json
import os
import threading
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.logging import print_log
from torch import Tensor

from ..border import items_of
from ..vectors import read_vectors, untraced, write_vectors
from ..vocabulary import Vocabulary, clean_name
from .packing import is_causal, packed, sentence_layout
from .source import CLIPSource

MAX_SENTENCE = 10_000  # characters; what follows is beyond any CLIP's context
CHUNK = 256  # sentences that pass a tower at once
ROWS = 96  # tokens of words that pass it at once, at least
DEFAULT_TEMPLATES = ("{}", "a {}", "a photo of a {}", "a picture of a {}")


def sentences_of(texts: Any) -> list[str]:
    """Sentences that can be tokenized.

    Raises:
        ValueError: no list of strings, none at all, or halves of characters.
    """
    sentences = items_of("sentences", texts)
    if not sentences or not all(isinstance(s, str) for s in sentences):
        raise ValueError(f"expected a list of sentences, got {texts!r:.200}")
    if any("\ud800" <= letter <= "\udfff" for s in sentences for letter in s):
        raise ValueError(f"a sentence has half of a character: {texts!r:.200}")
    return [s[:MAX_SENTENCE] for s in sentences]


@MODELS.register_module()
class CLIPTextEncoder:
    """Frozen CLIP text encoder with a cache on disk.

    A word's vector is the mean over templates of the normalised text embeddings,
    normalised again (prompt ensembling of CLIP, Radford et al., 2021, section 3.1.4).
    It is no ``nn.Module``, so that nothing of it is trained, counted or saved in a
    checkpoint. The tower is loaded only when a word is missing from the cache.

    Args:
        model, pretrained: see :class:`CLIPSource`.
        templates: prompts with one ``{}`` each.
        cache_dir: of the cache; ``$KDEOV_CACHE``, else ``~/.cache/kdeov_mm``.
        vocabulary: file of :meth:`Vocabulary.save`, whose vectors are taken as they
            are: words that it has need neither cache nor tower.

    Attributes:
        most_words: kept in memory, and none of them written to disk; None: all are
            kept, on disk too. For a service, whose users ask for words of their own.
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
        folder = cache_dir or os.environ.get("KDEOV_CACHE") or "~/.cache/kdeov_mm"
        self.cache_dir = Path(folder).expanduser()
        # the tower is loaded when a word is embedded
        self._tower: Any = None
        self._tokenize: Any = None
        # the cache, of which one thread at a time embeds what is missing
        self._lock = threading.Lock()
        self._vectors: dict[str, Tensor] = {}
        self.most_words: int | None = None
        # vectors of the config's file
        self._fixed: Mapping[str, Tensor] = {}
        if vocabulary:
            fixed = Vocabulary.load(vocabulary)
            self.check_vectors(fixed)
            self._fixed = fixed.vectors

    def __deepcopy__(self, memo: dict[int, Any]) -> "CLIPTextEncoder":
        """One encoder, with one cache, for all copies of a student: itself."""
        return self

    def check_vectors(self, vocabulary: Vocabulary) -> None:
        """Raise ValueError if another CLIP or other templates made the vectors."""
        theirs, mine = vocabulary.encoder, self.made_by
        # hashes tell exactly; without weights on this machine, names have to do
        sizes = {len(v) for v in vocabulary.vectors.values()} - {self.embed_dims}
        if sizes:
            raise ValueError(
                f"the vectors of the vocabulary have {sizes} dimensions, those of CLIP "
                f"'{self.source.model}' {self.embed_dims}"
            )
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
        made_by = {"model": self.source.model, "templates": json.dumps(self.templates)}
        if self.source.pretrained:
            made_by["pretrained"] = str(self.source.pretrained)
        return self.identity | made_by if self.is_local else made_by

    @property
    def identity(self) -> dict[str, str]:
        """What the vectors depend on, as strings."""
        # their order decides the cache's name
        own = {"model": self.source.model, **self.source.identity}
        return own | {"templates": json.dumps(self.templates)}

    @property
    def cache_file(self) -> Path:
        """The cache of this CLIP and these templates."""
        key = hashlib.sha256(f"3 {json.dumps(self.identity)}".encode()).hexdigest()
        return self.cache_dir / f"text-{key[:16]}.safetensors"

    @untraced()
    def __call__(self, names: Sequence[str]) -> Tensor:
        """K words, cleaned by :func:`clean_name` -> (K, D) float32 unit vectors."""
        names = items_of("words", names)
        words = [clean_name(name) for name in names]
        if not words or not all(words):
            raise ValueError(
                f"expected at least one word and no empty words, got {list(names)[:10]}"
            )
        # vectors of the config's file first, then those of the cache
        others = [w for w in dict.fromkeys(words) if w not in self._fixed]
        if others and self._fixed and not self.is_local:
            raise ValueError(
                f"{others[:5]} are not in the vocabulary's file, and the weights of "
                f"CLIP '{self.source.model}' are not at hand to embed them: add them "
                "to the file, or set `pretrained` to a local file of weights."
            )
        # embed what neither has, and keep it
        with self._lock:
            if others and not self._vectors and self.cache_file.exists():
                self._vectors = self.load_cache(self.cache_file)
            missing = [w for w in others if w not in self._vectors]
            if missing:
                self._vectors.update(zip(missing, self.encode(missing)))
                if self.most_words is None:
                    self._save_cache()
            known = ChainMap(dict(self._fixed), self._vectors)
            text = torch.stack([known[word] for word in words])
            # the oldest go
            if self.most_words is not None:
                for word in [*self._vectors][: -self.most_words]:
                    del self._vectors[word]
        return text

    def encode(self, words: Sequence[str]) -> Tensor:
        """K words as they are -> (K, D) unit vectors, without the cache.

        A word's vector does not depend on the others, to the last bit: a word and its
        templates are a row of their own in a batch whose shape they alone decide.
        """
        causal, count = is_causal(self._load()), len(self.templates)
        prompts = [t.format(word) for word in words for t in self.templates]
        tokens = self._tokenize(prompts).unflatten(0, (len(words), count))
        # words whose sentences lie alike can be rows of one batch
        alike: dict[tuple[int, ...], list[int]] = {}
        for i, sentences in enumerate(tokens):
            alike.setdefault(sentence_layout(sentences), []).append(i)
        vectors = torch.zeros(len(words), self.embed_dims)
        for (shared, *lengths), members in alike.items():
            # a padded sentence has tokens enough; the last batch is filled up
            total = shared + sum(lengths) - count * shared
            rows = -(-ROWS // total) if causal else 1
            for part in torch.tensor(members).split(rows):
                batch = torch.cat([part, part[:1].expand(rows - len(part))])
                embeds = self._embed(tokens[batch], "cpu")
                # (rows, T, D) -> (rows, D)
                means = F.normalize(embeds.mean(1), dim=-1)
                vectors[part] = means[: len(part)]
        return vectors

    def cut(self, words: Sequence[str]) -> str:
        """What to say of words that are longer than the tower reads; else nothing."""
        if not self.is_local:  # nor is its tokenizer, perhaps
            return ""
        tokenize = self.source.tokenizer()
        context = tokenize([""]).shape[1]
        said = []
        for word in words:
            prompts = [template.format(word) for template in self.templates]
            # of a context that is long enough, the rest is filled with one number
            tokens = tokenize(prompts, context_length=context + 16 * len(word))
            length = int((tokens != tokens[:, -1:]).sum(1).min())
            if length > context:
                said.append(f"{length - context} of {length}")
        if not said:
            return ""
        return f" (it reads {context} tokens: of them {' and '.join(said)} are cut)"

    def num_parameters(self) -> int:
        """Parameters of the text tower, which is loaded for it."""
        return sum(p.numel() for p in self._load().parameters())

    def _load(self) -> Any:
        if self._tower is None:
            model = self.source.model
            print_log(f"Loading the text tower of CLIP '{model}'", "current")
            tower = self.source.load()
            del tower.visual  # 60 % of a ViT-B/32
            # the tower last: another thread that finds it uses the tokenizer, too
            self._tokenize = self.source.tokenizer()
            self._tower = tower
        return self._tower

    def embed_prompts(
        self,
        prompts: Sequence[str] | Tensor,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """N sentences, or tokens (N, context), as they are -> (N, D) unit vectors.

        The cache is not used; the tower computes, in float32, on ``device``.
        """
        # tokens, of one length
        tower = self._load()
        if isinstance(prompts, Tensor):
            tokens = prompts
        else:
            tokens = self._tokenize(sentences_of(prompts))
        if tokens.ndim != 2 or tokens.shape[1] != tower.context_length:
            raise ValueError(
                f"expected tokens (N, {tower.context_length}) of CLIP "
                f"'{self.source.model}', got {tuple(tokens.shape)}"
            )
        # a number that is none of a token would end in a table's lookup
        known = tower.token_embedding.num_embeddings
        whole = not (tokens.is_floating_point() or tokens.is_complex())
        if not whole or tokens.dtype == torch.bool or not len(tokens):
            raise ValueError(f"expected some tokens, got {tokens.dtype}, {len(tokens)}")
        if tokens.min() < 0 or tokens.max() >= known:
            raise ValueError(f"tokens of CLIP '{self.source.model}' are below {known}")
        return self._embed(tokens[None], device)[0]

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)  # the student's must not round the cache
    @torch.autocast("cuda", enabled=False)
    def _embed(self, tokens: Tensor, device: torch.device | str) -> Tensor:
        """Tokens (K, N, context), K rows that lie alike -> (K, N, D) unit vectors."""
        tower = self._load().to(device)
        # a tower that does not read causally gets padded sentences, in chunks
        if not is_causal(tower):
            parts = [
                tower.encode_text(part.to(device), normalize=True)
                for part in tokens.flatten(0, 1).split(CHUNK)
            ]
            return torch.cat(parts).unflatten(0, tokens.shape[:2])
        # the sentences of others are read together; an embedding stands at each's end
        parts = []
        for reader, joined, ends in packed(tower, tokens.cpu()):
            embeds = reader.encode_text(joined.to(device), normalize=True)
            parts.append(embeds[:, ends.to(device)])
        return torch.cat(parts, 1)

    def load_cache(self, path: Path) -> dict[str, Tensor]:
        """Read a cache file; ValueError if another CLIP made it, or it is damaged."""
        tensors, metadata = read_vectors(path, "text cache")
        if metadata["encoder"] != self.identity:
            raise ValueError(
                f"The text embeddings in {path} were made by {metadata['encoder']}, "
                f"but this model uses {self.identity}. Vectors of two CLIPs do not "
                "compare: delete the file, or configure the CLIP that made it."
            )
        return dict(zip(metadata["words"], tensors["vectors"]))

    def _save_cache(self) -> None:
        # of two processes that write at once the last wins: words may be lost, and
        # are embedded again, but the file is always that of one of them
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        tensors = dict(vectors=torch.stack(list(self._vectors.values())))
        about = dict(words=list(self._vectors), encoder=self.identity)
        write_vectors(self.cache_file, "text cache", tensors, about)
