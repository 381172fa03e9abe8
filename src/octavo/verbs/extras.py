"""What the base install does without, asked for before a verb has begun its work."""

from __future__ import annotations

from typing import Any


def need_torch() -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        raise ImportError("this needs torch, which is not installed: pip install 'octavo[train]'") from None
    return torch
