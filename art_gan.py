"""Train a GAN that paints: cubism_data.npy (made by image_resizer.py) -> pictures in output/.

    python art_gan.py                    train; the same command resumes where it stopped
    python art_gan.py --generate 100     paint new pictures with the trained generator

This is the program of the 2020 article "Generating Modern Arts using Generative Adversarial
Network (GAN) on Spell". Its networks and its training loop come first, in the article's order.
Below the divider is what makes them fast, safe to interrupt and easy to use.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.util
import io
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TextIO

if __name__ == "__main__":
    # If a standard stream is closed, the next file to be opened would get its number and receive
    # what TensorFlow prints. So open the null device in its place.
    while os.open(os.devnull, os.O_RDWR) < 3:
        pass
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while TensorFlow loads: no traceback
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever keras.json says
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if not any(Path("/dev").glob("nvidia[0-9]*")):
    # On a CPU, one operation at a time on all cores is as fast and needs less memory.
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, track

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

# The article's settings
PREVIEW_ROWS = 4
PREVIEW_COLS = 7
PREVIEW_COUNT = PREVIEW_ROWS * PREVIEW_COLS
PREVIEW_MARGIN = 4  # white pixels around each picture of a preview
SAVE_FREQ = 100  # iterations between two previews
NOISE_SIZE = 100  # how many random numbers the generator makes a picture from
EPOCHS = 10000  # iterations; the article calls one iteration an epoch
BATCH_SIZE = 32
GENERATE_RES = {32: 1, 64: 2, 128: 3, 256: 4}  # by picture size; the article has 128 and 3
IMAGE_CHANNELS = 3

# Settings that the article does not have
DATA_FILE = "cubism_data.npy"
OUTPUT_DIR = "output"
CHECKPOINT_SECONDS = 60  # a machine that dies loses about this much work
CHECKPOINTS = 2  # how many are kept at least: the newest, and one in case it is damaged
UPLOAD_SECONDS = 300  # younger checkpoints are kept too: they may still be uploading to a bucket
WON_ACCURACY, WON_ITERATIONS = 0.99, 500  # a discriminator this good for this long has won
TIMELAPSE = "training.webp"  # not a GIF: all colours instead of 256, in a smaller file
TIMELAPSE_FRAMES, TIMELAPSE_MS = 200, 100  # previews at most; milliseconds for each
INTERPOLATION_STEPS, INTERPOLATION_MS = 30, 40  # frames per picture; milliseconds for each
PREVIEW_STREAM, ART_STREAM = 2**32 - 1, 2**32 - 2  # random streams; iterations use 0, 1, 2 ...
METRICS = ("discriminator_loss", "discriminator_accuracy", "generator_loss", "generator_accuracy")


# ---- The networks ---------------------------------------------------------------------------


def build_discriminator(image_shape: tuple[int, int, int]) -> keras.Sequential:
    """The article's discriminator: pictures (N, *image_shape) in -1..1 -> P(painting), (N, 1)."""
    model = keras.Sequential([keras.Input(image_shape)], name="discriminator")

    model.add(layers.Conv2D(32, kernel_size=3, strides=2, padding="same"))
    model.add(layers.LeakyReLU(0.2))
    model.add(layers.Dropout(0.25))

    model.add(layers.Conv2D(64, kernel_size=3, strides=2, padding="same"))
    model.add(layers.ZeroPadding2D(((0, 1), (0, 1))))
    model.add(layers.BatchNormalization(momentum=0.8))
    model.add(layers.LeakyReLU(0.2))
    model.add(layers.Dropout(0.25))

    for filters, strides in ((128, 2), (256, 1), (512, 1)):
        model.add(layers.Conv2D(filters, kernel_size=3, strides=strides, padding="same"))
        model.add(layers.BatchNormalization(momentum=0.8))
        model.add(layers.LeakyReLU(0.2))
        model.add(layers.Dropout(0.25))

    model.add(layers.Flatten())
    # float32 also in half-precision training: a probability close to 1 needs the digits.
    model.add(layers.Dense(1, activation="sigmoid", dtype="float32"))
    return model


def build_generator(noise_size: int, channels: int, generate_res: int = 3) -> keras.Sequential:
    """The article's generator: noise (N, noise_size) -> pictures (N, S, S, channels) in -1..1.

    S is 16 * 2**generate_res. The article's constant GENERATE_RES is 3.
    """
    model = keras.Sequential([keras.Input((noise_size,))], name="generator")

    model.add(layers.Dense(4 * 4 * 256, activation="relu"))
    model.add(layers.Reshape((4, 4, 256)))

    for _ in range(2 + generate_res):  # the article writes the first two out
        model.add(layers.UpSampling2D())
        model.add(layers.Conv2D(256, kernel_size=3, padding="same"))
        model.add(layers.BatchNormalization(momentum=0.8))
        model.add(layers.Activation("relu"))

    model.add(layers.Conv2D(channels, kernel_size=3, padding="same"))
    model.add(layers.Activation("tanh", dtype="float32"))
    return model


def save_images(path: Path, pictures: Iterable[np.ndarray]) -> None:
    """Write up to PREVIEW_COUNT pictures, uint8 (S, S, 3), as the article's grid."""
    # The article's `save_images(cnt, noise)` also runs the generator. Here `build_painter` does,
    # so that --generate can save its pictures one by one.
    pictures = list(pictures)
    image_size = len(pictures[0])
    step = image_size + PREVIEW_MARGIN
    shape = (PREVIEW_MARGIN + PREVIEW_ROWS * step, PREVIEW_MARGIN + PREVIEW_COLS * step, 3)
    image_array = np.full(shape, 255, dtype=np.uint8)
    for image_count, picture in enumerate(pictures):
        row, col = divmod(image_count, PREVIEW_COLS)
        r, c = PREVIEW_MARGIN + row * step, PREVIEW_MARGIN + col * step
        image_array[r : r + image_size, c : c + image_size] = picture
    with replace_file(path) as temporary:
        Image.fromarray(image_array).save(temporary)


def build_combined(generator: keras.Model, discriminator: keras.Model) -> keras.Model:
    """The article's combined model: noise -> generator -> discriminator -> P(painting), (N, 1)."""
    # The article sets `discriminator.trainable = False` here. Since Keras 3 that line also stops
    # the discriminator's own training, without a warning. Here nothing is frozen, but the
    # generator's step changes the generator's weights only.
    noise = keras.Input(generator.input_shape[1:])
    return keras.Model(noise, discriminator(generator(noise)), name="combined")


# ---- One iteration --------------------------------------------------------------------------


def random_noise(count: int, seed: int, stream: int, size: int = NOISE_SIZE) -> np.ndarray:
    """Noise (count, size) from N(0, 1), float32; the same for the same seed and stream."""
    return np.random.default_rng([seed, stream]).normal(size=(count, size)).astype(np.float32)


def draw_batch(data: np.ndarray, seed: int, epoch: int, batch_size: int) -> list[np.ndarray]:
    """Pictures, drawn with replacement, and noise: float32 (N, S, S, 3) and (N, NOISE_SIZE)."""
    rng = np.random.default_rng([seed, epoch])  # so a resumed run draws what it would have drawn
    x_real = data[rng.integers(len(data), size=batch_size)].astype(np.float32)
    return [x_real, rng.normal(size=(batch_size, NOISE_SIZE)).astype(np.float32)]


def binary_crossentropy(label: float, probability: tf.Tensor) -> tf.Tensor:
    """The mean cross-entropy between probabilities (N, 1) and one label, 0 or 1."""
    # Clipped, as in Keras 2.3. Keras 3 would use the logits before the sigmoid.
    p = tf.clip_by_value(probability, 1e-7, 1 - 1e-7)
    return -tf.reduce_mean(tf.math.log(p if label else 1 - p))


def loss_and_gradients(
    model: keras.Model, x: tf.Tensor, label: float, network: keras.Model, scale_loss: Callable
) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """Run `model` on x in training mode; only the weights of `network`, a part of it, are trained.

    Returns the loss, with that network's regularizers, the output (N, 1), and the gradients of
    `scale_loss(loss)` with respect to the network's trainable variables.
    """
    variables = [variable.value for variable in network.trainable_variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(variables)
        output = model(x, training=True)
        loss = tf.add_n([binary_crossentropy(label, output), *network.losses])
        scaled_loss = scale_loss(loss)
    return loss, output, tape.gradient(scaled_loss, variables)


def build_iteration(
    generator: keras.Sequential, discriminator: keras.Sequential, jit_compile: bool = False
) -> tuple[Callable[[tf.Tensor, tf.Tensor], tf.Tensor], keras.Optimizer]:
    """One iteration of the article's loop as one compiled function, and the optimizer it uses.

    The function takes pictures (N, S, S, 3) in -1..1 and noise (N, NOISE_SIZE), both float32. It
    updates the weights of both networks and returns float32 (4,), in the order of METRICS: losses,
    and accuracies in 0..1. The discriminator's are the means of its two steps. XLA (`jit_compile`)
    takes three times as long on a CPU; on a GPU it was not measured.
    """
    # The same networks, computed faster: see `fuse`
    fast_generator, fast_discriminator = fuse(generator), fuse(discriminator)
    combined = build_combined(fast_generator, fast_discriminator)
    # The article gives one Adam to both models. So its step count, which its bias correction uses,
    # grows by three per iteration.
    optimizer = FusedAdam(1.5e-4, beta_1=0.5)
    if generator.compute_dtype == "float16":
        # Small gradients would be rounded to 0, so the loss is scaled up. If a gradient overflows,
        # the step is skipped, Adam's step count included, and the scale is halved.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(discriminator.trainable_variables + generator.trainable_variables)
    y_real, y_fake = 1.0, 0.0

    def train_on_batch(
        model: keras.Model, x: tf.Tensor, label: float, network: keras.Model
    ) -> tf.Tensor:
        loss, output, gradients = loss_and_gradients(model, x, label, network, optimizer.scale_loss)
        optimizer.apply(gradients, network.trainable_variables)
        correct = tf.equal(output > 0.5, label > 0.5)
        return tf.stack([loss, tf.reduce_mean(tf.cast(correct, tf.float32))])

    @tf.function(jit_compile=jit_compile, autograph=False)
    def iteration(x_real: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        x_fake = fast_generator(noise, training=False)
        real = train_on_batch(fast_discriminator, x_real, y_real, discriminator)
        fake = train_on_batch(fast_discriminator, x_fake, y_fake, discriminator)
        with tf.control_dependencies([real, fake]):  # sequential, to limit peak memory
            noise = tf.identity(noise)
        fooled = train_on_batch(combined, noise, y_real, generator)
        return tf.concat([0.5 * (real + fake), fooled], axis=0)

    return iteration, optimizer


# ---- Training -------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> int:
    """Train or resume; returns the exit code. Raises UserError or OSError."""
    data, output = load_data(args.data), Path(args.output)
    image_size = data.shape[1]
    settings = run_settings(args, data)
    if args.tensorboard and not importlib.util.find_spec("tensorboard"):
        raise UserError("--tensorboard needs one more package: pip install tensorboard")
    with lock_folder(output, "another run writes there; stop it, or use another --output"):
        (output / "checkpoint").mkdir(exist_ok=True)
        remove_files(output, RUN_FILES, leftovers_only=not args.fresh)
        values, history = load_checkpoint(output, settings)
        first = len(history)
        if first >= args.epochs:
            return finish(output, first, args)
        remove_later_previews(output, first, args)

        print(f"Training on {select_device(args)}, in {args.precision}")
        print(f"{args.data}: {len(data)} pictures of {image_size} x {image_size}")
        random.seed(args.seed)  # Keras takes the seeds of initial weights and dropout from here
        keras.config.set_dtype_policy(args.precision)
        discriminator = build_discriminator((image_size, image_size, IMAGE_CHANNELS))
        discriminator.summary()
        generator = build_generator(NOISE_SIZE, IMAGE_CHANNELS, GENERATE_RES[image_size])
        generator.summary()
        iteration, optimizer = build_iteration(generator, discriminator)
        # The discriminator's variables include the random state of its dropout layers.
        variables = discriminator.variables + generator.variables + optimizer.variables
        if values:
            restore_variables(variables, values)
            print(f"Resuming from iteration {first} of {args.epochs}")
        run = Run(output, settings, generator, variables, history, args.tensorboard)
        fixed_noise = random_noise(PREVIEW_COUNT, args.seed, PREVIEW_STREAM)

        with ProgressLine(first, args.epochs) as progress, catch_signals() as signals:
            stream = batches(data, args.data, args.seed, range(first, args.epochs), args.batch_size)
            for epoch, (x_real, noise) in enumerate(stream, first):
                metrics = iteration(x_real, noise)
                run.pending.append(metrics)
                preview = epoch % args.save_freq == 0
                if preview:
                    run.save_preview(epoch // args.save_freq + 1, fixed_noise)
                progress.show(epoch, metrics, preview)

                age = time.monotonic() - run.saved_at
                if signals or epoch + 1 == args.epochs or age >= args.checkpoint_seconds:
                    run.save()
                if signals:
                    break
        if signals:
            again = "the same command without --fresh" if args.fresh else "the same command"
            print(f"Stopped after {epoch + 1} of {args.epochs} iterations; {again} resumes")
            return 128 + signals[0]
        return finish(output, args.epochs, args)


# ---- The article ends here. The rest makes it fast, safe to interrupt and easy to use. ------


class UserError(Exception):
    """An error that the user can fix, shown as one line without a traceback."""


START_OVER = "start over with --fresh, or use another --output"


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def check_range(pictures: np.ndarray, name: str) -> None:
    """Raise UserError, naming the file `name`, unless all values are numbers in -1..1."""
    low, high = pictures.min(), pictures.max()  # NaN if there is one
    if not -1 <= low <= high <= 1:
        raise bad_data(name, f"holds values from {low:g} to {high:g}, not numbers in -1..1")


def bad_data(name: str, problem: str) -> UserError:
    """The error for a data file that has to be made again."""
    return UserError(f"{name}: {problem}; make it again with image_resizer.py")


def evenly_spaced(length: int, count: int) -> np.ndarray:
    """Up to `count` indices from 0 to length - 1 at even distances, both ends included."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).astype(int))


def load_data(path: str) -> np.ndarray:
    """Memory-map pictures: floating point (N, S, S, 3) in -1..1, S a key of GENERATE_RES.

    Reads the files of image_resizer.py (float32) and of the article's own script (float64).
    Raises UserError if something is wrong; of the values, those of 256 pictures are checked.
    """
    try:
        data = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        where = "" if path == DATA_FILE else f" FOLDER --output {shlex.quote(path)}"
        make = f"make it first: python image_resizer.py{where}"
        raise UserError(f"{path}: no such file; {make}") from None
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {problem}; name another with --data") from None
    except ValueError as error:
        raise bad_data(path, f"not a whole .npy file ({first_line(error)})") from None
    shapes = [(size, size, IMAGE_CHANNELS) for size in GENERATE_RES]
    if not (data.size and data.shape[1:] in shapes and np.issubdtype(data.dtype, np.floating)):
        sizes = ", ".join(map(str, GENERATE_RES))
        wanted = f"floating point of shape (pictures, size, size, {IMAGE_CHANNELS}), size {sizes}"
        raise bad_data(path, f"holds {data.dtype} of shape {data.shape}, not {wanted}")
    sample = data[evenly_spaced(len(data), 256)]
    check_range(sample, path)
    if sample.min() >= 0 and sample.max() > 0.5:
        raise bad_data(path, "no value is below 0, as if scaled to 0..1 and not to -1..1")
    return data


def batches(data: np.ndarray, name: str, seed: int, epochs: range, batch_size: int) -> Iterator:
    """The batches of `epochs`, prefetched. Raises UserError, naming `name`, for bad values."""
    with ThreadPoolExecutor(1) as pool:
        submit = partial(pool.submit, draw_batch, data, seed, batch_size=batch_size)
        drawn = submit(epoch=epochs.start)
        for epoch in epochs:
            x_real, noise = drawn.result()
            if epoch + 1 in epochs:
                drawn = submit(epoch=epoch + 1)  # while this one trains
            check_range(x_real, name)
            yield tf.constant(x_real), tf.constant(noise)


# ---- Files ----------------------------------------------------------------------------------

# What a run writes, and --fresh removes
LOG_FILES = re.compile(r"logs/events\.out\.tfevents\..+\.art_gan")
RUN_FILES = re.compile(
    r"checkpoint/\d{8}\.npz|trained-[1-9]\d*\.(png|keras)|generator\.keras|metrics\.csv|"
    rf"training\.webp|{LOG_FILES.pattern}"
)
# What --generate and --interpolate write
ART_FILES = re.compile(r"art/[\w-]+-seed\d+-(\d{4,}|grid)\.png|interpolation-[\w-]+\.webp")


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a temporary path, and rename it to `path` once it is complete and on the disk."""
    temporary = path.with_name(f".part-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if fcntl:  # not on Windows, which cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some network file systems cannot do this
            os.fsync(folder)
        os.close(folder)


@contextlib.contextmanager
def lock_folder(folder: Path, problem: str) -> Iterator[None]:
    """Make and lock a folder. Raises UserError with `problem` if another process has it locked."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if fcntl:
            lock = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{folder}: {problem}") from None
            except OSError:  # locks are not supported here: continue without
                pass
        yield


def remove_files(output: Path, names: re.Pattern, leftovers_only: bool) -> None:
    """Remove the files in `output` whose relative names match, or only the unfinished ones."""
    # Checkpoints first: if we are killed here, no checkpoint may be left without its previews.
    for path in sorted(output.glob("*/*")) + sorted(output.iterdir()):
        finished = path.with_name(path.name.removeprefix(".part-"))
        fits = names.fullmatch(finished.relative_to(output).as_posix())
        if fits and not (leftovers_only and path == finished):
            path.unlink()


def remove_later_previews(output: Path, iterations: int, args: argparse.Namespace) -> None:
    """Remove the previews of later iterations: a run that was killed makes them again.

    Raises UserError if there is no checkpoint, although that run was long enough to save one.
    """
    paths = [path for path in output.glob("trained-*") if RUN_FILES.fullmatch(path.name)]
    times = [path.stat().st_mtime for path in paths] or [0]
    long = args.checkpoint_seconds + 600  # ten minutes more, for slow iterations and slow disks
    if not iterations and max(times) - min(times) > long:
        problem = "holds previews of a longer run, but no checkpoint"
        raise UserError(f"{output}: {problem}; {START_OVER}")
    for path in paths:
        if (int(path.stem[8:]) - 1) * args.save_freq >= iterations:
            path.unlink()


def run_settings(args: argparse.Namespace, data: np.ndarray) -> dict:
    """What has to stay the same when a run is resumed."""
    sample = np.ascontiguousarray(data[evenly_spaced(len(data), 64)], np.float32)
    settings = {
        "the data": f"{len(data)} pictures, checksum {zlib.crc32(sample):08x}",
        "the picture size": data.shape[1],
        "the noise size": NOISE_SIZE,
    }
    options = ("batch_size", "save_freq", "seed", "precision")
    return settings | {f"--{name.replace('_', '-')}": getattr(args, name) for name in options}


def checkpoint_paths(output: Path) -> list[Path]:
    """The saved training states, the newest first."""
    return sorted((output / "checkpoint").glob("[0-9]" * 8 + ".npz"), reverse=True)


def save_checkpoint(
    output: Path, variables: list[keras.Variable], history: np.ndarray, settings: dict
) -> None:
    """Save the complete training state as one .npz; remove those that are no longer needed."""
    file = io.BytesIO()  # on a full disk, an open zip file would print errors of its own
    np.savez(file, *(v.numpy() for v in variables), metrics=history, settings=json.dumps(settings))
    with replace_file(output / "checkpoint" / f"{len(history):08}.npz") as temporary:
        temporary.write_bytes(file.getbuffer())
    paths = checkpoint_paths(output)
    # A later one is damaged, or we would have resumed from it. So it counts as the oldest.
    paths.sort(key=lambda path: int(path.stem) > len(history))
    for old in paths[CHECKPOINTS:]:
        if time.time() - old.stat().st_mtime > UPLOAD_SECONDS:
            old.unlink()


def load_checkpoint(output: Path, settings: dict) -> tuple[list[np.ndarray], np.ndarray]:
    """The values and the history of the newest undamaged training state; empty if there is none.

    Warns of damaged ones. Raises UserError if all are damaged, or if the run there used other
    settings, and OSError if one cannot be read.
    """
    paths = checkpoint_paths(output)
    for path in paths:
        content = path.read_bytes()  # outside the try: a disk error is not a damaged file
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:  # verifies checksums
                values = [file[f"arr_{i}"] for i in range(len(file.files) - 2)]
                history, saved = file["metrics"], json.loads(str(file["settings"]))
        except MemoryError:
            raise
        except Exception as error:  # a wrong byte makes zipfile, numpy or json raise anything
            print(f"{path}: damaged ({first_line(error)}); it is not used", file=sys.stderr)
            continue
        changed = [name for name in settings if saved.get(name) != settings[name]]
        if changed:
            changes = "; ".join(f"{n} was {saved.get(n)}, is {settings[n]}" for n in changed)
            problem = f"the run there used different settings ({changes})"
            raise UserError(f"{output}: {problem}; use the same ones, {START_OVER}")
        return values, history
    if paths:
        raise UserError(f"{output}: every checkpoint is damaged; {START_OVER}")
    return [], np.empty((0, len(METRICS)), np.float32)


def restore_variables(variables: list[keras.Variable], values: list[np.ndarray]) -> None:
    """Give variables their saved values. Raises UserError if those are of other networks."""
    if [variable.shape for variable in variables] != [value.shape for value in values]:
        raise UserError(f"the run in --output was trained with other networks; {START_OVER}")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def check_finite(history: np.ndarray, variables: list[keras.Variable]) -> None:
    """Raise UserError, naming the iteration, if a loss or a variable is not finite."""
    wrong = [f"a loss at iteration {i}" for i in np.flatnonzero(~np.isfinite(history).all(axis=1))]
    bad = [variable.path for variable in variables if not np.isfinite(variable.numpy()).all()]
    wrong += [f"{path} at iteration {len(history) - 1}" for path in bad]
    if wrong:
        advice = "and would be again if resumed: start over with --fresh and another --seed"
        raise UserError(f"{wrong[0]} is not finite, {advice}")


@dataclasses.dataclass
class Run:
    """What training writes to its output folder: previews, generators, metrics, checkpoints."""

    output: Path
    settings: dict
    generator: keras.Sequential
    variables: list[keras.Variable]  # all that a checkpoint holds
    history: np.ndarray  # the metrics of each iteration, float32 (iterations, 4)
    tensorboard: bool = False
    pending: list[tf.Tensor] = dataclasses.field(default_factory=list)  # not in the history yet
    saved_at: float = dataclasses.field(default_factory=time.monotonic)
    logged: int = 0  # how many iterations the TensorBoard log has

    def __post_init__(self) -> None:
        # A float32 copy of the generator paints the previews and is what is saved.
        keras.config.set_dtype_policy("float32")
        resolution = GENERATE_RES[self.generator.output_shape[1]]
        self.float32_generator = build_generator(NOISE_SIZE, IMAGE_CHANNELS, resolution)
        self.paint = build_painter(self.float32_generator)
        self.log = None
        if self.tensorboard:  # written anew: a killed run repeats iterations that a log has
            remove_files(self.output, LOG_FILES, leftovers_only=False)
            folder = str(self.output / "logs")
            self.log = tf.summary.create_file_writer(folder, filename_suffix=".art_gan")
            self.write_log()

    def update_history(self) -> None:
        """Fetch the pending metrics from the device; warn, once, if the discriminator has won."""
        known = len(self.history)
        self.history = np.vstack([self.history, *self.pending])
        self.pending.clear()
        won = self.history[:, 1] >= WON_ACCURACY
        streaks = list(itertools.accumulate(won, lambda n, again: (n + 1) * again, initial=0))
        if WON_ITERATIONS in streaks and streaks.index(WON_ITERATIONS) > known:
            print(
                f"The discriminator's accuracy has been {WON_ACCURACY:.0%} or more for "
                f"{WON_ITERATIONS} iterations in a row: the generator learns little more. Try "
                "more pictures, or another --seed, with --fresh"
            )

    def save_preview(self, cnt: int, noise: np.ndarray) -> None:
        """Save preview `cnt` and, under the same name, the float32 generator that painted it."""
        self.update_history()
        check_finite(self.history, self.generator.variables)
        self.save_generator(self.output / f"trained-{cnt}.keras")
        save_images(self.output / f"trained-{cnt}.png", self.paint(noise))
        self.write_log()

    def save_generator(self, path: Path) -> None:
        """Save the generator in float32; its name says how many iterations trained it."""
        self.float32_generator.set_weights(self.generator.get_weights())
        self.float32_generator.name = f"generator-{len(self.history)}"
        with replace_file(path) as temporary:
            self.float32_generator.save(temporary)

    def save(self) -> None:
        """Save everything that resuming needs, and the newest generator and metrics for people."""
        self.update_history()
        check_finite(self.history, self.variables)
        self.save_generator(self.output / "generator.keras")
        table = np.column_stack([np.arange(len(self.history)), self.history])
        header = ",".join(("epoch", *METRICS))
        with replace_file(self.output / "metrics.csv") as temporary:
            np.savetxt(temporary, table, "%d" + 4 * ",%.9g", header=header, comments="")
        # Last: the files above must be at least as new as the checkpoint.
        save_checkpoint(self.output, self.variables, self.history, self.settings)
        self.write_log()
        self.saved_at = time.monotonic()

    def write_log(self) -> None:
        """Write metrics and previews that the TensorBoard log does not have yet."""
        if not self.log:
            return
        try:
            with self.log.as_default():
                for step in range(self.logged, len(self.history)):
                    for name, value in zip(METRICS, self.history[step], strict=True):
                        tf.summary.scalar(name, value, step)
                    number, rest = divmod(step, self.settings["--save-freq"])
                    preview = self.output / f"trained-{number + 1}.png"
                    if rest == 0 and preview.exists():
                        with Image.open(preview) as image:
                            tf.summary.image("preview", np.asarray(image)[np.newaxis], step)
            self.log.flush()
            self.logged = len(self.history)
        except tf.errors.OpError as error:  # a full disk, for example
            self.log = None
            problem = f"the TensorBoard log ends here ({first_line(error)})"
            print(f"warning: {problem}; resume the run to write it anew", file=sys.stderr)


def finish(output: Path, iterations: int, args: argparse.Namespace) -> int:
    """Make the time-lapse of a finished run, unless it is up to date, and say what comes next."""
    timelapse, newest = output / TIMELAPSE, checkpoint_paths(output)[0]
    if not timelapse.exists() or timelapse.stat().st_mtime < newest.stat().st_mtime:
        numbers = range(1, (iterations - 1) // args.save_freq + 2)
        paths = [path for n in numbers if (path := output / f"trained-{n}.png").exists()]
        paths = [paths[i] for i in evenly_spaced(len(paths), TIMELAPSE_FRAMES)]
        if paths:
            save_animation(timelapse, map(Image.open, paths), len(paths), TIMELAPSE_MS)
    where = "" if args.output == OUTPUT_DIR else f" --output {shlex.quote(args.output)}"
    print(
        f"Finished {iterations} iterations. To paint new pictures: python art_gan.py --generate "
        f"{PREVIEW_COUNT}{where}; to train on: the same command without --fresh and with --epochs "
        f"{2 * iterations}"
    )
    return 0


# ---- Painting -------------------------------------------------------------------------------


def build_painter(generator: keras.Sequential) -> Callable[[Iterable], Iterator[np.ndarray]]:
    """A function: noise (N, NOISE_SIZE) -> N pictures, uint8 (S, S, 3), one at a time."""
    # The batch size is fixed: every picture depends on its own noise only, and memory is constant.
    fast_generator = tf.function(fuse(generator), autograph=False)

    def paint(noise: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        vectors = iter(noise)
        while batch := list(itertools.islice(vectors, PREVIEW_COUNT)):
            padded = np.pad(batch, [(0, PREVIEW_COUNT - len(batch)), (0, 0)])
            generated_images = 0.5 * fast_generator(padded, training=False).numpy() + 0.5
            yield from (generated_images * 255).astype(np.uint8)[: len(batch)]

    return paint


def save_animation(path: Path, frames: Iterator[Image.Image], count: int, duration: int) -> None:
    """Write `count` frames as an endless animation; `duration` is that of one, in milliseconds."""
    # Pillow would hold all frames in memory. So we give it one picture that says it has `count`
    # frames, and whose seek() replaces its pixels by those of the next.
    screen = next(frames).convert("RGB")
    screen.n_frames = count
    screen.seek = lambda frame: screen.paste(next(frames)) if frame else None
    with replace_file(path) as temporary:
        screen.save(temporary, save_all=True, duration=duration, loop=0)
        next(frames, None)  # the end of the iterator, so that a progress bar shows 100 %


def open_generator(args: argparse.Namespace) -> tuple[str, keras.Sequential]:
    """A name for file names, and the generator to paint with. Raises UserError or OSError."""
    output = Path(args.output)
    path = output / (f"trained-{args.preview}.keras" if args.preview else "generator.keras")
    if not path.exists():
        found = [p for p in output.glob("trained-*.keras") if RUN_FILES.fullmatch(p.name)]
        numbers = ", ".join(map(str, sorted(int(p.stem[8:]) for p in found)))
        if numbers:
            raise UserError(f"{path}: no such generator; --from can be {numbers}")
        raise UserError(f"{path}: no trained generator; train one first: python art_gan.py")
    select_device(args)
    content = io.BytesIO(path.read_bytes())  # outside the try: a disk error is not a damaged file
    try:
        generator = keras.models.load_model(path, compile=False)
    except (tf.errors.ResourceExhaustedError, MemoryError):
        raise
    except Exception as error:  # a wrong byte makes zipfile, json or h5py raise anything
        problem = f"{first_line(error)}; read with Keras {keras.__version__}"
        with contextlib.suppress(Exception):  # the file does not say which Keras wrote it
            metadata = json.loads(zipfile.ZipFile(content).read("metadata.json"))
            problem += f", written by Keras {metadata['keras_version']}"
        advice = "install the Keras that wrote it, or train on, which writes it again"
        raise UserError(f"{path}: cannot be read ({problem}); {advice}") from None
    return path.stem if args.preview else generator.name, generator  # a name with its iteration


def paint(args: argparse.Namespace) -> int:
    """Do --generate or --interpolate; returns the exit code. Raises UserError or OSError."""
    stem, generator = open_generator(args)
    output, name = Path(args.output), f"{stem}-seed{args.seed}"
    count = args.generate or args.interpolate
    noise = random_noise(count, args.seed, ART_STREAM, generator.input_shape[1])
    if args.interpolate:
        count, noise = count * INTERPOLATION_STEPS, interpolate(noise)
    pictures = build_painter(generator)(noise)
    pictures = track(pictures, "Painting", count, disable=not sys.stdout.isatty())
    with lock_folder(output / "art", "--generate or --interpolate is running there; wait for it"):
        remove_files(output, ART_FILES, leftovers_only=True)
        if args.interpolate:
            path = output / f"interpolation-{name}.webp"
            save_animation(path, map(Image.fromarray, pictures), count, INTERPOLATION_MS)
            print(f"{path}: a loop of {count} pictures")
            return 0
        grid = list(itertools.islice(pictures, PREVIEW_COUNT))
        for number, picture in enumerate(itertools.chain(grid, pictures), 1):
            with replace_file(output / "art" / f"{name}-{number:04}.png") as temporary:
                Image.fromarray(picture).save(temporary)
        save_images(output / "art" / f"{name}-grid.png", grid)
        print(f"{count} pictures and a grid in {output / 'art'}; for others, use another --seed")
        return 0


def interpolate(points: np.ndarray) -> Iterator[np.ndarray]:
    """Noise vectors on the way from each point to the next, and from the last to the first."""
    # Spherical interpolation: noise lies near a sphere, and a straight line would leave it.
    for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
        angle = np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -0.999, 0.999))
        t = np.arange(INTERPOLATION_STEPS)[:, np.newaxis] / INTERPOLATION_STEPS
        steps = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
        yield from steps.astype(np.float32)


# ---- The same networks, computed faster -----------------------------------------------------


@tf.custom_gradient
def upsampled_conv2d(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tuple:
    """A 3x3 "same" convolution of x upsampled 2x (nearest), without the upsampled tensor.

    Upsampling turns each pixel of x into a 2x2 block of equal pixels. Along one axis, the kernel's
    middle tap reads the same block for both of its pixels; an outer tap reads the neighbour for
    one of them. So we multiply at the size of x first, and add up afterwards: 1 + 2 + 2 + 4 = 9
    multiplications per pixel of x and pair of channels instead of 36. (A transposed convolution
    with a 4x4 kernel needs 16: Aitken et al. 2017, arXiv:1707.02937.)

    Shapes: x (N, H, W, C), kernel (3, 3, C, F), bias (F,) -> (N, 2H, 2W, F), of one float type.
    """
    _, height, width, channels = x.shape
    filters = kernel.shape[-1]
    middle, outer = slice(1, 2), slice(0, 3, 2)  # taps along an axis: 1; 0 and 2

    def products(rows: slice, cols: slice) -> tf.Tensor:
        taps = kernel[rows, cols]
        r, c = taps.shape[0] - 1, taps.shape[1] - 1  # outer: one more position than pixels
        return tf.nn.conv2d(x, taps, 1, [[0, 0], [r, r], [c, c], [0, 0]])

    rows = []
    for taps in (middle, outer):
        with tf.control_dependencies(rows):  # sequential, to limit peak memory
            a, b = products(taps, middle), products(taps, outer)
        if taps is middle:
            a = tf.nn.bias_add(a, bias)  # `a` reaches every output pixel exactly once
        rows.append(tf.stack([a + b[:, :, :-1], a + b[:, :, 1:]], axis=3))
    a, b = rows
    y = tf.stack([a + b[:, :-1], a + b[:, 1:]], axis=2)

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # Each tap needs the sums of dy over 2x2 blocks, shifted by a pixel if it is an outer one.
        # Matrix products, as TensorFlow's gradient by a convolution's kernel is slow on CPUs.
        pixels = tf.reshape(x, (-1, channels))
        # Times 4, as average pooling gives a quarter of the sums
        kernels = tf.unstack(4 * tf.reshape(kernel, (9, channels, filters)))
        dx, dkernel = tf.zeros_like(pixels), {}
        # taps[shift]: the taps along an axis, each with the sums that belong to the pixels of x
        taps = ([(1, slice(None))], [(0, slice(1, None)), (2, slice(None, -1))])
        for r, c in itertools.product((0, 1), repeat=2):
            with tf.control_dependencies([dx, *dkernel.values()]):  # sequential again
                shifted = tf.pad(dy, [[0, 0], [r, r], [c, c], [0, 0]])
            means = tf.nn.avg_pool2d(shifted, 2, 2, "VALID")
            if r == c == 0:
                dbias = 4 * tf.raw_ops.BiasAddGrad(out_backprop=means)
            for (i, rows), (j, cols) in itertools.product(taps[r], taps[c]):
                with tf.control_dependencies([dx, *dkernel.values()]):
                    blocks = tf.reshape(means[:, rows, cols], (-1, filters))
                dx += tf.matmul(blocks, kernels[3 * i + j], transpose_b=True)
                dkernel[i, j] = tf.matmul(pixels, blocks, transpose_a=True)
        dkernel = 4 * tf.stack([dkernel[tap] for tap in sorted(dkernel)])
        return tf.reshape(dx, tf.shape(x)), tf.reshape(dkernel, kernel.shape), dbias

    return tf.reshape(y, (-1, 2 * height, 2 * width, filters)), gradient


class UpsampledConv2D(layers.Layer):
    """UpSampling2D followed by a stock Conv2D, built, 3x3 and "same", whose variables it shares."""

    def __init__(self, conv: layers.Conv2D) -> None:
        super().__init__(dtype=conv.dtype_policy)
        self.conv = conv

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """(N, H, W, C) -> (N, 2H, 2W, F)."""
        return upsampled_conv2d(x, *map(tf.convert_to_tensor, (self.conv.kernel, self.conv.bias)))


class FusedBatchNormalization(layers.Layer):
    """A stock BatchNormalization, built, whose variables it shares, in TensorFlow's fused kernel.

    Keras composes it from elementwise operations. The moving variance uses n / (n - 1) times the
    variance of a batch, as in Keras 2.3; today's Keras does not.
    """

    def __init__(self, norm: layers.BatchNormalization) -> None:
        super().__init__(dtype=norm.dtype_policy)
        self.norm = norm

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """(N, H, W, C) -> the same shape; the moving statistics change only if training."""
        norm, fused = self.norm, tf.compat.v1.nn.fused_batch_norm
        variables = (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
        arguments = (x, *map(tf.convert_to_tensor, variables), norm.epsilon)
        if not training:
            return fused(*arguments, is_training=False)[0]
        y, *moved = fused(*arguments, exponential_avg_factor=1 - norm.momentum)
        for variable, value in zip(variables[2:], moved, strict=True):
            variable.assign(value)
        return y


def is_stock(layer: layers.Layer | None, stock: layers.Layer, *may_differ: str) -> bool:
    """Whether a layer is like `stock` in all but its weights and the settings `may_differ`."""
    if type(layer) is not type(stock):
        return False
    # Initializers, regularizers and constraints belong to the weights, which stay the same.
    weights = r"(kernel|bias|beta|gamma|moving_\w+)_(initializer|regularizer|constraint)"
    ignored = "|".join(("name", "dtype", weights, *may_differ))
    a, b = layer.get_config(), stock.get_config()
    return all(re.fullmatch(ignored, key) for key in a | b if a.get(key) != b.get(key))


def fuse(model: keras.Sequential) -> keras.Model:
    """A second model that computes what `model` does, faster, with the same layers and variables.

    `model` stays usable and owns the weights. Layers that cannot be computed faster are used as
    they are, and so is a model that is not a Sequential.
    """
    if not isinstance(model, keras.Sequential):
        return model
    upsampling, norm = layers.UpSampling2D(), layers.BatchNormalization()
    conv = layers.Conv2D(1, kernel_size=3, padding="same")
    x = inputs = keras.Input(model.input_shape[1:])
    remaining = [*model.layers, None]  # nothing follows the last layer
    while (layer := remaining.pop(0)) is not None:
        if is_stock(layer, upsampling) and is_stock(remaining[0], conv, "filters"):
            layer = UpsampledConv2D(remaining.pop(0))
        elif len(x.shape) == 4 and is_stock(layer, norm, "momentum", "epsilon"):
            layer = FusedBatchNormalization(layer)
        x = layer(x)
    return keras.Model(inputs, x, name=f"fused_{model.name}")


class FusedAdam(keras.optimizers.Adam):
    """Keras' Adam, with one TensorFlow operation per variable instead of about twenty."""

    def apply(self, grads: list[tf.Tensor], trainable_variables: list | None = None) -> None:
        """Take one step; as keras.optimizers.Adam.apply."""
        step = tf.cast(tf.convert_to_tensor(self.iterations) + 1, tf.float32)
        self.beta_powers = tf.pow(float(self.beta_1), step), tf.pow(float(self.beta_2), step)
        super().apply(grads, trainable_variables)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: float) -> Any:
        """Update one variable and its moments."""
        if self.amsgrad or variable.dtype != tf.float32:
            return super().update_step(gradient, variable, learning_rate)
        index = self._get_variable_index(variable)
        return tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=self.beta_powers[0],
            beta2_power=self.beta_powers[1],
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


# ---- Device, signals, screen ----------------------------------------------------------------


def select_device(args: argparse.Namespace) -> str:
    """Choose the device before TensorFlow first uses it; returns its name. Warns of a slow one."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        with contextlib.suppress(RuntimeError, ValueError):  # a notebook has set them up already
            tf.config.set_visible_devices(gpus[0], "GPU")
            tf.config.experimental.set_memory_growth(gpus[0], True)  # leave room for --generate
        if len(gpus) > 1 and not (args.generate or args.interpolate):
            # The second GPU in the variable, or 1 if it has fewer
            _, other = f"{os.environ.get('CUDA_VISIBLE_DEVICES', 0)},1".split(",")[:2]
            run = f"CUDA_VISIBLE_DEVICES={other} python art_gan.py --seed 1 --output output/seed-1"
            print(f"One of {len(gpus)} GPUs is used. To use another, start another run: {run}")
        return tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not hidden and (any(Path("/dev").glob("nvidia[0-9]*")) or shutil.which("nvidia-smi")):
        print(
            "warning: this machine has an NVIDIA GPU, but TensorFlow does not see it and uses the "
            'CPU; install TensorFlow\'s CUDA build: pip install "tensorflow[and-cuda]"',
            file=sys.stderr,
        )
    if args.precision == "mixed_float16":
        print("warning: mixed_float16 is for GPUs and slow on a CPU; use float32", file=sys.stderr)
    return f"the CPU ({os.cpu_count()} cores)"


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Give a list that collects SIGINT, SIGTERM and SIGHUP; a second SIGINT ends the process."""
    received = []

    def receive(number: int, _: object) -> None:
        received.append(number)
        # A second SIGHUP does not end it: a terminal that closes sends two.
        signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)

    with contextlib.ExitStack() as stack:
        hangup = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
        for number in {signal.SIGINT, signal.SIGTERM, hangup}:
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):  # what is ignored stays ignored (nohup)
                with contextlib.suppress(ValueError):  # in a thread, which cannot catch signals
                    signal.signal(number, receive)
                    stack.callback(signal.signal, number, before)
        yield received


class ProgressLine(Progress):
    """The progress bar of a terminal, and the article's printed line at each preview."""

    def __init__(self, first: int, epochs: int) -> None:
        text = "{task.completed}/{task.total} {task.description}"
        columns = TextColumn(text, markup=False), BarColumn(8)  # a narrow terminal cuts the text
        # The pace is that of the 1,000 iterations that were shown last.
        period = float("inf")
        super().__init__(*columns, disable=not sys.stdout.isatty(), speed_estimate_period=period)
        self.bar = self.add_task("compiling", total=epochs, completed=first)
        self.shown = 0.0
        self.start()
        self.console.show_cursor()  # Rich hides it; after a kill it would stay hidden

    def show(self, epoch: int, metrics: tf.Tensor, preview: bool) -> None:
        """Show an iteration, and print the article's line if there is a preview of it."""
        task = self.tasks[self.bar]
        if not preview and epoch + 1 < task.total and time.monotonic() - self.shown < 1:
            return  # showing waits for the device, so it is done once a second at the most
        d_loss, d_accuracy, g_loss, g_accuracy = metrics.numpy().tolist()
        self.shown = time.monotonic()
        self.update(self.bar, completed=epoch + 1)
        pace = f"compiled in {task.elapsed:.1f} s"
        if task.speed:
            left = datetime.timedelta(seconds=task.time_remaining)
            pace = f"{left} left, {1 / task.speed:.2f} s/iteration"
        losses = f"D {d_loss:.3f} {d_accuracy:4.0%}, G {g_loss:.3f} {g_accuracy:4.0%}"
        self.update(self.bar, description=f"{pace}, {losses}")
        if preview:
            print(
                f"{epoch} epoch, Discriminator accuracy: {100 * d_accuracy}, "
                f"Generator accuracy: {100 * g_accuracy}, {pace}"
            )


class SafeStream:
    """A standard stream whose failure (closed terminal, broken pipe, full disk) ends no run."""

    def __init__(self, stream: TextIO | None) -> None:
        closed = stream is None or getattr(stream, "closed", False)  # None: before Python started
        self.stream = io.StringIO() if closed else stream

    def write(self, text: str) -> int:
        """Write and flush. After a failure, nothing more is shown."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        try:
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self.stream.flush()
        except BlockingIOError:  # the reader of a pipe is slow: only this text is lost
            pass
        except (OSError, ValueError):
            self.stream = io.StringIO()
        return len(text)

    def flush(self) -> None:
        """Do nothing: `write` has flushed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def restored_globals() -> Iterator[None]:
    """Set what is global as a run needs it, whatever keras.json says; set it back at the end."""
    needed = {"image_data_format": "channels_last", "floatx": "float32", "dtype_policy": "float32"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(SafeStream(sys.stdout)))
        stack.enter_context(contextlib.redirect_stderr(SafeStream(sys.stderr)))
        stack.callback(random.setstate, random.getstate())
        for name, value in needed.items():
            set_value = getattr(keras.config, f"set_{name}")
            stack.callback(set_value, getattr(keras.config, name)())
            set_value(value)
        yield


# ---- Command line ---------------------------------------------------------------------------


def whole_number(text: str, least: int) -> int:
    """An argparse type: a whole number from `least` to 2**32 - 1, the largest seed."""
    if not (text.isascii() and text.isdigit() and least <= int(text) < 2**32):
        problem = f"{text!r} is not a whole number from {least} to {2**32 - 1}"
        raise argparse.ArgumentTypeError(problem)
    return int(text)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line's options. Raises SystemExit if they are wrong."""
    text = "Train a GAN that paints; the same command resumes where it stopped."
    parser = argparse.ArgumentParser(description=text, epilog="Defaults are in parentheses.")
    add = parser.add_argument
    from_0, from_1, from_2 = (partial(whole_number, least=least) for least in (0, 1, 2))
    precisions = ("float32", "mixed_bfloat16", "mixed_float16")
    add("--data", default=DATA_FILE, help="pictures, made by image_resizer.py (%(default)s)")
    add("--output", default=OUTPUT_DIR, help="folder for all that a run writes (%(default)s)")
    add("--epochs", type=from_1, default=EPOCHS, help="iterations (%(default)s)")
    add(
        "--batch-size", type=from_1, default=BATCH_SIZE, help="pictures per iteration (%(default)s)"
    )
    add("--save-freq", type=from_1, default=SAVE_FREQ, help="iterations per preview (%(default)s)")
    kept = f"the newest {CHECKPOINTS} and those of the last {UPLOAD_SECONDS} seconds are kept"
    seconds = f"seconds between checkpoints (%(default)s); {kept}"
    add("--checkpoint-seconds", type=from_0, default=CHECKPOINT_SECONDS, help=seconds)
    add("--seed", type=from_0, default=0, help="random seed (%(default)s)")
    faster = "half precision may be faster (%(default)s)"
    add("--precision", choices=precisions, default="float32", help=faster)
    add("--tensorboard", action="store_true", help="also write curves and previews to logs/")
    add("--from", dest="preview", type=from_1, metavar="N", help="paint with preview N")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--fresh", action="store_true", help="remove the run in --output, start over")
    add("--generate", type=from_1, metavar="N", help="paint N new pictures")
    add("--interpolate", type=from_2, metavar="N", help="animate a loop through N new pictures")
    args = parser.parse_args(argv)
    if args.preview and not (args.generate or args.interpolate):
        parser.error("argument --from: goes with --generate or --interpolate")
    return args


@restored_globals()
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Raises SystemExit for bad options."""
    args = parse_args(argv)
    job = paint if args.generate or args.interpolate else train
    again = "the same command without --fresh" if args.fresh else "the same command again"
    try:
        return job(args)
    except KeyboardInterrupt:  # outside the training loop, where there is nothing to save
        print(f"art_gan.py: interrupted; run {again}", file=sys.stderr)
        return 128 + signal.SIGINT
    except UserError as error:
        problem = str(error)
    except (tf.errors.ResourceExhaustedError, MemoryError):
        problem = f"out of memory; stop other programs, then run {again}"
        if job is train:
            problem += ". Or a new run, in another --output, can use a smaller --batch-size"
    except tf.errors.OpError as error:
        gpu = "if this is about the GPU, see README.md, or hide it with CUDA_VISIBLE_DEVICES=-1"
        problem = f"TensorFlow failed: {first_line(error)}; {gpu}"
    except OSError as error:
        problem = f"{error.filename or args.output}: {error.strerror or error}; fix that, then run "
        problem += again
        if job is train:
            problem += ": it resumes from the last checkpoint. Or use another --output"
    print(f"art_gan.py: error: {problem}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Not sys.exit: Python would flush the streams again, and fail if the reader of a pipe is gone.
    os._exit(main())
