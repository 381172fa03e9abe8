"""A network as an ONNX file, by what it looks like from outside (octavo.recipe): it sees pixels, or arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo.export.to_onnx import export
from octavo.lower.dynamic import dynamic
from octavo.quantize.dynamic import is_dynamic, to_onnx
from octavo.quantize.prepare import QuantModel
from octavo.recipe import Arrays, Network


def write(
    module: nn.Module,
    path: str | os.PathLike[str],
    like: Network | Arrays,
    preprocessing: Mapping[str, Any],
) -> None:
    """Write `module`, in float or in any form of octavo.quantize.formed.

    One on grids becomes a Q/DQ graph for its scheme's target. One with layers of quantize/dynamic.py is written in
    float, with the weights that its integers stand for, and then given ONNX Runtime's dynamic operators.
    """
    if isinstance(like, Network):
        export(
            module,
            path,
            torch.zeros(like.shape),
            target=module.meta["scheme"].target if isinstance(module, QuantModel) else None,
            dynamic=like.free,
            outputs=like.outputs,
            preprocessing=preprocessing,
        )
        return
    free = [axes for _, axes in like.inputs.values()]
    to_onnx(module, path, *example(like), inputs=list(like.inputs), outputs=like.outputs, dynamic=free)
    if is_dynamic(module):
        dynamic(path, path)


def example(like: Network | Arrays, seed: int = 0) -> list[Tensor]:
    """Random arrays as such a network is given: pixels, small numbers, whole ones below 64."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(like, Network):
        return [torch.randint(0, 256, like.shape, dtype=torch.uint8, generator=generator)]
    return [
        torch.randint(0, 64, shape, generator=generator)
        if name in like.whole
        else torch.randn(shape, generator=generator)
        for name, (shape, _) in like.inputs.items()
    ]
