"""StatAssist and GradBoost: quantized training from (nearly) the start (Park et al. 2020, arXiv 2006.09679).

A quantized network that trains from scratch fails for two reasons, says the paper, and gives each a cure:

StatAssist   The optimizer's running statistics start from the noise of fake quantization. So train in float
             for an epoch or two, then prepare() the network and go on with *the same optimizer state*. Its
             parameters are new tensors under the same names, and some were folded with BN: w' = g w. Then
             dL/dw = g dL/dw', so a first moment moves over as m / g, a second one as v / g^2.

GradBoost    Straight-through gradients are biased. Push each one a little further in its own direction:
                 noise = |Laplace(0, 1)| (hi - lo) (1 - decay)^k Bernoulli(1/2) sign(g),  clipped to +-1e-3
                 g    += noise,  between backward() and optimizer.step()
             lo, hi: moving averages of the least and the largest |g| of the tensor so far; k: steps since the
             warm-up.

GradBoost's released code divides the averages by their correction 1 - beta^t *in place* and feeds them back as
"the largest so far". The corrections then multiply up and hi grows to (1 - beta) / prod(1 - beta^t) = 7.8e4
times |g| and stays there, so that the noise is a coin times the clip until the decay wins, after 1,000 to
2,000 steps. `compat=True` repeats that; the default keeps averages and corrections apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo.quantize.prepare import BATCH_NORMS, TRANSPOSED, trace

Named = Iterable[tuple[str, nn.Parameter]]
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")  # of Adam, RMSprop, Adagrad


def transfer_state(
    old: torch.optim.Optimizer,
    old_params: Named,
    new: torch.optim.Optimizer,
    new_params: Named,
    folded: Mapping[str, tuple[str, Tensor | None]] | None = None,
) -> list[str]:
    """Give `new` the state that `old` has for the parameters of the same name.

    old_params, new_params: named_parameters() of the float and the prepared network. folded: what `folding`
    returns, {new name: (old name, gain g of w' = g w, or None)}. Returns the names that found no state.
    """
    before, folded = dict(old_params), folded or {}
    fresh = []
    for name, parameter in new_params:
        source, gain = folded.get(name, (name, None))
        state = old.state.get(before[source]) if source in before else None
        if not state:
            fresh.append(name)
            continue
        if before[source].shape != parameter.shape:
            raise ValueError(
                f"{name} has shape {tuple(parameter.shape)}, but {source} of the old optimizer "
                f"{tuple(before[source].shape)}: both must come from the same network"
            )
        new.state[parameter] = {key: _moved(key, value, parameter, gain) for key, value in state.items()}
    return fresh


def _moved(key: str, value: Any, parameter: Tensor, gain: Tensor | None) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.shape != parameter.shape or not value.dim():  # the step count
        return value.clone()
    if gain is None:
        return value.clone()
    return value / gain**2 if key in SECOND_MOMENTS else value / gain


def folding(network: nn.Module, prepared: nn.Module) -> dict[str, tuple[str, Tensor | None]]:
    """How parameters moved when prepare() folded the BN of `network`: the `folded` of `transfer_state`.

    conv.weight becomes g * conv.weight, conv.bias takes the place of bn.bias; g = bn.weight / std.
    """
    moved: dict[str, tuple[str, Tensor | None]] = {}
    kept = dict(prepared.named_modules())
    for node in trace(network).graph.nodes:
        norm = network.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(norm, BATCH_NORMS) or node.target in kept or norm.running_var is None:
            continue
        layer: Any = network.get_submodule(node.args[0].target)
        variance: Any = norm.running_var
        gain = torch.rsqrt(variance + norm.eps) * (1.0 if norm.weight is None else norm.weight.detach())
        gain = torch.where(gain.abs() < 1e-12, 1.0, gain)  # a dead channel: its moments mean nothing
        shape = layer.weight.shape
        if isinstance(layer, TRANSPOSED):  # (in, out / groups, ...): the rows of a group share its gains
            gain = gain.reshape(layer.groups, shape[1]).repeat_interleave(shape[0] // layer.groups, 0)
        gain = gain.reshape(*gain.shape, *[1] * (len(shape) - gain.dim()))
        moved[f"{node.args[0].target}.weight"] = (f"{node.args[0].target}.weight", gain)
        moved[f"{node.args[0].target}.bias"] = (f"{node.target}.bias", None)
    return moved


class GradBoost:
    """Adds GradBoost's noise to gradients, in place. Call `apply(k)` before each optimizer.step().

    With AMP call scaler.unscale_(optimizer) first. Under DDP give all ranks one seed: their gradients are equal
    by then, and so is the noise. beta, decay, clip: as published.
    """

    def __init__(
        self,
        named_params: Named,
        *,
        beta: float = 0.9,
        decay: float = 0.01,
        clip: float = 1e-3,
        compat: bool = False,
        seed: int = 0,
    ) -> None:
        if not (0 <= beta < 1 and 0 <= decay < 1 and clip > 0):
            raise ValueError(f"expected 0 <= beta, decay < 1 and clip > 0, got {beta}, {decay}, {clip}")
        self.params = [(name, p) for name, p in named_params if p.requires_grad]
        self.beta, self.decay, self.clip, self.compat, self.seed = beta, decay, clip, compat, seed
        # per tensor: steps seen, averages of (least, largest) |g|, least and largest so far
        self.running: dict[str, tuple[int, Tensor, Tensor]] = {}
        self.generators: dict[torch.device, torch.Generator] = {}

    @torch.no_grad()
    def apply(self, k: int) -> None:
        """Boost every gradient; k: optimizer steps since the warm-up ended, 0 at first."""
        for name, parameter in self.params:
            if parameter.grad is not None and parameter.grad.numel():
                parameter.grad += self.noise(name, parameter.grad, k)

    def noise(self, name: str, gradient: Tensor, k: int) -> Tensor:
        """What is added to one gradient; moves that tensor's averages on by a step."""
        low, high = self._range(name, gradient)
        generator = self._generator(gradient.device)
        # |Laplace(0, 1)| is exponentially distributed
        size = torch.empty_like(gradient).exponential_(generator=generator)
        coin = torch.empty_like(gradient).bernoulli_(0.5, generator=generator)
        noise = size * (high - low) * (1 - self.decay) ** k * coin
        return noise.clamp(max=self.clip) * gradient.sign()

    def _range(self, name: str, gradient: Tensor) -> tuple[Tensor, Tensor]:
        now = torch.stack(gradient.abs().aminmax())
        steps, average, extreme = self.running.get(name, (0, torch.zeros_like(now), now))
        extreme = average if self.compat else extreme
        extreme = torch.stack([torch.minimum(extreme[0], now[0]), torch.maximum(extreme[1], now[1])])
        average = self.beta * average + (1 - self.beta) * extreme
        corrected = average / (1 - self.beta ** (steps + 1))
        self.running[name] = steps + 1, corrected if self.compat else average, extreme
        return corrected[0], corrected[1]

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs."""
        generators = {str(device): g.get_state() for device, g in self.generators.items()}
        return {"running": dict(self.running), "generators": generators}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.running = dict(state["running"])
        for device, generator in state["generators"].items():
            self._generator(torch.device(device)).set_state(generator)
