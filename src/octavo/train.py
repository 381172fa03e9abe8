"""One visible training loop for every network, float or quantized: a quantized network is a module to train.

    inputs, targets = batch(seed, step) -> outputs = module(inputs) -> parts = loss(outputs, targets)
    sum(parts).backward() -> clip -> step -> average the weights

AdamW, one cosine, exponentially averaged weights (what is saved is the average). A batch depends only on
(seed, rank, step), nothing else is random, so a run that was killed goes on exactly where its last checkpoint
stood. Lightning Fabric carries the same loop to a GPU, to many, and to bf16.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from octavo.folder import atomic
from octavo.recipe import Schedule, to_dict

Batch = tuple[Tensor, dict[str, Any]]
BatchFunction = Callable[[tuple[int, ...], int], Batch]  # (seed, rank, step), count -> inputs, targets
LossFunction = Callable[[tuple[Tensor, ...], dict[str, Any]], dict[str, Tensor]]
Metrics = dict[str, float]


class TrainingError(RuntimeError):
    """Training can't go on: the loss is no longer a number, or a checkpoint belongs to another run."""


@dataclass(frozen=True)
class Hooks:
    """What a caller may want to see: progress(step, steps, metrics) each step, watch(module) each epoch."""

    progress: Callable[[int, int, Metrics], None] | None = None
    watch: Callable[[nn.Module], Metrics] | None = None


class Companion(Protocol):
    """What acts beside the loop and is resumed with it: a plan for quantizers, noise on gradients."""

    def before(self, step: int) -> None:
        """Called before the forward pass of a step."""

    def gradients(self, step: int) -> None:
        """Called between backward and the optimizer's step."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def make_fabric(accelerator: str = "auto", devices: int | str = "auto", precision: str = "32-true") -> Fabric:
    """A started Fabric; under torchrun it joins the other processes. precision: 32-true, bf16-mixed, 16-mixed."""
    if accelerator == "auto" and not torch.cuda.is_available():
        accelerator = "cpu"
    if accelerator == "cpu" and devices == "auto":  # Fabric takes one CPU for all there is
        devices = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(accelerator=accelerator, devices=devices, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    return fabric


def fit(
    module: nn.Module,
    batch: BatchFunction,
    loss: LossFunction,
    schedule: Schedule,
    folder: Path,
    name: str,
    fabric: Fabric,
    hooks: Hooks = Hooks(),
    companions: Sequence[Companion] = (),
    origin: str = "",
    teachers: Sequence[nn.Module] = (),
) -> nn.Module:
    """Train a module and return it with its averaged weights; `folder` gets its log and its checkpoint.

    folder/checkpoints/NAME.pt is written after every epoch and every minute; a run that finds one with the same
    schedule and origin (what training starts from and how, for whom fresh weights aren't all) goes on from there,
    a finished one returns at once. folder/log.jsonl has one line per epoch, folder/tensorboard the curves.
    With teachers the loss finds their mean outputs for the same inputs in targets["teacher"].
    Raises TrainingError when the loss is NaN or infinite, naming step and part, with the last good checkpoint kept.
    """
    checkpoint = folder / "checkpoints" / f"{name}.pt"
    steps = schedule.epochs * schedule.steps
    average = Average(module, schedule.ema)
    optimizer = torch.optim.AdamW(parameter_groups(module, schedule.weight_decay), lr=schedule.learning_rate)
    run = Run(
        checkpoint, {"schedule": to_dict(schedule), "origin": origin}, module, optimizer, average, companions
    )
    start = run.restore()
    if start >= steps:
        return average.apply_to(module)
    wrapped, optimizer = fabric.setup(module, optimizer)
    average.to(fabric.device)
    for teacher in teachers:
        teacher.to(fabric.device).eval()
    totals = Totals()
    saved = time.monotonic()
    with Log(folder, name, fabric.is_global_zero) as log:
        for step, (inputs, targets) in feed(batch, schedule, fabric, start, steps):
            for companion in companions:
                companion.before(step)
            rate = learning_rate(schedule, step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if teachers:
                with torch.no_grad(), fabric.autocast():
                    targets = targets | {"teacher": mean_outputs(teachers, inputs)}
            wrapped.train()
            parts = loss(wrapped(inputs), targets)
            total = torch.stack(list(parts.values())).sum()
            fabric.backward(total)
            for companion in companions:
                companion.gradients(step)
            norm = clip_grad_norm_(module.parameters(), schedule.clip)
            values = {key: float(part.detach()) for key, part in parts.items()}
            if not math.isfinite(sum(values.values()) + float(norm)):
                shown = ", ".join(f"{key} {value:.3g}" for key, value in values.items())
                raise TrainingError(
                    f"{name}: the loss is no longer a number at step {step} of {steps} "
                    f"({shown}, gradient {float(norm):.3g}). "
                    f"The last good checkpoint is {checkpoint}; lower the learning rate ({rate:.2g} there) and go on."
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.update(module, step)
            totals.add(values)
            if hooks.progress:
                hooks.progress(step + 1, steps, totals.means())
            finished = (step + 1) % schedule.steps == 0
            if fabric.is_global_zero and (finished or time.monotonic() - saved > 60):
                run.save(step + 1)
                saved = time.monotonic()
            if finished:
                metrics = totals.take() | {"learning_rate": rate}
                if hooks.watch and fabric.is_global_zero:
                    metrics |= average.watched(module, hooks.watch)
                log.write((step + 1) // schedule.steps, metrics)
    return average.apply_to(module)


def mean_outputs(modules: Sequence[nn.Module], inputs: Tensor) -> tuple[Tensor, ...]:
    """Each output, float32, as the mean over networks that have outputs of the same shapes."""
    return tuple(
        torch.stack(each).float().mean(0) for each in zip(*(m(inputs) for m in modules), strict=True)
    )


def learning_rate(schedule: Schedule, step: int, steps: int) -> float:
    """Linear climb over the warm-up, then a cosine from the peak to `final` times the peak."""
    warmup = max(1, round(schedule.warmup * steps))
    if step < warmup:
        return schedule.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    low = schedule.final
    return schedule.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * share)) / 2)


def parameter_groups(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases, normalisation and PReLU slopes (all one-dimensional) do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def feed(
    batch: BatchFunction, schedule: Schedule, fabric: Fabric, start: int, steps: int
) -> Iterator[tuple[int, Batch]]:
    """Batches from step `start`, each made in a thread while the one before is learned from."""
    share = max(1, schedule.batch_size // fabric.world_size)

    def make(step: int) -> Batch:
        return batch((schedule.seed, fabric.global_rank, step), share)

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(make, start)
        for step in range(start, steps):
            inputs, targets = coming.result()
            if step + 1 < steps:
                coming = thread.submit(make, step + 1)
            yield step, (fabric.to_device(inputs), fabric.to_device(targets))


class Average:
    """Exponential moving average of a module's weights and buffers, kept beside it.

    Early on the decay is (1 + t) / (10 + t), so that the average does not remember the first random weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {key: value.detach().clone() for key, value in module.state_dict().items()}

    def to(self, device: torch.device) -> None:
        self.state = {key: value.to(device) for key, value in self.state.items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - decay)
            else:
                self.state[key].copy_(value)

    def apply_to(self, module: nn.Module) -> nn.Module:
        module.load_state_dict(self.state)
        return module.eval()

    def watched(self, module: nn.Module, watch: Callable[[nn.Module], Metrics]) -> Metrics:
        """The metrics of the averaged weights; the module's own come back afterwards."""
        own = {key: value.clone() for key, value in module.state_dict().items()}
        try:
            return watch(self.apply_to(module))
        finally:
            module.load_state_dict(own)


@dataclass(frozen=True)
class Run:
    """All that a killed run needs to go on exactly. `identity` is what must be equal for it to be the same run."""

    path: Path
    identity: dict[str, Any]
    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average
    companions: Sequence[Companion]

    def save(self, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            **self.identity,
            "step": step,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state,
            "companions": [companion.state_dict() for companion in self.companions],
        }
        with atomic(self.path) as temporary:
            torch.save(state, temporary)

    def restore(self) -> int:
        """The step to go on from: 0 where there is no checkpoint."""
        if not self.path.is_file():
            return 0
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise TrainingError(
                f"{self.path} can't be read ({error}): delete it to start this network anew"
            ) from None
        for what, value in self.identity.items():
            if (stored := state.get(what, "")) != value:
                raise TrainingError(
                    f"{self.path} was trained with another {what}: {stored}, now {value}. "
                    "Give another --out, or delete the checkpoint to start this network anew."
                )
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.state = state["average"]
        for companion, stored in zip(self.companions, state.get("companions", ()), strict=True):
            companion.load_state_dict(stored)
        return int(state["step"])


class Totals:
    """Running means of the losses since they were last taken."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, values: Metrics) -> None:
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.count += 1

    def means(self) -> Metrics:
        return {key: value / max(1, self.count) for key, value in self.sums.items()}

    def take(self) -> Metrics:
        means = self.means()
        self.sums, self.count = {}, 0
        return means


class Log:
    """One JSON line per epoch in folder/log.jsonl, and the same numbers for TensorBoard."""

    def __init__(self, folder: Path, name: str, writes: bool) -> None:
        self.folder, self.name, self.writes = folder, name, writes

    def __enter__(self) -> Log:
        if self.writes:
            from torch.utils.tensorboard import SummaryWriter

            self.folder.mkdir(parents=True, exist_ok=True)
            self.file: TextIO = open(self.folder / "log.jsonl", "a", encoding="utf-8")
            self.board = SummaryWriter(str(self.folder / "tensorboard" / self.name))
        return self

    def write(self, epoch: int, metrics: Metrics) -> None:
        if not self.writes:
            return
        line = {"time": round(time.time(), 1), "network": self.name, "epoch": epoch}
        print(
            json.dumps(line | {key: round(value, 6) for key, value in metrics.items()}),
            file=self.file,
            flush=True,
        )
        for key, value in metrics.items():
            self.board.add_scalar(key, value, epoch)

    def __exit__(self, *_: object) -> None:
        if self.writes:
            self.file.close()
            self.board.close()
