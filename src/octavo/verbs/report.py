"""Models side by side on one page: measured by the other verbs, written by octavo.evaluate.report.

What takes long is kept in OUT.parts (see kept.py), so that a stopped report goes on where it was and one more model
costs only its own measurements. But times compare only with times taken in turn: `bench` times all models again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from octavo import folder
from octavo.verbs.bench import bench
from octavo.verbs.evaluate import evaluate
from octavo.verbs.kept import Kept, command, digest, fingerprint
from octavo.verbs.model import Model, load
from octavo.verbs.photographs import images_at, samples
from octavo.verbs.predict import look
from octavo.verbs.sensitivity import sensitivity
from octavo.verbs.signatures import PathLike, Progress, StepProgress

if TYPE_CHECKING:
    from octavo.evaluate.report import Part, Picture, Report

SHOWN = 12  # pictures on the page, each of them once for every model
LAYER_IMAGES = 16  # training images for the sensitivity, as many as `octavo sensitivity` takes


def report(
    models: Iterable[PathLike],
    data: PathLike,
    out: PathLike,
    *,
    backends: Iterable[str] = ("onnxruntime",),
    split: str = "val",
    images: int | None = None,
    ground_truth: PathLike | None = None,
    threads: int = 1,
    image: PathLike | None = None,
    size: tuple[int, int] | None = None,
    repeats: int = 50,
    layers: bool = True,
    pictures: Iterable[PathLike] = (),
    progress: StepProgress | None = None,
    **settings: Any,
) -> Report:
    """Write a page that holds models, in each of the backends, against the first one; and a CSV file beside it.

    data, split, images, ground_truth and settings are what `evaluate` measures accuracy with; image, size and
    repeats those of `bench`. Times and pictures are taken with each model's own settings, as its users meet it.
    layers: the sensitivity of the layers too, of INT8 folders that have .pt files.
    pictures: images or folders to show, by default the sample photographs. progress(part, done, total).
    """
    from octavo.evaluate.report import Candidate, Report, numbers, page

    out, names, backends = Path(out), [str(model) for model in models], list(backends)
    page.check(out)
    opened = _open(names, backends, threads)
    for one in opened:
        one.model.settings(**settings)  # what is refused is said before anything long begins
    pictures = list(pictures) or samples(opened[0].model.task_name)

    kept = Kept(out.with_suffix(".parts"), progress)
    data_digest = fingerprint(data)
    accuracy: dict[str, Any] = {"split": split, "images": images, "ground_truth": ground_truth, **settings}
    records = [_accuracy(kept, one, data, data_digest, threads, accuracy) for one in opened]
    timing: dict[str, Any] = {"image": image, "size": size, "repeats": repeats, "threads": threads}
    costs = _costs(kept, opened, names, backends, timing)
    notes = list(_notes(opened, records, images, costs["load"], threads))
    tables: dict[str, Any] = {}
    for one in opened if layers else ():
        if one.given not in tables and one.has_layers:
            try:
                tables[one.given] = _layers(kept, one, data, data_digest)
            except (ValueError, ImportError) as error:
                notes.append(f"The sensitivity of {one.name} could not be measured: {error}")
    drawn = list(_pictures(opened, pictures, notes))

    made = Report(
        candidates=[
            Candidate(
                model=one.given,
                name=one.name,
                backend=one.model.backend,
                info=one.model.info,
                digest=one.digest,
                record=record,
                timing=row,
                label=one.label,
            )
            for one, record, row in zip(opened, records, costs["rows"], strict=True)
        ],
        parts=[*kept.parts, _part_of_pictures(opened, pictures, out)],
        pictures=drawn,
        sensitivity=tables,
        notes=notes,
        about=_about(records[0], opened[0].model.task, data),
        html=out,
        csv=out.with_suffix(".csv"),
    )
    numbers.write_csv(made.numbers, made.csv)
    page.write(made)
    return made


@dataclass(frozen=True)
class _Opened:
    """A model in a runtime, and what tells its results from those of others."""

    given: str  # its name or path
    name: str  # the short form of it, unique among the models
    label: str  # name, and the runtime where there are several
    model: Model
    digest: str
    runtime: str  # with its version

    @property
    def has_layers(self) -> bool:
        """Its layers can be looked at one by one: it is quantized, and its weights and torch are here."""
        weights = [self.model.folder / f"{name}.pt" for name in self.model.info["networks"]]
        quantized = self.model.info["precision"] != "float"
        return quantized and all(path.is_file() for path in weights) and find_spec("torch") is not None


def _open(names: Sequence[str], backends: Sequence[str], threads: int) -> list[_Opened]:
    opened: dict[str, _Opened] = {}
    short = [Path(given).name for given in names]
    for given, last in zip(names, short, strict=True):
        name = last if short.count(last) == 1 else given
        for backend in backends:
            model = load(given, backend, threads)
            label = f"{name} ({model.backend})" if len(backends) > 1 else name
            if label in opened:
                raise ValueError(f"{label} is asked for twice: name each model and each runtime once")
            version = getattr(sys.modules[model.backend], "__version__", "")
            opened[label] = _Opened(
                given, name, label, model, digest(model.folder), f"{model.backend} {version}"
            )
    if not opened:
        raise ValueError("a report needs a model and a backend at least")
    first, *others = opened.values()
    for other in others:
        if other.model.task is not first.model.task:
            units = f"{first.name} is for {first.model.task.UNIT}, {other.name} for {other.model.task.UNIT}"
            raise ValueError(f"{units}: a report is on models for the same")
    return list(opened.values())


def _accuracy(
    kept: Kept,
    one: _Opened,
    data: PathLike,
    data_digest: str | None,
    threads: int,
    how: dict[str, Any],
) -> dict[str, Any]:
    return kept.result(
        f"Accuracy: {one.label}",
        command("evaluate", one.given, data=data, **how, backend=one.model.backend, threads=threads),
        {
            **{"model": one.digest, "runtime": one.runtime, "threads": threads, "data": data_digest},
            **how | {"ground_truth": fingerprint(how["ground_truth"])},
        },
        lambda told: evaluate(one.model, data, progress=told, **how),
    )


def _costs(
    kept: Kept,
    opened: Sequence[_Opened],
    names: Sequence[str],
    backends: Sequence[str],
    how: dict[str, Any],
) -> dict[str, Any]:
    """ "rows" of bench, and the "load" of the machine before it: its processes that wanted a processor."""
    from octavo.evaluate.record import this_machine

    def measure(told: Progress) -> dict[str, Any]:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        rows = bench(names, backends=backends, progress=told, **how)
        return {"load": load, "rows": [row.to_dict() for row in rows]}

    size = how["size"] and "x".join(map(str, how["size"]))
    return kept.result(
        "Latency, memory, size, integers: all models in turn",
        command("bench", *names, backend=tuple(backends), **how | {"size": size}),
        {
            "models": [(one.digest, one.runtime) for one in opened],
            "machine": this_machine(),
            **how | {"image": fingerprint(how["image"])},
        },
        measure,
    )


def _layers(kept: Kept, one: _Opened, data: PathLike, data_digest: str | None) -> dict[str, Any]:
    title = f"Sensitivity of the layers: {one.name}"

    def measure(told: Progress) -> dict[str, Any]:
        def told_of(network: str, done: int, total: int) -> None:
            kept.progress(f"{title}, {network}", done, total)

        return sensitivity(one.given, data, images=LAYER_IMAGES, progress=told_of).to_dict()

    again = command("sensitivity", one.given, data=data, images=LAYER_IMAGES)
    depends = {"model": one.digest, "data": data_digest, "images": LAYER_IMAGES}
    return kept.result(title, again, depends, measure)["tables"]


def _pictures(opened: Sequence[_Opened], places: Iterable[PathLike], notes: list[str]) -> Iterator[Picture]:
    """What each model found in the images; one that can't be read is a note."""
    from octavo.evaluate.report.pictures import picture

    paths = [str(path) for place in places for path in images_at(place)]
    if len(paths) > SHOWN:
        notes.append(f"Only the first {SHOWN} of {len(paths)} pictures are shown.")
    for path in paths[:SHOWN]:
        results = [look(one.model, path, {}) for one in opened]
        found = [result.found for result in results if result.found is not None]
        if len(found) == len(results):
            yield picture(Path(path).name, found, opened[0].model.task.agreement)
        else:
            notes.append(next(f"{path} is not shown: {r.error}" for r in results if r.error))


def _part_of_pictures(opened: Sequence[_Opened], places: Iterable[PathLike], out: Path) -> Part:
    from octavo.evaluate.report import Part

    lines = [
        command(
            "predict", one.given, *places, backend=one.model.backend, save=out.with_suffix("") / one.label
        )
        for one in opened
    ]
    origin = folder.provenance()
    return Part(
        "Pictures", "\n".join(lines), str(origin["created"]), origin["commit"] or "unknown", None, False
    )


def _notes(
    opened: Sequence[_Opened],
    records: Sequence[Mapping[str, Any]],
    images: int | None,
    load: float | None,
    threads: int,
) -> Iterator[str]:
    """What a reader must know before believing the numbers."""
    if images:
        yield f"Accuracy was measured on {records[0]['images']} images only: small differences say nothing."
    if load and load > threads + 0.5:  # more than what the report itself did
        yield f"The machine was busy while times were taken (load {load:.1f}): take them again on a quiet one."
    for one, record in zip(opened, records, strict=True):
        if errors := record.get("errors"):
            name, error = next(iter(errors.items()))
            what = f"{len(errors)} images could not be read and count as if nothing was found"
            yield f"{one.label}: {what}, the first of them {name}: {error}"


def _about(record: Mapping[str, Any], task: ModuleType, data: PathLike) -> dict[str, str]:
    """The head of the page."""
    from octavo.evaluate.record import this_machine

    origin = folder.provenance()
    counts = f"{record['images']} images, {record[task.UNIT]} {task.UNIT}"
    return {
        "made": str(origin["created"]),
        "machine": this_machine(),
        "data": f"{data}, {record['split']}: {counts}",
        "octavo": str(origin["octavo"]),
        "commit": origin["commit"] or "unknown",
        "command": str(origin["command"]),
    }
