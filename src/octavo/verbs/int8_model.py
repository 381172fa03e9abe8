"""A quantized folder opened to be looked into: its networks in torch, and what they meet on training images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import folder
from octavo.models import load_modules, part, scheme_for
from octavo.verbs.extras import need_torch
from octavo.verbs.model import load
from octavo.verbs.signatures import PathLike, StepProgress

if TYPE_CHECKING:
    import numpy as np


def open_int8(model: PathLike) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A quantized folder, its model.json and its networks in torch."""
    need_torch()
    path = folder.find(model)
    info = folder.read_info(path)
    if not info["scheme"]:
        raise ValueError(
            f"{path} is {info['precision']}: nothing in it is rounded to integers. Give a folder that octavo "
            "quantize makes."
        )
    return path, info, load_modules(path)


class Batches:
    """What a network is given, kept as the pixels they are: a quarter of the memory. Read as often as wanted."""

    def __init__(self, arrays: Iterable[np.ndarray], preprocessing: Mapping[str, Any]) -> None:
        self.arrays = list(arrays)
        self.offset, self.scale = preprocessing["offset"], preprocessing["scale"]

    def __len__(self) -> int:
        return len(self.arrays)

    def __iter__(self) -> Iterator[Any]:
        import torch

        for pixels in self.arrays:
            yield (torch.from_numpy(pixels).float() - self.offset) * self.scale


def batches_of(path: Path, info: Mapping[str, Any], data: Path, images: int) -> dict[str, Batches]:
    """What the networks of a folder that have grids meet on training images other than those of the calibration."""
    from octavo.quantize import Scheme
    from octavo.quantize.form import has_grids

    opened, scheme = load(path), Scheme.from_dict(info["scheme"])
    batches = part(info["family"], "data").calibration_batches
    return {
        name: Batches(
            batches(name, data, opened.run, opened.settings(), images, seed=1), info["preprocessing"]
        )
        for name in info["networks"]
        if has_grids(scheme_for(scheme, name))
    }


def batch_progress(progress: StepProgress | None, name: str, total: int) -> Callable[[int], None] | None:
    return (lambda done: progress(name, done, total)) if progress else None
