"""What each network of a model is given while the model looks at photographs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.verbs.model import Model
from octavo.verbs.signatures import Network

if TYPE_CHECKING:
    import numpy as np


def seen_by(model: Model, paths: list[Path], batches: int = 32) -> dict[str, list[tuple[np.ndarray, ...]]]:
    """{network: the arrays of its first `batches` calls} while a model looks at images."""
    seen: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in model.run}

    def watched(name: str, network: Network) -> Network:
        def call(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
            if len(seen[name]) < batches:
                seen[name].append(arrays)
            return network(*arrays)

        return call

    watching = replace(model, run={name: watched(name, network) for name, network in model.run.items()})
    for path in paths:
        watching(path)
    return seen
