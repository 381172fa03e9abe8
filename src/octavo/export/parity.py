"""The proof that an exported file computes what the network in torch computes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo.export.to_onnx import Normalised
from octavo.quantize.prepare import QuantModel

# Each with the largest difference it allows, in steps of 8 bits over an output's range.
VERDICTS = {
    "bit for bit": 0.0,
    "float rounding": 0.01,  # float kernels add in another order: in float networks, and in float heads
    # Such a sum tipped a value inside to the grid's next integer; ONNX Runtime also rounds float biases to int32.
    "some steps apart": 4.0,
    "different": float("inf"),
}
# Instead of 4 where SiLU is computed in float between integers (lower/silu.py): the largest of 2 million outputs of
# YOLOv5-n is 6.5 steps off, their noise -41 dB, that of 8 bits -33.
FLOAT_BETWEEN = 10.0


@dataclass(frozen=True)
class OutputParity:
    """One output, torch against a runtime, over all batches."""

    name: str
    equal: float  # share of the elements that are equal in every bit
    equal_rounded: float  # the same after rounding both to 255 steps over the output's range
    largest_difference: float  # absolute, in the output's units
    largest_steps: float  # the same in those steps


@dataclass(frozen=True)
class Parity:
    """How far the file computes what the module computes."""

    outputs: tuple[OutputParity, ...]
    images: int
    verdict: str  # one of VERDICTS

    @property
    def ok(self) -> bool:
        return self.verdict != "different"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.verdict} on {self.images} images"]
        for o in self.outputs:
            lines.append(
                f"  {o.name}: {o.equal:.4%} equal, {o.equal_rounded:.4%} to 8 bits, "
                f"largest difference {o.largest_difference:.3g} ({o.largest_steps:.2g} steps of 8 bits)"
            )
        return "\n".join(lines)


@torch.no_grad()
def parity(
    module: nn.Module,
    path: str | os.PathLike[str],
    batches: Iterable[Any],
    preprocessing: Mapping[str, Any] | None = None,
    runtime: str = "onnxruntime",
    steps: float = VERDICTS["some steps apart"],
) -> Parity:
    """Compare `module` in torch with the file in a runtime on `batches`: uint8 pixels (n, c, h, w), or a call's arrays.

    preprocessing as given to export; a quantized module knows it from its input's grid. steps: at most so far apart
    without being different.
    """
    open_network = import_module(f"octavo.run.on_{runtime}").open_network
    session = open_network(Path(path), threads=1)
    was_training = module.training
    module.eval()
    pairs: list[list[tuple[Tensor, Tensor]]] = []
    images = 0
    try:
        for batch in batches:
            given = [torch.as_tensor(a) for a in (batch if isinstance(batch, tuple) else (batch,))]
            if len(given) == 1 and given[0].dtype == torch.uint8:
                preprocessing = preprocessing or _preprocessing_of(module)
                ours = Normalised(module, preprocessing)(given[0])
            elif isinstance(batch, tuple):
                ours = module(*given)
            else:
                raise ValueError(f"parity is checked on uint8 pixels (n, c, h, w), got {given[0].dtype}")
            ours = [ours] if isinstance(ours, Tensor) else list(ours)
            theirs = [torch.from_numpy(array) for array in session(*(a.contiguous().numpy() for a in given))]
            if [o.shape for o in ours] != [t.shape for t in theirs]:
                raise ValueError(
                    f"{path} gives {[t.shape for t in theirs]}, the module {[o.shape for o in ours]}"
                )
            pairs.append(list(zip(ours, theirs, strict=True)))
            images += len(given[0])
    finally:
        module.train(was_training)
    if not pairs:
        raise ValueError("parity needs at least one batch of images")
    by_output = zip(session.outputs, zip(*pairs, strict=True), strict=True)
    outputs = tuple(_compare(name, list(pair)) for name, pair in by_output)
    largest = max(0.0 if o.equal == 1 else max(o.largest_steps, 1e-9) for o in outputs)
    allowed = VERDICTS | {"some steps apart": steps}
    return Parity(outputs, images, next(name for name, most in allowed.items() if not largest > most))


def _compare(name: str, pairs: list[tuple[Tensor, Tensor]]) -> OutputParity:
    ours, theirs = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    if not ours.numel():  # such as a state before its first step
        return OutputParity(name, 1.0, 1.0, 0.0, 0.0)
    step = (ours.max() - ours.min()).clamp(min=1e-3 * float(ours.abs().max()) + 1e-12) / 255
    difference = (ours - theirs).abs().nan_to_num(nan=torch.inf).max()
    return OutputParity(
        name,
        float((ours == theirs).double().mean()),
        float(((ours / step).round() == (theirs / step).round()).double().mean()),
        float(difference),
        float((difference / step).nan_to_num(nan=torch.inf)),
    )


def _preprocessing_of(module: nn.Module) -> dict[str, float]:
    if isinstance(module, QuantModel) and module.meta["scheme"].input_range is not None:
        low, high = module.meta["scheme"].input_range
        scale = (high - low) / 255
        return {"offset": -low / scale, "scale": scale}
    raise ValueError("say how the module wants its pixels: preprocessing={'offset': ..., 'scale': ...}")
