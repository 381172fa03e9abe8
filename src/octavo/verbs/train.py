"""A data set and a recipe -> a model folder. Starting from a quantized folder, this is quantization-aware training."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import folder
from octavo.folder import UnknownName, did_you_mean
from octavo.models import load_modules, part, save_module, task, train_stages, weights_file
from octavo.models import networks as networks_of
from octavo.recipe import to_dict
from octavo.verbs.extras import need_torch
from octavo.verbs.float_model import float_info, in_runtime, preprocessing
from octavo.verbs.recipe import Start, recipe, start_of
from octavo.verbs.signatures import PathLike, TrainingProgress

if TYPE_CHECKING:
    from torch import nn


def train(
    model: PathLike,
    data: PathLike,
    out: PathLike,
    *,
    stage: str = "all",
    changes: Iterable[str] = (),
    teachers: Iterable[PathLike] = (),
    progress: TrainingProgress | None = None,
    **fabric: Any,
) -> Path | None:
    """Train all networks, or one of them, into the folder `out`; goes on where a run was stopped.

    model: a variant's name (fresh weights) or a model folder (its weights: .pt files, or float .onnx files that are
    read back). A quantized folder stays quantized: its networks learn for their integer grids, by the shorter
    schedule of the recipe's `qat`.
    teachers: model folders of the same family; what they say of a sample, on average, is learned beside its label.
    progress(network, done, total, losses) hears of every step, and with no losses of the making of samples;
    fabric goes to train.make_fabric. The folder is a model, and is returned, once all networks are trained.
    """
    torch = need_torch()
    from octavo.train import Hooks

    start, chosen, out = start_of(model), recipe(model, changes), Path(out)
    if stage not in ("all", *chosen.stages):
        near = did_you_mean(stage, chosen.stages)
        there = ", ".join(("all", *chosen.stages))
        raise UnknownName(f"{start.variant} has no stage {stage!r}.{near} There are: {there}.")
    if start.folder and out.exists() and out.samefile(start.folder):
        raise ValueError(f"{out} is what training starts from: give another --out")
    stages = list(chosen.stages) if stage == "all" else [stage]
    taught_by = [_teacher(start, chosen, path) for path in teachers]
    task(start.family).read(data, "train")  # a data set that can't be read is said before anything is written
    torch.manual_seed(chosen.stages[stages[0]].schedule.seed)
    if start.folder:
        modules = load_modules(start.folder)
        origin = " ".join(folder.digest(weights_file(start.folder, name))[:12] for name in modules)
    else:
        modules, origin = part(start.family, "net").build(start.variant), ""
    folder.write_json(out / "recipe.json", {"variant": start.variant, "from": origin} | to_dict(chosen))
    for name, module in modules.items() if start.folder else ():
        if not (out / f"{name}.pt").is_file():  # one that isn't trained stays what it was
            save_module(module, out / f"{name}.pt")
    networks = networks_of(start.variant)
    pixels = start.info.get("preprocessing", preprocessing(start.family))
    train_stages(
        start.family,
        modules,
        chosen,
        Path(data),
        out,
        stages,
        lambda name, module: in_runtime(module, networks[name], pixels),
        lambda name: Hooks(partial(progress, name) if progress else None),
        lambda name: (lambda done, total: progress(name, done, total, {})) if progress else None,
        origin,
        taught_by,
        **fabric,
    )
    if not all((out / f"{name}.pt").is_file() for name in modules):
        return None
    if start.folder:
        info = folder.continued(start.info, data=str(data), metrics={})
    else:
        info = float_info(start.variant, list(modules), chosen, str(data))
    folder.write_info(out, info)
    return out


def _teacher(start: Start, chosen: Any, path: PathLike) -> dict[str, nn.Module]:
    """The networks of a folder that those of `start` can learn from."""
    found = folder.find(path)
    family = folder.read_info(found)["family"]
    if family != start.family:
        raise ValueError(f"{path} is of the family {family}: it can't teach {start.variant}")
    if not all(hasattr(stage.weights, "teacher") for stage in chosen.stages.values()):
        raise ValueError(f"{start.variant} learns from labels only: its loss has no part for a teacher")
    return load_modules(found)
