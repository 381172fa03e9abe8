"""NAME.pt -> NAME.onnx and its forms for single runtimes, each compared with torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from octavo import folder
from octavo.models import load_modules, part
from octavo.models import networks as networks_of
from octavo.recipe import Network
from octavo.verbs.extras import need_torch
from octavo.verbs.model import load
from octavo.verbs.network_file import example, write
from octavo.verbs.photographs import images_at, samples
from octavo.verbs.seen import seen_by
from octavo.verbs.signatures import PathLike

if TYPE_CHECKING:
    from torch import nn

    from octavo.export import Parity


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
    half: bool = False,
    decode: bool = False,
) -> tuple[Path, dict[str, Parity], dict[str, Lowered]]:
    """NAME.pt -> NAME.onnx, in the same folder or in `out`, and how far each file is from its torch network.

    A quantized model has its target already; another one is an error. For target cpu, unless `lower` is
    False, NAME.RUNTIME.onnx is written too where rewrites make a runtime faster (octavo.lower). Compared,
    with ONNX Runtime, is what the networks see of `images`, by default the sample photographs. half: a float
    model's files compute in float16, half as large (quantize.dynamic.half), and are compared with the float32
    network; they need a folder of their own. decode: the graph ends with boxes and probabilities instead of logits,
    for programs that know nothing of the family; `predict` takes both.
    Returns the folder, {network: parity} and {"NETWORK.RUNTIME": what was done to it}.
    """
    need_torch()
    from octavo.export import Then, parity
    from octavo.lower import REWRITES
    from octavo.lower import write as write_lowered
    from octavo.quantize.dynamic import half as halved

    path = folder.find(model)
    info = folder.read_info(path)
    if target and info["precision"] == "float":
        raise ValueError(f"{path} is float and has no target: octavo quantize {path} --target {target}")
    if target and target != info["target"]:
        raise ValueError(
            f"{path} was quantized for {info['target']}, not {target}: quantize again for {target}."
        )
    if half and info["precision"] != "float":
        raise ValueError(f"{path} is {info['precision']}: half precision is made from the float model")
    if half and (out is None or (Path(out).exists() and Path(out).samefile(path))):
        raise ValueError(
            f"half precision would replace the float files of {path}: give another folder (--out)"
        )
    modules = load_modules(path)
    networks = networks_of(info["variant"])
    tails = _decoding(info["family"]) if decode else {}
    opened = load(path, "torch")
    seen = seen_by(opened, [Path(p) for i in images for p in images_at(i)] or samples(opened.task_name))
    if half:
        info |= {"precision": "half"}
    out_path = Path(out or path)
    parities, lowered = {}, {}
    runtimes = REWRITES if lower and info["target"] == "cpu" else ()
    with folder.staged(out_path) as stage:
        for name, module in modules.items():
            like, tail = networks[name], None
            if name in tails:
                tail, outputs = tails[name]
                like = replace(like, outputs=outputs)
            as_written = halved(module) if half else module
            write(as_written, stage / f"{name}.onnx", like, info["preprocessing"], tail)
            module = Then(module, tail) if tail else module
            batches = seen[name] or [example(like)]
            check = partial(parity, batches=batches, preprocessing=info["preprocessing"])
            parities[name] = check(module, stage / f"{name}.onnx")
            multiple = like.multiple if isinstance(like, Network) else 1
            for runtime in runtimes:
                if done := write_lowered(stage / f"{name}.onnx", runtime, multiple):
                    form = f"{name}.{runtime}"
                    file = stage / f"{form}.onnx"
                    same = _of_form(check, module, file, runtime)
                    lowered[form] = Lowered(tuple(done), same)
        folder.write_info(stage, folder.continued(info))
    for name in modules:
        for path in folder.forms(out_path / f"{name}.onnx"):
            if path.stem not in lowered:  # of an earlier export
                path.unlink()
    return out_path, parities, lowered


def _of_form(check: Callable[..., Parity], module: nn.Module, file: Path, runtime: str) -> Parity:
    """A form for OpenVINO leaves out roundings: it is compared with the network in torch that does as well."""
    from octavo.export import FLOAT_BETWEEN
    from octavo.quantize import without_grids_inside
    from octavo.quantize.dynamic import float_twin, is_dynamic

    if runtime != "openvino":
        return check(module, file)
    if not is_dynamic(module):  # lower/silu.py
        return check(without_grids_inside(module), file, steps=FLOAT_BETWEEN)
    # lower/found.py; ONNX Runtime and OpenVINO round the inputs of stored integers all the same, in ways of their own
    return check(float_twin(module), file, steps=FLOAT_BETWEEN)


def _decoding(family: str) -> dict[str, tuple[nn.Module, tuple[str, ...]]]:
    """{network: what its graph ends with, and the names of the outputs then}."""
    net = part(family, "net")
    if not hasattr(net, "decoding"):
        raise ValueError(f"{family} has no decoding to be put into a graph")
    return net.decoding()
