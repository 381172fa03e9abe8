"""What is to be rounded to which integers, and for whom: plain data, saved with every model.

A grid is a set of evenly spaced numbers: x = scale * (q - zero_point), q an integer of `bits` bits.

    symmetric   zero_point 0: for weights, which are spread around zero
    affine      any zero_point: for activations, which after a ReLU are never negative
    channel     one scale per output channel (weights); group: one per `group` inputs of it; tensor: one in all

Three worlds want three grids; the origin of each default is FACTS.md, section 4:

    cpu        u8 affine activations, int32 biases of known scale: what ONNX Runtime's and OpenVINO's integer
               kernels compute, so that the network trained is bit for bit the network that runs
    tensorrt   s8 symmetric activations, float biases
    arm        the same without -128 (ncnn)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

GRANULARITIES = ("tensor", "channel", "group")


@dataclass(frozen=True)
class Grid:
    """Integers low..high and how many scales share a tensor. `narrow` leaves out the most negative integer."""

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    granularity: str = "tensor"
    narrow: bool = False
    group: int = 32  # inputs per scale with granularity "group": the size common for 4-bit weights

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"a grid has 2 to 8 bits, got {self.bits}")
        if self.granularity not in GRANULARITIES:
            raise ValueError(f"granularity must be {', '.join(GRANULARITIES)}, got {self.granularity!r}")
        if self.group < 1:
            raise ValueError(f"a group holds at least one value, got {self.group}")
        if self.narrow and not self.signed:
            raise ValueError("an unsigned grid has no most negative integer to leave out (narrow)")

    @property
    def low(self) -> int:
        return int(self.narrow) - 2 ** (self.bits - 1) if self.signed else 0

    @property
    def high(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    def __str__(self) -> str:
        shared = "" if self.granularity == "tensor" else f" per {self.granularity}"
        return f"{'s' if self.signed else 'u'}{self.bits}{'' if self.symmetric else ' affine'}{shared}"


@dataclass(frozen=True)
class Scheme:
    """How a network is quantized. Layer names are patterns such as "head.*" (fnmatch on module names)."""

    target: str = "cpu"
    weight: Grid = Grid(granularity="channel", narrow=True)
    activation: Grid | None = Grid(signed=False, symmetric=False)  # None: only the weights are quantized
    calibrator: str = "max"  # an observer of observe.py, for activations
    calibrator_options: Mapping[str, float] = field(default_factory=dict)
    weight_calibrator: str = "max"  # the same for weights; "mse" clips outliers, worth it below 8 bits
    integer_bias: bool = True  # round biases to int32 at input scale * weight scale
    # What a normalised uint8 image can hold, (x - 128) / 128. It fixes the input's grid: nothing is lost there.
    input_range: tuple[float, float] | None = (-1.0, 127 / 128)
    # A grid behind convolutions that feed only the outputs; linear layers give floats from integers without.
    # Off: 8 bits are few for scores (MTCNN, AP on crowds .903 -> .899), and no faster once octavo.lower was there.
    quantize_outputs: bool = False
    # SiLU as x · sigmoid(x) with each on a grid, since ONNX Runtime keeps a layer in float that a float activation
    # follows; TensorRT fuses layer and SiLU, and wants no grid between them.
    split_silu: bool = True
    skip: tuple[str, ...] = ()  # layers kept in float
    # Networks without grids (quantize/dynamic.py): linear and recurrent layers whose input's range is found at each
    # call, and layers of which the weights alone are integers.
    dynamic: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()
    # (pattern, {"weight": Grid, "activation": Grid of the layer's output}); the first that fits counts.
    overrides: tuple[tuple[str, Mapping[str, Grid]], ...] = ()

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"unknown target {self.target!r}; choose one of {', '.join(TARGETS)}")
        if self.activation is not None and self.activation.granularity != "tensor":
            raise ValueError("activations have one scale per tensor: integer kernels know no other")
        if self.input_range is not None and not self.input_range[0] < self.input_range[1]:
            raise ValueError(f"input_range must be (low, high), got {self.input_range}")
        for pattern, grids in self.overrides:
            if unknown := set(grids) - {"weight", "activation"}:
                raise ValueError(f"override {pattern!r}: {', '.join(sorted(unknown))} is no grid of a layer")

    @staticmethod
    def for_target(target: str, **changes: Any) -> Scheme:
        """The defaults of "cpu", "tensorrt" or "arm"; `changes` replace fields."""
        if target not in TARGETS:
            raise ValueError(f"unknown target {target!r}; choose one of {', '.join(TARGETS)}")
        return replace(Scheme(target=target), **{**TARGETS[target], **changes})

    def skips(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.skip)

    def grid(self, kind: str, name: str) -> Grid | None:
        """The "weight" or "activation" grid of the layer called `name`."""
        for pattern, grids in self.overrides:
            if kind in grids and fnmatchcase(name, pattern):
                return grids[kind]
        return self.weight if kind == "weight" else self.activation

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = asdict(replace(self, overrides=()))
        data["calibrator_options"] = dict(self.calibrator_options)
        overrides = [[p, {k: asdict(g) for k, g in grids.items()}] for p, grids in self.overrides]
        return data | {"overrides": overrides}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Scheme:
        """The inverse of `to_dict`; ValueError for unknown or missing names."""

        def grid(value: Mapping[str, Any] | None) -> Grid | None:
            return None if value is None else Grid(**value)

        try:
            fields = dict(data)
            for kind in ("weight", "activation"):
                if kind in fields:
                    fields[kind] = grid(fields[kind])
            if fields.get("input_range") is not None:
                fields["input_range"] = tuple(fields["input_range"])
            for kind in ("skip", "dynamic", "stored"):
                fields[kind] = tuple(fields.get(kind, ()))
            fields["overrides"] = tuple(
                (pattern, {kind: Grid(**value) for kind, value in grids.items()})
                for pattern, grids in fields.get("overrides", ())
            )
            return Scheme(**fields)
        except TypeError as error:
            raise ValueError(f"this is no quantization scheme: {error}") from None


TARGETS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "tensorrt": {"activation": Grid(), "integer_bias": False, "split_silu": False},
    "arm": {"activation": Grid(narrow=True), "integer_bias": False, "split_silu": False},
}
