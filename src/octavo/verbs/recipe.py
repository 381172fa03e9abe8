"""The numbers that a variant, or a model folder, is trained with, and the family whose they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo import folder
from octavo.folder import UnknownName, did_you_mean
from octavo.models import part, variants
from octavo.recipe import change, for_qat
from octavo.verbs.signatures import PathLike


def family_of(variant: str) -> str:
    """The family a variant belongs to; UnknownName with the nearest one where there is none."""
    known = variants()
    if variant not in known:
        near = did_you_mean(variant, known)
        raise UnknownName(f"no variant {variant!r}.{near} There are: {', '.join(known)}.")
    return known[variant]


@dataclass(frozen=True)
class Start:
    """What a training starts from: a variant's fresh weights, or those of a model folder."""

    variant: str
    folder: Path | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        return family_of(self.variant)

    @property
    def quantized(self) -> bool:
        return bool(self.info.get("scheme"))


def start_of(model: PathLike) -> Start:
    """A variant's name, or else a model folder; UnknownName where it is neither."""
    if str(model) in variants():
        return Start(str(model))
    try:
        path = folder.find(model)
    except UnknownName as error:
        raise UnknownName(f"{error} Variants that can be built: {', '.join(variants())}.") from None
    info = folder.read_info(path)
    return Start(info["variant"], path, info)


def recipe(model: PathLike, changes: Iterable[str] = ()) -> Any:
    """The recipe of a variant or a model folder, with "path.to.number=value" changes made.

    That of a quantized folder has the shorter schedules of quantization-aware training.
    """
    start = start_of(model)
    chosen = part(start.family, "recipe").RECIPES[start.variant]
    # What `qat` says shapes the schedules that other changes are made to.
    shaping: list[str] = []
    plain: list[str] = []
    for assignment in changes:
        (shaping if assignment.strip().startswith("qat.") else plain).append(assignment)
    for assignment in shaping:
        chosen = change(chosen, assignment)
    if start.quantized:
        chosen = for_qat(chosen)
    for assignment in plain:
        chosen = change(chosen, assignment)
    return chosen
