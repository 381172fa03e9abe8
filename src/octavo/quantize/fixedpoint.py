"""Real numbers as integers: the arithmetic under everything else, and a walk through it.

Fixed point S(n.m): one sign bit, n integer bits, m fraction bits. The integer q stands for q * 2**-m,
written in two's complement as sign,integer,fraction:

    2.71875 in S(10.5)  is  87 * 2**-5,  "0,0000000010,10111"

A scale need not be a power of two, and zero need not be stored as 0. That is the affine map of networks
(Jacob et al. 2018, arXiv 1712.05877):

    q = clip(round(x / scale) + zero_point, lowest, highest)         quantize
    x ~ (q - zero_point) * scale                                     dequantize

Two ways to choose it from a range of x: the offset method spends all integers on low..high (affine); the
max-abs method keeps zero_point = 0, so that products need no correction (symmetric). Inside the range an
error is at most scale / 2; a value beyond it is clipped to the end. Halves round to even, as in ONNX.

Every function takes numpy arrays, torch tensors (and then returns tensors) or plain numbers and lists.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or torch.Tensor; torch itself is never imported here


# Fixed point --------------------------------------------------------------------------------------


def to_fixed(x: Array, n: int, m: int) -> Array:
    """The integers of x in S(n.m), int64; what does not fit saturates at -2**(n+m) or 2**(n+m) - 1."""
    _check_format(n, m)
    return _integers((_real(x) * 2.0**m).round().clip(-(2 ** (n + m)), 2 ** (n + m) - 1))


def from_fixed(q: Array, m: int) -> Array:
    """The real numbers that integers with m fraction bits stand for."""
    return _real(q) * 2.0**-m


def to_binary(q: int, n: int, m: int) -> str:
    """One integer of S(n.m) as "sign,integer bits,fraction bits", two's complement."""
    _check_format(n, m)
    if not -(2 ** (n + m)) <= q < 2 ** (n + m):
        raise ValueError(f"{q} does not fit S({n}.{m}), which holds {-(2 ** (n + m))} to {2 ** (n + m) - 1}")
    bits = format(int(q) % 2 ** (1 + n + m), f"0{1 + n + m}b")
    return f"{bits[0]},{bits[1 : 1 + n]},{bits[1 + n :]}"


def from_binary(text: str) -> tuple[int, int, int]:
    """(q, n, m) of a text that `to_binary` writes."""
    parts = text.strip().split(",")
    if len(parts) != 3 or len(parts[0]) != 1 or set("".join(parts)) - {"0", "1"}:
        raise ValueError(f"expected sign,integer bits,fraction bits, as in 0,10,011; got {text!r}")
    sign, bits = int(parts[0]), parts[1] + parts[2]
    return int(bits or "0", 2) - sign * 2 ** len(bits), len(parts[1]), len(parts[2])


# Maps with a scale --------------------------------------------------------------------------------


def limits(bits: int = 8, signed: bool = True) -> tuple[int, int]:
    """The lowest and highest integer: -128, 127 for 8 signed bits, 0, 255 for unsigned ones."""
    if not 2 <= bits <= 32:
        raise ValueError(f"an integer grid has 2 to 32 bits here, got {bits}")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def offset_method(low: float, high: float, bits: int = 8, signed: bool = True) -> tuple[float, int]:
    """(scale, zero_point) of the affine map that spends all integers on low..high, widened to hold zero."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    lowest, highest = limits(bits, signed)
    scale = (high - low) / (highest - lowest) or 1.0  # only zeros: any scale will do
    return scale, lowest - round(low / scale)


def max_abs_method(low: float, high: float, bits: int = 8) -> tuple[float, int]:
    """(scale, 0) of the symmetric map: the largest magnitude becomes the highest integer."""
    return max(abs(float(low)), abs(float(high))) / limits(bits)[1] or 1.0, 0


def quantize(
    x: Array, scale: Array, zero_point: Array = 0, bits: int = 8, signed: bool = True, clip: bool = True
) -> Array:
    """Integers (int64) of x; clip=False shows what would lie outside. An array as scale broadcasts."""
    q = (_real(x) / scale).round() + zero_point
    return _integers(q.clip(*limits(bits, signed)) if clip else q)


def dequantize(q: Array, scale: Array, zero_point: Array = 0) -> Array:
    """The real numbers (float64) that integers stand for."""
    return (_real(q) - zero_point) * scale


def fake_quantize(x: Array, scale: Array, zero_point: Array = 0, bits: int = 8, signed: bool = True) -> Array:
    """There and back: x as the integers see it, in x's type. A network in training computes with this."""
    x = _real(x)
    y = dequantize(quantize(x, scale, zero_point, bits, signed), scale, zero_point)
    return y.astype(x.dtype) if isinstance(y, (np.ndarray, np.generic)) else y.to(x.dtype)


# Walks through it ---------------------------------------------------------------------------------


def explain_fixedpoint(x: float, n: int, m: int) -> dict[str, Any]:
    """One number in S(n.m), step by step: its integer, bits, error; "text" tells it."""
    if not np.isfinite(x):
        raise ValueError(f"expected a finite number, got {x}")
    q = int(to_fixed(x, n, m))
    back, least, most = float(from_fixed(q, m)), -(2 ** (n + m)), 2 ** (n + m) - 1
    binary = to_binary(q, n, m)
    scaled = x * 2.0**m
    clipped = not least <= round(scaled) <= most
    sum_ = (
        " + ".join([f"2^{n - 1 - i}" for i, bit in enumerate(binary.replace(",", "")[1:]) if bit == "1"])
        or "0"
    )
    text = f"""\
S({n}.{m}): 1 sign bit, {n} integer bits, {m} fraction bits, {1 + n + m} in all
  holds {least * 2.0**-m:.10g} to {most * 2.0**-m:.10g} in steps of 2^-{m} = {2.0**-m:.10g}

  {x:.10g} * 2^{m} = {scaled:.10g}
  rounded    {round(scaled)}{f", clipped to {q}" if clipped else ""}
  in binary  {binary}   (sign,integer,fraction; two's complement)
  means      {"-2^" + str(n) + " + " if q < 0 else ""}{sum_} = {back:.10g}
  error      {back - x:.3g}{" (clipped)" if clipped else f", at most half a step: {2.0 ** -(m + 1):.3g}"}
"""
    return {
        "value": x,
        "integer": q,
        "binary": binary,
        "returns": back,
        "error": back - x,
        "clipped": clipped,
        "bits": 1 + n + m,
        "text": text,
    }


def explain_tensor(x: Array, bits: int = 8) -> dict[str, Any]:
    """A few numbers quantized by the offset method, the same scale without its offset, and by max-abs.

    For each: scale, zero-point, integers, what returns, errors, signal-to-noise; memory; measured time.
    "text" tells it.
    """
    x = np.asarray(x, np.float64).ravel()
    if not x.size or not np.isfinite(x).all():
        raise ValueError(f"expected one or more finite numbers, got {x.tolist()}")
    lowest, highest = limits(bits)
    low, high = float(min(x.min(), 0)), float(max(x.max(), 0))
    scale, zero_point = offset_method(low, high, bits)
    symmetric, _ = max_abs_method(low, high, bits)
    at = f"{low:.5g} / {scale:.5g}"
    methods = [
        _method(
            "offset",
            x,
            scale,
            zero_point,
            bits,
            f"affine: {low:.5g}..{high:.5g} becomes {lowest}..{highest}\n"
            f"  scale        ({high:.5g} - {low:.5g}) / {highest - lowest} = {scale:.5g}\n"
            f"  zero-point   {lowest} - round({at}) = {zero_point}",
        ),
        _method(
            "no offset",
            x,
            scale,
            0,
            bits,
            f"the same scale, zero-point 0: beyond {lowest}..{highest} it clips",
        ),
        _method(
            "max-abs",
            x,
            symmetric,
            0,
            bits,
            "symmetric: the largest magnitude becomes the highest integer, zero stays 0\n"
            f"  scale        {max(-low, high):.5g} / {highest} = {symmetric:.5g}",
        ),
    ]
    packed = -(-x.size * bits // 8)
    start = time.perf_counter()
    repeats = 200
    for _ in range(repeats):
        fake_quantize(x, scale, zero_point, bits)
    microseconds = (time.perf_counter() - start) / repeats * 1e6
    text = f"x            {_row(x, '.4g')}\n\n" + "".join(method.pop("text") for method in methods)
    text += f"memory       {x.size} values: {4 * x.size} bytes as float32, {packed} as int{bits}"
    text += " (and 4 for the scale, 1 for the zero-point)\n"
    text += f"time         {microseconds:.1f} microseconds there and back in numpy on this machine\n"
    return {
        "values": x.tolist(),
        "bits": bits,
        "methods": methods,
        "bytes_float32": 4 * x.size,
        "bytes": packed,
        "microseconds": microseconds,
        "text": text,
    }


def _method(name: str, x: np.ndarray, scale: float, zero_point: int, bits: int, how: str) -> dict[str, Any]:
    unclipped = quantize(x, scale, zero_point, bits, clip=False)
    q = quantize(x, scale, zero_point, bits)
    back = dequantize(q, scale, zero_point)
    error = np.abs(back - x)
    power, noise = float((x**2).mean()), float((error**2).mean())
    sqnr = 10 * float(np.log10(power / noise)) if noise and power else float("inf")
    text = f"{name}, {how}\n  x / scale    {_row(x / scale, '.2f')}\n"
    shifted = f"   (with the zero-point {zero_point})" if zero_point else ""
    text += f"  rounded      {_row(unclipped, 'd')}{shifted}\n"
    if (q != unclipped).any():
        text += f"  clipped      {_row(q, 'd')}\n"
    text += f"  returns      {_row(back, '.3f')}\n"
    text += f"  error        {_row(error, '.4f')}   (without clipping at most scale / 2 = {scale / 2:.4f})\n"
    text += (
        f"  largest {error.max():.4g}, root mean square {noise**0.5:.4g}, signal to noise {sqnr:.1f} dB\n\n"
    )
    return {
        "name": name,
        "scale": scale,
        "zero_point": zero_point,
        "integers": q.tolist(),
        "unclipped": unclipped.tolist(),
        "returns": back.tolist(),
        "max_error": float(error.max()),
        "rms_error": noise**0.5,
        "sqnr_db": sqnr,
        "text": text,
    }


def _row(values: np.ndarray, form: str) -> str:
    shown = "".join(f"{format(v, form):>10}" for v in values[:8])
    return shown + (f"  ... {len(values) - 8} more" if len(values) > 8 else "")


def _real(x: Array) -> Array:
    """x as floats: what is float already stays as it is, all else becomes float64."""
    if hasattr(x, "is_floating_point"):
        return x if x.is_floating_point() else x.double()
    x = np.asarray(x)
    return x if x.dtype.kind == "f" else x.astype(np.float64)


def _integers(x: Array) -> Array:
    return x.astype(np.int64) if isinstance(x, (np.ndarray, np.generic)) else x.long()


def _check_format(n: int, m: int) -> None:
    if n < 0 or m < 0 or not 1 <= n + m <= 52:
        raise ValueError(f"S(n.m) needs n, m >= 0 and 1 to 52 bits beside the sign, got S({n}.{m})")
