"""A model folder, opened: what `predict`, `evaluate` and `bench` look through; and the list of all models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from octavo import folder
from octavo.folder import UnknownName, did_you_mean
from octavo.models import load_modules, part, task
from octavo.verbs.signatures import PathLike

if TYPE_CHECKING:
    import numpy as np


class WrongSetting(ValueError):
    """A setting that a model doesn't have, or a value that it can't take."""


@dataclass(frozen=True)
class Model:
    """A model ready to run: call it on an image (path, bytes, (h, w, 3) uint8 RGB array) for an Output.

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

    @property
    def task(self) -> ModuleType:
        """What it is for, a module of octavo.evaluate."""
        return task(self.info["family"])

    @property
    def task_name(self) -> str:
        return part(self.info["family"], "predict").TASK

    def settings(self, **overrides: Any) -> Any:
        """The stored settings with these in their place (None: not given); WrongSetting where they don't fit."""
        kind = part(self.info["family"], "predict").Settings
        kind.of(self.info["settings"])  # what is wrong in model.json was not asked for by the caller
        try:
            return kind.of(self.info["settings"], **overrides)
        except ValueError as error:
            raise WrongSetting(str(error)) from None

    def __call__(self, image: str | Path | bytes | np.ndarray, **settings: Any) -> Any:
        from octavo.images import MAX_PIXELS, read

        pixels = read(image, max_pixels=self.max_pixels or MAX_PIXELS)
        found = part(self.info["family"], "predict").predict(pixels, self.run, self.settings(**settings))
        named = {"classes": tuple(self.info["classes"])} if self.info.get("classes") else {}
        return replace(found, image=pixels, **named)

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
