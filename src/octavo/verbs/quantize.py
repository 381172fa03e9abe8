"""A float model folder -> an INT8 model folder, with as much effort as its accuracy needs.

    level 1    no data: ranges from synthetic images
    level 2    a few photographs, no labels: ranges, and where wanted rounding and biases, from what they excite
    level 3    a short fine-tune that has the float network for a teacher, no labels
    level 4    the whole schedule, with labels, StatAssist and GradBoost

Levels 3 and 4 are level 2, then `train` of what came of it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import folder
from octavo.folder import did_you_mean
from octavo.models import load_modules, part, save_module, scheme_for
from octavo.models import networks as networks_of
from octavo.verbs.extras import need_torch
from octavo.verbs.float_model import in_runtime
from octavo.verbs.int8_model import Batches
from octavo.verbs.recipe import recipe
from octavo.verbs.signatures import NetworkProgress, PathLike, TrainingProgress
from octavo.verbs.train import train

if TYPE_CHECKING:
    from torch import nn

    from octavo.quantize import Calibration, Scheme

# What the levels that train change in the recipe's `qat`. 3: a tenth of the float schedule (FACTS.md, section 4)
# and the float network's outputs instead of labels. 4: the float schedule again, StatAssist for its first tenth.
TRAINING = {
    3: ("qat.outputs=1", "qat.labels=0"),
    4: ("qat.epochs=1", "qat.labels=1", "qat.assist=0.1", "qat.boost=corrected"),
}
SYNTHETIC = 8  # images in a batch


def quantize(
    model: PathLike,
    data: PathLike | None = None,
    out: PathLike | None = None,
    *,
    level: int = 2,
    target: str = "cpu",
    calibrator: str = "max",
    images: int = 64,
    weight_bits: int = 8,
    weight_scales: str = "channel",
    keep_float: Iterable[str] = (),
    store: Iterable[str] = (),
    equalize: bool = False,
    rounding: bool = False,
    correct_bias: bool = False,
    changes: Iterable[str] = (),
    progress: NetworkProgress | None = None,
    training: TrainingProgress | None = None,
    **scheme: Any,
) -> Path:
    """Float model folder -> INT8 model folder (default runs/NAME-int8). Returns it.

    level: 1 to 4, see above; from 2 on `data` is needed. Each network is calibrated on what the float ones before
    it let through of `images` training images, unless its layers are the recipe's dynamic_layers. weight_scales: one
    per "channel", "tensor" or "group". keep_float adds name patterns of layers to the recipe's ("pnet/face" is one of
    pnet alone); store those of layers of which only the weights are integers ("decoder/*", "*"): their network computes
    in float. `scheme` goes to quantize.Scheme.for_target. equalize, rounding, correct_bias: the methods of
    quantize.equalize and quantize.rounding, in this order. changes go to `train`, at levels 3 and 4.
    """
    need_torch()
    from octavo.quantize import Grid, Scheme

    path = folder.find(model)
    info = folder.read_info(path)
    if info["precision"] != "float":
        raise ValueError(f"{path} is {info['precision']} already: quantize the float model it was made from.")
    if level not in range(1, 5):
        raise ValueError(f"level is 1 (no data) to 4 (the whole training schedule), not {level}")
    if level > 1 and data is None:
        raise ValueError(f"level {level} needs images: give a data set, or take level 1")
    if level == 1 and rounding:
        raise ValueError("rounding is learned from photographs, not from synthetic images: take level 2")
    if level < 3 and (changes := tuple(changes)):
        raise ValueError(f"level {level} does not train: nothing is there for {', '.join(changes)} to change")
    out = Path(out or Path("runs") / f"{path.name}-int8")
    chosen_recipe = recipe(info["variant"])
    skip = (*chosen_recipe.float_layers, *keep_float)
    weight = Grid(weight_bits, granularity=weight_scales, narrow=True)
    offset, step = (info["preprocessing"][name] for name in ("offset", "scale"))
    scheme = {
        "input_range": ((0 - offset) * step, (255 - offset) * step),
        "dynamic": getattr(chosen_recipe, "dynamic_layers", ()),
        "stored": (*getattr(chosen_recipe, "stored_layers", ()), *_networks_named(store, info["networks"])),
    } | scheme
    scheme_ = Scheme.for_target(target, weight=weight, calibrator=calibrator, skip=skip, **scheme)
    chosen = {"equalize": equalize, "rounding": rounding, "correct_bias": correct_bias}
    methods = [name for name, wanted in chosen.items() if wanted]
    if level == 1:
        return _calibrated(path, info, None, out, scheme_, methods, images, progress)
    assert data is not None
    if level == 2:
        return _calibrated(path, info, Path(data), out, scheme_, methods, images, progress)
    with tempfile.TemporaryDirectory() as temporary:
        start = Path(temporary) / out.name
        _calibrated(path, info, Path(data), start, scheme_, methods, images, progress)
        made = train(start, data, out, changes=(*TRAINING[level], *changes), progress=training)
    assert made is not None, "all networks were trained"
    return made


def _networks_named(patterns: Iterable[str], networks: Iterable[str]) -> tuple[str, ...]:
    """The patterns of layers that are stored, each of which names its network or all of them."""
    patterns, networks = tuple(patterns), tuple(networks)
    for pattern in patterns:
        network = pattern.partition("/")[0]
        if pattern != "*" and network not in networks:
            raise ValueError(
                f"layers to store are named NETWORK/LAYER, with {', '.join(networks)}, or *, not {pattern!r}."
                + did_you_mean(network, networks)
            )
    return patterns


def _calibrated(
    path: Path,
    info: dict[str, Any],
    data: Path | None,
    out: Path,
    scheme: Scheme,
    methods: list[str],
    images: int,
    progress: NetworkProgress | None,
) -> Path:
    """The folder that levels 1 (data is None) and 2 give."""
    from octavo.quantize.form import formed, has_grids

    modules = load_modules(path)
    batches = _synthetic(info, images) if data is None else _seen(info, modules, data, images)
    calibrations = {}
    with folder.staged(out) as stage:
        for name, module in modules.items():
            watched = partial(progress, name) if progress else None
            own = scheme_for(scheme, name)
            if has_grids(own):
                module, done = _quantized(module, own, batches(name), methods, data is None, watched)
                calibrations[name] = done.to_dict()
            else:
                module = formed(module, own)
            save_module(module, stage / f"{name}.pt")
        hashes = "".join(c["hash"] for c in calibrations.values())
        calibration = (
            {
                "hash": hashlib.sha256(hashes.encode()).hexdigest(),
                "images": images,
                "method": ", ".join([next(iter(calibrations.values()))["method"], *methods]),
                "data": "synthetic" if data is None else str(data),
                "networks": calibrations,
            }
            if calibrations
            else None
        )
        changed = {
            "precision": "int8",
            "target": scheme.target,
            "scheme": scheme.to_dict(),
            "calibration": calibration,
            "metrics": {},
        }
        folder.write_info(stage, folder.continued(info, **changed))
    return out


def _quantized(
    module: nn.Module,
    scheme: Scheme,
    batches: Batches,
    methods: list[str],
    without_data: bool,
    progress: Callable[[int], None] | None,
) -> tuple[nn.Module, Calibration]:
    """One network, prepared and calibrated, and what it was calibrated with."""
    from octavo.quantize import calibrate, prepare
    from octavo.quantize.equalize import correct_bias, correct_bias_from_norms, equalize
    from octavo.quantize.rounding import learn_rounding

    source = equalize(module, scheme.skip) if "equalize" in methods else module
    quantized = prepare(source, scheme)
    calibration = calibrate(quantized, batches, progress)
    if "rounding" in methods:
        learn_rounding(quantized, source, batches)
    if "correct_bias" in methods and without_data:
        correct_bias_from_norms(quantized, source)
    elif "correct_bias" in methods:
        correct_bias(quantized, source, batches)
    return quantized, calibration


def _synthetic(info: Mapping[str, Any], images: int) -> Callable[[str], Batches]:
    """For each network, images from nothing, in the size it is exported with."""
    from octavo.quantize import synthetic

    networks = networks_of(info["variant"])

    def batches(name: str) -> Batches:
        sizes = [min(SYNTHETIC, images - start) for start in range(0, images, SYNTHETIC)]
        shape = networks[name].shape[1:]
        made = (synthetic.images((n, *shape), seed=i).numpy() for i, n in enumerate(sizes))
        return Batches(made, info["preprocessing"])

    return batches


def _seen(
    info: Mapping[str, Any], modules: Mapping[str, nn.Module], data: Path, images: int
) -> Callable[[str], Batches]:
    """For each network, what the float ones before it let through of training images."""
    settings = part(info["family"], "predict").Settings.of(info["settings"])
    networks = networks_of(info["variant"])
    calibration_batches = part(info["family"], "data").calibration_batches
    floats = {
        name: in_runtime(module, networks[name], info["preprocessing"]) for name, module in modules.items()
    }

    def batches(name: str) -> Batches:
        found = Batches(calibration_batches(name, data, floats, settings, images), info["preprocessing"])
        if not len(found):
            raise ValueError(
                f"{name} has nothing to be calibrated on: of {images} photographs the networks before it let "
                "nothing through. Give more --images, or a model that is trained longer."
            )
        return found

    return batches


def targets() -> list[str]:
    from octavo.quantize.scheme import TARGETS

    return list(TARGETS)


def calibrators() -> list[str]:
    from octavo.quantize.observe import DEFAULTS

    return list(DEFAULTS)
