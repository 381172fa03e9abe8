"""The mean of weights: against numpy, and what has no mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from octavo import folder, verbs
from octavo.models import load_modules, part, save_module
from octavo.verbs.float_model import float_info

Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A float folder of fresh weights."""

    def make(name: str, seed: int, variant: str = "mtcnn-relu") -> Path:
        torch.manual_seed(seed)
        out = tmp_path / name
        modules = part("mtcnn", "net").build(variant)
        for network, module in modules.items():
            for norm in (
                m for m in module.modules() if isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d))
            ):
                norm.running_mean.normal_()  # type: ignore[union-attr]
                norm.num_batches_tracked.fill_(seed)  # type: ignore[union-attr]
            save_module(module, out / f"{network}.pt")
        info = float_info(variant, list(modules), verbs.recipe(variant), "nowhere")
        folder.write_info(out, info | {"metrics": {"ap": 0.9}})
        return out

    return make


def test_every_weight_is_the_weighted_mean(made: Made, tmp_path: Path) -> None:
    one, two = made("one", 1), made("two", 2)
    out = verbs.average([one, two], tmp_path / "mean", shares=[1, 3])
    ours, a, b = load_modules(out), load_modules(one), load_modules(two)
    for name in ("pnet", "rnet", "onet"):
        for key, value in ours[name].state_dict().items():
            first, second = (m[name].state_dict()[key].numpy() for m in (a, b))
            wanted = 0.25 * first + 0.75 * second if value.is_floating_point() else first
            np.testing.assert_allclose(value.numpy(), wanted, rtol=1e-6, atol=1e-7, err_msg=key)
    assert folder.read_info(out)["metrics"] == {}


@pytest.mark.parametrize(
    ("names", "shares", "message"),
    [
        (["one"], None, "two models or more"),
        (["one", "two"], [1.0], "one number for each of the 2"),
        (["one", "two"], [0.0, 0.0], "0 or more"),
        (["one", "other"], None, "other is mtcnn"),
        (["one", "mtcnn-relu"], None, "is quantized"),
    ],
)
def test_what_has_no_mean(
    made: Made, tmp_path: Path, names: list[str], shares: list[float] | None, message: str
) -> None:
    for seed, (name, variant) in enumerate(
        [("one", "mtcnn-relu"), ("two", "mtcnn-relu"), ("other", "mtcnn")]
    ):
        made(name, seed, variant)
    models = [tmp_path / name if (tmp_path / name).is_dir() else name for name in names]
    with pytest.raises(ValueError, match=message):
        verbs.average(models, tmp_path / "mean", shares=shares)
    assert not (tmp_path / "mean").exists()
