"""Families: one folder each, found by name. What can be done to all of them alike stands here.

A family answers five questions and nothing else knows it:

    net.py      build(variant) -> {"pnet": Module, ...}; import_weights(source); finish(module, stage), resume
    loss.py     loss(outputs, targets, weights) -> {"face": ..., "box": ...}
    data.py     train_set(...), calibration_batches(...)
    predict.py  TASK, Settings, MEASURING, predict(image, run, settings)        (no torch)
    recipe.py   RECIPES: variant -> numbers; NETWORKS, or networks(variant)     (no torch)

One whose networks learn together has joined(modules) -> {"stage": Module} in net.py.
One that can do without its predict.py has in net.py `decoding()`: what an exported graph may end with. One that finds
its settings without running its networks again has also:

    tune.py     AXES, trace(image, run, wanted), replay(trace, settings)        (no torch)
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from octavo import evaluate
from octavo.folder import FolderError, atomic, did_you_mean, read_info

if TYPE_CHECKING:
    from torch import nn

    from octavo.quantize import Scheme
    from octavo.train import Hooks

FOLDER = Path(__file__).parent
AsFunction = Callable[[str, "nn.Module"], Callable[..., Any]]


def families() -> list[str]:
    return sorted(path.parent.name for path in FOLDER.glob("*/net.py"))


def part(family: str, name: str) -> ModuleType:
    """One of a family's files as a module: part("mtcnn", "predict")."""
    path = f"{__name__}.{family}.{name}"
    if path in sys.modules:  # asked for with every image, and looking for the folder took .1 ms
        return sys.modules[path]
    if family not in families():
        raise FolderError(f"there is no family {family!r}{did_you_mean(family, families())}")
    return importlib.import_module(path)


def task(family: str) -> ModuleType:
    """What a family's models are for: octavo.evaluate.faces, for instance."""
    return evaluate.task(part(family, "predict").TASK)


def tasks() -> list[ModuleType]:
    """All that there is a family for."""
    return [evaluate.task(name) for name in sorted({part(family, "predict").TASK for family in families()})]


def variants() -> dict[str, str]:
    """Every variant that can be built, and its family."""
    return {variant: family for family in families() for variant in part(family, "recipe").RECIPES}


def networks(variant: str) -> Mapping[str, Any]:
    """What a variant's networks look like from outside: octavo.recipe.Network, or Arrays, of each."""
    recipe = part(variants()[variant], "recipe")
    return recipe.networks(variant) if hasattr(recipe, "networks") else recipe.NETWORKS


def load_modules(folder: Path) -> dict[str, nn.Module]:
    """A folder's networks as torch modules in evaluation mode, quantized ones as quantized ones.

    Float networks without a state dict, such as the embedded ones, are read back from what was exported of them.
    """
    import torch

    info = read_info(folder)
    modules = part(info["family"], "net").build(info["variant"])
    for name, module in modules.items():
        path = weights_file(folder, name)
        if path.suffix == ".onnx":
            from octavo.export import from_onnx

            from_onnx.read(module, path)
            continue
        if info.get("scheme"):
            from octavo.quantize import Scheme, formed

            scheme = scheme_for(Scheme.from_dict(info["scheme"]), name)
            modules[name] = module = formed(module, scheme)
        try:
            module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # the unpickler and load_state_dict have many ways to refuse
            raise FolderError(f"{path} does not fit {name} of {info['variant']}: {error}") from None
        module.eval()
    return modules


def weights_file(folder: Path, network: str) -> Path:
    """Where a network's trainable weights are: NETWORK.pt, else NETWORK.onnx if that is float; else FolderError."""
    state, written = folder / f"{network}.pt", folder / f"{network}.onnx"
    if state.is_file():
        return state
    precision = read_info(folder)["precision"]
    if precision == "float" and written.is_file():
        return written
    rounded = "" if precision == "float" else f", and of {precision} weights nothing can be trained or made"
    raise FolderError(
        f"{state} is missing: {folder} has no trainable weights, only a runtime's files{rounded}"
    )


def scheme_for(scheme: Scheme, network: str) -> Scheme:
    """A folder's scheme as it is for one of its networks: a pattern "pnet/conv1*" is about layers of pnet alone."""
    own = f"{network}/"

    def fits(pattern: str) -> bool:
        return "/" not in pattern or pattern.startswith(own)

    def of_it(patterns: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(p.removeprefix(own) for p in patterns if fits(p))

    overrides = tuple((p.removeprefix(own), grids) for p, grids in scheme.overrides if fits(p))
    skip, dynamic, stored = of_it(scheme.skip), of_it(scheme.dynamic), of_it(scheme.stored)
    return replace(scheme, skip=skip, dynamic=dynamic, stored=stored, overrides=overrides)


def save_module(module: nn.Module, path: Path) -> None:
    """A module's state dict, on the CPU, written atomically."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        torch.save({key: value.cpu().contiguous() for key, value in module.state_dict().items()}, temporary)


def train_stages(
    family: str,
    modules: Mapping[str, nn.Module],
    recipe: Any,
    data: Path,
    folder: Path,
    stages: list[str],
    as_function: AsFunction,
    hooks: Callable[[str], Hooks],
    making: Callable[[str], Callable[[int, int], None] | None] = lambda name: None,
    origin: str = "",
    teachers: Sequence[Mapping[str, nn.Module]] = (),
    **fabric: Any,
) -> dict[str, nn.Module]:
    """Train the named stages of a family in order, each on what the ones before it let through.

    A stage is a network of that name, unless the family's net.py says otherwise: `joined(modules)` gives the modules
    that are trained, around one network or more. Networks of a stage that is not named are read from folder/NAME.pt.
    folder gets NAME.pt for each network, the samples, checkpoints and logs. as_function turns a named module into a
    function of arrays (octavo.run), hooks and making give the callbacks that watch a stage's training and its sample
    making. origin names trained modules that training starts from, "" fresh ones. Quantized modules are trained as
    recipe.qat says; those whose ranges are found at run time learn in float and are stored as integers again. teachers
    are networks to learn from besides, see octavo.train.
    """
    import torch

    from octavo.quantize.dynamic import float_twin, is_dynamic, renew
    from octavo.train import make_fabric

    joined = getattr(part(family, "net"), "joined", dict)
    started = make_fabric(**fabric)
    run: dict[str, Callable[..., Any]] = {}
    fingerprint = ""
    learning = {name: float_twin(m) if is_dynamic(m) else m for name, m in modules.items()}
    stages_of = joined(learning)
    for name, module in stages_of.items():
        inside = [n for n, m in learning.items() if any(m is child for child in module.modules())]
        if name in stages:
            with started.rank_zero_first():  # the others find the samples made
                samples = part(family, "data").train_set(
                    name, recipe, data, folder / "samples", run, fingerprint, making(name)
                )
            taught_by = [joined(teacher)[name] for teacher in teachers]
            train_stage(
                family, name, module, recipe, samples, folder, hooks(name), origin, started, taught_by
            )
            for n in inside:
                if modules[n] is not learning[n]:
                    renew(modules[n], learning[n])
                if started.is_global_zero:
                    save_module(modules[n], folder / f"{n}.pt")
            started.barrier()
        elif not any(later in stages for later in list(stages_of)[list(stages_of).index(name) :]):
            break
        for n in inside:
            path = folder / f"{n}.pt"
            if name not in stages:
                if not path.is_file():
                    raise FolderError(
                        f"{path} is missing: train {name} first, later networks learn from what it finds"
                    )
                modules[n].load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            modules[n].cpu().eval()
            run[n] = as_function(n, modules[n])
            fingerprint += hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return dict(modules)


def train_stage(
    family: str,
    name: str,
    module: nn.Module,
    recipe: Any,
    samples: Any,
    folder: Path,
    hooks: Hooks,
    origin: str,
    fabric: Any,
    teachers: Sequence[nn.Module] = (),
) -> None:
    """One network of a family through the training loop, between `resume` and `finish` of its family."""
    import torch

    from octavo.quantize import qat
    from octavo.quantize.prepare import grids
    from octavo.quantize.unfold import settle, unsettled
    from octavo.train import fit

    net, stage = part(family, "net"), recipe.stages[name]
    torch.manual_seed(stage.schedule.seed)
    if origin:
        net.resume(module, stage)
        if unsettled(module):  # weights read back from an export
            settle(module, samples.batch((stage.schedule.seed,), stage.schedule.batch_size)[0])
    for teacher in teachers:
        net.resume(teacher, stage)
    loss = partial(part(family, "loss").loss, weights=stage.weights)
    plan = None
    if grids(module):
        plan = qat.begin(module, loss, recipe.qat, stage.schedule.epochs * stage.schedule.steps)
        origin = f"{origin} {recipe.qat}"
    if teachers:
        origin = f"{origin} taught by {' and '.join(map(_fingerprint, teachers))}"
    fit(
        module.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        samples.batch,
        plan.loss if plan else loss,
        stage.schedule,
        folder,
        name,
        fabric,
        replace(hooks, watch=samples.watch),
        plan.companions if plan else (),
        origin,
        teachers,
    )
    if plan:
        plan.end()
    net.finish(module, stage)


def _fingerprint(module: nn.Module) -> str:
    """A short hash of a network's weights."""
    out = hashlib.sha256()
    for name, value in module.state_dict().items():
        out.update(name.encode())
        out.update(value.detach().cpu().contiguous().numpy().tobytes())
    return out.hexdigest()[:12]
