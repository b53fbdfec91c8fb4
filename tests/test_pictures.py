"""Test how image_resizer.py reads pictures of all kinds, and what it leaves out.

Pictures of 32 x 32 pixels at --size 32 are not resized, so their values are known exactly.
"""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from helpers_resizer import COLOUR, GREY, RAMP, difference, grey_rgb, load, png, resize, saved
from PIL import Image

import image_resizer
from image_resizer import UserError, to_rgb

MISREAD = "^a rare kind that Pillow misreads; save it as an 8-bit PNG$"
LEFT = np.arange(32) < 16  # the left half of every row


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_equals_the_articles_loop_bit_for_bit(dataset, tmp_path, size):
    training_data = []
    for filename in ["B.jpg", "D.JPEG", "a.jpg", "c.bmp", "e.png"]:
        image = Image.open(dataset / filename).resize((size, size), Image.LANCZOS)
        training_data.append(np.asarray(image))
    training_data = np.reshape(training_data, (-1, size, size, 3)) / 127.5 - 1

    output = tmp_path / "out.npy"
    assert resize(dataset, output, size) == (5, 0)
    array = np.load(output, mmap_mode="r", allow_pickle=False)
    assert array.dtype == np.float32
    assert np.array_equal(array, training_data.astype(np.float32))


def test_the_table_is_the_articles_formula():
    pixels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(image_resizer.SCALED, (pixels / 127.5 - 1).astype(np.float32))


def test_crop_cuts_the_centre_square_after_turning_upright(tmp_path):
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = COLOUR
    assert not np.array_equal(saved(Image.fromarray(wide), tmp_path / "wide.png"), COLOUR)
    assert np.array_equal(load(tmp_path / "wide.png", 32, crop=True), COLOUR)

    turned = Image.fromarray(wide).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[274] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(load(tmp_path / "turned.png", 32, crop=True), COLOUR)

    tall = np.zeros((97, 32), np.uint8)
    tall[32:64] = 200
    Image.fromarray(tall).save(tmp_path / "tall.png")
    assert (load(tmp_path / "tall.png", 32, crop=True) == 200).all()


def test_crop_lets_nothing_outside_the_square_in(tmp_path):
    wide = np.full((64, 128, 3), 255, np.uint8)
    wide[:, 32:96] = 100
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (load(tmp_path / "wide.png", 32, crop=True) == 100).all()
    assert (load(tmp_path / "wide.png", 32) != 100).any()


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
    with pytest.raises(UserError, match=MISREAD):
        saved(deep, tmp_path / "i16.png", transparency=640)


def test_16_bit_grey(tmp_path):
    values = (RAMP * 65535 // 1023).astype(np.uint16)  # 0..65535
    expected = grey_rgb(np.round(values / 257))
    assert expected.min() == 0 and expected.max() == 255
    deep = Image.fromarray(values)
    assert deep.mode == "I;16"
    for name in ("i.png", "i.tif", "i.pgm"):
        assert np.array_equal(saved(deep, tmp_path / name), expected), name
    big_endian = Image.frombytes("I;16B", (32, 32), values.astype(">u2").tobytes())
    assert np.array_equal(saved(big_endian, tmp_path / "b.tif"), expected)
    assert np.array_equal(to_rgb(Image.fromarray(values.astype(np.int32))), expected)  # "I"
    exif = Image.Exif()
    exif[274] = 3  # upside down
    assert np.array_equal(saved(deep, tmp_path / "i.png", exif=exif), expected[::-1, ::-1])


def test_16_bit_colour(tmp_path):
    (tmp_path / "rgb.png").write_bytes(png(16, 2, COLOUR.astype(int) * 256 + 99))
    assert np.array_equal(load(tmp_path / "rgb.png", 32), COLOUR)


def test_32_bit_grey_is_refused(tmp_path):
    """Which value is white is not known."""
    for values in (RAMP / 1023, RAMP * 1.0, np.where(LEFT, np.nan, RAMP / 1023)):
        with pytest.raises(UserError, match=MISREAD):
            saved(Image.fromarray(values.astype(np.float32)), tmp_path / "f.tif")
    for values in (RAMP, RAMP * 65, RAMP - 1):
        with pytest.raises(UserError, match=MISREAD):
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
        assert animation.n_frames == 3 or b"acTL" in (tmp_path / name).read_bytes()  # a PNG's
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
        assert np.array_equal(load(tmp_path / name, 32), COLOUR)
    assert resize(tmp_path, tmp_path / "out.npy", 32) == (4, 0)


def test_a_big_picture_is_read_without_a_warning(dataset, tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 301 * 200 - 1)
    assert resize(dataset, tmp_path / "out.npy") == (5, 0)
    assert not recwarn.list


# Metadata costs no picture


def exif(*entries):
    """Return EXIF with orientation 6 and other entries: tag, type, count, value."""
    entries = sorted([(274, 3, 1, b"\6\0\0\0"), *entries])
    table = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_exif_that_is_none(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    picture = Image.fromarray(COLOUR)
    for broken in (b"Exif\0\0garbage!", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM"):
        found = saved(picture, tmp_path / f"a.{suffix}", exif=broken, **options)
        assert np.array_equal(found, COLOUR)


@pytest.mark.parametrize(
    "entry",
    [
        (256, 2, 4, b"abc\0"),
        (256, 9, 1, b"\xff\xff\xff\xff"),
        (259, 4, 1, b"\0\0\1\0"),
        (282, 2, 4, b"abc\0"),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_turned_picture_with_exif_that_cannot_be_written_back(tmp_path, suffix, entry):
    upright = np.full((32, 32), 255, np.uint8)
    upright[:16, :16], upright[:16, 16:] = 0, 100
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    found = saved(turned, tmp_path / f"a.{suffix}", exif=exif(entry))
    assert abs(found.astype(int) - upright[..., None]).max() <= 4


def test_long_texts_and_profiles_in_png(tmp_path):
    long = bytes(1_100_000)
    assert (saved(Image.new("RGB", (32, 32)), tmp_path / "a.png", icc_profile=long) == 0).all()
    for kind, body in (
        (b"zTXt", b"note\0\0" + zlib.compress(long)),
        (b"iTXt", b"note\0\1\0\0\0" + zlib.compress(long)),
        (b"tEXt", b"note\0" + long * 70),
    ):
        data = png(8, 2, COLOUR, (kind, body), (b"eXIf", exif()[6:]))
        assert difference(data, np.rot90(COLOUR, -1), tmp_path) == 0, kind


def test_png_with_wrong_checksums_and_animations(tmp_path):
    """Only where the pixels depend on a chunk does a wrong checksum cost the picture."""
    frame = struct.pack(">IIIIIHHBB", 0, 32, 32, 0, 0, 1, 1, 0, 0)
    for kind, body in (
        (b"tEXt", b"note\0text"),
        (b"zTXt", b"note\0\7unknown"),
        (b"pHYs", bytes(9)),
        (b"eXIf", exif()[6:]),
        (b"acTL", struct.pack(">II", 3, 0)),
        (b"fcTL", frame),
        (b"fdAT", bytes(4)),
        (b"tRNS", b"\0\1\0\1\0\1"),
    ):
        good = png(8, 2, COLOUR, (kind, body))
        expected = np.rot90(COLOUR, -1) if kind == b"eXIf" else COLOUR
        assert difference(good, expected, tmp_path) == 0, kind
        place = good.index(kind) + 4 + len(body)
        bad = good[:place] + bytes(4) + good[place + 4 :]
        assert difference(bad, expected, tmp_path) == (None if kind == b"tRNS" else 0), kind


@pytest.mark.parametrize("number", range(16))
def test_jpeg_with_broken_segments(tmp_path, number):
    picture = io.BytesIO()
    Image.fromarray(GREY).save(picture, "JPEG", quality=100)
    index = b"MPF\0II*\0\x08\0\0\0\2\0" + struct.pack("<HHII", 0xB001, 4, 1, 3)
    index += struct.pack("<HHII", 0xB002, 7, 16, 50) + bytes(52)
    bodies = [b"JFIF\0", b"ICC_PROFILE\0", b"Photoshop 3.0\x008BIM\4\4", b"Adobe", index]
    for body in (*bodies, b"http://ns.adobe.com/xap/1.0/\0", b"Exif\0\0"):
        marker = bytes([255, 0xE0 + number]) + struct.pack(">H", len(body) + 2) + body
        data = b"\xff\xd8" + marker + picture.getvalue()[2:]
        assert difference(data, grey_rgb(GREY), tmp_path) <= 4, body


def test_png_with_broken_chunks(tmp_path):
    for kind in (b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME", b"zTXt", b"eXIf"):
        for body in (b"", b"\0\0\0", b"a\0\0garbage"):
            assert difference(png(8, 2, COLOUR, (kind, body)), COLOUR, tmp_path) == 0, kind


# Shapes


def test_grey_pictures_are_what_pillow_makes_of_colour(tmp_path):
    pixels = np.dstack([COLOUR, GREY])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    colour = load(tmp_path / "a.png")
    grey = image_resizer.load_picture(tmp_path / "a.png", (32, 32, 1))
    assert grey.shape == (32, 32, 1) and grey.dtype == np.uint8
    assert np.array_equal(grey[..., 0], Image.fromarray(colour).convert("L"))


@pytest.mark.parametrize("orientation", [1, 6])
def test_pictures_that_are_not_square(tmp_path, orientation):
    wide = np.zeros((64, 256, 3), np.uint8)
    wide[:, 104:152] = 200
    picture, options = Image.fromarray(wide), {}
    if orientation == 6:
        picture, options = picture.transpose(Image.Transpose.ROTATE_90), {"exif": exif()}
    picture.save(tmp_path / "a.png", **options)
    squeezed = image_resizer.load_picture(tmp_path / "a.png", (64, 48, 3))
    cropped = image_resizer.load_picture(tmp_path / "a.png", (64, 48, 3), crop=True)
    assert squeezed.shape == cropped.shape == (64, 48, 3)
    assert (cropped == 200).all() and (squeezed == 0).any()
    for size in ((1, 300), (300, 1), (1, 1)):
        Image.new("RGB", size, "red").save(tmp_path / "thin.png")
        found = image_resizer.load_picture(tmp_path / "thin.png", (64, 48, 3), crop=True)
        assert (found == [255, 0, 0]).all()


# Large pictures


@pytest.mark.slow
def test_a_scan_above_pillows_limit(tmp_path):
    width, height = 20000, 9000
    scan = Image.fromarray(COLOUR).resize((width, height), Image.Resampling.NEAREST)
    scan.save(tmp_path / "scan.jpg", quality=90)
    found = load(tmp_path / "scan.jpg").astype(int)
    assert abs(found - COLOUR).mean() < 3
    scan.resize((width // 4, height // 4)).save(tmp_path / "small.jpg")
    small = (tmp_path / "small.jpg").read_bytes()
    with Image.open(tmp_path / "small.jpg") as image:
        exact = np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS))
    assert np.array_equal(load(tmp_path / "small.jpg"), exact)  # as before, and not reduced
    size = small.index(b"\xff\xc0") + 5
    for suffix, data in (
        ("png", png(8, 2, COLOUR[:1], size=(20000, 15000))),
        ("jpg", small[:size] + struct.pack(">HH", 3000, 65500) + small[size + 4 :]),  # a strip
    ):
        (tmp_path / f"large.{suffix}").write_bytes(data)
        megapixels = 300 if suffix == "png" else 196
        with pytest.raises(UserError, match=f"^too large: {megapixels} megapixels; shrink it$"):
            load(tmp_path / f"large.{suffix}", 512)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_memory_does_not_grow_with_threads(tmp_path, mode):
    """Of these, two go at a time; all four would take 1.3 or 5.2 GB."""
    folder = tmp_path / "large"
    folder.mkdir()
    suffix = "jpg" if mode == "RGB" else "png"
    Image.new(mode, (9000, 9000)).save(folder / f"0.{suffix}")
    for n in range(1, 4):
        (folder / f"{n}.{suffix}").symlink_to(f"0.{suffix}")
    code = "import os, image_resizer; "
    code += "os.sched_getaffinity, os.cpu_count = lambda _: range(4), lambda: 4; "
    code += f"image_resizer.resize_folder({str(folder)!r}, 'x.npy', (32, 32, 3)); "
    code += "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    environment = os.environ | {"PYTHONPATH": os.path.dirname(image_resizer.__file__)}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert int(out.stdout) / 1e6 < (0.8 if mode == "RGB" else 2.8)
