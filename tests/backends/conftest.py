"""A toy network with known arithmetic, as a torch module, an ONNX file and whole numbers in NumPy.

    image (uint8) -> (x - 128) / 128 -> conv 3x3, 3 -> 8, ReLU -> conv 1x1 -> score (n, 2, h, w), box (n, 4, h, w)

Weights are multiples of 2^-6 and all scales powers of two, so that the quantized one can be computed exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

IN, WEIGHT, HIDDEN = 2.0**-7, 2.0**-6, 2.0**-4  # scales


@dataclass(frozen=True)
class Toy:
    conv: np.ndarray  # (8, 3, 3, 3) int8, in steps of WEIGHT
    bias: np.ndarray  # (8,) int32, in steps of IN · WEIGHT
    score: np.ndarray  # (2, 8) float32
    box: np.ndarray  # (4, 8) float32

    def integers(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The quantized network in whole numbers: uint8 (n, 3, h, w) -> score, box."""
        x = image.astype(np.int64) - 128
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))  # (n, 3, h, w, 3, 3)
        total = np.einsum("nchwij,ocij->nohw", windows, self.conv.astype(np.int64))
        total += self.bias[:, None, None]
        steps = np.clip(np.rint(total * (IN * WEIGHT / HIDDEN)), 0, 255)  # the clip at 0 is the ReLU
        hidden = steps * HIDDEN
        return tuple(np.einsum("nchw,oc->nohw", hidden, w.astype(np.float64)) for w in (self.score, self.box))

    def module(self) -> Any:
        import torch
        from torch import nn

        toy = self

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 8, 3)
                self.score, self.box = nn.Conv2d(8, 2, 1, bias=False), nn.Conv2d(8, 4, 1, bias=False)
                self.drop = nn.Dropout(0.5)  # noise, unless switched to eval
                with torch.no_grad():
                    self.conv.weight.copy_(torch.tensor(toy.conv * WEIGHT))
                    self.conv.bias.copy_(torch.tensor(toy.bias * (IN * WEIGHT)))
                    self.score.weight.copy_(torch.tensor(toy.score)[:, :, None, None])
                    self.box.weight.copy_(torch.tensor(toy.box)[:, :, None, None])

            def forward(self, x: Any) -> Any:
                hidden = self.drop(torch.relu(self.conv(x)))
                return self.score(hidden), self.box(hidden)

        return Net()

    def save(
        self,
        path: Path,
        dims: tuple[Any, ...] = (1, 3, "H", "W"),
        quantized: bool = False,
        named: bool = True,
    ) -> Path:
        onnx = pytest.importorskip("onnx")
        from onnx import helper, numpy_helper

        nodes, values = [], []

        def constant(array: Any, name: str) -> str:
            values.append(numpy_helper.from_array(np.asarray(array), name))
            return name

        def node(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(op, inputs, [output], name=output if named else "", **attributes))
            return output

        def scale(number: float, zero: Any, name: str) -> list[str]:
            return [constant(np.float32(number), f"{name}_scale"), constant(zero, f"{name}_zero")]

        if quantized:
            x = node("DequantizeLinear", ["image", *scale(IN, np.uint8(128), "image")], "pixels")
            w = node(
                "DequantizeLinear", [constant(self.conv, "w"), *scale(WEIGHT, np.int8(0), "w")], "w_float"
            )
            b = node(
                "DequantizeLinear",
                [constant(self.bias, "b"), *scale(IN * WEIGHT, np.int32(0), "b")],
                "b_float",
            )
        else:
            x = node("Cast", ["image"], "cast", to=onnx.TensorProto.FLOAT)
            x = node("Sub", [x, constant(np.float32(128), "offset")], "centred")
            x = node("Mul", [x, constant(np.float32(1 / 128), "factor")], "pixels")
            w = constant((self.conv * WEIGHT).astype(np.float32), "w")
            b = constant((self.bias * (IN * WEIGHT)).astype(np.float32), "b")
        x = node("Relu", [node("Conv", [x, w, b], "conv")], "relu")
        if quantized:
            grid = scale(HIDDEN, np.uint8(0), "hidden")
            x = node("DequantizeLinear", [node("QuantizeLinear", [x, *grid], "steps"), *grid], "hidden")
        node("Conv", [x, constant(self.score[:, :, None, None], "score_w")], "score")
        node("Conv", [x, constant(self.box[:, :, None, None], "box_w")], "box")
        n = dims[0]
        graph = helper.make_graph(
            nodes,
            "toy",
            [helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, dims)],
            [
                helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (n, width, "h", "w"))
                for name, width in (("score", 2), ("box", 4))
            ],
            values,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


@pytest.fixture(scope="session")
def toy() -> Toy:
    random = np.random.default_rng(5)
    return Toy(
        conv=random.integers(-60, 61, (8, 3, 3, 3)).astype(np.int8),
        bias=random.integers(-4000, 4001, 8).astype(np.int32),
        score=random.normal(size=(2, 8)).astype(np.float32),
        box=random.normal(size=(4, 8)).astype(np.float32),
    )


@pytest.fixture
def pixels() -> Any:
    """pixels(1, 3, 20, 30): random uint8, with 0, 128 and 255 among them."""
    random = np.random.default_rng(7)

    def make(*shape: int) -> np.ndarray:
        image = random.integers(0, 256, shape, np.uint8)
        image.flat[:3] = (0, 128, 255)[: image.size]
        return image

    return make
