"""The inverse of `fold`: from the weights of a network without BatchNorm to the network with it, to be trained on.

What was folded is gone, but a norm that changes nothing in evaluation mode may have any mean and var:

    norm(y) = (y - mean) / sqrt(var + eps) · gain + shift,    gain = sqrt(var + eps),  shift = mean + b,  y = W x

`unfold` takes mean 0 and var 1. In training mode, where a norm uses the batch's own, that is another network:
`settle` gives it those of a batch first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo.quantize.prepare import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED, norms_behind, trace


def unfold(module: nn.Module, folded: Mapping[str, Tensor]) -> None:
    """Give a module the state of its folded twin, weights as they are and biases as shifts, in evaluation mode.

    A bias that is not in `folded` is zero. ValueError names what else is missing, left over or of another shape;
    TraceError is one as well.
    """
    wanted, found = module.state_dict(), dict(folded)
    norms = {layer: norm for layer, norm, _ in norms_behind(trace(module))}
    for layer, part in module.named_modules():
        if f"{layer}.weight" not in folded or not isinstance(part, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
            continue
        bias = found.pop(f"{layer}.bias", None)
        if layer in norms:
            found |= _neutral(norms[layer], module.get_submodule(norms[layer]))
        owner = norms.get(layer, layer)
        if bias is not None:
            found[f"{owner}.bias"] = bias
        for name in {f"{layer}.bias", f"{owner}.bias"} & set(wanted) - set(found):
            found[name] = torch.zeros_like(wanted[name])
    needed = [name for name, _ in module.named_parameters() if name not in found]
    left = [name for name in found if name not in wanted]
    others = [name for name in found if name in wanted and found[name].shape != wanted[name].shape]
    problems = [
        *(f"{name} is missing" for name in needed),
        *(f"there is a {name} that the network has not" for name in left),
        *(f"{name} is {_shape(found[name])}, in the network {_shape(wanted[name])}" for name in others),
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(f"these are no weights of {type(module).__name__}: {problems[0]}{more}")
    module.load_state_dict(wanted | found)
    module.eval()


def _neutral(name: str, norm: Any) -> dict[str, Tensor]:
    """State of a norm that only adds its shift."""
    return {
        f"{name}.weight": torch.full_like(norm.running_var, (1 + norm.eps) ** 0.5),
        f"{name}.running_mean": torch.zeros_like(norm.running_mean),
        f"{name}.running_var": torch.ones_like(norm.running_var),
        f"{name}.num_batches_tracked": torch.zeros_like(norm.num_batches_tracked),
    }


def unsettled(module: nn.Module) -> dict[str, Any]:
    """The norms, by name, whose mean and var are of no data yet."""
    norms: dict[str, Any] = {name: m for name, m in module.named_modules() if isinstance(m, BATCH_NORMS)}
    return {name: norm for name, norm in norms.items() if norm.affine and norm.num_batches_tracked == 0}


@torch.no_grad()
def settle(module: nn.Module, inputs: Tensor) -> None:
    """Give each unsettled norm the mean and var of what it sees of a batch; what it computes stays the same."""
    seen: dict[str, Tensor] = {}
    norms = unsettled(module)
    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
        for name, norm in norms.items()
    ]
    module.eval()(inputs)
    for hook in hooks:
        hook.remove()
    for name, y in seen.items():
        norm, rows = norms[name], y.transpose(0, 1).flatten(1).double()  # (channels, all else)
        gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - gain * norm.running_mean.double()
        norm.running_mean.copy_(rows.mean(1))
        norm.running_var.copy_(rows.var(1, correction=0))
        norm.weight.copy_(gain * (norm.running_var.double() + norm.eps).sqrt())
        norm.bias.copy_(shift + gain * norm.running_mean.double())


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)
