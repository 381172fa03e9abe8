"""nn.Module -> nn.Module that computes on integer grids.

    scheme = Scheme.for_target("cpu")
    qmodel = prepare(network, scheme)        # a copy, BN folded, quantizers in place
    calibrate(qmodel, batches)               # choose ranges
    print(qmodel)                            # what was done to each layer

Read in this order: scheme.py (what a grid is), fake.py (rounding to it), observe.py (which range),
prepare.py (where), calibrate.py (with what data), describe.py (what came of it).
"""

from octavo.quantize.calibrate import Calibration, calibrate
from octavo.quantize.describe import describe
from octavo.quantize.fake import FakeQuant, QuantLayer
from octavo.quantize.prepare import TraceError, fold, grids, layers, prepare, set_mode
from octavo.quantize.scheme import Grid, Scheme

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
    "grids",
    "layers",
    "prepare",
    "set_mode",
]
