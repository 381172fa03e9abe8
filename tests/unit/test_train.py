"""The loop learns, goes on exactly where it was killed, and stops early and clearly when the loss is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from octavo.recipe import Schedule
from octavo.train import Average, Hooks, TrainingError, fit, learning_rate

SCHEDULE = Schedule(epochs=3, steps=10, batch_size=16, learning_rate=0.02, ema=0.9)
TRUE = torch.tensor([[2.0, -1.0, 0.5]])


def batch(seed: tuple[int, ...], count: int) -> tuple[Tensor, dict[str, Tensor]]:
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32))
    return x, {"y": x @ TRUE.T}


def loss(outputs: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"square": (outputs - targets["y"]).square().mean()}


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def test_it_learns_and_logs(tmp_path: Path, fabric: Fabric) -> None:
    fit(fresh(), batch, loss, SCHEDULE, tmp_path, "net", fabric)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[-1]["square"] < lines[0]["square"] / 2
    assert any((tmp_path / "tensorboard" / "net").iterdir())


def test_a_killed_run_goes_on_exactly(tmp_path: Path, fabric: Fabric) -> None:
    """Killed in the middle of the second epoch: the result is the one of the run that was not, bit for bit."""
    whole = fit(fresh(), batch, loss, SCHEDULE, tmp_path / "whole", "net", fabric)

    class Killed(BaseException):
        pass

    def kill(step: int, steps: int, metrics: dict[str, float]) -> None:
        if step == 17:
            raise Killed

    with pytest.raises(Killed):
        fit(fresh(), batch, loss, SCHEDULE, tmp_path / "cut", "net", fabric, Hooks(progress=kill))
    steps: list[int] = []
    hooks = Hooks(progress=lambda step, steps_, metrics: steps.append(step))
    resumed = fit(fresh(), batch, loss, SCHEDULE, tmp_path / "cut", "net", fabric, hooks)
    assert steps[0] == 11  # from the end of the first epoch, not from the start
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_teachers_are_learned_from_on_average(tmp_path: Path, fabric: Fabric) -> None:
    """Without a label a linear network ends as the mean of two others."""

    class Linear(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (super().forward(x),)

    def imitate(outputs: tuple[Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"teacher": (outputs[0] - targets["teacher"][0]).square().mean()}

    teachers = [Linear(3, 1), Linear(3, 1)]
    before = [teacher.weight.detach().clone() for teacher in teachers]
    schedule = Schedule(epochs=1, steps=300, batch_size=16, learning_rate=0.1, weight_decay=0.0, ema=0.0)
    student = fit(Linear(3, 1), batch, imitate, schedule, tmp_path, "net", fabric, teachers=teachers)
    assert torch.allclose(student.weight, (before[0] + before[1]) / 2, atol=1e-2)
    assert all(torch.equal(t.weight, b) for t, b in zip(teachers, before, strict=True))


def test_a_finished_run_returns_its_weights(tmp_path: Path, fabric: Fabric) -> None:
    first = fit(fresh(), batch, loss, SCHEDULE, tmp_path, "net", fabric).state_dict()
    again = fit(fresh(), batch, loss, SCHEDULE, tmp_path, "net", fabric).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_another_schedule_is_not_resumed(tmp_path: Path, fabric: Fabric) -> None:
    fit(fresh(), batch, loss, SCHEDULE, tmp_path, "net", fabric)
    other = Schedule(epochs=3, steps=10, batch_size=16, learning_rate=0.5)
    with pytest.raises(TrainingError, match="another schedule"):
        fit(fresh(), batch, loss, other, tmp_path, "net", fabric)


def test_a_broken_checkpoint_is_named(tmp_path: Path, fabric: Fabric) -> None:
    path = tmp_path / "checkpoints" / "net.pt"
    path.parent.mkdir()
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match=r"net\.pt"):
        fit(fresh(), batch, loss, SCHEDULE, tmp_path, "net", fabric)


def test_nan_stops_at_once_and_names_the_step(tmp_path: Path, fabric: Fabric) -> None:
    def poisoned(seed: tuple[int, ...], count: int) -> tuple[Tensor, dict[str, Tensor]]:
        x, targets = batch(seed, count)
        return (x * float("nan") if seed[-1] == 13 else x), targets

    with pytest.raises(TrainingError, match="step 13"):
        fit(fresh(), poisoned, loss, SCHEDULE, tmp_path, "net", fabric)
    kept = torch.load(tmp_path / "checkpoints" / "net.pt", weights_only=True)
    assert kept["step"] == 10
    assert all(torch.isfinite(value.float()).all() for value in kept["module"].values())


def test_learning_rate_climbs_then_follows_the_cosine() -> None:
    schedule = Schedule(epochs=1, steps=1000, batch_size=1, learning_rate=2.0, warmup=0.1, final=0.01)
    rates = [learning_rate(schedule, step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[99] == pytest.approx(2.0)
    assert rates[550] == pytest.approx(2.0 * (0.01 + 0.99 / 2))  # half way down
    assert rates[-1] == pytest.approx(0.02, rel=1e-2)
    assert max(rates) == 2.0


def test_average_is_the_written_recurrence() -> None:
    module = nn.Linear(1, 1, bias=False)
    average, expected = Average(module, 0.5), float(module.weight.detach())
    for step, value in enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0]):
        module.weight.data.fill_(value)
        average.update(module, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(average.state["weight"]) == pytest.approx(expected, rel=1e-6)
