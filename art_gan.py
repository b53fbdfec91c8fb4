"""Train a GAN that paints: cubism_data.npy (made by image_resizer.py) -> pictures in output/.

    python art_gan.py                    train; the same command goes on where it stopped
    python art_gan.py --generate 100     new pictures from the trained generator

The networks and the loop are those of the 2020 article, which ran on Keras 2.3 and TensorFlow 1.14:
a generator turns noise into pictures, a discriminator tells them from paintings, and each learns
from the other. What is new is how fast it runs (`fuse`), and that a run cannot be lost.
"""

import argparse
import contextlib
import datetime
import glob
import io
import itertools
import json
import os
import platform
import shlex
import shutil
import signal
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while TensorFlow loads: no traceback
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever keras.json says
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# One operation at a time, each on all cores: as fast, and less memory
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None

# The article's settings
EPOCHS = 10000  # iterations; the article calls one iteration an epoch
BATCH_SIZE = 32
SAVE_FREQ = 100  # iterations between two previews, which are also checkpoints
NOISE_SIZE = 100
GENERATE_RES = 3  # upsampling steps after the first two; a run takes it from the picture size
IMAGE_CHANNELS = 3
PREVIEW_ROWS = 4
PREVIEW_COLS = 7
PREVIEW_MARGIN = 4  # white pixels around each picture of a grid

# Ours
DATA = "cubism_data.npy"
OUTPUT = "output"
RESOLUTIONS = {32: 1, 64: 2, 128: 3, 256: 4}  # picture size: GENERATE_RES
CHECKPOINTS = 2  # how many are kept: the newest, and one to fall back on
EPSILON = 1e-7  # Keras 2.3 keeps probabilities so far from 0 and 1 in its loss
JIT_COMPILE = False  # XLA: on a CPU three times as slow, on a GPU not measured
TIMELAPSE = "training.webp"  # not GIF: all colours instead of 256, in fewer bytes
TIMELAPSE_FRAMES = 200  # at most: of more previews, every second, third ...
TIMELAPSE_MS = 100  # how long each preview shows
LOOP_STEPS, LOOP_MS = 30, 40  # pictures from point to point of an interpolation, and how long each
METRICS = "discriminator_loss,discriminator_accuracy,generator_loss,generator_accuracy"
PREVIEW_STREAM, ART_STREAM = 2**32 - 1, 2**32 - 2  # of random numbers; iterations use 0, 1, 2 ...


class ArtError(Exception):
    """Something that the user can mend; its text is the one line that they see."""


# ---- The article's networks -----------------------------------------------------------------


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
    model.add(layers.Dense(1, activation="sigmoid", dtype="float32"))
    return model


def build_generator(
    noise_size: int, channels: int, generate_res: int = GENERATE_RES
) -> keras.Sequential:
    """The article's generator: noise (N, noise_size) -> pictures (N, S, S, channels) in -1..1.

    S is 16 * 2**generate_res.
    """
    model = keras.Sequential([keras.Input((noise_size,))], name="generator")

    model.add(layers.Dense(4 * 4 * 256, activation="relu"))
    model.add(layers.Reshape((4, 4, 256)))

    for _ in range(2 + generate_res):
        model.add(layers.UpSampling2D())
        model.add(layers.Conv2D(256, kernel_size=3, padding="same"))
        model.add(layers.BatchNormalization(momentum=0.8))
        model.add(layers.Activation("relu"))

    model.add(layers.Conv2D(channels, kernel_size=3, padding="same"))
    model.add(layers.Activation("tanh", dtype="float32"))
    return model


def build_combined(generator: keras.Model, discriminator: keras.Model) -> keras.Model:
    """Noise -> generator -> discriminator -> P(painting), the model of the generator's step.

    The article freezes the discriminator here with `trainable = False`. Today that line freezes
    it for its own steps too, so nothing is frozen: `train_step` says which weights may move.
    """
    noise = keras.Input(generator.input_shape[1:])
    return keras.Model(noise, discriminator(generator(noise)), name="combined")


# ---- The same networks, computed cheaper ----------------------------------------------------


@tf.custom_gradient
def upsampled_conv2d(
    x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor
) -> tuple[tf.Tensor, Callable]:
    """A 3x3 "same" convolution of x upsampled 2x (nearest), without the upsampled tensor.

    A pixel of x fills a 2x2 block. Along each axis the kernel's middle tap leaves the block in its
    place ("even"); the outer taps move it by one, into the gaps between two such places ("odd").
    So multiply first, at x's size, and add up the products block by block: 1 + 2 + 2 + 4 = 9
    multiplications per pixel of x and pair of channels instead of 36. (16, as a transposed
    convolution with a 4x4 kernel: Aitken et al. 2017, arXiv:1707.02937.) Backward likewise: a tap
    meets the gradient's sums over its blocks; as matrix products, since on CPUs TensorFlow is slow
    at a convolution's gradient by its kernel.

    Shapes: x (N, H, W, C), kernel (3, 3, C, F), bias (F,) -> (N, 2H, 2W, F), of one float type.
    """
    _, height, width, channels = x.shape
    filters = kernel.shape[-1]
    even, odd = slice(1, 2), slice(0, 3, 2)

    def products(rows: slice, cols: slice) -> tf.Tensor:
        taps = kernel[rows, cols]
        r, c = taps.shape[0] - 1, taps.shape[1] - 1  # one more place than pixels if odd
        return tf.nn.conv2d(x, taps, 1, [[0, 0], [r, r], [c, c], [0, 0]])

    rows = []
    for parity in (even, odd):
        with tf.control_dependencies(rows):  # one after the other: memory
            a, b = products(parity, even), products(parity, odd)
        if parity is even:
            a = tf.nn.bias_add(a, bias)  # here, every pixel of y meets it once
        rows.append(tf.stack([a + b[:, :, :-1], a + b[:, :, 1:]], axis=3))
    a, b = rows
    y = tf.stack([a + b[:, :-1], a + b[:, 1:]], axis=2)

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        pixels = tf.reshape(x, (-1, channels))
        dx, dkernel = tf.zeros_like(pixels), {}
        places = ([(1, slice(None))], [(0, slice(1, None)), (2, slice(None, -1))])  # even, odd
        for r, c in ((0, 0), (0, 1), (1, 0), (1, 1)):
            with tf.control_dependencies([dx, *dkernel.values()]):  # one at a time: memory
                edges = tf.pad(dy, [[0, 0], [r, r], [c, c], [0, 0]])
            means = tf.nn.avg_pool2d(edges, 2, 2, "VALID")  # a quarter of the sums
            if r == c == 0:
                dbias = 4 * tf.raw_ops.BiasAddGrad(out_backprop=means)
            for (i, rows), (j, cols) in itertools.product(places[r], places[c]):
                with tf.control_dependencies([dx, *dkernel.values()]):
                    blocks = tf.reshape(means[:, rows, cols], (-1, filters))
                dx += tf.matmul(blocks, 4 * kernel[i, j], transpose_b=True)
                dkernel[i, j] = 4 * tf.matmul(pixels, blocks, transpose_a=True)
        dkernel = tf.stack([dkernel[i, j] for i in range(3) for j in range(3)])
        return tf.reshape(dx, tf.shape(x)), tf.reshape(dkernel, kernel.shape), dbias

    return tf.reshape(y, (-1, 2 * height, 2 * width, filters)), gradient


class UpsampledConv2D(layers.Layer):
    """UpSampling2D and the stock Conv2D behind it, whose variables it shares."""

    def __init__(self, conv: layers.Conv2D) -> None:
        """Take over `conv`, a built 3x3 "same" convolution."""
        super().__init__(dtype=conv.dtype_policy)
        self.conv = conv

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """(N, H, W, C) -> (N, 2H, 2W, F)."""
        return upsampled_conv2d(x, *map(tf.convert_to_tensor, (self.conv.kernel, self.conv.bias)))


class FusedBatchNormalization(layers.Layer):
    """A stock BatchNormalization, whose variables it shares, in TensorFlow's fused kernel.

    Keras composes it from elementwise operations. As in Keras 2.3, the moving variance follows the
    unbiased variance of the batches, n / (n - 1) times what today's layer follows.
    """

    def __init__(self, norm: layers.BatchNormalization) -> None:
        """Take over `norm`, a built BatchNormalization of the last axis."""
        super().__init__(dtype=norm.dtype_policy)
        self.norm = norm

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """(N, H, W, C) -> the same shape; the moving statistics change only if training."""
        norm, fused = self.norm, tf.compat.v1.nn.fused_batch_norm
        variables = (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
        scale, offset, *moving = map(tf.convert_to_tensor, variables)
        if not training:
            return fused(x, scale, offset, *moving, norm.epsilon, is_training=False)[0]
        y, *batch = fused(x, scale, offset, epsilon=norm.epsilon)
        for variable, old, new in zip(variables[2:], moving, batch, strict=True):
            variable.assign(norm.momentum * old + (1 - norm.momentum) * new)
        return y


def is_upsampled_conv(layer: layers.Layer, following: layers.Layer) -> bool:
    """Whether two layers are exactly what UpsampledConv2D computes."""
    return (
        type(layer) is layers.UpSampling2D
        and type(following) is layers.Conv2D
        and (layer.size, layer.interpolation) == ((2, 2), "nearest")
        and (following.kernel_size, following.padding) == ((3, 3), "same")
        and following.strides == following.dilation_rate == (1, 1)
        and following.groups == 1
        and following.use_bias
        and following.activation is keras.activations.linear
    )


def fuse(model: keras.Sequential) -> keras.Model:
    """A second model that computes what `model` does, faster, with the same layers and variables.

    `model` is a built flat Sequential; it stays usable and owns the weights. Layers that cannot be
    computed faster are used as they are.
    """
    x = inputs = keras.Input(model.input_shape[1:])
    todo = list(model.layers)
    while todo:
        layer = todo.pop(0)
        if todo and is_upsampled_conv(layer, todo[0]):
            layer = UpsampledConv2D(todo.pop(0))
        elif (
            type(layer) is layers.BatchNormalization
            and layer.axis in (-1, 3)
            and (len(x.shape), layer.center, layer.scale) == (4, True, True)
        ):
            layer = FusedBatchNormalization(layer)
        x = layer(x)
    return keras.Model(inputs, x, name=f"fused_{model.name}")


# ---- One iteration --------------------------------------------------------------------------


def binary_crossentropy(label: float, probability: tf.Tensor) -> tf.Tensor:
    """The mean cross-entropy of probabilities (N, 1) to one label, 0 or 1; clipped as in Keras 2.3.

    Keras 3 sees through the sigmoid to its logits instead, which differs once it saturates.
    """
    p = tf.clip_by_value(probability, EPSILON, 1 - EPSILON)
    logits = tf.math.log(p / (1 - p))
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=label * tf.ones_like(p), logits=logits)
    return tf.reduce_mean(losses)


def gradients(
    model: keras.Model, x: tf.Tensor, label: float, variables: list[keras.Variable]
) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """Pass x through `model` in training mode: its loss against `label`, output and gradients.

    The output is (N, 1), the gradients are those of the loss by each of `variables`.
    """
    sources = [variable.value for variable in variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        output = model(x, training=True)
        loss = binary_crossentropy(label, output)
    return loss, output, tape.gradient(loss, sources)


def build_iteration(
    generator: keras.Sequential, discriminator: keras.Sequential
) -> tuple[Callable[[tf.Tensor, tf.Tensor], tf.Tensor], keras.Optimizer]:
    """One iteration of the article as one compiled function, and the optimizer that it uses.

    The function takes pictures (N, S, S, 3) in -1..1 and noise (N, NOISE_SIZE), both float32. It
    moves the weights of both networks and returns float32 (4,): the discriminator's loss and
    accuracy (means of its two steps), the generator's loss and accuracy; accuracies are 0..1.
    """
    fused_generator, fused_discriminator = fuse(generator), fuse(discriminator)
    combined = build_combined(fused_generator, fused_discriminator)
    # One Adam for both networks, as in the article: its step counter, and with it the length of
    # early steps, rises three times per iteration.
    optimizer = keras.optimizers.Adam(1.5e-4, beta_1=0.5)
    optimizer.build(discriminator.trainable_variables + generator.trainable_variables)

    def train_step(
        model: keras.Model, x: tf.Tensor, label: float, variables: list[keras.Variable]
    ) -> tf.Tensor:
        loss, output, grads = gradients(model, x, label, variables)
        optimizer.apply(grads, variables)
        correct = tf.equal(output > 0.5, label > 0.5)
        return tf.stack([loss, tf.reduce_mean(tf.cast(correct, tf.float32))])

    @tf.function(jit_compile=JIT_COMPILE)
    def iteration(x_real: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        x_fake = fused_generator(noise, training=False)
        real = train_step(fused_discriminator, x_real, 1.0, discriminator.trainable_variables)
        fake = train_step(fused_discriminator, x_fake, 0.0, discriminator.trainable_variables)
        with tf.control_dependencies([real, fake]):  # or it begins early and memory grows
            noise = tf.identity(noise)
        fooled = train_step(combined, noise, 1.0, generator.trainable_variables)
        return tf.concat([0.5 * (real + fake), fooled], axis=0)

    return iteration, optimizer


# ---- Data -----------------------------------------------------------------------------------


def check_values(pictures: np.ndarray, name: str) -> None:
    """Raise ArtError, naming the file `name`, unless all values are numbers in -1..1."""
    low, high = pictures.min(), pictures.max()  # NaN if there is one
    if not -1 <= low <= high <= 1:
        raise ArtError(
            f"{name}: holds values from {low:g} to {high:g}, not numbers in -1..1; "
            "make it again with image_resizer.py"
        )


def spread(data: np.ndarray, count: int) -> np.ndarray:
    """`count` pictures (all, if there are fewer) at even distances, float32 (N, S, S, 3)."""
    index = np.unique(np.linspace(0, len(data) - 1, count).astype(int))
    return data[index].astype(np.float32, order="C")


def load_data(path: str) -> np.ndarray:
    """Memory-map pictures: floating point (N, S, S, 3) in -1..1, S one of 32, 64, 128, 256.

    Files of image_resizer.py (float32) and of the article's own script (float64) both fit. 256
    pictures spread over the file are looked at. Raises ArtError with what is wrong.
    """
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ArtError(f"{path}: no such file; make it first: python image_resizer.py") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0]
        raise ArtError(
            f"{path}: not a whole .npy file ({reason}); make it again with image_resizer.py"
        ) from None
    shape, dtype = getattr(data, "shape", (0,)), getattr(data, "dtype", "an archive")
    fits = shape[1:] in [(size, size, IMAGE_CHANNELS) for size in RESOLUTIONS] and shape[0] > 0
    if not (fits and np.issubdtype(dtype, np.floating)):
        sizes = ", ".join(map(str, RESOLUTIONS))
        raise ArtError(
            f"{path}: holds {dtype} of shape {shape}, not floating point of shape (pictures, size, "
            f"size, {IMAGE_CHANNELS}) with size {sizes}; make it with image_resizer.py"
        )
    sample = spread(data, 256)
    check_values(sample, path)
    if sample.min() >= 0 and sample.max() > 0.5:
        raise ArtError(
            f"{path}: no value is below 0, as if scaled to 0..1 and not to -1..1; "
            "make it with image_resizer.py"
        )
    return data


def random_noise(count: int, *seed: int, size: int = NOISE_SIZE) -> np.ndarray:
    """Noise (count, size) from N(0, 1), float32; a function of `seed` alone."""
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


def draw_batch(
    data: np.ndarray, seed: int, epoch: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures, drawn with replacement, and noise: float32 (N, S, S, 3) and (N, NOISE_SIZE).

    A pure function of (seed, epoch): a run that starts again draws what the first one drew.
    """
    rng = np.random.default_rng([seed, epoch])
    x_real = data[rng.integers(len(data), size=batch_size)].astype(np.float32)
    return x_real, rng.normal(size=(batch_size, NOISE_SIZE)).astype(np.float32)


def batches(
    data: np.ndarray, name: str, seed: int, epochs: range, batch_size: int
) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """The batches of `epochs`, read ahead of the iterations that want them.

    Raises ArtError, naming the file `name`, for one with values that are not numbers in -1..1.
    """

    def read(epoch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        draw = partial(draw_batch, data, seed, batch_size=batch_size)
        x_real, noise = tf.numpy_function(draw, [epoch], (tf.float32, tf.float32))
        x_real.set_shape((batch_size, *data.shape[1:]))
        noise.set_shape((batch_size, NOISE_SIZE))
        return x_real, noise

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1  # not to queue up behind the iteration
    dataset = tf.data.Dataset.range(epochs.start, epochs.stop).map(read).prefetch(2)
    for x_real, noise in dataset.with_options(options):
        check_values(x_real.numpy(), name)
        yield x_real, noise


# ---- Files that are never half-written ------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; what stands there at the end takes path's place."""
    temporary = path.with_name(f".part-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(
    folder: Path, variables: list[keras.Variable], metrics: np.ndarray, settings: dict
) -> None:
    """Write all that a run is in one file that numpy reads; keep the newest two such files.

    `metrics` is float32 (iterations done, 4), as in metrics.csv.
    """
    values = [variable.numpy() for variable in variables]
    file = io.BytesIO()  # on a full disk, a zip file that is still open complains by itself
    np.savez(file, *values, metrics=metrics, settings=json.dumps(settings))
    with replacing(folder / f"{len(metrics):08}.npz") as temporary:
        temporary.write_bytes(file.getbuffer())
    for old in sorted(folder.glob("[0-9]*.npz"))[:-CHECKPOINTS]:
        old.unlink()


def load_checkpoint(folder: Path) -> tuple[list[np.ndarray], np.ndarray, dict] | None:
    """The values, metrics and settings of the newest checkpoint that is whole; None without any.

    Names the damaged ones on standard error. Raises ArtError if there are no others.
    """
    paths = sorted(folder.glob("[0-9]*.npz"), reverse=True)
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as file:  # a zip: every array has a checksum
                values = [file[f"arr_{i}"] for i in range(len(file.files) - 2)]
                return values, file["metrics"], json.loads(str(file["settings"]))
        except Exception as error:  # whatever a wrong byte does to zipfile, numpy or json
            print(f"{path}: damaged ({error}); trying the one before it", file=sys.stderr)
    if paths:
        raise ArtError(f"{folder}: no whole checkpoint; start over with --fresh")
    return None


def save_metrics(path: Path, metrics: np.ndarray) -> None:
    """Write `metrics`, float32 (iterations, 4), as a table of one row per iteration."""
    table = np.column_stack([np.arange(len(metrics)), metrics])
    form = "%d,%.9g,%.9g,%.9g,%.9g"
    with replacing(path) as temporary:
        np.savetxt(temporary, table, form, header=f"epoch,{METRICS}", comments="")


# ---- Pictures -------------------------------------------------------------------------------


def build_painter(generator: keras.Sequential) -> Callable[[np.ndarray], Iterator[np.ndarray]]:
    """A function: noise (N, NOISE_SIZE) -> N pictures, uint8 (S, S, 3), one after the other.

    All batches have one size, so that a picture depends on its own noise alone, and memory on
    nothing.
    """
    count = PREVIEW_ROWS * PREVIEW_COLS
    fused_generator = tf.function(fuse(generator), jit_compile=JIT_COMPILE)

    def paint(noise: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(noise), count):
            batch = noise[start : start + count]
            batch = np.pad(batch, [(0, count - len(batch)), (0, 0)])
            generated_images = 0.5 * fused_generator(batch, training=False).numpy() + 0.5
            yield from (generated_images * 255).astype(np.uint8)[: len(noise) - start]

    return paint


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write a picture, uint8 (height, width, 3)."""
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary)


def save_images(path: Path, pictures: Iterable[np.ndarray]) -> None:
    """Write up to 28 pictures, uint8 (S, S, 3), as the article's grid of 4 rows and 7 columns."""
    pictures = list(pictures)
    step = len(pictures[0]) + PREVIEW_MARGIN
    shape = (PREVIEW_MARGIN + PREVIEW_ROWS * step, PREVIEW_MARGIN + PREVIEW_COLS * step, 3)
    image_array = np.full(shape, 255, dtype=np.uint8)
    for number, picture in enumerate(pictures):
        row, col = divmod(number, PREVIEW_COLS)
        r, c = PREVIEW_MARGIN + row * step, PREVIEW_MARGIN + col * step
        image_array[r : r + len(picture), c : c + len(picture)] = picture
    save_picture(path, image_array)


def save_animation(path: Path, frames: Iterator[Image.Image], milliseconds: int) -> None:
    """Write frames as an endless animation."""
    with replacing(path) as temporary:
        next(frames).save(
            temporary, save_all=True, append_images=frames, duration=milliseconds, loop=0
        )


def save_timelapse(output: Path, iterations: int, save_freq: int) -> None:
    """Animate the previews of a run of so many iterations, those that are still there."""
    numbers = range(1, (iterations - 1) // save_freq + 2)
    paths = [output / f"trained-{cnt}.png" for cnt in numbers]
    paths = [path for path in paths if path.exists()]
    frames = []
    for path in paths[:: -(-len(paths) // TIMELAPSE_FRAMES) or 1]:
        with Image.open(path) as image:
            frames.append(image.copy())
    if frames:
        save_animation(output / TIMELAPSE, iter(frames), TIMELAPSE_MS)


def load_generator(output: Path) -> keras.Sequential:
    """The generator that a run left in `output`. Raises ArtError if none can be read there."""
    path = output / "generator.keras"
    if not path.exists():
        raise ArtError(f"{path}: no trained generator; train one first: python art_gan.py")
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # whatever a wrong byte does to zipfile, json or h5py
        raise ArtError(f"{path}: cannot be read ({error}); train on: python art_gan.py") from None


def generate(args: argparse.Namespace) -> int:
    """Paint new pictures into output/art/, and a grid of the first 28; returns the exit code."""
    output, count, seed = Path(args.output), args.generate, args.seed
    generator = load_generator(output)
    paint, size = build_painter(generator), generator.input_shape[1]
    art = output / "art"
    art.mkdir(exist_ok=True)
    first = []
    for number, picture in enumerate(paint(random_noise(count, seed, ART_STREAM, size=size)), 1):
        save_picture(art / f"seed{seed}-{number:04}.png", picture)
        if number <= PREVIEW_ROWS * PREVIEW_COLS:
            first.append(picture)
    save_images(art / f"seed{seed}-grid.png", first)
    print(f"{count} pictures and a grid in {art}; for others, another --seed than {seed}")
    return 0


def interpolate(args: argparse.Namespace) -> int:
    """Animate a smooth loop through random points of the noise; returns the exit code."""
    output, count, seed = Path(args.output), args.interpolate, args.seed
    generator = load_generator(output)
    paint = build_painter(generator)
    points = random_noise(count, seed, ART_STREAM, size=generator.input_shape[1])
    t = np.arange(LOOP_STEPS)[:, np.newaxis] / LOOP_STEPS
    path = []
    for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
        # Spherical: noise lies near a sphere, and a straight line would leave it.
        angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        path.append((np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle))
    file = output / f"interpolation-seed{seed}.webp"
    noise = np.concatenate(path).astype(np.float32)
    save_animation(file, map(Image.fromarray, paint(noise)), LOOP_MS)
    print(f"{file}: a loop of {count * LOOP_STEPS} pictures")
    return 0


# ---- Training -------------------------------------------------------------------------------


def describe_device() -> str:
    """The name of the device that TensorFlow trains on; warns if an NVIDIA one lies idle."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not hidden and (glob.glob("/dev/nvidia[0-9]*") or shutil.which("nvidia-smi")):
        print(
            "warning: this machine has an NVIDIA GPU, but TensorFlow does not see it and trains on "
            'the CPU; install TensorFlow\'s CUDA build: pip install "tensorflow[and-cuda]"',
            file=sys.stderr,
        )
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        name = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    return f"the CPU ({name}, {os.cpu_count()} cores)"


def open_output(output: Path, fresh: bool) -> None:
    """Make, lock and try the output folder; clear leftovers and, if `fresh`, the run in it.

    The lock lasts as long as the process. Raises ArtError if another run has it, or OSError.
    """
    checkpoints = output / "checkpoint"
    checkpoints.mkdir(parents=True, exist_ok=True)
    if fcntl:
        try:
            fcntl.flock(os.open(output, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtError(
                f"{output}: another run writes there; stop it, or use another --output"
            ) from None
        except OSError:
            pass  # a file system without locks: rather no lock than no run
    old = itertools.chain(output.glob(".part-*"), checkpoints.glob(".part-*"))
    if fresh:
        # The checkpoints first: what is killed in between must not go on without its previews.
        names = ("checkpoint/*", "trained-*.png", "metrics.csv", "generator.keras", TIMELAPSE)
        old = itertools.chain(*map(output.glob, names), old)
    for path in old:
        path.unlink()
    for folder in (output, checkpoints):
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"try")


def check_settings(output: Path, then: dict, now: dict) -> None:
    """Raise ArtError, naming what differs, unless the run in `output` was started like this one."""
    different = [f"{k} was {then.get(k)}, is {now[k]}" for k in now if then.get(k) != now[k]]
    if different:
        raise ArtError(
            f"{output}: the run there was started otherwise ({'; '.join(different)}); go on as it "
            "was started, start over with --fresh, or use another --output"
        )


def check_finite(metrics: np.ndarray, variables: list[keras.Variable]) -> None:
    """Raise ArtError, saying at which iteration, if a loss or a variable is not finite."""
    wrong = [f"a loss at iteration {i}" for i in np.flatnonzero(~np.isfinite(metrics).all(axis=1))]
    wrong += [
        f"{variable.path} at iteration {len(metrics) - 1}"
        for variable in variables
        if not np.isfinite(variable.numpy()).all()
    ]
    if wrong:
        raise ArtError(
            f"{wrong[0]} is not finite; the last checkpoint was kept, but will come to the same "
            "end: start over with --fresh and another --seed"
        )


def collect_signals() -> list[int]:
    """Give a list that collects SIGINT and SIGTERM; a second one of a kind ends the process."""
    received = []

    def collect(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, collect)
    return received


def train(args: argparse.Namespace) -> int:
    """Train, or go on training, as the options say; returns the exit code.

    Raises ArtError and OSError for what the user can mend.
    """
    data = load_data(args.data)
    size = data.shape[1]
    settings = {
        "the data": f"{len(data)} pictures, checksum {zlib.crc32(spread(data, 64)):08x}",
        "the picture size": size,
        "the noise size": NOISE_SIZE,
        "--batch-size": args.batch_size,
        "--save-freq": args.save_freq,
        "--seed": args.seed,
        "--precision": args.precision,
    }
    output, epochs = Path(args.output), args.epochs
    open_output(output, args.fresh)
    checkpoint = load_checkpoint(output / "checkpoint")
    metrics = np.empty((0, 4), np.float32)
    if checkpoint:
        values, metrics, then = checkpoint
        check_settings(output, then, settings)
    first = len(metrics)
    if first >= epochs:
        if not (output / TIMELAPSE).exists():  # killed in between
            save_timelapse(output, first, args.save_freq)
        print(f"{output}: finished, {first} iterations; to go on: --epochs {2 * first}")
        return 0

    print(f"Training on {describe_device()}, in {args.precision}")
    print(f"{args.data}: {len(data)} pictures of {size} x {size}")
    keras.utils.set_random_seed(args.seed)
    portable_generator = build_generator(NOISE_SIZE, IMAGE_CHANNELS, RESOLUTIONS[size])
    keras.config.set_dtype_policy(args.precision)
    discriminator = build_discriminator(data.shape[1:])
    discriminator.summary()
    generator = build_generator(NOISE_SIZE, IMAGE_CHANNELS, RESOLUTIONS[size])
    generator.summary()
    iteration, optimizer = build_iteration(generator, discriminator)
    paint = build_painter(generator)
    fixed_noise = random_noise(PREVIEW_ROWS * PREVIEW_COLS, args.seed, PREVIEW_STREAM)

    # The discriminator's include the dropout layers' seeds: a resumed run needs them too.
    variables = discriminator.variables + generator.variables + optimizer.variables
    if checkpoint:
        if [variable.shape for variable in variables] != [value.shape for value in values]:
            raise ArtError(
                f"{output}: the run there has other networks than art_gan.py builds now; "
                "start over with --fresh, or use another --output"
            )
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        print(f"Going on from iteration {first} of {epochs}")

    pending = []  # metrics that are still on the device
    columns = (MofNCompleteColumn(), BarColumn(8), TextColumn("{task.description}"))
    progress = Progress(*columns, disable=not sys.stdout.isatty())
    bar = progress.add_task("compiling", total=epochs, completed=first)
    began = shown = time.monotonic()
    stopped = collect_signals()
    with progress:
        stream = batches(data, args.data, args.seed, range(first, epochs), args.batch_size)
        for epoch, (x_real, noise) in enumerate(stream, first):
            pending.append(iteration(x_real, noise))
            preview, last = epoch % args.save_freq == 0, epoch == epochs - 1
            save = preview or last or stopped
            early = progress.disable or time.monotonic() - shown < 1
            if not save and early and epoch > first:
                continue

            d_loss, d_accuracy, g_loss, g_accuracy = pending[-1].numpy().tolist()
            shown = time.monotonic()
            if epoch == first:
                pace = f"compiled in {shown - began:.1f} s"
                began = shown
            else:
                seconds = (shown - began) / (epoch - first)
                left = datetime.timedelta(seconds=round(seconds * (epochs - 1 - epoch)))
                pace = f"{seconds:.2f} s/iteration, {left} left"
            text = f"D {d_loss:.3f} {d_accuracy:4.0%}, G {g_loss:.3f} {g_accuracy:4.0%}, {pace}"
            progress.update(bar, completed=epoch + 1, description=text)
            if not save:
                continue

            metrics = np.concatenate([metrics, tf.stack(pending).numpy()])
            pending.clear()
            check_finite(metrics, variables)
            (output / TIMELAPSE).unlink(missing_ok=True)  # a shorter run's; made anew at the end
            if preview:
                cnt = epoch // args.save_freq + 1
                save_images(output / f"trained-{cnt}.png", paint(fixed_noise))
                line = (
                    f"{epoch} epoch, Discriminator accuracy: {100 * d_accuracy}, "
                    f"Generator accuracy: {100 * g_accuracy}, {pace}"
                )
                progress.print(line, soft_wrap=True, highlight=False)
            portable_generator.set_weights(generator.get_weights())
            with replacing(output / "generator.keras") as temporary:
                portable_generator.save(temporary)
            save_metrics(output / "metrics.csv", metrics)
            # The last to be written: what a checkpoint stands for is all there.
            save_checkpoint(output / "checkpoint", variables, metrics, settings)
            if stopped:
                again = "the same command" + " without --fresh" * args.fresh
                print(f"Stopped at iteration {epoch + 1} of {epochs}; {again} goes on")
                return 128 + stopped[0]
    save_timelapse(output, len(metrics), args.save_freq)
    where = "" if args.output == OUTPUT else f" --output {shlex.quote(args.output)}"
    print(f"Finished {epochs} iterations; new pictures: python art_gan.py --generate 28{where}")
    return 0


# ---- Command line ---------------------------------------------------------------------------


def whole(text: str, least: int = 1) -> int:
    """An argparse type: a whole number from `least` to what seeds allow, 2**32 - 1."""
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"{number} is less than {least}")
    if number >= 2**32:
        raise argparse.ArgumentTypeError(f"{number} is more than {2**32 - 1}")
    return number


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Train a GAN that paints; the same command goes on where it stopped.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    option = parser.add_argument
    option("--data", default=DATA, help="pictures, made by image_resizer.py")
    option("--output", default=OUTPUT, help="folder for all that a run writes")
    option("--epochs", type=whole, default=EPOCHS, help="iterations")
    option("--batch-size", type=whole, default=BATCH_SIZE, help="pictures in one iteration")
    option("--save-freq", type=whole, default=SAVE_FREQ, help="iterations between previews")
    option("--seed", type=partial(whole, least=0), default=0, help="of all that is random")
    precisions = ("float32", "mixed_bfloat16")
    option("--precision", choices=precisions, default="float32", help="bfloat16 may be faster")
    option = parser.add_mutually_exclusive_group().add_argument
    option("--fresh", action="store_true", help="clear the run in --output and start over")
    option("--generate", type=whole, metavar="N", help="paint N new pictures instead")
    loop = "animate a loop through N new pictures instead"
    option("--interpolate", type=partial(whole, least=2), metavar="N", help=loop)
    args = parser.parse_args(argv)

    sys.stdout.reconfigure(line_buffering=True)  # a log shows each line when it is written
    keras.config.set_image_data_format("channels_last")  # whatever keras.json says
    keras.config.set_floatx("float32")
    job = generate if args.generate else interpolate if args.interpolate else train
    try:
        return job(args)
    except ArtError as error:
        problem = str(error)
    except (tf.errors.ResourceExhaustedError, MemoryError):
        problem = "out of memory; use a smaller --batch-size"
    except OSError as error:
        problem = (
            f"{error.filename or args.output}: {error.strerror or error}; mend that or use another "
            "--output, then run the same command again"
        )
        if job is train and not args.fresh:
            problem += ": it goes on from the last checkpoint"
    print(f"art_gan.py: error: {problem}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
