"""GradBoost against its formulas in plain numpy, StatAssist against gradients by the chain rule."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from octavo.quantize import Scheme, fold, prepare
from octavo.quantize.boost import GradBoost, folding, transfer_state

CLIP, BETA, DECAY = 1e-3, 0.9, 0.01


def gradients(steps: int = 12, size: float = 1e-4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(5, 7, generator=generator) * size * (1 + step % 3) for step in range(steps)]


def formula(steps: list[torch.Tensor], compat: bool, seed: int) -> list[np.ndarray]:
    """The published formulas, one scalar state at a time; draws as the module draws them."""
    generator = torch.Generator().manual_seed(seed)
    lo = hi = 0.0
    least, largest = math.inf, 0.0
    boosted = []
    for k, gradient in enumerate(steps):
        laplace = torch.empty_like(gradient).exponential_(generator=generator).numpy()
        coin = torch.empty_like(gradient).bernoulli_(0.5, generator=generator).numpy()
        g = gradient.numpy().astype(np.float64)
        correction = 1 - BETA ** (k + 1)
        if compat:
            lo = (BETA * lo + (1 - BETA) * min(lo, abs(g).min())) / correction
            hi = (BETA * hi + (1 - BETA) * max(hi, abs(g).max())) / correction
            span = hi - lo
        else:
            least, largest = min(least, abs(g).min()), max(largest, abs(g).max())
            lo, hi = BETA * lo + (1 - BETA) * least, BETA * hi + (1 - BETA) * largest
            span = hi / correction - lo / correction
        noise = laplace * span * (1 - DECAY) ** k * coin * np.sign(g)
        boosted.append(g + np.clip(noise, -CLIP, CLIP))
    return boosted


@pytest.mark.parametrize("compat", [False, True], ids=["corrected", "compat"])
def test_gradboost_is_the_formula(compat: bool) -> None:
    parameter = nn.Parameter(torch.zeros(5, 7))
    boost = GradBoost([("w", parameter)], compat=compat, seed=11)
    for k, (gradient, expected) in enumerate(zip(gradients(), formula(gradients(), compat, 11), strict=True)):
        parameter.grad = gradient.clone()
        boost.apply(k)
        np.testing.assert_allclose(parameter.grad.numpy(), expected, rtol=2e-4, atol=1e-10)


def largest(boost: GradBoost, gradient: torch.Tensor, steps: int) -> float:
    for k in range(steps):
        boost.noise("w", gradient, k)
    return float(boost.running["w"][1][1])


def test_the_released_arithmetic_runs_away_and_the_corrected_one_does_not() -> None:
    g = torch.tensor([0.0, -0.01, 0.02])
    grown = largest(GradBoost([], compat=True), g, 400) / 0.02
    limit = (1 - BETA) / math.prod(1 - BETA**t for t in range(1, 2000))
    assert limit == pytest.approx(7.8e4, rel=0.01)
    assert grown == pytest.approx(limit, rel=1e-3)
    assert largest(GradBoost([]), g, 400) / 0.02 == pytest.approx(1, rel=1e-5)


def test_the_released_arithmetic_saturates_at_the_clip() -> None:
    """Every toss that comes up adds the whole clip, for a thousand steps; the corrected form's noise fades."""
    g = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e-3
    released, corrected = GradBoost([], compat=True), GradBoost([])
    share = {}
    for k in range(2500):
        for name, boost in (("released", released), ("corrected", corrected)):
            noise = boost.noise("w", g, k).abs()
            tossed = noise[noise > 0]
            assert float(noise.max()) <= CLIP * (1 + 1e-6)
            share[name, k] = float((tossed >= CLIP * 0.999).float().mean()) if len(tossed) else 0.0
    assert share["released", 100] > 0.999
    assert share["released", 900] > 0.95
    assert share["released", 2400] < 0.01
    assert share["corrected", 0] < 0.9
    assert share["corrected", 500] < 0.001


def test_noise_points_where_the_gradient_does_and_half_the_time() -> None:
    g = torch.cat([torch.randn(100_000, generator=torch.Generator().manual_seed(1)), torch.zeros(10)])
    noise = GradBoost([]).noise("w", g * 1e-4, 0)
    assert ((noise == 0) | (noise.sign() == g.sign())).all()
    assert float((noise[:-10] != 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert not noise[-10:].any()
    fixed = [GradBoost([], seed=5).noise("w", g, 0) for _ in range(2)]
    assert torch.equal(*fixed)


def test_gradboost_resumes_exactly(tmp_path) -> None:
    whole, half = GradBoost([], seed=2), GradBoost([], seed=2)
    for k, g in enumerate(gradients(3)):
        whole.noise("w", g, k)
        half.noise("w", g, k)
    torch.save(half.state_dict(), tmp_path / "boost.pt")
    resumed = GradBoost([], seed=99)
    resumed.load_state_dict(torch.load(tmp_path / "boost.pt", weights_only=True))
    for k, g in enumerate(gradients(3)):
        assert torch.equal(whole.noise("w", g, 3 + k), resumed.noise("w", g, 3 + k))


def test_gradboost_in_a_loop_leaves_unused_parameters_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    unused = nn.Parameter(torch.ones(2))
    boost = GradBoost([*model.named_parameters(), ("unused", unused)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(2, 3)).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    boost.apply(0)
    optimizer.step()
    assert unused.grad is None
    assert any(not torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))


def test_gradboost_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="expected 0 <= beta"):
        GradBoost([], beta=1.0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.norm2 = nn.BatchNorm2d(6)
        self.act = nn.PReLU(6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.norm2(self.up(torch.relu(self.norm(self.conv(x)))))))


def trained() -> Net:
    """A network in evaluation mode whose BN is not the identity, one gain negative."""
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for norm in (net.norm, net.norm2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.2, 3)
            norm.weight.uniform_(0.3, 2)
            norm.bias.normal_()
        net.norm.weight[1] *= -1
    return net.eval()


def test_folding_moves_moments_by_the_chain_rule() -> None:
    """The moments of one step are the gradient and its square: in the folded network they are those there."""
    net = trained()
    folded = fold(net).eval()
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(net(x), folded(x), atol=1e-5)
    gradients = []
    for model in (net, folded):
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    moved = folding(net, folded)
    assert set(moved) == {"conv.weight", "conv.bias", "up.weight", "up.bias"}
    for name, gradient in gradients[1].items():
        source, gain = moved.get(name, (name, None))
        expected = gradients[0][source] / (1 if gain is None else gain)
        assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9), id="sgd"),
        pytest.param(lambda p: torch.optim.AdamW(p, lr=0.0, betas=(0.0, 0.0)), id="adamw"),
    ],
)
def test_statassist_through_prepare(build) -> None:
    net = trained()
    old = build(net.parameters())
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    old.step()
    prepared = prepare(net, Scheme.for_target("cpu"))
    new = build(prepared.parameters())
    fresh = transfer_state(
        old, net.named_parameters(), new, prepared.named_parameters(), folding(net, prepared)
    )
    assert fresh == []
    names = dict(prepared.named_parameters())
    gain = (net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()).reshape(-1, 1, 1, 1)
    state = new.state[names["conv.weight"]]
    first = state.get("momentum_buffer", state.get("exp_avg"))
    assert torch.allclose(first, net.conv.weight.grad / gain, rtol=1e-4)
    if "exp_avg_sq" in state:
        assert torch.allclose(state["exp_avg_sq"], (net.conv.weight.grad / gain) ** 2, rtol=1e-4)
        assert float(state["step"]) == 1
    bias = new.state[names["conv.bias"]]
    assert torch.allclose(bias.get("momentum_buffer", bias.get("exp_avg")), net.norm.bias.grad)
    new.step()  # the optimizer accepts it
    new.load_state_dict(new.state_dict())


def test_parameters_without_a_past_are_named() -> None:
    old_net = nn.Sequential(nn.Linear(2, 2))
    new_net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    old, new = (torch.optim.SGD(n.parameters(), lr=0.1, momentum=0.9) for n in (old_net, new_net))
    old_net(torch.ones(1, 2)).sum().backward()
    old.step()
    fresh = transfer_state(old, old_net.named_parameters(), new, new_net.named_parameters())
    assert fresh == ["1.weight", "1.bias"]
    before = copy.deepcopy(old.state[old_net[0].weight]["momentum_buffer"])
    new.state[new_net[0].weight]["momentum_buffer"].add_(1)
    assert torch.equal(old.state[old_net[0].weight]["momentum_buffer"], before)  # a copy


def test_shapes_must_fit() -> None:
    nets = nn.Linear(2, 2), nn.Linear(3, 2)
    old, new = (torch.optim.SGD(n.parameters(), lr=0.1, momentum=0.9) for n in nets)
    nets[0](torch.ones(1, 2)).sum().backward()
    old.step()
    with pytest.raises(ValueError, match=r"weight has shape \(2, 3\)"):
        transfer_state(old, nets[0].named_parameters(), new, nets[1].named_parameters())
