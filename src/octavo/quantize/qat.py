"""Quantization-aware training: what is added to a training loop that knows nothing of quantization.

    plan = begin(qmodel, loss, qat, steps)
    fit(qmodel, batch, plan.loss, ..., companions=plan.companions)
    plan.end()

A calibrated network is a module to train: its weights are float, its forward pass rounds, the gradient passes
straight through (fake.py). It starts from its PTQ ranges, so little is left to learn; what is added by `Qat`:

    assist    the quantizers stay off at first, while the optimizer gathers its statistics in float (StatAssist)
    ranges    then activation ranges follow a moving average of what is seen, and weight ranges the weights, for a
              share of the steps. In the end all stand still: the network must learn for the grids it will have
    learned   or scales are trained like weights (LSQ)
    boost     noise on the gradients (GradBoost)
    outputs, layers     how far the network's outputs, and those of its quantized layers, are from the float network's:

                  |y - t|^2 / |t|^2        noise power over signal power: SQNR, as sensitivity.py counts it

The teacher t is the same network with its quantizers off. It needs no labels.

BN is folded before all this (prepare.py), so there are no statistics to freeze and none is simulated twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from octavo.quantize.boost import GradBoost
from octavo.quantize.fake import SMALLEST
from octavo.quantize.prepare import grids, layers, set_mode

Outputs = Any  # a tensor or a tuple of tensors
Loss = Callable[[Outputs, dict[str, Tensor]], dict[str, Tensor]]


class Options(Protocol):
    """The fields of octavo.recipe.Qat that are read here."""

    @property
    def assist(self) -> float: ...
    @property
    def ranges(self) -> float: ...
    @property
    def learned(self) -> bool: ...
    @property
    def boost(self) -> str: ...
    @property
    def labels(self) -> float: ...
    @property
    def outputs(self) -> float: ...
    @property
    def layers(self) -> float: ...


@dataclass
class Plan:
    """What a loop needs: the loss to minimise and the companions to call; `end` when it is done."""

    model: nn.Module
    loss: Loss
    companions: list[Any] = field(default_factory=list)
    handles: list[RemovableHandle] = field(default_factory=list)

    def end(self) -> None:
        """Freeze all ranges where they are and take the hooks away."""
        for handle in self.handles:
            handle.remove()
        freeze_scales(self.model)
        set_mode(self.model, "quantize")


def begin(model: nn.Module, loss: Loss, options: Options, steps: int) -> Plan:
    """Make a calibrated network ready to be trained for `steps` steps. `options`: see octavo.recipe.Qat."""
    if not grids(model):
        raise ValueError(
            f"{type(model).__name__} has no quantizers to train with: prepare and calibrate it first"
        )
    waiting = [name for name, grid in grids(model).items() if not grid.ready]
    if waiting:
        raise ValueError(f"{waiting[0]} has no range yet: calibrate the model before it is trained")
    if not options.labels + options.outputs + options.layers:
        raise ValueError(
            "nothing to learn from: one of qat.labels, qat.outputs and qat.layers must be above 0"
        )
    plan = Plan(model, loss)
    if options.outputs or options.layers or options.labels != 1:
        plan.loss = _distilled(plan, loss, options)
    start = round(options.assist * steps)
    if options.learned:
        learn_scales(model)
    plan.companions.append(Ranges(model, start, start + round(options.ranges * (steps - start))))
    if options.boost:
        plan.companions.append(
            Boost(GradBoost(model.named_parameters(), compat=options.boost == "compat"), start)
        )
    return plan


class Ranges:
    """Quantizers by step: off before `start`, adapting to what they see before `freeze`, then frozen."""

    def __init__(self, model: nn.Module, start: int, freeze: int) -> None:
        self.model, self.start, self.freeze = model, start, freeze

    def before(self, step: int) -> None:
        mode = "off" if step < self.start else "adapt" if step < self.freeze else "quantize"
        if any(grid.mode != mode for grid in grids(self.model).values()):
            set_mode(self.model, mode)

    def gradients(self, step: int) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        """The moving averages; the scales made of them are in the model's own state."""
        observers = {name: grid.observer for name, grid in grids(self.model).items() if grid.mode == "adapt"}
        return {name: observer.state_dict() for name, observer in observers.items() if observer is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not state:
            return
        set_mode(self.model, "adapt")
        for name, grid in grids(self.model).items():
            if name in state:
                grid.observer = grid.moving_average()
                grid.observer.load_state_dict(state[name])


class Boost:
    """GradBoost from step `start` on."""

    def __init__(self, noise: GradBoost, start: int) -> None:
        self.noise, self.start = noise, start

    def before(self, step: int) -> None:
        pass

    def gradients(self, step: int) -> None:
        if step >= self.start:
            self.noise.apply(step - self.start)

    def state_dict(self) -> dict[str, Any]:
        return self.noise.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.noise.load_state_dict(state)


class _Exp(nn.Module):
    """A scale as the exponential of what is trained: always above 0, and a step changes it by a share of itself."""

    def forward(self, logarithm: Tensor) -> Tensor:
        return logarithm.exp()

    def right_inverse(self, scale: Tensor) -> Tensor:
        return scale.log()


def learn_scales(model: nn.Module) -> None:
    """Make the scales trainable, but for the input's, which is given by the pixels."""
    for grid in grids(model).values():
        if not grid.fixed:
            scale = grid.scale
            del grid.scale
            grid.scale = nn.Parameter(scale.clone())
            parametrize.register_parametrization(grid, "scale", _Exp())


def freeze_scales(model: nn.Module) -> None:
    """The inverse of `learn_scales`: scales are buffers again, as they are saved."""
    for grid in grids(model).values():
        if parametrize.is_parametrized(grid, "scale"):
            scale = grid.scale.detach()
            parametrize.remove_parametrizations(grid, "scale", leave_parametrized=False)
            del grid.scale
            grid.register_buffer("scale", scale)


def _distilled(plan: Plan, loss: Loss, options: Options) -> Loss:
    """The loss with its weight, and the distances to the float network's outputs and layers."""
    student = plan.model
    teacher = copy.deepcopy(student)
    set_mode(teacher, "off")
    teacher.eval().requires_grad_(False)
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    given: list[Tensor] = []

    def keep_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        given[:] = args
        seen["student"].clear()  # of a pass that no loss followed

    plan.handles.append(student.register_forward_pre_hook(keep_input))
    if options.layers:
        for who, network in (("student", student), ("teacher", teacher)):

            def keep(module: nn.Module, args: Any, output: Tensor, into: list[Tensor] = seen[who]) -> None:
                into.append(output)

            plan.handles += [layer.register_forward_hook(keep) for layer in layers(network).values()]

    def distilled(outputs: Outputs, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        parts = {}
        if options.labels:
            parts = {name: options.labels * part for name, part in loss(outputs, targets).items()}
        teacher.to(next(student.parameters()).device)
        with torch.no_grad():
            wanted = teacher(*(x.float() for x in given))  # under mixed precision they come in few bits
        if options.outputs:
            parts["outputs"] = options.outputs * _noise(_listed(outputs), _listed(wanted))
        if options.layers:
            parts["layers"] = options.layers * _noise(seen["student"], seen["teacher"])
        seen["teacher"].clear()
        return parts

    return distilled


def _noise(values: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Noise power over signal power, the mean over tensors."""
    ratios = [
        (value.float() - target.float()).square().mean() / target.float().square().mean().clamp(min=SMALLEST)
        for value, target in zip(values, wanted, strict=True)
    ]
    return torch.stack(ratios).mean()


def _listed(outputs: Outputs) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
