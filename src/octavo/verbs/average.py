"""Model folders that came from one another -> one folder with the mean of their weights.

A network and what it became by training on lie in one valley of the loss: the mean of their weights is a network that
keeps what both are good at (Wortsman et al. 2022, arXiv 2109.01903 and 2203.05482), at the cost of one. Networks that
were trained apart have no such mean. Batch normalisation's statistics are averaged as well; where a model is read back
from an export, in which it is folded, all are folded before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from octavo import folder
from octavo.models import load_modules, save_module
from octavo.verbs.extras import need_torch
from octavo.verbs.signatures import PathLike

if TYPE_CHECKING:
    from torch import Tensor


def average(models: Sequence[PathLike], out: PathLike, *, shares: Sequence[float] | None = None) -> Path:
    """Write the mean of float models of one variant, by default the plain one; the folder.

    shares: what each model counts; they are divided by their sum. model.json is that of the first model, its metrics
    taken out. Raises ValueError for fewer than two models, other variants, quantized ones, or shares that don't fit.
    """
    need_torch()
    from octavo.quantize.prepare import fold
    from octavo.quantize.unfold import unfold, unsettled

    paths = [folder.find(model) for model in models]
    if len(paths) < 2:
        raise ValueError(f"a mean is of two models or more, not of {len(paths)}")
    shares = list(shares or [1.0] * len(paths))
    if len(shares) != len(paths) or min(shares) < 0 or not sum(shares):
        raise ValueError(
            f"shares are one number for each of the {len(paths)} models, 0 or more, not {shares}"
        )
    infos = [folder.read_info(path) for path in paths]
    for path, info in zip(paths, infos, strict=True):
        if info["variant"] != infos[0]["variant"]:
            raise ValueError(f"{path} is {info['variant']}, {paths[0]} is {infos[0]['variant']}")
        if info.get("scheme"):
            raise ValueError(f"{path} is quantized: average the float models, then quantize their mean")
    loaded = [load_modules(path) for path in paths]
    for name in loaded[0]:
        if any(unsettled(modules[name]) for modules in loaded):
            for modules in loaded:
                unfold(modules[name], fold(modules[name]).state_dict())
    with folder.staged(Path(out)) as stage:
        for name, module in loaded[0].items():
            states = [modules[name].state_dict() for modules in loaded]
            module.load_state_dict({key: _mean([s[key] for s in states], shares) for key in states[0]})
            save_module(module, stage / f"{name}.pt")
        folder.write_info(stage, folder.continued(infos[0], metrics={}))
    return Path(out)


def _mean(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """A count of batches is no quantity: it stays that of the first."""
    if not values[0].is_floating_point():
        return values[0]
    weighted = sum(share * value.double() for share, value in zip(shares, values, strict=True))
    return (weighted / sum(shares)).to(values[0].dtype)  # type: ignore[union-attr]
