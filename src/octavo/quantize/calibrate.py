"""Choosing ranges: a few hundred images run through the float network while observers watch.

Activations need data, weights only themselves. The images needn't be labelled, but must look like those the
network will meet; their hash is kept with the model, so that a result can be traced to its data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octavo.quantize.prepare import QuantModel, grid_at, grids, layers, set_mode


@dataclass(frozen=True)
class Calibration:
    """What a model was calibrated with."""

    hash: str  # sha256 over shapes and values of all batches, in order
    images: int
    method: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def calibrate(
    qmodel: nn.Module, batches: Iterable[Tensor], progress: Callable[[int], None] | None = None
) -> Calibration:
    """Choose all ranges from `batches`, tensors (n, ...) as the float network takes them, and switch to "quantize".

    progress is called after each batch with the number of images so far.
    ValueError for no batches, for NaN or Inf (naming the layer), for images outside the scheme's input_range.
    """
    if not isinstance(qmodel, QuantModel):
        raise ValueError(f"{type(qmodel).__name__} has no quantizers to calibrate: prepare it first")
    scheme = qmodel.meta["scheme"]
    digest, images, was_training = hashlib.sha256(), 0, qmodel.training
    before = {name: grid.mode for name, grid in grids(qmodel).items()}
    qmodel.eval()
    set_mode(qmodel, "observe")
    try:
        for batch in batches:
            if not batch.is_floating_point() or not len(batch):
                raise ValueError(
                    f"calibration takes batches of normalised float images, got {batch.dtype} {tuple(batch.shape)}"
                )
            qmodel(batch)
            digest.update(f"{tuple(batch.shape)} {batch.dtype}".encode())
            digest.update(batch.detach().cpu().contiguous().numpy().tobytes())
            images += len(batch)
            if progress is not None:
                progress(images)
        if not images:
            raise ValueError("the calibration set is empty: give at least one batch of images")
        _set_ranges(qmodel)
    except BaseException:
        for name, grid in grids(qmodel).items():
            grid.mode, grid.observer = before[name], None
        raise
    finally:
        qmodel.train(was_training)
    set_mode(qmodel, "quantize")
    options = "".join(f" {key}={value:g}" for key, value in scheme.calibrator_options.items())
    weights = "" if scheme.weight_calibrator == "max" else f", weights {scheme.weight_calibrator}"
    return Calibration(digest.hexdigest(), images, scheme.calibrator + options + weights)


def _set_ranges(qmodel: QuantModel) -> None:
    """Activations from what was seen, then weights: their biases need the scales of the inputs."""
    weights = {id(layer.weight_grid) for layer in layers(qmodel).values()}
    for grid in grids(qmodel).values():
        if id(grid) in weights or grid.fixed:
            continue
        if grid.observer is None:
            raise ValueError(f"no values reached {grid.name}: does the forward pass use it?")
        grid.set_range(*grid.observer.range())
    for name, layer in layers(qmodel).items():
        calls = [node for node in qmodel.graph.nodes if node.target == name]
        layer.fit_weight([grid_at(qmodel, node.meta["before"]) for node in calls])
