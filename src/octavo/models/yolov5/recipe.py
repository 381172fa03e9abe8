"""The numbers of YOLOv5, each with its origin. `octavo recipe yolov5n` prints them."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.recipe import Network, Qat, Schedule

# The network takes RGB / 255: black is zero, as its padding is.
PREPROCESSING = {"color": "RGB", "offset": 0.0, "scale": 1 / 255}


@dataclass(frozen=True)
class Sampling:
    """Which pictures the network learns from. Strengths of the augmentation: the published recipe for small models."""

    size: int = 640  # side of the square pictures of a batch; a multiple of 32
    mosaic: float = 1.0  # share of pictures that are put together of four
    zoom: tuple[float, float] = (0.5, 1.5)  # scale on top of that
    shift: float = 0.1  # of a picture, as a share of its side
    colour: tuple[float, float, float] = (
        0.015,
        0.7,
        0.4,
    )  # largest change of hue, saturation, value, as shares
    held_out: float = 0.1  # share of the training images kept for watching, by a hash of their names


@dataclass(frozen=True)
class Matching:
    """Which anchors learn from which object."""

    ratio: float = 4.0  # of an anchor's side and the object's, at most: published


@dataclass(frozen=True)
class Weights:
    """Weights of the losses, as published for three strides and 80 classes at 640 pixels."""

    matching: Matching = Matching()
    box: float = 0.05
    object: float = 1.0
    classes: float = 0.5
    strides: tuple[float, float, float] = (4.0, 1.0, 0.4)  # of the object loss: small objects are many


@dataclass(frozen=True)
class Stage:
    sampling: Sampling
    schedule: Schedule
    weights: Weights = Weights()


# No labels: each layer's output shall be the float network's, as in NVIDIA's samples. Ranges stay: following what is
# seen, they would forget what the calibrator `mse` clipped. The rate is lower than usual, 2e-6: at 1e-5 a hundred steps
# undo more of what calibration found than they learn (results/yolov5_qat.csv).
QAT = Qat(labels=0.0, layers=1.0, learning_rate=0.002)


@dataclass(frozen=True)
class Recipe:
    stages: dict[str, Stage]
    qat: Qat = QAT
    settings: dict[str, float] = field(default_factory=dict)
    float_layers: tuple[str, ...] = ()  # patterns of layers that stay in float when quantized


# 118 thousand images in batches of 64, 300 times: the published schedule, of which steps are one pass.
BOTH = Recipe(
    stages={
        "detector": Stage(
            sampling=Sampling(),
            schedule=Schedule(epochs=300, steps=1849, batch_size=64, learning_rate=1e-3, weight_decay=5e-4),
        )
    }
)

RECIPES = {"yolov5n": BOTH, "yolov5s": BOTH}

# A photograph scaled to a long side of 640 in its frame: any multiples of 32.
NETWORKS = {
    "detector": Network(
        (1, 3, 640, 640), {2: "height", 3: "width"}, ("stride8", "stride16", "stride32"), multiple=32
    )
}
