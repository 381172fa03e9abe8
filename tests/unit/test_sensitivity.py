"""Sensitivity on networks whose answer is known: one layer made bad on purpose, closed forms, schemes re-prepared."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.quantize import FakeQuant, Grid, Scheme, calibrate, grids, layers, prepare
from octavo.quantize.sensitivity import (
    active_grids,
    blocks,
    by_answers,
    by_metric,
    by_sqnr,
    flat,
    keep_float,
    mixed_scheme,
    set_float,
    sqnr,
    sqnr_score,
    transfer,
)

CPU = Scheme.for_target("cpu")


class Branches(nn.Module):
    """A concat, a residual sum, an in-place activation, a layer called twice, two heads in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.LeakyReLU(0.3, inplace=True)
        self.left = nn.Conv2d(8, 8, 1)
        self.right = nn.Conv2d(8, 8, 3, padding=1)
        self.twice = nn.Conv2d(16, 16, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.box = nn.Linear(16, 4)
        self.face = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.act(self.stem(x))
        y = F.relu(self.left(x))
        y += self.act(self.right(x))
        x = torch.cat([x, y], 1)
        x = F.relu(self.twice(F.relu(self.twice(x))))
        x = self.pool(x).flatten(1)
        return {"face": self.face(x), "boxes": self.box(x)}


def chain() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.PReLU(8), nn.Flatten(), nn.Linear(8 * 25, 4)),
    )


class Silu(nn.Module):
    """Two blocks of convolutions with SiLU, each split in two when quantized for the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.SiLU())
        self.side = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU())
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.side(x))


def heads() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))


def images(n: int = 4, size: int = 16, seed: int = 0) -> Tensor:
    pixels = torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed))
    return (pixels - 128) / 128


def quantized(network: nn.Module, scheme: Scheme = CPU) -> nn.Module:
    qmodel = prepare(network, scheme)
    calibrate(qmodel, [images(seed=1)])
    return qmodel


def spoiled(*bad: str) -> Scheme:
    """The weights of these layers on a far coarser grid than all others."""
    return Scheme(overrides=tuple((layer, {"weight": Grid(bits=3, granularity="channel")}) for layer in bad))


def tensors(outputs: object) -> list[Tensor]:
    if isinstance(outputs, dict):
        return list(outputs.values())
    return [outputs]


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return {"chain": chain, "branches": Branches, "heads": heads, "silu": Silu}[name]().eval()


NETWORKS = pytest.mark.parametrize("name", ["chain", "branches"])


@pytest.mark.parametrize(
    ("name", "scheme", "shared"),
    [
        pytest.param("chain", CPU, (), id="cpu"),
        pytest.param("chain", Scheme.for_target("tensorrt"), (), id="tensorrt"),
        pytest.param("heads", Scheme(quantize_outputs=True), (), id="outputs too"),
        pytest.param("chain", Scheme(activation=None), (), id="weights only"),
        pytest.param("branches", Scheme(activation=None), (), id="branches, weights only"),
        # The concat's other value keeps its grid although nobody needs it: shared quantizers are one switch.
        pytest.param("branches", CPU, ("twice",), id="branches"),
        # In float, y · sigmoid(y) and SiLU(y) differ in the last bit, which may tip a value to the next integer.
        pytest.param("silu", CPU, ("stem.0", "stem.2", "side.0"), id="split activations"),
    ],
)
def test_switching_layers_is_preparing_with_them_skipped(
    name: str, scheme: Scheme, shared: tuple[str, ...]
) -> None:
    network = make(name)
    qmodel = quantized(network, scheme)
    names = list(layers(qmodel))
    for kept in [(), *itertools.combinations(names, 1), names[1:], names[::2], names[:-1]]:
        set_float(qmodel, kept)
        mixed = prepare(network, mixed_scheme(scheme, kept))
        transfer(qmodel, mixed)
        assert set(layers(mixed)) == set(names) - set(kept)
        assert sum(g.active for g in grids(qmodel).values()) == len(grids(mixed)), kept
        for a, b in zip(tensors(qmodel(images())), tensors(mixed(images())), strict=True):
            exact = not set(shared) & set(kept)
            assert torch.equal(a, b) if exact else (a - b).abs().max() < 0.01 * b.abs().max(), kept


def test_greedy_networks_need_ranges_that_were_calibrated() -> None:
    """With quantize_outputs a layer before a skipped one gets a grid that the other network never had."""
    network, scheme = make("branches"), Scheme(quantize_outputs=True)
    qmodel = quantized(network, scheme)
    with pytest.raises(ValueError, match="no range is known behind"):
        transfer(qmodel, prepare(network, mixed_scheme(scheme, ["twice"])))


@NETWORKS
def test_the_table_is_what_whole_runs_of_re_prepared_networks_give(name: str) -> None:
    network = make(name)
    qmodel = quantized(network)
    names, batches = list(layers(qmodel)), [images(3), images(2, seed=5)]
    table = by_sqnr(qmodel, batches, outputs=("a", "b")[: len(tensors(network(images())))])

    def whole(kept: list[str]) -> list[float]:
        mixed = prepare(network, mixed_scheme(CPU, kept))
        transfer(qmodel, mixed)
        pairs = [zip(tensors(network(b)), tensors(mixed(b)), strict=True) for b in batches]
        parts = [[(y.square().sum(), (y - z).square().sum()) for y, z in pair] for pair in pairs]
        return [
            10 * math.log10(sum(p[i][0] for p in parts) / sum(p[i][1] for p in parts))
            for i in range(len(parts[0]))
        ]

    with torch.no_grad():
        assert table.quantized == pytest.approx(whole([]), abs=1e-3)
        for row in table.rows:
            assert row.alone == pytest.approx(whole([n for n in names if n != row.layer]), abs=1e-2)
            assert row.others == pytest.approx(whole([row.layer]), abs=1e-3)
    assert {row.layer for row in table.rows} == set(names)
    assert [row.worst for row in table.rows] == sorted(row.worst for row in table.rows)


@pytest.mark.parametrize("bad", ["0", "4", "6", "9"])
def test_a_layer_made_bad_on_purpose_is_the_worst(bad: str) -> None:
    table = by_sqnr(quantized(make("chain"), spoiled(bad)), [images()])
    assert table.rows[0].layer == bad
    assert table.rows[0].worst < table.rows[1].worst - 6  # dB
    # Without it the network is far better; without any other it stays about as bad.
    gains = {row.layer: row.others[0] - table.quantized[0] for row in table.rows}
    assert max(gains, key=lambda layer: gains[layer]) == bad
    assert gains[bad] > 6 > 1 > max(gain for layer, gain in gains.items() if layer != bad)


def test_errors_of_layers_add_up_to_the_error_of_all() -> None:
    """Independent errors: their powers add, so 'alone' predicts 'others' and the whole network."""
    network = make("chain")
    table = by_sqnr(quantized(network), [images(16)])
    power = {row.layer: 10 ** (-row.alone[0] / 10) for row in table.rows}
    for row in table.rows:
        rest = sum(p for layer, p in power.items() if layer != row.layer)
        assert row.others[0] == pytest.approx(-10 * math.log10(rest), abs=2)
    assert table.quantized[0] == pytest.approx(-10 * math.log10(sum(power.values())), abs=2)


def test_sqnr_against_the_closed_form() -> None:
    """One linear layer that copies uniform values: noise scale^2 / 12, signal (high - low)^2 / 12 about 0."""
    layer = nn.Linear(64, 64, bias=False)
    nn.init.eye_(layer.weight)
    x = torch.rand(400, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x[0, :2] = torch.tensor([-1.0, 1.0])
    for bits in (8, 5, 3):
        grid = Grid(bits=bits, signed=False, symmetric=False)
        qmodel = prepare(nn.Sequential(layer), Scheme(activation=grid, input_range=None))
        calibrate(qmodel, [x])
        (row,) = by_sqnr(qmodel, [x]).rows
        assert row.alone[0] == pytest.approx(20 * math.log10(2**bits - 1), abs=0.15)
        assert row.others == (math.inf,)


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (1.0, 0.01, 20.0),
        (4.0, 1.0, 6.0206),
        (1.0, 0.0, math.inf),
        (0.0, 1.0, -math.inf),
        (0.0, 0.0, math.inf),
    ],
)
def test_sqnr(signal: float, noise: float, expected: float) -> None:
    assert sqnr(signal, noise) == pytest.approx(expected, abs=1e-4)


def test_the_same_by_a_metric() -> None:
    network = make("chain")
    qmodel, x = quantized(network, spoiled("6")), images()
    wanted = network(x).detach()
    calls: list[int] = []

    def metric() -> float:
        calls.append(1)
        return -float((qmodel(x) - wanted).square().mean())

    told: list[tuple[int, int]] = []
    table = by_metric(qmodel, metric, "error", progress=lambda done, total: told.append((done, total)))
    assert table.rows[0].layer == "6"
    assert table.reference == pytest.approx((0,), abs=1e-10)
    assert table.rows[0].alone < table.rows[1].alone
    assert max(table.rows, key=lambda row: row.others).layer == "6"
    assert told == [(i + 1, 10) for i in range(len(calls))]
    assert len(told) == 10
    by = {row.layer: row.worst for row in by_sqnr(qmodel, [x]).rows}
    power = float(wanted.square().mean())
    for row in table.rows:
        assert sqnr(power, -row.alone[0]) == pytest.approx(by[row.layer], abs=0.05)


@NETWORKS
@pytest.mark.parametrize("depth", [None, 1])
def test_answers_image_by_image_are_the_metric_of_whole_runs(name: str, depth: int | None) -> None:
    """A look asks the network twice, as a detector with a pyramid would."""
    qmodel, x = quantized(make(name)), images(3)

    def look(image: Tensor, network: Callable[[Tensor], tuple[Tensor, ...]]) -> float:
        return sum(
            float(y.sum()) for size in (16, 12) for y in network(image[None, :, :size, :size].contiguous())
        )

    if name == "chain":  # of one size
        look = lambda image, network: float(network(image[None])[0].sum())  # noqa: E731
    told: list[tuple[int, int]] = []
    found = by_answers(
        *(qmodel, [partial(look, image) for image in x], lambda answers: -abs(sum(answers)), "sum"),
        depth=depth,
        progress=lambda *step: told.append(step),
    )
    whole = by_metric(
        *(qmodel, lambda: -abs(sum(look(image, lambda z: flat(qmodel(z))) for image in x)), "sum"),
        depth=depth,
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert found.reference == pytest.approx(whole.reference, abs=1e-4)
    assert found.quantized == pytest.approx(whole.quantized, abs=1e-4)
    assert {row.layer for row in found.rows} == {row.layer for row in whole.rows}
    for row in found.rows:
        other = next(o for o in whole.rows if o.layer == row.layer)
        assert (row.kind, row.parameters) == (other.kind, other.parameters)
        assert (*row.alone, *row.others) == pytest.approx((*other.alone, *other.others), abs=1e-4)


def test_blocks_are_beginnings_of_names() -> None:
    qmodel = quantized(make("silu"))
    assert blocks(qmodel, 1) == {"stem": ("stem.0", "stem.2"), "side": ("side.0",), "head": ("head",)}
    assert list(blocks(qmodel)) == ["stem.0", "stem.2", "side.0", "head"]
    table = by_sqnr(qmodel, [images()], depth=1)
    stem = next(row for row in table.rows if row.layer == "stem")
    assert (stem.kind, stem.parameters) == ("2 Conv2d", 3 * 8 * 9 + 8 + 64 + 8)
    single = {row.layer: row.others[0] for row in by_sqnr(qmodel, [images()]).rows}
    assert stem.others[0] >= max(single["stem.0"], single["stem.2"]) - 0.5
    with pytest.raises(ValueError, match="first 1, 2"):
        blocks(qmodel, 0)


# Greedy


@pytest.mark.parametrize("bad", [("4",), ("0", "6"), ("9",)], ids="+".join)
def test_greedy_keeps_exactly_the_bad_layers(bad: tuple[str, ...]) -> None:
    network = make("chain")
    scheme = spoiled(*bad)
    qmodel = quantized(network, scheme)
    table = by_sqnr(qmodel, [images()])
    score = sqnr_score(qmodel, [images()])
    good = min(row.worst for row in table.rows if row.layer not in bad)
    found = keep_float([row.layer for row in table.rows], score, good - 8)
    assert sorted(found.layers) == sorted(bad)
    assert found.reached
    assert found.score >= good - 8 > score(())
    assert found.tried <= 2 * len(table.rows)
    mixed = prepare(network, mixed_scheme(scheme, found.layers))
    transfer(qmodel, mixed)
    wanted = network(images())
    noise = (mixed(images()) - wanted).square().sum().item()
    assert sqnr(wanted.square().sum().item(), noise) == pytest.approx(found.score, abs=1e-3)


@pytest.mark.parametrize(
    ("ranking", "needed", "kept"),
    [
        pytest.param("abcde", set(), "", id="nothing is needed"),
        pytest.param("abcde", {"a"}, "a", id="the first"),
        pytest.param("abcde", {"c"}, "c", id="a wrong ranking is pruned"),
        pytest.param("abcde", {"a", "d"}, "ad", id="two, one between them pruned"),
        pytest.param("abcde", set("abcde"), "abcde", id="all"),
    ],
)
def test_greedy_on_plain_sets(ranking: str, needed: set[str], kept: str) -> None:
    def score(in_float: tuple[str, ...]) -> float:
        return len(needed & set(in_float)) / max(1, len(needed)) if needed else 1

    found = keep_float(list(ranking), score, 1)
    assert "".join(found.layers) == kept
    assert found.reached
    assert found.tried <= 2 * len(ranking)


def test_greedy_says_when_even_float_is_not_enough() -> None:
    found = keep_float(["a", "b"], len, 3)
    assert found.layers == ("a", "b")
    assert not found.reached


# Care


@NETWORKS
def test_measuring_leaves_the_model_as_it_was(name: str) -> None:
    qmodel = quantized(make(name))
    first = next(iter(grids(qmodel).values()))
    first.mode = "off"
    qmodel.train()
    before = copy.deepcopy(qmodel.state_dict())
    modes, code = {n: g.mode for n, g in grids(qmodel).items()}, qmodel.code
    one, two = by_sqnr(qmodel, [images()]), by_sqnr(qmodel, [images()])
    assert one == two  # nothing is random, nothing is left behind
    with pytest.raises(ZeroDivisionError):
        by_metric(qmodel, lambda: 1 / 0)
    assert qmodel.training
    assert {n: g.mode for n, g in grids(qmodel).items()} == modes
    assert qmodel.code == code
    assert all(torch.equal(value, before[key]) for key, value in qmodel.state_dict().items())


def test_only_what_changed_is_computed() -> None:
    network = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(12)))
    qmodel = quantized(network)
    calls = []
    handles = [m.register_forward_hook(lambda *a: calls.append(1)) for m in layers(qmodel).values()]
    by_sqnr(qmodel, [images()])
    for handle in handles:
        handle.remove()
    # two whole runs; then for layer i of n, twice: itself, the one before it (its grid), all behind
    n = 12
    assert len(calls) <= 2 * n + 2 * sum(n - i + 1 for i in range(n))
    assert len(calls) < 2 * n + 2 * n * n * 0.7


def test_json() -> None:
    table = by_sqnr(quantized(make("chain")), [images()], outputs=["box"])
    told = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert told["reference"] == [None]
    assert told["outputs"] == ["box"]
    assert told["rows"][0]["alone"] == [table.rows[0].alone[0]]
    assert {row["layer"]: row["kind"] for row in told["rows"]}["9"] == "Linear"
    assert {row["layer"]: row["parameters"] for row in told["rows"]}["4"] == 8 * 8 * 9 + 8


def uncalibrated() -> nn.Module:
    return prepare(make("chain"), CPU)


@pytest.mark.parametrize(
    ("measure", "says"),
    [
        pytest.param(
            lambda: by_sqnr(make("chain"), [images()]), "prepare and calibrate", id="a float network"
        ),
        pytest.param(lambda: by_sqnr(uncalibrated(), [images()]), "no range yet", id="not calibrated"),
        pytest.param(lambda: by_sqnr(quantized(make("chain")), []), "at least one batch", id="no data"),
        pytest.param(
            lambda: by_sqnr(quantized(make("chain")), [images() * math.nan]), "no finite outputs", id="NaN"
        ),
        pytest.param(
            lambda: by_metric(quantized(make("chain")), lambda: math.nan, "AP"), "AP is NaN", id="NaN metric"
        ),
        pytest.param(
            lambda: active_grids(quantized(make("chain")), ["conv9"]), "no quantized layer", id="no layer"
        ),
        pytest.param(
            lambda: by_sqnr(quantized(make("chain"), Scheme(skip=("*",))), [images()]),
            "skips them all",
            id="nothing quantized",
        ),
        pytest.param(
            lambda: sqnr_score(quantized(make("chain")), iter([images()])),
            "more than once",
            id="one-shot data",
        ),
        pytest.param(lambda: keep_float(["a"], len, math.nan), "NaN", id="NaN target"),
    ],
)
def test_errors(measure: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        measure()


def test_dead_channels_and_constants() -> None:
    """A channel of zeros and a constant one are no reason to fail, nor for nonsense."""
    network = make("chain")
    with torch.no_grad():
        network[4].weight[0] = 0
        network[4].bias[0] = -1
        network[6].weight[1] = 0
    table = by_sqnr(quantized(network), [images()])
    assert all(math.isfinite(row.worst) and row.worst > 20 for row in table.rows)
    assert isinstance(next(iter(grids(quantized(network)).values())), FakeQuant)
