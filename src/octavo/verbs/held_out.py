"""The training images that training kept out: a yardstick to choose by, not to report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Judge:
    """So many held-out images, what is found in one of them, and the headline figure of what was found in all."""

    info: Mapping[str, Any]
    entries: list[Entry]
    settings: Any

    @property
    def yardstick(self) -> str:
        return task(self.info["family"]).YARDSTICK

    def look(self, entry: Entry, run: Mapping[str, Network]) -> Any:
        from octavo.images import read

        predict = part(self.info["family"], "predict").predict
        return replace(predict(read(entry.path), run, self.settings), image=None)

    def measure(self, answers: Sequence[Any]) -> float:
        """Of what was found in each of the entries, in their order."""
        what = task(self.info["family"])
        found = dict(zip((entry.name for entry in self.entries), answers, strict=True))
        return what.headline(what.measure(self.entries, found))["all"]


def judge(info: Mapping[str, Any], data: Path, images: int, split: str = "train") -> Judge:
    """Of the held-out images of train, or of val: numbers of which are no longer to choose by."""
    import numpy as np

    what, predict = task(info["family"]), part(info["family"], "predict")
    kept = held_out(info, data)[0] if split == "train" else what.read(data, split)
    order = np.random.default_rng(0).permutation(len(kept))[:images]
    entries = [kept[i] for i in sorted(order.tolist())]
    if not what.count(entries):
        raise ValueError(
            f"the {len(entries)} {'held-out' if split == 'train' else split} images taken have no valid {what.UNIT}: "
            f"{what.YARDSTICK} needs more images"
        )
    stored = predict.Settings.of(info["settings"]).to_dict()
    return Judge(info, entries, predict.Settings.of(lowered(info["family"], stored)))


def accuracy(judge: Judge, modules: Mapping[str, Any]) -> Callable[[], float]:
    """The headline figure of the modules in torch, as they stand at each call."""
    from octavo.run.on_torch import open_module

    run = {
        name: _remembering(open_module(module, judge.info["preprocessing"], 1), module)
        for name, module in modules.items()
    }
    return lambda: judge.measure([judge.look(entry, run) for entry in judge.entries])


def _remembering(network: Network, module: Any, limit: int = 2**29) -> Network:
    """The network, which keeps its answers while all of it is in float, up to `limit` bytes.

    While one network's layers are switched, those that see pixels see the same again and again.
    """
    from octavo.quantize import grids

    kept: dict[tuple[Any, bytes], tuple[np.ndarray, ...]] = {}
    size = 0

    def call(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        nonlocal size
        pixels = arrays[0]
        if len(arrays) > 1 or any(grid.active for grid in grids(module).values()):
            return network(*arrays)
        key = pixels.shape, hashlib.sha256(pixels.tobytes()).digest()
        if key not in kept:
            found = network(pixels)
            size += sum(array.nbytes for array in found)
            if size > limit:
                return found
            kept[key] = found
        return kept[key]

    return call
