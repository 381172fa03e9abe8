"""One line of text: scaled to 32 pixels high, looked at once, written character by character.

    image -> pieces of a line -> cnn -> encoder -> decoder, again and again until it says "end" -> Text

An encoder that says by itself what stands at each place has a second opinion: where it reads another text than the
decoder wrote, that one is taken which both together hold likelier (`agreed`).

A long line is cut where there is most paper, between words. Pieces are read together, those of one width as one
batch. Only NumPy and OpenCV: `run` maps a network's name to a function of arrays (see octavo.run), so the same lines
serve every runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

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
Written = tuple[list[int], float]  # the numbers of a text and, usually, its end; their log probability


@dataclass(frozen=True)
class Settings:
    """What a user may change at prediction time.

    beams    texts that are followed at the same time; 1: the likeliest character is taken at each step
    longest  characters written at most for a piece of the line
    places   weight of what the encoder says by itself, where it does, beside the decoder's 1; 0: it is not asked
    """

    beams: int = 1
    longest: int = 128
    places: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.beams <= 32:
            raise ValueError(f"beams is a number of texts from 1 to 32, not {self.beams}")
        if not 1 <= self.longest <= 1024:
            raise ValueError(f"longest is a number of characters from 1 to 1024, not {self.longest}")
        if not 0 <= self.places <= 100:
            raise ValueError(f"places is a weight from 0 to 100, not {self.places}")

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
    flat = [fitted(piece) for parts in cut for piece, _ in parts]
    read: list[Written] = [([], 0.0)] * len(flat)
    for chosen in by_width(flat):
        pixels = np.stack([flat[i] for i in chosen]).transpose(0, 3, 1, 2)
        for i, found in zip(chosen, written(np.ascontiguousarray(pixels), run, settings), strict=True):
            read[i] = found
    texts, found_parts = [], iter(read)
    for parts in cut:
        words, logs, steps = "", 0.0, 0
        for _, gap in parts:
            numbers, log_p = next(found_parts)
            words += (" " if gap and words else "") + decode(numbers)
            logs, steps = logs + log_p, steps + len(numbers)
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


def written(pixels: np.ndarray, run: Mapping[str, Network], settings: Settings) -> list[Written]:
    """For each of the pictures (n, 3, 32, W) its characters' numbers, the end with them, and their log probability."""
    (features,) = run["cnn"](pixels)
    state, *memory = run["encoder"](features)
    places = memory.pop() if memory[-1].shape[-1] == SIZE else None
    if settings.beams == 1:
        found = greedy(run["decoder"], state, memory, settings.longest)
    else:
        found = [
            beam(
                run["decoder"],
                state[i : i + 1],
                [m[i : i + 1] for m in memory],
                settings.longest,
                settings.beams,
            )
            for i in range(len(pixels))
        ]
    if places is None or not settings.places:
        return found
    return agreed(run["decoder"], state, memory, places, found, settings)


def greedy(decoder: Network, state: np.ndarray, memory: Sequence[np.ndarray], longest: int) -> list[Written]:
    """The likeliest character at each step, for all lines until the last of them has ended."""
    count = len(state)
    number = np.full(count, START, np.int64)
    texts: list[list[int]] = [[] for _ in range(count)]
    logs, open_ = np.zeros(count), np.ones(count, bool)
    for _ in range(longest):
        logits, state = decoder(number, state, *memory)
        log_p = log_probabilities(logits)
        number = log_p.argmax(1)
        for i in np.flatnonzero(open_):
            texts[i].append(int(number[i]))
            logs[i] += log_p[i, number[i]]
        open_ &= number != END
        if not open_.any():
            break
    return list(zip(texts, logs.tolist(), strict=True))


def beam(
    decoder: Network, state: np.ndarray, memory: Sequence[np.ndarray], longest: int, beams: int
) -> Written:
    """The text that is likeliest per character of those that `beams` at a time lead to, for one line."""
    texts: list[list[int]] = [[]]
    logs = np.zeros(1)
    done: list[Written] = []
    number = np.array([START], np.int64)
    memory = [np.repeat(m, beams, 0) for m in memory]
    for _ in range(longest):
        logits, state = decoder(number, state, *(m[: len(texts)] for m in memory))
        total = logs[:, None] + log_probabilities(logits)
        best = np.argsort(-total, None, kind="stable")[:beams]
        rows, columns = np.unravel_index(best, total.shape)
        grown = [
            ([*texts[row], int(column)], float(total[row, column]))
            for row, column in zip(rows, columns, strict=True)
        ]
        done += [pair for pair in grown if pair[0][-1] == END]
        going = [(row, pair) for row, pair in zip(rows, grown, strict=True) if pair[0][-1] != END]
        if not going or max(map(per_character, done), default=-np.inf) >= per_character(going[0][1]):
            break
        state = state[[row for row, _ in going]]
        texts, logs = [pair[0] for _, pair in going], np.array([pair[1] for _, pair in going])
        number = np.array([text[-1] for text in texts], np.int64)
    else:
        done += list(zip(texts, logs.tolist(), strict=True))
    return max(done, key=per_character)


def per_character(text: Written) -> float:
    """Log probability of a text by its length, so that a short one is no better for being short."""
    return text[1] / len(text[0])


def agreed(
    decoder: Network,
    state: np.ndarray,
    memory: Sequence[np.ndarray],
    places: np.ndarray,
    found: Sequence[Written],
    settings: Settings,
) -> list[Written]:
    """What the decoder found, and in its place what the places (n, T, 233) spell where both together prefer that.

    Attention may lose its place in a line, places can't; but they know nothing of one another. Most lines both read
    alike, and are left as they are.
    """
    agreed_on = list(found)
    log_p = log_softmax(places)
    spelled = [spell(row) for row in log_p.argmax(2)]
    others = [i for i, text in enumerate(spelled) if text != found[i][0] and len(text) <= settings.longest]
    if others:
        texts = [spelled[i] for i in others]
        logs = likelihoods(decoder, state[others], [m[others] for m in memory], texts)
        for i, other in zip(others, zip(texts, logs, strict=True), strict=True):
            mine, its = (log + settings.places * spelling(log_p[i], text) for text, log in (found[i], other))
            if its > mine:
                agreed_on[i] = other
    return agreed_on


def spell(numbers: np.ndarray) -> list[int]:
    """The text of the likeliest number (T,) at each place, and its end: a run is one character, padding is none."""
    first = np.flatnonzero(np.diff(numbers, prepend=-1))
    return [*(number for number in numbers[first].tolist() if number >= SPECIAL), END]


def likelihoods(
    decoder: Network, state: np.ndarray, memory: Sequence[np.ndarray], texts: Sequence[Sequence[int]]
) -> list[float]:
    """Log probabilities, by the decoder, of texts that it is told, one for each line."""
    rows, lengths = np.arange(len(texts)), np.array([len(text) for text in texts])
    told = np.full((len(texts), lengths.max() + 1), START, np.int64)
    for row, text in zip(told, texts, strict=True):
        row[1 : len(text) + 1] = text
    logs = np.zeros(len(texts))
    for step in range(lengths.max()):
        logits, state = decoder(told[:, step], state, *memory)
        logs += np.where(step < lengths, log_probabilities(logits)[rows, told[:, step + 1]], 0)
    return logs.tolist()


def spelling(log_p: np.ndarray, text: Sequence[int]) -> float:
    """Log probability that places (T, 233) spell a text: the sum over all ways to (Graves et al. 2006, 4.1)."""
    characters = [number for number in text if number != END]
    stops = np.full(2 * len(characters) + 1, PADDING)  # nothing, a character, nothing, ..., nothing
    stops[1::2] = characters
    leap = np.zeros(len(stops), bool)  # over the nothing between two characters, where they differ
    leap[3::2] = stops[3::2] != stops[1:-2:2]
    none = np.full(2, -np.inf)
    at = np.concatenate(
        [[0.0], np.full(len(stops) - 1, -np.inf)]
    )  # the log probability to stand at each stop
    at[:2] = log_p[0, stops[:2]]
    for row in log_p[1:]:
        before = np.concatenate([none, at])
        skipped = np.where(leap, before[: len(stops)], -np.inf)
        at = np.logaddexp(np.logaddexp(at, before[1:-1]), skipped) + row[stops]
    return float(np.logaddexp.reduce(at[-2:]))


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """(n, 233) of each next number; those that are no character and no end are impossible."""
    logits = logits.astype(np.float64)
    logits[:, [PADDING, START, SPECIAL - 1]] = -np.inf
    return log_softmax(logits)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
