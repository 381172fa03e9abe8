"""A data set and a recipe -> a float model folder."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from octavo import folder
from octavo.folder import UnknownName, did_you_mean
from octavo.models import part, train_stages
from octavo.recipe import to_dict
from octavo.verbs.extras import need_torch
from octavo.verbs.float_model import PREPROCESSING, float_info, in_runtime
from octavo.verbs.recipe import family_of, recipe
from octavo.verbs.signatures import PathLike, TrainingProgress


def train(
    variant: str,
    data: PathLike,
    out: PathLike,
    *,
    stage: str = "all",
    changes: Iterable[str] = (),
    progress: TrainingProgress | None = None,
    **fabric: Any,
) -> Path | None:
    """Train a variant's networks, or one of them, into the folder `out`; goes on where a run was stopped.

    progress(network, done, total, losses) hears of every step, and with no losses of the making of samples;
    fabric goes to train.make_fabric. The folder is a model, and is returned, once all networks are trained.
    """
    torch = need_torch()
    from octavo.data.widerface import read
    from octavo.train import Hooks

    family, chosen = family_of(variant), recipe(variant, changes)
    if stage not in ("all", *chosen.stages):
        near = did_you_mean(stage, chosen.stages)
        there = ", ".join(("all", *chosen.stages))
        raise UnknownName(f"{variant} has no stage {stage!r}.{near} There are: {there}.")
    stages = list(chosen.stages) if stage == "all" else [stage]
    read(data, "train")  # a data set that can't be read is said before anything is written
    torch.manual_seed(chosen.stages[stages[0]].schedule.seed)
    modules = part(family, "net").build(variant)
    folder.write_json(Path(out) / "recipe.json", {"variant": variant} | to_dict(chosen))
    networks = part(family, "recipe").NETWORKS
    train_stages(
        family,
        modules,
        chosen,
        Path(data),
        Path(out),
        stages,
        lambda name, module: in_runtime(module, networks[name], PREPROCESSING),
        lambda name: Hooks(partial(progress, name) if progress else None),
        lambda name: (lambda done, total: progress(name, done, total, {})) if progress else None,
        **fabric,
    )
    if not all((Path(out) / f"{name}.pt").is_file() for name in modules):
        return None
    folder.write_info(out, float_info(variant, list(modules), chosen, str(data)))
    return Path(out)
