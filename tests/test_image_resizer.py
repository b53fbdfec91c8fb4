"""Test image_resizer.py: the article's values, unusual and damaged files, several runs, stops.

Pictures of 32 x 32 pixels at --size 32 are not resized, so their values are known exactly.
"""

import errno
import logging
import os
import shlex
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
from image_resizer import load_picture, to_rgb

SCRIPT = str(Path(image_resizer.__file__).resolve())
RAMP = np.arange(32 * 32).reshape(32, 32)  # every value once, 0..1023
GREY = (RAMP // 4).astype(np.uint8)  # 0..255
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)
LEFT = np.arange(32) < 16  # the left half of every row
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
not_root = pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may do everything"
)


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


def wait_for_part(folder, size=1, known=()):
    """Return the temporary file that a run has just written `size` bytes to."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for part in set(folder.glob("*.part")) - set(known):
            if part.stat().st_size >= size:
                return part
        time.sleep(0.01)
    raise TimeoutError


def write_png(path, bits, colour_type, rows, width, height, *chunks):
    """Write a PNG that Pillow itself cannot: 16-bit colour, or a false size."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    png = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        png += struct.pack(">I", len(body)) + kind + body + checksum
    path.write_bytes(png)


def resize(folder, output, size=128):
    return image_resizer.resize_folder(str(folder), str(output), size, crop=False)[:2]


def saved(picture, path, **options):
    """Return what load_picture makes of a picture once it was saved."""
    picture.save(path, **options)
    return load_picture(str(path), 32)


def grey_rgb(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=-1)


@pytest.fixture
def folder(tmp_path):
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


# The array


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_equals_the_articles_loop_bit_for_bit(folder, tmp_path, size):
    training_data = []
    for filename in ["B.jpg", "D.JPEG", "a.jpg", "c.bmp", "e.png"]:
        image = Image.open(folder / filename).resize((size, size), Image.LANCZOS)
        training_data.append(np.asarray(image))
    training_data = np.reshape(training_data, (-1, size, size, 3)) / 127.5 - 1

    output = tmp_path / "out.npy"
    assert resize(folder, output, size) == (5, 0)
    array = np.load(output, mmap_mode="r", allow_pickle=False)
    assert array.dtype == np.float32
    assert np.array_equal(array, training_data.astype(np.float32))


def test_the_table_is_the_articles_formula():
    pixels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(image_resizer.SCALED, (pixels / 127.5 - 1).astype(np.float32))


def test_more_pictures_than_are_in_flight_keep_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(image_resizer, "IN_FLIGHT", 4)
    for value in range(110):
        Image.new("L", (32, 32), value).save(tmp_path / f"{value:03}.png")
        (tmp_path / f"{value:03}.md").touch()
    output = tmp_path / "out.npy"
    assert resize(tmp_path, output, 32) == (110, 0)
    lines = [f"{done}/220 files" for done in range(22, 221, 22)]
    assert capsys.readouterr().err.splitlines() == lines
    values = (np.load(output)[:, 0, 0, 0] + 1) * 127.5
    assert np.array_equal(values.round(), np.arange(110))


def test_crop_cuts_the_centre_square_after_turning_upright(tmp_path):
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = COLOUR
    assert not np.array_equal(saved(Image.fromarray(wide), tmp_path / "wide.png"), COLOUR)
    assert np.array_equal(load_picture(str(tmp_path / "wide.png"), 32, crop=True), COLOUR)

    turned = Image.fromarray(wide).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[274] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(load_picture(str(tmp_path / "turned.png"), 32, crop=True), COLOUR)

    tall = np.zeros((97, 32), np.uint8)
    tall[32:64] = 200
    Image.fromarray(tall).save(tmp_path / "tall.png")
    assert (load_picture(str(tmp_path / "tall.png"), 32, crop=True) == 200).all()


def test_crop_lets_nothing_outside_the_square_in(tmp_path):
    wide = np.full((64, 128, 3), 255, np.uint8)
    wide[:, 32:96] = 100
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (load_picture(str(tmp_path / "wide.png"), 32, crop=True) == 100).all()
    assert (load_picture(str(tmp_path / "wide.png"), 32) != 100).any()


# Odd kinds of picture


def test_grey_1_bit_and_palette(tmp_path):
    assert np.array_equal(saved(Image.fromarray(GREY), tmp_path / "l.png"), grey_rgb(GREY))
    bits = Image.fromarray(RAMP % 3 == 0)
    assert bits.mode == "1"
    assert np.array_equal(saved(bits, tmp_path / "1.png"), grey_rgb(255 * (RAMP % 3 == 0)))
    palette = Image.new("P", (32, 32))
    palette.putdata((RAMP % 2).ravel().tolist())
    palette.putpalette([10, 20, 30, 40, 50, 60])
    expected = np.where(RAMP[..., None] % 2, [40, 50, 60], [10, 20, 30])
    for name in ("p.png", "p.gif", "p.bmp", "p.tif"):
        assert np.array_equal(saved(palette, tmp_path / name), expected)


def test_palette_with_transparency(tmp_path):
    palette = Image.new("P", (32, 32))
    palette.putdata((RAMP % 2).ravel().tolist())
    palette.putpalette([0, 0, 0, 40, 50, 60])
    clear = np.where(RAMP[..., None] % 2, [40, 50, 60], [255, 255, 255])
    for name in ("p.gif", "p.png"):
        assert np.array_equal(saved(palette, tmp_path / name, transparency=0), clear)
    half = np.where(RAMP[..., None] % 2, [40, 50, 60], [127, 127, 127])
    assert np.array_equal(saved(palette, tmp_path / "h.png", transparency=b"\x80\xff"), half)
    alpha = Image.new("PA", (32, 32))
    alpha.putpalette([1, 2, 3])
    assert to_rgb(alpha).getcolors() == [(1024, (255, 255, 255))]


def test_alpha_is_composited_on_white(tmp_path):
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:8] = [255, 0, 0, 0]  # clear, red hidden
    pixels[8:16] = [0, 0, 0, 128]
    pixels[16:, :, :3], pixels[16:, :, 3] = COLOUR[16:], 255
    expected = COLOUR.copy()
    expected[:8], expected[8:16] = 255, 127
    for name in ("a.png", "a.tif", "a.webp", "a.tga"):
        options = {"lossless": True, "exact": True} if name == "a.webp" else {}
        picture = saved(Image.fromarray(pixels), tmp_path / name, **options)
        assert np.array_equal(picture, expected), name
    with_grey = Image.fromarray(GREY)
    with_grey.putalpha(Image.fromarray(np.tile(LEFT, (32, 1))).convert("L"))
    assert with_grey.mode == "LA"
    expected = grey_rgb(np.where(LEFT, GREY, 255))
    assert np.array_equal(saved(with_grey, tmp_path / "la.png"), expected)
    premultiplied = Image.fromarray(pixels).convert("RGBa")
    assert np.asarray(to_rgb(premultiplied))[0, 0].tolist() == [255, 255, 255]


def test_colour_hidden_under_clear_pixels_does_not_bleed(tmp_path):
    pixels = np.full((64, 64, 4), 255, np.uint8)
    pixels[:, ::2] = 0  # clear black beside opaque white
    assert (saved(Image.fromarray(pixels), tmp_path / "a.png") == 255).all()


def test_transparent_colour_of_rgb_and_grey_png(tmp_path):
    clear = np.where(LEFT[:, None], COLOUR, [9, 8, 7]).astype(np.uint8)
    expected = np.where(LEFT[:, None], COLOUR, 255)
    picture = saved(Image.fromarray(clear), tmp_path / "rgb.png", transparency=(9, 8, 7))
    assert np.array_equal(picture, expected)
    picture = saved(Image.fromarray(GREY), tmp_path / "l.png", transparency=77)
    assert np.array_equal(picture, grey_rgb(np.where(GREY == 77, 255, GREY)))
    deep = Image.fromarray((RAMP * 64).astype(np.uint16))
    picture = saved(deep, tmp_path / "i16.png", transparency=640)
    assert picture[0, 9:12, 0].tolist() == [2, 255, 3]


def test_16_bit_grey(tmp_path):
    values = (RAMP * 65535 // 1023).astype(np.uint16)  # 0..65535
    expected = grey_rgb(np.round(values / 257))
    assert expected.min() == 0 and expected.max() == 255
    deep = Image.fromarray(values)
    assert deep.mode == "I;16"
    for name in ("i.png", "i.tif", "i.pgm", "i.jp2"):
        assert np.array_equal(saved(deep, tmp_path / name), expected), name
    big_endian = Image.frombytes("I;16B", (32, 32), values.astype(">u2").tobytes())
    assert np.array_equal(saved(big_endian, tmp_path / "b.tif"), expected)
    assert np.array_equal(to_rgb(Image.fromarray(values.astype(np.int32))), expected)  # "I"
    exif = Image.Exif()
    exif[274] = 3  # upside down
    assert np.array_equal(saved(deep, tmp_path / "i.png", exif=exif), expected[::-1, ::-1])


def test_16_bit_colour(tmp_path):
    rows = [(row.astype(">u2") * 256 + 99).astype(">u2").tobytes() for row in COLOUR]
    write_png(tmp_path / "rgb.png", 16, 2, rows, 32, 32)
    assert np.array_equal(load_picture(str(tmp_path / "rgb.png"), 32), COLOUR)


def test_32_bit_grey_is_read_where_white_is_known(tmp_path):
    unit = Image.fromarray((RAMP / 1023).astype(np.float32))
    expected = grey_rgb(np.round(RAMP * 255 / 1023))
    assert np.array_equal(saved(unit, tmp_path / "f.tif"), expected)
    for values in (RAMP * 1.0, RAMP / 1023 - 0.1, np.where(LEFT, np.nan, RAMP / 1023)):
        with pytest.raises(ValueError, match=r"outside 0\.\.1$"):
            saved(Image.fromarray(values.astype(np.float32)), tmp_path / "f.tif")
    for values in (RAMP * 65, RAMP - 1):
        with pytest.raises(ValueError, match=r"outside 0\.\.65535$"):
            saved(Image.fromarray(values.astype(np.int32)), tmp_path / "i.tif")


def test_cmyk_and_other_colour_spaces(tmp_path):
    red = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    grey = Image.new("CMYK", (32, 32), (0, 0, 0, 55))
    for picture, expected in ((red, [255, 0, 0]), (grey, [200, 200, 200])):
        assert (saved(picture, tmp_path / "c.tif") == expected).all()
        jpeg = saved(picture, tmp_path / "c.jpg", quality=100).astype(int)  # Adobe's, inverted
        assert abs(jpeg - expected).max() <= 2
    lab = saved(Image.new("LAB", (32, 32), (138, 209, 198)), tmp_path / "lab.tif").astype(int)
    assert abs(lab - [255, 0, 0]).max() <= 6
    for mode, colour in (("YCbCr", (76, 85, 255)), ("HSV", (0, 255, 255))):
        picture = np.asarray(to_rgb(Image.new(mode, (32, 32), colour))).astype(int)
        assert abs(picture - [255, 0, 0]).max() <= 1, mode


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_first_frame_of_an_animation(tmp_path, name):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if name == "a.webp" else {}
    picture = saved(frames[0], tmp_path / name, save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / name) as animation:
        assert animation.n_frames == 3
    assert (picture == [255, 0, 0]).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation(tmp_path, suffix):
    marks = np.full((32, 32, 3), 255, np.uint8)
    marks[:16, :16], marks[:16, 16:], marks[16:, :16] = 0, 80, 160  # upright
    stored = {
        1: marks,
        2: marks[:, ::-1],
        3: marks[::-1, ::-1],
        4: marks[::-1],
        5: marks.transpose(1, 0, 2),
        6: np.rot90(marks),
        7: np.rot90(marks, 2).transpose(1, 0, 2),
        8: np.rot90(marks, 3),
    }
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[274] = orientation
        image = Image.fromarray(np.ascontiguousarray(pixels))
        picture = saved(image, tmp_path / f"{orientation}.{suffix}", exif=exif)
        assert abs(picture.astype(int) - marks).max() <= 4, orientation


def test_a_picture_is_known_by_its_content(tmp_path):
    for name in ("png.jpg", "no_suffix", "wikiart.jpg!Large", "UPPER.PNG"):
        Image.fromarray(COLOUR).save(tmp_path / name, "PNG")
        assert np.array_equal(load_picture(str(tmp_path / name), 32), COLOUR)
    assert resize(tmp_path, tmp_path / "out.npy", 32) == (4, 0)


# Files that are not used


@posix
def test_broken_pictures_are_named_and_others_ignored(folder, tmp_path):
    whole = (folder / "a.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cut_without_suffix").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.PNG").touch()
    (folder / "text.jpg").write_text("<html>404</html>")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "two\nlines.gif").touch()
    (folder / "[red].gif").touch()
    write_png(folder / "bomb.png", 8, 2, [], 20000, 20000)
    tags = {256: 1, 257: 1, 277: 10}  # ten samples per pixel, of which Pillow logs an error
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    (folder / "tags.tif").write_bytes(b"II*\0\x08\0\0\0\x03\0" + entries + bytes(4))
    for name in ("README.md", "draw.py", "notes.txt", ".hidden.jpg", "._a.jpg", ".DS_Store", "e"):
        (folder / name).write_text("Pictures? P1 #define")
    np.save(folder / "cubism_data.npy", RAMP)
    for name in ("weights.h5", "weights.hdf5"):
        (folder / name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")

    done = run(cwd=tmp_path)
    assert done.returncode == 0
    lines = dict(line.split(": ", 1) for line in done.stderr.splitlines() if "/" not in line)
    assert lines.pop("skipped 'cut.jpg'").startswith("OSError: ")
    assert lines.pop("skipped 'cut_without_suffix'").startswith("OSError: ")
    assert lines.pop("skipped 'bomb.png'").startswith("DecompressionBombError: ")
    assert lines == {
        "skipped 'empty.PNG'": "empty, or not a picture that Pillow knows",
        "skipped 'two\\nlines.gif'": "empty, or not a picture that Pillow knows",
        "skipped '[red].gif'": "empty, or not a picture that Pillow knows",
        "skipped 'tags.tif'": "empty, or not a picture that Pillow knows",
        "skipped 'text.jpg'": "empty, or not a picture that Pillow knows",
        "skipped 'gone.jpg'": "No such file or directory",
    }
    assert done.stdout == (
        "cubism_data.npy: float32 (5, 128, 128, 3), 1.0 MB; 9 files skipped\n"
        "not pictures that Pillow can read: 1 .md, 1 .npy, 1 .py, 1 without a suffix, 1 .txt, "
        "1 .jpg, 1 .h5, 1 .hdf5\n"
        "next: python art_gan.py\n"
    )
    assert np.load(tmp_path / "cubism_data.npy").shape == (5, 128, 128, 3)


@not_root
def test_forbidden_picture_is_skipped(folder, tmp_path):
    (folder / "a.jpg").chmod(0)
    done = run(cwd=tmp_path)
    assert "skipped 'a.jpg': Permission denied\n" in done.stderr
    assert "1 files skipped" in done.stdout


@pytest.mark.parametrize(
    "error", [struct.error, EOFError, IndexError, MemoryError, SyntaxError, RecursionError]
)
def test_whatever_a_decoder_raises_ends_as_one_line(folder, tmp_path, monkeypatch, capsys, error):
    def faulty(path, size, crop):
        if path.name == "B.jpg":
            raise error("first\nsecond")
        return load_picture(path, size, crop)

    monkeypatch.setattr(image_resizer, "load_picture", faulty)
    assert resize(folder, tmp_path / "out.npy") == (4, 1)
    reason = f"{'error' if error is struct.error else error.__name__}: first second"
    assert f"skipped 'B.jpg': {reason}\n" in capsys.readouterr().err


def test_a_big_picture_is_read_without_a_warning(folder, tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 301 * 200 - 1)
    assert resize(folder, tmp_path / "out.npy") == (5, 0)
    assert not recwarn.list


# What was not read is said


def test_files_that_are_not_pictures_are_counted_by_suffix(folder, tmp_path):
    for name in ("1.md", "x", "1.heic", "2.HEIC", "y", "3.heic", "b.\x1b[2J\n", "über.dätä"):
        (folder / name).touch()
    done = run(cwd=tmp_path)
    assert done.stdout.splitlines()[1:] == [
        "not pictures that Pillow can read: 3 .heic, 2 without a suffix, 1 .md, "
        "1 .\\x1b[2j\\n, 1 .dätä",
        "next: python art_gan.py",
    ]
    result = image_resizer.resize_folder(str(folder), str(tmp_path / "x.npy"), 32, crop=False)
    assert (result.pictures, result.skipped, result.unread) == (5, 0, 0)
    assert result.others[:2] == ["3 .heic", "2 without a suffix"]


@pytest.fixture
def tree(tmp_path):
    """Return tree/ with pictures on several levels; the grey of each tells which one it is."""
    tree = tmp_path / "tree"
    for grey, name in enumerate(
        (
            "B/z.png",
            "a/b/c.png",
            "a/b.png",
            "a.png",
            "b/a.png",
            ".h/a.png",
            "a/.h/a.png",
            "b/.a.png",
        )
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), grey).save(tree / name)
    (tree / "a" / "notes.md").touch()
    (tree / "b" / "[x].png").touch()
    return tree


def greys(path):
    return ((np.load(path)[:, 0, 0, 0] + 1) * 127.5).round().tolist()


def test_pictures_in_sub_folders_are_counted_and_the_hint_reads_them(tree, tmp_path):
    done = run("tree", "--size", 32, "--output", "my data.npy", cwd=tmp_path)
    hint = "--recursive tree --size 32 --output 'my data.npy'"
    assert done.stdout.splitlines() == [
        "my data.npy: float32 (1, 32, 32, 3), 0.0 MB; 0 files skipped",
        "5 pictures in sub-folders were not read; if you want them: "
        f"python image_resizer.py {hint}",
        "next: python art_gan.py --data 'my data.npy'",
    ]
    assert greys(tmp_path / "my data.npy") == [3]
    done = run(*shlex.split(hint), cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "my data.npy: float32 (5, 32, 32, 3), 0.1 MB; 1 files skipped",
        "not pictures that Pillow can read: 1 .md",
        "next: python art_gan.py --data 'my data.npy'",
    ]
    assert "skipped 'b/[x].png': empty, or not a picture that Pillow knows\n" in done.stderr
    assert greys(tmp_path / "my data.npy") == [0, 1, 2, 3, 4]


def test_the_hint_repeats_the_arguments_of_main(tree, tmp_path, capsys):
    output = str(tmp_path / "x.npy")
    before = [signal.getsignal(signal.SIGTERM), logging.getLogger("PIL").level]
    for arguments, count in ((["--recursive", str(tree)], 5), ([str(tree)], 1)):
        assert image_resizer.main([*arguments, "--size", "32", "--output", output]) == 0
        assert len(np.load(output)) == count
    hint = shlex.join(["--recursive", str(tree), "--size", "32", "--output", output])
    assert f"if you want them: python image_resizer.py {hint}\n" in capsys.readouterr().out
    assert [signal.getsignal(signal.SIGTERM), logging.getLogger("PIL").level] == before


@posix
def test_links_to_folders_are_not_followed(tree, tmp_path, monkeypatch, capsys):
    (tree / "a" / "loop").symlink_to("..")
    (tree / "a" / "self").symlink_to("self")
    (tmp_path / "elsewhere").mkdir()
    Image.new("L", (32, 32), 99).save(tmp_path / "elsewhere" / "x.png")
    (tree / "linked").symlink_to("../elsewhere")
    (tmp_path / "link").symlink_to("tree")
    monkeypatch.chdir(tree)
    for folder in (".", "../link", "../link/", str(tree)):
        image_resizer.resize_folder(folder, "../x.npy", 32, crop=False, recursive=True)
        assert "skipped 'a/self': Too many levels of symbolic" in capsys.readouterr().err
        assert greys(tmp_path / "x.npy") == [0, 1, 2, 3, 4]


@not_root
def test_forbidden_sub_folder_is_named(tree, tmp_path):
    (tree / "a").chmod(0)
    done = run("tree", "--recursive", "--size", 32, cwd=tmp_path)
    (tree / "a").chmod(0o700)
    assert done.returncode == 0 and "skipped 'tree/a': Permission denied\n" in done.stderr
    assert greys(tmp_path / "cubism_data.npy") == [0, 3, 4]


def test_sub_folder_that_fails_is_named(tree, tmp_path, monkeypatch, capsys):
    scandir = os.scandir

    def failing(path):
        if str(path).endswith("a"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    output = tmp_path / "x.npy"
    image_resizer.resize_folder(str(tree), str(output), 32, crop=False, recursive=True)
    name = repr(str(tree / "a"))
    assert f"skipped {name}: Input/output error\n" in capsys.readouterr().err
    assert greys(output) == [0, 3, 4]


# The command


def test_output_size_and_crop_options(folder, tmp_path):
    done = run("dataset", "--output", "my data.npy", "--size", 64, "--crop", cwd=tmp_path)
    assert done.stdout == (
        "my data.npy: float32 (5, 64, 64, 3), 0.2 MB; 0 files skipped\n"
        "next: python art_gan.py --data 'my data.npy'\n"
    )
    assert done.stderr.splitlines() == [f"{n}/5 files" for n in range(1, 6)]
    array = np.load(tmp_path / "my data.npy")
    cropped = load_picture(str(folder / "a.jpg"), 64, crop=True)
    assert np.array_equal(array[2], (cropped / 127.5 - 1).astype(np.float32))
    assert sorted(os.listdir(tmp_path)) == ["dataset", "my data.npy"]


def test_plain_lines_are_few(folder, tmp_path, capsys):
    for n in range(1229):
        (folder / f"{n}.md").touch()
    assert resize(folder, tmp_path / "out.npy") == (5, 0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[-1] == "1234/1234 files"


def show(terminal):
    """Return what a terminal of 80 columns receives until the last process has closed it."""
    shown = b""
    while True:
        try:
            text = os.read(terminal, 10000)
        except OSError:  # Linux raises EIO at the end
            text = b""
        if not text:
            os.close(terminal)
            return shown.decode()
        shown += text


@posix
def test_bar_and_skipped_files_share_a_terminal(folder, tmp_path):
    (folder / "[red]C:smile:.jpg").touch()
    terminal, end = os.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    process = start(cwd=tmp_path, stderr=end, env=environment)
    os.close(end)
    shown = show(terminal)
    assert process.wait() == 0
    rows = [row for row in shown.replace("\x1b[2K", "\r").replace("\n", "\r").split("\r") if row]
    message = "skipped '[red]C:smile:.jpg': empty, or not a picture that Pillow knows"
    assert rows.count(message) == 1
    bars = [row for row in rows if row != message and "%" in row]
    assert "  0%" in bars[0] and "100%" in bars[-1] and "files" not in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is visible again
    assert process.stdout.read().startswith("cubism_data.npy: float32 (5, 128, 128, 3)")


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_shows_the_cursor_again(slow_folder, tmp_path, number):
    terminal, end = os.openpty()
    process = start("slow", cwd=tmp_path, stderr=end, env=os.environ | {"TERM": "xterm"})
    os.close(end)
    wait_for_part(tmp_path)
    process.send_signal(number)
    shown = show(terminal)
    assert process.wait() == 130
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert shown.endswith("interrupted; 'cubism_data.npy' is as it was before\r\n")
    assert "Traceback" not in shown


@posix
@pytest.mark.parametrize("broken", [False, True])
def test_closing_the_terminal_does_not_lose_the_file(folder, tmp_path, broken):
    for n in range(6):
        Image.new("RGB", (2500, 2500)).save(folder / f"f{n}.jpg")
    if broken:
        (folder / "z.jpg").touch()  # is named when the terminal is gone
    terminal, end = os.openpty()
    process = start(cwd=tmp_path, stderr=end)
    os.close(end)
    wait_for_part(tmp_path)
    os.close(terminal)
    assert process.wait(timeout=30) == 0
    assert np.load(tmp_path / "cubism_data.npy").shape == (11, 128, 128, 3)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["none"], "cannot read 'none': No such file or directory; fix that, or name another\n"),
        (["dataset/a.jpg"], "cannot read 'dataset/a.jpg': Not a directory; fix that, or name "),
        (["empty"], "no readable picture in 'empty' (0 skipped); add some, or run: python image_"),
        (["hollow"], "no readable picture in 'hollow' (0 skipped); add some, or run: "),
        (["bad"], "no readable picture in 'bad' (1 skipped); add some, or run: "),
        (["bad", "--recursive"], "no readable picture in 'bad' (1 skipped); add some, or run: "),
        (["apple"], "no readable picture in 'apple' (0 skipped, 2 .heic, 1 .md); add some, or "),
        (
            ["."],
            "no readable picture in '.' (0 skipped), but 5 in 'dataset'; "
            "run: python image_resizer.py dataset\n",
        ),
        (
            ["deep"],
            "no readable picture in 'deep' (0 skipped), but 2 in 'deep/one/the best'; "
            "run: python image_resizer.py 'deep/one/the best'\n",
        ),
        (
            ["dataset", "--output", "no/x.npy"],
            "cannot write 'no/x.npy': No such file or directory; fix that, or name another\n",
        ),
        (["dataset", "--output", "empty"], "--output 'empty' is not a file; name one, such as "),
        (["dataset", "--output", ""], "--output '' is not a file; name one, such as "),
        (["dataset", "--output", os.devnull], f"--output {os.devnull!r} is not a file; name one"),
    ],
)
@posix
def test_refusals_are_one_line(folder, tmp_path, monkeypatch, capsys, arguments, line):
    for path in ("empty", "hollow/inside", "bad", "apple", "deep/a", "deep/one/the best"):
        (tmp_path / path).mkdir(parents=True)
    for path in ("apple/README.md", "apple/b.heic", "apple/c.HEIC"):
        (tmp_path / path).touch()
    for path in ("bad/x.jpg", "deep/a/x.jpg", "deep/one/the best/x.JPG", "deep/one/the best/y.png"):
        (tmp_path / path).touch()
    (tmp_path / "deep/a/.hidden.jpg").touch()
    (tmp_path / "deep/a/weights.h5").touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert image_resizer.main(arguments) == 1
    out, err = capsys.readouterr()
    progress = ("skip", "1/1", "1/3", "2/3", "3/3")
    lines = [line for line in err.splitlines(True) if not line.startswith(progress)]
    assert len(lines) == 1
    assert lines[0].startswith(f"image_resizer.py: error: {line}")
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before


@not_root
@pytest.mark.parametrize("forbidden", ["dataset", "locked"])
def test_forbidden_folders(folder, tmp_path, forbidden):
    (tmp_path / "locked").mkdir()
    (tmp_path / forbidden).chmod(0)
    done = run("dataset", "--output", "locked/x.npy", cwd=tmp_path)
    (tmp_path / forbidden).chmod(0o700)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "Permission denied; " in done.stderr


@pytest.mark.parametrize("arguments", [["--size", "100"], ["--sise", "64"], ["a", "b"]])
def test_bad_options_end_with_2(tmp_path, arguments):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and "image_resizer.py: error: " in done.stderr


def test_the_articles_command_hints_at_the_sample(folder, tmp_path):
    (tmp_path / "other").mkdir()
    folder.rename(tmp_path / "other" / "sample")
    (tmp_path / "other").rename(folder)
    done = run(cwd=tmp_path)
    assert done.stderr.endswith("run: python image_resizer.py dataset/sample\n")
    assert run("dataset/sample", cwd=tmp_path).returncode == 0


# The file appears whole or not at all


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_the_older_file(slow_folder, tmp_path, number):
    older = tmp_path / "cubism_data.npy"
    older.write_bytes(b"older")
    process = start("slow", cwd=tmp_path)
    wait_for_part(tmp_path, 500_000)
    process.send_signal(number)
    started = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 3  # all of them would take far longer
    assert process.returncode == 130 and out == ""
    last = "image_resizer.py: interrupted; 'cubism_data.npy' is as it was before"
    assert err.splitlines()[-1] == last and "Traceback" not in err
    assert older.read_bytes() == b"older"
    assert sorted(os.listdir(tmp_path)) == ["cubism_data.npy", "slow"]


def test_interruption_does_not_wait_for_the_queue(folder, tmp_path, monkeypatch):
    for n in range(200):
        (folder / f"{n}.png").write_bytes((folder / "e.png").read_bytes())
    loaded = []

    def slow(path, size, crop):
        loaded.append(path)
        time.sleep(0.005)
        return load_picture(path, size, crop)

    def interrupt(line):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_resizer, "load_picture", slow)
    monkeypatch.setattr(image_resizer, "say", interrupt)
    with pytest.raises(KeyboardInterrupt):
        resize(folder, tmp_path / "out.npy")
    assert len(loaded) < 50 + 2 * (os.cpu_count() or 1)
    assert os.listdir(tmp_path) == ["dataset"]


@posix
def test_full_disk_leaves_the_older_file(folder, tmp_path):
    import resource

    def small_files_only():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    older = tmp_path / "cubism_data.npy"
    older.write_bytes(b"older")
    done = run(cwd=tmp_path, preexec_fn=small_files_only)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "image_resizer.py: error: cannot write 'cubism_data.npy': File too large; "
        "fix that, or name another"
    )
    assert older.read_bytes() == b"older"
    assert sorted(os.listdir(tmp_path)) == ["cubism_data.npy", "dataset"]


def test_failure_without_a_picture_leaves_the_older_file(tmp_path):
    older = tmp_path / "old.npy"
    older.write_bytes(b"older")
    assert run(tmp_path, "--output", "old.npy", cwd=tmp_path).returncode == 1
    assert older.read_bytes() == b"older" and os.listdir(tmp_path) == ["old.npy"]


@posix
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_new_file_has_ordinary_permissions_and_replaces_leftovers(folder, tmp_path, mask, mode):
    (tmp_path / "disk").mkdir()
    (tmp_path / "cubism_data.npy").symlink_to("disk/real.npy")
    leftover = tmp_path / "disk" / "real.npy.0123cdef.part"
    leftover.write_bytes(bytes(5_000_000))
    assert run(cwd=tmp_path, umask=mask).returncode == 0
    assert (tmp_path / "cubism_data.npy").is_symlink() and not leftover.exists()
    real = tmp_path / "disk" / "real.npy"
    assert real.stat().st_mode & 0o777 == mode
    assert real.stat().st_size == 128 + 5 * 128 * 128 * 3 * 4
    assert np.load(tmp_path / "cubism_data.npy", mmap_mode="r").shape == (5, 128, 128, 3)


def test_importing_does_no_work(tmp_path):
    code = f"import sys; sys.path.insert(0, {os.path.dirname(SCRIPT)!r}); import image_resizer"
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert os.listdir(tmp_path) == []


# Several runs write one file


@pytest.fixture
def stopped(folder, slow_folder, tmp_path):
    """Return a run on dataset/ that is suspended while it writes, and its temporary file."""
    for n in range(12):
        (folder / f"f{n}.jpg").symlink_to(slow_folder / "0.jpg")
    process = start("dataset", "--size", 32, cwd=tmp_path)
    part = wait_for_part(tmp_path)
    process.send_signal(signal.SIGSTOP)
    yield process, part
    process.kill()


def resume(process):
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err


@posix
def test_a_killed_run_does_not_touch_the_file_of_another(stopped, folder, tmp_path):
    first, part = stopped
    second = start("slow", "--size", 64, cwd=tmp_path)
    leftover = wait_for_part(tmp_path, known=[part])
    second.kill()
    second.communicate()
    assert part.exists() and leftover.exists()
    resume(first)
    assert np.load(tmp_path / "cubism_data.npy").shape == (17, 32, 32, 3)
    assert leftover.exists() and not part.exists()
    assert resize(folder, tmp_path / "cubism_data.npy", 32) == (17, 0)
    assert sorted(os.listdir(tmp_path)) == ["cubism_data.npy", "dataset", "slow"]


@posix
def test_two_runs_on_one_file_both_finish(stopped, folder, tmp_path):
    first, part = stopped
    assert resize(folder, tmp_path / "cubism_data.npy", 64) == (17, 0)
    assert part.exists()
    assert np.load(tmp_path / "cubism_data.npy").shape == (17, 64, 64, 3)
    resume(first)
    assert np.load(tmp_path / "cubism_data.npy").shape == (17, 32, 32, 3)
    assert sorted(os.listdir(tmp_path)) == ["cubism_data.npy", "dataset", "slow"]


@posix
def test_only_the_leftovers_of_the_same_file_are_removed(folder, tmp_path):
    for name in ("[a]*.npy.01234567.part", "[a]*.npy.ffffffff.part"):
        (tmp_path / name).touch()
    (tmp_path / "[a]*.npy.ffffffff.part").chmod(0)
    kept = [
        "[a]*.npy.00000000.part",  # a folder
        "[a]*.npy.download.part",
        "[a]*.npy.part",
        "[a]*.npy.x.01234567.part",
        "a.npy.01234567.part",
    ]
    (tmp_path / kept[0]).mkdir()
    for name in kept[1:]:
        (tmp_path / name).touch()
    assert run("--output", "[a]*.npy", cwd=tmp_path).returncode == 0
    left = set(os.listdir(tmp_path)) - {"[a]*.npy.ffffffff.part"}  # root can open it, others cannot
    assert left == {"[a]*.npy", "dataset", *kept}


@posix
def test_file_that_is_removed_before_it_is_locked(folder, tmp_path, monkeypatch):
    import fcntl

    flock, removed = fcntl.flock, []

    def late(file, kind):
        if not removed:
            removed.extend(tmp_path.glob("*.part"))
            removed[0].unlink()
        flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    assert resize(folder, tmp_path / "out.npy") == (5, 0)
    assert removed and sorted(os.listdir(tmp_path)) == ["dataset", "out.npy"]


@posix
@pytest.mark.parametrize("system", ["Windows", "no locks"])
def test_without_locks(folder, tmp_path, monkeypatch, system):
    import fcntl

    def refuse(file, kind):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if system == "Windows":
        monkeypatch.setattr(image_resizer, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", refuse)
    other = tmp_path / "out.npy.01234567.part"  # may be a running one's
    other.touch()
    assert resize(folder, tmp_path / "out.npy") == (5, 0)
    assert sorted(os.listdir(tmp_path)) == ["dataset", "out.npy", other.name]


@posix
@pytest.mark.parametrize("error", [None, OSError(errno.EINVAL, "Invalid"), KeyboardInterrupt()])
def test_file_and_folder_are_on_the_disk_before_it_is_reported(
    folder, tmp_path, monkeypatch, error
):
    output, steps, fsync = tmp_path / "out.npy", [], os.fsync

    def record(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append((path.suffix or path.name, path.stat().st_size, output.exists()))
        fsync(descriptor)
        if error and path == tmp_path:
            raise error

    monkeypatch.setattr(os, "fsync", record)
    try:
        assert resize(folder, output, 32) == (5, 0)
    except KeyboardInterrupt:
        pytest.fail("the file is saved, so it is too late for an interruption")
    (name, size, existed), (folder_name, _, exists) = steps
    assert (name, size, existed) == (".part", output.stat().st_size, False)
    assert (folder_name, exists) == (tmp_path.name, True)


# Standard streams that fail


def run_shell(command, cwd):
    """Return the exit code; Python's output is buffered, so that it is also flushed at the end."""
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    return subprocess.run(["sh", "-c", command], cwd=cwd, env=environment, timeout=60).returncode


@posix
@pytest.mark.parametrize(
    "shell",
    [
        "{} > /dev/full",
        "{} 2> /dev/full",
        "{} > /dev/full 2>&1",
        "{} 2>&-",
        "{} >&-",
        "{} <&- >&- 2>&-",
        "({}; echo $? > code) | true; exit $(cat code)",
        "({} 2>&1; echo $? > code) | true; exit $(cat code)",
    ],
)
def test_streams_that_fail_do_not_lose_the_file(folder, tmp_path, capfd, shell):
    (folder / "C.jpg").touch()
    Image.new("RGB", (64, 64), "red").save(folder / "z.tif", compression="tiff_adobe_deflate")
    damaged = bytearray((folder / "z.tif").read_bytes())
    damaged[20] ^= 255  # libtiff itself prints a line about it to descriptor 2
    (folder / "z.tif").write_bytes(damaged)
    Image.fromarray(COLOUR).save(folder / "zz.png")

    assert resize(folder, tmp_path / "expected.npy", 32) == (6, 2)
    assert "ZIPDecode" in capfd.readouterr().err
    command = shlex.join([sys.executable, SCRIPT, "--size", "32"])
    assert run_shell(shell.format(command), tmp_path) == 0
    written = (tmp_path / "cubism_data.npy").read_bytes()
    assert written == (tmp_path / "expected.npy").read_bytes()


@posix
@pytest.mark.parametrize("stream", ["2> /dev/full", "2>&-"])
def test_an_error_that_cannot_be_shown_ends_with_1(tmp_path, stream):
    command = shlex.join([sys.executable, SCRIPT, "none"])
    assert run_shell(f"{command} {stream}", tmp_path) == 1


@posix
def test_names_that_the_output_cannot_show_do_not_lose_the_file(folder, tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert run("--output", "ü.npy", cwd=tmp_path, env=environment).returncode == 0
    assert (tmp_path / "ü.npy").exists()
