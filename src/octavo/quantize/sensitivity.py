"""Which layers suffer from integers, and how few of them must stay in float?

A layer counts as quantized when its weights and the values it reads are rounded to their grids: what remains of
it when every other layer is in Scheme.skip. So whatever is measured here is a scheme, and can be written as one.

    alone     this layer is quantized, all others compute in float: what it costs by itself
    others    all layers but this one are quantized: what is left to lose when it is kept in float

Both against the float network, by one of two yardsticks:

    by_sqnr     10 log10(sum y^2 / sum (y - y')^2) dB of each output, y in float; needs no labels. Above 40 dB
                nothing is lost, 20 dB is an error of a tenth; errors of independent layers add up as powers.
    by_metric   a number of the caller's, higher is better, such as average precision
    by_answers  the same, made of what the caller sees in each image: for a network that is alone

Layers may stand together as blocks, which are switched as one: `blocks` makes them of the beginnings of names.

`keep_float` then is the greedy search (as in Wu et al. 2020, arXiv 2004.09602, section 5): layers go back to
float, worst first, until a score is reached; then each is tried in integers again.

One layer at a time would cost a full run per layer. Instead a batch passes once in float and once quantized, all
values are kept, and a variant computes only what lies behind the nodes in which it differs. Memory: the values
of two runs of one batch, whatever the number of layers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, fx, nn

from octavo.quantize.fake import FakeQuant
from octavo.quantize.prepare import QuantModel, grid_after, grid_before, grids, layers
from octavo.quantize.scheme import Scheme

Progress = Callable[[int, int], None]  # done, of how many
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Row:
    """One layer, or block of layers. `alone` and `others`: a number per output (SQNR, dB), or the metric alone."""

    layer: str
    kind: str
    parameters: int
    alone: tuple[float, ...]
    others: tuple[float, ...]

    @property
    def worst(self) -> float:
        return min(self.alone)


@dataclass(frozen=True)
class Table:
    """Layers, worst first: by the worst of `alone`, then in the network's order."""

    by: str  # "sqnr", or the metric's name
    outputs: tuple[str, ...]  # what the numbers of a row belong to
    reference: tuple[float, ...]  # of the float network; inf for the SQNR
    quantized: tuple[float, ...]  # of the network with all its layers quantized
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; infinite numbers become None."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return [plain(item) for item in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return plain(asdict(self))


def sqnr(signal: float, noise: float) -> float:
    """Powers, or sums of squares -> dB; inf without noise."""
    if noise <= 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


Blocks = dict[str, tuple[str, ...]]  # names of blocks -> their layers, in the network's order


def blocks(qmodel: nn.Module, depth: int | None = None) -> Blocks:
    """Layers whose names agree in the first `depth` parts: "stage4.inner.0" is in stage4 at 1. None: one each."""
    if depth is not None and depth < 1:
        raise ValueError(f"names of layers agree in the first 1, 2, ... parts, not {depth}")
    found: dict[str, list[str]] = {}
    for name in layers(qmodel):
        found.setdefault(name if depth is None else ".".join(name.split(".")[:depth]), []).append(name)
    return {block: tuple(names) for block, names in found.items()}


# Switching layers ---------------------------------------------------------------------------------


def active_grids(qmodel: QuantModel, in_float: Iterable[str] = ()) -> set[str]:
    """The quantizers that prepare() would place with these layers skipped: names of modules, weights' included.

    Values that share a quantizer (Concat) are rounded while any of them is read by a quantized layer; while a
    model is measured here, each of them has a switch of its own.
    """
    known = layers(qmodel)
    in_float = set(in_float)
    if unknown := in_float - set(known):
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no quantized layer of that name. There are: {', '.join(known)}"
        )
    active = {f"{name}.weight_grid" for name in known if name not in in_float}
    heads = qmodel.meta["scheme"].quantize_outputs
    reach: set[fx.Node] = set()  # values that some quantized layer reads, at once or through others
    for node in reversed(qmodel.graph.nodes):
        role = node.meta["role"]
        if role == "grid" and node in reach:
            if (
                node.meta.get("inside") not in in_float
            ):  # an activation split in two is in float as its layer is
                active.add(str(node.target))
            reach.update(node.all_input_nodes)
        elif role == "layer" and node.target in known and node.target not in in_float:
            reach.add(node.args[0])
            if heads and node.meta["kind"] != "Linear" and node.meta["after"] is not None:
                active.add(node.meta["after"])
        elif node in reach and role in ("activation", "move", "join", "arithmetic"):
            reach.update(node.all_input_nodes)
    return active


def set_float(qmodel: QuantModel, names: Iterable[str] = ()) -> None:
    """Let these layers compute in float and all others on their grids."""
    active = active_grids(qmodel, names)
    for name, grid in grids(qmodel).items():
        grid.mode = "quantize" if name in active else "off"


@contextmanager
def as_it_was(qmodel: nn.Module) -> Iterator[QuantModel]:
    """Check that a model can be measured; afterwards its mode and quantizers are what they were."""
    if not isinstance(qmodel, QuantModel):
        raise ValueError(f"{type(qmodel).__name__} is not a quantized model: prepare and calibrate it first")
    if not layers(qmodel):
        raise ValueError("the model has no quantized layer: its scheme skips them all")
    before = {name: grid.mode for name, grid in grids(qmodel).items()}
    for grid in grids(qmodel).values():
        if not grid.ready:
            raise ValueError(f"{grid.name} has no range yet: calibrate the model, or load a calibrated state")
    training = qmodel.training
    qmodel.eval()
    try:
        with torch.no_grad(), _a_switch_each(qmodel):
            yield qmodel
    finally:
        qmodel.train(training)
        for name, grid in grids(qmodel).items():
            grid.mode = before[name]


@contextmanager
def _a_switch_each(qmodel: QuantModel) -> Iterator[None]:
    """Let values that share a quantizer have copies of it, which share its scale."""
    shared: list[fx.Node] = []
    seen: set[str] = set()
    for node in qmodel.graph.nodes:
        if node.meta["role"] == "grid":
            shared += [node] if node.target in seen else []
            seen.add(str(node.target))
    if not shared:
        yield
        return
    originals = [(node, str(node.target)) for node in shared]
    try:
        for i, (node, name) in enumerate(originals):
            grid: Any = qmodel.get_submodule(name)
            source: Any = node.args[0]
            twin = FakeQuant(grid.grid, source.meta["name"])
            twin.scale, twin.zero_point = grid.scale, grid.zero_point
            node.target = f"{name}_{i}"
            qmodel.add_module(node.target, twin)
        _point_at_grids(qmodel)
        yield
    finally:
        for node, name in originals:
            delattr(qmodel, str(node.target))
            node.target = name
        _point_at_grids(qmodel)


def _point_at_grids(qmodel: QuantModel) -> None:
    """Tell each layer anew which quantizers stand before and behind it."""
    for node in qmodel.graph.nodes:
        if node.meta["role"] == "layer" and str(node.target) in layers(qmodel):
            found = grid_before(node.args[0]), grid_after(node)
            node.meta.update(before=found[0], after=found[1])
            for argument, grid in zip(node.args[1:], found, strict=True):
                if grid is not None:
                    argument.target = grid
    qmodel.recompile()


# Running only what changed ------------------------------------------------------------------------


class _Runner(fx.Interpreter):
    """Runs a graph node by node and keeps all values; never writes into one that was kept."""

    def run_node(self, n: fx.Node) -> Any:
        if not _writes_in_place(n, self.module):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        args = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)
        return getattr(self, n.op)(n.target, args, kwargs)


def _writes_in_place(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    name = getattr(node.target, "__name__", str(node.target))
    in_place = name.endswith("_") and not name.endswith("__")
    return node.op in ("call_function", "call_method") and (
        in_place or node.target in (operator.iadd, operator.imul) or bool(node.kwargs.get("inplace"))
    )


def _run(qmodel: QuantModel, batch: Tensor) -> tuple[dict[fx.Node, Any], tuple[Tensor, ...]]:
    runner = _Runner(qmodel, garbage_collect_values=False)
    outputs = flat(runner.run(batch))
    return runner.env, outputs


def _changed(qmodel: QuantModel, active: set[str], base: set[str]) -> set[fx.Node]:
    """Nodes whose value may differ between two sets of active quantizers, and the output node."""
    differs = active ^ base
    changed: set[fx.Node] = set()
    for node in qmodel.graph.nodes:
        own = {str(node.target), f"{node.target}.weight_grid"}  # a quantizer, or a layer of weights
        if node.op == "output" or own & differs or any(source in changed for source in node.all_input_nodes):
            changed.add(node)
    return changed


def flat(outputs: Any) -> tuple[Tensor, ...]:
    """The tensors of a network's result, in order, whatever lists and dicts they come in."""
    if isinstance(outputs, Tensor):
        return (outputs,)
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if isinstance(outputs, (list, tuple)):
        return tuple(tensor for part in outputs for tensor in flat(part))
    return ()


class _Errors:
    """Sums over batches, per output: of y^2 and, per variant, of (y - y')^2."""

    def __init__(self) -> None:
        self.signal: list[float] = []
        self.noise: dict[Hashable, list[float]] = {}

    def add_signal(self, wanted: Sequence[Tensor]) -> None:
        powers = [float(y.double().square().sum()) for y in wanted]
        if not powers or not all(map(math.isfinite, powers)):
            raise ValueError("the float network gives no finite outputs on this data: check its input first")
        self.signal = [a + b for a, b in zip(self.signal or [0.0] * len(powers), powers, strict=True)]

    def add(self, variant: Hashable, wanted: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        powers = [float((y.double() - z).square().sum()) for y, z in zip(wanted, outputs, strict=True)]
        so_far = self.noise.get(variant, [0.0] * len(powers))
        self.noise[variant] = [a + b for a, b in zip(so_far, powers, strict=True)]

    def of(self, variant: Hashable) -> tuple[float, ...]:
        return tuple(sqnr(s, n) for s, n in zip(self.signal, self.noise[variant], strict=True))


# The two tables -----------------------------------------------------------------------------------


def by_sqnr(
    qmodel: nn.Module,
    batches: Iterable[Tensor],
    *,
    outputs: Sequence[str] = (),
    depth: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Table:
    """The table by SQNR of every output; batches as the network takes them, labels aren't needed.

    qmodel: prepared and calibrated; the float network is the same with its quantizers off. outputs: names for
    them. depth: see `blocks`. progress is called with the number of batches done.
    """
    errors = _Errors()
    with as_it_was(qmodel) as model:
        parts = blocks(model, depth)
        everything, nothing = active_grids(model), active_grids(model, layers(model))
        variants: list[tuple[str, str, set[str], set[fx.Node]]] = []
        for name, (alone, others) in _switches(model, parts).items():
            variants.append((name, "alone", alone, _changed(model, alone, nothing)))
            variants.append((name, "others", others, _changed(model, others, everything)))
        for done, batch in enumerate(batches, 1):
            _switch(model, nothing)
            in_float, wanted = _run(model, batch)
            errors.add_signal(wanted)
            _switch(model, everything)
            quantized, found = _run(model, batch)
            errors.add("all", wanted, found)
            for name, what, active, changed in variants:
                base = in_float if what == "alone" else quantized
                _switch(model, active)
                kept = {node: value for node, value in base.items() if node not in changed}
                found = flat(_Runner(model).run(batch, initial_env=kept))
                errors.add((name, what), wanted, found)
            if progress is not None:
                progress(done)
        if not errors.signal:
            raise ValueError("there is no data to measure with: give at least one batch")
        rows = [
            _row(model, name, of, errors.of((name, "alone")), errors.of((name, "others")))
            for name, of in parts.items()
        ]
    found_outputs = tuple(outputs) or tuple(f"output {i}" for i in range(len(errors.signal)))
    reference = tuple(math.inf for _ in errors.signal)
    return Table("sqnr", found_outputs, reference, errors.of("all"), _worst_first(rows))


def by_metric(
    qmodel: nn.Module,
    metric: Callable[[], float],
    name: str = "metric",
    *,
    depth: int | None = None,
    progress: Progress | None = None,
) -> Table:
    """The table by a number of the caller's; higher is better.

    metric() measures qmodel as it stands, with only some of its layers quantized, and is called 2 n + 2 times
    for n layers, or blocks of them (see `blocks`).
    """
    with as_it_was(qmodel) as model:
        names, parts = list(layers(model)), blocks(model, depth)
        calls = 0

        def measured(in_float: Iterable[str]) -> tuple[float]:
            nonlocal calls
            set_float(model, in_float)
            value = float(metric())
            if math.isnan(value):
                raise ValueError(f"{name} is NaN with only some layers quantized: what does it divide by?")
            calls += 1
            if progress is not None:
                progress(calls, 2 * len(parts) + 2)
            return (value,)

        reference, quantized = measured(names), measured(())
        rows = [
            _row(model, part, of, measured(layer for layer in names if layer not in of), measured(of))
            for part, of in parts.items()
        ]
    return Table(name, (name,), reference, quantized, _worst_first(rows))


Network = Callable[[Tensor], tuple[Tensor, ...]]
Answer = TypeVar("Answer")


def by_answers(
    qmodel: nn.Module,
    looks: Iterable[Callable[[Network], Answer]],
    metric: Callable[[list[Answer]], float],
    name: str = "metric",
    *,
    depth: int | None = None,
    progress: Progress | None = None,
) -> Table:
    """The table of `by_metric` in a fraction of its time: image by image, all variants, each from where it differs.

    looks: for each image a function that is handed the network, asks it, and says what was found; what it asks may
    not depend on the answers. metric(answers to all looks) is the number, higher is better. progress is called with
    the number of looks done and, when it is known, of all.
    """
    found: dict[tuple[str, str], list[Answer]] = {}
    with as_it_was(qmodel) as model:
        parts = blocks(model, depth)
        everything, nothing = active_grids(model), active_grids(model, layers(model))
        variants = {
            ("", "alone"): nothing,
            ("", "others"): everything,
        }  # these first: the others go on from them
        for part, (alone, others) in _switches(model, parts).items():
            variants |= {(part, "alone"): alone, (part, "others"): others}
        changed = {
            (part, what): _changed(model, active, nothing if what == "alone" else everything)
            for (part, what), active in variants.items()
        }
        for done, look in enumerate(looks, 1):
            kept: dict[tuple[str, int], dict[fx.Node, Any]] = {}
            for (part, what), active in variants.items():
                _switch(model, active)
                network = _Again(model, kept, what, changed[part, what] if part else None)
                found.setdefault((part, what), []).append(look(network))
            if progress is not None:
                progress(done, len(looks) if isinstance(looks, Sequence) else done)
        if not found:
            raise ValueError("there is no data to measure with: give at least one image")
        values = {variant: (float(metric(answers)),) for variant, answers in found.items()}
        rows = [
            _row(model, part, of, values[part, "alone"], values[part, "others"]) for part, of in parts.items()
        ]
    return Table(name, (name,), values["", "alone"], values["", "others"], _worst_first(rows))


class _Again:
    """The network as it stands, for one look. Where only the nodes `changed` differ from a run that was kept, it
    runs only those."""

    def __init__(
        self,
        model: QuantModel,
        kept: dict[tuple[str, int], dict[fx.Node, Any]],
        base: str,
        changed: set[fx.Node] | None,
    ) -> None:
        self.model, self.kept, self.base, self.changed = model, kept, base, changed
        self.calls = 0

    def __call__(self, batch: Tensor) -> tuple[Tensor, ...]:
        key = self.base, self.calls
        self.calls += 1
        if self.changed is None:
            self.kept[key], outputs = _run(self.model, batch)
            return outputs
        same = {node: value for node, value in self.kept[key].items() if node not in self.changed}
        return flat(_Runner(self.model).run(batch, initial_env=same))


def _switches(qmodel: QuantModel, parts: Blocks) -> dict[str, tuple[set[str], set[str]]]:
    """{block: active quantizers when it alone is quantized, and when all others are}."""
    names = list(layers(qmodel))
    return {
        part: (active_grids(qmodel, [name for name in names if name not in of]), active_grids(qmodel, of))
        for part, of in parts.items()
    }


def _switch(qmodel: QuantModel, active: set[str]) -> None:
    for name, grid in grids(qmodel).items():
        grid.mode = "quantize" if name in active else "off"


def _row(
    qmodel: QuantModel,
    name: str,
    members: Sequence[str],
    alone: tuple[float, ...],
    others: tuple[float, ...],
) -> Row:
    known = layers(qmodel)
    count = sum(parameter.numel() for member in members for parameter in known[member].parameters())
    kinds = {type(known[member].layer).__name__ for member in members}
    kind = " ".join(sorted(kinds)) if len(members) == 1 else f"{len(members)} {' '.join(sorted(kinds))}"
    return Row(name, kind, count, alone, others)


def _worst_first(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: row.worst))


# Mixed precision ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixed(Generic[Name]):
    """What `keep_float` found: the layers to keep in float, and the score with them."""

    layers: tuple[Name, ...]
    score: float
    target: float
    reached: bool  # False: even the float network scores less than the target
    tried: int


def keep_float(
    ranking: Sequence[Name],
    score: Callable[[tuple[Name, ...]], float],
    target: float,
    progress: Progress | None = None,
) -> Mixed[Name]:
    """As few layers in float as reach score >= target.

    ranking: all layers, worst first. score(kept): of the network with these in float, higher is better. At most
    2 n scores for n layers. Deterministic; not always the smallest set, for which all 2^n would have to be tried.
    """
    if math.isnan(target):
        raise ValueError("the target score is NaN")
    tried = 0

    def measured(kept: Sequence[Name]) -> float:
        nonlocal tried
        tried += 1
        if progress is not None:
            progress(tried, 2 * len(ranking))
        return score(tuple(kept))

    kept: list[Name] = []
    reached = measured(kept)
    for layer in ranking:
        if reached >= target:
            break
        kept.append(layer)
        reached = measured(kept)
    # The last one was needed; of the others the least sensitive are the likeliest to do without.
    for layer in reversed(kept[:-1]) if reached >= target else ():
        fewer = [other for other in kept if other != layer]
        found = measured(fewer)
        if found >= target:
            kept, reached = fewer, found
    return Mixed(tuple(kept), reached, target, reached >= target, tried)


def sqnr_score(qmodel: QuantModel, batches: Iterable[Tensor]) -> Callable[[tuple[str, ...]], float]:
    """A score for `keep_float`: the lowest SQNR of any output, dB. batches are gone through once per score."""
    if isinstance(batches, Iterator):
        raise ValueError("the batches are read more than once: give a list of them, not an iterator")
    wanted: list[tuple[Tensor, ...]] = []

    def score(in_float: tuple[str, ...]) -> float:
        errors = _Errors()
        with as_it_was(qmodel) as model:
            if not wanted:
                _switch(model, set())
                wanted.extend(flat(model(batch)) for batch in batches)
            set_float(model, in_float)
            for batch, outputs in zip(batches, wanted, strict=True):
                errors.add_signal(outputs)
                errors.add("all", outputs, flat(model(batch)))
        return min(errors.of("all"))

    return score


def mixed_scheme(scheme: Scheme, in_float: Iterable[str]) -> Scheme:
    """The scheme that keeps these layers in float as well."""
    return replace(scheme, skip=tuple(dict.fromkeys((*scheme.skip, *in_float))))


@torch.no_grad()
def transfer(qmodel: nn.Module, mixed: nn.Module) -> None:
    """Give `mixed`, the same network prepared with more layers skipped, the weights and grids of `qmodel`.

    Then `mixed` computes what `qmodel` does with those layers switched to float, without calibrating again.
    """
    assert isinstance(qmodel, QuantModel)
    assert isinstance(mixed, QuantModel)
    state, old = qmodel.state_dict(), _grid_behind(qmodel)
    for source, grid in _grid_behind(mixed).items():  # groups that shared a grid may have come apart
        if source not in old:
            raise ValueError(
                f"no range is known behind {source}: is {type(mixed).__name__} the same network?"
            )
        for part in ("scale", "zero_point"):
            state[f"{grid}.{part}"] = qmodel.state_dict()[f"{old[source]}.{part}"]
    wanted = mixed.state_dict()
    mixed.load_state_dict({name: state[name] for name in wanted if name in state})


def _grid_behind(qmodel: QuantModel) -> dict[str, str]:
    """{node whose value is rounded: its quantizer}."""
    return {str(n.args[0]): str(n.target) for n in qmodel.graph.nodes if n.meta["role"] == "grid"}
