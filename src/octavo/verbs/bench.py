"""How fast models are side by side, on one image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from octavo.models import part
from octavo.verbs.model import Model, load
from octavo.verbs.photographs import GROUP, usual
from octavo.verbs.signatures import PathLike, Progress

if TYPE_CHECKING:
    import numpy as np

    from octavo.run.bench import Row


def bench(
    models: Iterable[PathLike],
    *,
    size: tuple[int, int] | None = None,
    image: PathLike | None = None,
    backends: Iterable[str] = ("auto",),
    threads: int = 1,
    repeats: int = 50,
    memory: bool = True,
    progress: Progress | None = None,
    **settings: Any,
) -> list[Row]:
    """Time, memory and integers of models on one image, interleaved; a row for each model in each backend.

    size (width, height) in pixels: the image is scaled until it covers it and cut in the middle. Without an
    image it is the sample of the first model's task; the photograph with eleven faces at 640x480 if no size is given.
    """
    from octavo.images import read
    from octavo.run.bench import Candidate
    from octavo.run.bench import bench as measure

    opened = [(str(name), load(name, backend, threads)) for name in models for backend in backends]
    if image is None:
        image = usual(opened[0][1].task_name) if opened else GROUP
        size = size or ((640, 480) if image == GROUP else None)
    pixels = read(image)
    if size:
        pixels = _cover(pixels, *size)

    def candidate(name: str, model: Model) -> Candidate:
        chosen, family = model.settings(**settings), part(model.info["family"], "predict")
        look = lambda picture, run: family.predict(picture, run, chosen)  # noqa: E731
        return Candidate(name, model.backend, look, model.run, model.folder, settings)

    warmup = 10
    rounds = iter(range(1, repeats + warmup + 1))
    return measure(
        [candidate(name, model) for name, model in opened],
        pixels,
        repeats=repeats,
        warmup=warmup,
        threads=threads,
        memory=memory,
        on_round=(lambda: progress(next(rounds), repeats + warmup)) if progress else None,
    )


def _cover(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """(height, width, 3): the middle of the image, scaled so that it just covers the size."""
    import cv2
    import numpy as np

    scale = max(width / image.shape[1], height / image.shape[0])
    across, down = max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale))
    image = cv2.resize(image, (across, down), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    x, y = (across - width) // 2, (down - height) // 2
    return np.ascontiguousarray(image[y : y + height, x : x + width])
