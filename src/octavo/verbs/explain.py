"""The arithmetic of quantization on a few numbers, step by step."""

from __future__ import annotations

from typing import Any


def explain(what: str, values: list[float], bits: int = 8, format: str | None = None) -> list[dict[str, Any]]:
    """Walks through the quantization of "tensor" (one for all values) or "fixedpoint" (one each); see `text`.

    format: "n.m", the integer and fraction bits of fixed point.
    """
    from octavo.quantize.fixedpoint import explain_fixedpoint, explain_tensor

    if what == "tensor":
        return [explain_tensor(values, bits)]
    n, point, m = str(format).partition(".")
    if not (n.isdecimal() and point and m.isdecimal()):
        raise ValueError(f"{format!r} is not N.M, integer and fraction bits, such as 10.5.")
    return [explain_fixedpoint(value, int(n), int(m)) for value in values]
