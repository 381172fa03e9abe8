"""A network in the form that a scheme gives it.

    dynamic, stored   layers of these patterns multiply integers whose range is found at each call, or store
                      integers and multiply floats (quantize/dynamic.py): the network has no grids
    skip "*"          the network as it is, in float
    else              on calibrated grids (quantize/prepare.py)

So the parts of a model may be quantized by different means, and a folder's scheme says which by which.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from octavo.quantize.dynamic import DYNAMIC, STORED, quantize_dynamic, weight_only
from octavo.quantize.prepare import prepare
from octavo.quantize.scheme import Scheme


def formed(module: nn.Module, scheme: Scheme) -> nn.Module:
    """A copy of a float network as `scheme` wants it; the grids of a prepared one are yet to be calibrated."""
    if has_grids(scheme):
        return prepare(module, scheme)
    if "*" in scheme.skip:
        return module
    stored = _named(module, STORED, scheme.stored, scheme)
    dynamic = [name for name in _named(module, DYNAMIC, scheme.dynamic, scheme) if name not in stored]
    made = weight_only(module, *stored) if stored else module
    return quantize_dynamic(made, *dynamic) if dynamic else made


def has_grids(scheme: Scheme) -> bool:
    """Whether a network of this scheme is to be calibrated."""
    return not ("*" in scheme.skip or scheme.dynamic or scheme.stored)


def _named(
    module: nn.Module, kinds: tuple[type[nn.Module], ...], patterns: tuple[str, ...], scheme: Scheme
) -> list[str]:
    """The layers of these kinds whose names fit a pattern, but for those to be skipped."""
    return [
        name
        for name, child in module.named_modules()
        if isinstance(child, kinds)
        and any(fnmatchcase(name, pattern) for pattern in patterns)
        and not scheme.skips(name)
    ]
