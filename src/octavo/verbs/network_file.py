"""A network as an ONNX file, by what it looks like from outside (octavo.recipe): it sees pixels, or arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.recipe import Arrays, Network
from octavo.verbs.signatures import PathLike

if TYPE_CHECKING:
    from torch import nn


def write(
    module: nn.Module,
    path: PathLike,
    like: Network | Arrays,
    preprocessing: Mapping[str, Any],
    tail: nn.Module | None = None,
) -> None:
    """Write `module`, in float or in any form of octavo.quantize.formed.

    One on grids becomes a Q/DQ graph for its scheme's target. One with layers of quantize/dynamic.py is written in
    float, with the weights that its integers stand for, and then given ONNX Runtime's dynamic operators; weights of
    layers that only store integers are stored as such.
    """
    import torch

    from octavo.export import align_file, export
    from octavo.lower.dynamic import dynamic
    from octavo.lower.stored import stored
    from octavo.quantize.dynamic import finds_ranges, float_twin, is_dynamic, to_onnx
    from octavo.quantize.prepare import QuantModel

    if isinstance(like, Network):
        export(
            float_twin(module) if is_dynamic(module) else module,
            path,
            torch.zeros(like.shape),
            target=module.meta["scheme"].target if isinstance(module, QuantModel) else None,
            dynamic=like.free,
            outputs=like.outputs,
            preprocessing=preprocessing,
            tail=tail,
        )
        if is_dynamic(module):
            stored(path, path)
        return
    free = [axes for _, axes in like.inputs.values()]
    arrays = [torch.from_numpy(array) for array in example(like)]
    to_onnx(module, path, *arrays, inputs=list(like.inputs), outputs=like.outputs, dynamic=free)
    if finds_ranges(module):
        dynamic(path, path)
    if is_dynamic(module):
        stored(path, path)
        align_file(path)


def example(like: Network | Arrays, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Random arrays as such a network is given: pixels, small numbers, whole ones below 64."""
    rng = np.random.default_rng(seed)
    if isinstance(like, Network):
        return (rng.integers(0, 256, like.shape, np.uint8),)
    return tuple(
        rng.integers(0, 64, shape) if name in like.whole else rng.standard_normal(shape, np.float32)
        for name, (shape, _) in like.inputs.items()
    )
