"""Two processes under torchrun train one network: both end with the same weights and the same ranges.

Run by itself this file is what each process does: python test_train_processes.py FOLDER
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning_fabric")

import torch
from torch import Tensor, nn

from octavo.quantize import Scheme, calibrate, prepare, qat
from octavo.recipe import Qat, Schedule
from octavo.train import fit, make_fabric

SCHEDULE = Schedule(epochs=2, steps=8, batch_size=16, learning_rate=3e-3, ema=0.0)


def batch(seed: tuple[int, ...], count: int) -> tuple[Tensor, dict[str, Tensor]]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, 6, 6))
    x = (torch.from_numpy(pixels).float() - 128) / 128
    return x, {"y": x.mean((2, 3))[:, :2]}


def loss(outputs: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"square": (outputs - targets["y"]).square().mean()}


def run(folder: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    model = prepare(network, Scheme.for_target("cpu"))
    calibrate(model, [batch((0, 0, step), 8)[0] for step in range(4)])
    fabric = make_fabric("cpu")
    steps = SCHEDULE.epochs * SCHEDULE.steps
    plan = qat.begin(model, loss, Qat(ranges=0.5, boost="corrected", outputs=0.1), steps)
    fit(model, batch, plan.loss, SCHEDULE, folder, "net", fabric, companions=plan.companions)
    plan.end()
    torch.save(model.state_dict(), folder / f"{fabric.global_rank}.pt")


def test_two_processes_end_equal(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "test"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == SCHEDULE.epochs  # one process writes


if __name__ == "__main__":
    run(Path(sys.argv[1]))
