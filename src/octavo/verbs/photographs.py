"""The photographs that a verb is given, and those that come with the package."""

from __future__ import annotations

from pathlib import Path

from octavo.verbs.signatures import PathLike

SAMPLES = Path(__file__).parents[1] / "samples"
GROUP = SAMPLES / "group.jpg"  # eleven faces


def samples(task: str = "") -> list[Path]:
    """The embedded sample photographs, or those of a task that has a folder of its own among them."""
    from octavo.images import SUFFIXES

    place = SAMPLES / task if (SAMPLES / task).is_dir() else SAMPLES
    return sorted(path for path in place.iterdir() if path.suffix in SUFFIXES)


def usual(task: str) -> Path:
    """What times are of where nothing else is given."""
    return GROUP if (found := samples(task)) == samples() else found[0]


def images_at(path: PathLike) -> list[PathLike]:
    from octavo.images import find

    if not Path(path).exists():
        return [path]  # reading it says what is wrong
    return list(find([path])) or [path]
