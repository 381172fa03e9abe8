"""A model folder's networks -> the files of a runtime that reads no ONNX, compared with torch where it runs here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from octavo import folder
from octavo.folder import UnknownName, did_you_mean
from octavo.models import load_modules
from octavo.models import networks as networks_of
from octavo.recipe import Network
from octavo.verbs.extras import need_torch
from octavo.verbs.model import load
from octavo.verbs.photographs import images_at, samples
from octavo.verbs.seen import seen_by
from octavo.verbs.signatures import PathLike

if TYPE_CHECKING:
    from octavo.export import Parity

FORMATS = ("ncnn",)  # octavo/export/to_NAME.py


def convert(
    model: PathLike, to: str, out: PathLike | None = None, *, images: Iterable[PathLike] = ()
) -> tuple[Path, dict[str, Parity]]:
    """NAME.pt -> the files of runtime `to`, in the same folder or in `out`; the folder, and {network: parity}.

    Compared is what the networks see of `images`, by default the sample photographs; without the runtime there is
    nothing to compare, and the mapping is empty. A runtime with integers of its own kind wants a model that was
    quantized for them (octavo quantize --target).
    """
    torch = need_torch()
    from octavo import run
    from octavo.export import parity

    if to not in FORMATS:
        raise UnknownName(f"no format {to!r}.{did_you_mean(to, FORMATS)} There are: {', '.join(FORMATS)}.")
    path = folder.find(model)
    info = folder.read_info(path)
    modules, networks = load_modules(path), networks_of(info["variant"])
    if others := [name for name, like in networks.items() if not isinstance(like, Network)]:
        raise ValueError(f"{to} is given networks that see pixels, and {', '.join(others)} of {path} don't")
    out_path = Path(out or path)
    write = import_module(f"octavo.export.to_{to}").write
    with folder.staged(out_path) as stage:
        for name, module in modules.items():
            like = networks[name]
            write(
                module,
                stage / name,
                torch.zeros(like.shape),
                dynamic=like.free,
                outputs=like.outputs,
                preprocessing=info["preprocessing"],
            )
        folder.write_info(stage, folder.continued(info))
    parities: dict[str, Parity] = {}
    if to in run.available():
        opened = load(path, "torch")
        seen = seen_by(opened, [Path(p) for i in images for p in images_at(i)] or samples(opened.task_name))
        for name, module in modules.items():
            file = run.file_for(out_path, name, to)
            parities[name] = parity(module, file, seen[name], info["preprocessing"], runtime=to)
    return out_path, parities


def formats() -> tuple[str, ...]:
    return FORMATS
