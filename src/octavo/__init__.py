"""Octavo: small vision models, folded into eight bits.

    octavo.load("mtcnn-relu")("photo.jpg").save("faces.jpg")

The names below stand in the order of the flow and are loaded at first use: `import octavo` itself imports
nothing. The verbs (train, quantize, export, ...) are functions of octavo.verbs; each part is a module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from octavo.folder import FolderError as FolderError
    from octavo.folder import names as names
    from octavo.images import ImageError as ImageError
    from octavo.images import read as read
    from octavo.outputs import Detections as Detections
    from octavo.verbs import Model as Model
    from octavo.verbs import load as load
    from octavo.verbs.predict import predict as predict

_HOME = {
    "read": "images",
    "ImageError": "images",
    "names": "folder",
    "FolderError": "folder",
    "load": "verbs",
    "Model": "verbs",
    "Detections": "outputs",
    "predict": "verbs",
}
_MODULES = ("images", "boxes", "outputs", "folder", "recipe", "verbs")  # octavo.verbs without another import

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"octavo.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"octavo.{name}")
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_MODULES])
