"""Equalization keeps the function and balances ranges; bias correction brings means back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from octavo.quantize import Grid, Scheme, calibrate, fold, layers, prepare
from octavo.quantize.equalize import (
    correct_bias,
    correct_bias_from_norms,
    equalize,
    expected_inputs,
    find_links,
)


class Functional(nn.Module):
    """Functions instead of modules, two heads on one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
        self.fc = nn.Linear(8 * 4, 5)
        self.face, self.box = nn.Linear(5, 2), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = torch.flatten(F.leaky_relu(self.conv2(x), 0.1), 1)
        x = torch.relu(self.fc(x))
        return self.face(x), self.box(x)


def conv(i: int, o: int, k: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **options)


def depthwise(i: int) -> nn.Conv2d:
    return nn.Conv2d(i, i, 3, padding=1, groups=i)


NETS = {
    "relu": lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)),
    "no activation": lambda: nn.Sequential(conv(3, 8), conv(8, 4)),
    "prelu, negative slopes": lambda: nn.Sequential(conv(3, 8), nn.PReLU(8, init=-0.3), conv(8, 4)),
    "batch norm": lambda: nn.Sequential(
        conv(3, 8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        conv(8, 4),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        conv(4, 2),
    ),
    "depthwise chain": lambda: nn.Sequential(
        conv(3, 8, 1),
        nn.ReLU(),
        depthwise(8),
        nn.ReLU(),
        conv(8, 6, 1),
        nn.ReLU(),
        depthwise(6),
        conv(6, 2, 1),
    ),
    "groups": lambda: nn.Sequential(
        conv(3, 8), nn.ReLU(), conv(8, 12, groups=4), nn.ReLU(), conv(12, 2, groups=2)
    ),
    "transposed": lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 8, 2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 12, 3, groups=4),
        nn.ReLU(),
        conv(12, 2),
    ),
    "pools and flatten": lambda: nn.Sequential(
        conv(3, 8),
        nn.LeakyReLU(0.2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(2),
        nn.ZeroPad2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(8 * 16, 5),
        nn.PReLU(5),
        nn.Linear(5, 2),
    ),
    "heads": Functional,
    "dead channels": lambda: dead(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4))),
}
COUNT = {
    "batch norm": 2,
    "depthwise chain": 4,
    "groups": 2,
    "transposed": 2,
    "pools and flatten": 2,
    "heads": 3,
}


def dead(net: nn.Sequential) -> nn.Sequential:
    with torch.no_grad():
        net[0].weight[0] = 0
        net[2].weight[:, 1] = 0
    return net


def unbalanced(name: str) -> nn.Module:
    """The network with BN statistics and channels of very different size."""
    torch.manual_seed(0)
    net = NETS[name]()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.1, 5)
                module.weight.uniform_(0.1, 3)
                module.bias.normal_()
            elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                size = torch.logspace(-2, 1, module.weight.shape[0])
                module.weight *= size.reshape(-1, *[1] * (module.weight.dim() - 1))
    return net.eval()


@torch.no_grad()
def outputs(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = net(x)
    return torch.cat([t.flatten() for t in y]) if isinstance(y, tuple) else y.flatten()


@pytest.mark.parametrize("name", NETS)
def test_the_function_stays_and_ranges_meet(name: str) -> None:
    net = unbalanced(name)
    x = torch.randn(4, 3, 10, 10)
    equal = equalize(net)
    wanted, got = outputs(net, x), outputs(equal, x)
    assert float((wanted - got).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))
    links = find_links(equal)
    assert len(links) == COUNT.get(name, 1)
    assert any(float((gain - 1).abs().max()) > 0.1 for gain in equal.meta["gains"].values())
    outputs(prepare(equal, Scheme.for_target("cpu")), x)


def test_ranges_are_equal_afterwards() -> None:
    equal = equalize(unbalanced("depthwise chain"))
    w = [m.weight for m in equal.modules() if isinstance(m, nn.Conv2d)]
    for first, second in ((w[0], w[1]), (w[2], w[3])):  # a depthwise weight has one row per input channel
        ratio = first.abs().flatten(1).amax(1) / second.abs().flatten(1).amax(1)
        assert torch.allclose(ratio, torch.ones_like(ratio), rtol=0.01)


def test_one_scale_per_tensor_loses_less() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16), nn.ReLU(), conv(16, 4)).eval()
    with torch.no_grad():  # what folding BN does to real networks: channels a hundred times apart
        size = torch.logspace(-1, 1, 16).reshape(-1, 1, 1, 1)
        for first, second in ((net[0], net[2]), (net[2], net[4])):
            first.weight *= size
            first.bias *= size.flatten()
            second.weight /= size.transpose(0, 1)
    x = torch.randn(8, 3, 12, 12)
    scheme = Scheme.for_target("cpu", weight=Grid(narrow=True), activation=None)
    errors = {}
    for name, model in (("plain", net), ("equalized", equalize(net))):
        quantized = prepare(model, scheme)
        calibrate(quantized, [x])
        errors[name] = float((outputs(quantized, x) - outputs(net, x)).square().mean())
    assert errors["equalized"] < errors["plain"] / 20


@pytest.mark.parametrize(
    ("net", "why"),
    [
        pytest.param(nn.Sequential(conv(3, 4), nn.ReLU6(), conv(4, 2)), "6 does not scale", id="relu6"),
        pytest.param(nn.Sequential(conv(3, 4), nn.SiLU(), conv(4, 2)), "not homogeneous", id="silu"),
        pytest.param(
            nn.Sequential(conv(3, 4), nn.PixelShuffle(2), conv(1, 2)), "moves channels", id="shuffle"
        ),
        pytest.param(nn.Sequential(conv(3, 4, 1), nn.Linear(8, 3)), "mixes columns", id="linear on an image"),
        pytest.param(
            nn.Sequential(conv(3, 4), nn.Flatten(2), nn.Linear(36, 3)), "mixes pixels", id="flatten 2"
        ),
        pytest.param(
            nn.Sequential(nn.Linear(8, 8), nn.MaxPool2d(2), nn.Linear(4, 3)), "mixes", id="pooled rows"
        ),
        pytest.param(
            nn.Sequential(conv(3, 4), nn.ConstantPad2d(1, 2.0), conv(4, 2)), "pads", id="constant pad"
        ),
    ],
)
def test_what_is_not_homogeneous_is_left_alone(net: nn.Module, why: str) -> None:
    assert find_links(fold(net)) == [], why
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(equalize(net)(x), net(x))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 3, padding=1), conv(3, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.a(torch.relu(self.a(x)))
        return self.b(y), y


def test_shared_layers_and_outputs_are_left_alone() -> None:
    assert find_links(fold(Shared())) == []


def calibrated(net: nn.Module, x: torch.Tensor, bits: int = 4) -> nn.Module:
    model = prepare(net, Scheme.for_target("cpu", weight=Grid(bits, narrow=True), input_range=None))
    calibrate(model, [x])
    return model


@pytest.mark.parametrize("name", ["relu", "batch norm", "pools and flatten", "transposed", "heads"])
def test_bias_correction_brings_each_layers_mean_back(name: str) -> None:
    net = unbalanced(name)
    x, fresh = torch.randn(2, 64, 3, 10, 10).unbind(0)
    model = calibrated(net, x)
    before = shift(net, model, fresh)
    added = correct_bias(model, net, [x[:32], x[32:]])
    assert shift(net, model, fresh) < before / 2
    assert set(added) == set(layers(model))


@torch.no_grad()
def shift(net: nn.Module, model: nn.Module, x: torch.Tensor) -> float:
    """The largest difference of a channel's mean output."""
    pairs = zip(net(x), model(x), strict=True) if isinstance(net(x), tuple) else [(net(x), model(x))]
    return max(float((q - f).movedim(1, 0).flatten(1).mean(1).abs().max()) for f, q in pairs)


def test_expected_inputs_are_those_of_normal_channels() -> None:
    torch.manual_seed(0)
    mean, deviation = torch.tensor([-1.0, 0.0, 2.0, 5.5]), torch.tensor([0.5, 2.0, 1.0, 1.5])
    sample = mean + deviation * torch.randn(2_000_000, 4)
    for activation, f in [
        (nn.ReLU(), F.relu),
        (nn.ReLU6(), F.relu6),
        (nn.LeakyReLU(0.2), lambda x: F.leaky_relu(x, 0.2)),
        (nn.PReLU(4, init=0.3), lambda x: torch.where(x > 0, x, 0.3 * x)),
        (nn.Identity(), lambda x: x),
    ]:
        norm = nn.BatchNorm2d(4)
        norm.load_state_dict(
            norm.state_dict() | {"weight": deviation * torch.tensor([1, -1, 1, 1]), "bias": mean}
        )
        net = nn.Sequential(conv(3, 4), norm, activation, conv(4, 2))
        assert torch.allclose(expected_inputs(net)["3"], f(sample).mean(0), atol=5e-3), activation


def normal_net() -> tuple[nn.Module, torch.Tensor]:
    """A network whose BN outputs are normal, as the analytic form assumes."""
    torch.manual_seed(1)
    net = nn.Sequential(
        conv(3, 6, 1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        conv(6, 8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        conv(8, 4),
    )
    x = torch.randn(64, 3, 16, 16)
    with torch.no_grad():
        for module in (net[1], net[4]):
            module.momentum = None  # a plain average
            module.weight.uniform_(0.5, 2)
            module.bias.normal_()
        for _ in range(8):
            net.train()(torch.randn(64, 3, 16, 16))
    return net.eval(), x


@pytest.mark.parametrize("equal", [False, True], ids=["as it is", "equalized"])
def test_correction_without_data_is_the_one_with_data(equal: bool) -> None:
    net, x = normal_net()
    source = equalize(net) if equal else net
    scheme = Scheme.for_target("cpu", weight=Grid(4, narrow=True), activation=None, skip=("0", "7"))
    models = [prepare(source, scheme) for _ in range(2)]
    for model in models:
        calibrate(model, [x])
    measured = correct_bias(models[0], source, [x])["3"]
    analytic = correct_bias_from_norms(models[1], source)["3"]
    assert float(measured.abs().max()) > 0.02
    assert torch.allclose(analytic, measured, atol=0.15 * float(measured.abs().max()))


def test_bad_input() -> None:
    net = unbalanced("relu")
    with pytest.raises(ValueError, match="not a quantized model"):
        correct_bias(net, net, [torch.ones(1, 3, 8, 8)])
    with pytest.raises(ValueError, match="at least one batch"):
        correct_bias(calibrated(net, torch.randn(2, 3, 8, 8)), net, [])
