"""The readers against VietOCR's published graphs in plain torch, their parts against loops, closed forms and paint."""

from __future__ import annotations

import json
import math
import unicodedata
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo import folder, images, verbs
from octavo.data import render, vietnamese
from octavo.models import load_modules, networks
from octavo.models.vietocr import data, net
from octavo.models.vietocr.loss import loss, places_loss
from octavo.models.vietocr.predict import (
    HEIGHT,
    STEP,
    WHOLE,
    Look,
    Settings,
    Written,
    beam,
    closer,
    fitted,
    greedy,
    likeliest,
    log_softmax,
    pieces,
    predict,
    read_lines,
    spell,
    spelling,
    told,
    wider,
)
from octavo.models.vietocr.recipe import RECIPES, Sampling, Weights
from octavo.models.vietocr.vocabulary import CHARACTERS, END, NUMBERS, PADDING, SIZE, START, decode, encode
from octavo.verbs import network_file

FONTS = Path("/usr/share/fonts")


@pytest.fixture(scope="module")
def faces() -> list[Path]:
    """Two fonts of the machine, as Debian's package fonts-dejavu-core has them."""
    names = ("DejaVuSans.ttf", "DejaVuSerif.ttf")
    found = [path for name in names for path in sorted(FONTS.rglob(name))]
    if len(found) < 2:
        pytest.skip(f"needs the fonts DejaVu Sans and DejaVu Serif below {FONTS}")
    return found


# Characters


def test_vocabulary_is_the_published_one() -> None:
    assert len(CHARACTERS) == 229
    assert SIZE == 233
    assert CHARACTERS.startswith("aAàÀảẢãÃáÁạẠăĂằẰẳẲẵẴắẮặẶâÂ")
    assert CHARACTERS.endswith("zZ0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ")
    assert len(set(CHARACTERS)) == 229
    assert unicodedata.normalize("NFC", CHARACTERS) == CHARACTERS


def test_texts_come_back_from_numbers() -> None:
    text = "Trăm năm trong cõi người ta, 100 %"
    assert decode(encode(text)) == text
    assert encode(unicodedata.normalize("NFD", text)) == encode(text)  # letters and marks apart
    assert decode([START, *encode("ab"), END, *encode("c")]) == "ab"


def test_unknown_characters_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"'漢' \(U\+6F22\), '€' \(U\+20AC\)|'€' \(U\+20AC\), '漢' \(U\+6F22\)"
    ):
        encode("5 € 漢")


# Lines from nothing


@pytest.mark.parametrize(
    ("rhyme", "tone", "right"),
    [
        ("a", 0, "a"),
        ("oa", 1, "òa"),
        ("oan", 4, "oán"),
        ("ương", 1, "ường"),
        ("ưa", 5, "ựa"),
        ("uyên", 3, "uyễn"),
        ("oai", 4, "oái"),
        ("iêu", 2, "iểu"),
        ("uy", 1, "ùy"),
        ("ich", 5, "ịch"),
    ],
)
def test_tones_stand_where_they_are_written(rhyme: str, tone: int, right: str) -> None:
    assert vietnamese.toned(rhyme, tone) == right


def test_lines_cover_the_vocabulary_and_depend_on_the_seed_alone() -> None:
    lines = [vietnamese.line(np.random.default_rng(i), CHARACTERS) for i in range(4000)]
    assert set("".join(lines)) == set(CHARACTERS)
    assert all(text and text == " ".join(text.split()) for text in lines)
    assert lines[:20] == [vietnamese.line(np.random.default_rng(i), CHARACTERS) for i in range(20)]
    assert set(vietnamese.line(np.random.default_rng(3), "ab ")) <= set("ab ")


def test_fonts_without_a_character_are_left_out(faces: list[Path]) -> None:
    assert render.covers(faces[0], CHARACTERS)
    assert not render.covers(faces[0], CHARACTERS + "漢")
    with pytest.raises(ValueError, match="is no folder"):
        render.fonts(Path("nowhere"), "a")
    with pytest.raises(ValueError, match="0 families are to learn from and"):
        data.split_fonts(faces[0].parent, ("",))


def test_ink_is_drawn_to_size(faces: list[Path]) -> None:
    for seed in range(20):
        ink, text = render.draw("một hai ba bốn năm", faces[0], 32, np.random.default_rng(seed), 120)
        assert ink.shape[0] == 32
        assert ink.shape[1] <= 120
        assert ink.max() > 128
        assert "một hai ba bốn năm".startswith(text)
    again, _ = render.draw("một hai ba bốn năm", faces[0], 32, np.random.default_rng(19), 120)
    assert np.array_equal(ink, again)
    page = render.print_on_paper(np.stack([ink, ink]), np.random.default_rng(0))
    assert page.shape == (2, *ink.shape, 3)
    wide, _ = render.draw("w" * 200, faces[0], 32, np.random.default_rng(0), 120)  # one word: pressed
    assert wide.shape == (32, 120)


# What is learned from


@pytest.fixture(scope="module")
def lines(faces: list[Path], tmp_path_factory: pytest.TempPathFactory) -> data.Lines:
    place = tmp_path_factory.mktemp("lines") / "kept"
    data.keep(40, [faces], 5, place)
    return data.keep(40, [faces], 5, place)  # read, not made again


def train_set(lines: data.Lines, **sampling: Any) -> data.TrainSet:
    stage = RECIPES["vietocr-small"].stages["reader"]
    stage = type(stage)(Sampling(**sampling), stage.schedule)
    return data.TrainSet(lines, np.argsort(lines.widths, kind="stable"), [], lines, stage)


def test_kept_lines_are_those_that_were_drawn(faces: list[Path], lines: data.Lines) -> None:
    for number in (0, 7, 39):
        ((ink, text),) = data.rendered([faces], 5, range(number, number + 1))
        assert np.array_equal(lines[number], ink)
        assert lines.texts[number] == text


def test_lines_to_learn_from_are_as_wide_as_is_asked(faces: list[Path], tmp_path: Path) -> None:
    wide, narrow = (data.keep(20, [faces], 5, tmp_path / str(longest), longest) for longest in (512, 200))
    assert wide.widths.max() > 200 >= narrow.widths.max()
    assert all(text.startswith(start) for text, start in zip(wide.texts, narrow.texts, strict=True))


def test_batches_have_one_width_and_the_numbers_of_their_texts(lines: data.Lines) -> None:
    samples = train_set(lines, growing=0.0)
    (pixels, told), targets = samples.batch((0, 0, 50), 4)
    again = samples.batch((0, 0, 50), 4)
    assert torch.equal(pixels, again[0][0])
    assert pixels.shape[1:3] == (3, HEIGHT)
    assert pixels.shape[3] % STEP == 0
    assert -1 <= float(pixels.min()) <= float(pixels.max()) < 1
    assert (told[:, 0] == START).all()
    assert torch.equal(told[:, 1:][told[:, 1:] > END], targets["next"][targets["next"] > END])
    assert all(decode(row.tolist()) in lines.texts for row in targets["next"])


def test_processes_get_other_lines_of_one_width(lines: data.Lines) -> None:
    samples = train_set(lines, growing=0.0)
    widths = set()
    for step in range(8):
        (one, told), (other, told_other) = (samples.batch((0, rank, step), 4)[0] for rank in (0, 1))
        assert one.shape[0] == other.shape[0]
        assert abs(one.shape[3] - other.shape[3]) <= 4 * STEP  # 40 lines are few
        assert told.shape != told_other.shape or not torch.equal(told, told_other)
        widths.add(one.shape[3])
    assert len(widths) > 2


def test_lines_grow_over_the_first_steps(lines: data.Lines) -> None:
    samples = train_set(lines, first=96, growing=0.5)
    steps = samples.stage.schedule.epochs * samples.stage.schedule.steps
    assert samples.widest(0) == 96
    assert samples.widest(steps // 4) == pytest.approx((96 + 416) / 2, abs=1)
    assert samples.widest(steps) == 416


def test_labels_with_unknown_characters_are_refused(tmp_path: Path) -> None:
    root = data_set(tmp_path, ["ab", "5 €"])
    with pytest.raises(ValueError, match=r"1\.png of .*'€'"):
        data.real_lines(root, Sampling(held_out=0.0))


def data_set(root: Path, texts: list[str], width: int = 90) -> Path:
    """A picture of noise for each text, as train and as val."""
    rng = np.random.default_rng(0)
    for i in range(len(texts)):
        cv2.imwrite(str(root / f"{i}.png"), rng.integers(0, 256, (30, width, 3), np.uint8))
    rows = "".join(f"{i}.png\t{text}\n" for i, text in enumerate(texts))
    for split in ("train", "val"):
        (root / f"{split}.txt").write_text(rows, encoding="utf-8")
    return root


# Losses


def test_next_is_smoothed_cross_entropy() -> None:
    logits = torch.randn(2, 3, SIZE, generator=torch.Generator().manual_seed(0))
    following = torch.tensor([[7, 8, END], [9, END, PADDING]])
    parts = loss((logits,), {"next": following}, Weights(smoothing=0.2))
    log_p = torch.log_softmax(logits, 2)
    told = [(i, t, int(n)) for i, row in enumerate(following) for t, n in enumerate(row) if n != PADDING]
    wanted = [-(0.8 * log_p[i, t, n] + 0.2 * log_p[i, t].mean()) for i, t, n in told]
    assert list(parts) == ["next"]
    assert float(parts["next"]) == pytest.approx(float(torch.stack(wanted).mean()), rel=1e-5)


def test_places_are_all_ways_to_spell_the_text() -> None:
    logits = torch.randn(1, 4, SIZE, generator=torch.Generator().manual_seed(1))
    text = [10, 10]
    p = torch.softmax(logits[0], 1)
    total = 0.0
    for path in product((PADDING, 10), repeat=4):
        merged = [c for i, c in enumerate(path) if i == 0 or c != path[i - 1]]
        if [c for c in merged if c != PADDING] == text:
            total += math.prod(float(p[t, c]) for t, c in enumerate(path))
    assert float(places_loss(logits, torch.tensor([[*text, END]]))) == pytest.approx(
        -math.log(total) / 2, rel=1e-4
    )


# Networks and published weights


def published_vgg(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """torchvision's VGG19 with normalisation, its pools as VietOCR's configuration has them, and what follows."""
    number = 0
    for count, pool in ((2, (2, 2)), (2, (2, 2)), (4, (2, 1)), (4, (2, 1)), (4, (1, 1))):
        for _ in range(count):
            conv, norm = f"cnn.model.features.{number}", f"cnn.model.features.{number + 1}"
            x = F.conv2d(x, state[f"{conv}.weight"], state[f"{conv}.bias"], padding=1)
            values = (state[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
            x = F.relu(F.batch_norm(x, *values))
            number += 3
        x = F.avg_pool2d(x, pool, pool)
        number += 1
    x = F.conv2d(x, state["cnn.model.last_conv_1x1.weight"], state["cnn.model.last_conv_1x1.bias"])
    return x.transpose(-1, -2).flatten(2).permute(-1, 0, 1)  # (places, n, 256)


def vgg_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state, inputs, number = {}, 3, 0
    for count, channels in ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)):
        for _ in range(count):
            conv, norm = f"cnn.model.features.{number}", f"cnn.model.features.{number + 1}"
            weight = torch.randn(channels, inputs, 3, 3, generator=generator)
            state[f"{conv}.weight"] = weight * math.sqrt(2 / (9 * inputs))
            state[f"{conv}.bias"] = torch.randn(channels, generator=generator) / 10
            state[f"{norm}.weight"] = torch.rand(channels, generator=generator) + 0.5
            state[f"{norm}.bias"] = torch.randn(channels, generator=generator) / 10
            state[f"{norm}.running_mean"] = torch.randn(channels, generator=generator) / 10
            state[f"{norm}.running_var"] = torch.rand(channels, generator=generator) + 0.5
            state[f"{norm}.num_batches_tracked"] = torch.tensor(1)
            inputs, number = channels, number + 3
        number += 1
    state["cnn.model.last_conv_1x1.weight"] = torch.randn(256, 512, 1, 1, generator=generator) / 20
    state["cnn.model.last_conv_1x1.bias"] = torch.randn(256, generator=generator)
    return state


class PublishedSeq2Seq(nn.Module):
    """The sequence part as VietOCR's weights name it, times first."""

    def __init__(self, hidden: int = 256) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {"rnn": nn.GRU(256, hidden, bidirectional=True), "fc": nn.Linear(2 * hidden, hidden)}
        )
        attention = nn.ModuleDict(
            {"attn": nn.Linear(3 * hidden, hidden), "v": nn.Linear(hidden, 1, bias=False)}
        )
        self.decoder = nn.ModuleDict(
            {
                "attention": attention,
                "embedding": nn.Embedding(SIZE, hidden),
                "rnn": nn.GRU(3 * hidden, hidden),
                "fc_out": nn.Linear(4 * hidden, SIZE),
            }
        )

    def forward(self, features: Tensor, numbers: Tensor) -> Tensor:
        encoder, decoder = self.encoder, self.decoder
        memory, last = encoder["rnn"](features)
        hidden = torch.tanh(encoder["fc"](torch.cat([last[-2], last[-1]], 1)))
        logits = []
        for number in numbers.unbind(1):
            embedded = decoder["embedding"](number)
            joined = torch.cat([hidden.expand(len(memory), -1, -1), memory], 2)
            energy = torch.tanh(decoder["attention"]["attn"](joined))
            weights = torch.softmax(decoder["attention"]["v"](energy), 0)  # (places, n, 1)
            seen = (weights * memory).sum(0)
            output, hidden = decoder["rnn"](torch.cat([embedded, seen], 1)[None], hidden[None])
            hidden = hidden[0]
            logits.append(decoder["fc_out"](torch.cat([output[0], seen, embedded], 1)))
        return torch.stack(logits, 1)


class PublishedTransformer(nn.Module):
    """The other sequence part, all characters at once under a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tgt = nn.Embedding(SIZE, 256)
        self.transformer = nn.Transformer(256, 8, 6, 6, 2048, 0.1)
        self.fc = nn.Linear(256, SIZE)

    def forward(self, features: Tensor, numbers: Tensor) -> Tensor:
        def placed(x: Tensor) -> Tensor:
            angle = torch.arange(len(x))[:, None] / 10000 ** (torch.arange(0, 256, 2) / 256)
            where = torch.zeros(len(x), 256)
            where[:, 0::2], where[:, 1::2] = angle.sin(), angle.cos()
            return x * 16 + where[:, None]

        mask = nn.Transformer.generate_square_subsequent_mask(numbers.shape[1])
        written = placed(self.embed_tgt(numbers.T))
        return self.fc(self.transformer(placed(features), written, tgt_mask=mask).transpose(0, 1))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")  # torch's, of its own transformer
@pytest.mark.parametrize(
    ("variant", "kind"),
    [("vietocr-seq2seq", PublishedSeq2Seq), ("vietocr-transformer", PublishedTransformer)],
)
def test_published_weights_compute_the_published_text(variant: str, kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sequence = kind().eval()
    state = {**vgg_state(), **{f"transformer.{k}": v for k, v in sequence.state_dict().items()}}
    if variant == "vietocr-transformer":
        state["transformer.pos_enc.pe"] = torch.zeros(1024, 1, 256)
    torch.save(state, tmp_path / "vgg.pth")
    states = net.import_weights(tmp_path / "vgg.pth")
    modules = net.build(variant)
    for name, module in modules.items():
        module.load_state_dict(states[name])
        module.eval()
    pixels = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(1))
    numbers = torch.tensor([[START, 30, 31, 32], [START, 60, 61, 62]])
    with torch.no_grad():
        features = published_vgg(state, pixels)
        ours = modules["cnn"](pixels)
        assert torch.allclose(ours, features.transpose(0, 1), rtol=1e-3, atol=1e-4)
        state_, *memory = modules["encoder"](ours)
        steps = []
        for number in numbers.unbind(1):
            logits, state_ = modules["decoder"](number, state_, *memory)
            steps.append(logits)
        assert torch.allclose(torch.stack(steps, 1), sequence(features, numbers), rtol=1e-3, atol=1e-4)
    del state["cnn.model.last_conv_1x1.bias"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"missing, unknown or misshaped reduce\.bias"):
        net.import_weights(tmp_path / "less.pth")


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match="not a plain PyTorch state dict"):
        net.import_weights(tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"vgg_seq2seq\.pth or vgg_transformer\.pth"):
        net.import_weights(tmp_path / "none.pth")


def test_what_a_variant_looks_like_from_outside() -> None:
    for variant in ("vietocr-small", "vietocr-transformer"):
        modules, like = net.build(variant), networks(variant)
        for name in ("encoder", "decoder"):
            arrays = network_file.example(like[name])
            with torch.no_grad():
                found = modules[name].eval()(*map(torch.from_numpy, arrays))
            assert len(found) == len(like[name].outputs)
            for array, (shape, _) in zip(arrays, like[name].inputs.values(), strict=True):
                assert array.shape == shape


# The picture


def paint(words: list[int], height: int = 32, gap: int = 14) -> np.ndarray:
    """Black bars of these widths on white, with gaps between them: words of a line."""
    image = np.full((height, sum(words) + gap * (len(words) + 1), 3), 255, np.uint8)
    x = gap
    for width in words:
        image[8:24, x : x + width : 2] = 0  # strokes with less than a gap between them
        x += width + gap
    return image


def test_a_line_keeps_its_ratio_and_is_padded_with_its_edge() -> None:
    image = np.zeros((16, 40, 3), np.uint8)
    image[:, -1] = (10, 20, 30)
    made = fitted(image)
    assert made.shape == (32, 96, 3)  # 80, and up to the next 32
    assert (made[:, 80:] == made[:, 79:80]).all()
    assert fitted(np.zeros((40, 9000, 3), np.uint8)).shape == (32, 512, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 2)])
def test_the_smallest_pictures_are_fitted(size: tuple[int, int]) -> None:
    made = fitted(np.full((*size, 3), 7, np.uint8))
    assert made.shape[0] == 32
    assert made.shape[1] % STEP == 0
    assert (made == 7).all()


def test_long_lines_are_cut_between_words() -> None:
    image = paint([60, 80, 50, 90, 70, 80, 60, 90, 80, 100])
    parts = pieces(image)
    assert len(parts) > 2
    assert sum(part.shape[1] for part, _ in parts) == image.shape[1]
    assert all(gap for _, gap in parts)
    for part, _ in parts:
        assert part.shape[1] <= 512
        assert (part[:, [0, -1]] == 255).all()  # a cut goes through paper
    assert len(pieces(image[:, :WHOLE])) == 1
    solid = np.zeros((32, 4000, 3), np.uint8)
    solid[::2] = 255
    assert sum(part.shape[1] for part, _ in pieces(solid)) == 4000  # nothing to go by, and nothing lost
    assert not any(gap for _, gap in pieces(solid)[1:])


# The text


class Table:
    """A decoder that knows each character's probability from the one before it. state: how many were written."""

    def __init__(self, following: dict[int, dict[int, float]]) -> None:
        self.following = following

    def __call__(self, number: np.ndarray, state: np.ndarray, *memory: np.ndarray) -> tuple[np.ndarray, ...]:
        p = np.full((len(number), SIZE), 1e-9, np.float32)
        for row, n in enumerate(number.tolist()):
            for following, value in self.following.get(n, {END: 1.0}).items():
                p[row, following] = value
        return np.log(p), state + 1


A, B, C = (NUMBERS[c] for c in "abc")
STATE = np.zeros((1, 1), np.float32)


def test_greedy_takes_the_likeliest_and_beams_the_likeliest_text() -> None:
    table = Table({START: {A: 0.6, B: 0.4}, A: {END: 0.3, A: 0.35, C: 0.35}, B: {END: 1.0}, C: {END: 1.0}})
    ((text, log_p, least),) = greedy(table, STATE, [], 3)
    assert decode(text) == "aaa"
    assert log_p == pytest.approx(math.log(0.6 * 0.35 * 0.35), rel=1e-4)
    assert least == pytest.approx(0.35, rel=1e-4)
    text, log_p, least = beam(table, STATE, [], 10, 4)
    assert decode(text) == "b"
    assert math.exp(log_p) == pytest.approx(0.4, rel=1e-4)
    assert least == pytest.approx(0.4, rel=1e-4)


def test_spelling_is_the_training_loss() -> None:
    """The probability of a text by its places, against torch's CTC; doubled letters, no letters, and what can't be."""
    logits = torch.randn(1, 5, SIZE, generator=torch.Generator().manual_seed(2))
    log_p = log_softmax(logits[0].numpy())
    for text in ([A], [A, B], [A, A], [A, A, A], [B, A, B, A, B]):
        wanted = -len(text) * float(places_loss(logits, torch.tensor([[*text, END]])))
        assert spelling(log_p, [*text, END]) == pytest.approx(wanted, rel=1e-5)
    assert spelling(log_p, [END]) == pytest.approx(log_p[:, PADDING].sum(), rel=1e-9)
    assert spelling(log_p, [A, A, A, A, END]) == -math.inf  # needs seven places


def test_places_spell_a_text() -> None:
    assert decode(spell(np.array([PADDING, A, A, PADDING, A, B, B, START]))) == "aab"
    assert spell(np.full(4, PADDING)) == [END]


def test_texts_that_are_told_are_as_likely_as_when_they_are_written() -> None:
    table = Table({START: {A: 0.6, B: 0.4}, A: {END: 0.3, A: 0.7}, B: {END: 1.0}})
    one, other = told(table, STATE, [], [[A, A, END], [B, END]])
    assert (one.numbers, other.numbers) == ([A, A, END], [B, END])
    assert np.exp([one.log_p, other.log_p]) == pytest.approx([0.6 * 0.7 * 0.3, 0.4], rel=1e-4)
    assert (one.least, other.least) == pytest.approx((0.3, 0.4), rel=1e-4)


def seen(places: dict[int, float], written: list[int] | None = None) -> Look:
    """A look at one place of which `places` says what stands there."""
    p = np.full((1, SIZE), 1e-9)
    for number, value in places.items():
        p[0, number] = value
    return Look(STATE, (), np.log(p), Written(written or [A, END], math.log(0.6), 0.6), 128)


@pytest.mark.parametrize(("sure", "weight", "read"), [(0.9, 1.0, "b"), (0.45, 1.0, "a"), (0.45, 9.0, "b")])
def test_the_likelier_of_two_readings_is_taken(sure: float, weight: float, read: str) -> None:
    """The decoder holds a for likelier than b, 6 to 4; the places b than a, `sure` to .4."""
    table = Table({START: {A: 0.6, B: 0.4}})
    look = seen({A: 0.4, B: sure})
    assert look.texts == [[A, END], [B, END]]
    text, log_p, _ = likeliest(table, [look], weight)
    assert decode(text) == read
    assert math.exp(log_p) == pytest.approx({"a": 0.6, "b": 0.4}[read], rel=1e-4)  # the decoder's


def test_all_looks_have_a_say() -> None:
    """b needs 1.5 times the probability of a from the places for each look at which the decoder is asked."""
    table = Table({START: {A: 0.6, B: 0.4}})
    first, second, third = seen({A: 0.5, B: 0.4}), seen({A: 0.3, B: 0.6}), seen({A: 0.1, B: 0.8})
    assert decode(likeliest(table, [first], 1.0).numbers) == "a"
    assert decode(likeliest(table, [first, second], 1.0).numbers) == "a"  # .6² .5 .3 against .4² .4 .6
    assert decode(likeliest(table, [first, third], 1.0).numbers) == "b"  # .6² .5 .1 against .4² .4 .8
    other = seen({C: 0.9}, [C, END])
    assert (
        decode(likeliest(table, [first, other], 1.0).numbers) != "c"
    )  # read in one look, unlikely in the other


def test_a_look_is_in_doubt() -> None:
    assert seen({A: 0.4, B: 0.6}).in_doubt(0)  # two readings
    assert not seen({A: 0.6}).in_doubt(0.5)
    assert seen({A: 0.6}).in_doubt(0.7)
    long = Look(STATE, (), np.log(np.full((3, SIZE), 1e-9)), Written([A, END], -1.0, 0.6), 0)
    assert long.texts == [[A, END]]  # the other has more characters than it may


def test_a_closer_look_has_the_rows_with_ink() -> None:
    image = np.full((60, 200, 3), 230, np.uint8)
    image[20:41, 10:190:6] = 40
    image = np.clip(image + np.random.default_rng(0).normal(0, 4, image.shape), 0, 255).astype(np.uint8)
    near = closer(image)
    assert 21 <= len(near) <= 29
    assert near.shape[1:] == (200, 3)
    assert closer(255 - image).shape == near.shape
    assert wider(image).shape == (60, 216, 3)
    for size in ((1, 1), (1, 40), (40, 1)):
        blank = np.full((*size, 3), 200, np.uint8)
        assert closer(blank).size
        assert wider(blank).size


def test_longest_ends_a_text() -> None:
    endless = Table({START: {A: 1.0}, A: {A: 1.0}})
    assert decode(greedy(endless, STATE, [], 5)[0][0]) == "aaaaa"
    assert decode(beam(endless, STATE, [], 5, 3)[0]) == "aaaaa"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"beams": 0}, "beams"),
        ({"longest": 0}, "longest"),
        ({"places": -1.0}, "places"),
        ({"doubt": 2.0}, "doubt"),
        ({"min_face": 3}, "no setting min_face; they have"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings.of({}, **settings)


# The flow


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the small reader as it is born."""
    from octavo.models import save_module
    from octavo.verbs.float_model import float_info

    place = tmp_path_factory.mktemp("models") / "small"
    torch.manual_seed(0)
    modules = net.build("vietocr-small")
    for name, module in modules.items():
        save_module(module, place / f"{name}.pt")
    folder.write_info(place, float_info("vietocr-small", list(modules), RECIPES["vietocr-small"], "none"))
    return place


@pytest.mark.parametrize(
    ("name", "backend"),
    [("vietocr-small", "onnxruntime"), ("vietocr-small", "openvino"), ("vietocr-small-float", "torch")],
)
def test_embedded_readers_read_the_sample_lines(name: str, backend: str) -> None:
    pytest.importorskip(backend)
    found = verbs.evaluate(name, verbs.SAMPLES / "text", backend=backend)
    assert found["images"] == 4
    assert found["exact"]["all"] == 1
    assert found["cer"] == 0


def test_an_embedded_reader_needs_no_colour_and_no_black_on_white() -> None:
    model = verbs.load("vietocr-small", "onnxruntime")
    picture = images.read(verbs.SAMPLES / "text" / "line2.jpg")
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    others = [255 - picture, cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), cv2.resize(picture, None, fx=3, fy=3)]
    wanted = model(picture)
    assert wanted.confidence > 0.8
    assert [model(other).text for other in others] == [wanted.text] * 3
    blank = model(np.full((40, 200, 3), 255, np.uint8))
    assert len(blank.text) < 3
    assert model(np.zeros((1, 1, 3), np.uint8)).confidence <= 1


def test_lines_read_together_are_read_as_alone(small: Path) -> None:
    model = verbs.load(small, "torch")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((32, 60), (20, 90), (32, 61), (30, 700))]
    settings = Settings(longest=6, doubt=0.5)
    together = read_lines(images, model.run, settings)
    assert (
        read_lines(images, model.run, Settings(longest=6, places=0, doubt=0.5)) != together
    )  # it has a second opinion
    for image, text in zip(images, together, strict=True):
        alone = predict(image, model.run, settings)
        assert alone.text == text.text
        assert alone.confidence == pytest.approx(text.confidence, rel=1e-4)


def test_parts_are_quantized_by_different_means(small: Path, tmp_path: Path) -> None:
    from octavo.quantize.dynamic import DynamicCell, DynamicLinear, WeightOnly
    from octavo.quantize.prepare import QuantModel

    root = data_set(tmp_path, ["a", "b", "c"])
    both = verbs.quantize(small, root, tmp_path / "both", images=2)
    modules = load_modules(both)
    assert isinstance(modules["cnn"], QuantModel)
    assert isinstance(modules["encoder"].gru, WeightOnly)
    assert isinstance(modules["encoder"].keys, DynamicLinear)
    assert isinstance(modules["decoder"].gru, DynamicCell)
    cnn = verbs.quantize(small, root, tmp_path / "cnn", images=2, keep_float=["encoder/*", "decoder/*"])
    assert [isinstance(module, QuantModel) for module in load_modules(cnn).values()] == [True, False, False]
    assert isinstance(load_modules(cnn)["decoder"].gru, nn.GRUCell)
    sequence = verbs.quantize(small, root, tmp_path / "sequence", images=2, keep_float=["cnn/*"])
    assert not isinstance(load_modules(sequence)["cnn"], QuantModel)
    assert folder.read_info(sequence)["calibration"] is None


def test_weights_alone_are_stored(small: Path, tmp_path: Path) -> None:
    from octavo.quantize.dynamic import WeightOnly

    whole = verbs.quantize(small, out=tmp_path / "stored", level=1, store=["*"])
    assert isinstance(load_modules(whole)["decoder"].out, WeightOnly)
    _, parities, lowered = verbs.export(whole)
    assert all(parity.ok for parity in parities.values())
    assert not lowered
    written = sum((whole / f"{name}.onnx").stat().st_size for name in parities)
    assert written < 0.3 * sum((small / f"{name}.pt").stat().st_size for name in parities)
    part = verbs.quantize(small, out=tmp_path / "part", level=1, store=["decoder/*"], keep_float=["cnn/*"])
    forms = load_modules(part)
    assert isinstance(forms["cnn"].reduce, nn.Conv2d)
    assert isinstance(forms["decoder"].out, WeightOnly)
    assert not isinstance(forms["encoder"].keys, WeightOnly)
    with pytest.raises(ValueError, match=r"NETWORK/LAYER.*not 'decodr/\*'\. Did you mean decoder"):
        verbs.quantize(small, out=tmp_path / "none", level=1, store=["decodr/*"])


def test_exported_parts_compute_what_torch_computes(small: Path, tmp_path: Path) -> None:
    root = data_set(tmp_path, ["a", "b", "c"])
    both = verbs.quantize(small, root, tmp_path / "both", images=2)
    _, parities, lowered = verbs.export(both, images=[root / "0.png"])
    assert all(lowered[f"{name}.openvino"].parity.ok for name in ("encoder", "decoder"))
    assert {name: parity.ok for name, parity in parities.items()} == dict.fromkeys(
        ("cnn", "encoder", "decoder"), True
    )
    sizes = {name: (both / f"{name}.onnx").stat().st_size for name in parities}
    floats = {name: (small / f"{name}.pt").stat().st_size for name in parities}
    assert sum(sizes.values()) < 0.3 * sum(floats.values())
    forms = sum(path.stat().st_size for path in both.glob("*.openvino.onnx"))
    assert forms < 0.01 * sum(sizes.values())  # the integers are there once
    image = cv2.imread(str(root / "1.png"))
    in_torch, exported = (verbs.load(both, b)(image, longest=4) for b in ("torch", "onnxruntime"))
    assert exported.text == in_torch.text
    assert exported.confidence == pytest.approx(in_torch.confidence, abs=0.02)
    found = verbs.evaluate(both, root, backend="onnxruntime", longest=4)
    assert found["cer"] > 0.5  # of noise
    assert json.loads(json.dumps(found))["images"] == 3


def test_training_learns_and_goes_on_with_integers(faces: list[Path], tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", ["a", "b", "cd", "d"])
    few = [
        f"stages.reader.{change}"
        for change in (
            "sampling.synthetic=30",
            "sampling.watched=2",
            f"sampling.fonts={faces[0].parent}",
            'sampling.held_out_fonts=["DejaVu Serif"]',
            "sampling.width=32",
            "schedule.epochs=1",
            "schedule.steps=3",
            "schedule.batch_size=4",
        )
    ]
    model = verbs.train("vietocr-small", root, tmp_path / "float", changes=few, accelerator="cpu")
    assert model is not None
    fresh = net.build("vietocr-small")
    trained = load_modules(model)
    for name in fresh:
        before, after = fresh[name].state_dict(), trained[name].state_dict()
        assert any(not torch.equal(before[key], after[key]) for key in before), name
    log = [json.loads(line) for line in (model / "log.jsonl").read_text().splitlines()]
    assert {"next", "places", "exact", "cer"} <= set(log[-1])
    int8 = verbs.quantize(model, root, tmp_path / "int8", images=2)
    learned = verbs.train(int8, root, tmp_path / "qat", changes=few, accelerator="cpu")
    assert learned is not None
    stored, again = (load_modules(place)["encoder"].keys.weights["weight"] for place in (int8, learned))
    assert not torch.equal(stored.scale, again.scale)  # learned in float, and stored as integers once more


@pytest.fixture(autouse=True)
def _made(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(exist_ok=True)
