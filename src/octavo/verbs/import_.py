"""Published float weights -> a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import folder
from octavo.models import part, save_module
from octavo.verbs.extras import need_torch
from octavo.verbs.float_model import float_info
from octavo.verbs.recipe import family_of, recipe
from octavo.verbs.signatures import PathLike

if TYPE_CHECKING:
    from torch import nn


def import_(variant: str, source: PathLike, out: PathLike | None = None) -> Path:
    """Published float weights -> a model folder with state dicts, by default runs/VARIANT. Returns it."""
    need_torch()
    family = family_of(variant)
    net = part(family, "net")
    states = net.import_weights(Path(source))
    modules = net.build(variant)
    if not _fit(modules, states):
        fitting = [v for v in part(family, "recipe").RECIPES if _fit(net.build(v), states)]
        raise ValueError(f"the weights in {source} do not fit {variant}; they fit {', '.join(fitting)}.")
    target = Path(out or Path("runs") / variant)
    with folder.staged(target) as stage:
        for name, module in modules.items():
            save_module(module, stage / f"{name}.pt")
        info = float_info(variant, list(modules), recipe(variant), str(source))
        if hasattr(net, "import_info"):  # what the file says beyond tensors, such as names of classes
            info |= net.import_info(Path(source))
        folder.write_info(stage, info)
    return target


def _fit(modules: Mapping[str, nn.Module], states: Mapping[str, Mapping[str, Any]]) -> bool:
    """Load the states (name to tensor) into the modules, where every name and shape agrees."""
    for name, module in modules.items():
        own, given = module.state_dict(), states[name]
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in given.items()}:
            return False
    for name, module in modules.items():
        module.load_state_dict(dict(states[name]))
    return True
