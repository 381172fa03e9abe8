"""Tracing, folding, placing, calibrating: on small networks whose right answer is known."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.quantize import (
    FakeQuant,
    Grid,
    Scheme,
    TraceError,
    calibrate,
    describe,
    fold,
    grids,
    layers,
    prepare,
    set_mode,
)

CPU = Scheme.for_target("cpu")


class Net(nn.Module):
    """A network from its layers and a forward function (net, x)."""

    def __init__(self, run: Callable[[Net, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(i: int, o: int, k: int = 3) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2)


def chain() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(16 * 5 * 5, 12, bias=False), nn.BatchNorm1d(12), nn.PReLU(12), nn.Linear(12, 4)),
    )


def images(n: int = 4, size: int = 16, seed: int = 0) -> Tensor:
    pixels = torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed))
    return (pixels - 128) / 128


def trained(module: nn.Module) -> nn.Module:
    """BatchNorm statistics and gains as training leaves them."""
    torch.manual_seed(0)
    module.train()
    for m in module.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(m.weight, 0.5, 2)
            nn.init.normal_(m.bias)
    with torch.no_grad():
        for seed in range(3):
            module(images(8, seed=seed))
    return module.eval()


def sites(model: nn.Module) -> dict[str, str]:
    """{node that a grid stands behind: the grid}."""
    graph = model.graph
    return {n.args[0].name: n.target for n in graph.nodes if n.meta["role"] == "grid"}


# ---- fold


def convolution(kind: type[nn.Module], groups: int) -> nn.Module:
    return kind(4, 6, 3, groups=groups)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        pytest.param(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 9), id="conv1d"),
        pytest.param(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 9, 9), id="conv2d in groups"),
        pytest.param(
            nn.Conv2d(4, 6, 3, bias=False),
            nn.BatchNorm2d(6, affine=False),
            (2, 4, 9, 9),
            id="no bias, no gain",
        ),
        pytest.param(nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6), (2, 4, 5, 5, 5), id="conv3d"),
        pytest.param(nn.ConvTranspose2d(4, 6, 3, 2), nn.BatchNorm2d(6), (2, 4, 5, 5), id="transposed"),
        pytest.param(
            nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 5), id="transposed in groups"
        ),
        pytest.param(nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 5), id="transposed 1d"),
        pytest.param(nn.Linear(4, 6), nn.BatchNorm1d(6), (8, 4), id="linear"),
    ],
)
def test_folding_changes_nothing(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(layer, norm).train()
    for _ in range(3):
        net(torch.randn(shape) * 2 + 1)
    net.eval()
    x = torch.randn(shape)
    folded = fold(net)
    assert not any("BatchNorm" in type(m).__name__ for m in folded.modules())
    assert torch.allclose(folded(x), net(x), atol=1e-5)
    assert isinstance(net[1], type(norm)), "the network given must stay as it was"


@pytest.mark.parametrize(
    "net",
    [
        pytest.param(
            Net(lambda n, x: n.bn(F.relu(n.a(x))), a=conv(3, 4), bn=nn.BatchNorm2d(4)), id="behind a ReLU"
        ),
        pytest.param(
            Net(lambda n, x: (lambda y: n.bn(y) + y)(n.a(x)), a=conv(3, 4), bn=nn.BatchNorm2d(4)),
            id="seen by others",
        ),
        pytest.param(
            Net(lambda n, x: n.bn(n.a(x)) + n.a(x), a=conv(3, 4), bn=nn.BatchNorm2d(4)), id="one call of two"
        ),
        pytest.param(
            Net(lambda n, x: n.bn(n.a(x)), a=conv(3, 4), bn=nn.BatchNorm2d(4, track_running_stats=False)),
            id="no statistics",
        ),
    ],
)
def test_what_cannot_be_folded_stays(net: nn.Module) -> None:
    net = trained(net) if net.bn.track_running_stats else net.eval()  # type: ignore[union-attr]
    folded = fold(net)
    assert any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert torch.allclose(folded(images()), net(images()), atol=1e-5)


def test_a_block_called_twice_folds_once() -> None:
    net = trained(Net(lambda n, x: n.bn(n.a(n.bn(n.a(x)))), a=conv(3, 3), bn=nn.BatchNorm2d(3)))
    folded = fold(net)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert torch.allclose(folded(images()), net(images()), atol=1e-4)


# ---- place


def test_until_calibrated_it_computes_as_the_float_network() -> None:
    net = trained(chain())
    before = copy.deepcopy(net.state_dict())
    model = prepare(net, CPU)
    assert torch.allclose(model(images()), net(images()), atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


PLACES = [
    pytest.param(
        chain(),
        {"input_1": "", "_2": "", "_6": "", "_10": ""},
        id="behind the activation, not behind MaxPool or Flatten, none at the head",
    ),
    pytest.param(
        Net(
            lambda n, x: n.h(F.relu(n.b(F.silu(n.a(x))) + n.c(x))),
            a=conv(3, 8),
            b=conv(8, 8),
            c=conv(3, 8),
            h=conv(8, 2),
        ),
        {"x": "", "a": "", "sigmoid": "", "silu": "", "b": "", "c": "", "relu": ""},
        id="both operands of an Add, behind the ReLU that follows it",
    ),
    pytest.param(
        Net(
            lambda n, x: n.h(torch.cat([F.relu(n.a(x)), F.max_pool2d(F.relu(n.b(x)), 3, 1, 1)], 1)),
            **{"a": conv(3, 8), "b": conv(3, 8), "h": conv(16, 2)},
        ),
        {"x": "", "relu": "1", "relu_1": "1"},
        id="one grid for all that enters a Concat",
    ),
    pytest.param(
        Net(
            lambda n, x: n.h(F.relu(torch.cat([n.a(x), n.b(x)], 1))),
            a=conv(3, 8),
            b=conv(3, 8),
            h=conv(16, 2),
        ),
        {"x": "", "a": "1", "b": "1", "relu": ""},
        id="a ReLU behind the Concat",
    ),
    pytest.param(
        Net(lambda n, x: n.h(F.interpolate(F.relu(n.a(x)), scale_factor=2)), a=conv(3, 8), h=conv(8, 2)),
        {"x": "", "relu": ""},
        id="nearest neighbours only move",
    ),
    pytest.param(
        Net(
            lambda n, x: n.h(F.interpolate(F.relu(n.a(x)), scale_factor=2.0, mode="bilinear")),
            **{"a": conv(3, 8), "h": conv(8, 2)},
        ),
        {"x": "", "relu": "", "interpolate": ""},
        id="bilinear makes new values",
    ),
    pytest.param(
        Net(lambda n, x: torch.sigmoid(n.h(F.relu(n.a(x)))) * 2 + 1, a=conv(3, 8), h=conv(8, 2)),
        {"x": "", "relu": ""},
        id="what feeds only the output is float",
    ),
    pytest.param(
        Net(lambda n, x: n.h(F.relu(n.a(x)).mean((2, 3))), a=conv(3, 8), h=nn.Linear(8, 2)),
        {"x": "", "relu": "", "mean": ""},
        id="a mean",
    ),
    pytest.param(
        Net(
            lambda n, x: n.h(F.relu(n.a(x)).view(x.size(0), 8 * x.shape[2] * 16)),
            a=conv(3, 8),
            h=nn.Linear(2048, 2),
        ),
        {"x": "", "relu": ""},
        id="sizes are no values",
    ),
    pytest.param(
        Net(
            lambda n, x: n.h(n.r(F.relu(n.a(x)).flatten(2).mT)[0]),
            a=conv(3, 8),
            r=nn.LSTM(8, 4),
            h=nn.Linear(4, 2),
        ),
        {"x": "", "getitem": ""},
        id="an LSTM is float",
    ),
]


@pytest.mark.parametrize(("net", "expected"), PLACES)
def test_where_grids_stand(net: nn.Module, expected: dict[str, str]) -> None:
    """expected: nodes with a grid behind them; those with the same mark share it."""
    found = sites(prepare(net, CPU))
    assert sorted(found) == sorted(expected)
    for mark in set(expected.values()) - {""}:
        assert len({found[node] for node, m in expected.items() if m == mark}) == 1
    alone = [found[node] for node, mark in expected.items() if not mark]
    assert len(set(alone)) == len(alone)


SILU = Net(lambda n, x: n.h(n.b(F.silu(n.a(x)))), a=conv(3, 8), b=conv(8, 8), h=conv(8, 2))


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        pytest.param(CPU, ["a", "b", "sigmoid", "silu", "x"], id="cpu: y · sigmoid(y)"),
        pytest.param(Scheme.for_target("tensorrt"), ["b", "silu", "x"], id="tensorrt: none inside"),
        pytest.param(Scheme.for_target("arm"), ["b", "silu", "x"], id="arm: none inside"),
        pytest.param(Scheme(skip=("a",)), ["b", "silu"], id="of a float layer: none inside"),
    ],
)
def test_grids_inside_silu(scheme: Scheme, expected: list[str]) -> None:
    model = prepare(SILU, scheme)
    assert sorted(sites(model)) == expected
    x = images()
    with torch.no_grad():
        assert torch.allclose(model(x), SILU.eval()(x), atol=1e-6)  # its grids are off


def test_the_grid_before_silu_is_judged_behind_it() -> None:
    grids_of = grids(prepare(SILU, Scheme.for_target("cpu", calibrator="mse")))
    assert [name for name, grid in grids_of.items() if grid.options.get("behind")] == ["a_grid"]
    assert not any(grid.options for grid in grids(prepare(SILU, CPU)).values())


def test_silu_of_a_value_that_others_read_stays_whole() -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        return n.h(F.silu(y) + F.relu(y))

    assert "sigmoid" not in sites(prepare(Net(run, a=conv(3, 8), h=conv(8, 2)), CPU))


def test_heads_get_a_grid_where_asked() -> None:
    net = Net(lambda n, x: n.h(F.relu(n.a(x))), a=conv(3, 8), h=conv(8, 2))
    assert "h" not in sites(prepare(net, CPU))
    assert "h" in sites(prepare(net, Scheme.for_target("cpu", quantize_outputs=True)))


def test_skipped_layers_stay_float_and_whole() -> None:
    class Untraceable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), Untraceable(), conv(8, 2))
    model = prepare(net, Scheme.for_target("cpu", skip=("0", "3")))
    assert list(layers(model)) == ["2", "4"]
    assert isinstance(model.get_submodule("0"), nn.Conv2d)
    table = {line.split()[0]: line for line in str(model).splitlines()}
    assert "skipped" in table["0"]
    assert "skipped" in table["3"]


def test_overrides_by_name() -> None:
    four = Grid(bits=4, granularity="channel", narrow=True)
    seven = Grid(bits=7, signed=False, symmetric=False)
    scheme = Scheme.for_target("cpu", overrides=(("2", {"weight": four}), ("0", {"activation": seven})))
    model = prepare(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 2)), scheme)
    assert layers(model)["2"].weight_grid.grid == four
    assert layers(model)["0"].weight_grid.grid == CPU.weight
    assert model.get_submodule(sites(model)["_1"]).grid == seven


def test_weights_only() -> None:
    net = trained(chain())
    model = prepare(net, Scheme.for_target("cpu", activation=None))
    calibrate(model, [images()])
    assert not sites(model)
    with torch.no_grad():
        error = (model(images()) - net(images())).abs().max()
    assert 0 < error < 0.05


@pytest.mark.parametrize(
    ("target", "scale", "zero_point"), [("cpu", 1 / 128, 128), ("tensorrt", 1 / 128, 0), ("arm", 1 / 127, 0)]
)
def test_pixels_are_the_input_grid(target: str, scale: float, zero_point: int) -> None:
    model = prepare(chain(), Scheme.for_target(target))
    grid = model.get_submodule("input_1_grid")
    assert isinstance(grid, FakeQuant)
    assert (float(grid.scale), int(grid.zero_point)) == (pytest.approx(scale), zero_point)
    every_pixel = (torch.arange(256.0) - 128) / 128
    grid.mode = "quantize"
    if target != "arm":
        assert torch.equal(grid(every_pixel), every_pixel)


def test_a_layer_called_twice_has_one_weight_grid_and_two_inputs() -> None:
    net = trained(Net(lambda n, x: n.h(F.relu(n.a(F.relu(n.a(x)) * 3.0))), a=conv(3, 3), h=conv(3, 2)))
    model = prepare(net, CPU)
    calibrate(model, [images()])
    calls = [node.meta["before"] for node in model.graph.nodes if node.target == "a"]
    assert len(set(calls)) == 2
    with torch.no_grad():
        assert (model(images()) - net(images())).abs().max() < 0.05


def test_the_table_names_all_layers_and_says_why() -> None:
    net = Net(
        lambda n, x: n.h(n.n(F.leaky_relu(n.b(F.relu(n.a(x))))) + 1),
        **{"a": conv(3, 8), "b": conv(8, 8), "n": nn.InstanceNorm2d(8), "h": conv(8, 2)},
    )
    model = prepare(net, CPU)
    calibrate(model, [images()])
    lines = {line.split()[0]: line for line in describe(model).splitlines()}
    assert set(lines) == {"layer", "x", "a", "relu", "b", "leaky_relu", "n", "add", "h"}
    for name, text in {
        "x": "u8 affine (fixed)",
        "a": "integer",
        "relu": "fused",
        "b": "float: LeakyReLU before the grid",
        "n": "float: not a kind known here",
        "add": "one operand is a constant",
        "h": "no grid behind it",
    }.items():
        assert text in lines[name]
    with pytest.raises(ValueError, match="prepare it first"):
        describe(net)


# ---- tracing fails


class OnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:  # the line to be named
            return x
        return -x


class OnShape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[0]):  # the line to be named
            x = x + 1
        return x


@pytest.mark.parametrize("net", [OnValues(), OnShape(), nn.Sequential(conv(3, 3), OnValues())], ids=type)
def test_the_line_that_stops_tracing_is_named(net: nn.Module) -> None:
    with pytest.raises(TraceError, match=r"test_prepare\.py, line \d+: `(if x\.mean\(\) > 0|for _ in range)"):
        prepare(net, CPU)


def test_half_precision_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="quantize the float32 network"):
        prepare(chain().half(), CPU)


# ---- calibrate


def test_calibration_records_its_data() -> None:
    net, seen = trained(chain()), []
    model, batches = prepare(net, CPU), [images(4), images(2, seed=1)]
    done = calibrate(model, batches, seen.append)
    assert (done.images, done.method, seen) == (6, "max", [4, 6])
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(f"{tuple(batch.shape)} torch.float32".encode() + batch.numpy().tobytes())
    assert done.hash == digest.hexdigest()
    again = prepare(net, CPU)
    calibrate(again, batches)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["max", "percentile", "moving_average", "mse", "entropy"])
def test_every_calibrator_gives_a_close_network(name: str) -> None:
    net = trained(chain())
    model = prepare(net, Scheme.for_target("cpu", calibrator=name))
    calibrate(model, [images(8, seed=s) for s in range(4)])
    with torch.no_grad():
        ours, theirs = model(images(8, seed=9)), net(images(8, seed=9))
    assert (ours - theirs).abs().max() < 0.1 * theirs.abs().max()


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_weights_can_be_clipped_where_that_errs_less(granularity: str) -> None:
    """Four bits, normal weights: the best of 400 scales, tried one by one, errs no less than what "mse" takes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 15), nn.ReLU(), nn.Conv2d(4, 2, 1))
    weight = Grid(4, granularity=granularity, narrow=True)
    errors = {}
    for name in ("max", "mse"):
        model = prepare(net, Scheme.for_target("cpu", weight=weight, weight_calibrator=name))
        done = calibrate(model, [images()])
        layer = layers(model)["0"]
        rows = (layer.weight_grid(layer.weight) - layer.weight).detach()
        errors[name] = rows.reshape(4 if granularity == "channel" else 1, -1).square().sum(1)
    assert done.method == "max, weights mse"
    rows = net[0].weight.detach().reshape(len(errors["max"]), -1)  # type: ignore[union-attr,operator]
    largest = rows.abs().amax(1, keepdim=True)
    scales = [largest / 7 * part for part in torch.linspace(0.3, 1, 400)]
    tried = [((rows / s).round().clamp(-7, 7) * s - rows).square().sum(1) for s in scales]
    best = torch.stack(tried).amin(0)
    assert (errors["mse"] <= 1.02 * best).all()
    assert (errors["max"] > 1.05 * best).any()


def test_ranges_are_those_of_the_float_network() -> None:
    net = trained(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 2)))
    model = prepare(net, CPU)
    x = images()
    calibrate(model, [x[:2], x[2:]])
    with torch.no_grad():
        largest = net[:2](x).max()  # type: ignore[index]
    grid = model.get_submodule(sites(model)["_1"])
    assert float(grid.scale) == pytest.approx(float(largest) / 255)
    assert int(grid.zero_point) == 0


def test_a_state_makes_a_fresh_copy_ready() -> None:
    net = trained(chain())
    model = prepare(net, CPU)
    calibrate(model, [images()])
    fresh = prepare(chain(), CPU)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(images()), model(images()))
    assert {"0.weight", "0.bias", "0.weight_grid.scale", "_2_grid.scale"} <= set(model.state_dict())


def test_a_copy_is_independent() -> None:
    model = prepare(trained(chain()), CPU)
    calibrate(model, [images()])
    twin = copy.deepcopy(model)
    assert str(twin) == str(model)
    expected = model(images())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(images()), expected)


def test_it_trains() -> None:
    torch.manual_seed(0)
    model = prepare(trained(chain()), CPU)
    calibrate(model, [images(16)])
    x, target = images(16), torch.randn(16, 4)
    set_mode(model, "adapt")
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    set_mode(model, "quantize")
    model.eval()
    with torch.no_grad():
        assert float(F.mse_loss(model(x), target)) < 0.6 * losses[0]


class Breaks(nn.Module):
    """Makes one value of its input not a number, or infinite."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x == x.max(), self.value, x)


@pytest.mark.parametrize(
    ("net", "batches", "says"),
    [
        pytest.param(chain(), [], "empty", id="no batches"),
        pytest.param(chain(), [torch.zeros(0, 3, 16, 16)], "batches of normalised", id="an empty batch"),
        pytest.param(chain(), [torch.zeros(1, 3, 16, 16, dtype=torch.uint8)], "normalised", id="pixels"),
        pytest.param(
            chain(), [torch.full((1, 3, 16, 16), 255.0)], "normalise the images", id="not normalised"
        ),
        pytest.param(chain(), [torch.full((1, 3, 16, 16), torch.nan)], "input_1", id="NaN in the input"),
        pytest.param(
            nn.Sequential(conv(3, 4), Breaks(torch.nan), nn.ReLU(), conv(4, 4), nn.ReLU(), conv(4, 2)),
            *([images()], "^2: .*NaN"),
            id="NaN within",
        ),
        pytest.param(
            nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), Breaks(torch.inf), nn.ReLU(), conv(4, 2)),
            *([images()], "^4: .*Inf"),
            id="Inf within",
        ),
    ],
)
def test_bad_calibration_data(net: nn.Module, batches: list[Tensor], says: str) -> None:
    model = prepare(net, CPU)
    with pytest.raises(ValueError, match=says):
        calibrate(model, batches)
    assert {grid.mode for grid in grids(model).values()} == {"off"}, (
        "a failure must leave the model as it was"
    )


def test_constant_activations_and_dead_layers() -> None:
    net = trained(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), conv(4, 2)))
    with torch.no_grad():
        net[2].weight.zero_()  # type: ignore[union-attr,index,operator]
        net[2].bias.copy_(torch.tensor([-1.0, -2.0, 0.5, 0.0]))  # type: ignore[union-attr,index,operator]
    model = prepare(net, CPU)
    calibrate(model, [images()])
    with torch.no_grad():
        assert torch.allclose(model(images()), net(images()), atol=0.02)
    with torch.no_grad():
        net[2].bias.fill_(-1)  # type: ignore[union-attr,index,operator]
    model = prepare(net, CPU)
    calibrate(model, [images()])
    with torch.no_grad():
        assert torch.allclose(model(images()), net(images()), atol=0.02)


def test_modes_are_checked() -> None:
    model = prepare(chain(), CPU)
    with pytest.raises(ValueError, match="no range yet"):
        set_mode(model, "quantize")
    with pytest.raises(ValueError, match="choose one of off"):
        set_mode(model, "on")
    with pytest.raises(ValueError, match="prepare it first"):
        calibrate(chain(), [images()])
