"""Statistics of a quantized network: against numpy, closed forms, and values made odd on purpose."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from octavo.quantize import Grid, Scheme, calibrate, grids, prepare
from octavo.quantize.inspect import BINS, FINE, Tensors, inspect, shown
from octavo.quantize.observe import Histogram


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.act(self.a(x)), self.act(self.b(x))], 1))


def images(n: int = 4, size: int = 12, seed: int = 0) -> Tensor:
    pixels = torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed))
    return (pixels - 128) / 128


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)
    ).eval()


def quantized(module: nn.Module, scheme: Scheme | None = None, seed: int = 0) -> nn.Module:
    qmodel = prepare(module, scheme or Scheme())
    calibrate(qmodel, [images(seed=seed)])
    return qmodel


def by_name(rows: list[Tensors]) -> dict[tuple[str, str], Tensors]:
    found = {(row.layer, row.kind): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_numbers_are_those_of_numpy() -> None:
    float_network = network()
    batches = [images(3, seed=1), images(2, seed=2)]
    rows = by_name(inspect(quantized(float_network), batches))
    assert list(rows) == [
        *[("input_1", "activation"), ("0", "weight"), ("1", "activation"), ("2", "weight")],
        *[("3", "activation"), ("5", "weight"), ("5", "output")],
    ]
    with torch.no_grad():
        x = torch.cat([float_network[:2](batch) for batch in batches]).double().numpy()
    row = rows["1", "activation"]
    assert (row.min, row.max) == (x.min(), x.max())
    assert row.mean == pytest.approx(x.mean(), rel=1e-5)
    assert row.std == pytest.approx(x.std(), rel=1e-5)
    assert row.zeros == (x == 0).mean()
    assert (row.values, row.channels, row.shape) == (x.size, 6, (6, 10, 10))
    step = row.scale
    assert step is not None
    assert (row.low, row.high) == (0, pytest.approx(255 * step))
    rounded = np.clip(np.rint(x / step), 0, 255) * step
    assert row.sqnr == pytest.approx(10 * np.log10((x**2).sum() / ((x - rounded) ** 2).sum()), abs=0.01)
    assert row.clipped == (x > 255.5 * step).mean()
    assert sum(row.float_counts) == sum(row.quantized_counts) == x.size
    exact, _ = np.histogram(x, row.edges)
    assert np.abs(np.array(row.float_counts) - exact).sum() < 0.01 * x.size

    weight = float_network[0].weight.detach().double().numpy()
    assert rows["0", "weight"].std == pytest.approx(weight.std(), rel=1e-5)
    assert rows["0", "weight"].values == weight.size
    assert rows["0", "weight"].shape == (6, 3, 3, 3)


def test_errors_grow_along_the_network() -> None:
    rows = by_name(inspect(quantized(network()), [images()]))
    assert rows["input_1", "activation"].sqnr == math.inf  # pixels are the grid
    for place in ("1", "3"):
        row = rows[place, "activation"]
        assert row.sqnr_network <= row.sqnr + 0.1
    assert rows["5", "output"].sqnr == math.inf  # nothing rounds it
    assert 20 < rows["5", "output"].sqnr_network < 60
    with torch.no_grad():
        float_network = network()
        wanted, found = float_network(images()), quantized(float_network)(images())
    power, noise = wanted.square().sum().item(), (wanted - found).square().sum().item()
    assert rows["5", "output"].sqnr_network == pytest.approx(10 * math.log10(power / noise), abs=0.01)


def test_uniform_values_against_the_closed_form() -> None:
    """SQNR of b bits on uniform values between the ends of the grid: 20 log10(2^b - 1) dB."""
    x = torch.rand(4000, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x[0, :2] = torch.tensor([-1.0, 1.0])
    for bits in (8, 4):
        grid = Grid(bits=bits, signed=False, symmetric=False)
        qmodel = prepare(nn.Sequential(nn.Linear(8, 2)), Scheme(activation=grid, input_range=None))
        calibrate(qmodel, [x])
        row = by_name(inspect(qmodel, [x]))["input_1", "activation"]
        assert row.sqnr == pytest.approx(20 * math.log10(2**bits - 1), abs=0.1)
        assert row.std == pytest.approx(1 / math.sqrt(3), rel=0.01)
        assert max(row.float_counts) < 1.3 * min(row.float_counts)
    # zero is on the grid, so the ends lie half a step beyond the last integers that are met
    assert sum(count > 1 for count in row.quantized_counts) == 2**bits - 1


def test_clipping() -> None:
    """A range of half the values' reach: on uniform values a half is clipped, less half a step at each end."""
    x = torch.linspace(-1, 1, 100_001)[:, None]
    qmodel = prepare(nn.Sequential(nn.Linear(1, 1)), Scheme.for_target("tensorrt", input_range=None))
    calibrate(qmodel, [x / 2])
    row = by_name(inspect(qmodel, [x]))["input_1", "activation"]
    assert row.clipped == pytest.approx(0.5 * (1 - 1 / 127), abs=1e-3)
    assert (row.low, row.high) == (pytest.approx(-0.5 * 128 / 127), pytest.approx(0.5))
    # error of the clipped half: int_.5^1 (x - .5)^2 = 1/24, of E[x^2] = 1/3 (one side): 8 times
    assert row.sqnr == pytest.approx(10 * math.log10(8), abs=0.1)


def test_dead_channels_and_constants() -> None:
    module = network()
    with torch.no_grad():
        module[0].weight[:2] = 0
        module[0].bias[:2] = torch.tensor([-1.0, 0.5])
        module[2].weight[:] = 0
        module[2].bias[:] = 0.25
    rows = by_name(inspect(quantized(module), [images()]))
    assert (rows["0", "weight"].dead, rows["0", "weight"].channels) == (2, 6)
    assert rows["1", "activation"].dead == 1  # the other one is a constant, which lives
    assert rows["2", "weight"].dead == 4
    constant = rows["3", "activation"]
    assert constant.constant
    assert constant.std == 0
    assert constant.dead == 0
    assert sum(constant.float_counts) == constant.values
    assert len(constant.edges) == BINS + 1
    told = rows["2", "weight"].to_row()
    assert told["sqnr"] is None  # nothing to round
    assert told["shape"] == "4x6x3x3"


def test_values_that_share_a_grid_are_told_apart() -> None:
    torch.manual_seed(0)
    module = Concat()
    with torch.no_grad():
        module.b.weight *= 10
    qmodel = quantized(module)
    rows = inspect(qmodel, [images()])
    activations = [row for row in rows if row.kind == "activation"][1:]
    assert len(activations) == 2
    assert activations[0].scale == activations[1].scale
    assert activations[0].max < activations[1].max / 3
    assert activations[0].sqnr < activations[1].sqnr - 6


def test_hooks_are_removed_and_the_model_is_as_it_was() -> None:
    qmodel = quantized(network())
    next(iter(grids(qmodel).values())).mode = "off"
    modes = {n: g.mode for n, g in grids(qmodel).items()}
    code = qmodel.code
    inspect(qmodel, [images()])
    with pytest.raises(RuntimeError):
        inspect(qmodel, [images(), torch.zeros(1, 2, 3, 3)])
    assert not any(m._forward_hooks for m in qmodel.modules())
    assert {n: g.mode for n, g in grids(qmodel).items()} == modes
    assert qmodel.code == code


@pytest.mark.parametrize(
    ("model", "batches", "says"),
    [
        pytest.param(network(), [images()], "prepare and calibrate", id="a float network"),
        pytest.param(prepare(network(), Scheme()), [images()], "no range yet", id="not calibrated"),
        pytest.param(quantized(network()), [], "at least one batch", id="no data"),
        pytest.param(quantized(network()), [images() * math.inf], "input_1: .* NaN or Inf", id="Inf"),
    ],
)
def test_errors(model: nn.Module, batches: list[Tensor], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        inspect(model, batches)


@pytest.mark.parametrize(
    ("values", "low", "high", "counts"),
    [
        pytest.param([0.1, 0.1, 0.9], 0, 1, [2, 0, 0, 1], id="inside"),
        pytest.param([-1.0, 0, 0, 1.0], -1, 1, [1, 0, 2, 1], id="zeros and both ends"),
        pytest.param([3.0, 3.0], 3, 3, [0, 0, 2, 0], id="equal ends"),
        pytest.param([0.0], 0, 0, [0, 0, 1, 0], id="only zero"),
    ],
)
def test_shown(values: list[float], low: float, high: float, counts: list[int]) -> None:
    histogram = Histogram(1, FINE)
    histogram.add(torch.tensor([values]))
    edges, (found,) = shown([histogram], low, high, bins=4)
    assert list(found) == counts
    assert len(edges) == 5
    assert edges[0] < edges[-1]
