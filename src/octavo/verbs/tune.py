"""Thresholds and NMS of a finished model, chosen on training images that training kept out; never on val.

A family that can replay (models/FAMILY/tune.py: AXES, trace, replay) runs its networks once per image; for any
other one each point is a prediction of every image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from math import prod
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from octavo import folder
from octavo.folder import UnknownName, did_you_mean
from octavo.models import part
from octavo.verbs import tunable
from octavo.verbs.held_out import held_out
from octavo.verbs.model import Model, load
from octavo.verbs.signatures import PathLike, StepProgress

if TYPE_CHECKING:
    import numpy as np

    from octavo.evaluate import Entry
    from octavo.evaluate.tuning import Axis, Point, Scores, Search
    from octavo.outputs import Output

# Settings -> what is found in all the images with them, and how many inputs each network was given, per image
Finder = Callable[[Mapping[str, Any]], "tuple[dict[str, Output], dict[str, float]]"]


@dataclass(frozen=True)
class Tuned:
    """What was tried, and what came of it. Scores of `before` and `after`: AP as it is measured, with the last
    threshold low; precision, recall and F1 of what is reported.
    """

    values: dict[Axis, tuple[float, ...]]
    search: Search
    before: Point
    after: Point
    record: dict[str, Any]  # "tuned" of model.json
    written: Path | None  # None: a dry run
    task: ModuleType

    def to_dict(self) -> dict[str, Any]:
        # AP is of the low last threshold that it was measured with, the others are of what is reported.
        measured = ("ap",) if self.record["by"] == "ap" else ("precision", "recall", "f1")

        def row(point: Point) -> dict[str, Any]:
            place = {axis.label: axis.of(point.settings) for axis in self.values}
            numbers = {name: getattr(point.scores, name) for name in measured}
            return place | numbers | {"score": point.score, "seen": point.seen}

        return {
            "tuned": self.record,
            "settings": self.after.settings,
            "written": self.written,
            "grid": [row(point) for point in self.search.grid],
            "alone": {label: [row(point) for point in points] for label, points in self.search.alone.items()},
        }


def tune(
    model: PathLike,
    data: PathLike,
    *,
    by: str = "ap",
    precision: float = 0.95,
    span: float = 0.05,
    steps: int = 5,
    nms_span: float = 0.1,
    within: float = 0.001,
    share: float | None = None,
    dry_run: bool = False,
    chart: PathLike | None = None,
    backend: str = "auto",
    threads: int = 1,
    progress: StepProgress | None = None,
    **settings: Any,
) -> Tuned:
    """Try thresholds around the present ones in all combinations, then the NMS one by one; write model.json.

    by: "ap", "f1", or "recall" where `precision` is reached. span, steps: each threshold from span below to span
    above, so many values; nms_span: three values for each NMS, 0 leaves them alone. within: scores so close to the
    best count as equal, and the least work for the networks decides. share: of the training images, those that
    training keeps out for its own, by a hash of their names; by default what the variant's recipe says.
    settings: tried around these in place of the stored ones; only what is tuned is written.
    """
    from octavo.evaluate import heatmap, tuning

    if by not in tuning.BY:
        raise UnknownName(
            f"no yardstick {by!r}.{did_you_mean(by, tuning.BY)} There are: {', '.join(tuning.BY)}."
        )
    _shares(precision=precision, span=span, nms_span=nms_span, within=within, share=share)
    path = folder.find(model)
    if not dry_run:
        folder.refuse_embedded(path, "look with --dry-run, or tune a folder of your own")
    opened = load(model, backend, threads)
    task = opened.task
    if not hasattr(task, "scores"):
        raise ValueError(f"{opened.name} reads {task.UNIT}: it has no thresholds that could be tuned")
    stored, start = opened.settings().to_dict(), opened.settings(**settings).to_dict()
    family = opened.info["family"]
    axes = tunable.axes_of(family, start)
    spread = {True: (nms_span, 3), False: (span, steps)}
    values = {axis: axis.around(start, *spread[axis.alone]) for axis in axes}
    if by == "ap":  # what only cuts off what is reported has no say
        values = {axis: tried for axis, tried in values.items() if not axis.reports}
    grid = [axis for axis in values if not axis.alone]
    if chart:
        heatmap.check_axes(chart, grid)
    entries, share = held_out(opened.info, data, share)

    before = _with(start, stored, axes)
    wanted = [before, *(axis.put(start, value) for axis, tried in values.items() for value in tried)]
    find = _finder(opened, entries, wanted, progress)
    sizes = {name: prod(network.shape) for name, network in part(family, "recipe").NETWORKS.items()}
    low = partial(tunable.lowered, family)
    yardstick = _Yardstick(by, precision, partial(task.scores, entries), find, low, sizes)
    total = prod(len(values[axis]) for axis in grid)
    total += sum(len(tried) - 1 for axis, tried in values.items() if axis.alone)
    numbers = count(1)

    def point(tried: dict[str, Any]) -> Point:
        measured = yardstick.point(tried)
        if progress:
            progress("settings", next(numbers), total)
        return measured

    search = tuning.search(start, values, point, within)
    first, last = yardstick.reported(before), yardstick.reported(search.chosen.settings)
    record: dict[str, Any] = {
        "by": by,
        **({"precision": precision} if by == "recall" else {}),
        "within": within,
        "data": str(data),
        "split": "train",
        "share": share,
        "images": len(entries),
        task.UNIT: task.count(entries),
        "backend": opened.backend,
        "searched with": {name: value for name, value in start.items() if value != stored[name]},
        "before": {axis.label: axis.of(first.settings) for axis in values} | _said(first),
        "after": {axis.label: axis.of(last.settings) for axis in values} | _said(last),
    } | folder.provenance()
    if chart:
        title = f"{opened.name}: {_metric(by, precision)} on {len(entries)} images"
        over = {axis: values[axis] for axis in grid}
        heatmap.draw(over, search.grid, before, last.settings, chart, title)
    if not dry_run:
        changed = {"settings": _with(stored, last.settings, axes), "tuned": record}
        folder.write_info(path, folder.read_info(path) | changed)
    return Tuned(values, search, first, last, record, None if dry_run else path / "model.json", task)


@dataclass(frozen=True)
class _Yardstick:
    """Settings -> a Point, on some images."""

    by: str
    precision: float
    scores: Callable[[dict[str, Output]], Scores]  # the task's, of what is found in the images
    find: Finder
    low: Callable[[Mapping[str, Any]], dict[str, Any]]  # settings as AP is measured
    sizes: Mapping[str, int]  # values in one input of each network

    def point(self, settings: dict[str, Any]) -> Point:
        return self._of(settings, *self.find(self.low(settings) if self.by == "ap" else settings))

    def reported(self, settings: dict[str, Any]) -> Point:
        """With precision and recall of what is reported, and AP as it is measured, whatever is tuned by."""
        point = self._of(settings, *self.find(settings))
        ap = self.scores(self.find(self.low(settings))[0]).ap
        measured = replace(point.scores, ap=ap)
        return replace(point, scores=measured, score=measured.by(self.by, self.precision))

    def _of(self, settings: dict[str, Any], found: dict[str, Output], seen: dict[str, float]) -> Point:
        from octavo.evaluate.tuning import Point

        measured = self.scores(found)
        work = sum(inputs * self.sizes[name] for name, inputs in seen.items())
        return Point(settings, measured, measured.by(self.by, self.precision), seen, work)


def _shares(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name.replace('_', '-')} is a number from 0 to 1, not {value:g}")


def _metric(by: str, precision: float) -> str:
    return {"ap": "AP", "f1": "F1"}.get(by, f"recall at precision {precision:g}")


def _with(settings: Mapping[str, Any], other: Mapping[str, Any], axes: Sequence[Axis]) -> dict[str, Any]:
    """The settings with the other ones' values of these axes."""
    made = dict(settings)
    for axis in axes:
        made = axis.put(made, axis.of(other))
    return made


def _said(point: Point) -> dict[str, Any]:
    return asdict(point.scores) | {"f1": point.scores.f1, "seen": point.seen}


def _finder(
    model: Model, entries: Sequence[Entry], wanted: Sequence[Mapping[str, Any]], progress: StepProgress | None
) -> Finder:
    """wanted: settings of which any combination of values may be asked for."""
    from octavo.images import read

    family = model.info["family"]
    predict = part(family, "predict")
    if not tunable.replays(family):
        return _predicting(model, entries)
    replaying, made = part(family, "tune"), [predict.Settings.of(settings) for settings in wanted]
    traces = {}
    for done, entry in enumerate(entries, 1):
        traces[entry.name] = replaying.trace(read(entry.path), model.run, made)
        if progress:
            progress("images", done, len(entries))

    def find(settings: Mapping[str, Any]) -> tuple[dict[str, Output], dict[str, float]]:
        chosen = predict.Settings.of(settings)
        answers = {name: replaying.replay(trace, chosen) for name, trace in traces.items()}
        seen = [counts for _, counts in answers.values()]
        means = {network: sum(counts[network] for counts in seen) / len(seen) for network in seen[0]}
        return {name: found for name, (found, _) in answers.items()}, means

    return find


def _predicting(model: Model, entries: Sequence[Entry]) -> Finder:
    """For a family that cannot replay: every image is read and looked at again."""

    def find(settings: Mapping[str, Any]) -> tuple[dict[str, Output], dict[str, float]]:
        counts = dict.fromkeys(model.run, 0)

        def counted(name: str) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
            def call(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
                counts[name] += len(pixels)
                return model.run[name](pixels)

            return call

        looking = replace(model, run={name: counted(name) for name in model.run})
        found = {entry.name: replace(looking(entry.path, **settings), image=None) for entry in entries}
        return found, {name: count / len(entries) for name, count in counts.items()}

    return find
