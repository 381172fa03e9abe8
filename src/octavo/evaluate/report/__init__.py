"""One page on several models: the first one is the baseline, the others are held against it.

    candidates, each {model.json, what evaluate measured, what bench measured}
        -> numbers.py   one Number per model and measure, with its change and whether that is better: the CSV file
        -> page.py      the same Numbers as tables, curves from the records, pictures: one HTML file

What a record of evaluate holds is asked of the record, so a family that measures something else needs no other page.
Nothing is measured here, and no model is opened: octavo.verbs.report does that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from octavo.evaluate.report.numbers import Number


@dataclass(frozen=True)
class Candidate:
    """A model in a runtime. record is what evaluate returned, timing a row of bench as plain data."""

    model: str  # as it was given: a name or a path
    name: str  # the short form of it, unique among the models
    backend: str
    info: Mapping[str, Any]  # model.json
    digest: str  # SHA-256 over its files
    record: Mapping[str, Any]
    timing: Mapping[str, Any]
    label: str  # name, and the backend where there are several: unique on the page


@dataclass(frozen=True)
class Part:
    """Something that was measured: the command that measures it again, and when and where this was done."""

    title: str
    command: str
    created: str
    commit: str
    seconds: float | None  # it took; None: too little to be looked at
    kept: bool  # from an earlier report, not measured for this one


@dataclass(frozen=True)
class Picture:
    """An image, with what each candidate found drawn into it, and a sentence on each."""

    name: str
    drawn: Sequence[np.ndarray]  # (h, w, 3) uint8 RGB, in the order of the candidates
    said: Sequence[str]


@dataclass(frozen=True)
class Report:
    candidates: Sequence[Candidate]
    parts: Sequence[Part]
    pictures: Sequence[Picture]
    sensitivity: Mapping[str, Mapping[str, Any]]  # model: {network: Table.to_dict()}
    notes: Sequence[str]  # what could not be measured, and why
    about: Mapping[str, str]  # command, created, commit, octavo, machine, data, ...
    html: Path = field(default=Path())
    csv: Path = field(default=Path())

    @property
    def numbers(self) -> list[Number]:
        from octavo.evaluate.report.numbers import numbers

        return numbers(self.candidates, self.sensitivity)

    @property
    def headlines(self) -> list[Number]:
        """The few numbers that say how a model compares: each measure over everything, then what it costs."""
        from octavo.evaluate.report.numbers import HEADLINES

        return [number for number in self.numbers if number.measure in HEADLINES]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: all numbers, and where they come from."""
        from dataclasses import asdict

        return {
            **self.about,
            "html": str(self.html),
            "csv": str(self.csv),
            "models": [
                {"label": c.label, "model": c.model, "backend": c.backend, "files": c.digest}
                for c in self.candidates
            ],
            "numbers": [asdict(number) for number in self.numbers],
            "parts": [asdict(part) for part in self.parts],
            "notes": list(self.notes),
        }
