"""The numbers of the readers, each with its origin. `octavo recipe vietocr-small` prints them."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.recipe import Arrays, Network, Qat, Schedule


@dataclass(frozen=True)
class Sampling:
    """Which lines the reader learns from. Widths are pixels at the height of 32."""

    synthetic: int = 200_000  # lines rendered before training
    # They are no wider than this: a wider line is read in pieces of about 320 (predict.py).
    widest: int = 416
    # Share of the batches that are lines of the data set, where it has any that fit; the others are rendered.
    real: float = 0.5
    held_out: float = 0.1  # share of the data set's lines kept out of training, by a hash of their names
    fonts: str = "/usr/share/fonts"  # the folder they are rendered from: Debian's
    # Families of fonts kept for watching, by how their names begin: designs that no other Debian font derives from
    # (Arimo is Liberation Sans, Carlito is Lato, Hack is DejaVu Sans Mono: one of them would show the other).
    held_out_fonts: tuple[str, ...] = (
        "Andika",
        "Cantarell",
        "Gentium",
        "Junicode",
        "Quicksand",
        "Roboto",
        "Vollkorn",
    )
    watched: int = 100  # lines rendered from those, read after each epoch
    # A batch has as many pixels as `batch_size` lines of this width, so that short lines come in larger batches.
    width: int = 256
    # Attention finds its way on short lines first: widths up to `first`, growing to all over this share of the steps.
    first: int = 96
    growing: float = 0.15


@dataclass(frozen=True)
class Weights:
    """Weights of the losses."""

    # Places of the encoder learn by themselves what stands there (Kim et al. 2017, arXiv 1609.06773: .2 to .5).
    places: float = 0.3
    smoothing: float = 0.1  # of the labels: VietOCR


@dataclass(frozen=True)
class Stage:
    sampling: Sampling
    schedule: Schedule
    weights: Weights = Weights()


QAT = Qat()


@dataclass(frozen=True)
class Recipe:
    """Of layers that have no pattern here the inputs' ranges are calibrated: those of the CNN."""

    stages: dict[str, Stage]
    qat: Qat = QAT
    settings: dict[str, float] = field(default_factory=dict)
    float_layers: tuple[str, ...] = ()  # patterns of layers that stay in float when quantized
    # Layers that multiply integers whose range is found at each call, and layers of which only the weights are
    # integers: ONNX Runtime has no integer GRU.
    dynamic_layers: tuple[str, ...] = ("encoder/*", "decoder/*")
    stored_layers: tuple[str, ...] = ("encoder/gru",)


# OneCycle (Smith & Topin 2017, arXiv 1708.07120) as the loop has it: up for a twentieth, then down along a cosine.
# Peak and batches of the small reader: two processes on two cores need some two hours for them (docs/vietocr.md).
SMALL = Schedule(
    epochs=24, steps=500, batch_size=64, learning_rate=2e-3, weight_decay=1e-3, warmup=0.05, ema=0.999
)
# The large ones as VietOCR trains them: 100,000 batches of 32, peak 3e-4 after a tenth.
LARGE = Schedule(
    epochs=100, steps=1000, batch_size=32, learning_rate=3e-4, weight_decay=1e-2, warmup=0.1, ema=0.999
)


def _recipe(schedule: Schedule, **settings: float) -> Recipe:
    return Recipe(stages={"reader": Stage(Sampling(), schedule)}, settings=settings)


RECIPES = {
    "vietocr-small": _recipe(SMALL, doubt=0.5),  # results/vietocr_doubt.csv
    "vietocr-seq2seq": _recipe(LARGE),
    "vietocr-transformer": _recipe(LARGE),
}

CNN = Network((1, 3, 32, 512), {0: "lines", 3: "width"}, ("features",))
FEATURES = ((2, 64, 256), {0: "lines", 1: "places"})


def networks(variant: str) -> dict[str, Network | Arrays]:
    """What the three networks of a variant look like from outside."""
    number = ((2,), {0: "lines"})
    state: tuple[tuple[int, ...], dict[int, str]]
    if variant == "vietocr-transformer":
        state = ((2, 3, 3072), {0: "lines", 1: "written"})
        memory = {"memory": ((2, 64, 3072), {0: "lines", 1: "places"})}
    else:
        hidden = 128 if variant == "vietocr-small" else 256
        state = ((2, hidden), {0: "lines"})
        widths = {"memory": 2 * hidden, "keys": hidden}
        memory = {name: ((2, 64, width), {0: "lines", 1: "places"}) for name, width in widths.items()}
    said = ("places",) if variant == "vietocr-small" else ()
    return {
        "cnn": CNN,
        "encoder": Arrays({"features": FEATURES}, ("state", *memory, *said)),
        "decoder": Arrays(
            {"number": number, "state": state, **memory}, ("logits", "next_state"), whole=("number",)
        ),
    }
