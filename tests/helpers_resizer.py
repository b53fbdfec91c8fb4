"""What the tests of image_resizer.py share; a plug-in for pytest, because of its fixtures."""

import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import image_resizer

SCRIPT = str(Path(image_resizer.__file__).resolve())
RAMP = np.arange(32 * 32).reshape(32, 32)  # every value once, 0..1023
GREY = (RAMP // 4).astype(np.uint8)  # 0..255
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)


def run(*arguments, cwd, **options):
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, **options)


def start(*arguments, cwd, **options):
    return subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, arguments)],
        cwd=cwd,
        text=True,
        # A shell's background job, such as these tests may be, ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
    )


def parts(folder):
    return {path for path in folder.iterdir() if image_resizer.PART.fullmatch(path.name)}


def wait_for_part(folder, size=1, known=()):
    """Return the temporary file that a run has just written `size` bytes to."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for part in parts(folder) - set(known):
            if part.stat().st_size >= size:
                return part
        time.sleep(0.01)
    raise TimeoutError


def resize(folder, output, size=128, **options):
    """Return how many pictures were written, and how many files and folders were skipped."""
    shape = (size, size, 3)
    return image_resizer.resize_folder(str(folder), str(output), shape, **options)[:2]


def load(path, size=32, **options):
    """Return a picture as uint8 (size, size, 3)."""
    return image_resizer.load_picture(Path(path), (size, size, 3), **options)


def saved(picture, path, **options):
    """Return what load_picture makes of a picture once it was saved."""
    picture.save(path, **options)
    return load(path)


def greys(path):
    """Return the grey of each picture of an array, by its first pixel."""
    return ((np.load(path)[:, 0, 0, 0] + 1) * 127.5).round().tolist()


def grey_rgb(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=-1)


def png(bits, colour_type, samples, *chunks, size=None):
    """Return a PNG of any kind as bytes, with more chunks and even with a false size."""
    rows = samples.reshape(len(samples), -1)
    if bits < 8:
        bit = (rows[..., None] >> np.arange(bits)[::-1]) & 1
        data = [np.packbits(row).tobytes() for row in bit.reshape(len(rows), -1).astype("u1")]
    else:
        data = [row.astype(f">u{bits // 8}").tobytes() for row in rows]
    width, height = size or (samples.shape[1], samples.shape[0])
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row for row in data))
    file = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), *chunks, (b"IDAT", packed), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        file += struct.pack(">I", len(body)) + kind + body + checksum
    return file


def tiff(samples, bits, photometric, tags=(), end="<", planes=False, packed=False, data=None):
    """Return a TIFF as bytes: `samples` (height, width, channels), of one strip for each plane.

    `tags` are more (number, values). Floats are written as 32 bits, integers as `bits`.
    """
    height, width, channels = samples.shape
    strips = list(np.moveaxis(samples, -1, 0)) if planes else [samples.reshape(height, -1)]
    if data is not None:
        strips = [data]
    elif samples.dtype.kind == "f":
        strips = [strip.astype(f"{end}f4").tobytes() for strip in strips]
    elif bits >= 8 and bits != 12:
        strips = [strip.astype(f"{end}u{bits // 8}").tobytes() for strip in strips]
    else:
        shifts = np.arange(bits)[::-1]
        strips = [
            b"".join(np.packbits((row[:, None] >> shifts & 1).ravel()).tobytes() for row in strip)
            for strip in (np.asarray(strip, int) for strip in strips)
        ]
    strips = [zlib.compress(strip) for strip in strips] if packed else strips
    sizes = [len(strip) for strip in strips]
    entries = dict(tags) | {256: [width], 257: [height], 258: [bits] * channels}
    entries |= {259: [8 if packed else 1], 262: [photometric], 277: [channels], 278: [height]}
    entries |= {284: [1 + planes], 273: [0] * len(strips), 279: sizes}
    if samples.dtype.kind == "f":
        entries[339] = [3] * channels

    def directory():
        kinds = {tag: "I" if tag in (273, 279) else "H" for tag in entries}
        offset, table, rest = 8 + 2 + 12 * len(entries) + 4, b"", b""
        for tag, values in sorted(entries.items()):
            body = struct.pack(f"{end}{len(values)}{kinds[tag]}", *values)
            value = body.ljust(4, b"\0")
            if len(body) > 4:
                value, rest = struct.pack(f"{end}I", offset + len(rest)), rest + body
            kind = 4 if kinds[tag] == "I" else 3
            table += struct.pack(f"{end}HHI", tag, kind, len(values)) + value
        count = struct.pack(f"{end}H", len(entries))
        start = (b"II" if end == "<" else b"MM") + struct.pack(f"{end}HI", 42, 8)
        return start + count + table + bytes(4) + rest

    ends = np.cumsum([len(directory()), *sizes])
    entries[273] = ends[:-1].tolist()
    return directory() + b"".join(strips)


def difference(data, expected, tmp_path):
    """Return the largest difference from `expected`, or None if the picture is refused."""
    (tmp_path / "picture.tif").write_bytes(data)
    try:
        return abs(load(tmp_path / "picture.tif").astype(int) - expected).max()
    except image_resizer.UserError as error:
        assert str(error)
        return None


@pytest.fixture
def dataset(tmp_path):
    """Return dataset/ with five ordinary pictures of different shapes, written out of order."""
    rng = np.random.default_rng(7)
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    for name, height, width in (
        ("e.png", 32, 32),
        ("B.jpg", 301, 200),
        ("a.jpg", 90, 333),
        ("c.bmp", 10, 7),
        ("D.JPEG", 128, 128),
    ):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        coarse.resize((width, height)).save(dataset / name)
    return dataset


@pytest.fixture
def slow_folder(tmp_path):
    """Return slow/ with 200 pictures that take about a tenth of a second each."""
    slow = tmp_path / "slow"
    slow.mkdir()
    Image.new("RGB", (2500, 2500)).save(slow / "0.jpg")
    for n in range(1, 200):
        (slow / f"{n}.jpg").symlink_to("0.jpg")
    return slow
