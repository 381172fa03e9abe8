"""Which training images are held out, and what data a result was made from: by hashes, the same everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

import numpy as np


class Named(Protocol):
    @property
    def name(self) -> str: ...


def is_held_out(entry: Named, share: float) -> bool:
    """Whether an image belongs to the share kept out of training; the same whatever other images there are."""
    digest = hashlib.sha256(entry.name.encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


class Boxed(Named, Protocol):
    @property
    def xyxy(self) -> np.ndarray: ...
    @property
    def invalid(self) -> np.ndarray: ...


def fingerprint_of(entries: Iterable[Boxed]) -> str:
    """Another one where an image is new, renamed or gone, or a box has moved."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(entry.name.encode() + entry.xyxy.tobytes() + entry.invalid.tobytes())
    return digest.hexdigest()
