"""Quantized training: each plan against its definition, exact resuming, ranges that agree between processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from octavo.quantize import Scheme, calibrate, grids, prepare, qat, set_mode
from octavo.quantize.fake import FakeQuant
from octavo.quantize.prepare import QuantModel
from octavo.quantize.scheme import Grid
from octavo.recipe import Qat, Schedule
from octavo.train import Hooks, TrainingError, fit

NOTHING = Hooks()
SCHEDULE = Schedule(epochs=2, steps=10, batch_size=8, learning_rate=1e-3, ema=0.0)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 2),
    ).eval()


def images(seed: int, count: int = 8) -> Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8))
    return (torch.from_numpy(pixels).float() - 128) / 128


def quantized(bits: int = 8, target: str = "cpu") -> QuantModel:
    model = prepare(
        network(), Scheme.for_target(target, weight=Grid(bits, granularity="channel", narrow=True))
    )
    calibrate(model, [images(seed) for seed in range(4)])
    return model


def batch(seed: tuple[int, ...], count: int) -> tuple[Tensor, dict[str, Tensor]]:
    x = images(int(np.random.default_rng(seed).integers(2**31)), count)
    return x, {"y": x.mean((2, 3))[:, :2]}


def loss(outputs: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"square": (outputs - targets["y"]).square().mean()}


def train(
    model: QuantModel,
    options: Qat,
    folder: Path,
    hooks: Hooks = NOTHING,
    schedule: Schedule = SCHEDULE,
    precision: str = "32-true",
) -> QuantModel:
    plan = qat.begin(model, loss, options, schedule.epochs * schedule.steps)
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
    fit(model, batch, plan.loss, schedule, folder, "net", fabric, hooks, plan.companions, repr(options))
    plan.end()
    return model


def noise(model: QuantModel) -> float:
    """Noise power over signal power against the float network, on images not trained on."""
    wanted = network()(images(99, 64))
    with torch.no_grad():
        return float((model(images(99, 64)) - wanted).square().sum() / wanted.square().sum())


PLANS = {
    "labels": Qat(),
    "adapting ranges": Qat(ranges=0.7),
    "learned scales": Qat(learned=True),
    "StatAssist": Qat(assist=0.3, ranges=0.5),
    "GradBoost": Qat(boost="corrected"),
    "GradBoost as released": Qat(boost="compat", assist=0.2),
    "distilled": Qat(labels=1.0, outputs=1e-3, layers=1e-3),
}


@pytest.mark.parametrize("options", PLANS.values(), ids=PLANS)
def test_every_plan_runs_in_mixed_precision(options: Qat, tmp_path: Path) -> None:
    trained = train(quantized(), options, tmp_path, precision="bf16-mixed")
    assert all(torch.isfinite(value).all() for value in trained.state_dict().values())


@pytest.mark.parametrize("options", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_every_plan_learns_and_ends_frozen(options: Qat, target: str, tmp_path: Path) -> None:
    model = quantized(target=target)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(
        model,
        options,
        tmp_path,
        schedule=Schedule(epochs=1, steps=30, batch_size=16, learning_rate=3e-3, ema=0),
    )
    x, targets = batch((7,), 64)
    with torch.no_grad():
        after = float(loss(model(x), targets)["square"])
        model.load_state_dict(before)
        assert after < float(loss(model(x), targets)["square"]) * 0.9
    assert {grid.mode for grid in grids(model).values()} == {"quantize"}


@pytest.mark.parametrize("options", PLANS.values(), ids=PLANS)
def test_a_killed_run_goes_on_exactly(options: Qat, tmp_path: Path) -> None:
    """Killed in the second epoch, resumed from the end of the first, while ranges still adapt in some plans."""
    whole = train(quantized(), options, tmp_path / "whole").state_dict()

    class Killed(BaseException):
        pass

    def kill(step: int, steps: int, metrics: dict[str, float]) -> None:
        if step == 15:
            raise Killed

    with pytest.raises(Killed):
        train(quantized(), options, tmp_path / "cut", Hooks(progress=kill))
    resumed = train(quantized(), options, tmp_path / "cut").state_dict()
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key


def test_watching_while_ranges_adapt_changes_nothing(tmp_path: Path) -> None:
    def watch(model: nn.Module) -> dict[str, float]:
        model(images(5) * 0.5)
        return {}

    options = Qat(ranges=1.0)
    alone = train(quantized(), options, tmp_path / "alone").state_dict()
    watched = train(quantized(), options, tmp_path / "watched", Hooks(watch=watch)).state_dict()
    assert all(torch.equal(alone[key], watched[key]) for key in alone)


def test_another_plan_does_not_resume_the_checkpoint(tmp_path: Path) -> None:
    train(quantized(), Qat(), tmp_path)
    with pytest.raises(TrainingError, match="another origin"):
        train(quantized(), Qat(outputs=1.0), tmp_path)


def test_ranges_by_step() -> None:
    model = quantized()
    plan = qat.begin(model, loss, Qat(assist=0.2, ranges=0.5), 20)
    modes = []
    for step in range(20):
        plan.companions[0].before(step)
        modes.append({grid.mode for grid in grids(model).values()}.pop())
    assert modes == ["off"] * 4 + ["adapt"] * 8 + ["quantize"] * 8


def test_frozen_ranges_stand_still_and_adapting_ones_follow(tmp_path: Path) -> None:
    first = {name: grid.scale.clone() for name, grid in grids(quantized()).items()}
    frozen = grids(train(quantized(), Qat(), tmp_path / "frozen"))
    assert all(torch.equal(frozen[name].scale, scale) for name, scale in first.items())
    moved = grids(train(quantized(), Qat(ranges=1.0), tmp_path / "moved"))
    changed = [name for name, scale in first.items() if not torch.equal(moved[name].scale, scale)]
    assert changed == [name for name, grid in moved.items() if not grid.fixed]


def test_the_teacher_is_the_float_network(tmp_path: Path) -> None:
    """Without labels, at 2 bits: the outputs come much nearer to the float network's."""
    model = quantized(bits=2)
    before = noise(model)
    schedule = Schedule(epochs=1, steps=100, batch_size=32, learning_rate=1e-3, ema=0)
    train(model, Qat(labels=0.0, outputs=1.0), tmp_path, schedule=schedule)
    assert noise(model) < before / 3


def test_distillation_is_noise_over_signal() -> None:
    model = quantized(bits=3)
    plan = qat.begin(model, loss, Qat(labels=0.0, outputs=2.0), 10)
    x = images(3)
    parts = plan.loss(model(x), {})
    wanted = network()(x)
    expected = 2 * (model(x) - wanted).square().sum() / wanted.square().sum()
    assert list(parts) == ["outputs"]
    torch.testing.assert_close(parts["outputs"], expected, rtol=1e-4, atol=0)
    plan.end()
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(
    "grid", [Grid(4, signed=False, symmetric=False), Grid(4), Grid(8, narrow=True)], ids=str
)
def test_learned_step_against_torch(grid: Grid) -> None:
    """Values and both gradients are those of torch's own learnable fake quantization (per tensor)."""
    torch.manual_seed(0)
    x = torch.randn(64, requires_grad=True)
    theirs_x = x.detach().clone().requires_grad_()
    quantizer = FakeQuant(grid)
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(1.5))
    holder = nn.Sequential(quantizer)
    set_mode(holder, "quantize")
    qat.learn_scales(holder)
    ours = quantizer.train()(x)
    scale = quantizer.scale.detach().clone().reshape(1).requires_grad_()
    zero_point = quantizer.zero_point.float().reshape(1).requires_grad_()
    factor = 1 / (x.numel() * grid.high) ** 0.5
    theirs = torch._fake_quantize_learnable_per_tensor_affine(
        theirs_x, scale, zero_point, grid.low, grid.high, factor
    )
    ours.sin().sum().backward()
    theirs.sin().sum().backward()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(x.grad, theirs_x.grad)
    (logarithm,) = quantizer.parameters()  # d/dlog s = s d/ds
    torch.testing.assert_close(logarithm.grad.reshape(1), scale.grad * scale, rtol=1e-4, atol=1e-6)


def test_learned_scales_load_where_they_were_not_learned(tmp_path: Path) -> None:
    trained = train(quantized(), Qat(learned=True), tmp_path)
    first = grids(quantized())
    assert any(not torch.equal(grid.scale, first[name].scale) for name, grid in grids(trained).items())
    fresh = prepare(network(), trained.meta["scheme"])
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(images(1)), trained(images(1)))
    assert [name for name, _ in trained.named_parameters()] == [
        name for name, _ in quantized().named_parameters()
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: network(), "prepare and calibrate it first"),
        (lambda: prepare(network(), Scheme()), "has no range yet"),
    ],
    ids=["float", "not calibrated"],
)
def test_what_cannot_be_trained(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        qat.begin(make(), loss, Qat(), 10)


def test_something_must_be_learned_from() -> None:
    with pytest.raises(ValueError, match="nothing to learn from"):
        qat.begin(quantized(), loss, Qat(labels=0.0), 10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0.0},
        {"ranges": 1.5},
        {"boost": "strong"},
        {"learned": True, "ranges": 0.5},
        {"layers": -1.0},
    ],
    ids=str,
)
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"qat\."):
        Qat(**wrong)


def _observe(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    model = quantized()
    set_mode(model, "adapt")
    model.train()(images(rank) * (1.0 if rank else 0.5))
    torch.save({name: grid.scale for name, grid in grids(model).items()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranges_agree_between_processes(tmp_path: Path) -> None:
    """Two processes see other images; both get the range of all of them."""
    torch.multiprocessing.spawn(_observe, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    model = quantized()
    set_mode(model, "adapt")
    model.train()(torch.cat([images(0) * 0.5, images(1)]))
    for name, grid in grids(model).items():
        assert torch.equal(first[name], second[name]), name
        # The networks' activations differ between one batch of 16 and two of 8 by float rounding only.
        torch.testing.assert_close(grid.scale, first[name], rtol=1e-6, atol=0)
