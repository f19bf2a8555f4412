"""The teacher's language: text, its cache, images, and which CLIP."""

import dataclasses
import json
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdeov_mm.clip import CLIPImageTeacher, CLIPSource, CLIPTextEncoder
from kdeov_mm.clip.packing import sentence_layout
from kdeov_mm.clip.source import OPENAI
from kdeov_mm.vocabulary import clean_name

from ..conftest import CLIP_CONFIG, EMBED_DIMS, IMAGE_SIZE, WORDS, write_clip

TEMPLATES = ("{}", "a photo of a {}", "a big {} here")


@pytest.fixture
def encoder(tiny_clip: str, tmp_path: Path) -> CLIPTextEncoder:
    return CLIPTextEncoder(tiny_clip, templates=TEMPLATES, cache_dir=str(tmp_path))


@pytest.fixture(scope="session")
def teacher(tiny_clip: str) -> CLIPImageTeacher:
    return CLIPImageTeacher(tiny_clip)


def forbid_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: CLIPSource) -> Any:
        raise AssertionError("the CLIP was loaded")

    monkeypatch.setattr(CLIPSource, "load", load)


# ------------------------------------------------------------------------ text


def slow_text(model: str, words: tuple[str, ...]) -> Tensor:
    """Word by word, prompt by prompt."""
    source = CLIPSource(model)
    clip, tokenize = source.load(), source.tokenizer()
    rows = []
    for word in words:
        total = torch.zeros(EMBED_DIMS)
        for template in TEMPLATES:
            prompt = template.replace("{}", word)
            embed = clip.encode_text(tokenize([prompt]))[0]
            total += embed / embed.norm()
        mean = total / len(TEMPLATES)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("pack", [1, 9, 512])
@pytest.mark.parametrize(
    "sentences",
    [
        ["a photo of a cat"],
        ["a photo of a cat"] * 3,
        ["a photo of a cat", "a photo of a", "a photo of a very old house"],
        ["x", "a photo of a " + "very " * 40 + "old house", "", "a"],
    ],
)
def test_sentences_packed_together_are_those_one_by_one(
    pack: int,
    sentences: list[str],
    encoder: CLIPTextEncoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kdeov_mm.clip.packing.PACK", pack)
    tower, tokens = encoder._load(), encoder._tokenize(sentences)
    alone = [tower.encode_text(row[None], normalize=True) for row in tokens]
    torch.testing.assert_close(encoder.embed_prompts(sentences), torch.cat(alone))


def test_a_tower_that_looks_ahead_reads_whole_sentences(
    encoder: CLIPTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = encoder._load()
    monkeypatch.setattr(tower, "attn_mask", None)
    tokens = encoder._tokenize([*WORDS])
    expected = tower.encode_text(tokens, normalize=True)
    torch.testing.assert_close(encoder.embed_prompts(WORDS), expected)


def test_text_equals_the_mean_of_unit_prompts_renormalised(
    encoder: CLIPTextEncoder, tiny_clip: str
) -> None:
    torch.testing.assert_close(encoder(WORDS), slow_text(tiny_clip, WORDS))


def test_loading_a_clip_takes_no_random_numbers(tiny_clip: str) -> None:
    """Else the step of a training in which a new word is embedded goes otherwise."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    CLIPSource(tiny_clip).load()
    assert torch.equal(torch.rand(3), expected)


def test_words_are_unit_vectors_and_not_all_alike(encoder: CLIPTextEncoder) -> None:
    text = encoder(WORDS)
    assert text.shape == (len(WORDS), EMBED_DIMS) and text.dtype == torch.float32
    torch.testing.assert_close(text.norm(dim=1), torch.ones(len(WORDS)))
    similarity = text @ text.T - 2 * torch.eye(len(WORDS))
    assert similarity.max() < 0.98  # else every law below holds for nothing


def test_rows_follow_the_order_of_the_names(encoder: CLIPTextEncoder) -> None:
    text = encoder(WORDS)
    order = [3, 0, 5, 3]
    assert torch.equal(encoder([WORDS[i] for i in order]), text[order])


# words of one to some ten tokens, and templates that end in the word and that do not
MANY = [
    f"{adjective}{word}".strip()
    for adjective in ("", "very ", "unbelievably multicoloured ", "12-inch ")
    for word in (*WORDS, "a photo", "xylophone", "x", "kdeov", "daschshund puppy")
]


@pytest.mark.parametrize(
    "threads, causal",
    [(1, True), (1, False), pytest.param(2, True, marks=pytest.mark.slow)],
)
def test_a_word_has_the_same_bits_beside_whichever_others(
    threads: int,
    causal: bool,
    encoder: CLIPTextEncoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not causal:
        monkeypatch.setattr(encoder._load(), "attn_mask", None)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        alone = torch.cat([encoder.encode([word]) for word in MANY])
        for size in (2, 9, 20, 38):
            part = torch.randperm(len(MANY))[:size].tolist()
            text = encoder.encode([MANY[i] for i in part])
            assert torch.equal(text, alone[part])
    finally:
        torch.set_num_threads(before)


def test_caches_filled_in_two_orders_hold_the_same_vectors(
    encoder: CLIPTextEncoder, tmp_path: Path
) -> None:
    for words in (MANY[::2], MANY[1::2]):
        encoder(words)
    other = CLIPTextEncoder(encoder.source.model, None, TEMPLATES, str(tmp_path / "b"))
    for words in (MANY[:-20:-1], MANY[5:9], MANY):
        other(words)
    ours, theirs = (e.load_cache(e.cache_file) for e in (encoder, other))
    assert ours.keys() == theirs.keys() == set(MANY)
    assert all(torch.equal(ours[word], theirs[word]) for word in MANY)


def test_a_service_keeps_few_words_and_writes_none(encoder: CLIPTextEncoder) -> None:
    expected = encoder(WORDS)
    before = encoder.cache_file.read_bytes()
    encoder.most_words = 10
    for start in range(0, 20, 4):
        encoder(MANY[start : start + 4])
    assert [*encoder._vectors] == MANY[10:20]
    assert torch.equal(encoder(WORDS), expected) and len(encoder(MANY)) == len(MANY)
    assert len(encoder._vectors) == 10 and encoder.cache_file.read_bytes() == before


def test_names_are_asked_as_captions_write_them(encoder: CLIPTextEncoder) -> None:
    assert clean_name(" aerosol_can  top") == "aerosol can top"
    assert torch.equal(encoder(["red_ball"]), encoder(["red  ball "]))


@pytest.mark.parametrize("names", [[], [""], ["dog", " "], ["_"]])
def test_empty_words_are_refused(encoder: CLIPTextEncoder, names: list[str]) -> None:
    with pytest.raises(ValueError, match="no empty words"):
        encoder(names)


@pytest.mark.parametrize("templates", [[], ["a photo"], ["{} or {}"]])
def test_a_template_holds_one_word(tiny_clip: str, templates: list[str]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        CLIPTextEncoder(tiny_clip, templates=templates)


def test_no_text_has_gradient(encoder: CLIPTextEncoder) -> None:
    assert not encoder(WORDS).requires_grad


# ----------------------------------------------------------------------- cache


def again(encoder: CLIPTextEncoder) -> CLIPTextEncoder:
    """Another encoder of the same configuration, as another process makes it."""
    return CLIPTextEncoder(
        encoder.source.model, encoder.source.pretrained,
        encoder.templates, str(encoder.cache_dir),
    )  # fmt: skip


def test_cached_equals_live_and_leaves_the_tower_alone(
    encoder: CLIPTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = encoder(WORDS)
    forbid_tower(monkeypatch)
    assert torch.equal(again(encoder)(WORDS[::-1]), live.flip(0))
    with pytest.raises(AssertionError, match="was loaded"):
        again(encoder)(["a word that nobody asked before"])


def test_the_cache_grows_and_keeps_its_words(
    encoder: CLIPTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encoder(WORDS[:2])
    last = again(encoder)(WORDS[2:])
    forbid_tower(monkeypatch)
    assert torch.equal(again(encoder)(WORDS), torch.cat([first, last]))
    assert [file.name for file in encoder.cache_dir.iterdir()] == [
        encoder.cache_file.name
    ]


@pytest.mark.parametrize("other", ["weights", "templates", "model"])
def test_the_cache_of_another_clip_is_refused(
    encoder: CLIPTextEncoder, tmp_path: Path, tiny_clip: str, other: str
) -> None:
    model, templates = tiny_clip, TEMPLATES
    if other == "templates":
        templates = TEMPLATES[:1]
    else:  # the same weights in another folder are another model string
        model = write_clip(tmp_path / "other", seed=int(other == "weights"))
    stranger = CLIPTextEncoder(model, templates=templates, cache_dir=str(tmp_path))
    assert stranger.cache_file != encoder.cache_file
    stranger(WORDS)
    stranger.cache_file.rename(encoder.cache_file)
    with pytest.raises(ValueError, match="made by") as caught:
        encoder(WORDS)
    message = str(caught.value)
    key = {"weights": "weights_sha256", "templates": "templates", "model": "model"}
    for side in (stranger, encoder):
        assert side.identity[key[other]] in message
    assert str(encoder.cache_file) in message and "delete the file" in message


def test_weights_that_change_in_place_make_a_new_key(tmp_path: Path) -> None:
    model = write_clip(tmp_path / "clip")
    encoder = CLIPTextEncoder(model, cache_dir=str(tmp_path))
    before = encoder.cache_file
    write_clip(tmp_path / "clip", seed=1)
    assert CLIPTextEncoder(model, cache_dir=str(tmp_path)).cache_file != before


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """The results of calls that begin at the same moment."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


NEW_WORDS = [[f"{size} {word}" for word in WORDS] for size in ("big", "wee", "odd")]


def test_threads_that_ask_for_different_new_words_get_their_own(
    encoder: CLIPTextEncoder, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], CLIPSource.load
    monkeypatch.setattr(CLIPSource, "load", lambda self: loads.append(1) or load(self))
    results = in_threads(*(partial(encoder, words) for words in NEW_WORDS))
    assert len(loads) == 1
    for words, text in zip(NEW_WORDS, results, strict=True):
        torch.testing.assert_close(text, slow_text(tiny_clip, tuple(words)))
    # and all of them are kept
    forbid_tower(monkeypatch)
    every = [word for words in NEW_WORDS for word in words]
    assert torch.equal(again(encoder)(every), torch.cat(results))


def test_threads_that_ask_for_the_same_new_words_embed_them_once(
    encoder: CLIPTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[str] = []
    encode = encoder.encode
    monkeypatch.setattr(
        encoder, "encode", lambda words: embedded.extend(words) or encode(words)
    )
    first, *others = in_threads(*[partial(encoder, WORDS)] * 3)
    assert all(torch.equal(first, other) for other in others)
    assert sorted(embedded) == sorted(WORDS)


def test_sentences_of_two_threads_do_not_mix(
    encoder: CLIPTextEncoder, tiny_clip: str
) -> None:
    """Without the cache, and before the tower is loaded."""
    results = in_threads(*(partial(encoder.embed_prompts, w) for w in NEW_WORDS))
    alone = CLIPTextEncoder(tiny_clip)
    for words, embeds in zip(NEW_WORDS, results, strict=True):
        torch.testing.assert_close(embeds, alone.embed_prompts(words))


def check_cache(encoder: CLIPTextEncoder, asked: list[list[str]]) -> None:
    """The cache is whole, has some writer's words, and only right vectors."""
    assert [file.name for file in encoder.cache_dir.iterdir()] == [
        encoder.cache_file.name
    ]
    kept = encoder.load_cache(encoder.cache_file)
    assert any(kept.keys() >= set(words) for words in asked)
    for word, vector in kept.items():
        torch.testing.assert_close(vector, encoder.encode([word])[0])
    for words in asked:
        torch.testing.assert_close(again(encoder)(words), encoder.encode(words))


def test_two_encoders_that_write_the_cache_at_once_do_no_harm(
    encoder: CLIPTextEncoder,
) -> None:
    results = in_threads(*(partial(again(encoder), words) for words in NEW_WORDS))
    for words, text in zip(NEW_WORDS, results, strict=True):
        torch.testing.assert_close(text, encoder.encode(words))
    check_cache(encoder, NEW_WORDS)


def write_cache(encoder: CLIPTextEncoder, words: list[str], start: Any) -> None:
    """One word after the other, each of which writes the cache."""
    other = again(encoder)
    start.wait()
    for word in words:
        other([word])


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs fork"
)
def test_two_processes_that_write_the_cache_at_once_do_no_harm(
    encoder: CLIPTextEncoder,
) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    writers = [
        context.Process(target=write_cache, args=(encoder, words, start))
        for words in NEW_WORDS[:2]
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    check_cache(encoder, NEW_WORDS[:2])


@pytest.mark.parametrize("harm", ["cut", "changed", "empty"])
def test_a_damaged_cache_is_refused_by_its_name(
    encoder: CLIPTextEncoder, harm: str
) -> None:
    encoder(WORDS)
    whole = bytearray(encoder.cache_file.read_bytes())
    whole[-1] ^= 1
    length = dict(cut=len(whole) // 2, empty=0).get(harm, len(whole))
    encoder.cache_file.write_bytes(whole[:length])
    with pytest.raises(ValueError, match=f"{encoder.cache_file.name} is damaged"):
        again(encoder)(WORDS)


# ---------------------------------------------------------------------- images


def test_images_are_unit_vectors_and_not_all_alike(teacher: CLIPImageTeacher) -> None:
    embeds = teacher(torch.rand(5, 3, IMAGE_SIZE, IMAGE_SIZE))
    assert embeds.shape == (5, EMBED_DIMS) and not embeds.requires_grad
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(5))
    assert (embeds @ embeds.T - 2 * torch.eye(5)).max() < 0.9999


def test_an_image_is_normalised_by_the_statistics_of_its_clip(
    teacher: CLIPImageTeacher, tiny_clip: str
) -> None:
    images = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    tower = CLIPSource(tiny_clip).load().visual
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    slow = tower((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    torch.testing.assert_close(teacher(images), F.normalize(slow, dim=-1))


def test_batched_equals_single(teacher: CLIPImageTeacher, tiny_clip: str) -> None:
    images = torch.rand(5, 3, 40, 24)
    single = torch.cat([teacher(image[None]) for image in images])
    torch.testing.assert_close(teacher(images), single)
    small = CLIPImageTeacher(tiny_clip, batch_size=2)
    torch.testing.assert_close(small(images), single)


@pytest.mark.parametrize("size", [IMAGE_SIZE, 64])
def test_a_box_around_the_image_embeds_as_the_image(
    teacher: CLIPImageTeacher, size: int
) -> None:
    low = torch.rand(2, 3, 4, 4)  # smooth, so that the way of resizing hardly counts
    images = F.interpolate(low, (size, size), mode="bicubic", align_corners=True)
    images = images.clamp(0, 1)
    box = torch.tensor([[0.0, 0.0, size, size]])
    crops = teacher.embed_crops(images, [box, box], scales=(1.0,))
    assert F.cosine_similarity(crops, teacher(images)).min() > 0.999


def test_a_crop_sees_its_box_at_its_scale(teacher: CLIPImageTeacher) -> None:
    """At 2x, a 16 px box in the middle is the 32 px box around it at 1x."""
    pixels = torch.rand(1, 3, 64, 64)
    small, large = (
        torch.tensor([[24.0, 24, 40, 40]]),
        torch.tensor([[16.0, 16, 48, 48]]),
    )
    crop = pixels[:, :, 16:48, 16:48]
    grown = teacher.embed_crops(pixels, [small], scales=(2.0,))
    torch.testing.assert_close(
        grown, teacher.embed_crops(pixels, [large], scales=(1.0,))
    )
    torch.testing.assert_close(grown, teacher(crop), atol=1e-3, rtol=0)
    apart = teacher.embed_crops(pixels, [small], scales=(1.0,))
    assert F.cosine_similarity(grown, apart) < 0.9999


def test_scales_are_summed_and_renormalised(teacher: CLIPImageTeacher) -> None:
    pixels = torch.rand(2, 3, 48, 64)
    boxes = [
        torch.tensor([[3.0, 4, 30, 40]]),
        torch.tensor([[0.0, 0, 9, 9], [5, 5, 63, 40]]),
    ]
    one, wide = (teacher.embed_crops(pixels, boxes, scales=(s,)) for s in (1.0, 1.5))
    both = teacher.embed_crops(pixels, boxes, scales=(1.0, 1.5))
    torch.testing.assert_close(both, F.normalize(one + wide, dim=-1))


def test_crops_come_in_the_order_of_boxes_and_images(
    teacher: CLIPImageTeacher,
) -> None:
    pixels = torch.rand(3, 3, 64, 64)
    boxes = [torch.tensor([[0.0, 0, 30, 30], [20, 10, 60, 60]]),
             torch.zeros(0, 4), torch.tensor([[1.0, 2, 33, 44]])]  # fmt: skip
    single = [
        teacher.embed_crops(pixels[i : i + 1], [box[None]])
        for i, image_boxes in enumerate(boxes)
        for box in image_boxes
    ]
    torch.testing.assert_close(teacher.embed_crops(pixels, boxes), torch.cat(single))


def test_empty_and_outside_boxes_still_embed(teacher: CLIPImageTeacher) -> None:
    boxes = torch.tensor([[9.0, 9, 9, 9], [-20, -20, -5, -5], [-1e6, 0, 1e6, 64]])
    embeds = teacher.embed_crops(torch.rand(1, 3, 64, 64), [boxes])
    assert embeds.isfinite().all()
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(3))


# ------------------------------------------------------------------ which CLIP


def test_json_config_with_a_weights_file_is_the_local_dir(
    tiny_clip: str, tmp_path: Path
) -> None:
    folder = Path(tiny_clip.removeprefix("local-dir:"))
    config = tmp_path / "my_tiny_clip.json"
    config.write_text(json.dumps(CLIP_CONFIG))
    weights = str(folder / "open_clip_model.safetensors")
    source = CLIPSource(str(config), weights)
    assert source.weights_hash() == CLIPSource(tiny_clip).weights_hash()
    cache = dict(cache_dir=str(tmp_path), templates=TEMPLATES)
    torch.testing.assert_close(
        CLIPTextEncoder(str(config), weights, **cache)(WORDS),
        CLIPTextEncoder(tiny_clip, **cache)(WORDS),
    )


def test_random_weights_are_the_same_each_time_and_take_no_random_numbers(
    tmp_path: Path,
) -> None:
    config = tmp_path / "my_tiny_clip.json"
    config.write_text(json.dumps(CLIP_CONFIG))
    source = CLIPSource(str(config), "random")
    torch.manual_seed(1)
    following = torch.rand(3)
    torch.manual_seed(1)
    one, other = source.load().state_dict(), source.load().state_dict()
    assert torch.equal(torch.rand(3), following)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert source.is_local and len(source.weights_hash()) == 64
    encoder = CLIPTextEncoder(str(config), "random", cache_dir=str(tmp_path))
    torch.testing.assert_close(encoder(WORDS), encoder.encode(WORDS))


def test_a_clip_has_openais_name_or_another() -> None:
    openai = CLIPSource.named("ViT-B/32")
    assert openai == CLIPSource("ViT-B-32-quickgelu", "openai")
    assert set(OPENAI.values()) <= {*open_clip.list_models()}
    with pytest.raises(
        ValueError, match="'a.pt' is neither a file nor one of the tags"
    ):
        CLIPSource.named("ViT-B-16", "a.pt")
    assert CLIPSource.named("ViT-B/32", None).is_random
    # what brings its weights keeps them
    assert CLIPSource.named("shapes") == CLIPSource("shapes")
    assert CLIPSource.named("local-dir:a", None) == CLIPSource("local-dir:a")
    with pytest.raises(ValueError, match="OpenAI's.*'ViT-B/32'.*'shapes'.*'ViT-B/33'"):
        CLIPSource.named("ViT-B/33")


def test_a_clip_without_weights_says_what_to_set(
    tiny_clip: str, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="set `pretrained` to a local file"):
        CLIPTextEncoder("ViT-B-32", cache_dir=str(tmp_path))(WORDS)
    with pytest.raises(FileNotFoundError, match="neither a file nor a tag"):
        CLIPTextEncoder("ViT-B-32", "no_such_tag", cache_dir=str(tmp_path))(WORDS)
    with pytest.raises(FileNotFoundError, match="holds no open_clip weights"):
        CLIPTextEncoder(f"local-dir:{tmp_path}")(WORDS)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        CLIPSource(str(tmp_path / "missing.json"), __file__).load()


def test_a_tag_is_fetched_unless_a_checkpoint_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(CLIPSource, "_downloaded", lambda self: None)
    monkeypatch.setattr(
        open_clip, "download_pretrained", lambda tag: asked.append(tag) or "a.bin"
    )
    source = CLIPSource("RN50-quickgelu", "openai")
    assert source.weights_file() == Path("a.bin") and len(asked) == 1
    with pytest.raises(FileNotFoundError, match="is not fetched"):
        dataclasses.replace(source, fetch=False).weights_file()
    assert len(asked) == 1


def test_packed_sentences_share_what_all_of_them_begin_with() -> None:
    tokens = torch.tensor([[8, 1, 2, 9, 0], [8, 1, 3, 4, 9], [8, 1, 2, 4, 9]])
    assert sentence_layout(tokens) == (2, 4, 5, 5)
    # the end is each one's own
    assert sentence_layout(tokens[[0, 0]]) == (3, 4, 4)


def test_the_clip_is_frozen(tiny_clip: str) -> None:
    clip = CLIPSource(tiny_clip).load()
    assert not clip.training
    assert not any(parameter.requires_grad for parameter in clip.parameters())


def test_the_students_mixed_precision_does_not_round_the_cache(
    tiny_clip: str, tmp_path: Path
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        mixed = CLIPTextEncoder(tiny_clip, cache_dir=str(tmp_path / "a"))(WORDS)
    full = CLIPTextEncoder(tiny_clip, cache_dir=str(tmp_path / "b"))(WORDS)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, full)


def test_a_string_is_not_a_list_of_words(tiny_clip: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="list of words, got 'cat'"):
        CLIPTextEncoder(tiny_clip, cache_dir=str(tmp_path))("cat")
