"""What was measured of several models -> one list of numbers, each held against the first model's.

    change = value - first's, or value / first's; better or worse from where on a change counts

A record of evaluate says what it holds by its keys; KINDS says what they mean, in every task. An entry of another name
that is a number, or names of numbers, is listed too, without a judgement.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from octavo.evaluate.report import Candidate
from octavo.folder import atomic


@dataclass(frozen=True)
class Kind:
    """What a group of numbers means.

    better   +1: more is better, -1: less is better, 0: neither
    by       how it is held against the first model: "difference" or "ratio"
    counts   the smallest change that counts; a smaller one is noise
    """

    title: str
    better: int
    by: str
    counts: float
    unit: str = ""
    shown: str = ".4f"
    change: str = ""


def _difference(title: str, better: int, counts: float, unit: str = "", shown: str = ".4f") -> Kind:
    return Kind(title, better, "difference", counts, unit, shown, "+" + shown)


def _ratio(title: str, better: int, counts: float, unit: str, shown: str) -> Kind:
    return Kind(title, better, "ratio", counts, unit, shown, ".2f")


# .003 of AP and 2 % of the landmark error are what this project allows an INT8 model to lose; 3 % is the noise of a
# median of 50 rounds on a machine that does nothing else.
AP = _difference("Average precision", +1, 0.003)
BENCHMARK = _difference("Average precision, WIDER FACE", +1, 0.003)
SIZES = _difference("Average precision by size, px", +1, 0.01)
LANDMARKS = _ratio("Landmarks", -1, 0.02, "", ".4f")
LANDMARKS_FOUND = _difference("Landmarks", +1, 0.3, "%", ".2f")
CLASSES = _difference("Average precision by class", +1, 0.01)
RECALL = _difference("Recall", +1, 0.003)
CORRECT = _difference("Texts without an error", +1, 0.003)
CHARACTERS = _difference("Character error rate", -1, 0.003)
WORDS = _difference("Word error rate", -1, 0.003)
LATENCY = _ratio("Time, memory, size", -1, 0.03, "ms", ".2f")
MEMORY = _ratio("Time, memory, size", -1, 0.03, "MB", ".1f")
SIZE = _ratio("Time, memory, size", -1, 0.03, "kB", ".0f")
INTEGERS = _difference("Time, memory, size", +1, 0.5, "%", ".0f")
STAGES = _ratio("Latency by stage", -1, 0.03, "ms", ".2f")
SQNR = Kind("Sensitivity", 0, "difference", 0, "dB", ".1f", "+.1f")

ALL = "all"  # evaluate's name for everything together
# The few numbers that say how a model compares
HEADLINES = (
    *("easy", "medium", "hard", ALL, f"NME, {ALL}"),
    *("median latency", "peak memory beyond the runtime", "files of the networks", "layers in integers"),
)

Read = Callable[[Any], Mapping[str, float]]


def _plain(entry: Any) -> Mapping[str, float]:
    return entry


def _nme(entry: Mapping[str, Any]) -> Mapping[str, float]:
    return {f"NME, {name}": of["nme"] for name, of in entry.items() if of["nme"] is not None}


def _found(entry: Mapping[str, Any]) -> Mapping[str, float]:
    of = entry.get(ALL)
    return {"annotated faces that were found": 100 * of["found"] / of["faces"]} if of else {}


# What the entries of a record mean, and how {measure: number} is read from each
KINDS: Mapping[str, Sequence[tuple[Kind, Read]]] = {
    "easy": [(BENCHMARK, _plain)],
    "medium": [(BENCHMARK, _plain)],
    "hard": [(BENCHMARK, _plain)],
    "ap": [(AP, _plain)],
    "landmarks": [(LANDMARKS, _nme), (LANDMARKS_FOUND, _found)],
    "ap_by_size": [(SIZES, _plain)],
    "ap_by_class": [(CLASSES, _plain)],
    "recall": [(RECALL, _plain)],
    "exact": [(CORRECT, _plain)],
    "cer": [(CHARACTERS, _plain)],
    "wer": [(WORDS, _plain)],
}
# Entries of a record that say how it was measured, or that only a chart can show
ABOUT = {
    "images",
    "faces",
    "objects",
    "characters",
    "seconds",
    "settings",
    "errors",
    "curves",
    "landmark_errors",
}


@dataclass(frozen=True)
class Number:
    """A row of the CSV file, and a cell of the page."""

    section: str
    measure: str
    unit: str
    label: str
    model: str
    backend: str
    value: float
    by: str  # "difference" or "ratio"
    change: float | None  # to the first model; None for itself, or where it has no such number
    mark: str  # "better", "worse", "same" (no change that counts), or "" without a judgement
    text: str  # value and change as the page shows them
    change_text: str


def numbers(
    candidates: Sequence[Candidate], sensitivity: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Number]:
    """All numbers of all candidates, section by section; the first candidate is what the others are held against."""
    measured = [dict(_measured(candidate)) for candidate in candidates]
    first = measured[0]
    keys = dict.fromkeys(key for of in measured for key in of)
    sections = list(dict.fromkeys(kind.title for kind, _ in keys))
    out = []
    for kind, name in sorted(keys, key=lambda key: sections.index(key[0].title)):
        for candidate, of in zip(candidates, measured, strict=True):
            if (kind, name) in of:
                reference = None if of is first else first.get((kind, name))
                out.append(_number(kind, name, candidate, of[kind, name], reference))
    for model, tables in (sensitivity or {}).items():
        candidate = next(replace(c, label=c.name, backend="torch") for c in candidates if c.model == model)
        for network, table in tables.items():
            out += [_number(SQNR, name, candidate, value, None) for name, value in layers(network, table)]
    return out


def layers(network: str, table: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, worst SQNR of the outputs) of each layer alone, and of the whole network; None in a table is infinite."""

    def worst(values: Sequence[float | None]) -> float:
        return min(float("inf") if v is None else v for v in values)

    for row in table["rows"]:
        yield f"{network}/{row['layer']}", worst(row["alone"])
    yield f"{network}: all layers", worst(table["quantized"])


def _measured(candidate: Candidate) -> Iterator[tuple[tuple[Kind, str], float]]:
    """((kind, name), value) of everything that is known of a candidate, in the order of the page."""
    record = candidate.record
    for key in [*(key for key in KINDS if key in record), *(key for key in record if key not in KINDS)]:
        for kind, read in KINDS.get(key, [(Kind(key, 0, "difference", 0, change="+.4f"), _plain)]):
            for name, value in _named(key, record[key], read):
                yield (kind, name), value
    timing = candidate.timing
    if not timing:
        return
    yield (LATENCY, "median latency"), timing["total"]["p50"]
    yield (LATENCY, "95th percentile of latency"), timing["total"]["p95"]
    for stage, spread in timing["stages"].items():
        yield (STAGES, stage), spread["p50"]
    if timing["memory"]:
        yield (
            (MEMORY, "peak memory beyond the runtime"),
            timing["memory"]["peak"] - timing["memory"]["runtime"],
        )
    yield (SIZE, "files of the networks"), timing["file_bytes"] / 1000
    if timing["integers"]:
        share = timing["integers"]
        yield (INTEGERS, "layers in integers"), 100 * share["integer"] / max(1, share["layers"])
        if share["of_multiply_adds"] is not None:
            yield (INTEGERS, "multiply-adds in integers"), 100 * share["of_multiply_adds"]


def _named(key: str, entry: Any, read: Read) -> Iterator[tuple[str, float]]:
    if key in ABOUT:
        return
    entry = read(entry) if isinstance(entry, Mapping) else {key: entry}
    for name, value in entry.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, value


def _number(kind: Kind, name: str, candidate: Candidate, value: float, reference: float | None) -> Number:
    change = None
    mark = ""
    if reference is not None and (kind.by == "difference" or reference > 0):
        change = value - reference if kind.by == "difference" else value / reference
        gain = kind.better * (change if kind.by == "difference" else change - 1)
        if kind.better:
            mark = "same" if abs(gain) < kind.counts else "better" if gain > 0 else "worse"
    return Number(
        section=kind.title,
        measure=name,
        unit=kind.unit,
        label=candidate.label,
        model=candidate.model,
        backend=candidate.backend,
        value=value,
        by=kind.by,
        change=change,
        mark=mark,
        text=_text(value, kind.shown),
        change_text=""
        if change is None
        else _text(change, kind.change) + ("×" if kind.by == "ratio" else ""),
    )


def _text(value: float, shown: str) -> str:
    """-0.0003 -> −0.0003, with no sign before what rounds to zero. Infinite is an SQNR without any noise."""
    if math.isinf(value):
        return "exact"
    text = format(value, shown)
    return text.lstrip("+-") if not text.strip("+-0.") else text.replace("-", "−")


COLUMNS = tuple(f.name for f in fields(Number) if not f.name.endswith("text"))


def write_csv(numbers: Sequence[Number], path: str | Path) -> None:
    with (
        atomic(path) as temporary,
        open(
            temporary,
            "w",
            newline="",
            encoding="utf-8",
            errors="backslashreplace",  # file names need not be text
        ) as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([exact(getattr(number, name)) for name in COLUMNS] for number in numbers)


def exact(value: Any) -> str:
    """A cell of the CSV file: 6 significant digits as in results/, empty for None."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)
