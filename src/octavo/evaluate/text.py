"""The task of reading lines: how many are right, how many characters and words are wrong.

    exact   share of the lines whose text is right to the last character
    CER     edit distance of characters over their number, all lines together
    WER     the same of words

The edit distance (Levenshtein 1966) counts insertions, deletions and replacements. Texts are compared in NFC, in
which a letter with its marks is one character. What each function is for, octavo/evaluate/__init__.py says.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo.data.textlines import SPLITS, Line, read, splits
from octavo.data.textlines_check import check
from octavo.folder import atomic
from octavo.outputs import Text

__all__ = ["SPLITS", "check", "read"]  # and all that is defined here

UNIT = "characters"
YARDSTICK = "exact"
ERROR = "character"
WHOLE = ("all",)
LAYOUT = "text lines: train.txt, val.txt (or {train,valid,test}_annotation.txt) with lines of path<TAB>text"
BY_LENGTH = {"to 10 characters": 10, "11 to 20": 20, "21 to 40": 40, "more": 10**9}
SHOWN = 20  # wrong lines that `measure` lists


def recognises(root: str | Path) -> bool:
    return bool(splits(root))


def count(entries: Sequence[Line]) -> int:
    return sum(len(entry.text) for entry in entries)


def nothing() -> Text:
    return Text("", 0.0)


def distance(a: Sequence[object], b: Sequence[object]) -> int:
    """The least number of insertions, deletions and replacements that make `b` of `a`."""
    numbers = {thing: i for i, thing in enumerate(dict.fromkeys([*a, *b]))}
    right = np.array([numbers[thing] for thing in b], np.int64)
    places = np.arange(len(b) + 1)
    row = places
    for i, thing in enumerate(a, 1):
        changed = np.minimum(row[1:] + 1, row[:-1] + (right != numbers[thing]))
        # An insertion costs 1 more than the place before it: a running minimum, once the places are taken off.
        row = np.minimum.accumulate(np.concatenate([[i], changed]) - places) + places
    return int(row[-1])


def normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class Counts:
    """Of some lines together."""

    lines: int
    exact: int
    characters: int
    wrong: int  # edit distance, characters
    words: int
    wrong_words: int

    @property
    def cer(self) -> float | None:
        return self.wrong / self.characters if self.characters else None

    @property
    def wer(self) -> float | None:
        return self.wrong_words / self.words if self.words else None


def counts(pairs: Iterable[tuple[str, str]]) -> Counts:
    """Of (right text, read text)."""
    rows = np.zeros(6, np.int64)
    for right, read_ in pairs:
        right, read_ = normal(right), normal(read_)
        words = right.split()
        wrong, wrong_words = distance(right, read_), distance(words, read_.split())
        rows += (1, right == read_, len(right), wrong, len(words), wrong_words)
    return Counts(*rows.tolist())


def measure(entries: Sequence[Line], found: Mapping[str, Text]) -> dict[str, Any]:
    """ "exact" {"all"}, "cer", "wer", "cer_by_length", "wrong": the first wrong lines, right and as they were read."""
    if not entries:
        raise ValueError("there are no lines: there is nothing to measure")
    pairs = [(normal(entry.text), normal(found.get(entry.name, nothing()).text)) for entry in entries]
    of_all = counts(pairs)
    by_length, shortest = {}, 0
    for name, longest in BY_LENGTH.items():
        own = [pair for pair in pairs if shortest < len(pair[0]) <= longest]
        shortest = longest
        if own:
            by_length[name] = counts(own).cer
    wrong = [
        {"name": entry.name, "right": right, "read": read_}
        for entry, (right, read_) in zip(entries, pairs, strict=True)
        if right != read_
    ]
    return {
        "exact": {"all": of_all.exact / of_all.lines},
        "cer": of_all.cer,
        "wer": of_all.wer,
        "cer_by_length": by_length,
        "wrong": wrong[:SHOWN],
    }


def headline(measured: Mapping[str, Any]) -> dict[str, float]:
    return dict(measured["exact"])


def errors(measured: Mapping[str, Any]) -> dict[str, float | None]:
    return {"all": measured["cer"]}


def tables(measured: Mapping[str, Any]) -> list[tuple[tuple[str, ...], list[tuple[Any, ...]]]]:
    return [
        (
            ("lines", "exact", "CER", "WER"),
            [("all", measured["exact"]["all"], measured["cer"], measured["wer"])],
        ),
        (("length of the line", "CER"), list(measured["cer_by_length"].items())),
    ]


def write(folder: str | Path, entries: Sequence[Line], found: Mapping[str, Text]) -> None:
    """texts.txt, as such data sets have it: path<TAB>text."""
    lines = [f"{entry.name}\t{found[entry.name].text}\n" for entry in entries]
    with atomic(Path(folder) / "texts.txt") as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


# ---- two models on the same lines


@dataclass(frozen=True)
class Agreement:
    """Do two models read the same? A mean over nothing is None."""

    lines: int
    equal: int
    characters: int  # of the reference's texts
    apart: int  # edit distance between the two, characters
    score_mean: float | None  # |difference| of the confidences
    score_max: float | None

    @property
    def share(self) -> float | None:
        """Of the lines, those that both read alike."""
        return self.equal / self.lines if self.lines else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"share": self.share}

    def rows(self) -> list[tuple[Any, ...]]:
        """What is said, of the reference, of the other one, and of their pairs."""
        equal = None if self.share is None else f"{100 * self.share:.2f} %"
        apart = f"{100 * self.apart / self.characters:.2f} %" if self.characters else None
        return [
            ("lines read alike", None, None, equal),
            ("characters apart", None, None, apart),
            ("confidence apart, mean", None, None, self.score_mean),
            ("confidence apart, largest", None, None, self.score_max),
        ]

    def words(self) -> str:
        return (
            f"{self.equal} of {self.lines} lines as the first model; {self.apart} characters apart"
            if self.lines
            else ""
        )


def agreement(pairs: Iterable[tuple[Text, Text]]) -> Agreement:
    """Of what the reference and what the other read in each line."""
    both = [(a, b) for a, b in pairs]
    gaps = np.array([abs(a.confidence - b.confidence) for a, b in both])
    return Agreement(
        lines=len(both),
        equal=sum(a.text == b.text for a, b in both),
        characters=sum(len(a.text) for a, _ in both),
        apart=sum(distance(a.text, b.text) for a, b in both),
        score_mean=float(gaps.mean()) if len(both) else None,
        score_max=float(gaps.max()) if len(both) else None,
    )
