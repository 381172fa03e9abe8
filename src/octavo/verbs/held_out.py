"""AP of networks in torch on the training images that training kept out: a yardstick to choose by, not to report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.models import part
from octavo.verbs.recipe import recipe
from octavo.verbs.signatures import Network

if TYPE_CHECKING:
    import numpy as np


def held_out_ap(
    info: Mapping[str, Any], modules: Mapping[str, Any], data: Path, images: int
) -> Callable[[], float]:
    """AP of the modules as they stand at each call, on images that no training has seen, and no val image."""
    import numpy as np

    from octavo.data.split import is_held_out
    from octavo.data.widerface import read
    from octavo.evaluate.events import by_event
    from octavo.images import read as read_image
    from octavo.run.on_torch import open_module

    stages = recipe(info["variant"]).stages.values()
    share = min(stage.sampling.held_out for stage in stages)
    held_out = [entry for entry in read(data, "train") if is_held_out(entry, share)]
    order = np.random.default_rng(0).permutation(len(held_out))[:images]
    entries = [held_out[i] for i in sorted(order.tolist())]
    if not any((~entry.invalid).any() for entry in entries):
        raise ValueError(
            f"{len(entries)} of the training images in {data} are kept out of training, and none has a valid "
            "face: AP needs more images"
        )
    predict = part(info["family"], "predict")
    # Faces that are cut off can't be found; .02 as in the evaluation of the families.
    settings = predict.Settings.of(info["settings"], confidence=0.02)
    run = {
        name: _remembering(open_module(module, info["preprocessing"], 1), module)
        for name, module in modules.items()
    }

    def measured() -> float:
        found = {
            entry.name: replace(predict.predict(read_image(entry.path), run, settings), image=None)
            for entry in entries
        }
        return by_event(entries, found)["all"]

    return measured


def _remembering(network: Network, module: Any, limit: int = 2**29) -> Network:
    """The network, which keeps its answers while all of it is in float, up to `limit` bytes.

    While one network's layers are switched, the others see the same pixels again and again.
    """
    from octavo.quantize import grids

    kept: dict[tuple[Any, bytes], tuple[np.ndarray, ...]] = {}
    size = 0

    def call(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        nonlocal size
        if any(grid.active for grid in grids(module).values()):
            return network(pixels)
        key = pixels.shape, hashlib.sha256(pixels.data).digest()
        if key not in kept:
            found = network(pixels)
            size += sum(array.nbytes for array in found)
            if size > limit:
                return found
            kept[key] = found
        return kept[key]

    return call
