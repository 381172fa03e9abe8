"""Which layers of an INT8 model suffer, and which of them to keep in float."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import folder
from octavo.folder import UnknownName, did_you_mean
from octavo.models import networks as networks_of
from octavo.models import part, save_module, scheme_for, task
from octavo.verbs.held_out import Judge, accuracy, judge
from octavo.verbs.int8_model import batch_progress, batches_of, open_int8
from octavo.verbs.signatures import PathLike, StepProgress

if TYPE_CHECKING:
    import numpy as np

    from octavo.evaluate import Entry
    from octavo.quantize.sensitivity import Blocks, Table


@dataclass(frozen=True)
class Sensitivity:
    """Tables of octavo.quantize.sensitivity, one per network, and the mixed precision found, if one was wanted."""

    tables: dict[str, Table]
    by: str
    images: int
    kept: tuple[str, ...] | None = None  # "NETWORK/LAYER" to keep in float
    score: dict[str, float] | None = None  # with these in float: SQNR per network, or {by: accuracy}
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
    depth: int | None = None,
    split: str = "train",
    images: int | None = None,
    budget: float | None = None,
    out: PathLike | None = None,
    chart: PathLike | None = None,
    progress: StepProgress | None = None,
) -> Sensitivity:
    """What each layer of an INT8 folder loses by its integers; and, with a budget, which to keep in float.

    by "sqnr": the networks' outputs against their float ones on `images` (16) training images, not those of the
    calibration's seed; no labels. by the yardstick of the model's task, such as "ap": the headline figure on `images`
    (100) of the training images that training kept out, or of split "val" for a table to report; one network is
    quantized while the others are in float. depth: layers whose names agree in so many parts are switched together.
    budget: by "sqnr" the lowest SQNR allowed for any output, dB; else the largest loss of the figure allowed.
    out: the folder for the mixed model, state dicts and model.json; to be exported like any other.
    chart: a PNG file for the bars; with several networks STEM_NETWORK.png for each.
    """
    from octavo.evaluate import charts

    if chart:
        charts.check(chart)
    if out and budget is None:
        raise ValueError("a mixed model needs a budget: how much may be lost?")
    path, info, modules = open_int8(model)
    yardstick = task(info["family"]).YARDSTICK
    if by not in (known := ("sqnr", yardstick.lower())):
        raise UnknownName(f"no yardstick {by!r}.{did_you_mean(by, known)} There are: {', '.join(known)}.")
    if by != "sqnr" and budget is not None and not 0 <= budget <= 1:
        raise ValueError(f"the budget is the {yardstick} that may be lost, from 0 to 1, not {budget:g}")
    count = images or (16 if by == "sqnr" else 100)
    if by == "sqnr":
        found = _by_sqnr(path, info, modules, Path(data), count, depth, budget, progress)
    else:
        judged = judge(info, Path(data), count, split)
        found = _by_accuracy(info, modules, judged, depth, budget, progress)
    tables, kept, score = found
    written = _write_mixed(info, modules, kept, Path(out)) if out and kept is not None else None
    drawn: list[Path] = []
    for name, table in tables.items() if chart else ():
        file = Path(chart or "")
        drawn.append(file.with_stem(f"{file.stem}_{name}") if len(tables) > 1 else file)
        charts.sensitivity(table, drawn[-1], name)
    return Sensitivity(tables, by, count, kept, score, written, tuple(drawn))


Measured = tuple[dict[str, "Table"], tuple[str, ...] | None, dict[str, float] | None]


def _by_sqnr(
    path: Path,
    info: Mapping[str, Any],
    modules: Mapping[str, Any],
    data: Path,
    images: int,
    depth: int | None,
    budget: float | None,
    progress: StepProgress | None,
) -> Measured:
    from octavo.quantize.sensitivity import blocks, by_sqnr, keep_float, sqnr_score

    networks = networks_of(info["variant"])
    tables: dict[str, Table] = {}
    kept: list[str] = []
    score: dict[str, float] = {}
    for name, batches in batches_of(path, info, data, images).items():
        told = batch_progress(progress, name, len(batches))
        outputs = networks[name].outputs
        tables[name] = by_sqnr(modules[name], batches, outputs=outputs, depth=depth, progress=told)
        if budget is not None:
            ranking = [row.layer for row in tables[name].rows]
            searching = partial(progress, f"{name}, mixed precision") if progress else None
            parts, score_of = blocks(modules[name], depth), sqnr_score(modules[name], batches)

            def of_layers(
                chosen: tuple[str, ...], parts: Blocks = parts, score: Callable[..., float] = score_of
            ) -> float:
                return score(tuple(layer for block in chosen for layer in parts[block]))

            found = keep_float(ranking, of_layers, budget, searching)
            kept += [f"{name}/{layer}" for block in found.layers for layer in parts[block]]
            score[name] = found.score
    return tables, (tuple(kept) if budget is not None else None), (score if budget is not None else None)


def _by_accuracy(
    info: Mapping[str, Any],
    modules: Mapping[str, Any],
    judge: Judge,
    depth: int | None,
    budget: float | None,
    progress: StepProgress | None,
) -> Measured:
    from octavo.quantize import grids, set_mode
    from octavo.quantize.sensitivity import blocks, by_metric, keep_float, set_float

    measured, alone = accuracy(judge, modules), len(modules) == 1
    modules = {name: module for name, module in modules.items() if grids(module)}
    for module in modules.values():
        set_mode(module, "off")
    if alone:  # what it sees doesn't depend on what others answered
        tables = _of_one(info, modules, judge, depth, progress)
    else:
        tables = {
            name: by_metric(
                *(module, measured, judge.yardstick),
                depth=depth,
                progress=partial(progress, name) if progress else None,
            )
            for name, module in modules.items()
        }
    if budget is None:
        return tables, None, None
    rows = [(row.worst, name, row.layer) for name, table in tables.items() for row in table.rows]
    ranking = [(name, layer) for _, name, layer in sorted(rows, key=lambda row: row[0])]
    parts = {name: blocks(module, depth) for name, module in modules.items()}

    def members(chosen: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(name, layer) for name, block in chosen for layer in parts[name][block]]

    def score(in_float: tuple[tuple[str, str], ...]) -> float:
        for name, module in modules.items():
            set_float(module, [layer for network, layer in members(in_float) if network == name])
        return measured()

    target = next(iter(tables.values())).reference[0] - budget
    found = keep_float(ranking, score, target, partial(progress, "mixed precision") if progress else None)
    kept = tuple(f"{name}/{layer}" for name, layer in members(found.layers))
    return tables, kept, {judge.yardstick.lower(): found.score}


def _of_one(
    info: Mapping[str, Any],
    modules: Mapping[str, Any],
    judge: Judge,
    depth: int | None,
    progress: StepProgress | None,
) -> dict[str, Table]:
    """The table of a family's only network: image by image, since images are all it sees."""
    import torch

    from octavo.quantize.sensitivity import by_answers

    ((name, module),) = modules.items()
    offset, step = (info["preprocessing"][key] for key in ("offset", "scale"))

    def look(entry: Entry, network: Callable[[Any], Any]) -> Any:
        def asked(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
            normalised = (torch.from_numpy(pixels).float() - offset) * step
            return tuple(output.numpy() for output in network(normalised))

        return judge.look(entry, {name: asked})

    told = partial(progress, name) if progress else None
    looks = [partial(look, entry) for entry in judge.entries]
    return {name: by_answers(module, looks, judge.measure, judge.yardstick, depth=depth, progress=told)}


def _write_mixed(info: dict[str, Any], modules: Mapping[str, Any], kept: Iterable[str], out: Path) -> Path:
    """The same model with these layers ("NETWORK/LAYER") in float; weights and ranges stay what they were."""
    from octavo.quantize import Scheme, prepare
    from octavo.quantize.form import has_grids
    from octavo.quantize.sensitivity import mixed_scheme, transfer

    scheme = mixed_scheme(Scheme.from_dict(info["scheme"]), kept)
    with folder.staged(out) as stage:
        for name, fresh in part(info["family"], "net").build(info["variant"]).items():
            own = scheme_for(scheme, name)
            mixed = prepare(fresh, own) if has_grids(own) else modules[name]
            if mixed is not modules[name]:
                transfer(modules[name], mixed)
            save_module(mixed, stage / f"{name}.pt")
        folder.write_info(stage, folder.continued(info, scheme=scheme.to_dict(), metrics={}))
    return out
