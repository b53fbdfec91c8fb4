"""Turn a folder of pictures into the array that art_gan.py trains on, float32 in -1..1."""

import glob
import logging
import os
import re
import secrets
import shlex
import signal
import sys
import warnings
from argparse import ArgumentParser
from collections import Counter, namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

IMAGE_SIZE = 128  # pixels, the side of every square
IMAGE_CHANNELS = 3  # red, green, blue
IMAGE_DIR = "dataset/"
IMAGE_FILE = "cubism_data.npy"

# The article's `pixel / 127.5 - 1`, computed in float64 for each of the 256 values of a pixel.
SCALED = (np.arange(256) / 127.5 - 1).astype("<f4")
IN_FLIGHT = 256  # pictures given to the threads at a time, to limit memory
STUBS = {"BUFR", "GRIB", "HDF5", "MPEG"}  # formats that Pillow recognises but cannot decode

# How many: pictures read, files skipped, others (such as "50 .heic"), pictures in sub-folders
Result = namedtuple("Result", "pictures skipped others unread")


class UserError(Exception):
    """An error that the user can fix, shown as one line without a traceback."""


@contextmanager
def tolerate(stream: str) -> Iterator[None]:
    """Let printing to `stream` ("stdout" or "stderr") fail: nothing more is shown there then."""
    try:
        yield
    except BlockingIOError:  # the reader of a pipe is slow: only this text is lost
        pass
    except (OSError, ValueError):  # a full disk, a closed terminal, a broken pipe
        with suppress(OSError, ValueError, AttributeError), open(os.devnull, "w") as null:
            os.dup2(null.fileno(), getattr(sys, stream).fileno())  # else Python fails at exit


def say(line: str = "", stream: str = "stdout", **_: Any) -> None:
    """Print a line at once; what cannot be encoded is escaped. It never raises an OSError."""
    with tolerate(stream):
        if file := getattr(sys, stream):  # None if it was closed when Python started
            encoding = getattr(file, "encoding", None) or "utf-8"
            print(line.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


def reason(error: BaseException) -> str:
    """Return what is wrong in one line: the system's words, the first line, or the type."""
    text = getattr(error, "strerror", None) or error
    return next(iter(str(text).strip().splitlines()), type(error).__name__)


PART = re.compile(r"\.part-[0-9a-f]{16}-(.+)", re.DOTALL)  # an unfinished file; its final name


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a new empty file beside `path`, and rename it to `path` once it is on the disk.

    If anything fails, it is removed and `path` stays as it was. An OSError names `path`.
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
    with suppress(OSError):  # some file systems refuse
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that a power failure cannot undo the renaming
        finally:
            os.close(folder)


def doublings(height: int, width: int) -> int:
    """Return how often the generator doubles its first picture, whose shorter side is 4 to 7.

    0 if pictures of this size (in pixels) cannot be made in that way.
    """
    short, long = sorted((height, width))
    count = (short // 4).bit_length() - 1
    fits = short >= 32 and long <= 512 and not (height % 2**count or width % 2**count)
    return count if fits else 0


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB, on white if transparent. Colour profiles are ignored, as in the article."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        white = 1 if image.mode == "F" else 65535  # Pillow's own conversion clips at 255
        values, clear = np.asarray(image), image.info.get("transparency")
        if not 0 <= values.min() <= values.max() <= white:  # also true if one is NaN
            raise ValueError(f"32-bit grey outside 0..{white}")
        image = Image.fromarray((values * np.float32(255 / white) + np.float32(0.5)).astype("u1"))
        if clear is not None:
            image.putalpha(Image.fromarray(values != clear).convert("L"))
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")  # avoids a copy


def load_picture(path: Path | str, size: int = IMAGE_SIZE, crop: bool = False) -> np.ndarray:
    """Load a file's first picture as a square, uint8 (size, size, 3). Raises Pillow's errors."""
    with Image.open(path) as image:
        if image.format in STUBS:
            raise UnidentifiedImageError(image.format)
        ImageOps.exif_transpose(image, in_place=True)
        # RGB before resizing, or the hidden colour of transparent pixels blends into the others.
        image = to_rgb(image)
    if crop:  # to the centre square
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))  # once "ANTIALIAS"


def is_picture(path: Path) -> bool:
    """Whether Pillow can read files with this suffix."""
    return Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN.keys() - STUBS


def try_picture(path: Path, size: int, crop: bool) -> np.ndarray | str | None:
    """Load a picture. Return the reason if that fails, or None if the file is not a picture."""
    try:
        if path.exists() and not path.is_file():
            return None  # a pipe or a device: reading it may never end
        return load_picture(path, size, crop)
    except UnidentifiedImageError:
        return "empty, or not a picture that Pillow knows" if is_picture(path) else None
    except Exception as error:  # damaged files raise almost any of them, and must not end the run
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        return " ".join(reason.split())


def find_files(folder: str) -> list[Path]:
    """Return the files in a folder and its sub-folders, sorted, without hidden ones."""
    os.listdir(folder)  # raises OSError if it cannot be read; a sub-folder is skipped then
    walk = os.walk(folder, onerror=lambda e: say(f"skipped {e.filename!r}: {e.strerror}", "stderr"))
    files = []
    for parent, folders, names in walk:
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(files)


@contextmanager
def _replace_file(target: Path) -> Iterator[BinaryIO]:
    """Open a temporary file, and rename it to `target` when it is complete and on the disk."""
    # Every run locks its own temporary file. An unlocked one was left by a run that was killed.
    for part in target.parent.glob(f"{glob.escape(target.name)}.{'[0-9a-f]' * 8}.part"):
        with suppress(OSError, AttributeError), part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            part.unlink()
    while True:
        part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        file = part.open("xb")
        with suppress(OSError, AttributeError):  # Windows and some file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if part.exists():  # else another run removed it before it was locked
            break
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not fcntl:
                file.close()  # Windows cannot rename an open file
            part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    with suppress(OSError, KeyboardInterrupt):  # a file system may refuse; Ctrl-C comes too late
        folder = os.open(target.parent, os.O_RDONLY)
        os.fsync(folder)  # so that a power failure cannot undo the renaming
        os.close(folder)


def resize_folder(
    image_dir: str, output: str, size: int, crop: bool, recursive: bool = False
) -> Result:
    """Write a folder's pictures to a .npy file, float32 (N, size, size, 3). Raises UserError."""
    count, skipped, suffixes = 0, 0, Counter()
    console = Console(stderr=True)
    bar = console.file.isatty()
    Image.init()  # here, so that the threads do not race to load Pillow's formats
    try:
        target = Path(output).resolve()  # if `output` is a link, it stays one
        if target.exists() and not target.is_file():
            raise UserError(f"--output {output!r} is not a file; name one, such as {IMAGE_FILE}")
        files, folder = find_files(image_dir), Path(image_dir)
        paths = files if recursive else [path for path in files if path.parent == folder]
        unread = [] if recursive else [p for p in files if p.parent != folder and is_picture(p)]
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(paths), size, size, 3)}
        batches = (paths[start : start + IN_FLIGHT] for start in range(0, len(paths), IN_FLIGHT))
        load = partial(try_picture, size=size, crop=crop)
        with (
            _replace_file(target) as file,
            warnings.catch_warnings(action="ignore"),  # Pillow's, about large or unusual pictures
            ThreadPoolExecutor(os.cpu_count()) as pool,  # Pillow releases the GIL
            closing(result for batch in batches for result in pool.map(load, batch)) as loaded,
            closing(track(loaded, "", len(paths), console=console, disable=not bar)) as results,
        ):
            np.lib.format.write_array_header_1_0(file, header)
            for done, (path, result) in enumerate(zip(paths, results, strict=True), 1):
                if isinstance(result, str):
                    skipped += 1
                    say(f"skipped {str(path.relative_to(folder))!r}: {result}", "stderr")
                elif result is None:
                    suffixes[repr(path.suffix.lower())[1:-1] or "without a suffix"] += 1
                else:
                    count += 1
                    file.write(SCALED[result])
                if not bar and done * 10 // len(paths) > (done - 1) * 10 // len(paths):
                    say(f"{done}/{len(paths)} files", "stderr")
                console.quiet = bar and not console.file.isatty()  # True if the terminal was closed
            others = [f"{number} {suffix}" for suffix, number in suffixes.most_common()]
            if not count:
                counts = ", ".join([f"{skipped} skipped", *others])
                problem = f"no readable picture in {image_dir!r} ({counts})"
                for best, number in Counter(path.parent for path in unread).most_common(1):
                    command = f"python image_resizer.py {shlex.quote(str(best))}"
                    raise UserError(f"{problem}, but {number} in {str(best)!r}; run: {command}")
                raise UserError(f"{problem}; add some, or run: python image_resizer.py FOLDER")
            file.seek(0)  # NumPy pads the header, so that its length is the same
            np.lib.format.write_array_header_1_0(file, header | {"shape": (count, size, size, 3)})
    except OSError as error:
        what = f"read {image_dir!r}" if error.filename == image_dir else f"write {output!r}"
        raise UserError(f"cannot {what}: {error.strerror}; fix that, or name another") from error
    return Result(count, skipped, others, len(unread))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 for an error, 130 if interrupted."""
    parser = ArgumentParser(description=__doc__, epilog="Defaults are in parentheses.")
    add = parser.add_argument
    add("image_dir", nargs="?", default=IMAGE_DIR, help="folder of pictures (%(default)s)")
    add("--recursive", action="store_true", help="read its sub-folders too")
    add("--output", default=IMAGE_FILE, help="file to write (%(default)s)")
    sizes = (32, 64, 128, 256)
    add("--size", type=int, choices=sizes, default=IMAGE_SIZE, help="in pixels (%(default)s)")
    add("--crop", action="store_true", help="use only the centre square of each picture")
    args = parser.parse_args(argv)
    try:
        pictures, skipped, others, unread = resize_folder(**vars(args))
    except UserError as error:
        say(f"image_resizer.py: error: {error}", "stderr")
        return 1
    except KeyboardInterrupt:
        say(f"image_resizer.py: interrupted; {args.output!r} is as it was before", "stderr")
        return 130
    shape = (pictures, args.size, args.size, IMAGE_CHANNELS)
    size = pictures * args.size**2 * IMAGE_CHANNELS * SCALED.itemsize / 1e6
    say(f"{args.output}: float32 {shape}, {size:.1f} MB; {skipped} files skipped")
    if others:
        say(f"not pictures that Pillow can read: {', '.join(others)}")
    if unread:
        options = sys.argv[1:] if argv is None else argv
        again = shlex.join(["python", "image_resizer.py", "--recursive", *options])
        say(f"{unread} pictures in sub-folders were not read; if you want them: {again}")
    data = "" if args.output == IMAGE_FILE else f" --data {shlex.quote(args.output)}"
    say(f"next: python art_gan.py{data}")
    return 0


if __name__ == "__main__":
    if sys.stderr is None:  # closed: libtiff would print its errors to a file of ours instead
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # Pillow also raises what it logs
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the run as Ctrl-C does
    sys.exit(main())
