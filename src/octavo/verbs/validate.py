"""Is the INT8 model as good as the float one it was made from? What was lost, and what was gained for it.

    accuracy    the headline figures of INT8 over those of float; the same for the errors that the task measures
    agreement   whether both say the same, without asking the annotation
    speed       on a handful of the images in turn, medians; memory of a process beyond its bare runtime; file size

What the figures are, the task of the models says (octavo.evaluate). Accuracy is measured as `evaluate` does it, with a
low last threshold; agreement, speed and memory with each model's
own settings, which is what a user gets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from octavo import folder
from octavo.verbs.bench import bench
from octavo.verbs.evaluate import evaluate
from octavo.verbs.model import Model, load
from octavo.verbs.predict import look
from octavo.verbs.signatures import PathLike, Progress, StepProgress

if TYPE_CHECKING:
    from octavo.evaluate import Entry
    from octavo.outputs import Output
    from octavo.run.bench import Row

NAMES = ("float", "int8")


@dataclass(frozen=True)
class Bounds:
    """What must be reached; None: anything goes. The first four in percent, the others times float's.

    accuracy    kept of each headline figure over a whole data set
    agreement   what each model says that the other one says too
    memory      at most, beyond the bare runtime          size        of the files, at most
    speed_up    times as fast                             error       the task's (landmarks, characters), at most
    """

    accuracy: float | None = 95.0  # what is asked of an INT8 MTCNN; FACTS.md, section 1
    agreement: float | None = None
    memory: float | None = None
    size: float | None = None
    speed_up: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{field.name.replace('_', '-')} is a bound above 0, not {value:g}")


@dataclass(frozen=True)
class Check:
    """A bound and what was measured for it; None: it could not be measured, and so is not reached."""

    name: str
    value: float | None
    bound: float
    at_most: bool

    @property
    def passed(self) -> bool:
        if self.value is None:
            return False
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def __str__(self) -> str:
        found = "could not be measured" if self.value is None else f"is {self.value:.4g}"
        return f"{self.name} {found}, wanted is {'at most' if self.at_most else 'at least'} {self.bound:g}"


@dataclass(frozen=True)
class Validation:
    """A float model and an INT8 one, each pair in this order, in one runtime. Ratios are INT8 over float."""

    backend: str
    task: ModuleType  # of octavo.evaluate
    measured: tuple[dict[str, Any], dict[str, Any]]  # what `evaluate` returns
    accuracy: dict[str, float | None]  # {headline: share kept}; None where float has none
    errors: dict[str, float | None]  # {name: ratio of the errors}; {} where the task measured none
    agreement: Any  # the task's
    milliseconds: tuple[float, float]  # an image: the mean of the images' medians
    memory: tuple[float, float] | None  # MB at the peak beyond the bare runtime; None where it can't be told
    rows: list[tuple[Row, Row]]  # an image each

    @property
    def file_bytes(self) -> tuple[int, int]:
        first, second = self.rows[0]
        return first.file_bytes, second.file_bytes

    @property
    def speed_up(self) -> float:
        return self.milliseconds[0] / self.milliseconds[1]

    def against(self, bounds: Bounds) -> list[Check]:
        """The bounds that are set, each with what was measured."""
        share = self.agreement.share
        memory = ratio(self.memory[1], self.memory[0]) if self.memory else None
        files = ratio(self.file_bytes[1], self.file_bytes[0])
        kept = [name for name in self.task.WHOLE if name in self.accuracy]
        wanted = [
            *(
                (f"accuracy kept ({name}), %", _percent(self.accuracy[name]), bounds.accuracy, False)
                for name in kept
            ),
            ("agreement, %", _percent(share), bounds.agreement, False),
            ("memory, % of float's", _percent(memory), bounds.memory, True),
            ("size, % of float's", _percent(files), bounds.size, True),
            ("speed-up", self.speed_up, bounds.speed_up, False),
            (f"{self.task.ERROR} error, times float's", self.errors.get("all"), bounds.error, True),
        ]
        return [Check(name, value, bound, most) for name, value, bound, most in wanted if bound is not None]

    def to_dict(self) -> dict[str, Any]:
        from octavo.evaluate.record import this_machine

        return {
            "machine": this_machine(),
            "backend": self.backend,
            "accuracy kept": self.accuracy,
            **({f"{self.task.ERROR} ratio": self.errors} if self.task.ERROR else {}),
            "agreement": self.agreement.to_dict(),
            "speed-up": self.speed_up,
            "milliseconds": self.milliseconds,
            "MB beyond runtime": self.memory,
            "bytes": self.file_bytes,
            "float": self.measured[0],
            "int8": self.measured[1],
            "rows": [[row.to_dict() for row in rows] for rows in self.rows],
        }


def validate(
    float_model: PathLike,
    int8_model: PathLike,
    data: PathLike,
    *,
    split: str = "val",
    ground_truth: PathLike | None = None,
    backend: str = "auto",
    threads: int = 1,
    timed_images: int = 5,
    repeats: int = 20,
    progress: StepProgress | None = None,
    **settings: Any,
) -> Validation:
    """Hold an INT8 model against its float one on a data set in the layout of their task.

    backend "auto": what auto takes for the INT8 model, for both; a runtime may cost more than a precision.
    timed_images: so many of the split, evenly from the first to the last, with `repeats` rounds on each.
    settings: in place of each model's own.
    """
    models = _open(float_model, int8_model, backend, threads)
    for model in models:
        model.settings(**settings)  # wrong ones are said before anything long begins
    task = models[0].task
    entries = task.read(data, split)
    if not task.count(entries):
        raise ValueError(
            f"the split {split!r} of {data} has no valid {task.UNIT}: there is nothing to measure accuracy on"
        )

    def told(what: str) -> Progress | None:
        return partial(progress, what) if progress else None

    first, second = (
        evaluate(
            model,
            data,
            split=split,
            ground_truth=ground_truth,
            progress=told(f"{task.YARDSTICK}, {name}"),
            **settings,
        )
        for name, model in zip(NAMES, models, strict=True)
    )
    readable = [entry for entry in entries if entry.name not in first["errors"]]
    agreed = task.agreement(_side_by_side(models, readable, settings, told("agreement")))
    rows = []
    for number in range(count := min(timed_images, len(readable))):
        a, b = bench(
            [model.folder for model in models],
            image=readable[number * len(readable) // count].path,
            backends=[models[0].backend],
            threads=threads,
            repeats=repeats,
            memory=number == 0,
            progress=told(f"speed, image {number + 1}"),
            **settings,
        )
        rows.append((a, b))
    return Validation(
        backend=models[0].backend,
        task=task,
        measured=(first, second),
        accuracy=ratios(task.headline(first), task.headline(second)),
        errors=ratios(task.errors(first), task.errors(second)),
        agreement=agreed,
        milliseconds=(_mean([a.total.p50 for a, _ in rows]), _mean([b.total.p50 for _, b in rows])),
        memory=_memory(rows[0]),
        rows=rows,
    )


def _open(float_model: PathLike, int8_model: PathLike, backend: str, threads: int) -> tuple[Model, Model]:
    """Both in the same runtime; ValueError where they are not a float and an INT8 model of one family."""
    paths = [folder.find(model) for model in (float_model, int8_model)]
    infos = [folder.read_info(path) for path in paths]
    precisions = tuple(info["precision"] for info in infos)
    if precisions != NAMES:
        hint = (
            "give the float model first"
            if precisions == NAMES[::-1]
            else "expected are a float and an INT8 model"
        )
        raise ValueError(f"{float_model} is {precisions[0]} and {int8_model} is {precisions[1]}: {hint}.")
    if infos[0]["family"] != infos[1]["family"]:
        raise ValueError(
            f"{float_model} is of the family {infos[0]['family']}, {int8_model} of {infos[1]['family']}: "
            "what one kept of the other can be asked within a family only."
        )
    int8 = load(paths[1], backend, threads)
    return load(paths[0], int8.backend, threads), int8


def ratios(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> dict[str, float | None]:
    """{name: the second's over the first's}; None where one of them has none."""
    return {name: ratio(second.get(name), value) for name, value in first.items()}


def ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _memory(rows: tuple[Row, Row]) -> tuple[float, float] | None:
    first, second = (row.memory for row in rows)
    return (first.peak - first.runtime, second.peak - second.runtime) if first and second else None


def _side_by_side(
    models: tuple[Model, Model],
    entries: Sequence[Entry],
    settings: Mapping[str, Any],
    progress: Progress | None,
) -> Iterator[tuple[Output, Output]]:
    """What both find in each image, as they are used; an image that one of them can't look at is left out."""
    for done, entry in enumerate(entries, 1):
        first, second = (look(model, str(entry.path), settings).found for model in models)
        if first is not None and second is not None:
            yield first, second
        if progress:
            progress(done, len(entries))
