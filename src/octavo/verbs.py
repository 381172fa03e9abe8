"""The verbs as Python functions over model folders; the command line adds only options and printing.

    ls  data  recipe  import_  train  quantize  sensitivity  inspect  export  check  explain  predict  evaluate  bench

What differs between families is asked of the family's own modules (octavo.models). Nothing heavy is imported
before a verb needs it. Long verbs take `progress(done, total)`. Wrong arguments raise ValueError, a name of
nothing its subclass UnknownName.
"""

from __future__ import annotations

import csv
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import folder
from octavo.folder import UnknownName, did_you_mean
from octavo.models import load_modules, part, save_module, scheme_for, train_stages, variants
from octavo.recipe import to_dict

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from octavo.data.check import Report
    from octavo.export import Parity
    from octavo.lower.check import Finding
    from octavo.outputs import Detections
    from octavo.quantize.inspect import Tensors
    from octavo.quantize.sensitivity import Table
    from octavo.recipe import Network as NetworkShape
    from octavo.run.bench import Row

PathLike = str | Path
Progress = Callable[[int, int], None]  # done, of how many
NetworkProgress = Callable[[str, int], None]  # network, done
StepProgress = Callable[[str, int, int], None]  # network, done, of how many
TrainingProgress = Callable[[str, int, int, dict[str, float]], None]  # network, step, of how many, losses
Network = Callable[["np.ndarray"], "tuple[np.ndarray, ...]"]
SAMPLES = Path(__file__).parent / "samples"
# Pixels around zero in steps of 1/128: the 8-bit grid itself, so that the first quantizer loses nothing.
PREPROCESSING = {"color": "RGB", "offset": 128.0, "scale": 1 / 128}


# Models -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A model ready to run: call it on an image (path, bytes, (h, w, 3) uint8 RGB array).

        faces = load("mtcnn-relu")("photo.jpg", min_face=12, confidence=.5)

    info is model.json, run maps a network's name to a function of uint8 NCHW pixels, backend names the
    runtime behind it.
    """

    folder: Path
    info: dict[str, Any]
    run: Mapping[str, Any]  # see octavo.run.Network
    backend: str
    max_pixels: int | None = None  # larger images are refused; None: images.MAX_PIXELS

    @property
    def name(self) -> str:
        return self.folder.name

    def settings(self, **overrides: Any) -> Any:
        """The stored settings with these in their place (None: not given); unknown names are a ValueError."""
        return part(self.info["family"], "predict").Settings.of(self.info["settings"], **overrides)

    def __call__(self, image: str | Path | bytes | np.ndarray, **settings: Any) -> Detections:
        from octavo.images import MAX_PIXELS, read

        pixels = read(image, max_pixels=self.max_pixels or MAX_PIXELS)
        found = part(self.info["family"], "predict").predict(pixels, self.run, self.settings(**settings))
        return replace(found, image=pixels)

    def __repr__(self) -> str:
        kind = f"{self.info['precision']}, {self.backend}"
        return f"Model({self.name!r}: {self.info['variant']}, {kind}, {', '.join(self.info['networks'])})"


def load(name_or_path: PathLike, backend: str = "auto", threads: int = 1) -> Model:
    """An embedded model by name, or a model folder, opened in a runtime.

    backend "auto" takes OpenVINO where it is installed, else ONNX Runtime; torch for a folder that has only
    state dicts. Raises FolderError (a ValueError) for what is no model, UnknownName for an unknown backend.
    """
    from octavo import run

    if backend not in ("auto", *run.RUNTIMES):
        known = ", ".join(("auto", *run.RUNTIMES))
        near = did_you_mean(backend, ("auto", *run.RUNTIMES))
        raise UnknownName(f"no backend {backend!r}.{near} There are: {known}.")
    path = folder.find(name_or_path)
    info = folder.read_info(path)
    part(info["family"], "predict")  # an unknown family is said before anything is opened
    backend = run.choose(path, backend)
    modules = load_modules(path) if backend == "torch" else None
    return Model(path, info, run.open(path, backend, threads, modules), backend)


def ls(paths: Iterable[PathLike] = ()) -> list[dict[str, Any]]:
    """Embedded models, then model folders at or below the paths; one dict a model, `error` where broken."""
    found = [(name, folder.EMBEDDED / name) for name in folder.names()]
    for path in paths:
        if not Path(path).is_dir():
            raise folder.FolderError(f"{path} is no folder.")
        found += [(str(p.parent), p.parent) for p in sorted(Path(path).rglob("model.json"))]
    return [row(name, path) for name, path in found]


def row(name: str, path: Path) -> dict[str, Any]:
    """model.json of a folder with its name, path and bytes per kind of file."""
    try:
        info = folder.read_info(path)
    except folder.FolderError as error:
        return {"name": name, "error": str(error)}
    kinds = [s for s in (".onnx", ".pt") if all((path / f"{n}{s}").is_file() for n in info["networks"])]
    sizes = {suffix: folder.size(path, suffix) for suffix in kinds}
    return {"name": name, "path": str(path), "bytes": sizes, **info}


# From data to a model folder ----------------------------------------------------------------------------


def family_of(variant: str) -> str:
    """The family a variant belongs to; UnknownName with the nearest one where there is none."""
    known = variants()
    if variant not in known:
        near = did_you_mean(variant, known)
        raise UnknownName(f"no variant {variant!r}.{near} There are: {', '.join(known)}.")
    return known[variant]


def data(
    root: PathLike,
    split: str | None = None,
    sheet: PathLike | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a data set in WIDER FACE layout; `sheet` is where to write a picture of samples."""
    from octavo.data.check import check

    return check(root, split, sheet, progress)


def recipe(variant: str, changes: Iterable[str] = ()) -> Any:
    """The recipe of a variant, with "path.to.number=value" changes made."""
    from octavo.recipe import change

    chosen = part(family_of(variant), "recipe").RECIPES[variant]
    for assignment in changes:
        chosen = change(chosen, assignment)
    return chosen


def import_(variant: str, source: PathLike, out: PathLike | None = None) -> Path:
    """Published float weights -> a model folder with state dicts, by default runs/VARIANT. Returns it."""
    _need_torch()
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
        folder.write_info(stage, _float_info(variant, list(modules), recipe(variant), str(source)))
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
    torch = _need_torch()
    from octavo.train import Hooks

    family, chosen = family_of(variant), recipe(variant, changes)
    if stage not in ("all", *chosen.stages):
        near = did_you_mean(stage, chosen.stages)
        there = ", ".join(("all", *chosen.stages))
        raise UnknownName(f"{variant} has no stage {stage!r}.{near} There are: {there}.")
    stages = list(chosen.stages) if stage == "all" else [stage]
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
        lambda name, module: _in_runtime(module, networks[name], PREPROCESSING),
        lambda name: Hooks(partial(progress, name) if progress else None),
        lambda name: (lambda done, total: progress(name, done, total, {})) if progress else None,
        **fabric,
    )
    if not all((Path(out) / f"{name}.pt").is_file() for name in modules):
        return None
    folder.write_info(out, _float_info(variant, list(modules), chosen, str(data)))
    return Path(out)


def _float_info(variant: str, networks: list[str], recipe: Any, data: str) -> dict[str, Any]:
    family = family_of(variant)
    return {
        "format": folder.FORMAT,
        "family": family,
        "variant": variant,
        "precision": "float",
        "networks": networks,
        "preprocessing": PREPROCESSING,
        "settings": part(family, "predict").Settings.of(recipe.settings).to_dict(),
        "data": data,
        "metrics": {},
    } | folder.provenance()


def _in_runtime(module: nn.Module, like: NetworkShape, preprocessing: Mapping[str, Any]) -> Network:
    """A float module as a function of pixels, through a temporary export at the first call.

    Mining and calibration show a network images of every size: ONNX Runtime runs P-Net over such a pyramid in
    a quarter to a tenth of eager torch's time, which compiles its kernels anew for every shape.
    """
    import torch

    from octavo.export import export as write
    from octavo.run.on_onnxruntime import open_network

    lock = threading.Lock()  # samples are made in several threads

    @cache
    def opened() -> Network:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "network.onnx"
            write(
                module,
                path,
                torch.zeros(like.shape),
                dynamic=like.free,
                outputs=like.outputs,
                preprocessing=preprocessing,
            )
            return open_network(path, 1)

    def call(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        with lock:
            network = opened()
        return network(pixels)

    return call


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
    torch = _need_torch()
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
        name: _in_runtime(module, networks[name], info["preprocessing"]) for name, module in modules.items()
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


@dataclass(frozen=True)
class Lowered:
    """A network's form for one runtime: what was done to it, and how far it is from torch in ONNX Runtime."""

    done: tuple[str, ...]
    parity: Parity


def export(
    model: PathLike,
    out: PathLike | None = None,
    *,
    target: str | None = None,
    images: Iterable[PathLike] = (),
    lower: bool = True,
) -> tuple[Path, dict[str, Parity], dict[str, Lowered]]:
    """NAME.pt -> NAME.onnx, in the same folder or in `out`, and how far each file is from its torch network.

    A quantized model has its target already; another one is an error. For target cpu, unless `lower` is
    False, NAME.RUNTIME.onnx is written too where rewrites make a runtime faster (octavo.lower). Compared,
    with ONNX Runtime, is what the networks see of `images`, by default the sample photographs. Returns the
    folder, {network: parity} and {"NETWORK.RUNTIME": what was done to it}.
    """
    torch = _need_torch()
    from octavo.export import export as write
    from octavo.export import parity
    from octavo.lower import REWRITES
    from octavo.lower import write as write_lowered

    path = folder.find(model)
    info = folder.read_info(path)
    if target and info["precision"] == "float":
        raise ValueError(f"{path} is float and has no target: octavo quantize {path} --target {target}")
    if target and target != info["target"]:
        raise ValueError(
            f"{path} was quantized for {info['target']}, not {target}: quantize again for {target}."
        )
    modules = load_modules(path)
    networks = part(info["family"], "recipe").NETWORKS
    seen = _seen(load(path, "torch"), [Path(p) for i in images for p in _images(i)] or samples())
    out_path = Path(out or path)
    parities, lowered = {}, {}
    runtimes = REWRITES if lower and info["target"] == "cpu" else ()
    with folder.staged(out_path) as stage:
        for name, module in modules.items():
            like = networks[name]
            write(
                module,
                stage / f"{name}.onnx",
                torch.zeros(like.shape),
                target=info["target"],
                dynamic=like.free,
                outputs=like.outputs,
                preprocessing=info["preprocessing"],
            )
            noise = torch.randint(
                0, 256, like.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
            )
            batches = [torch.from_numpy(pixels) for pixels in seen[name]]
            check = partial(parity, module, batches=batches or [noise], preprocessing=info["preprocessing"])
            parities[name] = check(stage / f"{name}.onnx")
            for runtime in runtimes:
                if done := write_lowered(stage / f"{name}.onnx", runtime, like.multiple):
                    form = f"{name}.{runtime}"
                    lowered[form] = Lowered(tuple(done), check(stage / f"{form}.onnx"))
        folder.write_info(stage, info | folder.provenance())
    for name in modules:
        for path in folder.forms(out_path / f"{name}.onnx"):
            if path.stem not in lowered:  # of an earlier export
                path.unlink()
    return out_path, parities, lowered


def targets() -> list[str]:
    from octavo.quantize.scheme import TARGETS

    return list(TARGETS)


def calibrators() -> list[str]:
    from octavo.quantize.observe import DEFAULTS

    return list(DEFAULTS)


def samples() -> list[Path]:
    """The embedded sample photographs."""
    from octavo.images import find

    return find([SAMPLES])


def _seen(model: Model, paths: list[Path], batches: int = 32) -> dict[str, list[np.ndarray]]:
    """{network: the first `batches` arrays it is given} while a model looks at images."""
    seen: dict[str, list[np.ndarray]] = {name: [] for name in model.run}

    def watched(name: str, network: Network) -> Network:
        def call(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
            if len(seen[name]) < batches:
                seen[name].append(pixels)
            return network(pixels)

        return call

    watching = replace(model, run={name: watched(name, network) for name, network in model.run.items()})
    for path in paths:
        watching(path)
    return seen


def _need_torch() -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        raise ImportError("this needs torch, which is not installed: pip install 'octavo[train]'") from None
    return torch


# Which layers suffer ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sensitivity:
    """Tables of octavo.quantize.sensitivity, one per network, and the mixed precision found, if one was wanted."""

    tables: dict[str, Table]
    by: str
    images: int
    kept: tuple[str, ...] | None = None  # "NETWORK/LAYER" to keep in float
    score: dict[str, float] | None = None  # with these in float: SQNR per network, or {"ap": AP}
    out: Path | None = None
    charts: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        tables = {name: table.to_dict() for name, table in self.tables.items()}
        mixed = {"kept": self.kept, "score": self.score, "out": self.out and str(self.out)}
        return {"by": self.by, "images": self.images, "tables": tables, "mixed": mixed}


def sensitivity(
    model: PathLike,
    data: PathLike,
    *,
    by: str = "sqnr",
    images: int | None = None,
    budget: float | None = None,
    out: PathLike | None = None,
    chart: PathLike | None = None,
    progress: StepProgress | None = None,
) -> Sensitivity:
    """What each layer of an INT8 folder loses by its integers; and, with a budget, which to keep in float.

    by "sqnr": the networks' outputs against their float ones on `images` (16) training images, not those of the
    calibration's seed; no labels. by "ap": average precision on `images` (100) of the training images that
    training kept out; one network is quantized while the others are in float.
    budget: by "sqnr" the lowest SQNR allowed for any output, dB; by "ap" the largest loss of AP allowed.
    out: the folder for the mixed model, state dicts and model.json; to be exported like any other.
    chart: a PNG file for the bars; with several networks STEM_NETWORK.png for each.
    """
    from octavo.evaluate import charts

    if chart:
        charts.check(chart)
    if by not in ("sqnr", "ap"):
        raise UnknownName(f"no yardstick {by!r}.{did_you_mean(by, ('sqnr', 'ap'))} There are: sqnr, ap.")
    if out and budget is None:
        raise ValueError("a mixed model needs a budget: how much may be lost?")
    if by == "ap" and budget is not None and not 0 <= budget <= 1:
        raise ValueError(f"the budget is the AP that may be lost, from 0 to 1, not {budget:g}")
    path, info, modules = _int8(model)
    count = images or (16 if by == "sqnr" else 100)
    measure = _by_sqnr if by == "sqnr" else _by_ap
    tables, kept, score = measure(path, info, modules, Path(data), count, budget, progress)
    written = _write_mixed(info, modules, kept, Path(out)) if out and kept is not None else None
    drawn: list[Path] = []
    for name, table in tables.items() if chart else ():
        file = Path(chart or "")
        drawn.append(file.with_stem(f"{file.stem}_{name}") if len(tables) > 1 else file)
        charts.sensitivity(table, drawn[-1], name)
    return Sensitivity(tables, by, count, kept, score, written, tuple(drawn))


Measured = tuple[dict[str, "Table"], tuple[str, ...] | None, dict[str, float] | None]


def _int8(model: PathLike) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A quantized folder, its model.json and its networks in torch."""
    _need_torch()
    path = folder.find(model)
    info = folder.read_info(path)
    if info["precision"] == "float":
        raise ValueError(
            f"{path} is float: nothing in it is rounded yet. Give the folder that octavo quantize {path} makes."
        )
    return path, info, load_modules(path)


class _Batches:
    """What a network is given, kept as the pixels they are: a quarter of the memory. Read as often as wanted."""

    def __init__(self, arrays: Iterable[np.ndarray], preprocessing: Mapping[str, Any]) -> None:
        self.arrays = list(arrays)
        self.offset, self.scale = preprocessing["offset"], preprocessing["scale"]

    def __len__(self) -> int:
        return len(self.arrays)

    def __iter__(self) -> Iterator[Any]:
        import torch

        for pixels in self.arrays:
            yield (torch.from_numpy(pixels).float() - self.offset) * self.scale


def _batches(path: Path, info: Mapping[str, Any], data: Path, images: int) -> dict[str, _Batches]:
    """What the networks of a folder meet on training images other than those of the calibration."""
    opened = load(path)
    batches = part(info["family"], "data").calibration_batches
    return {
        name: _Batches(
            batches(name, data, opened.run, opened.settings(), images, seed=1), info["preprocessing"]
        )
        for name in info["networks"]
    }


def _batch_progress(progress: StepProgress | None, name: str, total: int) -> Callable[[int], None] | None:
    return (lambda done: progress(name, done, total)) if progress else None


def _by_sqnr(
    path: Path,
    info: Mapping[str, Any],
    modules: Mapping[str, Any],
    data: Path,
    images: int,
    budget: float | None,
    progress: StepProgress | None,
) -> Measured:
    from octavo.quantize.sensitivity import by_sqnr, keep_float, sqnr_score

    networks = part(info["family"], "recipe").NETWORKS
    tables: dict[str, Table] = {}
    kept: list[str] = []
    score: dict[str, float] = {}
    for name, batches in _batches(path, info, data, images).items():
        told = _batch_progress(progress, name, len(batches))
        tables[name] = by_sqnr(modules[name], batches, outputs=networks[name].outputs, progress=told)
        if budget is not None:
            ranking = [row.layer for row in tables[name].rows]
            searching = partial(progress, f"{name}, mixed precision") if progress else None
            found = keep_float(ranking, sqnr_score(modules[name], batches), budget, searching)
            kept += [f"{name}/{layer}" for layer in found.layers]
            score[name] = found.score
    return tables, (tuple(kept) if budget is not None else None), (score if budget is not None else None)


def _by_ap(
    path: Path,
    info: Mapping[str, Any],
    modules: Mapping[str, Any],
    data: Path,
    images: int,
    budget: float | None,
    progress: StepProgress | None,
) -> Measured:
    from octavo.quantize import set_mode
    from octavo.quantize.sensitivity import by_metric, keep_float, set_float

    measured = _held_out_ap(info, modules, data, images)
    for module in modules.values():
        set_mode(module, "off")
    tables = {
        name: by_metric(module, measured, "AP", partial(progress, name) if progress else None)
        for name, module in modules.items()
    }
    if budget is None:
        return tables, None, None
    rows = [(row.worst, name, row.layer) for name, table in tables.items() for row in table.rows]
    ranking = [(name, layer) for _, name, layer in sorted(rows, key=lambda row: row[0])]

    def score(in_float: tuple[tuple[str, str], ...]) -> float:
        for name, module in modules.items():
            set_float(module, [layer for network, layer in in_float if network == name])
        return measured()

    target = next(iter(tables.values())).reference[0] - budget
    found = keep_float(ranking, score, target, partial(progress, "mixed precision") if progress else None)
    return tables, tuple(f"{name}/{layer}" for name, layer in found.layers), {"ap": found.score}


def _held_out_ap(
    info: Mapping[str, Any], modules: Mapping[str, Any], data: Path, images: int
) -> Callable[[], float]:
    """AP of the modules as they stand at each call, on images that no training has seen, and no val image."""
    import numpy as np

    from octavo.data.widerface import read
    from octavo.evaluate.events import by_event
    from octavo.images import read as read_image
    from octavo.run.on_torch import open_module

    stages = recipe(info["variant"]).stages.values()
    share = min(stage.sampling.held_out for stage in stages)
    is_held_out = part(info["family"], "data").is_held_out
    held_out = [entry for entry in read(data, "train") if is_held_out(entry, share)]
    order = np.random.default_rng(0).permutation(len(held_out))[:images]
    entries = [held_out[i] for i in sorted(order.tolist())]
    if not any((~entry.invalid).any() for entry in entries):
        raise ValueError(
            f"{len(entries)} of the training images in {data} are kept out of training, and none has a valid "
            "face: AP needs more images"
        )
    predict = part(info["family"], "predict")
    # Faces that are cut off can't be found; .02 as in the evaluation of the families.
    settings = predict.Settings.of(info["settings"], confidence=0.02)
    run = {
        name: _remembering(open_module(module, info["preprocessing"], 1), module)
        for name, module in modules.items()
    }

    def measured() -> float:
        found = {
            entry.name: replace(predict.predict(read_image(entry.path), run, settings), image=None)
            for entry in entries
        }
        return by_event(entries, found)["all"]

    return measured


def _remembering(network: Network, module: Any, limit: int = 2**29) -> Network:
    """The network, which keeps its answers while all of it is in float, up to `limit` bytes.

    While one network's layers are switched, the others see the same pixels again and again.
    """
    from octavo.quantize import grids

    kept: dict[tuple[Any, bytes], tuple[np.ndarray, ...]] = {}
    size = 0

    def call(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        nonlocal size
        if any(grid.active for grid in grids(module).values()):
            return network(pixels)
        key = pixels.shape, hashlib.sha256(pixels.data).digest()
        if key not in kept:
            found = network(pixels)
            size += sum(array.nbytes for array in found)
            if size > limit:
                return found
            kept[key] = found
        return kept[key]

    return call


def _write_mixed(info: dict[str, Any], modules: Mapping[str, Any], kept: Iterable[str], out: Path) -> Path:
    """The same model with these layers ("NETWORK/LAYER") in float; weights and ranges stay what they were."""
    from octavo.quantize import Scheme, prepare
    from octavo.quantize.sensitivity import mixed_scheme, transfer

    scheme = mixed_scheme(Scheme.from_dict(info["scheme"]), kept)
    with folder.staged(out) as stage:
        for name, fresh in part(info["family"], "net").build(info["variant"]).items():
            mixed = prepare(fresh, scheme_for(scheme, name))
            transfer(modules[name], mixed)
            save_module(mixed, stage / f"{name}.pt")
        folder.write_info(stage, info | {"scheme": scheme.to_dict(), "metrics": {}} | folder.provenance())
    return out


def inspect(
    model: PathLike,
    data: PathLike,
    out: PathLike | None = None,
    *,
    images: int = 16,
    pictures: bool = True,
    progress: StepProgress | None = None,
) -> dict[str, list[Tensors]]:
    """What lies in the layers of an INT8 folder, in float and in integers, on `images` training images.

    out gets tensors.csv, histograms.csv and, per network, NETWORK_histograms.png and NETWORK_sqnr.png.
    """
    from octavo.evaluate import charts

    if out and pictures:
        charts.check(Path(out) / "any.png")
    path, info, modules = _int8(model)
    from octavo.quantize.inspect import inspect as look_inside

    found = {}
    for name, batches in _batches(path, info, Path(data), images).items():
        told = _batch_progress(progress, name, len(batches))
        found[name] = look_inside(modules[name], batches, told)
    if out:
        _write_csv(
            Path(out) / "tensors.csv",
            [{"network": name} | tensor.to_row() for name, tensors in found.items() for tensor in tensors],
        )
        _write_csv(
            Path(out) / "histograms.csv",
            [
                {"network": name, "layer": t.layer, "kind": t.kind}
                | {"from": low, "to": high, "float": a, "quantized": b}
                for name, tensors in found.items()
                for t in tensors
                for low, high, a, b in zip(
                    t.edges, t.edges[1:], t.float_counts, t.quantized_counts, strict=False
                )
            ],
        )
    if out and pictures:
        for name, tensors in found.items():
            charts.distributions(tensors, Path(out) / f"{name}_histograms.png", name)
            charts.signal_to_noise(tensors, Path(out) / f"{name}_sqnr.png", name)
    return found


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with folder.atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# Rules and arithmetic -----------------------------------------------------------------------------------


def check_targets() -> tuple[str, ...]:
    from octavo.lower.check import TARGETS

    return TARGETS


def check(model: PathLike, target: str | None = None) -> dict[str, list[Finding]]:
    """The rules of a target that networks break, by file: of a model, of a folder's .onnx files, or of one file.

    target: None stands for the one a model was quantized for. Where export wrote a form for the target's
    runtime, that is what is read, because that is what runs.
    """
    from octavo.lower.check import TARGETS
    from octavo.lower.check import check as find
    from octavo.run import file_for

    path = Path(model)
    if path.is_file() and path.suffix == ".onnx":
        files = [path]
    elif path.is_dir() and not (path / "model.json").is_file() and any(path.glob("*.onnx")):
        files = sorted(path.glob("*.onnx"))
    else:
        path = folder.find(model)
        target = target or folder.read_info(path)["target"]
        runtime = {"cpu": "onnxruntime", "openvino": "openvino"}.get(str(target), "")
        files = [file_for(path, name, runtime) for name in folder.files(path, ".onnx")]
    if target is None:
        raise ValueError(
            f"{model} does not say what it was quantized for. Give --target: {', '.join(TARGETS)}."
        )
    return {file.name: find(file, target) for file in files}


def explain(what: str, values: list[float], bits: int = 8, format: str | None = None) -> list[dict[str, Any]]:
    """Walks through the quantization of "tensor" (one for all values) or "fixedpoint" (one each); see `text`.

    format: "n.m", the integer and fraction bits of fixed point.
    """
    _need_torch()  # the package that holds the arithmetic imports it; the arithmetic itself is NumPy's
    from octavo.quantize.fixedpoint import explain_fixedpoint, explain_tensor

    if what == "tensor":
        return [explain_tensor(values, bits)]
    n, point, m = str(format).partition(".")
    if not (n.isdecimal() and point and m.isdecimal()):
        raise ValueError(f"{format!r} is not N.M, integer and fraction bits, such as 10.5.")
    return [explain_fixedpoint(value, int(n), int(m)) for value in values]


# Predict and evaluate -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What came of one image: `found`, or the `error` that it could not be looked at for."""

    image: str
    found: Detections | None = None
    size: tuple[int, int] | None = None  # width, height, pixels
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The line of `octavo predict --jsonl`."""
        if self.found is None or self.size is None:
            return {"image": self.image, "error": self.error}
        width, height = self.size
        return {"image": self.image, "width": width, "height": height, **self.found.to_dict()}


def predict(
    model: Model | PathLike,
    paths: Iterable[PathLike],
    *,
    backend: str = "auto",
    threads: int = 1,
    max_pixels: int | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Iterator[Result]:
    """A Result for every image of the paths (files; folders are searched), in order, as they are done.

    A file that can't be read, or has more than max_pixels, becomes a Result with an error and the others go
    on. Wrong settings or a wrong model raise at once, before the first image.
    """
    opened = model if isinstance(model, Model) else load(model, backend, threads)
    if max_pixels:
        opened = replace(opened, max_pixels=max_pixels)
    opened.settings(**settings)
    return _predict(opened, [str(p) for path in paths for p in _images(path)], settings, progress)


def _images(path: PathLike) -> list[PathLike]:
    from octavo.images import find

    if not Path(path).exists():
        return [path]  # reading it says what is wrong
    return list(find([path])) or [path]


def _predict(
    model: Model, paths: list[str], settings: Mapping[str, Any], progress: Progress | None
) -> Iterator[Result]:
    for done, path in enumerate(paths, 1):
        if Path(path).is_dir():
            yield Result(path, error=f"{path}: no images in this folder")
        else:
            yield _look(model, path, settings)
        if progress:
            progress(done, len(paths))


def _look(model: Model, path: str, settings: Mapping[str, Any]) -> Result:
    try:
        found = model(path, **settings)
    except (ValueError, OSError, MemoryError) as error:
        return Result(path, error=str(error) or type(error).__name__)
    except Exception as error:  # a runtime's own complaint about one image must not stop the others
        if os.environ.get("OCTAVO_DEBUG"):
            raise
        return Result(path, error=f"{type(error).__name__}: {error}")
    assert found.image is not None
    return Result(path, found, (found.image.shape[1], found.image.shape[0]))


def saver(out: PathLike, paths: Iterable[PathLike]) -> Callable[[Result], Result]:
    """A function that draws a Result of these paths into the folder `out` and hands it on.

    Below `out` a picture keeps its path from the folder that all given paths share, so that names never
    collide. A picture that can't be written, or would replace its source, becomes a Result with an error.
    """
    from octavo.images import SUFFIXES

    given = [os.path.abspath(path) for path in paths]
    root = os.path.commonpath([path if os.path.isdir(path) else os.path.dirname(path) for path in given])

    def save(result: Result) -> Result:
        if result.found is None:
            return result
        source = os.path.abspath(result.image)
        target = Path(out) / os.path.relpath(source, root)
        if target.suffix.lower() not in SUFFIXES:
            target = target.with_name(target.name + ".png")
        if target.exists() and target.samefile(source):
            error = f"{source}: saving into {out} would replace it, give another folder"
            return replace(result, found=None, error=error)
        try:
            result.found.save(target)
        except (ValueError, OSError) as error:
            return replace(result, found=None, error=f"{target}: {error}")
        return result

    return save


def evaluate(
    model: Model | PathLike,
    data: PathLike,
    *,
    split: str = "val",
    ground_truth: PathLike | None = None,
    save_predictions: PathLike | None = None,
    backend: str = "auto",
    threads: int = 1,
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Average precision and landmark error on a data set in WIDER FACE layout, with all they depend on.

    "ap" {event: AP, ..., "all"}, "ap_by_size", "landmarks" {event: nme, found, faces}; with `ground_truth`,
    the benchmark's folder of .mat files, also "easy", "medium", "hard". What a threshold cuts off can't be
    found: with neither thresholds nor a confidence given, they are the family's MEASURING. Images that can't be read
    count as if nothing was found, and are listed in "errors".
    """
    from octavo.data.widerface import read
    from octavo.evaluate import events, landmarks, widerface
    from octavo.outputs import Detections, write_wider

    opened = model if isinstance(model, Model) else load(model, backend, threads)
    if settings.get("thresholds") is None and settings.get("confidence") is None:
        settings |= part(opened.info["family"], "predict").MEASURING
    chosen = opened.settings(**settings)
    entries = read(data, split)
    found: dict[str, Detections] = {}
    errors: dict[str, str] = {}
    start = time.perf_counter()
    for done, entry in enumerate(entries, 1):
        result = _look(opened, str(entry.path), settings)
        if result.error:
            errors[entry.name] = result.error
        found[entry.name] = replace(result.found, image=None) if result.found else Detections.empty()
        if save_predictions:
            file = (Path(save_predictions) / entry.name).with_suffix(".txt")
            write_wider(file, entry.name, found[entry.name])
        if progress:
            progress(done, len(entries))
    seconds = time.perf_counter() - start
    measured: dict[str, Any] = {
        "ap": events.by_event(entries, found),
        "ap_by_size": events.by_size(entries, found),
    }
    if any(len(d) and d.keypoints is not None for d in found.values()):
        measured["landmarks"] = {k: asdict(v) for k, v in landmarks.measure(entries, found).items()}
    if ground_truth:
        measured |= widerface.evaluate(found, ground_truth)
    return {
        "model": opened.name,
        "variant": opened.info["variant"],
        "precision": opened.info["precision"],
        "backend": opened.backend,
        "data": str(data),
        "split": split,
        "images": len(entries),
        "faces": int(sum((~entry.invalid).sum() for entry in entries)),
        "settings": chosen.to_dict(),
        **measured,
        "seconds": seconds,
        "errors": errors,
    } | folder.provenance()


def judge(predictions: PathLike, ground_truth: PathLike) -> dict[str, float]:
    """AP "easy", "medium", "hard" of a folder EVENT/NAME.txt of predictions in WIDER FACE's text format."""
    from octavo.evaluate import widerface

    return widerface.evaluate(Path(predictions), Path(ground_truth))


def bench(
    models: Iterable[PathLike],
    *,
    size: tuple[int, int] | None = None,
    image: PathLike | None = None,
    backends: Iterable[str] = ("auto",),
    threads: int = 1,
    repeats: int = 50,
    memory: bool = True,
    progress: Progress | None = None,
    **settings: Any,
) -> list[Row]:
    """Time, memory and integers of models on one image, interleaved; a row for each model in each backend.

    size (width, height) in pixels: the image is scaled until it covers it and cut in the middle. Without an
    image it is the sample with eleven faces, at 640x480 if no size is given.
    """
    from octavo.images import read
    from octavo.run.bench import Candidate
    from octavo.run.bench import bench as measure

    pixels = read(image or SAMPLES / "group.jpg")
    if size or not image:
        pixels = _cover(pixels, *(size or (640, 480)))
    opened = [(str(name), load(name, backend, threads)) for name in models for backend in backends]

    def candidate(name: str, model: Model) -> Candidate:
        chosen, family = model.settings(**settings), part(model.info["family"], "predict")
        look = lambda picture, run: family.predict(picture, run, chosen)  # noqa: E731
        return Candidate(name, model.backend, look, model.run, model.folder, settings)

    warmup = 10
    rounds = iter(range(1, repeats + warmup + 1))
    return measure(
        [candidate(name, model) for name, model in opened],
        pixels,
        repeats=repeats,
        warmup=warmup,
        threads=threads,
        memory=memory,
        on_round=(lambda: progress(next(rounds), repeats + warmup)) if progress else None,
    )


def _cover(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """(height, width, 3): the middle of the image, scaled so that it just covers the size."""
    import cv2
    import numpy as np

    scale = max(width / image.shape[1], height / image.shape[0])
    across, down = max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale))
    image = cv2.resize(image, (across, down), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    x, y = (across - width) // 2, (down - height) // 2
    return np.ascontiguousarray(image[y : y + height, x : x + width])
