"""The vocabulary object: where words come from, and whose vectors they have."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from kdeov_mm.clip import CLIPSource, CLIPTextEncoder
from kdeov_mm.datasets import OVCocoDataset, OVLVISDataset, shapes
from kdeov_mm.models import KDEOVDetector, RandomVocabulary
from kdeov_mm.models.student import merge_synonyms
from kdeov_mm.vocabulary import Vocabulary, as_vocabulary, clean_name

from .conftest import WORDS, make_sample
from .datasets.test_datasets import NAMES, load, make_coco

CLIP_DATA = Path(__file__).parents[2] / "shared/data/clip"
real_clip = pytest.mark.skipif(not CLIP_DATA.is_dir(), reason="no real CLIP vectors")
LVIS = [
    dict(id=3, name="spray_can", synonyms=["spray_can", "aerosol_can"], frequency="r"),
    dict(id=1, name="cat", synonyms=["cat", "kitty"], frequency="f"),
    dict(id=2, name="bow_(weapon)", synonyms=["bow_(weapon)"], frequency="c"),
]


# ------------------------------------------------------------------ where from


def test_categories_come_in_the_order_of_their_ids_with_synonyms_and_groups() -> None:
    words = Vocabulary.from_categories(LVIS)
    assert words.names == ("cat", "bow_(weapon)", "spray_can")
    assert words.words == (
        ("cat", "kitty"),
        ("bow (weapon)",),
        ("spray can", "aerosol can"),
    )
    assert words.groups["base"] == ("cat", "bow_(weapon)")
    assert words.groups["novel"] == words.groups["r"] == ("spray_can",)
    alone = (("cat",), ("bow (weapon)",), ("spray can",))
    assert words.without_synonyms().words == alone
    assert words.subset("c").names == ("bow_(weapon)",)
    assert words.subset("base").groups["novel"] == ()


def test_a_text_file_has_a_class_per_line(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text(
        "# what I look for\ncat, kitty\n\naerosol_can   # in the kitchen\n"
    )
    words = Vocabulary.load(tmp_path / "words.txt")
    assert words.names == ("cat", "aerosol_can")
    assert words.words == (("cat", "kitty"), ("aerosol can",))


@pytest.mark.parametrize(
    "content",
    [
        ["cat", "bow_(weapon)", "spray_can"],
        [["cat", "kitty"], ["bow_(weapon)"], ["spray_can", "aerosol_can"]],
        dict(names=["cat", "bow_(weapon)", "spray_can"], groups=dict(novel=["cat"])),
        dict(images=[], annotations=[], categories=LVIS),
        LVIS,
    ],
)
def test_json_may_be_names_synonyms_a_dictionary_or_annotations(
    tmp_path: Path, content: Any
) -> None:
    (tmp_path / "words.json").write_text(json.dumps(content))
    words = Vocabulary.load(tmp_path / "words.json")
    assert words.names == ("cat", "bow_(weapon)", "spray_can")
    firsts = [own[0] for own in words.words]
    assert firsts == ["cat", "bow (weapon)", "spray can"]


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.json", "[]", "list of class names"),
        ("a.json", '["cat", ""]', "empty word"),
        ("a.json", '["spray can", "spray_can"]', "could not be told apart"),
        ("a.json", '["cat", "cat"]', "same names"),
        ("a.json", '{"name": ["cat"]}', "'names'"),
        ("a.json", '{"names": ["cat"], "groups": {"novel": ["dog"]}}', "no classes"),
        ("a.json", '{"names": ["a", "b"], "synonyms": [["a"]]}', "1 lists of synonyms"),
        ("a.json", '{"names": ["a"], "synonyms": ["kitty"]}', "list of words"),
        ("a.json", '{"names": ["a"], "synonyms": {"a": ["b"]}}', "lists of synonyms"),
        ("a.json", '{"names": "cat"}', "list of class names"),
        ("a.json", '"cat"', "list of class names"),
        ("a.json", "[", "holds no vocabulary"),
        ("a.txt", "# nothing\n", "list of class names"),
        ("a.csv", "cat", "is one of"),
    ],
)
def test_what_is_no_vocabulary_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: str, reason: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=reason):
        Vocabulary.load(tmp_path / name)


def test_the_name_comes_first_and_synonyms_after_it(tmp_path: Path) -> None:
    content = dict(names=["cat", "dog"], synonyms=[["kitty"], []])
    (tmp_path / "words.json").write_text(json.dumps(content))
    words = Vocabulary.load(tmp_path / "words.json")
    assert words.words == (("cat", "kitty"), ("dog",))


def test_files_of_windows_are_read(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes("\ufeffcafé, bar\r\ncat\r\n".encode())
    assert Vocabulary.load(tmp_path / "words.txt").names == ("café", "cat")


def test_names_may_be_an_array() -> None:
    assert Vocabulary(np.array(["cat", "dog"])).names == ("cat", "dog")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.txt does not exist"):
        Vocabulary.load(tmp_path / "gone.txt")


def test_cleaned_names_are_what_captions_write() -> None:
    assert clean_name("aerosol_can") == "aerosol can"
    assert clean_name("speaker_(stero_equipment)") == "speaker (stereo equipment)"


# ---------------------------------------------------------- what a user gives


def test_whatever_a_user_gives_is_one_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("cat, kitty\naerosol_can\n")
    expected = (("cat", "kitty"), ("aerosol can",))
    whole = Vocabulary.load(tmp_path / "words.txt")
    for given in (
        [("cat", "kitty"), "aerosol_can"],
        (["cat", "kitty"], ("aerosol_can",)),
        tmp_path / "words.txt",
        str(tmp_path / "words.txt"),
        whole,
    ):
        assert as_vocabulary(given).words == expected
    assert as_vocabulary(whole) is whole
    assert as_vocabulary("cat , aerosol_can").words == (("cat",), ("aerosol can",))
    assert as_vocabulary(np.array(["cat", "dog"])).names == ("cat", "dog")


@pytest.mark.parametrize(
    "given, reason",
    [
        ([], "at least one class"),
        (None, "at least one class"),
        ((), "at least one class"),
        (["cat", ()], "at least one word for each"),
        ("", "empty word"),
        ("cat,,dog", "empty word"),
        (["cat", "  "], "empty word"),
        (["cat", ("dog", "_")], "empty word"),
        (["cat", "cat"], "Rename one"),
        (["spray can", "spray_can"], "could not be told apart"),
        (["cat", (1,)], "list of"),
        (["cat", 1], "list of"),
    ],
)
def test_words_that_cannot_be_asked_are_refused(given: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        as_vocabulary(given)


# --------------------------------------------------------------------- vectors


@pytest.fixture
def encoder(tmp_path: Path) -> CLIPTextEncoder:
    return CLIPTextEncoder("shapes", cache_dir=str(tmp_path / "cache"))


SOME = shapes.CLASSES[::9]


def test_a_saved_vocabulary_comes_back(
    tmp_path: Path, encoder: CLIPTextEncoder
) -> None:
    words = Vocabulary(
        SOME, [(n, f"big {n}") for n in SOME], dict(novel=SOME[:3])
    ).embed(encoder)  # fmt: skip
    words.save(tmp_path / "words.safetensors")
    again = Vocabulary.load(tmp_path / "words.safetensors")
    assert (again.names, again.words, again.groups) == (
        words.names, words.words, words.groups
    )  # fmt: skip
    assert again.encoder == words.encoder
    assert again.templates == encoder.templates and not Vocabulary(SOME).templates
    assert again.vectors.keys() == words.vectors.keys()
    assert torch.equal(again.matrix(), words.matrix())
    assert words.encoder["weights_sha256"] == CLIPSource("shapes").weights_hash()


def write_0_1_0(path: Path, words: Vocabulary, **changes: str) -> None:
    """A vocabulary's file as version 0.1.0 wrote it."""
    content = dict(
        names=words.names,
        words=words.words,
        groups=dict(words.groups),
        rows=[*words.vectors],
        encoder=dict(words.encoder),
    )
    metadata = dict(format="kdeov_mm vocabulary 1", vocabulary=json.dumps(content))
    vectors = torch.stack([*words.vectors.values()]).contiguous()
    save_file({"vectors": vectors}, str(path), metadata=metadata | changes)


def test_a_vocabulary_of_version_0_1_0_is_read(
    tmp_path: Path, encoder: CLIPTextEncoder
) -> None:
    words = Vocabulary(
        SOME, [(n, f"big {n}") for n in SOME], dict(novel=SOME[:3])
    ).embed(encoder)  # fmt: skip
    write_0_1_0(tmp_path / "old.safetensors", words)
    words.save(tmp_path / "new.safetensors")
    old, new = (
        Vocabulary.load(tmp_path / f"{age}.safetensors") for age in ("old", "new")
    )
    assert (old.names, old.words, old.groups) == (new.names, new.words, new.groups)
    assert old.encoder == new.encoder and old.vectors.keys() == new.vectors.keys()
    assert torch.equal(old.matrix(), new.matrix())
    # as the vectors of a model's config, too
    path = str(tmp_path / "old.safetensors")
    again = CLIPTextEncoder("shapes", vocabulary=path, cache_dir=str(tmp_path))
    assert torch.equal(again(SOME), encoder(SOME))


def test_an_old_file_whose_content_is_something_else_is_no_vocabulary(
    tmp_path: Path, encoder: CLIPTextEncoder
) -> None:
    path, words = tmp_path / "old.safetensors", Vocabulary(SOME).embed(encoder)
    for changes in (dict(vocabulary="{"), dict(vocabulary="{}"), dict(vocabulary="[]")):
        write_0_1_0(path, words, **changes)
        with pytest.raises(ValueError, match="holds no vocabulary"):
            Vocabulary.load(path)


def test_vectors_that_a_vocabulary_has_stay(
    encoder: CLIPTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix made elsewhere is not made again; only further words are embedded."""
    rows = F.normalize(encoder(SOME) + 1e-3 * torch.rand(len(SOME), 1), dim=1)
    given = Vocabulary.from_matrix(rows, SOME, encoder)
    assert given.embed(encoder) is given
    more = replace(given, words=[(name, f"big {name}") for name in SOME])
    asked: list[str] = []
    monkeypatch.setattr(
        encoder, "encode",
        lambda words: asked.extend(words) or torch.eye(len(words), rows.shape[1]),
    )  # fmt: skip
    embedded = more.embed(encoder)
    assert asked == [f"big {name}" for name in SOME]
    for name, row in zip(SOME, rows):
        torch.testing.assert_close(embedded.vectors[name], row)


@pytest.mark.parametrize(
    "change", [dict(model="shapes-1203"), dict(templates=["a {}"])]
)
def test_vectors_of_another_clip_are_refused_by_the_encoder(
    tmp_path: Path, encoder: CLIPTextEncoder, change: dict[str, Any]
) -> None:
    given = Vocabulary(SOME).embed(encoder)
    other = CLIPTextEncoder(**(dict(model="shapes", cache_dir=str(tmp_path)) | change))
    with pytest.raises(ValueError, match="do not compare"):
        given.embed(other)


def test_some_classes_keep_their_words_groups_and_vectors(
    encoder: CLIPTextEncoder,
) -> None:
    words = Vocabulary(SOME[:4], groups=dict(novel=SOME[:2])).embed(encoder)
    chosen = words.select([3, 1])
    assert chosen.names == (SOME[3], SOME[1]) and chosen.words == (
        (SOME[3],), (SOME[1],)
    )  # fmt: skip
    assert chosen.groups == dict(novel=(SOME[1],))
    assert torch.equal(chosen.matrix(), words.matrix()[[3, 1]])
    assert chosen.vectors.keys() == {SOME[3], SOME[1]}


def test_without_vectors_there_is_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="embed"):
        Vocabulary(SOME).save(tmp_path / "words.safetensors")


def test_another_safetensors_file_is_no_vocabulary(tmp_path: Path) -> None:
    save_file({"vectors": torch.ones(1, 2)}, str(tmp_path / "a.safetensors"))
    with pytest.raises(ValueError, match="holds no vocabulary.*format"):
        Vocabulary.load(tmp_path / "a.safetensors")


def test_a_damaged_file_is_no_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"PK" * 40)
    with pytest.raises(ValueError, match="holds no vocabulary"):
        Vocabulary.load(tmp_path / "a.safetensors")


def test_the_matrix_is_the_mean_of_a_classs_words(encoder: CLIPTextEncoder) -> None:
    two = ("solid red circle", "solid blue circle")
    words = Vocabulary((two[0],), (two,)).embed(encoder)
    assert torch.allclose(words.matrix()[0], F.normalize(encoder(two).mean(0), dim=0))


def test_neighbours_are_the_closest_classes(encoder: CLIPTextEncoder) -> None:
    words = Vocabulary(shapes.CLASSES).embed(encoder)
    (first, cosine), *_ = words.neighbours("striped red star", 3)
    assert len({*first.split()} & {"striped", "red", "star"}) == 2
    assert 0 < cosine < 1


# ---------------------------------------------------- a matrix made elsewhere


def test_a_matrix_of_the_right_clip_is_taken(encoder: CLIPTextEncoder) -> None:
    rows = 7.3 * encoder(SOME).numpy().astype(np.float16)  # of any length and type
    words = Vocabulary.from_matrix(rows, SOME, encoder)
    assert torch.allclose(words.matrix(), encoder(SOME), atol=2e-3)


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda rows: rows[:-1], r"matrix \(40, 128\).*got \(39, 128\)"),
        (lambda rows: rows[:, :64], r"\(40, 64\)"),
        (lambda rows: rows * (np.arange(40) > 0)[:, None], "all zero"),
        (lambda rows: np.where(rows > 0.3, np.nan, rows), "no numbers"),
        (lambda rows: rows[::-1], "in another order|not in the order"),
        (lambda rows: np.random.default_rng(0).permutation(rows), "another order"),
        (lambda rows: np.roll(rows, 1, 0), "in another order|not in the order"),
        (lambda rows: np.random.default_rng(0).normal(size=rows.shape), "order"),
        (lambda rows: rows + rows.mean(0) * 3, "not of CLIP 'shapes'"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(
    encoder: CLIPTextEncoder, change: Any, reason: str
) -> None:
    rows = change(encoder(SOME).numpy())
    with pytest.raises(ValueError, match=reason):
        Vocabulary.from_matrix(rows, SOME, encoder)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.bfloat16(),
        lambda rows: rows.clone().requires_grad_(),
        lambda rows: rows.numpy().astype(">f4"),
        lambda rows: np.asfortranarray(rows.numpy()),
        lambda rows: rows.numpy()[::-1][::-1],
    ],
)
def test_any_float_type_and_layout_will_do(
    encoder: CLIPTextEncoder, change: Any
) -> None:
    rows = change(encoder(SOME))
    words = Vocabulary.from_matrix(rows, SOME, encoder)
    assert torch.allclose(words.matrix(), encoder(SOME), atol=1e-2)


def test_other_templates_are_refused_where_the_tower_is_at_hand(
    encoder: CLIPTextEncoder,
) -> None:
    other = CLIPTextEncoder("shapes", templates=["no {} in this picture of nothing"])
    with pytest.raises(ValueError, match="with the templates"):
        Vocabulary.from_matrix(encoder(SOME), SOME, other)


@real_clip
@pytest.mark.parametrize(
    "which, name, friends",
    [
        ("lvis_v1", "wine_bottle", {"wineglass", "bottle", "beer_bottle"}),
        ("lvis_v1", "grizzly", {"bear", "polar_bear", "cub_(animal)"}),
        ("coco", "couch", {"chair", "bed"}),
        ("coco", "knife", {"fork", "spoon", "scissors"}),
    ],
)
def test_real_clip_matrices_have_sensible_neighbours(
    which: str, name: str, friends: set[str]
) -> None:
    words = real_vocabulary(which)
    nearest = {n for n, _ in words.neighbours(name, 5)}
    assert nearest & friends, nearest


def vit_b32(**kwargs: Any) -> CLIPTextEncoder:
    """The CLIP of the real matrices; its weights are not at hand."""
    return CLIPTextEncoder("ViT-B-32-quickgelu", "openai", templates=["a {}"], **kwargs)


def real_vocabulary(which: str) -> Vocabulary:
    if which == "coco":
        names = Vocabulary(OVCocoDataset.METAINFO["classes"])
    else:
        names = Vocabulary.load(CLIP_DATA / "lvis_v1_train_cat_info.json")
    matrix = CLIP_DATA / f"{which}_clip_a+cname.npy"
    return Vocabulary.from_matrix(matrix, names, vit_b32())


@real_clip
def test_the_lvis_classes_and_groups_are_those_of_the_file() -> None:
    words = Vocabulary.load(CLIP_DATA / "lvis_v1_train_cat_info.json")
    meta = OVLVISDataset.METAINFO
    assert words.names == meta["classes"]
    for group in ("base", "novel", "r", "c", "f"):
        assert words.groups[group] == meta[f"{group}_classes"]


def test_lvis_has_as_many_classes_of_each_kind_as_it_says() -> None:
    meta = OVLVISDataset.METAINFO
    sizes = {g: len(meta[f"{g}_classes"]) for g in ("base", "novel", "r", "c", "f")}
    assert sizes == dict(base=866, novel=337, r=337, c=461, f=405)
    assert len(set(meta["classes"])) == len(meta["palette"]) == 1203


# ---------------------------------------------------- vectors without a tower


@real_clip
def test_a_text_encoder_of_stored_vectors_needs_no_weights(tmp_path: Path) -> None:
    real_vocabulary("lvis_v1").save(tmp_path / "lvis.safetensors")
    encoder = vit_b32(
        vocabulary=str(tmp_path / "lvis.safetensors"), cache_dir=str(tmp_path)
    )
    text = encoder(["wine_bottle", "cat", "aerosol can"])
    assert text.shape == (3, 512)
    assert torch.allclose(text.norm(dim=1), torch.ones(3))


@real_clip
def test_a_word_beyond_the_stored_ones_is_named(tmp_path: Path) -> None:
    real_vocabulary("coco").save(tmp_path / "coco.safetensors")
    encoder = vit_b32(
        vocabulary=str(tmp_path / "coco.safetensors"), cache_dir=str(tmp_path)
    )
    with pytest.raises(ValueError, match=r"\['flying unicorn'\] are not in"):
        encoder(["cat", "flying unicorn"])


@pytest.mark.parametrize(
    "change", [dict(model="shapes-1203"), dict(templates=["a {}"])]
)
def test_stored_vectors_of_another_clip_or_prompt_are_refused(
    tmp_path: Path, encoder: CLIPTextEncoder, change: dict[str, Any]
) -> None:
    Vocabulary(SOME).embed(encoder).save(tmp_path / "words.safetensors")
    path = str(tmp_path / "words.safetensors")
    same = CLIPTextEncoder("shapes", vocabulary=path, cache_dir=str(tmp_path))
    assert torch.equal(same(SOME), encoder(SOME))
    with pytest.raises(ValueError, match="do not compare"):
        CLIPTextEncoder(**dict(dict(model="shapes", vocabulary=path), **change))


# -------------------------------------------------------------------- data sets


def test_a_data_set_asks_for_the_words_of_a_file(tmp_path: Path) -> None:
    content = [[name, f"little {name}"] for name in NAMES[::-1]]
    (tmp_path / "words.json").write_text(json.dumps(content))
    dataset = load(
        OVCocoDataset,
        make_coco(),
        tmp_path / "a.json",
        vocabulary=str(tmp_path / "words.json"),
        synonyms=True,
        metainfo=None,
    )
    info = dataset.get_data_info(0)
    assert info["words"] == tuple((n, f"little {n}") for n in NAMES[::-1])
    assert dataset.metainfo["classes"] == NAMES[::-1]
    assert len(dataset.metainfo["palette"]) == len(NAMES)


@pytest.mark.parametrize(
    "kwargs, reason",
    [
        (dict(vocabulary="rare"), "one of"),
        (dict(vocabulary="base", synonyms=True), "needs a vocabulary file"),
        (dict(vocabulary="base", metainfo=dict(classes=NAMES)), "not both"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(
    tmp_path: Path, kwargs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        load(
            OVCocoDataset,
            make_coco(),
            tmp_path / "a.json",
            **dict(dict(metainfo=None), **kwargs),
        )


@pytest.mark.parametrize(
    "group, number", [("base", 48), ("novel", 17), ("base_novel", 65), ("all", 80)]
)
def test_the_groups_of_coco_are_vocabularies(
    tmp_path: Path, group: str, number: int
) -> None:
    names = OVCocoDataset.METAINFO["classes"]
    coco = dict(
        make_coco(),
        annotations=[],
        categories=[dict(id=i, name=n) for i, n in enumerate(names)],
    )
    dataset = load(
        OVCocoDataset, coco, tmp_path / "a.json", vocabulary=group, metainfo=None
    )
    assert (
        len(dataset.metainfo["classes"]) == len(dataset.metainfo["palette"]) == number
    )


def test_lvis_images_are_found_by_the_end_of_their_url(tmp_path: Path) -> None:
    coco = make_coco()
    for image in coco["images"]:
        del image["file_name"]
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image['id']}.jpg"
    (tmp_path / "a.json").write_text(json.dumps(coco))
    dataset = OVLVISDataset(
        ann_file=str(tmp_path / "a.json"),
        data_prefix=dict(img="photos/"),
        metainfo=dict(classes=NAMES),
        pipeline=[],
    )
    assert dataset.get_data_info(0)["img_path"] == "photos/val2017/1.jpg"


# --------------------------------------------------------------------- synonyms


def test_words_know_whose_they_are() -> None:
    classes = as_vocabulary([("cat", "kitty"), "dog", ("a", "b", "c")]).words
    vectors = F.normalize(torch.rand(6, 4), dim=1)
    text = merge_synonyms(vectors, classes, "max")
    assert torch.equal(text.vectors, vectors)
    assert text.owner is not None and text.owner.tolist() == [0, 0, 1, 2, 2, 2]
    classes = as_vocabulary(["cat", ("dog",)]).words
    text = merge_synonyms(vectors[:2], classes, "max")
    assert torch.equal(text.vectors, vectors[:2]) and text.owner is None


def test_training_draws_one_of_the_synonyms_and_labels_follow() -> None:
    classes = (("cat", "kitty"), "dog", ("cow", "cattle"))
    np.random.seed(0)
    seen = set()
    for _ in range(40):
        words, (relabelled,) = RandomVocabulary(3, 3)(
            [make_sample(np.ones((3, 4)), [2, 0, 1], classes)]
        )
        assert all(len(own) == 1 for own in words)
        named = [words[i][0] for i in relabelled.gt_instances.labels.tolist()]
        assert named[0] in ("cow", "cattle") and named[2] == "dog"
        assert named[1] in ("cat", "kitty") and len(words) == 3
        seen.add(tuple(named))
    assert len(seen) == 4


def test_synonyms_answer_by_the_mean_of_vectors_or_the_best_score(
    lively: KDEOVDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, (one, two, three) = torch.rand(1, 3, 64, 64), WORDS[:3]

    @torch.no_grad()
    def logits(how: str, *words: Any) -> Tensor:
        monkeypatch.setattr(lively, "synonyms", how)
        outputs = lively._forward(image, [make_sample(words=words)])
        return outputs["predictions"][0][0]

    alone = logits("mean", one, two, three)
    best = logits("max", (one, two), three)
    mean = logits("mean", (one, two), three)
    assert torch.allclose(best[:, 0], alone[:, :2].amax(1), atol=1e-6)
    assert torch.allclose(best[:, 1], alone[:, 2], atol=1e-6)
    assert torch.allclose(mean[:, 1], alone[:, 2], atol=1e-5)
    assert mean.shape == best.shape and not torch.allclose(mean, best, atol=1e-3)
    same = logits("mean", (one, one), three)
    assert torch.allclose(same[:, 0], alone[:, 0], atol=1e-5)


def test_a_box_is_named_by_its_class_and_not_by_a_synonym(
    lively: KDEOVDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lively, "synonyms", "max")
    data = make_sample(words=((WORDS[0], WORDS[1]), WORDS[2]))
    (found,) = lively.predict(torch.rand(1, 3, 64, 64), [data])
    assert {*found.pred_instances.label_names} == {WORDS[0], WORDS[2]}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (torch.full((2, 4), math.nan), "2 of 2 vectors are not of length 1, or no"),
        (torch.eye(2, 4) * torch.tensor([[1.0], [3.0]]), "1 of 2 .* of .'dog'"),
        (torch.zeros(2, 4), "2 of 2 vectors"),
        (torch.eye(2, 4)[:, None], "vectors .D,. of one size"),
    ],
)
def test_vectors_that_are_no_directions_are_refused(rows: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Vocabulary(("cat", "dog"), vectors=dict(zip(("cat", "dog"), rows)))


@pytest.mark.parametrize("name", ["matrix.npy", "words.csv", "a/config.YAML"])
def test_a_file_of_another_format_is_no_word(name: str) -> None:
    with pytest.raises(ValueError, match="file of another format"):
        as_vocabulary(name)
    with pytest.raises(ValueError, match="file of another format"):
        as_vocabulary(["dog", name])
