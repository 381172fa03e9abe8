"""Learned rounding against brute force, and on networks and images it has not seen."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from octavo.quantize import Grid, Scheme, calibrate, fold, layers, prepare
from octavo.quantize.rounding import _channels, _patches, collect, flip, learn, learn_rounding

FOUR_BITS = Scheme.for_target("cpu", weight=Grid(4, granularity="channel", narrow=True), input_range=None)


def correlated(*shape: int, seed: int = 0) -> torch.Tensor:
    """Inputs whose neighbours go together, as in pictures; unlike white noise they make rounding matter."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    x = x.cumsum(-1).cumsum(-2) if x.dim() > 3 else x.cumsum(-1)
    return x / x.std() + 0.5


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 16, 3, groups=2), nn.PReLU(16), nn.Flatten()),
        *(nn.Linear(16 * 9, 20), nn.ReLU(), nn.Linear(20, 4)),
    )
    net.train()(correlated(64, 3, 12, 12))
    return net.eval()


@torch.no_grad()
def error(net: nn.Module, model: nn.Module, x: torch.Tensor) -> float:
    return float((model(x) - net(x)).square().mean() / net(x).var())


def test_a_network_computes_better_on_new_images() -> None:
    net = network()
    seen, fresh = correlated(128, 3, 12, 12), correlated(64, 3, 12, 12, seed=1)
    model = prepare(net, FOUR_BITS)
    calibrate(model, [seen])
    before = error(net, model, fresh)
    report = learn_rounding(model, net, seen.split(50))
    assert error(net, model, fresh) < before / 3
    assert list(report) == list(layers(model))
    assert all(after <= was * (1 + 1e-5) for was, after in report.values())
    for layer in layers(model).values():  # at home on the grid, where rounding to nearest leaves it
        steps = layer.weight.detach() / layer.weight_grid.scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
        assert float((steps - steps.round()).abs().max()) < 1e-4
        assert torch.allclose(layer.weight_grid(layer.weight), layer.weight, atol=1e-6)


def test_dead_channels_and_flat_images() -> None:
    """No variance in what is seen, none in some outputs: nothing to learn from, and nothing may break."""
    net = network()
    with torch.no_grad():
        net[0].weight[2] = 0  # type: ignore[union-attr,index]
        net[4].weight[5] = 0  # type: ignore[union-attr,index]
    flat = torch.full((8, 3, 12, 12), 0.7)
    model = prepare(net, FOUR_BITS)
    calibrate(model, [flat])
    learn_rounding(model, net, [flat])
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert error(net, model, correlated(64, 3, 12, 12)) < 1e3
    with torch.no_grad():
        assert torch.allclose(model(flat), net(flat), atol=0.05 * float(net(flat).abs().max()))


@pytest.mark.parametrize(
    "grid", [Grid(4), Grid(3, granularity="group", group=6), Grid(8, granularity="channel")]
)
def test_never_worse_than_nearest_on_its_own_data(grid: Grid) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
    x = correlated(200, 12)
    model = prepare(net, Scheme.for_target("cpu", weight=grid, activation=None))
    calibrate(model, [x])
    before = error(net, model, x)
    learn_rounding(model, net, [x])
    assert error(net, model, x) < before


def test_search_is_close_to_the_best_of_all_roundings() -> None:
    torch.manual_seed(2)
    net = nn.Linear(10, 8)
    x = correlated(500, 10)
    model = prepare(nn.Sequential(net), Scheme.for_target("cpu", weight=Grid(3), activation=None))
    calibrate(model, [x])
    layer = layers(model)["0"]
    with torch.no_grad():
        layer.weight *= 0.98  # no weight at an end of the grid
        net.weight *= 0.98
    moments = collect(model, layer, nn.Sequential(net), net, [x])
    scale = layer.weight_grid.scale.expand(1, 8, 10)
    exact = layer.weight.detach()[None] / scale
    floor = exact.floor()
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=10)))
    brute = torch.stack([moments.error((floor + corner) * scale)[0] for corner in corners]).amin(0)
    up = flip(moments, floor, scale, learn(moments, floor, scale, exact - floor, 200), floor < 9)
    found = moments.error((floor + up) * scale)[0]
    nearest = moments.error(exact.round() * scale)[0]
    assert (found >= brute * (1 - 1e-3)).all()
    assert float((nearest - brute).sum()) > float(brute.sum())  # there was something to find
    assert float((found - brute).sum()) < 0.15 * float((nearest - brute).sum())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 3), (7, 5)),
        (nn.Linear(5, 3), (2, 4, 5)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 8)),
        (nn.Conv2d(4, 6, (1, 3), dilation=2, groups=2), (2, 4, 9, 8)),
        (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 11)),
    ],
    ids=str,
)
def test_patches_times_weights_are_the_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    patches = _patches(layer, x)
    weight = layer.weight.reshape(len(patches), -1, patches.shape[2])
    bias = layer.bias.reshape(len(patches), 1, -1)
    assert torch.allclose(patches @ weight.mT + bias, _channels(layer, layer(x)), atol=1e-5)


def test_moments_are_the_error() -> None:
    net, x = network(), correlated(40, 3, 12, 12)
    model, twin = prepare(net, FOUR_BITS), fold(net)
    calibrate(model, [x])
    layer = layers(model)["4"]
    moments = collect(model, layer, twin, twin.get_submodule("4"), x.split(7))
    q = layer.weight_grid(layer.weight).detach()
    inputs, wanted = [], []
    handles = [
        layer.register_forward_pre_hook(lambda m, args: inputs.append(args[0])),
        twin.get_submodule("4").register_forward_hook(lambda m, args, out: wanted.append(out)),
    ]
    with torch.no_grad():
        model(x), twin(x)
    for handle in handles:
        handle.remove()
    difference = nn.functional.conv2d(inputs[0], q, groups=2) - wanted[0]
    assert torch.allclose(moments.error(q.reshape(2, 8, -1)).flatten(), difference.var((0, 2, 3)), rtol=1e-2)


def test_layers_it_does_not_know_stay() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.ConvTranspose2d(3, 4, 2), nn.ReLU(), nn.Conv2d(4, 2, 3, padding_mode="reflect", padding=1)
    )
    x = correlated(8, 3, 6, 6)
    model = prepare(net, FOUR_BITS)
    calibrate(model, [x])
    before = {name: layer.weight.clone() for name, layer in layers(model).items()}
    assert learn_rounding(model, net, [x]) == {}
    assert all(torch.equal(before[name], layer.weight) for name, layer in layers(model).items())


def test_bad_input() -> None:
    net = network()
    with pytest.raises(ValueError, match="not a quantized model"):
        learn_rounding(net, net, [correlated(2, 3, 12, 12)])
    with pytest.raises(ValueError, match="at least one batch"):
        learn_rounding(prepare(net, FOUR_BITS), net, [])
