"""Turn the pictures of one folder into the array that art_gan.py trains on.

Each picture is turned upright, made RGB, squeezed to a square and scaled to -1..1; the array is
float32 (N, SIZE, SIZE, 3), in sorted file-name order. Sub-folders are not read.
"""

import argparse
import logging
import os
import shlex
import signal
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SIZE = 128  # pixels, the side of every square
IMAGE_CHANNELS = 3  # red, green, blue
IMAGE_DIR = "dataset/"
IMAGE_FILE = "cubism_data.npy"

# The article's `pixel / 127.5 - 1`, computed in float64 for each of the 256 values of a pixel.
SCALED = (np.arange(256) / 127.5 - 1).astype("<f4")
IN_FLIGHT = 256  # pictures handed to the threads at once, however many there are: memory is flat
STUBS = {"BUFR", "GRIB", "HDF5", "MPEG"}  # formats that Pillow names but cannot decode


class UserError(Exception):
    """Something the user can put right: the text says in one line what is wrong and what to do."""


def grey_to_8bit(image: Image.Image) -> Image.Image:
    """Return a 16- or 32-bit grey picture ("I;16", "I", "F") as "L", or "LA" if part is clear.

    White is 65535, or 1.0 in "F". Raises ValueError beyond that: such a file does not say what is
    white. (Pillow's own conversion takes 255 for white, and so turns most 16-bit pictures white.)
    """
    white = 1 if image.mode == "F" else 65535
    values = np.asarray(image)
    if not 0 <= values.min() <= values.max() <= white:  # also when one is NaN
        raise ValueError(f"32-bit grey outside 0..{white}")
    grey = Image.fromarray((values * np.float32(255 / white) + np.float32(0.5)).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(values != image.info["transparency"]).convert("L"))
    return grey


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode as RGB, as a viewer shows it, with white where it is clear.

    Colour profiles are not applied, as in the article. Raises ValueError as `grey_to_8bit` does.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = grey_to_8bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")  # spares most pictures a copy


def load_picture(path: str, size: int = IMAGE_SIZE, crop: bool = False) -> np.ndarray:
    """Return a file's first picture, squeezed to a square, as uint8 (size, size, 3) in 0..255.

    `crop` cuts its centre square out instead of squeezing. LANCZOS is what the article calls
    ANTIALIAS. Raises what Pillow raises: UnidentifiedImageError for a file that is no picture.
    """
    with Image.open(path) as image:
        if image.format in STUBS:
            raise UnidentifiedImageError(image.format)
        ImageOps.exif_transpose(image, in_place=True)
        # RGB before resizing, lest the colour hidden under clear pixels bleed into the others.
        image = to_rgb(image)
    if crop:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def is_picture(name: str) -> bool:
    """Tell from its suffix whether a file claims to be a picture that Pillow can read."""
    suffix = os.path.splitext(name)[1].lower()
    return Image.registered_extensions().get(suffix) in Image.OPEN.keys() - STUBS


def try_picture(path: str, size: int, crop: bool) -> np.ndarray | str | None:
    """Return `load_picture`'s array, or the line that says why not, or None for other files."""
    try:
        return load_picture(path, size, crop)
    except UnidentifiedImageError:
        if not is_picture(path):
            return None
        reason = "not a picture that Pillow knows" if os.path.getsize(path) else "the file is empty"
    except Exception as error:
        # Broad, because a damaged file makes Pillow's decoders raise nearly anything (OSError,
        # SyntaxError, struct.error, MemoryError ...), and one bad file must not end the run.
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return f"skipped {os.path.basename(path)!r}: {' '.join(reason.split())}"


def say(line: str, end: str = "\n") -> None:
    """Print a line to standard error; on a terminal, over the progress bar."""
    if sys.stderr.isatty():
        line = f"\r{line:<60}"
    print(line, end=end, file=sys.stderr, flush=True)


def show_progress(done: int, total: int) -> None:
    """Move a bar at every percent on a terminal; print a line at every tenth elsewhere."""
    terminal = sys.stderr.isatty()
    steps = 100 if terminal else 10
    if done * steps // total > (done - 1) * steps // total:
        bar = f"[{'#' * (30 * done // total):<30}] " if terminal else ""
        say(f"{bar}{done}/{total} files", end="" if terminal and done < total else "\n")


def no_picture(image_dir: str, skipped: int) -> UserError:
    """Return the error for a folder without a readable picture; it names the best sub-folder."""
    problem = f"no readable picture in {image_dir!r} ({skipped} skipped)"
    pictures = {
        folder: sum(is_picture(name) and not name.startswith(".") for name in names)
        for folder, _, names in os.walk(image_dir)
        if folder != image_dir
    }
    best = max(sorted(pictures), key=pictures.get, default=None)
    if best is None or not pictures[best]:
        return UserError(f"{problem}; put some there, or run: python image_resizer.py FOLDER")
    command = f"python image_resizer.py {shlex.quote(best)}"
    return UserError(f"{problem}, but {pictures[best]} in {best!r}; run: {command}")


def write_header(file: BinaryIO, count: int, size: int) -> None:
    """Write the .npy header of float32 (count, size, size, 3) at the start of the file."""
    file.seek(0)
    shape = (count, size, size, IMAGE_CHANNELS)
    header = {"descr": SCALED.dtype.str, "fortran_order": False, "shape": shape}
    # NumPy pads it so that its length does not depend on the count, and it can be written again.
    np.lib.format.write_array_header_1_0(file, header)


def resize_folder(image_dir: str, output: str, size: int, crop: bool) -> tuple[int, int]:
    """Write a folder's pictures to a .npy file; return how many, and how many were skipped.

    The array is float32 (pictures, size, size, 3) in -1..1, equal to the article's. The file
    appears whole or not at all; until then it is `output`.part. Raises UserError.
    """
    try:
        names = sorted(name for name in os.listdir(image_dir) if not name.startswith("."))
    except OSError as error:
        problem = f"cannot read the folder {image_dir!r}: {error.strerror}"
        raise UserError(f"{problem}; name another: python image_resizer.py FOLDER") from error
    paths = [os.path.join(image_dir, name) for name in names]
    # A broken link stays, to be named as unreadable; folders, pipes and devices go.
    paths = [path for path in paths if os.path.isfile(path) or not os.path.exists(path)]
    target = os.path.realpath(output)  # so that a link to another disk stays a link
    if os.path.exists(target) and not os.path.isfile(target):
        raise UserError(f"--output {output!r} is not a file; name one, such as {IMAGE_FILE}")

    part = f"{target}.part"
    work = partial(try_picture, size=size, crop=crop)
    count = skipped = 0
    Image.init()  # loads Pillow's formats once, rather than in every thread
    try:
        with suppress(FileNotFoundError):
            os.remove(part)  # left by a killed run, maybe with other permissions
        with (
            warnings.catch_warnings(action="ignore"),  # Pillow's, about big or odd pictures
            open(part, "wb") as file,
            ThreadPoolExecutor(os.cpu_count()) as pool,  # Pillow lets go of the GIL
        ):
            write_header(file, len(paths), size)
            for start in range(0, len(paths), IN_FLIGHT):
                batch = paths[start : start + IN_FLIGHT]
                for done, result in enumerate(pool.map(work, batch), start + 1):
                    if isinstance(result, str):
                        skipped += 1
                        say(result)
                    elif result is not None:
                        count += 1
                        file.write(SCALED[result])
                    show_progress(done, len(paths))
            if count == 0:
                raise no_picture(image_dir, skipped)
            write_header(file, count, size)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        problem = f"cannot write {output!r}: {error.strerror}"
        raise UserError(f"{problem}; put that right, or name another --output") from error
    finally:
        with suppress(OSError):
            os.remove(part)  # already renamed if all went well
    return count, skipped


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for an error, 130 if interrupted."""
    parser = argparse.ArgumentParser(prog="image_resizer.py", description=__doc__)
    parser.add_argument("image_dir", nargs="?", default=IMAGE_DIR, help="default: %(default)s")
    parser.add_argument("--output", default=IMAGE_FILE, help="default: %(default)s")
    sizes = {"type": int, "choices": (32, 64, 128, 256), "default": IMAGE_SIZE}
    parser.add_argument("--size", **sizes, help="side in pixels, default: %(default)s")
    parser.add_argument("--crop", action="store_true", help="cut the centre square out first")
    options = parser.parse_args(argv)
    output, size = options.output, options.size
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # it raises what matters
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the run as Ctrl-C does
    try:
        count, skipped = resize_folder(options.image_dir, output, size, options.crop)
    except UserError as error:
        say(f"image_resizer.py: error: {error}")
        return 1
    except KeyboardInterrupt:
        say(f"image_resizer.py: interrupted; {output!r} is as it was before")
        return 130
    shape = f"float32 ({count}, {size}, {size}, {IMAGE_CHANNELS})"
    print(f"{output}: {shape}, {os.path.getsize(output) / 1e6:.1f} MB; {skipped} files skipped")
    data = "" if output == IMAGE_FILE else f" --data {shlex.quote(output)}"
    print(f"next: python art_gan.py{data}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
