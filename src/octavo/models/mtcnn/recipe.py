"""MTCNN's numbers, each with its origin. `octavo recipe mtcnn-relu` prints them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from octavo.recipe import Network, Qat, Schedule


@dataclass(frozen=True)
class Sampling:
    """How many windows of which kind one network learns from.

    A window is positive from IoU .65, a part face from .4 to .65, negative below .3 (Zhang et al. 2016).
    """

    positives: int  # windows tried around each face
    parts: int
    negatives: int  # at random places of each image
    mined: int  # windows of the previous networks kept per image (0: this is the first network)
    # positive : part : landmark face : negative in a batch, 1:1:1:3 where there is a landmark head
    ratio: tuple[int, int, int, int]
    # Crowded street scenes are 7 % of the images but hold the small and masked faces: their faces are drawn
    # this many times as often. Chosen on held-out training images, see LOG.md.
    repeat: dict[str, int] = field(default_factory=dict)
    blur: float = 0.0  # share of windows shrunk to a random size first, as a small face would look
    # P-Net's and R-Net's thresholds while mining: low, since what they nearly take is hard too.
    thresholds: tuple[float, float] = (0.0, 0.0)
    held_out: float = 0.04  # share of the training images kept for watching, by a hash of their names
    positive_iou: float = 0.65
    part_iou: float = 0.4
    negative_iou: float = 0.3
    # A negative may not cover, or lie in, a face that is marked invalid (unsure, unlabelled points).
    invalid_overlap: float = 0.3


@dataclass(frozen=True)
class Weights:
    """Weights of the losses. 1 / .5 / .5, for O-Net's landmarks 1, and the hardest 70 %: Zhang et al. 2016."""

    box: float = 0.5
    landmarks: float = 0.5
    # The logit of teachers, where there are any (octavo train --teacher).
    teacher: float = 0.2
    hardest: float = 0.7
    # A face that P- or R-Net drops is lost for good, a false alarm is O-Net's to find: their positives count more.
    positive: float = 1.0
    focal: float = 0.0  # exponent of the focal loss, 0: plain cross-entropy
    beta: float = 0.05  # where smooth L1 turns from square to straight, in window sides


@dataclass(frozen=True)
class Stage:
    size: int  # side of the window, pixels
    sampling: Sampling
    schedule: Schedule
    weights: Weights = Weights()
    centre: float = 0.5  # the probability as trained that shall read .5 afterwards, chosen on held-out images


QAT = Qat()


@dataclass(frozen=True)
class Recipe:
    stages: dict[str, Stage]
    mining_min_face: float = 12  # the smallest face that the evaluation asks for
    settings: dict[str, float | tuple[float, ...]] = field(default_factory=dict)
    float_layers: tuple[str, ...] = ()  # patterns of layers that stay in float when quantized
    qat: Qat = QAT


CROWD = {"0--Crowd": 3}

MTCNN = Recipe(
    stages={
        "pnet": Stage(
            size=12,
            sampling=Sampling(
                positives=20, parts=12, negatives=60, mined=0, ratio=(1, 1, 0, 3), repeat=CROWD
            ),
            schedule=Schedule(epochs=12, steps=500, batch_size=2048, learning_rate=4e-3),
            weights=Weights(positive=1.5),
            centre=0.35,
        ),
        "rnet": Stage(
            size=24,
            sampling=Sampling(
                positives=12,
                parts=8,
                negatives=4,
                mined=60,
                ratio=(1, 1, 0, 3),
                repeat=CROWD,
                blur=0.3,
                thresholds=(0.39, 0.0),
            ),
            schedule=Schedule(epochs=10, steps=500, batch_size=1024, learning_rate=3e-3),
            weights=Weights(positive=3.0),
            centre=0.25,
        ),
        "onet": Stage(
            size=48,
            sampling=Sampling(
                positives=10,
                parts=6,
                negatives=2,
                mined=40,
                ratio=(1, 1, 1, 3),
                repeat=CROWD,
                blur=0.4,
                thresholds=(0.39, 0.5),
            ),
            schedule=Schedule(epochs=18, steps=500, batch_size=512, learning_rate=2e-3),
            weights=Weights(landmarks=1.0),
            centre=0.2,
        ),
    },
    # Chosen on held-out images by AP against what the networks are given to look at (benchmarks/mtcnn_cascade.py, docs
    # of the family): low thresholds and a strict NMS find more, and look less, than high ones and a loose one. The
    # first step of the pyramid is large because its first levels are most of P-Net's work. .9: where F1 is best.
    settings={
        "min_face": 20,
        "thresholds": (0.6, 0.2, 0.9),
        "factor": (0.5, 0.75),
        "nms": (0.5, 0.45, 0.3, 0.7),
    },
)

# The published weights keep the published settings.
RECIPES = {"mtcnn": replace(MTCNN, settings={}), "mtcnn-relu": MTCNN}

# P-Net looks at one pyramid level of any even size, R- and O-Net at any number of windows.
NETWORKS = {
    "pnet": Network((1, 3, 120, 160), {2: "height", 3: "width"}, ("face", "box"), multiple=2),
    "rnet": Network((8, 3, 24, 24), {0: "count"}, ("face", "box")),
    "onet": Network((8, 3, 48, 48), {0: "count"}, ("face", "box", "landmarks")),
}
