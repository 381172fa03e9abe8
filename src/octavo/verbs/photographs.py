"""The photographs that a verb is given, and those that come with the package."""

from __future__ import annotations

from pathlib import Path

from octavo.verbs.signatures import PathLike

SAMPLES = Path(__file__).parents[1] / "samples"


def samples() -> list[Path]:
    """The embedded sample photographs."""
    from octavo.images import find

    return find([SAMPLES])


def images_at(path: PathLike) -> list[PathLike]:
    from octavo.images import find

    if not Path(path).exists():
        return [path]  # reading it says what is wrong
    return list(find([path])) or [path]
