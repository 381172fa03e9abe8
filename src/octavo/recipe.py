"""A recipe: every number of a family's training in frozen dataclasses, changed by path, saved as JSON.

    change(recipe, "stages.pnet.schedule.epochs=8")

gives a new recipe in which that one number differs. Families define their own dataclasses in `recipe.py` and
share `Schedule`, what the training loop needs to know.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeVar, get_type_hints

R = TypeVar("R")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one network learns.

    steps is the length of an epoch in batches. The learning rate climbs over `warmup` (a share of the whole)
    and falls along a cosine to `final` times its peak. `ema` is the decay of the averaged weights that are
    saved. `clip` bounds the gradient's norm.
    """

    epochs: int
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 1e-4
    warmup: float = 0.03
    final: float = 0.01
    ema: float = 0.999
    clip: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is a decay from 0 to below 1, not {self.ema}")


@dataclass(frozen=True)
class Qat:
    """Quantization-aware training: how it differs from the float training of the same network.

    epochs         length, as a share of the float schedule's (FACTS.md: a tenth; literature, 5 to 20 %)
    learning_rate  peak, as a share of the float one's (FACTS.md: 1 %); then the same cosine
    assist         share of the steps that train in float first, with the optimizer kept (StatAssist)
    ranges         share of the steps up to which activation ranges go on moving; then they are frozen
    learned        scales are trained with the weights (LSQ) instead
    boost          noise on the gradients: "", "corrected" or "compat" (GradBoost; see quantize/boost.py)
    labels         weight of the family's own loss; 0: no labels are needed
    outputs        weight of the distance to the float network's outputs, as noise power over signal power
    layers         the same for the output of every quantized layer
    """

    epochs: float = 0.1
    learning_rate: float = 0.01
    assist: float = 0.0
    ranges: float = 0.0
    learned: bool = False
    boost: str = ""
    labels: float = 1.0
    outputs: float = 0.0
    layers: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.learning_rate <= 0:
            raise ValueError("qat.epochs and qat.learning_rate are shares above 0 of the float schedule's")
        if not 0 <= self.assist <= 1 or not 0 <= self.ranges <= 1:
            raise ValueError(
                f"qat.assist and qat.ranges are shares from 0 to 1, not {self.assist}, {self.ranges}"
            )
        if self.learned and self.ranges:
            raise ValueError(
                "qat.learned trains the scales, qat.ranges lets them follow what is seen: choose one"
            )
        if self.boost not in ("", "corrected", "compat"):
            raise ValueError(f"qat.boost is corrected, compat or empty, not {self.boost!r}")
        if min(self.labels, self.outputs, self.layers) < 0:
            raise ValueError("qat.labels, qat.outputs and qat.layers are weights: none is below 0")

    def schedule(self, usual: Schedule) -> Schedule:
        """The float schedule, shortened. Weights are not averaged: the average would mix grids of other steps."""
        return replace(
            usual,
            epochs=max(1, round(usual.epochs * self.epochs)),
            learning_rate=usual.learning_rate * self.learning_rate,
            ema=0.0,
        )


def for_qat(recipe: R) -> R:
    """A family's recipe with the schedule of each stage shortened as its `qat` says."""
    stages = {
        name: replace(stage, schedule=recipe.qat.schedule(stage.schedule))  # type: ignore[attr-defined]
        for name, stage in recipe.stages.items()  # type: ignore[attr-defined]
    }
    return replace(recipe, stages=stages)  # type: ignore[type-var]


@dataclass(frozen=True)
class Network:
    """What a network looks like from outside, for export.

    shape    of one batch of pixels, (n, c, h, w), as an example
    free     axes of it that may vary, each with a name
    outputs  a name for each output, in order
    multiple whoever calls it makes free heights and widths multiples of this (see octavo.lower)
    """

    shape: tuple[int, int, int, int]
    free: Mapping[int, str]
    outputs: tuple[str, ...]
    multiple: int = 1


@dataclass(frozen=True)
class Arrays:
    """The same of a network that is given no pixels but what other networks found.

    inputs   {name: (shape of an example, axes that may vary, each with a name)}; sizes that vary are 2 or more
    whole    names of the inputs that are int64, the others are float32
    outputs  a name for each output, in order
    """

    inputs: Mapping[str, tuple[tuple[int, ...], Mapping[int, str]]]
    outputs: tuple[str, ...]
    whole: tuple[str, ...] = ()


def change(recipe: R, assignment: str) -> R:
    """The recipe with one number changed: "stages.pnet.schedule.epochs=8". Lists are written as JSON.

    Raises ValueError for a path that does not exist (with the closest name) or a value of another type.
    """
    path, separator, text = assignment.partition("=")
    if not separator:
        raise ValueError(f"{assignment!r} is not of the form path.to.number=value")
    return _changed(recipe, path.strip().split("."), _read(text), path.strip())


def _read(text: str) -> Any:
    """JSON, or a number as people write it (.002), or the text itself."""
    for read in (json.loads, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _changed(node: Any, path: list[str], value: Any, whole: str) -> Any:
    if not path:
        return _converted(node, value, whole)
    name, rest = path[0], path[1:]
    known = [field.name for field in fields(node)] if is_dataclass(node) else list(node)
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise ValueError(f"the recipe has no {whole!r} (at {name!r}): {hint}")
    if is_dataclass(node):
        child = getattr(node, name)
        if child is None and not rest:
            return replace(node, **{name: value})  # type: ignore[type-var]
        return replace(node, **{name: _changed(child, rest, value, whole)})  # type: ignore[type-var]
    return {**node, name: _changed(node[name], rest, value, whole)}


def _converted(old: Any, value: Any, whole: str) -> Any:
    if is_dataclass(old) or isinstance(old, Mapping):
        raise ValueError(f"{whole!r} is a group of numbers: name one of them")
    if isinstance(old, tuple) and isinstance(value, list):
        return tuple(value)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(old) is not type(value):
        raise ValueError(f"{whole} is {old!r}: it takes a value of that type, not {value!r}")
    return value


def to_dict(recipe: Any) -> dict[str, Any]:
    """Plain dicts, lists and numbers, for JSON."""
    return json.loads(json.dumps(asdict(recipe)))


def from_dict(kind: type[R], stored: Mapping[str, Any]) -> R:
    """The recipe that `to_dict` stored. `kind` is its dataclass."""
    hints = get_type_hints(kind)
    return kind(**{name: _restored(hints[name], value) for name, value in stored.items()})


def _restored(hint: Any, value: Any) -> Any:
    if is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value)  # type: ignore[arg-type]
    origin = getattr(hint, "__origin__", None)
    if origin is dict:
        return {key: _restored(hint.__args__[1], item) for key, item in value.items()}
    if isinstance(hint, types.UnionType):
        return value if value is None else _restored(hint.__args__[0], value)
    return tuple(value) if isinstance(value, list) else value
