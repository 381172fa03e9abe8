"""images.read against Pillow, and against files spoilt in every way we could think of."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from octavo import images
from octavo.images import ImageError, find, read

RNG = np.random.default_rng(7)
RGB = cv2.resize(RNG.integers(0, 256, (4, 6, 3), np.uint8), (61, 40), interpolation=cv2.INTER_LINEAR)
ALPHA = cv2.resize(RNG.integers(0, 256, (3, 5), np.uint8), (61, 40), interpolation=cv2.INTER_NEAREST)
RGBA = np.dstack([RGB, ALPHA])
PICTURE = Image.fromarray(RGB)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    """The picture as Pillow understands it: upright, over white, RGB."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("RGB"))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x112] = orientation
    return tags


def ycck() -> bytes:
    """A CMYK JPEG whose Adobe marker says YCCK, as Photoshop writes them."""
    data = bytearray(encoded(PICTURE.convert("CMYK"), "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def key_color(mode: str, color: object) -> bytes:
    picture = PICTURE.quantize(16) if mode == "P" else PICTURE.convert(mode)
    return encoded(picture, "PNG", transparency=color)


def tiff(
    array: np.ndarray, order: str = "<", tags: dict[int, int] | None = None, tile: bool = False
) -> bytes:
    """An uncompressed TIFF, written by hand: one strip (or one tile as large as the picture) and its tags."""
    height, width, samples = array.shape
    pixels = array.astype(array.dtype.newbyteorder(order)).tobytes()
    shorts = {256: width, 257: height, 258: array.dtype.itemsize * 8, 259: 1, 262: 2 if samples > 2 else 1}
    place, size = (324, 325) if tile else (273, 279)
    shorts |= {322: width, 323: height} if tile else {278: height}
    entries = shorts | {277: samples, 284: 1, place: 8, size: len(pixels)} | (tags or {})
    directory = struct.pack(order + "H", len(entries))
    for tag, value in sorted(entries.items()):
        if tag == 258:  # one value a sample: they do not fit into the entry (and all follow the directory)
            after = 8 + len(pixels) + 2 + 12 * len(entries) + 4
            directory += struct.pack(order + "HHII", tag, 3, samples, after if samples > 2 else value)
        else:
            directory += struct.pack(order + "HHII", tag, 4, 1, value)
    bits = struct.pack(order + "H", array.dtype.itemsize * 8) * samples
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", 8 + len(pixels)) + pixels + directory + bytes(4) + bits


WITH_ALPHA = Image.fromarray(RGBA)
FILES = {
    "jpeg": (encoded(PICTURE, "JPEG", quality=95), 2),
    "jpeg, progressive": (encoded(PICTURE, "JPEG", progressive=True), 2),
    "jpeg, 4:4:4, restart markers": (encoded(PICTURE, "JPEG", subsampling=0, restart_marker_rows=1), 2),
    "jpeg, grey": (encoded(PICTURE.convert("L"), "JPEG"), 2),
    "jpeg, CMYK as Adobe writes it": (encoded(PICTURE.convert("CMYK"), "JPEG", quality=95), 2),
    "jpeg, YCCK": (ycck(), 3),
    "png": (encoded(PICTURE, "PNG"), 0),
    "png, grey": (encoded(PICTURE.convert("L"), "PNG"), 0),
    "png, grey and alpha": (encoded(WITH_ALPHA.convert("LA"), "PNG"), 1),
    "png, alpha": (encoded(WITH_ALPHA, "PNG"), 1),
    "png, 1 bit": (encoded(PICTURE.convert("1"), "PNG"), 0),
    "png, palette": (encoded(PICTURE.quantize(16), "PNG"), 0),
    "png, palette of 4 colours": (encoded(PICTURE.quantize(4), "PNG", bits=2), 0),
    "png, palette, one colour transparent": (key_color("P", 3), 1),
    "png, palette, alpha for each colour": (key_color("P", bytes(range(0, 256, 17))), 1),
    "png, one RGB transparent": (key_color("RGB", tuple(RGB[0, 0].tolist())), 1),
    "webp": (encoded(PICTURE, "WEBP", quality=90), 0),
    "webp, lossless": (encoded(PICTURE, "WEBP", lossless=True), 0),
    "webp, alpha": (encoded(WITH_ALPHA, "WEBP", lossless=True), 1),
    "bmp": (encoded(PICTURE, "BMP"), 0),
    "bmp, grey": (encoded(PICTURE.convert("L"), "BMP"), 0),
    "bmp, palette": (encoded(PICTURE.quantize(16), "BMP"), 0),
    "tiff": (encoded(PICTURE, "TIFF"), 0),
    "tiff, grey": (encoded(PICTURE.convert("L"), "TIFF"), 0),
    "tiff, 1 bit": (encoded(PICTURE.convert("1"), "TIFF"), 0),
    "tiff, palette": (encoded(PICTURE.quantize(16), "TIFF"), 0),
    "tiff, CMYK": (encoded(PICTURE.convert("CMYK"), "TIFF"), 1),
    "tiff, alpha": (encoded(WITH_ALPHA, "TIFF"), 1),
    "tiff, LZW": (encoded(PICTURE, "TIFF", compression="tiff_lzw"), 0),
    "tiff, JPEG inside": (encoded(PICTURE, "TIFF", compression="jpeg", quality=95), 3),
    "tiff, many pages: first": (
        encoded(PICTURE, "TIFF", save_all=True, append_images=[PICTURE.rotate(180)]),
        0,
    ),
    "tiff, big-endian": (tiff(RGB, ">"), 0),
    "tiff, a private tag": (tiff(RGB, tags={65000: 1}), 0),
    **{
        f"{kind}, orientation {turn}": (encoded(PICTURE, kind, exif=exif(turn), quality=95), 2)
        for kind in ("JPEG", "PNG", "WEBP", "TIFF")
        for turn in range(1, 9)
    },
    **{
        f"{kind}, alpha, orientation {turn}": (encoded(WITH_ALPHA, kind, exif=exif(turn), lossless=True), 1)
        for kind in ("PNG", "WEBP", "TIFF")
        for turn in (2, 6, 7)
    },
}


@pytest.mark.parametrize("name", FILES)
def test_agrees_with_pillow(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data, tolerance = FILES[name]
    ours, theirs = read(data), by_pillow(data)
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.astype(int), theirs.astype(int), atol=tolerance)
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(
    tuple(map(int, cv2.__version__.split(".")[:2])) < (4, 12), reason="OpenCV cannot read it yet"
)
def test_first_frame_of_an_animated_webp() -> None:
    data = encoded(PICTURE, "WEBP", lossless=True, save_all=True, append_images=[PICTURE.rotate(180)])
    np.testing.assert_array_equal(read(data), RGB)


def bits16(suffix: str, array: np.ndarray) -> bytes:
    done, data = cv2.imencode(suffix, array)
    assert done
    return data.tobytes()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bits_are_rounded_to_8(suffix: str) -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.floor(every.astype(np.float64) * 255 / 65535 + 0.5).astype(np.uint8)
    for array in (every, np.dstack([every, every.T, every[::-1]])):
        want = (
            np.dstack([expected] * 3)
            if array.ndim == 2
            else np.dstack([expected[::-1], expected.T, expected])
        )
        np.testing.assert_array_equal(read(bits16(suffix, array)), want)  # cv2 writes BGR


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("tile", [False, True], ids=["strip", "tile"])
def test_every_tiff_is_turned_upright(turn: int, dtype: type, tile: bool) -> None:
    big = cv2.resize(RGB, (64, 48))
    array = big.astype(np.float32) / 255 if dtype is np.float32 else big.astype(dtype)
    array = array * np.uint16(257) if dtype is np.uint16 else array
    tags = {274: turn} | ({339: 3} if dtype is np.float32 else {})
    ways = [[], [0], [3], [1], [5], [4], [6], [2]]  # what Pillow does: FLIP_LEFT_RIGHT, ROTATE_180, ...
    want = Image.fromarray(big)
    for way in ways[turn - 1]:
        want = want.transpose(Image.Transpose(way))
    np.testing.assert_array_equal(read(tiff(array, tags=tags, tile=tile)), np.asarray(want))


OVER_WHITE = np.rint(RGB.astype(float) * ALPHA[..., None] / 255 + 255.0 - ALPHA[..., None])
EARLIER_MULTIPLIED = np.rint(RGB.astype(float) * ALPHA[..., None] / 255).astype(np.uint8)
FOURTH = {
    "8 bits, alpha": (RGBA, 2, OVER_WHITE, 2),
    "8 bits, multiplied": (np.dstack([EARLIER_MULTIPLIED, ALPHA]), 1, OVER_WHITE, 2),
    "8 bits, unknown": (RGBA, 0, RGB, 0),
    "16 bits, alpha": (RGBA.astype(np.uint16) * 257, 2, OVER_WHITE, 1),
    "16 bits, multiplied": (np.dstack([EARLIER_MULTIPLIED, ALPHA]).astype(np.uint16) * 257, 1, OVER_WHITE, 1),
    "16 bits, unknown": (RGBA.astype(np.uint16) * 257, 0, RGB, 0),
}


@pytest.mark.parametrize("name", FOURTH)
def test_tiff_says_what_its_fourth_channel_is(name: str) -> None:
    array, meaning, want, tolerance = FOURTH[name]
    ours = read(tiff(array, tags={338: meaning}))
    np.testing.assert_allclose(ours.astype(int), want.astype(int), atol=tolerance)


# Arrays

GREY = RGB[..., 0]
ARRAYS = {
    "RGB": (RGB, RGB),
    "grey": (GREY, np.dstack([GREY] * 3)),
    "grey, one channel": (GREY[..., None], np.dstack([GREY] * 3)),
    "RGBA": (RGBA, OVER_WHITE),
    "opaque RGBA": (np.dstack([RGB, np.full_like(GREY, 255)]), RGB),
    "16 bits": (RGB.astype(np.uint16) * 257, RGB),
    "16 bits, one channel": (GREY[..., None].astype(np.uint16) * 257, np.dstack([GREY] * 3)),
    "bool": (GREY > 99, np.dstack([(GREY > 99) * 255] * 3)),
    "float32": (RGB.astype(np.float32) / 255, RGB),
    "float16": (RGB.astype(np.float16) / 255, RGB),
    "float64 that overshoots by rounding": (RGB / 255 * (1 + 1e-9) - 1e-9, RGB),
    "not contiguous": (RGB[:, ::-1].transpose(1, 0, 2), RGB[:, ::-1].transpose(1, 0, 2)),
    "16 bits, not contiguous": (RGB[::2].astype(np.uint16)[:, ::2] * 257, RGB[::2, ::2]),
    "one pixel": (RGB[:1, :1], RGB[:1, :1]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name: str) -> None:
    array, want = ARRAYS[name]
    before = array.copy()
    ours = read(array)
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    np.testing.assert_allclose(ours.astype(int), np.asarray(want, int), atol=0 if "RGBA" not in name else 1)
    np.testing.assert_array_equal(array, before)


def test_a_finished_array_is_not_copied() -> None:
    assert np.shares_memory(read(RGB), RGB)


BAD_ARRAYS = {
    "channels first": (np.zeros((3, 40, 60), np.uint8), "channels last"),
    "two channels": (np.zeros((40, 60, 2), np.uint8), "(40, 60, 2)"),
    "a batch": (np.zeros((1, 40, 60, 3), np.uint8), "(1, 40, 60, 3)"),
    "a row": (np.zeros(40, np.uint8), "(40,)"),
    "no rows": (np.zeros((0, 60, 3), np.uint8), "no pixels"),
    "int64": (np.zeros((40, 60, 3), np.int64), "int64"),
    "text": (np.full((4, 6), "a"), "expected uint8"),
    "float up to 255": (RGB.astype(np.float32), "uint8"),
    "normalised": (RGB / 127.5 - 1, "expected 0 to 1"),
    "NaN": (np.full((4, 6), np.nan), "expected 0 to 1"),
    "infinite": (np.full((4, 6), np.inf), "expected 0 to 1"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays(name: str) -> None:
    array, says = BAD_ARRAYS[name]
    with pytest.raises(ImageError) as caught:
        read(array)
    assert says in str(caught.value)


@pytest.mark.parametrize("source", [None, 3, [RGB], PICTURE], ids=["None", "number", "list", "PIL"])
def test_other_types_are_refused(source: object) -> None:
    with pytest.raises(ImageError, match=f"from {type(source).__name__}: give a path, bytes, or an array"):
        read(source)  # type: ignore[arg-type]


# Spoilt files


def png(width: int, height: int) -> bytes:
    """A whole PNG with right checksums that claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def patched(data: bytes, place: int, form: str, *values: int) -> bytes:
    return data[:place] + struct.pack(form, *values) + data[place + struct.calcsize(form) :]


JPEG, PNG, WEBP, BMP = (FILES[kind][0] for kind in ("jpeg", "png", "webp", "bmp"))
LOSSLESS, EXTENDED = FILES["webp, lossless"][0], FILES["WEBP, orientation 6"][0]
SOF = JPEG.index(b"\xff\xc0")
TIFF = tiff(RGB)


def sized(kind: str, width: int, height: int) -> bytes:
    """A file of each kind whose header claims this size."""
    return {
        "jpeg": lambda: patched(JPEG, SOF + 5, ">HH", height, width),
        "png": lambda: png(width, height),
        "webp": lambda: patched(WEBP, 26, "<HH", width, height),
        "webp, lossless": lambda: patched(LOSSLESS, 21, "<I", (width - 1) | (height - 1) << 14),
        "webp, extended": lambda: patched(
            EXTENDED, 24, "<IH", (width - 1) | (height - 1 & 255) << 24, height - 1 >> 8
        ),
        "bmp": lambda: patched(BMP, 18, "<ii", width, height),
        "bmp, top row first": lambda: patched(BMP, 18, "<ii", width, -height),
        "tiff": lambda: tiff(RGB, tags={256: width, 257: height}),
        "tiff, big-endian": lambda: tiff(RGB, ">", tags={256: width, 257: height}),
    }[kind]()


KINDS = (
    "jpeg",
    "png",
    "webp",
    "webp, lossless",
    "webp, extended",
    "bmp",
    "bmp, top row first",
    "tiff",
    "tiff, big-endian",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_huge_picture_is_refused_before_it_is_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(
        ImageError, match=r"16000x12000 = 192 megapixels, more than the limit of 100; .*max_pixels"
    ):
        read(sized(kind, 16000, 12000))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "jpeg"])
def test_a_huge_claim_with_nothing_behind_it(kind: str) -> None:
    with pytest.raises(ImageError, match=r"OpenCV|truncated"):
        read(sized(kind, 16000, 12000), max_pixels=200_000_000)


@pytest.mark.parametrize("name", FILES)
def test_the_limit_is_a_number_of_pixels(name: str) -> None:
    assert read(FILES[name][0], max_pixels=40 * 61).shape in ((40, 61, 3), (61, 40, 3))
    with pytest.raises(ImageError, match=r"raise max_pixels \(--max-pixels\) to 2440"):
        read(FILES[name][0], max_pixels=40 * 61 - 1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("webp, lossless", "webp, extended")])
@pytest.mark.parametrize(("width", "height"), [(0, 40), (61, 0)])
def test_no_pixels(kind: str, width: int, height: int) -> None:
    with pytest.raises(ImageError, match=f"{width}x{height} has no pixels"):
        read(sized(kind, width, height))


@pytest.mark.parametrize("name", FILES)
def test_bytes_after_the_end_are_ignored(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = FILES[name][0]
    for tail in (b"\0", b"\r\n", bytes(1000), data):
        np.testing.assert_array_equal(read(data + tail), read(data))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_refused(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = FILES[name][0]
    whole = read(data)
    for length in {
        *range(1, len(data), max(1, len(data) // 97)),
        len(data) - 1,
        len(data) - 2,
        len(data) - 13,
    }:
        try:
            ours = read(data[:length])
        except ImageError as error:
            assert "truncated" in str(error) or length < 64  # noqa: PT017
        else:  # tags that nobody reads may stand at the end of a TIFF
            assert "tiff" in name.lower()
            np.testing.assert_array_equal(ours, whole)
    assert capfd.readouterr().err == ""


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=9),
)
def test_a_damaged_file_never_escapes(name: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(FILES[name][0])
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    try:
        ours = read(bytes(data))
    except ImageError:
        return
    assert ours.ndim == 3
    assert ours.shape[2] == 3
    assert ours.dtype == np.uint8


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([JPEG[:3], PNG[:8], WEBP[:16], BMP[:18], TIFF[:8], b"MM\0+\0\x08\0\0", b""]),
    st.binary(max_size=200),
)
def test_garbage_never_escapes(head: bytes, tail: bytes) -> None:
    with pytest.raises(ImageError):
        read(head + tail)


NOT_IMAGES = {
    "empty": (b"", "empty"),
    "text": (b"photo.jpg,12,30\n" * 10, "not an image: expected JPEG, PNG, WebP, BMP, TIFF"),
    "text that begins like a BMP": (b"BMW X5, 2019\n" * 10, "not an image"),
    "GIF": (b"GIF89a" + bytes(100), "a GIF"),
    "HEIC": (bytes(3) + b"\x18ftypheic" + bytes(100), "HEIC"),
    "PDF": (b"%PDF-1.7\n", "a PDF"),
    "a saved web page": (b"<!DOCTYPE html><html>404 Not Found</html>", "web page"),
    "png, one bit flipped": (patched(PNG, len(PNG) // 2, "B", PNG[len(PNG) // 2] ^ 1), "wrong checksum"),
    "bmp, rows missing": (BMP[:-1], "truncated"),
    "jpeg, only its start": (JPEG[:200], "truncated"),
    "tiff in planes of 16 bits": (tiff(RGB.astype(np.uint16), tags={284: 2}), "interleaved"),
    "tiff, float up to 255": (tiff(RGB.astype(np.float32), tags={339: 3}), "expected 0 to 1"),
}


@pytest.mark.parametrize("name", NOT_IMAGES)
def test_what_is_wrong_is_said(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, says = NOT_IMAGES[name]
    path = tmp_path / "photo.jpg"  # the suffix promises nothing
    path.write_bytes(data)
    for source, start in ((path, str(path)), (data, "image given as bytes")):
        with pytest.raises(ImageError) as caught:
            read(source)
        assert says in str(caught.value)
        assert str(caught.value).startswith(f"{start}: ")
    assert capfd.readouterr().err == ""


# Paths


def test_paths(tmp_path: Path) -> None:
    path = tmp_path / "ảnh đẹp 写真 🙂.anything"
    path.write_bytes(PNG)
    np.testing.assert_array_equal(read(path), RGB)
    np.testing.assert_array_equal(read(str(path)), RGB)
    np.testing.assert_array_equal(read(bytearray(PNG)), RGB)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nothing.jpg", "nothing.jpg: no such file"),
        (".", "is a folder"),
        ("", "is a folder"),
        ("/dev/zero", "not a regular file"),
        ("a\0b.jpg", "no such file|null"),
        ("x" * 5000, "name too long"),
    ],
    ids=["missing", "folder", "no name", "device", "NUL", "long"],
)
def test_bad_paths(path: str, says: str) -> None:
    with pytest.raises(ImageError, match=f"(?i){says}"):
        read(path)


def test_find(tmp_path: Path) -> None:
    for name in (
        "b/2.JPG",
        "b/10.png",
        "a.tif",
        "b/c/x.webp",
        "b/notes.txt",
        ".hidden/y.jpg",
        "b/._2.JPG",
        "z.bmp",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b" / "c" / "back").symlink_to(tmp_path)
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.mkdir()
    (elsewhere / "linked.jpeg").write_bytes(b"")
    (tmp_path / "linked").symlink_to(elsewhere)

    def names(*paths: Path) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in find(paths)]

    everything = ["a.tif", "b/10.png", "b/2.JPG", "b/c/x.webp", "linked/linked.jpeg", "z.bmp"]
    assert names(tmp_path) == everything
    assert find(tmp_path) == find(str(tmp_path)) == find([tmp_path])  # one path is a path, not letters
    assert names(tmp_path / "b" / "notes.txt", tmp_path / "nothing") == ["b/notes.txt", "nothing"]
    assert names(tmp_path / "z.bmp", tmp_path) == ["z.bmp", *everything[:-1]]
    assert names() == []


def test_threads_leave_the_log_level_alone() -> None:
    level = images._logging.getLogLevel()
    threads = [threading.Thread(target=lambda: [read(TIFF) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert images._logging.getLogLevel() == level != 0


def test_real_photographs_read_like_pillow(shared: Path) -> None:
    for path in find([shared / "data" / "coco" / "images" / "val2017"])[:20]:
        difference = np.abs(read(path).astype(int) - by_pillow(path.read_bytes()))
        assert difference.mean() < 0.5, path


def test_samples_are_small_and_their_origin_is_told() -> None:
    folder = Path(images.__file__).parent / "samples"
    samples = find([folder])
    lines = [path for path in samples if path.parent.name == "text"]
    assert [path.name for path in samples if path not in lines] == [
        "astronaut.jpg",
        "group.jpg",
        "hopper.jpg",
    ]
    told = (folder / "README.md").read_text(encoding="utf-8")
    for path in samples:
        assert f"`{path.name}`" in told or f"`text/{path.name}`" in told
        if path not in lines:
            width, height = read(path).shape[1::-1]
            assert f"({width}x{height})" in told
        assert path.stat().st_size <= 120_000
