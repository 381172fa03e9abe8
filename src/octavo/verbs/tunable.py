"""Which of a family's settings are tuned, and how low they stand while accuracy is measured."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from octavo.models import part

if TYPE_CHECKING:
    from octavo.evaluate.tuning import Axis


def replays(family: str) -> bool:
    """Whether it can try settings without running its networks again (models/FAMILY/tune.py)."""
    return find_spec(f"octavo.models.{family}.tune") is not None


def axes_of(family: str, settings: Mapping[str, Any]) -> tuple[Axis, ...]:
    from octavo.evaluate import tuning

    if replays(family):
        return part(family, "tune").AXES
    return tuning.axes_of(settings, part(family, "predict").MEASURING)


def lowered(family: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as accuracy is measured: what only cuts off what is reported as low as MEASURING has it."""
    measuring, made = part(family, "predict").MEASURING, dict(settings)
    for axis in axes_of(family, settings):
        made = axis.put(made, axis.of(measuring)) if axis.reports else made
    return made
