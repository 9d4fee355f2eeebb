"""Picture files as people have them, good and bad, made on the spot.

`GOOD` must be taken, `BAD` must be refused with a reason that holds the given words, and of `EITHER` (damage
that a decoder may or may not notice) each must be wholly taken or wholly refused.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF"}
SIDE = (48, 36)
UNKNOWN, UNDECODED = "not a known picture format", "cannot be decoded"
TOO_LARGE = "larger than the limit"
Maker = Callable[[], bytes]


def pixels(width: int = SIDE[0], height: int = SIDE[1], seed: int = 0) -> Image.Image:
    """A noisy RGB picture, so that no part of a file is empty."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(kind: str, picture: Image.Image | None = None, **options: object) -> bytes:
    """A picture's file content."""
    buffer = io.BytesIO()
    (picture or pixels()).save(buffer, format=FORMATS.get(kind, kind), **options)
    return buffer.getvalue()


def cut(kind: str, share: float) -> bytes:
    """The first part of a file."""
    data = encoded(kind)
    return data[: int(len(data) * share)]


def headless(kind: str) -> bytes:
    """A file whose first 16 bytes are zeros."""
    return bytes(16) + encoded(kind)[16:]


def scratched(kind: str) -> bytes:
    """A file with eight foreign bytes in the middle."""
    data = bytearray(encoded(kind))
    middle = len(data) // 2
    data[middle : middle + 8] = b"\xff\x00\xaa\x55\xff\xd9\x00\x00"
    return bytes(data)


def chunk(name: bytes, content: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_bomb(width: int, height: int) -> bytes:
    """A small PNG that says it has very many pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A PNG with a compressed comment of 200 MB."""
    data = encoded("png")
    bomb = chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(200_000_000), 9))
    return data[:33] + bomb + data[33:]


def bmp_bomb() -> bytes:
    """A BMP whose header says 60,000 x 60,000."""
    data = bytearray(encoded("bmp"))
    data[18:26] = struct.pack("<ii", 60_000, 60_000)
    return bytes(data)


def gif_bomb() -> bytes:
    """A GIF whose screen is 65,535 x 65,535."""
    data = bytearray(encoded("gif"))
    data[6:10] = struct.pack("<HH", 65_535, 65_535)
    return bytes(data)


def turned(orientation: int) -> bytes:
    """A JPEG that asks to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded("jpg", exif=exif)


def of_mode(kind: str, mode: str) -> bytes:
    """A picture stored in another mode of colours."""
    return encoded(kind, pixels().convert(mode))


def of_values(kind: str, dtype: type, top: float) -> bytes:
    """A grey picture of deep values from 0 to `top`."""
    values = np.linspace(0, top, SIDE[0] * SIDE[1]).reshape(SIDE[1], SIDE[0]).astype(dtype)
    return encoded(kind, Image.fromarray(values))


def animated(kind: str) -> bytes:
    """Three pictures in one file."""
    return encoded(kind, pixels(), save_all=True, append_images=[pixels(seed=1), pixels(seed=2)])


def with_transparency() -> bytes:
    """A palette PNG with transparent entries as bytes, which PIL warns about."""
    picture = pixels().quantize(16)
    return encoded("png", picture, transparency=bytes(range(16)))


GOOD: dict[str, Maker] = {
    **{f"plain.{kind}": partial(encoded, kind) for kind in FORMATS},
    **{f"turned_{number}.jpg": partial(turned, number) for number in range(1, 9)},
    **{f"mode_{mode}.png": partial(of_mode, "png", mode) for mode in ("1", "L", "P", "LA", "RGBA")},
    **{f"mode_{mode}.jpg": partial(of_mode, "jpg", mode) for mode in ("L", "CMYK", "YCbCr")},
    **{f"mode_{mode}.tif": partial(of_mode, "tif", mode) for mode in ("1", "L", "RGBA", "CMYK", "LAB")},
    "palette.gif": partial(of_mode, "gif", "P"),
    "alpha.webp": partial(of_mode, "webp", "RGBA"),
    "transparent_palette.png": with_transparency,
    "deep_16.png": partial(of_values, "png", np.uint16, 65_535),
    "deep_16.tif": partial(of_values, "tif", np.uint16, 65_535),
    "turned_wrong.jpg": partial(turned, 77),
    "progressive.jpg": partial(encoded, "jpg", progressive=True),
    "animated.gif": partial(animated, "gif"),
    "animated.webp": partial(animated, "webp"),
    "animated.png": partial(animated, "png"),
    "pages.tif": partial(animated, "tif"),
    "one_pixel.png": lambda: encoded("png", pixels(1, 1)),
    "one_pixel.jpg": lambda: encoded("jpg", pixels(1, 1)),
    "one_row.png": lambda: encoded("png", pixels(700, 1)),
    "one_column.png": lambda: encoded("png", pixels(1, 700)),
    "wide_20000.png": lambda: encoded("png", pixels(20_000, 3)),
    "wide_20000.jpg": lambda: encoded("jpg", pixels(20_000, 3)),
    "png_named.jpg": partial(encoded, "png"),
    "jpg_named.png": partial(encoded, "jpg"),
    "gif_named.bmp": partial(encoded, "gif"),
    "webp_named.tif": partial(encoded, "webp"),
    "CAPITALS.JPG": partial(encoded, "jpg"),
    "trailing_rubbish.jpg": lambda: encoded("jpg") + b"rubbish" * 99,
    "trailing_rubbish.png": lambda: encoded("png") + b"rubbish" * 99,
    "broken_profile.jpg": lambda: encoded("jpg", icc_profile=b"no profile"),
    "name with spaces.jpg": partial(encoded, "jpg", pixels(seed=3)),
    "Größe ñandú 犬 🐕.jpg": partial(encoded, "jpg", pixels(seed=4)),
    "-dash.jpg": partial(encoded, "jpg", pixels(seed=5)),
    "quote ' and \" and $HOME.jpg": partial(encoded, "jpg", pixels(seed=6)),
    "[brackets]*.jpg": partial(encoded, "jpg", pixels(seed=7)),
    "dots.in.the.name.jpg": partial(encoded, "jpg", pixels(seed=8)),
    f"{'long' * 40}.jpg": partial(encoded, "jpg", pixels(seed=9)),
}
BAD: dict[str, tuple[Maker, str]] = {
    **{f"cut_10.{kind}": (partial(cut, kind, 0.1), "") for kind in ("jpg", "png", "webp", "bmp")},
    **{f"cut_50.{kind}": (partial(cut, kind, 0.5), UNDECODED) for kind in ("jpg", "png", "webp", "bmp")},
    **{f"cut_90.{kind}": (partial(cut, kind, 0.9), UNDECODED) for kind in ("jpg", "png", "webp", "bmp")},
    **{f"cut_50.{kind}": (partial(cut, kind, 0.5), "") for kind in ("gif", "tif")},
    **{f"cut_90.{kind}": (partial(cut, kind, 0.9), "") for kind in ("gif", "tif")},
    **{f"headless.{kind}": (partial(headless, kind), "") for kind in FORMATS},
    **{f"empty.{kind}": (lambda: b"", "") for kind in FORMATS},
    **{f"text.{kind}": (lambda: b"this is no picture\n" * 9, UNKNOWN) for kind in FORMATS},
    **{f"zeros.{kind}": (lambda: bytes(5000), UNKNOWN) for kind in FORMATS},
    **{f"magic_only.{kind}": ((lambda k: lambda: encoded(k)[:12])(kind), "") for kind in FORMATS},
    "page.jpg": (lambda: b"<!doctype html><html><body>404 not found</body></html>", UNKNOWN),
    "archive.png": (lambda: b"PK\x03\x04" + bytes(200), UNKNOWN),
    "document.jpg": (lambda: b"%PDF-1.4\n%rubbish", UNKNOWN),
    "vector.png": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', UNKNOWN),
    "pickle.jpg": (lambda: b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.", UNKNOWN),
    "postscript.jpg": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ""),
    "bomb_100k.png": (lambda: png_bomb(100_000, 100_000), TOO_LARGE),
    "bomb_limit.png": (lambda: png_bomb(8_193, 8_193), TOO_LARGE),
    "bomb_most.png": (lambda: png_bomb(2**31 - 1, 2**31 - 1), ""),
    "bomb_text.png": (text_bomb, ""),
    "bomb.bmp": (bmp_bomb, TOO_LARGE),
    "bomb.gif": (gif_bomb, TOO_LARGE),
    "deep_float.tif": (partial(of_values, "tif", np.float32, 1.0), "32 bits"),
    "deep_32.tif": (partial(of_values, "tif", np.int32, 70_000), "32 bits"),
    "no_pixels.png": (lambda: png_bomb(0, 0), ""),
    "little_data.png": (lambda: png_bomb(300, 300), ""),
}
EITHER: dict[str, Maker] = {
    **{f"scratched.{kind}": partial(scratched, kind) for kind in FORMATS},
    **{f"without_end.{kind}": (lambda k: lambda: encoded(k)[:-2])(kind) for kind in FORMATS},
    "cut_10.gif": partial(cut, "gif", 0.1),
    "cut_10.tif": partial(cut, "tif", 0.1),
}


def _told_apart(name: str) -> str:
    """The name with its ending in it, since files that differ in the ending only have one id."""
    stem, ending = name.rsplit(".", 1)
    return f"{stem}_{ending}.{ending}"


GOOD = {_told_apart(name): maker for name, maker in GOOD.items()}
BAD = {_told_apart(name): case for name, case in BAD.items()}
EITHER = {_told_apart(name): maker for name, maker in EITHER.items()}
EXPECTED = {
    **dict.fromkeys(GOOD, "good"),
    **dict.fromkeys(BAD, "bad"),
    **dict.fromkeys(EITHER, "either"),
}
"""What must become of each file."""


def content_of(name: str) -> bytes:
    """The content of a case's file."""
    if name in GOOD:
        return GOOD[name]()
    return BAD[name][0]() if name in BAD else EITHER[name]()


def reason_of(name: str) -> str:
    """Words that the refusal of a bad file must hold."""
    return BAD[name][1] if name in BAD else ""
