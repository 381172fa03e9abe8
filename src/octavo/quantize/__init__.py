"""nn.Module -> nn.Module that computes on integer grids.

    scheme = Scheme.for_target("cpu")
    qmodel = prepare(network, scheme)        # a copy, BN folded, quantizers in place
    calibrate(qmodel, batches)               # choose ranges
    print(qmodel)                            # what was done to each layer

Read in this order: scheme.py (what a grid is), fake.py (rounding to it), observe.py (which range),
prepare.py (where), calibrate.py (with what data), describe.py (what came of it).
"""

from typing import TYPE_CHECKING

from octavo.quantize.scheme import Grid, Scheme

# scheme.py and fixedpoint.py do without torch. Not imported at first use: a submodule would take the place of the
# function of its name (calibrate, describe, prepare).
try:
    from octavo.quantize.calibrate import Calibration, calibrate
    from octavo.quantize.describe import describe
    from octavo.quantize.fake import FakeQuant, QuantLayer
    from octavo.quantize.form import formed
    from octavo.quantize.prepare import (
        TraceError,
        fold,
        grids,
        layers,
        prepare,
        set_mode,
        without_grids_inside,
    )
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise

__all__ = [
    "Calibration",
    "FakeQuant",
    "Grid",
    "QuantLayer",
    "Scheme",
    "TraceError",
    "calibrate",
    "describe",
    "fold",
    "formed",
    "grids",
    "layers",
    "prepare",
    "set_mode",
    "without_grids_inside",
]

if not TYPE_CHECKING:  # to mypy, a module with __getattr__ has every name

    def __getattr__(name):
        if name in __all__:
            why = f"octavo.quantize.{name} needs torch: pip install 'octavo[train]'"
            raise ModuleNotFoundError(why, name="torch")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
