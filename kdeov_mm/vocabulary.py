"""Class names, synonyms, groups, and their text embeddings.

One object for training, evaluation, inference and export. It is made from a data
set's categories, a text file, JSON, or an embedding matrix that another program wrote.
A class is always a tuple of words; this is the only place that checks them.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .border import items_of, path_of, taken_apart, whole_number
from .options import COMMA
from .vectors import read_vectors, write_vectors

GROUP_SUFFIX = "_classes"
# endings of files that hold no vocabulary, and of no word
NO_WORDS = (
    ".npy",
    ".npz",
    ".csv",
    ".tsv",
    ".pt",
    ".pth",
    ".pkl",
    ".yaml",
    ".yml",
    ".xml",
)
VOCABULARIES = (".txt", ".json", ".safetensors")
MAX_WORD = 1000  # characters; a CLIP reads some 300
# LVIS v1's own typing error, which CLIP would read
_MISSPELT = {"speaker (stero equipment)": "speaker (stereo equipment)"}
Words = tuple[str, ...]  # a class: its first word, then its synonyms


class TextEncoder(Protocol):
    """What :class:`kdeov_mm.clip.CLIPTextEncoder` offers to a vocabulary.

    Attributes:
        made_by: what its vectors depend on.
        is_local: whether its weights are on this machine.
        embed_dims: dimension D of its vectors.
    """

    @property
    def made_by(self) -> dict[str, str]: ...  # noqa: D102
    @property
    def is_local(self) -> bool: ...  # noqa: D102
    @property
    def embed_dims(self) -> int: ...  # noqa: D102
    def encode(self, words: Sequence[str]) -> Tensor: ...  # noqa: D102
    def check_vectors(self, vocabulary: "Vocabulary") -> None: ...  # noqa: D102
    def cut(self, words: Sequence[str]) -> str: ...  # noqa: D102
    def __call__(self, names: Sequence[str]) -> Tensor: ...  # noqa: D102


def clean_name(name: str) -> str:
    """``'aerosol_can'`` -> ``'aerosol can'``, as CLIP's captions write it."""
    words = " ".join(name.replace("_", " ").split())
    return _MISSPELT.get(words, words)


def check_words(words: Iterable[str]) -> None:
    """Refuse what no one can mean as words, and a CLIP would read all the same.

    Raises:
        ValueError: a word has nothing to be seen, control characters, half of a
            character, or more than 1000; or it is the name of a file.
    """
    for word in words:
        kinds = {unicodedata.category(letter) for letter in word[: MAX_WORD + 1]}
        seen = any(kind[0] in "LN" or kind == "So" for kind in kinds)
        if not seen or kinds & {"Cc", "Cs"} or len(word) > MAX_WORD:
            raise ValueError(
                f"expected words of letters, at most {MAX_WORD} characters each, got "
                f"{word!r:.80}"
            )
        if word.lower().endswith((*VOCABULARIES, *NO_WORDS)):
            raise ValueError(
                f"{word!r:.80} is a file of another format, no word: a vocabulary is "
                f"one of {[*VOCABULARIES]}; Vocabulary.from_matrix reads .npy."
            )


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """K classes, their words and text embeddings. Immutable.

    Attributes:
        names: as the data set writes them; they tie labels to annotations.
        words: per class its cleaned name, then its synonyms (the name is put first
            where it is not among them).
        groups: group -> names: ``base`` and ``novel``, ``r``, ``c`` and ``f``.
        vectors: word -> (D,) unit vector; empty, or every class's first word.
        encoder: what made the vectors: ``model``, ``pretrained``, ``templates``,
            and the SHA-256 of config and weights where they are known.

    Raises:
        ValueError: no names, an empty word, the same first word or name twice, a
            group with names that are no classes, words without a vector.

    Example:
        >>> from kdeov_mm.vocabulary import Vocabulary
        >>> vocabulary = Vocabulary(("fire_truck", "sofa"), ((), ("sofa", "couch")))
        >>> vocabulary.words
        (('fire truck',), ('sofa', 'couch'))
    """

    names: tuple[str, ...]
    words: tuple[tuple[str, ...], ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    encoder: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # frozen: the checked values are set once, here
        object.__setattr__(self, "names", _listed(self.names))
        words = items_of("lists of synonyms", self.words) or [(n,) for n in self.names]
        if len(words) != len(self.names):
            raise ValueError(
                f"expected a list of words for each of {len(self.names)} names, got "
                f"{len(words)} lists of synonyms"
            )
        # the name comes first, and no word twice
        cleaned = tuple(
            tuple(dict.fromkeys(map(clean_name, (name, *_listed(own, "words")))))
            if own not in (None, (), [])
            else (clean_name(name),)
            for name, own in zip(self.names, words)
        )
        object.__setattr__(self, "words", cleaned)
        for what in ("groups", "vectors", "encoder"):
            if not isinstance(getattr(self, what), Mapping):
                raise ValueError(
                    f"{what}: expected a dictionary, got {getattr(self, what)!r:.80}"
                )
        if not all(isinstance(v, str) for v in self.encoder.values()):
            raise ValueError(f"expected an encoder of strings, got {self.encoder}")
        self._check_words()
        # a group names classes; some may be empty
        for group, members in self.groups.items():
            own = items_of(f"names of the group {group!r}", members)
            if not isinstance(group, str):
                raise ValueError(f"a group has a name, got {group!r:.80}")
            if unknown := [m for m in own if m not in self.names]:
                raise ValueError(
                    f"group {group!r} has names that are no classes: {unknown[:5]}"
                )

    def _check_words(self) -> None:
        """Every class has a first word of its own; vectors cover all of them."""
        firsts = [own[0] for own in self.words]
        # CLIP would embed an empty word, too
        if empty := [n for n, own in zip(self.names, self.words) if "" in own]:
            raise ValueError(f"classes with an empty word: {empty[:5]}")
        check_words(word for own in self.words for word in own)
        # labels are matched by name, predictions by their first word
        for what, values in (("names", self.names), ("words", firsts)):
            if twice := [v for v, number in Counter(values).items() if number > 1]:
                raise ValueError(
                    f"two classes have the same {what}, and could not be told apart: "
                    f"{twice[:5]}. Rename one."
                )
        # synonyms may be without a vector, as in a matrix made elsewhere
        missing = [w for w in firsts if self.vectors and w not in self.vectors]
        if missing:
            raise ValueError(f"words without a vector: {missing[:5]}")
        self._check_vectors()

    def _check_vectors(self) -> None:
        """Vectors have one size, are finite, and of length 1."""
        if not all(isinstance(v, Tensor) for v in self.vectors.values()):
            raise ValueError(f"expected tensors as vectors, got {self.vectors!r:.200}")
        sizes = {tuple(v.shape) for v in self.vectors.values()}
        if len(sizes) > 1 or any(len(size) != 1 for size in sizes):
            raise ValueError(f"vectors (D,) of one size are expected, got {sizes}")
        if not sizes:
            return
        # NaN is not close to 1 either
        lengths = torch.stack([*self.vectors.values()]).float().norm(dim=1)
        close = (lengths - 1).abs() < 0.01
        if not close.all():
            wrong = [w for w, good in zip(self.vectors, close.tolist()) if not good]
            raise ValueError(
                f"{len(wrong)} of {len(close)} vectors are not of length 1, or no "
                f"numbers, e.g. of {wrong[:3]}: Vocabulary.from_matrix takes vectors "
                "of any length."
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompts of the vectors; none where there are no vectors."""
        with taken_apart("the templates of the vocabulary's encoder"):
            return tuple(json.loads(self.encoder.get("templates", "[]")))

    @property
    def metainfo(self) -> dict[str, Any]:
        """The classes and groups, for a data set."""
        # colours far apart for neighbours, the same for a class each time
        colors = [((67 * i + 40) % 256, 101 * i % 256, 173 * i % 256)
                  for i in range(len(self))]  # fmt: skip
        return dict(as_metainfo(self.groups), classes=self.names, palette=colors)

    def without_synonyms(self) -> "Vocabulary":
        """Each class by its name alone."""
        return replace(self, words=tuple(own[:1] for own in self.words))

    def subset(self, group: str) -> "Vocabulary":
        """The classes of a group.

        Raises:
            ValueError: there is no such group.
        """
        if group not in [*self.groups]:
            raise ValueError(f"no group {group!r}; there are {[*self.groups]}")
        return self.select([self.names.index(n) for n in self.groups[group]])

    def select(self, indices: Sequence[int]) -> "Vocabulary":
        """Some classes, in the given order.

        Raises:
            ValueError: numbers of no classes.
        """
        indices = items_of("numbers of classes", indices)
        indices = [whole_number("a class", i, 0, len(self) - 1) for i in indices]
        names = tuple(self.names[i] for i in indices)
        words = tuple(self.words[i] for i in indices)
        # groups lose other classes, vectors other words
        groups = {
            group: tuple(n for n in names if n in {*members})
            for group, members in self.groups.items()
        }
        kept = {w for own in words for w in own}
        vectors = {w: v for w, v in self.vectors.items() if w in kept}
        return replace(self, names=names, words=words, groups=groups, vectors=vectors)

    # ------------------------------------------------------------ where from

    @classmethod
    def from_categories(cls, categories: Iterable[Mapping[str, Any]]) -> "Vocabulary":
        """From COCO's or LVIS's categories, in the order of their ids.

        LVIS's ``synonyms`` follow the name; its ``frequency`` makes the groups r, c,
        f, base (f and c) and novel (r).

        Raises:
            ValueError: no categories, or an id twice.
        """
        every = items_of("categories", categories)
        with taken_apart("these are no categories of COCO or LVIS"):
            chosen = sorted(every, key=lambda c: whole_number("id", c["id"], 0))
            if len({c["id"] for c in chosen}) < len(chosen):
                raise ValueError("an id is there twice")
            names = tuple(c["name"] for c in chosen)
            words = tuple(
                (c["name"], *items_of("synonyms", c.get("synonyms", ())))
                for c in chosen
            )
            # COCO's have no frequency
            if any(c.get("frequency") not in (*"fcr",) for c in chosen):
                return cls(names, words)
            frequency = {c["name"]: c["frequency"] for c in chosen}
            return cls(names, words, frequency_groups(frequency))

    @classmethod
    def from_matrix(
        cls,
        matrix: np.ndarray | Tensor | str | Path,
        names: "Vocabulary | Sequence[str]",
        encoder: TextEncoder,
    ) -> "Vocabulary":
        """From text embeddings that another program made.

        Shape and values are checked. Whether the rows are in the order of the names is
        checked where the CLIP's weights are on this machine: some words are embedded
        again and compared.

        Args:
            matrix: (K, D), or a ``.npy`` file; any length, any float type.
            names: the K classes, in the order of the rows.
            encoder: the CLIP and the templates that made it.

        Raises:
            ValueError: a row or a column too many or too few, rows that are no
                numbers or all zero, another order, another CLIP.
        """
        # shape and values
        _check_encoder(encoder)
        rows = _rows(matrix)
        vocabulary = names if isinstance(names, Vocabulary) else cls(_listed(names))
        if rows.shape != (len(vocabulary), encoder.embed_dims):
            raise ValueError(
                f"expected a matrix ({len(vocabulary)}, {encoder.embed_dims}): one row "
                "per name, and the dimensions of the CLIP "
                f"{encoder.made_by['model']!r}; got {tuple(rows.shape)}"
            )
        if not rows.isfinite().all() or (rows.norm(dim=1) == 0).any():
            raise ValueError("the matrix has rows that are all zero, or no numbers")
        # order, where some words can be embedded again
        firsts = [own[0] for own in vocabulary.words]
        vectors = F.normalize(rows, dim=1)
        if encoder.is_local:
            _check_sample(firsts, vectors, encoder)
        return replace(
            vocabulary, vectors=dict(zip(firsts, vectors)), encoder=encoder.made_by
        )

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read a file.

        - ``.txt``: a class per line, its synonyms after commas; ``#`` begins a
          comment.
        - ``.json``: a list of names or of lists of synonyms; a dictionary with
          ``names``, ``synonyms`` and ``groups``; or COCO's and LVIS's annotation
          files, or a list of their categories.
        - ``.safetensors``: of :meth:`save`, with vectors.

        Raises:
            FileNotFoundError, ValueError: there is none, or it holds something else.
        """
        path = path_of("a vocabulary", path)
        readers = {
            ".txt": cls._from_text,
            ".json": cls._from_json,
            ".safetensors": cls._from_safetensors,
        }
        if path.suffix not in readers:
            raise ValueError(f"a vocabulary is one of {[*readers]}, got {path}")
        if not path.is_file():
            raise FileNotFoundError(f"vocabulary {path} does not exist")
        with taken_apart(f"{path} holds no vocabulary"):
            return readers[path.suffix](path)

    @classmethod
    def _from_text(cls, path: Path) -> "Vocabulary":
        # files of Windows begin with a mark
        content = path.read_text(encoding="utf-8-sig")
        lines = [line.split("#")[0].strip() for line in content.splitlines()]
        words = [[w.strip() for w in line.split(",")] for line in lines if line]
        return cls(tuple(own[0] for own in words), tuple(map(tuple, words)))

    @classmethod
    def _from_json(cls, path: Path) -> "Vocabulary":
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        # annotations, or only their categories
        if isinstance(content, dict) and "categories" in content:
            content = content["categories"]
        # names, synonyms and groups
        if isinstance(content, dict):
            groups = {g: tuple(n) for g, n in content.get("groups", {}).items()}
            return cls(_listed(content["names"]), content.get("synonyms", ()), groups)
        content = items_of("class names", content)
        if content and isinstance(content[0], dict):
            return cls.from_categories(content)
        # a list of classes, some with synonyms
        words = [
            (own,) if isinstance(own, str) else tuple(items_of("words", own))
            for own in content
        ]
        return cls(tuple(own[0] for own in words), tuple(words))

    @classmethod
    def _from_safetensors(cls, path: Path) -> "Vocabulary":
        tensors, content = read_vectors(path, "vocabulary")
        if len(content["rows"]) != len(tensors["vectors"]):
            raise ValueError(
                f"{len(tensors['vectors'])} vectors of {len(content['rows'])} words"
            )
        return cls(
            _listed(content["names"]),
            tuple(_listed(own, "words") for own in content["words"]),
            {g: tuple(n) for g, n in content["groups"].items()},
            dict(zip(content["rows"], tensors["vectors"])),
            content["encoder"],
        )

    def save(self, path: str | Path) -> None:
        """Write names, words, groups, vectors and what made them, as safetensors.

        Raises:
            ValueError: there are no vectors yet.
        """
        if not self.vectors:
            raise ValueError("no vectors to save: call embed(text_encoder) first")
        if path_of("a vocabulary", path).suffix != ".safetensors":
            raise ValueError(f"expected FILE.safetensors, got {path}")
        # rows: the word of each vector
        content = dict(
            names=self.names,
            words=self.words,
            groups=dict(self.groups),
            rows=[*self.vectors],
            encoder=dict(self.encoder),
        )
        tensors = dict(vectors=torch.stack([*self.vectors.values()]))
        write_vectors(Path(path), "vocabulary", tensors, content)

    # --------------------------------------------------------------- vectors

    def embed(self, text_encoder: TextEncoder) -> "Vocabulary":
        """The same classes with the vectors of all their words.

        Vectors that the vocabulary has stay; other words are embedded.

        Raises:
            ValueError: its vectors were made by another CLIP or with other templates,
                or further words cannot be embedded on this machine; or two classes
                are the same to the CLIP, see :func:`refuse_equal`.
        """
        _check_encoder(text_encoder)
        if self.vectors:
            text_encoder.check_vectors(self)
        # each word once, in the order of the classes
        every = dict.fromkeys(w for own in self.words for w in own)
        others = [word for word in every if word not in self.vectors]
        # nothing to embed: the encoder needs neither cache nor tower
        if not others:
            refuse_equal(self.words, self.vectors, text_encoder)
            return self
        vectors = {**self.vectors, **dict(zip(others, text_encoder(others)))}
        refuse_equal(self.words, vectors, text_encoder)
        return replace(self, vectors=vectors, encoder=text_encoder.made_by)

    def matrix(self) -> Tensor:
        """(K, D) unit vectors: per class the mean of its words that have one."""
        known = [[w for w in own if w in self.vectors] for own in self.words]
        means = [torch.stack([self.vectors[w] for w in own]).mean(0) for own in known]
        return F.normalize(torch.stack(means), dim=1)

    def neighbours(self, name: str, number: int = 5) -> list[tuple[str, float]]:
        """The classes closest to one, with their cosine, closest first.

        Raises:
            ValueError: there is no such class, or not even one is asked for.
        """
        number = whole_number("number", number)
        if name not in self.names:
            raise ValueError(f"no class {name!r}; there are {self.names!r:.80}")
        vectors = self.matrix()
        similar = vectors @ vectors[self.names.index(name)]
        # the class itself is below all others
        similar[self.names.index(name)] = -2
        values, indices = similar.topk(min(number, len(self) - 1))
        return [(self.names[i], s) for i, s in zip(indices.tolist(), values.tolist())]


Asked = str | Path | Sequence[str | Sequence[str]] | Vocabulary


def as_vocabulary(words: Asked | None) -> Vocabulary:
    """What a user gives as words, as a vocabulary: the check at every public door.

    Args:
        words: a list of classes, each a word or a tuple of synonyms; a string with
            commas; a file of :meth:`Vocabulary.load`; or a vocabulary.

    Raises:
        FileNotFoundError, ValueError: no such file, no words, or the same one twice.

    Example:
        >>> as_vocabulary("red ring, blue star").words
        (('red ring',), ('blue star',))
        >>> as_vocabulary(["cat", ("sofa", "couch")]).names
        ('cat', 'sofa')
    """
    if isinstance(words, Vocabulary):
        return words
    if isinstance(words, Path) or (
        isinstance(words, str) and "," not in words and words.endswith(VOCABULARIES)
    ):
        return Vocabulary.load(words)
    # classes without synonyms, as on a command line
    if isinstance(words, str):
        words = [word.strip() for word in words.split(",")]
    # what is neither a word nor some words is refused by name in Vocabulary
    every = [
        tuple(own) if isinstance(own, (list, tuple, np.ndarray)) else (own,)
        for own in items_of("words", () if words is None else words)
    ]
    if not every or not all(every):
        raise ValueError(
            "expected at least one class, and at least one word for each: a list of "
            f"words, or of tuples of synonyms; got {words!r:.200}"
        )
    return Vocabulary(tuple(own[0] for own in every), tuple(every))


def refuse_equal(
    words: Sequence[Words], vectors: Mapping[str, Tensor], encoder: TextEncoder
) -> None:
    """Refuse classes that differ to people, and are one to the CLIP.

    Its tokenizer makes letters small, reads HTML entities, and cuts what is beyond its
    context: words of equal tokens have equal vectors, to the last bit.

    Args:
        words: of the classes; their first words are compared.
        vectors: word -> (D,).
        encoder: of the vectors.

    Raises:
        ValueError: two classes of the same vector; names them, and says how many
            tokens of long ones are cut.
    """
    seen: dict[bytes, str] = {}
    for word, *_ in words:
        other = seen.setdefault(vectors[word].numpy().tobytes(), word)
        if other != word:
            raise ValueError(
                f"two classes are the same to the CLIP, and could not be told apart: "
                f"{other!r} and {word!r}{encoder.cut([other, word])}. Take one out, or "
                "make one the other's synonym."
            )


def frequency_groups(frequency: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """LVIS's groups, of name -> r, c or f: base is frequent and common, novel rare."""
    kinds = dict(base="fc", novel="r", r="r", c="c", f="f")
    return {
        group: tuple(name for name, f in frequency.items() if f in members)
        for group, members in kinds.items()
    }


def as_metainfo(groups: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Groups as a data set's metainfo has them, ``<group>_classes``."""
    return {f"{group}{GROUP_SUFFIX}": names for group, names in groups.items()}


def asked_groups(metainfo: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The groups of a data set, ``<group>_classes``, whose classes are all asked.

    A group of which only some are asked (COCO's base classes, of a data set of cats and
    dogs) is not that group.
    """
    # mmengine's data sets may have classes=None
    classes = set(metainfo.get("classes") or ())
    return {
        key.removesuffix(GROUP_SUFFIX): tuple(names)
        for key, names in metainfo.items()
        if key.endswith(GROUP_SUFFIX) and names and classes.issuperset(names)
    }


def _rows(matrix: Any) -> Tensor:
    """A matrix of any float type, or a ``.npy`` file of one, as float32."""
    if isinstance(matrix, (str, Path)):
        path = path_of("a matrix", matrix)
        if path.suffix != ".npy":
            raise ValueError(f"a matrix is an array or a .npy file, got {matrix}")
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist, or is no file")
        try:
            matrix = np.load(path)
        except (EOFError, ValueError) as error:
            raise ValueError(f"{path} holds no matrix of numbers: {error}") from error
    # bfloat16 is unknown to numpy; other byte orders and strides are unknown to torch
    with taken_apart("expected a matrix of numbers"):
        if isinstance(matrix, Tensor):
            if matrix.is_complex() or matrix.layout != torch.strided:
                raise ValueError(f"got {matrix.dtype}, {matrix.layout}")
            return matrix.detach().float().cpu()
        return torch.from_numpy(np.array(matrix, np.float32))


def _check_encoder(encoder: Any) -> None:
    if not callable(encoder) or not hasattr(type(encoder), "check_vectors"):
        raise ValueError(
            "expected a text encoder, e.g. the `text_encoder` of a student, got a "
            f"{type(encoder).__name__}"
        )


def _listed(names: Any, what: str = "class names") -> tuple[str, ...]:
    """Strings as a tuple; a single string is a mistake."""
    # numpy's strings become Python's, so that JSON can hold them
    found = items_of(what, names)
    if not found or not all(isinstance(name, str) for name in found):
        comma = f". It is {COMMA}" if isinstance(names, str) else ""
        raise ValueError(f"expected a list of {what}, got {names!r:.80}{comma}")
    return tuple(str(name) for name in found)


def _check_sample(
    words: Sequence[str], vectors: Tensor, encoder: TextEncoder, number: int = 16
) -> None:
    """Embed some words again, evenly among all, and compare."""
    which = np.linspace(0, len(words) - 1, min(number, len(words))).astype(int)
    own = encoder.encode([words[i] for i in which])
    similar = (own * vectors[which]).sum(1)
    # float16 and other machines differ by less than 0.01
    worst = int(similar.argmin())
    if similar[worst] < 0.99:
        raise ValueError(
            f"the matrix is not of CLIP '{encoder.made_by['model']}' with the "
            f"templates {encoder.made_by['templates']}, or its rows are in another "
            f"order: {words[which[worst]]!r} has a cosine of {similar[worst]:.3f} to "
            "its row"
        )
