"""What the verbs' signatures share: a place on disk, and who is told how far a long verb is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PathLike = str | Path
Progress = Callable[[int, int], None]  # done, of how many
NetworkProgress = Callable[[str, int], None]  # network, done
StepProgress = Callable[[str, int, int], None]  # network, done, of how many
TrainingProgress = Callable[[str, int, int, dict[str, float]], None]  # network, step, of how many, losses
Network = Callable[..., "tuple[np.ndarray, ...]"]  # of arrays
