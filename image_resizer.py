"""Turn a folder of pictures into the array that art_gan.py trains on, float32 in -1..1."""

import errno
import fcntl
import logging
import os
import re
import secrets
import shlex
import shutil
import signal
import sys
import threading
import warnings
from argparse import ArgumentParser, ArgumentTypeError
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO, NoReturn

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while NumPy loads: no traceback

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

IMAGE_SIZE = 128  # pixels, the side of every square; "96x128" for upright pictures
IMAGE_CHANNELS = 3  # red, green, blue; 1 for grey pictures
IMAGE_DIR = "dataset/"
IMAGE_FILE = "cubism_data.npy"

# The article's `pixel / 127.5 - 1`, computed in float64 for each of the 256 values of a pixel.
SCALED = (np.arange(256) / 127.5 - 1).astype("<f4")
IN_FLIGHT = 256  # pictures given to the threads at a time, to limit memory
MEGAPIXELS = 2 * Image.MAX_IMAGE_PIXELS // 10**6  # decoded at a time; Pillow's limit for one
BUDGET, TURN = threading.Semaphore(MEGAPIXELS), threading.Lock()
# Errors that are about one file; others are about the disk
FILE_ERRORS = (None, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EINVAL, errno.ENAMETOOLONG)

# Formats that Pillow cannot decode, or decodes wrongly
NOT_READ = {"BUFR", "FITS", "GRIB", "HDF5", "MCIDAS", "MPEG", "SUN", "XBM", "XPM"}
TiffImagePlugin.READ_LIBTIFF = True  # Pillow's own reader misreads colours in separate planes
for marker in (0xFFE0, *range(0xFFE2, 0xFFF0)):  # skip metadata but EXIF: it may be broken
    JpegImagePlugin.MARKER[marker] = ("", "", JpegImagePlugin.Skip)
Shape = tuple[int, int, int]  # height, width, channels


class UserError(Exception):
    """An error that the user can fix, shown as one line without a traceback."""


@contextmanager
def tolerate(stream: str) -> Iterator[None]:
    """Ignore a failure to print to `stream` ("stdout" or "stderr"), and print no more there."""
    try:
        yield
    except BlockingIOError:  # the reader of a pipe is slow: only this text is lost
        pass
    except (OSError, ValueError):  # a full disk, a closed terminal, a broken pipe
        with suppress(OSError, ValueError, AttributeError), open(os.devnull, "w") as null:
            os.dup2(null.fileno(), getattr(sys, stream).fileno())  # else Python fails at exit


def say(line: str, stream: str = "stdout") -> None:
    """Print one line and flush. File names may hold control characters, so these are escaped."""
    with tolerate(stream):
        if file := getattr(sys, stream):  # None if it was closed when Python started
            line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
            encoding = getattr(file, "encoding", None) or "utf-8"
            print(line.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


def reason(error: BaseException) -> str:
    """Say in one line what is wrong: the system's text, the first line, or else the type."""
    text = getattr(error, "strerror", None) or error
    return next(iter(str(text).strip().splitlines()), type(error).__name__)


class Parser(ArgumentParser):
    """An ArgumentParser that says in one escaped line what is wrong, and ends with code 2."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        say(f"{self.prog}: error: {message}", "stderr")
        sys.exit(2)


def sync(folder: Path) -> None:
    """Sync a folder, so that renames and removals in it survive a power cut, if possible."""
    with suppress(OSError), ExitStack() as stack:
        descriptor = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        os.fsync(descriptor)


PART = re.compile(r"\.part-[0-9a-f]{16}-(.+)", re.DOTALL)  # an unfinished file; its final name


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a temporary file to write to; then sync it to the disk and rename it to `path`.

    If anything fails, that file is removed and `path` is unchanged. An OSError names `path`.
    """
    part = path.with_name(f".part-{secrets.token_hex(8)}-{path.name}")
    try:
        part.open("xb").close()  # follows no link
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.errno and error.filename in (None, part, str(part)):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    with suppress(KeyboardInterrupt):  # too late to undo anything
        sync(path.parent)


def doublings(height: int, width: int) -> int:
    """Return how often the generator doubles its first picture (4 to 7 pixels), 0 if it cannot."""
    short, long = sorted((height, width))
    count = (short // 4).bit_length() - 1
    fits = short >= 32 and long <= 512 and not (height % 2**count or width % 2**count)
    return count if fits else 0


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) for a size such as 128 or 96x128. Raises ArgumentTypeError."""
    sizes = re.fullmatch(r"\d{1,9}(x\d{1,9})?", text)
    sides = [int(side) for side in text.split("x")] if sizes else [0]
    if doublings(sides[-1], sides[0]):
        return sides[-1], sides[0]
    sides = [min(max(side, 32), 512) for side in sides]
    step = 2 ** ((min(sides) // 4).bit_length() - 1)
    near = {tuple((side + up) // step * step for side in sides) for up in (0, step - 1)}
    names = ["x".join(map(str, pair)) for pair in sorted(near) if doublings(pair[-1], pair[0])]
    raise ArgumentTypeError(f"{text!r} is not possible; use {' or '.join(names)}")


def is_picture(path: Path) -> bool:
    """Whether Pillow can read files with this suffix; .mpo is a kind of JPEG."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    return kind == "MPO" or (kind in Image.OPEN and kind not in NOT_READ)


def skip(path: Path | str, error: BaseException) -> int:
    """Say that a file or folder is left out, and return 1. Raises UserError if its disk fails."""
    if getattr(error, "errno", None) not in FILE_ERRORS:
        problem = f"cannot read {str(path)!r}: {reason(error)}"
        raise UserError(f"{problem}; fix that, or name another") from error
    say(f"skipped {str(path)!r}: {reason(error)}", "stderr")
    return 1


def list_files(folder: str, recursive: bool) -> tuple[list[Path], int]:
    """Return the files in a folder and its sub-folders, sorted, and how many were skipped.

    Linked folders are sub-folders, too, but none is read twice. Hidden files are left out. Unless
    `recursive`, sub-folders are only counted, and what fails in them ends nothing.
    """
    seen, files, errors = set(Path(folder).resolve().parents), [], []
    for parent, folders, names in os.walk(folder, onerror=errors.append, followlinks=True):
        real = Path(parent).resolve()
        if real in seen or len(real.parts) > 500:  # Python 3.11 cannot go much deeper
            why = "a link to a folder above or read before" if real in seen else "nested too deeply"
            errors.append(OSError(errno.ELOOP, why, parent))
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    dangling = {path for path in files if os.path.islink(path) and not os.path.exists(path)}
    why = "a link to nothing that can be read"
    errors += [OSError(errno.ELOOP, why, path) for path in sorted(dangling)]
    if not recursive:
        errors = [each for each in errors if each.errno in FILE_ERRORS or each.filename == folder]
    return sorted(set(files) - dangling), sum(skip(error.filename, error) for error in errors)


def is_misread(image: Image.Image) -> bool:
    """Whether an open picture is of a rare kind that Pillow would decode wrongly."""
    if image.mode in ("F", "La") or (image.mode == "I" and image.format != "PPM"):
        return True  # which value is white is not known; nothing converts "La"
    if image.format == "PNG" and "transparency" in image.info:
        return image.tile[0].args in ("L;2", "L;4", "I;16B", "RGB;16B")  # it scales the pixels only
    if image.format == "JPEG2000":  # it scales no sample, so all must be of 8 bits (saved as 7)
        image.fp.seek(0)
        header = rb"(?:\A|jp2c)\xff\x4f\xff\x51.{38}\x07"
        return not re.search(header, image.fp.read(), re.DOTALL)
    if image.format == "TIFF":
        tiff, tag = TiffImagePlugin, image.tag_v2.get
        return (
            tag(254, 0) & 1  # its first picture is a small copy of another, as in a DNG
            or (image.mode == "L" and max(tag(tiff.SAMPLEFORMAT, (1,))) == 2)  # signed
            or (image.mode[0] == "I" and tag(tiff.BITSPERSAMPLE) != (16,))  # 12 bits
            or (image.mode[0] == "I" and tag(tiff.PHOTOMETRIC_INTERPRETATION) == 0)  # 0 is white
            or (image.mode[0] == "P" and max(tag(tiff.COLORMAP)) < 256)  # colours of 8 bits
            or (image.mode in ("LA", "PA") and tag(tiff.PLANAR_CONFIGURATION) == 2)  # separate
        )
    if image.format == "TGA" and image.mode in ("RGBA", "LA"):  # its alpha may be unused bits
        image.fp.seek(17)
        return image.tile[0].args[0] == "BGRA;15Z" or not image.fp.read(1)[0] & 15
    return (image.format, image.mode) == ("PSD", "1")  # it takes black for white


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB, on white if transparent. Colour profiles are ignored, as in the article."""
    if image.mode[0] == "I":  # 16 bits of grey, which Pillow's own conversion clips at 255
        image = Image.fromarray((np.asarray(image) / np.float32(257)).round().astype("u1"))
    if image.has_transparency_data:
        clear, image = image.convert("RGBA"), Image.new("RGB", image.size, "white")
        image.paste(clear, mask=clear)
    return image if image.mode == "RGB" else image.convert("RGB")  # avoids a copy


def decode(image: Image.Image, shape: Shape, crop: bool) -> np.ndarray:
    """Decode an open picture, turn it upright, crop and resize it to uint8 of `shape`."""
    if is_misread(image):
        raise UserError("a rare kind that Pillow misreads; save it as an 8-bit PNG")
    if image.format == "TIFF":
        image.info.pop("xmp", None)  # a broken one would end load()
    image.load()
    if image.format == "BMP" and image.mode == "RGBA" and not image.getextrema()[3][1]:
        image = image.convert("RGB")  # alpha that nobody uses is 0
    with suppress(Exception):  # broken metadata: its readable part has turned the picture
        ImageOps.exif_transpose(image, in_place=True)
    # RGB before resizing, or the hidden colour of transparent pixels blends into the others.
    picture, (height, width, channels) = to_rgb(image), shape
    if crop:  # to the largest part around the centre that has the wanted shape
        scale = min(picture.width / width, picture.height / height)
        part = [max(1, round(side * scale)) for side in (width, height)]
        left, top = (picture.width - part[0]) // 2, (picture.height - part[1]) // 2
        picture = picture.crop((left, top, left + part[0], top + part[1]))
    picture = picture.convert("L") if channels == 1 else picture
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)  # the article's ANTIALIAS
    return np.asarray(picture).reshape(shape)


class PngStream(PngImagePlugin.PngStream):
    """Pillow's reader of PNGs, but broken or very long metadata does not cost the picture."""

    def call(self, cid: bytes, pos: int, length: int) -> bytes:
        """Read a chunk. Errors and its checksum count only if the pixels depend on it."""
        needed = cid[:1].isupper() or cid == b"tRNS"
        self.crc = super().crc if needed else self.crc_skip  # what Pillow calls next
        with nullcontext() if needed else suppress(Exception):
            return super().call(cid, pos, length)
        self.fp.seek(pos + length)
        return b""


PngImagePlugin.PngStream = PngStream


def room_for(pixels: int) -> ExitStack:
    """Wait until this many pixels fit into memory beside those that other threads decode."""
    room = ExitStack()
    with TURN:  # one thread at a time, or two could deadlock
        for _ in range(min(1 + pixels // 10**6, MEGAPIXELS)):
            room.enter_context(BUDGET)
    return room


def why_not(path: Path, file: BinaryIO, error: Exception) -> str:
    """Say why an open file cannot be decoded; "" if it is not a picture. Raises OSError."""
    file.seek(0)
    start, unknown = file.read(4096), isinstance(error, Image.UnidentifiedImageError)
    if re.match(rb"....ftyp(he[iv]|mif|msf)", start, re.DOTALL):
        return "HEIC; pip install pillow-heif, or export it as JPEG"
    if not is_picture(path) and (unknown or b"\0" not in start):  # or a text file
        return ""
    if isinstance(error, Image.DecompressionBombError):
        megapixels = int(re.search(r"\d+", reason(error))[0]) // 10**6
        return f"too large: {megapixels} megapixels; shrink it"
    while file.read(1 << 20):
        pass  # it raises OSError if the disk is to blame, which decoders do not say
    return "empty, or not a picture that Pillow knows" if unknown else reason(error)


def load_picture(path: Path, shape: Shape, crop: bool = False) -> np.ndarray:
    """Load a file's first picture, uint8; `shape` is (height, width, 3), or 1 for grey.

    Raises UserError with the reason to skip the file, or without one if it is not a picture, and
    OSError if it cannot be read from the disk.
    """
    if path.exists() and not path.is_file():
        raise UserError  # a pipe or a device: reading it may never end
    with path.open("rb") as file:  # Pillow would memory-map a path: a lost disk kills the run
        try:
            jpeg = file.read(2) == b"\xff\xd8"  # .mpo, too: a JpegImageFile can draft()
            file.seek(0)
            image = JpegImagePlugin.JpegImageFile(file) if jpeg else Image.open(file)
            if image.format in NOT_READ:
                raise Image.UnidentifiedImageError
            pixels, side, most = image.width * image.height, 4 * max(shape), MEGAPIXELS * 10**6
            # A progressive JPEG is held in memory whole, however small the draft
            if pixels > most and not (image.info.get("progressive") and pixels > 4 * most):
                image.draft(None, (side, side))
            if image.width * image.height > most:
                raise Image.DecompressionBombError(pixels)
            with room_for(pixels):
                return decode(image, shape, crop)
        except Exception as error:  # damaged files make Pillow raise anything
            if isinstance(error, UserError) or getattr(error, "errno", None):
                raise
            raise UserError(why_not(path, file, error)) from error


def remove_leftovers(target: Path) -> None:
    """Remove what killed runs left unfinished. A run that is still alive has its file locked."""
    for path in target.parent.iterdir():
        name = PART.fullmatch(path.name)
        with suppress(OSError):  # it is gone or locked, or locks are not supported here
            # An empty one may be new, made by a run that has not locked it yet.
            if name and name[1] == target.name and path.stat().st_size:
                with path.open("rb+") as file:  # NFS locks only what is open for writing
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()


def write_pictures(
    file: BinaryIO, paths: list[Path], shape: Shape, crop: bool
) -> tuple[int, int, list[str]]:
    """Write pictures in order. Return the counts: written, skipped, others such as ["2 .md"]."""
    count, skipped, others = 0, 0, Counter()
    with ExitStack() as stack, warnings.catch_warnings(action="ignore"):  # Pillow's, about oddities
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        pool = ThreadPoolExecutor(cores)  # Pillow releases the GIL
        stack.callback(pool.shutdown, cancel_futures=True)
        for start in range(0, len(paths), IN_FLIGHT):
            batch = paths[start : start + IN_FLIGHT]
            futures = [pool.submit(load_picture, path, shape, crop) for path in batch]
            for done, (path, future) in enumerate(zip(batch, futures, strict=True), start + 1):
                error = future.exception()
                if not error:
                    file.write(SCALED[future.result()])
                    count += 1
                elif str(error):
                    skipped += skip(path, error)
                else:
                    others[path.suffix.lower() or "without a suffix"] += 1
                if done * 10 // len(paths) > (done - 1) * 10 // len(paths):
                    say(f"{done}/{len(paths)} files", "stderr")
    return count, skipped, [f"{number} {suffix}" for suffix, number in others.most_common()]


def resize_folder(
    image_dir: str, output: str, shape: Shape, crop: bool = False, recursive: bool = False
) -> tuple[int, int, list[str], int]:
    """Write a folder's pictures to a .npy file, float32 (N, *shape). Raises UserError.

    Returns how many it wrote, how many files and folders it skipped, what else there was, and how
    many pictures in sub-folders it did not read.
    """
    Image.init()  # here, so that the threads do not race to load Pillow's formats
    with suppress(ImportError):  # if it is installed, it reads HEIC
        import pillow_heif.HeifImagePlugin  # noqa: F401
    try:
        target = Path(os.path.realpath(output))  # if `output` is a link, it stays one
        if target.suffix != ".npy" or (target.exists() and not target.is_file()):
            raise UserError(f"--output {output!r} is not a .npy file; name one, such as data.npy")
        os.listdir(image_dir)
        files, failed = list_files(image_dir, recursive)
        paths = [path for path in files if recursive or path.parent == Path(image_dir)]
        deeper = sum(map(is_picture, files)) - sum(map(is_picture, paths))
        need = sum(map(is_picture, paths)) * np.prod(shape) * SCALED.itemsize
        if need > shutil.disk_usage(target.parent).free:
            raise OSError(errno.ENOSPC, f"{need / 1e9:.1f} GB do not fit on that disk")
        remove_leftovers(target)
        # `stack` closes the file after replace_file has renamed it: it stays locked until then.
        with ExitStack() as stack, replace_file(target) as part:
            file = stack.enter_context(part.open("rb+"))
            with suppress(OSError):  # locks are not supported here
                fcntl.flock(file, fcntl.LOCK_EX)
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(paths), *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            count, skipped, others = write_pictures(file, paths, shape, crop)
            if not count:
                counts = ", ".join([f"{failed + skipped} skipped", *others])
                hint = f"but {deeper} in sub-folders: use --recursive" if deeper else "add some"
                raise UserError(f"no readable picture in {image_dir!r} ({counts}); {hint}")
            file.seek(0)  # the header is padded: its length stays the same
            np.lib.format.write_array_header_1_0(file, header | {"shape": (count, *shape)})
            file.flush()
    except OSError as error:
        what = f"read {image_dir!r}" if error.filename == image_dir else f"write {output!r}"
        raise UserError(f"cannot {what}: {reason(error)}; fix that, or name another") from error
    return count, failed + skipped, others, deeper


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 for an error, 130 if interrupted."""
    parser = Parser(description=__doc__, epilog="Defaults are in parentheses.")
    add = parser.add_argument
    add("image_dir", nargs="?", default=IMAGE_DIR, help="folder of pictures (%(default)s)")
    add("--recursive", action="store_true", help="read its sub-folders too")
    add("--output", default=IMAGE_FILE, help="file to write (%(default)s)")
    size = "in pixels, such as 128 or 96x128 (%(default)s)"
    add("--size", type=parse_size, default=str(IMAGE_SIZE), help=size)
    add("--crop", action="store_true", help="crop pictures to that shape, do not stretch them")
    add("--grey", action="store_true", help="make grey pictures, as IMAGE_CHANNELS = 1 does")
    args = parser.parse_args(argv)
    shape = (*args.size, 1 if args.grey else IMAGE_CHANNELS)
    try:
        if shape[2] not in (1, 3):
            raise UserError(f"IMAGE_CHANNELS is {IMAGE_CHANNELS!r}; use 3, or 1 for grey pictures")
        found = resize_folder(args.image_dir, args.output, shape, args.crop, args.recursive)
    except UserError as error:
        say(f"image_resizer.py: error: {error}", "stderr")
        return 1
    except KeyboardInterrupt:
        say(f"image_resizer.py: interrupted; {args.output!r} is as it was before", "stderr")
        return 130
    count, skipped, others, deeper = found
    size = count * np.prod(shape) * SCALED.itemsize / 1e6
    say(f"{args.output}: float32 {(count, *shape)}, {size:.1f} MB; {skipped} files skipped")
    if others:
        say(f"not pictures that Pillow can read: {', '.join(others)}")
    if deeper:
        say(f"{deeper} pictures in sub-folders were not read; to read them, use --recursive")
    data = "" if args.output == IMAGE_FILE else f" --data {shlex.quote(args.output)}"
    say(f"next: python art_gan.py{data}")
    return 0


if __name__ == "__main__":
    if sys.stderr:  # libtiff prints to descriptor 2 without naming the file: discard that
        sys.stderr = os.fdopen(os.dup(2), "w", 1, sys.stderr.encoding, sys.stderr.errors)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # Pillow also raises what it logs
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the run as Ctrl-C does
    sys.exit(main())
