"""Is a data set whole, and what is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.verbs.signatures import PathLike, Progress

if TYPE_CHECKING:
    from octavo.data.check import Report


def data(
    root: PathLike,
    split: str | None = None,
    sheet: PathLike | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a data set in WIDER FACE layout; `sheet` is where to write a picture of samples."""
    from octavo.data.check import check

    return check(root, split, sheet, progress)
