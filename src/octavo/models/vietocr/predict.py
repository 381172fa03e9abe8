"""One line of text: scaled to 32 pixels high, looked at, written character by character.

    image -> pieces of a line -> cnn -> encoder -> decoder, again and again until it says "end" -> Text

An encoder that says by itself what stands at each place has a second opinion, and a piece whose text is in doubt is
looked at again, closer and wider. Of the texts that came up that one is taken which all together hold likeliest.

A long line is cut where there is most paper, between words. Pieces are read together, those of one width as one
batch. Only NumPy and OpenCV: `run` maps a network's name to a function of arrays (see octavo.run), so the same lines
serve every runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np

from octavo.outputs import Text

from .vocabulary import END, PADDING, SIZE, SPECIAL, START, decode

TASK = "text"
HEIGHT = 32  # of what the network reads, pixels; and its widths: VietOCR's
WIDEST = 512
STEP = 32  # widths are whole multiples of this: few shapes, so that runtimes can prepare for each
# A line is cut when it is wider than WHOLE, into pieces of about PIECE columns. The network reads 512, but attention
# loses its place in long lines before: lines of unseen fonts have CER .036 with these and .042 with 615 and 512, real
# ones .021 and .038 (vietocr-small, half trained).
PIECE = 320
WHOLE = 384

# What CER is measured with unless a caller says otherwise: what it is used with.
MEASURING: dict[str, float] = {}

Network = Callable[..., tuple[np.ndarray, ...]]


class Written(NamedTuple):
    """The numbers of a text and, usually, its end; their log probability, and the probability of the least sure."""

    numbers: list[int]
    log_p: float
    least: float


@dataclass(frozen=True)
class Settings:
    """What a user may change at prediction time.

    beams    texts that are followed at the same time; 1: the likeliest character is taken at each step
    longest  characters written at most for a piece of the line
    places   weight of what the encoder says by itself, where it does, beside the decoder's 1; 0: it is not asked
    doubt    a piece is looked at again if the encoder says another text, or if a character's probability is below this;
             0: never
    """

    beams: int = 1
    longest: int = 128
    places: float = 1.0
    doubt: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.beams <= 32:
            raise ValueError(f"beams is a number of texts from 1 to 32, not {self.beams}")
        if not 1 <= self.longest <= 1024:
            raise ValueError(f"longest is a number of characters from 1 to 1024, not {self.longest}")
        if not 0 <= self.places <= 100:
            raise ValueError(f"places is a weight from 0 to 100, not {self.places}")
        if not 0 <= self.doubt <= 1:
            raise ValueError(f"doubt is a probability from 0 to 1, not {self.doubt}")

    @classmethod
    def of(cls, stored: Mapping[str, Any], **overrides: Any) -> Settings:
        """A model's stored settings with a call's overrides (None means: not given)."""
        given = {name: value for name, value in overrides.items() if value is not None}
        unknown = given.keys() - {field.name for field in fields(cls)}
        if unknown:
            known = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"readers have no setting {', '.join(sorted(unknown))}; they have {known}")
        return replace(cls(**stored), **given)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def predict(image: np.ndarray, run: Mapping[str, Network], settings: Settings) -> Text:
    """The text of a line (h, w, 3) uint8 RGB."""
    return read_lines([image], run, settings)[0]


def read_lines(images: Sequence[np.ndarray], run: Mapping[str, Network], settings: Settings) -> list[Text]:
    """The texts of several lines, those (or their pieces) of one width read as one batch."""
    cut = [pieces(image) for image in images]
    flat = [piece for parts in cut for piece, _ in parts]
    first = looks(flat, run, settings)
    unsure = [i for i, look in enumerate(first) if look.in_doubt(settings.doubt)]
    others = [looks([view(flat[i]) for i in unsure], run, settings) for view in VIEWS if settings.doubt]
    read = [look.written for look in first]
    for i, *more in zip(unsure, *others, strict=True):
        read[i] = likeliest(run["decoder"], [first[i], *more], settings.places)
    return joined(cut, read)


def joined(cut: Sequence[Sequence[tuple[np.ndarray, bool]]], read: Sequence[Written]) -> list[Text]:
    """The texts of lines from what was read of their pieces, one after the other."""
    texts, found_parts = [], iter(read)
    for parts in cut:
        words, logs, steps = "", 0.0, 0
        for _, gap in parts:
            found = next(found_parts)
            words += (" " if gap and words else "") + decode(found.numbers)
            logs, steps = logs + found.log_p, steps + len(found.numbers)
        texts.append(Text(" ".join(words.split()), float(np.exp(logs / max(1, steps)))))
    return texts


# ---- the picture


def fitted(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) -> (32, W, 3): the ratio kept up to 512 columns, the last of them repeated to a multiple of STEP."""
    height, width = image.shape[:2]
    wide = int(np.clip(round(width * HEIGHT / height), 1, WIDEST))
    how = cv2.INTER_AREA if height > HEIGHT else cv2.INTER_LINEAR
    scaled = cv2.resize(image, (wide, HEIGHT), interpolation=how)
    return np.pad(scaled, ((0, 0), (0, -wide % STEP), (0, 0)), mode="edge")


def pieces(image: np.ndarray) -> list[tuple[np.ndarray, bool]]:
    """The line in pieces that fit, from left to right, and for each whether paper was between it and the one before.

    Each cut goes through the middle of the widest stretch of paper near to where it should be: columns without ink,
    and ink is what differs from the column's own middle tone.
    """
    height, width = image.shape[:2]
    wide = width * HEIGHT / height
    if wide <= WHOLE:
        return [(image, True)]
    count = math.ceil(wide / PIECE)
    grey = image.mean(2)
    contrast = grey.max(0) - grey.min(0)
    empty = contrast < 0.35 * np.quantile(contrast, 0.9)
    places, gaps = [0], [True]
    for number in range(1, count):
        aim, reach = number * width // count, max(1, width // (4 * count))
        low, high = max(places[-1] + 1, aim - reach), min(width - 1, aim + reach)
        start, length = widest(empty[low:high])
        places.append(low + start + length // 2 if length else low + int(contrast[low:high].argmin()))
        gaps.append(length >= height / 8)  # a space is some quarter of the height, between letters is a tenth
    ends = [*places[1:], width]
    return [(image[:, a:b], gap) for a, b, gap in zip(places, ends, gaps, strict=True)]


def closer(image: np.ndarray) -> np.ndarray:
    """The rows that have ink, and a few around: letters become as large as they can."""
    grey = cv2.GaussianBlur(image, (0, 0), 1.0).mean(2)
    ink = np.quantile(np.abs(grey - np.median(grey, 1, keepdims=True)), 0.98, axis=1)
    rows = np.flatnonzero(ink > 0.3 * np.quantile(ink, 0.95))
    if not len(rows):
        return image
    more = 0.03 * len(image)
    return image[max(0, int(rows[0] - more)) : math.ceil(rows[-1] + 1 + more)]


def wider(image: np.ndarray) -> np.ndarray:
    """A bit wider than it is: other columns come together in the network's places."""
    height, width = image.shape[:2]
    return cv2.resize(image, (max(1, round(1.08 * width)), height), interpolation=cv2.INTER_LINEAR)


VIEWS = closer, wider


def widest(marks: np.ndarray) -> tuple[int, int]:
    """Start and length of the longest run of True; (0, 0) for none."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]]).astype(np.int8)))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    longest = int(lengths.argmax())
    return int(edges[2 * longest]), int(lengths[longest])


def by_width(images: Sequence[np.ndarray], most: int = 32) -> Iterator[list[int]]:
    """Numbers of images that have the same width, at most `most` together."""
    groups: dict[int, list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape[1], []).append(i)
    for _, group in sorted(groups.items()):
        yield from (group[start : start + most] for start in range(0, len(group), most))


# ---- the text


@dataclass(frozen=True)
class Look:
    """What the networks made of one picture.

    state, memory   as the encoder said them, (1, ...)
    places          log probabilities (T, 233) of what stands at each place; None where the encoder isn't asked
    written         what the decoder wrote
    longest         characters that a text may have
    """

    state: np.ndarray
    memory: tuple[np.ndarray, ...]
    places: np.ndarray | None
    written: Written
    longest: int

    @cached_property
    def texts(self) -> list[list[int]]:
        """What was read: by the decoder, and, if that is another text, by the places."""
        texts = [self.written.numbers]
        if self.places is not None:
            spelled = spell(self.places.argmax(1))
            if spelled != texts[0] and len(spelled) <= self.longest:
                texts.append(spelled)
        return texts

    def in_doubt(self, least: float) -> bool:
        return len(self.texts) > 1 or self.written.least < least


def looks(images: Sequence[np.ndarray], run: Mapping[str, Network], settings: Settings) -> list[Look]:
    """A look at each of the pictures (h, w, 3)."""
    flat = [fitted(image) for image in images]
    made: dict[int, Look] = {}
    for chosen in by_width(flat):
        pixels = np.stack([flat[i] for i in chosen]).transpose(0, 3, 1, 2)
        made |= zip(chosen, looks_at(np.ascontiguousarray(pixels), run, settings), strict=True)
    return [made[i] for i in range(len(flat))]


def looks_at(pixels: np.ndarray, run: Mapping[str, Network], settings: Settings) -> list[Look]:
    """A look at each of the pictures (n, 3, 32, W)."""
    (features,) = run["cnn"](pixels)
    state, *memory = run["encoder"](features)
    said = memory.pop() if memory[-1].shape[-1] == SIZE else None
    places = log_softmax(said) if said is not None and settings.places else [None] * len(pixels)
    singles = [(state[i : i + 1], tuple(m[i : i + 1] for m in memory)) for i in range(len(pixels))]
    if settings.beams == 1:
        texts = greedy(run["decoder"], state, memory, settings.longest)
    else:
        texts = [beam(run["decoder"], *one, settings.longest, settings.beams) for one in singles]
    return [
        Look(*one, log_p, text, settings.longest)
        for one, log_p, text in zip(singles, places, texts, strict=True)
    ]


def likeliest(decoder: Network, seen: Sequence[Look], places: float) -> Written:
    """Of the texts of some looks at one picture that which decoder and places together, over all looks, prefer.

    Attention may lose its place in a line, places can't; but they know nothing of one another.
    """
    texts = list(map(list, dict.fromkeys(tuple(text) for look in seen for text in look.texts)))
    if len(texts) == 1:
        return seen[0].written
    ratings = np.zeros(len(texts))
    by_first: list[Written] = []
    for look in seen:
        own = told(decoder, look.state, look.memory, texts)
        by_first = by_first or own
        ratings += [one.log_p for one in own]
        if look.places is not None:
            ratings += [places * spelling(look.places, text) for text in texts]
    return by_first[int(ratings.argmax())]


def greedy(decoder: Network, state: np.ndarray, memory: Sequence[np.ndarray], longest: int) -> list[Written]:
    """The likeliest character at each step, for all lines until the last of them has ended."""
    count = len(state)
    number = np.full(count, START, np.int64)
    texts: list[list[int]] = [[] for _ in range(count)]
    logs, lowest, open_ = np.zeros(count), np.zeros(count), np.ones(count, bool)
    for _ in range(longest):
        logits, state = decoder(number, state, *memory)
        log_p = log_probabilities(logits)
        number, likelihood = log_p.argmax(1), log_p.max(1)
        logs[open_] += likelihood[open_]
        lowest[open_] = np.minimum(lowest, likelihood)[open_]
        for i in np.flatnonzero(open_):
            texts[i].append(int(number[i]))
        open_ &= number != END
        if not open_.any():
            break
    return list(map(Written, texts, logs.tolist(), np.exp(lowest).tolist()))


def beam(
    decoder: Network, state: np.ndarray, memory: Sequence[np.ndarray], longest: int, beams: int
) -> Written:
    """The text that is likeliest per character of those that `beams` at a time lead to, for one line."""
    texts = [Written([], 0.0, 1.0)]
    done: list[Written] = []
    number = np.array([START], np.int64)
    memory = [np.repeat(m, beams, 0) for m in memory]
    for _ in range(longest):
        logits, state = decoder(number, state, *(m[: len(texts)] for m in memory))
        log_p = log_probabilities(logits)
        total = np.array([text.log_p for text in texts])[:, None] + log_p
        best = np.argsort(-total, None, kind="stable")[:beams]
        rows, columns = np.unravel_index(best, total.shape)
        grown = [
            Written(
                [*texts[row].numbers, int(column)],
                float(total[row, column]),
                min(texts[row].least, float(np.exp(log_p[row, column]))),
            )
            for row, column in zip(rows, columns, strict=True)
        ]
        done += [text for text in grown if text.numbers[-1] == END]
        going = [(row, text) for row, text in zip(rows, grown, strict=True) if text.numbers[-1] != END]
        if not going or max(map(per_character, done), default=-np.inf) >= per_character(going[0][1]):
            break
        state = state[[row for row, _ in going]]
        texts = [text for _, text in going]
        number = np.array([text.numbers[-1] for text in texts], np.int64)
    else:
        done += texts
    return max(done, key=per_character)


def per_character(text: Written) -> float:
    """Log probability of a text by its length, so that a short one is no better for being short."""
    return text.log_p / len(text.numbers)


def spell(numbers: np.ndarray) -> list[int]:
    """The text of the likeliest number (T,) at each place, and its end: a run is one character, padding is none."""
    first = np.flatnonzero(np.diff(numbers, prepend=-1))
    return [*(number for number in numbers[first].tolist() if number >= SPECIAL), END]


def told(
    decoder: Network, state: np.ndarray, memory: Sequence[np.ndarray], texts: Sequence[list[int]]
) -> list[Written]:
    """Texts of one line as if the decoder had written them: how likely it holds them."""
    count, lengths = len(texts), np.array([len(text) for text in texts])
    numbers = np.full((count, lengths.max() + 1), START, np.int64)
    for row, text in zip(numbers, texts, strict=True):
        row[1 : len(text) + 1] = text
    state, *memory = (np.repeat(x, count, 0) for x in (state, *memory))
    log_p = np.zeros((count, lengths.max()))
    for step in range(lengths.max()):
        logits, state = decoder(numbers[:, step], state, *memory)
        log_p[:, step] = log_probabilities(logits)[np.arange(count), numbers[:, step + 1]]
    log_p[np.arange(lengths.max()) >= lengths[:, None]] = 0
    return list(map(Written, texts, log_p.sum(1).tolist(), np.exp(log_p.min(1)).tolist()))


def spelling(log_p: np.ndarray, text: Sequence[int]) -> float:
    """Log probability that places (T, 233) spell a text: the sum over all ways to (Graves et al. 2006, 4.1)."""
    characters = [number for number in text if number != END]
    stops = np.full(2 * len(characters) + 1, PADDING)  # nothing, a character, nothing, ..., nothing
    stops[1::2] = characters
    leap = np.zeros(len(stops), bool)  # over the nothing between two characters, where they differ
    leap[3::2] = stops[3::2] != stops[1:-2:2]
    none = np.full(2, -np.inf)
    at = np.full(len(stops), -np.inf)  # the log probability to stand at each stop
    at[:2] = log_p[0, stops[:2]]
    for row in log_p[1:]:
        before = np.concatenate([none, at])
        skipped = np.where(leap, before[: len(stops)], -np.inf)
        at = np.logaddexp(np.logaddexp(at, before[1:-1]), skipped) + row[stops]
    return float(np.logaddexp.reduce(at[-2:]))


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """(n, 233) of each next number; those that are no character and no end are impossible."""
    logits = logits.copy()
    logits[:, [PADDING, START, SPECIAL - 1]] = -np.inf
    return log_softmax(logits)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    below = np.subtract(logits, logits.max(-1, keepdims=True), dtype=np.float64)
    return below - np.log(np.exp(below).sum(-1, keepdims=True))
