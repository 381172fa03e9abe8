"""The numbers that a variant is trained with, and the family whose they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from octavo.folder import UnknownName, did_you_mean
from octavo.models import part, variants


def family_of(variant: str) -> str:
    """The family a variant belongs to; UnknownName with the nearest one where there is none."""
    known = variants()
    if variant not in known:
        near = did_you_mean(variant, known)
        raise UnknownName(f"no variant {variant!r}.{near} There are: {', '.join(known)}.")
    return known[variant]


def recipe(variant: str, changes: Iterable[str] = ()) -> Any:
    """The recipe of a variant, with "path.to.number=value" changes made."""
    from octavo.recipe import change

    chosen = part(family_of(variant), "recipe").RECIPES[variant]
    for assignment in changes:
        chosen = change(chosen, assignment)
    return chosen
