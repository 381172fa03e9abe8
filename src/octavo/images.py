"""Any image file, bytes or array -> (h, w, 3) uint8 RGB, or an ImageError that says what is wrong.

OpenCV decodes. Everything it leaves open is decided here, from the file's own header:
- The size is read and compared with `max_pixels` before a single pixel is decoded.
- A file that ends early is refused (some OpenCV versions fill the rest with grey). Bytes after the end
  are ignored. Damage inside a complete JPEG or TIFF stays unseen, as in every viewer.
- OpenCV decodes without conversions (IMREAD_UNCHANGED). Its own handling of EXIF orientation depends on
  version, format and flags, so all eight orientations are applied here.
- 16 bits become 8 by x/257, rounded. Alpha is laid over white: what lies under transparent pixels is
  arbitrary (encoders change it freely), and white is what a viewer shows. Two exceptions are OpenCV's:
  the alpha of BMP and of grey TIFF is dropped. CMYK JPEGs are taken as Adobe's (inverted), like
  Pillow does. Colour profiles are ignored. Of several pages or frames the first is read.
"""

from __future__ import annotations

import os
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff")
MAX_PIXELS = 100_000_000  # 300 MB as RGB; the largest camera sensors sold have about 100 megapixels


class ImageError(ValueError):
    """The image cannot be read; the message names it and says why."""


def read(source: str | Path | bytes | np.ndarray, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the picture as (h, w, 3) uint8 RGB, contiguous, upright.

    source: a path, the bytes of a JPEG, PNG, WebP, BMP or TIFF file, or an array: (h, w), (h, w, 1),
        (h, w, 3) RGB or (h, w, 4) RGBA; uint8, uint16, bool, or float from 0 to 1. An array that is
        RGB uint8 and contiguous already comes back as it is, not copied.
    max_pixels: files that claim more pixels are refused before they are decoded.
    Raises ImageError.
    """
    if isinstance(source, np.ndarray):
        return _to_rgb(source)
    if not isinstance(source, (str, Path, bytes, bytearray, memoryview)):
        raise ImageError(
            f"cannot read an image from {type(source).__name__}: give a path, bytes, or an array "
            "(of a PIL image: np.asarray(image.convert('RGB')))"
        )
    try:
        data = _load(Path(source)) if isinstance(source, (str, Path)) else bytes(source)
        return _decode(data, max_pixels)
    except ImageError as error:
        name = source if isinstance(source, (str, Path)) else "image given as bytes"
        raise ImageError(f"{name}: {error}") from None


def find(paths: Iterable[str | Path]) -> list[Path]:
    """List image files: folders are walked (links too, hidden names not), sorted, by suffix.

    A path that is not a folder is kept as it is, whatever its suffix and even where nothing is there,
    so that `read` can say what is wrong with it. The order of `paths` is kept, repetitions are dropped.
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        found.update(dict.fromkeys(_walk(path, set()) if path.is_dir() else [path]))
    return list(found)


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:  # a link back to where we came from
        return
    seen.add(real)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):  # also the ._name.jpg that macOS leaves on other file systems
            continue
        if path.is_dir():
            yield from _walk(path, seen)
        elif path.suffix.lower() in SUFFIXES:
            yield path


def _load(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ImageError("is a folder, not an image (images.find lists the images in it)")
        if not path.exists():
            raise ImageError("no such file")
        if not path.is_file():
            raise ImageError("is not a regular file; give its bytes instead")
        with path.open("rb") as file:
            head = file.read(_HEAD)
            _recognise(head)  # a film of many gigabytes is refused before it fills the memory
            return head + file.read()
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _decode(data: bytes, max_pixels: int) -> np.ndarray:
    kind, parse = _recognise(data)
    try:
        header = parse(data)
    except (struct.error, IndexError):
        raise ImageError(f"{kind} file is truncated: it ends inside its header") from None
    width, height = header.width, header.height
    if width <= 0 or height <= 0:
        raise ImageError(f"{kind} file of {width}x{height} has no pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"{width}x{height} = {width * height / 1e6:.0f} megapixels, more than the limit of "
            f"{max_pixels / 1e6:g}; to read it all the same, raise max_pixels (--max-pixels) to {width * height}"
        )
    if header.problem:
        raise ImageError(f"{kind} file {header.problem}")
    flag = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION if kind == "BMP" else cv2.IMREAD_UNCHANGED
    buffer = np.frombuffer(header.data or data, np.uint8)
    talks = kind in ("TIFF", "BMP")  # TIFF of every private tag; the others need no lock
    try:
        with quiet() if talks else nullcontext():
            picture = cv2.imdecode(buffer, flag)
    except cv2.error:
        picture = None
    if picture is None:
        raise ImageError(f"{kind} file is damaged, or of a kind that OpenCV {cv2.__version__} cannot decode")
    return _upright(_to_rgb(picture, bgr=True, alpha=header.alpha), header.orientation)


_log_lock = threading.Lock()
_logging = getattr(cv2.utils, "logging", cv2)  # OpenCV 5 moved the two functions


@contextmanager
def quiet() -> Iterator[None]:
    """Keep OpenCV from logging on stderr, where an error will say the same (or nothing is wrong at all)."""
    with _log_lock:  # the level belongs to the whole process
        level = _logging.getLogLevel()
        _logging.setLogLevel(0)
        try:
            yield
        finally:
            _logging.setLogLevel(level)


# The pixels


def _to_rgb(array: np.ndarray, bgr: bool = False, alpha: str = "straight") -> np.ndarray:
    """(h, w) or (h, w, 1|3|4), uint8, uint16, bool or float -> (h, w, 3) uint8 RGB."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ImageError(
            f"array of shape {array.shape}: expected (height, width), with 1 (grey), 3 (RGB) or 4 (RGBA) "
            "channels last"
        )
    if array.size == 0:
        raise ImageError(f"array of shape {array.shape} has no pixels")
    array = np.ascontiguousarray(_to_uint8(array))
    channels = array.shape[2]
    if channels == 1:
        return cv2.cvtColor(array, cv2.COLOR_GRAY2RGB)
    if channels == 4:
        array = _over_white(array, alpha)
    return cv2.cvtColor(array, cv2.COLOR_BGR2RGB) if bgr else array


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return cv2.convertScaleAbs(np.ascontiguousarray(array), alpha=1 / 257).reshape(array.shape)
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"pixels of type {array.dtype}: expected uint8, uint16, bool, or float from 0 to 1")
    low, high = float(array.min()), float(array.max())
    slack = 0.5 / 255  # half a grey level: what interpolation may overshoot by
    if not (low >= -slack and high <= 1 + slack):  # also false for NaN
        raise ImageError(f"float pixels from {low:g} to {high:g}: expected 0 to 1 (give 0 to 255 as uint8)")
    return np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)


def _over_white(array: np.ndarray, alpha: str) -> np.ndarray:
    """(h, w, 4) uint8 -> (h, w, 3): c a + 255 (1 - a), where c is already multiplied: c + 255 (1 - a)."""
    color, opacity = array[:, :, :3], array[:, :, 3:]
    if alpha == "none" or opacity.min() == 255:
        return np.ascontiguousarray(color)
    white = np.uint16(255) * (np.uint16(255) - opacity.astype(np.uint16))
    scale = np.uint16(255) if alpha == "premultiplied" else opacity.astype(np.uint16)
    total = color.astype(np.uint32) * scale + white
    return np.minimum((total + 127) // 255, 255).astype(np.uint8)


def _upright(picture: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the EXIF orientation (1 to 8): 2 to 4 mirror and turn, 5 to 8 also swap rows and columns."""
    if orientation in (5, 6, 7, 8):
        picture = picture.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    return np.ascontiguousarray(picture)


# The headers: size, orientation, and whether the file is whole


@dataclass(frozen=True)
class _Header:
    width: int
    height: int
    orientation: int = 1  # EXIF: 1 is upright
    problem: str = ""  # why the file is not decoded, although its size is known
    alpha: str = "straight"  # or "premultiplied", or "none": what the fourth channel is
    data: bytes = b""  # what to decode instead of the file, where that differs


def _jpeg(data: bytes) -> _Header:
    size, orientation, position = None, 1, 2
    while match := _JPEG_MARKER.search(data, position):
        code, position = data[match.start() + 1], match.end()
        if code == 0xD9:  # end of image; what a camera appends after it is not ours
            break
        if code in (0x01, 0xD8):  # markers without a segment
            continue
        length = max(2, int.from_bytes(data[position : position + 2], "big"))
        if code in _JPEG_FRAMES and size is None:
            size = struct.unpack_from(">HH", data, position + 3)
        if code == 0xE1 and data[position + 2 : position + 8] == b"Exif\0\0":
            orientation = _exif_orientation(data[position + 8 : position + length])
        position += length
    if size is None:
        raise ImageError("JPEG file is truncated or damaged: no image in it")
    return _Header(size[1], size[0], orientation, "" if match else "is truncated: it has no end marker")


_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)  # not a stuffed ff, not a restart
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOFn; the three are other segments


def _png(data: bytes) -> _Header:
    width, height = struct.unpack_from(">II", data, 16)
    orientation, position, kept = 1, 8, [data[:8]]
    problem = "is truncated: it has no IEND chunk"
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk = data[position : position + 12 + length]
        if len(chunk) < 12 + length:
            break
        if kind == b"eXIf":
            orientation = _exif_orientation(chunk[8:-4])
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
                problem = f"is damaged: wrong checksum in its {kind.decode()} chunk"
                break
            kept.append(chunk)  # the rest (profiles, texts, animation) only makes libpng talk on stderr
        if kind == b"IEND":
            problem = ""
            break
        position += len(chunk)
    return _Header(width, height, orientation, problem, data=b"".join(kept))


def _webp(data: bytes) -> _Header:
    end = 8 + int.from_bytes(data[4:8], "little")
    size: tuple[int, ...] | None = None
    orientation, position = 1, 12
    while position + 8 <= min(end, len(data)):
        kind, length = struct.unpack_from("<4sI", data, position)
        body = data[position + 8 : position + 8 + length]
        if size is None and kind == b"VP8 ":
            size = tuple(v & 0x3FFF for v in struct.unpack_from("<HH", body, 6))
        elif size is None and kind == b"VP8L":
            bits = int.from_bytes(body[1:5], "little")
            size = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        elif size is None and kind == b"VP8X":
            size = (int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1)
        elif kind == b"EXIF":
            orientation = _exif_orientation(body.removeprefix(b"Exif\0\0"))
        position += 8 + length + length % 2
    if size is None:
        raise ImageError("WebP file is truncated or damaged: no image in it")
    return _Header(size[0], size[1], orientation, "is truncated" if end > len(data) else "")


def _bmp(data: bytes) -> _Header:
    offset, header = struct.unpack_from("<II", data, 10)
    if header not in (12, 40, 52, 56, 64, 108, 124):
        raise ImageError("not an image: begins with BM, but not like a BMP file")
    width, height, _, bits = struct.unpack_from("<HHHH" if header == 12 else "<iiHH", data, 18)
    packing, packed_size = (0, 0) if header == 12 else struct.unpack_from("<II", data, 30)
    if packing in (0, 3):  # rows of whole 4-byte words; negative height: the top row comes first
        packed_size = (width * bits + 31) // 32 * 4 * abs(height)
    return _Header(width, abs(height), problem="is truncated" if offset + packed_size > len(data) else "")


def _tiff(data: bytes) -> _Header:
    tags, order, end = _tiff_tags(data)
    width, height = _first(tags, 256, 0), _first(tags, 257, 0)
    bits, samples, planar = _first(tags, 258, 1), _first(tags, 277, 1), _first(tags, 284, 1)
    orientation = _first(tags, 274, 1)
    offsets = _all(tags, 273) or _all(tags, 324)  # of strips, of tiles
    counts = _all(tags, 279) or _all(tags, 325)
    problem = ""
    if not offsets or max(end, *map(sum, zip(offsets, counts or (1,), strict=False))) > len(data):
        problem = "is truncated: its pixels or tags lie beyond its end"
    elif planar == 2 and bits != 8 and samples > 1:  # OpenCV mixes the planes up
        problem = f"stores its {samples} colours of {bits} bits in separate planes: save it interleaved"
    extra = _first(tags, 338, 0)  # what the fourth sample is: 1 premultiplied alpha, 2 alpha, 0 unknown
    # With 8 bits libtiff multiplies by alpha itself. Without the tag the fourth channel is not alpha.
    alpha = "none" if not extra else "premultiplied" if extra == 1 or bits == 8 else "straight"
    # OpenCV turns by the tag, wrongly so within tiles: hide it from OpenCV, turn the picture here.
    patched = b""
    if orientation != 1:
        place = tags[274][0]
        patched = data[:place] + struct.pack(order + "H", 1) + data[place + 2 :]
    return _Header(width, height, orientation, problem, alpha, patched)


_Tags = dict[int, tuple[int, tuple[int, ...]]]  # tag -> (where its values stand, the values)


def _all(tags: _Tags, tag: int) -> tuple[int, ...]:
    return tags[tag][1] if tag in tags else ()


def _first(tags: _Tags, tag: int, default: int) -> int:
    return (*_all(tags, tag), default)[0]


def _tiff_tags(data: bytes) -> tuple[_Tags, str, int]:
    """The first directory of a TIFF or BigTIFF (EXIF is one too): its tags that hold whole numbers,
    its byte order, and where the values of all its tags end."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    # the directory's place; its count of entries; count and place of values; room for values in an entry
    first, many, word, room = ("Q", "Q", "Q", 8) if big else ("I", "H", "I", 4)
    (place,) = struct.unpack_from(order + first, data, 8 if big else 4)
    if place >= len(data):
        raise ImageError("TIFF file is truncated: its directory lies beyond its end")
    (entries,) = struct.unpack_from(order + many, data, place)
    place += struct.calcsize(many)
    tags: _Tags = {}
    end = 0
    for entry in range(place, place + entries * (4 + 2 * room), 4 + 2 * room):
        tag, kind, count = struct.unpack_from(order + "HH" + word, data, entry)
        values = entry + 4 + room
        length = count * _TIFF_SIZES.get(kind, 0)
        if length > room:
            (values,) = struct.unpack_from(order + word, data, values)
        end = max(end, values + length)
        if kind in _TIFF_WHOLE and values + length <= len(data):
            tags[tag] = values, struct.unpack_from(f"{order}{count}{_TIFF_WHOLE[kind]}", data, values)
    return tags, order, end


_TIFF_SIZES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), start=1)) | {16: 8, 17: 8, 18: 8}
_TIFF_WHOLE = {3: "H", 4: "I", 16: "Q"}


def _exif_orientation(exif: bytes) -> int:
    try:
        orientation = _first(_tiff_tags(exif)[0], 274, 1)
    except (struct.error, ImageError):  # bad metadata is no reason to refuse a picture
        return 1
    return orientation if 1 <= orientation <= 8 else 1


_FORMATS: dict[str, tuple[re.Pattern[bytes], Callable[[bytes], _Header]]] = {
    "JPEG": (re.compile(rb"\xff\xd8\xff"), _jpeg),
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    "WebP": (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), _webp),
    "BMP": (re.compile(rb"BM"), _bmp),
    "TIFF": (re.compile(rb"II[*+]\0|MM\0[*+]"), _tiff),
}
_OTHERS = {
    "a GIF": re.compile(rb"GIF8"),
    "an AVIF or HEIC picture, or a film": re.compile(rb".{4}ftyp", re.DOTALL),
    "a PDF": re.compile(rb"%PDF"),
    "an SVG or web page": re.compile(rb"\s*<(\?xml|svg|!doctype|html)", re.IGNORECASE),
}
_HEAD = 64  # bytes that suffice to recognise a file


def _recognise(data: bytes) -> tuple[str, Callable[[bytes], _Header]]:
    if not data:
        raise ImageError("is empty (0 bytes)")
    for kind, (signature, parse) in _FORMATS.items():
        if signature.match(data):
            return kind, parse
    other = next((name for name, signature in _OTHERS.items() if signature.match(data)), "not an image")
    raise ImageError(f"{other}: expected {', '.join(_FORMATS)}")
