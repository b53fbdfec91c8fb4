"""image_resizer.py against the article's own loop, odd and broken pictures, and rude endings.

Pictures of 32 x 32 pixels at --size 32 pass unresized, so their values can be stated exactly.
"""

import os
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
    return image_resizer.resize_folder(str(folder), str(output), size, crop=False)


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
        "skipped 'empty.PNG'": "the file is empty",
        "skipped 'two\\nlines.gif'": "the file is empty",
        "skipped 'tags.tif'": "not a picture that Pillow knows",
        "skipped 'text.jpg'": "not a picture that Pillow knows",
        "skipped 'gone.jpg'": "No such file or directory",
    }
    assert done.stdout == (
        "cubism_data.npy: float32 (5, 128, 128, 3), 1.0 MB; 8 files skipped\n"
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
        if path.endswith("B.jpg"):
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


def test_plain_lines_are_few(tmp_path, capsys):
    for done in range(1, 1235):
        image_resizer.show_progress(done, 1234)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[-1] == "1234/1234 files"


@posix
def test_bar_and_skipped_files_share_a_terminal(folder, tmp_path):
    (folder / "C.jpg").touch()
    terminal, end = os.openpty()
    done = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, stderr=end, timeout=60)
    os.close(end)
    shown = os.read(terminal, 10000).decode()
    os.close(terminal)
    assert done.returncode == 0
    assert "\r[#####                         ] 1/6 files" in shown
    assert "\rskipped 'C.jpg': the file is empty        " in shown
    assert shown.rstrip(" \r\n").endswith(f"\r[{'#' * 30}] 6/6 files")
    lines = [line.split("\r")[-1] for line in shown.replace("\r\n", "\n").split("\n")]
    assert len(lines) == 3 and lines[2] == ""  # the skipped file's, the bar's


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["none"], "cannot read the folder 'none': No such file or directory; name another: "),
        (["dataset/a.jpg"], "cannot read the folder 'dataset/a.jpg': Not a directory; "),
        (["empty"], "no readable picture in 'empty' (0 skipped); put some there, or run: "),
        (["hollow"], "no readable picture in 'hollow' (0 skipped); put some there, or run: "),
        (["bad"], "no readable picture in 'bad' (1 skipped); put some there, or run: "),
        (
            ["."],
            "no readable picture in '.' (0 skipped), but 5 in './dataset'; "
            "run: python image_resizer.py ./dataset\n",
        ),
        (
            ["deep"],
            "no readable picture in 'deep' (0 skipped), but 2 in 'deep/one/the best'; "
            "run: python image_resizer.py 'deep/one/the best'\n",
        ),
        (["dataset", "--output", "no/x.npy"], "cannot write 'no/x.npy': No such file or directory"),
        (["dataset", "--output", "empty"], "--output 'empty' is not a file; name one, such as "),
        (["dataset", "--output", ""], "--output '' is not a file; name one, such as "),
        (["dataset", "--output", os.devnull], f"--output {os.devnull!r} is not a file; name one"),
    ],
)
@posix
def test_refusals_are_one_line(folder, tmp_path, arguments, line):
    for path in ("empty", "hollow/inside", "bad", "deep/a", "deep/one/the best"):
        (tmp_path / path).mkdir(parents=True)
    for path in ("bad/x.jpg", "deep/a/x.jpg", "deep/one/the best/x.JPG", "deep/one/the best/y.png"):
        (tmp_path / path).touch()
    (tmp_path / "deep/a/.hidden.jpg").touch()
    (tmp_path / "deep/a/weights.h5").touch()
    before = sorted(tmp_path.rglob("*"))
    done = run(*arguments, cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines(True) if not line.startswith(("skip", "1/1"))]
    assert len(lines) == 1
    assert lines[0].startswith(f"image_resizer.py: error: {line}")
    assert (done.returncode, done.stdout) == (1, "")
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
def test_interruption_leaves_the_older_file(tmp_path, number):
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    Image.new("RGB", (2500, 2500)).save(dataset / "0.jpg")
    for n in range(1, 400):
        (dataset / f"{n}.jpg").symlink_to("0.jpg")
    older = tmp_path / "cubism_data.npy"
    older.write_bytes(b"older")
    process = subprocess.Popen(
        [sys.executable, SCRIPT],
        cwd=tmp_path,
        stdout=-1,
        stderr=-1,
        text=True,
        # A shell's background job, such as these tests may be, ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    part = tmp_path / "cubism_data.npy.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > 500_000):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    started = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 3  # all of them would take far longer
    assert process.returncode == 130 and out == ""
    last = "image_resizer.py: interrupted; 'cubism_data.npy' is as it was before"
    assert err.splitlines()[-1] == last and "Traceback" not in err
    assert older.read_bytes() == b"older" and not part.exists()


def test_interruption_does_not_wait_for_the_queue(folder, tmp_path, monkeypatch):
    for n in range(200):
        (folder / f"{n}.png").write_bytes((folder / "e.png").read_bytes())
    loaded = []

    def slow(path, size, crop):
        loaded.append(path)
        time.sleep(0.005)
        return load_picture(path, size, crop)

    def interrupt(done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_resizer, "load_picture", slow)
    monkeypatch.setattr(image_resizer, "show_progress", interrupt)
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
        "put that right, or name another --output"
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
    leftover = tmp_path / "disk" / "real.npy.part"
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
