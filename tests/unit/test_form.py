"""Parts of a model in different forms, and their files: against the float network and ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from octavo.lower.stored import on_grid, stored  # noqa: E402
from octavo.models import scheme_for  # noqa: E402
from octavo.quantize import Scheme, formed, grids  # noqa: E402
from octavo.quantize.dynamic import (  # noqa: E402
    DynamicLinear,
    WeightOnly,
    float_twin,
    is_dynamic,
    renew,
    to_onnx,
    weight_only,
)
from octavo.quantize.form import has_grids  # noqa: E402
from octavo.recipe import Arrays  # noqa: E402
from octavo.run import on_onnxruntime  # noqa: E402
from octavo.verbs.network_file import example, write  # noqa: E402


class Sequence(nn.Module):
    """x (n, T, 24), start (n, 40) -> (n, T, 8), (n, 40): a layer that looks around and a linear one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.look = nn.Conv1d(24, 40, 3, padding=1)
        self.out = nn.Linear(40, 8)

    def forward(self, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(self.look(x.transpose(1, 2)).transpose(1, 2) + start.unsqueeze(1))
        return self.out(y), y.mean(1)


LIKE = Arrays({"x": ((2, 5, 24), {0: "n", 1: "T"}), "start": ((2, 40), {0: "n"})}, ("y", "last"))
SCHEME = Scheme(dynamic=("part/*",), stored=("part/look",))


def test_patterns_say_which_layer_is_quantized_how() -> None:
    own = scheme_for(SCHEME, "part")
    made = formed(Sequence(), own)
    assert isinstance(made.look, WeightOnly)
    assert isinstance(made.out, DynamicLinear)
    assert not has_grids(own)
    assert not grids(made)


def test_what_is_skipped_stays_and_what_is_not_named_has_grids() -> None:
    network = Sequence()
    assert formed(network, scheme_for(Scheme(dynamic=("part/*",), skip=("part/*",)), "part")) is network
    kept = formed(network, scheme_for(Scheme(dynamic=("part/*",), skip=("part/look",)), "part"))
    assert isinstance(kept.look, nn.Conv1d)
    assert isinstance(kept.out, DynamicLinear)
    other = scheme_for(SCHEME, "other")
    assert has_grids(other)
    assert grids(formed(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)), other))


def test_schemes_with_parts_survive_a_file() -> None:
    assert Scheme.from_dict(SCHEME.to_dict()) == SCHEME
    old = {k: v for k, v in SCHEME.to_dict().items() if k not in ("dynamic", "stored")}
    assert Scheme.from_dict(old).dynamic == ()


def test_learned_floats_are_stored_again() -> None:
    made = formed(Sequence(), scheme_for(SCHEME, "part"))
    assert is_dynamic(made)
    twin = float_twin(made)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5).add_(0.01)
    renew(made, twin)
    again = float_twin(made)
    for name, parameter in twin.named_parameters():
        rows = parameter.flatten(1) if "weight" in name else torch.zeros(len(parameter), 1)
        step = rows.abs().amax(1).reshape(-1, *[1] * (parameter.dim() - 1)) / 127
        assert (again.get_parameter(name) - parameter).abs().le(step / 2 * (1 + 1e-4)).all(), name


@pytest.mark.parametrize("form", ["float", "both"])
def test_files_compute_what_torch_computes(form: str, tmp_path: Path) -> None:
    network: Any = Sequence().eval()
    if form == "both":
        network = formed(network, scheme_for(SCHEME, "part")).eval()
    write(network, tmp_path / "part.onnx", LIKE, {})
    session = on_onnxruntime.open_network(tmp_path / "part.onnx")
    assert session.inputs == ("x", "start")
    rng = np.random.default_rng(0)
    for n, length in ((1, 1), (3, 9)):
        x, start = rng.standard_normal((n, length, 24), np.float32), rng.standard_normal((n, 40), np.float32)
        with torch.no_grad():
            wanted = network(torch.from_numpy(x), torch.from_numpy(start))
        for ours, theirs in zip(session(x, start), wanted, strict=True):
            assert np.allclose(ours, theirs.numpy(), atol=2e-3 if form == "both" else 1e-5)
    with pytest.raises(ValueError, match=r"part\.onnx takes x, start; it was given float32"):
        session(x)


def test_weights_on_a_grid_are_stored_and_others_are_not(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 40))
    network[0] = weight_only(network[0])
    to_onnx(network.eval(), tmp_path / "a.onnx", torch.randn(2, 64), inputs=["x"], outputs=["y"])
    before = on_onnxruntime.open_network(tmp_path / "a.onnx")
    assert len(stored(tmp_path / "a.onnx", tmp_path / "b.onnx")) == 1
    after = on_onnxruntime.open_network(tmp_path / "b.onnx")
    x = np.random.default_rng(0).standard_normal((2, 64), np.float32)
    assert np.allclose(before(x)[0], after(x)[0], atol=1e-5)
    smaller = (tmp_path / "a.onnx").stat().st_size - (tmp_path / "b.onnx").stat().st_size
    assert smaller > 2 * 64 * 48


def test_a_grid_is_seen_from_the_numbers() -> None:
    rng = np.random.default_rng(0)
    integers = rng.integers(-127, 128, (6, 200))
    integers[:, 0] = 127
    scale = rng.uniform(0.1, 2, (6, 1))
    found = on_grid((integers * scale).astype(np.float32))
    assert found is not None
    assert np.array_equal(found[0], integers)
    assert np.allclose(found[1], scale[:, 0])
    assert found[2] == 0
    turned = on_grid((integers * scale).astype(np.float32).T)
    assert turned is not None
    assert np.array_equal(turned[0], integers.T)
    assert turned[2] == 1
    assert on_grid(rng.standard_normal((6, 200))) is None


def test_examples_have_the_shapes_and_types_of_the_network() -> None:
    like = Arrays({"n": ((3,), {0: "n"}), "x": ((2, 4), {})}, ("y",), whole=("n",))
    number, x = example(like)
    assert (number.dtype, number.shape, x.dtype, x.shape) == (np.int64, (3,), np.float32, (2, 4))


def test_recurrent_networks_of_free_length_are_written_again_and_again(tmp_path: Path) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(6, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(x)[0]

    like = Arrays({"x": ((2, 3, 6), {0: "n", 1: "T"})}, ("y",))
    for _ in range(2):  # torch 2.13 remembered the first one's trace
        network = First().eval()
        write(network, tmp_path / "a.onnx", like, {})
        x = np.random.default_rng(0).standard_normal((1, 8, 6), np.float32)
        with torch.no_grad():
            wanted = network(torch.from_numpy(x)).numpy()
        assert np.allclose(on_onnxruntime.open_network(tmp_path / "a.onnx")(x)[0], wanted, atol=1e-5)
