"""What several models found in one photograph, drawn side by side at the size in which a page shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from octavo.evaluate.report import Picture
from octavo.outputs import Output

LONGEST = 800  # pixels of a side: two beside each other fill a desktop's window


def picture(name: str, found: Sequence[Output], agreement: Callable[..., Any]) -> Picture:
    """found: of each model, with the same image; agreement: the task's, in whose words they are compared."""
    first = found[0]
    words = [agreement([(first, other)]).words() if other is not first else "" for other in found]
    said = [", ".join(filter(None, (one.lines()[0], text))) for one, text in zip(found, words, strict=True)]
    return Picture(name, [one.shrunk(LONGEST).draw() for one in found], said)
