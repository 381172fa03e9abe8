"""The numbers of slim and RFB, each with its origin. `octavo recipe slim` prints them."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.recipe import Network, Qat, Schedule


@dataclass(frozen=True)
class Sampling:
    """Which pictures the network learns from: square windows of photographs, of `size` pixels once scaled."""

    # Side of the pictures of a batch, drawn for each batch; the published weights were trained at 300.
    sizes: tuple[int, ...] = (256, 320)
    # Pixels of the picture to one of the photograph, drawn evenly on a logarithmic scale: around 1, since
    # photographs are looked at in their own size.
    zoom: tuple[float, float] = (0.6, 2.5)
    room: float = (
        1.3  # side of the largest window, in longer sides of the photograph: what fills it teaches little
    )
    # Crowded street scenes are 7 % of the images but hold the small and masked faces: photographs of these
    # events are drawn so many times as often.
    repeat: dict[str, int] = field(default_factory=dict)
    longest: int = 1024  # photographs are kept on disk with their longer side no longer, pixels
    held_out: float = 0.04  # share of the training images kept for watching, by a hash of their names


@dataclass(frozen=True)
class Matching:
    """Which prior learns from which face. .35 and .2: RetinaFace's code and Face-Detector-1MB-with-landmark."""

    positive: float = 0.35  # a prior that overlaps a face so much (IoU) finds it
    claimed: float = 0.2  # and the one that overlaps it most, if it does so much
    ignored: float = 0.3  # a prior with such a share of its area in an unsure face learns nothing
    negatives: int = 7  # for each positive of an image, the hardest
    fewest_negatives: int = 20  # of an image, which may have no face large enough to be learned


@dataclass(frozen=True)
class Weights:
    """Weights of the losses: Face-Detector-1MB-with-landmark."""

    matching: Matching = Matching()
    face: float = 1.0
    box: float = 2.0
    landmarks: float = 1.0


@dataclass(frozen=True)
class Stage:
    sampling: Sampling
    schedule: Schedule
    weights: Weights = Weights()


QAT = Qat()


@dataclass(frozen=True)
class Recipe:
    stages: dict[str, Stage]
    qat: Qat = QAT
    settings: dict[str, float] = field(default_factory=dict)
    float_layers: tuple[str, ...] = ()  # patterns of layers that stay in float when quantized


BOTH = Recipe(
    stages={
        "detector": Stage(
            sampling=Sampling(repeat={"0--Crowd": 8}),
            schedule=Schedule(epochs=20, steps=250, batch_size=32, learning_rate=2e-3, weight_decay=5e-4),
        )
    }
)

RECIPES = {"slim": BOTH, "rfb": BOTH}

# A photograph of any size in its frame of one pixel: 320x240 as the example.
NETWORKS = {
    "detector": Network((1, 3, 242, 322), {2: "height", 3: "width"}, ("face", "box", "landmarks"), multiple=2)
}
