"""A float model folder and a few photographs -> an INT8 model folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from octavo import folder
from octavo.models import load_modules, part, save_module, scheme_for
from octavo.verbs.extras import need_torch
from octavo.verbs.float_model import in_runtime
from octavo.verbs.recipe import recipe
from octavo.verbs.signatures import NetworkProgress, PathLike


def quantize(
    model: PathLike,
    data: PathLike,
    out: PathLike | None = None,
    *,
    target: str = "cpu",
    calibrator: str = "max",
    images: int = 64,
    keep_float: Iterable[str] = (),
    progress: NetworkProgress | None = None,
    **scheme: Any,
) -> Path:
    """Float model folder -> INT8 model folder (default runs/NAME-int8), without training. Returns it.

    Each network is calibrated on what the float ones before it let through of `images` training images.
    keep_float adds name patterns of layers to the recipe's ("pnet/face" is one of pnet alone); `scheme` goes to
    quantize.Scheme.for_target.
    """
    torch = need_torch()
    from octavo.quantize import Scheme, calibrate, prepare

    path = folder.find(model)
    info = folder.read_info(path)
    if info["precision"] != "float":
        raise ValueError(f"{path} is {info['precision']} already: quantize the float model it was made from.")
    modules = load_modules(path)
    chosen = recipe(info["variant"])
    skip = (*chosen.float_layers, *keep_float)
    scheme_ = Scheme.for_target(target, calibrator=calibrator, skip=skip, **scheme)
    settings = part(info["family"], "predict").Settings.of(info["settings"])
    batches = part(info["family"], "data").calibration_batches
    offset, scale = info["preprocessing"]["offset"], info["preprocessing"]["scale"]
    networks = part(info["family"], "recipe").NETWORKS
    floats = {
        name: in_runtime(module, networks[name], info["preprocessing"]) for name, module in modules.items()
    }
    out_path = Path(out or Path("runs") / f"{path.name}-int8")
    calibrations = {}
    with folder.staged(out_path) as stage:
        for name, module in modules.items():
            pixels = batches(name, Path(data), floats, settings, images)
            first = next(pixels, None)
            if first is None:
                raise ValueError(
                    f"{name} has nothing to be calibrated on: of {images} photographs the networks before it let "
                    "nothing through. Give more --images, or a model that is trained longer."
                )
            tensors = ((torch.from_numpy(p).float() - offset) * scale for p in chain([first], pixels))
            quantized = prepare(module, scheme_for(scheme_, name))
            done = calibrate(quantized, tensors, partial(progress, name) if progress else None)
            calibrations[name] = done.to_dict()
            save_module(quantized, stage / f"{name}.pt")
        hashes = "".join(c["hash"] for c in calibrations.values())
        calibration = {
            "hash": hashlib.sha256(hashes.encode()).hexdigest(),
            "images": images,
            "method": next(iter(calibrations.values()))["method"],
            "data": str(data),
            "networks": calibrations,
        }
        changed = {
            "precision": "int8",
            "target": target,
            "scheme": scheme_.to_dict(),
            "calibration": calibration,
            "metrics": {},
        }
        folder.write_info(stage, info | changed | folder.provenance())
    return out_path


def targets() -> list[str]:
    from octavo.quantize.scheme import TARGETS

    return list(TARGETS)


def calibrators() -> list[str]:
    from octavo.quantize.observe import DEFAULTS

    return list(DEFAULTS)
