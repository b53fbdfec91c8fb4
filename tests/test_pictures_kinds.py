"""Test the rare kinds of TIFF and PNG, compared with the samples that were written."""

import io
import struct

import numpy as np
import pytest
from helpers_resizer import COLOUR, GREY, difference, grey_rgb, load, png, tiff
from PIL import Image

from image_resizer import UserError, to_rgb

# Photometric: channels, and how samples in 0..1 become red, green and blue
SCHEMES = {
    0: (1, lambda v: 1 - v.repeat(3, -1)),
    1: (1, lambda v: v.repeat(3, -1)),
    2: (3, lambda v: v),
    5: (4, lambda v: (1 - v[..., :3]) * (1 - v[..., 3:])),
}
READ = {  # (photometric, bits, extra samples): what must be read, at least in one byte order
    *((grey, bits, ()) for grey in (0, 1) for bits in (1, 2, 4, 8)),
    *((1, bits, extra) for bits, extra in ((16, ()), (8, (0,)), (8, (2,)))),
    *((2, bits, extra) for bits in (8, 16) for extra in ((), (0,), (1,), (2,))),
    *((5, bits, extra) for bits, extra in ((8, ()), (8, (0,)), (16, ()))),
}


@pytest.mark.parametrize("extra", [(), (0,), (1,), (2,)])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16, "float"])
@pytest.mark.parametrize("photometric", SCHEMES)
def test_every_kind_of_tiff_is_right_or_refused(tmp_path, photometric, bits, extra):
    """Extra samples: 0 is unspecified, 1 premultiplied alpha, 2 alpha."""
    channels, colours = SCHEMES[photometric]
    top = 1 if bits == "float" else 2**bits - 1
    values = np.random.default_rng(5).random((32, 32, channels + len(extra)))
    values = values if bits == "float" else (values * top).round() / top
    alpha = values[..., -1:] if extra in [(1,), (2,)] else 1
    expected = 255 * (colours(values[..., :channels]) * alpha + 1 - alpha)
    if extra == (1,):
        values[..., :-1] = (values[..., :-1] * alpha * top).round() / top
    samples = values.astype("f4") if bits == "float" else (values * top).round().astype(int)
    tolerance = 3 if extra in [(1,), (2,)] or photometric == 5 else 1
    read = set()
    for end in "<>":
        for planes in (False, True):
            for packed in (False, True):
                tags = {338: extra} if extra else {}
                depth = 32 if bits == "float" else bits
                data = tiff(samples, depth, photometric, tags, end, planes, packed)
                found = difference(data, expected, tmp_path)
                if extra == (1,) and found is not None:  # dark where it is almost clear
                    found = np.percentile(abs(load(tmp_path / "picture.tif") - expected), 99)
                assert found is None or found <= tolerance, (end, planes, packed)
                read |= {planes} if found is not None else set()
    assert (False in read) == ((photometric, bits, extra) in READ)
    if photometric in (2, 5) and bits in (8, 16) and not extra:
        assert True in read


def test_tiff_palettes_of_16_and_of_8_bits(tmp_path):
    colours = np.random.default_rng(6).integers(0, 256, (3, 256))
    expected = colours.T[GREY]
    for factor in (257, 256, 1, 0):
        data = tiff(GREY[..., None], 8, 3, {320: (colours * factor).ravel().tolist()})
        found = difference(data, expected, tmp_path)
        assert found == (0 if factor > 1 else None), factor


def test_tiff_with_signed_values_is_refused(tmp_path):
    for bits in (8, 16):
        for packed in (False, True):
            data = tiff(GREY[..., None], bits, 1, {339: [2]}, packed=packed)
            assert difference(data, 0, tmp_path) is None


def test_uncompressed_ycbcr_tiff(tmp_path):
    coarse = COLOUR[::4, ::4].repeat(4, 0).repeat(4, 1)
    ycbcr = np.asarray(Image.fromarray(coarse).convert("YCbCr")).astype(int)
    assert difference(tiff(ycbcr, 8, 6, {530: [1, 1]}), coarse, tmp_path) <= 4
    blocks = ycbcr[..., 0].reshape(16, 2, 16, 2).transpose(0, 2, 1, 3).reshape(16, 16, 4)
    packed = np.concatenate([blocks, ycbcr[::2, ::2, 1:]], -1).astype("u1").tobytes()
    for tags in ({530: [2, 2]}, {}):
        assert difference(tiff(ycbcr, 8, 6, tags, data=packed), coarse, tmp_path) <= 4


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("colour_type", [0, 2])
def test_transparent_colour_in_a_png_of_every_depth(tmp_path, colour_type, bits):
    if (colour_type, bits) in [(2, 1), (2, 2), (2, 4)]:
        pytest.skip("no such PNG")
    channels, top = 1 + colour_type, 2**bits - 1
    samples = np.random.default_rng(8).integers(0, top + 1, (32, 32, channels))
    samples[:4] = clear = samples[9, 9]
    expected = samples * 255 / top
    expected[(samples == clear).all(-1)] = 255
    chunk = (b"tRNS", struct.pack(f">{channels}H", *clear))
    found = difference(png(bits, colour_type, samples, chunk), expected, tmp_path)
    assert found is None if bits in (2, 4, 16) else found <= 1


def test_every_mode_of_pillow_is_converted():
    for mode in set(Image.MODES) - {"La"}:  # which only a TIFF has, and is refused
        with Image.new(mode, (2, 2)) as image:
            assert to_rgb(image).mode == "RGB", mode


def test_a_fits_file_is_no_picture(tmp_path):
    """Its 16 bits are measured values, whose white may be any."""
    header = ["SIMPLE  =                    T", "BITPIX  =                   16"]
    header += [f"NAXIS{n} = {value:>20}" for n, value in ((" ", 2), (1, 32), (2, 32))]
    fits = "".join(card.ljust(80) for card in [*header, "END"]).ljust(2880).encode()
    (tmp_path / "a.fits").write_bytes(fits + bytes(2880))
    with pytest.raises(UserError, match=r"^$"):  # counted with what is no picture
        load(tmp_path / "a.fits")


def test_deep_colours_in_jpeg_2000_are_refused(tmp_path):
    """Pillow lets the brightest values of more than 8 bits overflow."""
    file = io.BytesIO()
    Image.fromarray(COLOUR).save(file, "JPEG2000")
    assert difference(file.getvalue(), COLOUR, tmp_path) == 0
    start = file.getvalue().index(b"\xff\x4f\xff\x51")
    data = bytearray(file.getvalue())
    assert data[start + 42 : start + 51 : 3] == b"\7\7\7"  # bits of a sample, less one
    data[start + 42 : start + 51 : 3] = b"\x0b\x0b\x0b"
    assert difference(bytes(data), COLOUR, tmp_path) is None
    imagecodecs = pytest.importorskip("imagecodecs")
    for bits in (8, 10, 12, 16):
        for samples in (GREY, COLOUR):
            deep = (samples.astype(int) * (2**bits - 1) // 255).astype("u1" if bits == 8 else "u2")
            data = imagecodecs.jpeg2k_encode(deep, level=0, bitspersample=bits)
            found = difference(data, samples.reshape(32, 32, -1), tmp_path)
            assert found is None if bits > 8 else found == 0


def test_shallow_jpeg_2000_is_refused(tmp_path):
    """Pillow does not scale values of less than 8 bits, and misreads such indices of a palette."""
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, "JPEG2000")
    assert difference(file.getvalue(), grey_rgb(GREY), tmp_path) == 0
    data = bytearray(file.getvalue())
    data[data.index(b"\xff\x4f\xff\x51") + 42] = 3  # bits of a sample, less one
    assert difference(bytes(data), 0, tmp_path) is None
    fake = struct.pack(">I", 5012) + b"xml \xff\x4f\xff\x51" + b"\3" * 5000
    data = file.getvalue()
    place = data.index(b"jp2c") - 4
    assert difference(data[:place] + fake + data[place:], grey_rgb(GREY), tmp_path) == 0


@pytest.mark.parametrize(
    ("depth", "flags", "read"), [(24, 0, True), (32, 8, True), (32, 0, False), (16, 1, False)]
)
def test_tga_whose_alpha_is_none(tmp_path, depth, flags, read):
    """Pillow makes the unused bits of a pixel transparent."""
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 32, 32, depth, 32 | flags)
    pixels = [COLOUR[..., ::-1]]
    if depth == 32:
        pixels.append(np.full((32, 32, 1), 255 if read else 0, np.uint8))
    elif depth == 16:
        pixels = [np.full((32, 32, 2), 255, np.uint8)]
    data = header + np.concatenate(pixels, -1).astype("u1").tobytes()
    assert difference(data, COLOUR, tmp_path) == (0 if read else None)


def test_grey_tga_and_bmp_whose_alpha_is_unused(tmp_path):
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 3, 0, 0, 0, 0, 0, 32, 32, 16, 32)
    data = header + np.stack([GREY, np.zeros_like(GREY)], -1).tobytes()
    assert difference(data, 0, tmp_path) is None
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 124, 32, -32, 1, 32, 3, 0, 0, 0, 0, 0) + masks + bytes(68)
    start = struct.pack("<2sIHHI", b"BM", 14 + len(header) + 4096, 0, 0, 14 + len(header))
    for alpha in (0, 255):
        pixels = np.concatenate([COLOUR[..., ::-1], np.full((32, 32, 1), alpha, np.uint8)], -1)
        assert difference(start + header + pixels.tobytes(), COLOUR, tmp_path) == 0, alpha


def test_a_tiff_that_begins_with_a_small_copy_is_refused(tmp_path):
    """As a DNG does."""
    assert difference(tiff(COLOUR, 8, 2, {254: [1]}), 0, tmp_path) is None


def test_what_files_really_are(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheim" + bytes(100))
    with pytest.raises(UserError, match=r"^HEIC; pip install"):
        load(tmp_path / "a.jpg")
    (tmp_path / "notes.txt").write_text("qoif was what I wanted to write about")
    with pytest.raises(UserError, match=r"^$"):
        load(tmp_path / "notes.txt")


def test_kinds_that_pillow_swaps_are_refused(tmp_path):
    sun = struct.pack(">8I", 0x59A66A95, 32, 32, 32, 32 * 32 * 4, 1, 0, 0)
    (tmp_path / "a.ras").write_bytes(sun + bytes(32 * 32 * 4))
    psd = b"8BPS" + struct.pack(">H6xHIIHH", 1, 1, 32, 32, 1, 0) + bytes(12)
    assert difference(psd + bytes(2 + 32 * 4), 0, tmp_path) is None
    xbm = "#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {\n0x01};\n"
    (tmp_path / "a.xbm").write_text(xbm)
    for name in ("a.ras", "a.xbm"):
        with pytest.raises(UserError, match=r"^$"):  # counted with what is no picture
            load(tmp_path / name)


def test_tiff_with_xmp_of_any_type(tmp_path):
    for values in ([1, 2, 3], [0]):
        data = tiff(COLOUR, 8, 2, {700: values, 274: [6]})
        assert difference(data, np.rot90(COLOUR, -1), tmp_path) == 0


@pytest.mark.parametrize("end", "<>")
def test_second_decoder_agrees_about_tiffs(tmp_path, end):
    tifffile = pytest.importorskip("tifffile")
    for name, samples, photometric, planes in (
        ("rgb", COLOUR.astype("u2") * 257, "rgb", "contig"),
        ("planes", COLOUR.transpose(2, 0, 1).astype("u2") * 257, "rgb", "separate"),
        ("white", 65535 - GREY.astype("u2") * 257, "miniswhite", None),
        ("float", GREY.astype("f4") / 255, "minisblack", None),
    ):
        options = {"photometric": photometric, "planarconfig": planes, "byteorder": end}
        tifffile.imwrite(tmp_path / f"{name}.tif", samples, **options)
        data = (tmp_path / f"{name}.tif").read_bytes()
        expected = COLOUR if name in ("rgb", "planes") else grey_rgb(GREY)
        found = difference(data, expected, tmp_path)
        assert found == (None if name in ("white", "float") else 0), name
