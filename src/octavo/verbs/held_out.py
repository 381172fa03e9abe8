"""The training images that training kept out: a yardstick to choose by, not to report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.models import part, task
from octavo.verbs.recipe import recipe
from octavo.verbs.signatures import Network, PathLike
from octavo.verbs.tunable import lowered

if TYPE_CHECKING:
    import numpy as np

    from octavo.evaluate import Entry


def held_out(
    info: Mapping[str, Any], data: PathLike, share: float | None = None
) -> tuple[list[Entry], float]:
    """The training images that no network of a model learned from, and their share by the hash of their names.

    share: by default the smallest that the recipe of the model's variant keeps out.
    """
    from octavo.data.split import is_held_out

    if share is None:
        share = min(stage.sampling.held_out for stage in recipe(info["variant"]).stages.values())
    what = task(info["family"])
    entries = what.read(data, "train")
    kept = [entry for entry in entries if is_held_out(entry, share)]
    if not what.count(kept):
        raise ValueError(
            f"{len(kept)} of the {len(entries)} training images in {data} are kept out of training (a share of "
            f"{share:g}, by a hash of their names), and they have no valid {what.UNIT}: {what.YARDSTICK} needs more "
            "images. Train with a larger held_out, or take a larger data set."
        )
    return kept, share


def held_out_accuracy(
    info: Mapping[str, Any], modules: Mapping[str, Any], data: Path, images: int
) -> Callable[[], float]:
    """The headline figure of the modules in torch, as they stand at each call, on so many of the held-out images."""
    import numpy as np

    from octavo.images import read
    from octavo.run.on_torch import open_module

    kept, _ = held_out(info, data)
    order = np.random.default_rng(0).permutation(len(kept))[:images]
    entries = [kept[i] for i in sorted(order.tolist())]
    what, predict = task(info["family"]), part(info["family"], "predict")
    if not what.count(entries):
        raise ValueError(
            f"the {len(entries)} held-out images taken have no valid {what.UNIT}: {what.YARDSTICK} needs more images"
        )
    stored = predict.Settings.of(info["settings"]).to_dict()
    settings = predict.Settings.of(lowered(info["family"], stored))
    run = {
        name: _remembering(open_module(module, info["preprocessing"], 1), module)
        for name, module in modules.items()
    }

    def measured() -> float:
        found = {
            entry.name: replace(predict.predict(read(entry.path), run, settings), image=None)
            for entry in entries
        }
        return what.headline(what.measure(entries, found))["all"]

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
