"""Networks in torch: what model.json says of float ones, and how all look at images of every size."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import folder
from octavo.models import part
from octavo.verbs.network_file import write
from octavo.verbs.recipe import family_of
from octavo.verbs.signatures import Network

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from octavo.recipe import Arrays
    from octavo.recipe import Network as NetworkShape

# Pixels around zero in steps of 1/128: the 8-bit grid itself, so that the first quantizer loses nothing. A family whose
# published weights want others says so in its recipe.py.
PREPROCESSING = {"color": "RGB", "offset": 128.0, "scale": 1 / 128}


def preprocessing(family: str) -> dict[str, Any]:
    return getattr(part(family, "recipe"), "PREPROCESSING", PREPROCESSING)


def float_info(variant: str, networks: list[str], recipe: Any, data: str) -> dict[str, Any]:
    family = family_of(variant)
    return {
        "format": folder.FORMAT,
        "family": family,
        "variant": variant,
        "precision": "float",
        "networks": networks,
        "preprocessing": preprocessing(family),
        "settings": part(family, "predict").Settings.of(recipe.settings).to_dict(),
        "data": data,
        "metrics": {},
    } | folder.provenance()


def in_runtime(module: nn.Module, like: NetworkShape | Arrays, preprocessing: Mapping[str, Any]) -> Network:
    """A module, float or quantized, as a function of arrays, through a temporary export at the first call.

    Mining and calibration show a network images of every size: ONNX Runtime runs P-Net over such a pyramid in
    a quarter to a tenth of eager torch's time, which compiles its kernels anew for every shape.
    """
    from octavo.run.on_onnxruntime import open_network

    lock = threading.Lock()  # samples are made in several threads

    @cache
    def opened() -> Network:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "network.onnx"
            write(module, path, like, preprocessing)
            return open_network(path, 1)

    def call(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        with lock:
            network = opened()
        return network(*arrays)

    return call
