"""Train a GAN that paints: cubism_data.npy (made by image_resizer.py) -> pictures in output/.

    python art_gan.py                    train; the same command resumes where it stopped
    python art_gan.py --generate 100     paint new pictures with the trained generator

This is the program of the 2020 article "Generating Modern Arts using Generative Adversarial
Network (GAN) on Spell". Its networks and its training loop come first, in the article's order.
Below the divider is what makes them fast, safe to interrupt and easy to use.
"""

import argparse
import contextlib
import ctypes
import datetime
import fcntl
import importlib.util
import io
import itertools
import json
import os
import re
import shlex
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from shutil import which
from typing import Any

if __name__ == "__main__":
    # A standard stream may be closed. Then the next file that is opened gets its number, and what
    # TensorFlow prints goes into that file. So open the null device first.
    while os.open(os.devnull, os.O_RDWR) < 3:
        pass
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while TensorFlow loads: no traceback

import numpy as np
from PIL import ExifTags, Image
from rich.progress import BarColumn, Progress, TextColumn, track

import image_resizer
from image_resizer import PART, UserError, doublings, reason, replace_file, say, sync, tolerate

os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever keras.json says
if not any(Path("/dev").glob("nvidia[0-9]*")) and not os.path.exists("/dev/dxg"):  # in WSL2
    # On a CPU, one operation at a time on all cores is as fast and needs less memory.
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

# The folders where pip puts NVIDIA's libraries. TensorFlow 2.21 does not look for cuSOLVER there,
# and uses no GPU without it. It finds a library that is already loaded: so load it here.
nvidia = importlib.util.find_spec("nvidia")
NVIDIA = [Path(folder) for folder in (nvidia and nvidia.submodule_search_locations) or ()]
for library in itertools.chain(*(f.glob("cusolver/lib/libcusolver.so.*") for f in NVIDIA)):
    with contextlib.suppress(OSError):  # then TensorFlow says what is missing
        ctypes.CDLL(str(library))

# TensorFlow's lines about GPUs look like errors to newcomers, and it has no switch for them. So
# they go to a file, and are shown if the import fails, if no GPU is found where one should be, or
# if TF_CPP_MIN_LOG_LEVEL is set below 3. (At 2, a working GPU still shows harmless errors.)
SHOW_LINES = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") < "3"
TENSORFLOW_LINES = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
screen = os.dup(2)
os.dup2(TENSORFLOW_LINES.fileno(), 2)
try:
    import keras
    import tensorflow as tf
    from keras import layers

    GPUS = tf.config.list_physical_devices("GPU")
finally:
    os.dup2(screen, 2)
    os.close(screen)
    if SHOW_LINES or "GPUS" not in globals():
        os.write(2, os.pread(TENSORFLOW_LINES.fileno(), 2**20, 0))

# The article's settings
PREVIEW_ROWS = 4
PREVIEW_COLS = 7
PREVIEW_COUNT = PREVIEW_ROWS * PREVIEW_COLS
PREVIEW_MARGIN = 4  # white pixels around each picture of a preview
SAVE_FREQ = 100  # iterations between two previews
NOISE_SIZE = 100  # how many random numbers the generator makes a picture from
EPOCHS = 10000  # iterations; the article calls one iteration an epoch
BATCH_SIZE = 32
Y_REAL, Y_FAKE = 1.0, 0.0  # labels: what the discriminator should say of a painting, and of a fake
Label = float | tf.Tensor  # one for all pictures, or one for each

# Settings that the article does not have
DATA_FILE = "cubism_data.npy"
OUTPUT_DIR = "output"
CHECKPOINT_SECONDS = 60  # if the machine dies, about this much work is lost
CHECKPOINTS = 2  # kept at least: the newest and, in case it is damaged, the one before it
UPLOAD_SECONDS = 300  # younger checkpoints are kept too: they may still be uploading to a bucket
CHECKPOINTS_AT_MOST = 10
VERDICT_ITERATIONS = 500  # the means of this many show whether a network has won
TIMELAPSE = "training.webp"  # not a GIF: all colours instead of 256, in a smaller file
TIMELAPSE_FRAMES, TIMELAPSE_MS = 200, 100  # previews at most; milliseconds for each
TIMELAPSE_PIXELS = 1024  # larger previews are shown smaller
INTERPOLATION_STEPS, INTERPOLATION_MS = 30, 40  # frames per picture; milliseconds for each
PREVIEW_NOISE, ART_NOISE = 2**32 - 1, 2**32 - 2  # `stream` of random_noise; iteration i uses i
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


def build_generator(noise_size: int, image_shape: tuple[int, int, int]) -> keras.Sequential:
    """The article's generator: noise (N, noise_size) -> pictures (N, *image_shape) in -1..1."""
    model = keras.Sequential([keras.Input((noise_size,))], name="generator")

    # The article begins with 4 x 4 pixels and doubles them 2 + GENERATE_RES times. Its
    # GENERATE_RES is 3, for 128 px: five doublings.
    height, width, channels = image_shape
    times = doublings(height, width)
    height, width = height >> times, width >> times
    model.add(layers.Dense(height * width * 256, activation="relu"))
    model.add(layers.Reshape((height, width, 256)))

    for _ in range(times):
        model.add(layers.UpSampling2D())
        model.add(layers.Conv2D(256, kernel_size=3, padding="same"))
        model.add(layers.BatchNormalization(momentum=0.8))
        model.add(layers.Activation("relu"))

    model.add(layers.Conv2D(channels, kernel_size=3, padding="same"))
    model.add(layers.Activation("tanh", dtype="float32"))
    return model


def save_images(path: Path, pictures: Iterable[np.ndarray]) -> None:
    """Write up to PREVIEW_COUNT pictures, uint8 (*image_shape), as the article's grid."""
    # The article's `save_images(cnt, noise)` also runs the generator. Here `build_painter` does,
    # so that --generate can save its pictures one by one.
    pictures = list(pictures)
    height, width, channels = pictures[0].shape
    down, right = height + PREVIEW_MARGIN, width + PREVIEW_MARGIN
    shape = (PREVIEW_MARGIN + PREVIEW_ROWS * down, PREVIEW_MARGIN + PREVIEW_COLS * right, channels)
    image_array = np.full(shape, 255, dtype=np.uint8)
    for image_count, picture in enumerate(pictures):
        row, col = divmod(image_count, PREVIEW_COLS)
        y, x = PREVIEW_MARGIN + row * down, PREVIEW_MARGIN + col * right
        image_array[y : y + height, x : x + width] = picture
    save_picture(path, image_array)


def build_combined(generator: keras.Model, discriminator: keras.Model) -> keras.Model:
    """The article's combined model: noise -> generator -> discriminator -> P(painting), (N, 1)."""
    # The article sets `discriminator.trainable = False` here. Since Keras 3 that line also stops
    # the discriminator's own training, without a warning. Here nothing is frozen. Instead, the
    # generator's step computes gradients for the generator's weights only.
    noise = keras.Input(generator.input_shape[1:])
    return keras.Model(noise, discriminator(generator(noise)), name="combined")


# ---- One iteration --------------------------------------------------------------------------


def noise_from(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """The article's noise: (count, size) from N(0, 1), float32."""
    return rng.normal(size=(count, size)).astype(np.float32)


def random_noise(count: int, seed: int, stream: int, size: int = NOISE_SIZE) -> np.ndarray:
    """Noise (count, size), float32; the same for the same seed and stream."""
    return noise_from(np.random.default_rng([seed, stream]), count, size)


def draw_batch(data: np.ndarray, seed: int, epoch: int, batch_size: int) -> list[np.ndarray]:
    """Pictures, drawn with replacement, (N, *image_shape), and noise (N, NOISE_SIZE); float32."""
    rng = np.random.default_rng([seed, epoch])  # so that a resumed run draws the same batches
    x_real = data[rng.integers(len(data), size=batch_size)].astype(np.float32)
    return [x_real, noise_from(rng, batch_size, NOISE_SIZE)]


def labels_for(output: tf.Tensor, label: Label) -> tf.Tensor:
    """One label, or N labels, as float32, shaped so that output i (of N) gets label i."""
    label, rank = tf.cast(label, tf.float32), output.shape.rank
    return label if label.shape.rank == rank else tf.reshape(label, [-1] + [1] * (rank - 1))


def binary_crossentropy(label: Label, probability: tf.Tensor) -> tf.Tensor:
    """The mean cross-entropy of probabilities (N, 1) and labels in 0..1: one, (N,) or (N, 1)."""
    # Clipped, as in Keras 2.3. Keras 3 would use the logits before the sigmoid.
    p, label = tf.clip_by_value(probability, 1e-7, 1 - 1e-7), labels_for(probability, label)
    return -tf.reduce_mean(label * tf.math.log(p) + (1 - label) * tf.math.log(1 - p))


def loss_and_gradients(
    model: keras.Model, x: tf.Tensor, label: Label, trained: keras.Model, scale_loss: Callable
) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """Run `model` on x in training mode; get gradients for `trained`: the model or a part of it.

    Returns the loss, with that part's regularizers, the output (N, 1), and the gradients of
    `scale_loss(loss)` with respect to the trainable variables of `trained`. Raises UserError if
    there are none, or if one of them has no influence on the loss.
    """
    variables = [variable.value for variable in trained.trainable_variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(variables)
        output = model(x, training=True)
        loss = tf.add_n([binary_crossentropy(label, output), *trained.losses])
        scaled_loss = scale_loss(loss)
    gradients = tape.gradient(scaled_loss, variables)
    check_trainable(trained, gradients)
    return loss, output, gradients


def build_iteration(
    generator: keras.Model, discriminator: keras.Model, jit_compile: bool = False
) -> tuple[Callable[[tf.Tensor, tf.Tensor], tf.Tensor], keras.Optimizer]:
    """One iteration of the article's loop as one compiled function, and the optimizer it uses.

    The function takes pictures (N, *image_shape) in -1..1 and noise (N, NOISE_SIZE), both float32.
    It updates the weights of both networks and returns float32 (4,), in the order of METRICS:
    losses, and accuracies in 0..1; for the discriminator, the means of its two steps. XLA
    (`jit_compile`) takes three times as long on a CPU; on a GPU it was not measured.
    """
    # The same networks, computed faster: see `fuse`
    fast_generator, fast_discriminator = fuse(generator), fuse(discriminator)
    combined = build_combined(fast_generator, fast_discriminator)
    # In the article, both models share one Adam. So its step count, on which its bias correction
    # depends, grows by three per iteration.
    optimizer = FusedAdam(1.5e-4, beta_1=0.5)
    if generator.compute_dtype == "float16":
        # Small gradients would be rounded to 0, so the loss is scaled up. If a gradient overflows,
        # the step is skipped, Adam's step count included, and the scale is halved.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(discriminator.trainable_variables + generator.trainable_variables)
    y_real, y_fake = Y_REAL, Y_FAKE

    def train_on_batch(
        model: keras.Model, x: tf.Tensor, label: Label, trained: keras.Model
    ) -> tf.Tensor:
        loss, output, gradients = loss_and_gradients(model, x, label, trained, optimizer.scale_loss)
        optimizer.apply(gradients, trained.trainable_variables)
        correct = tf.equal(output > 0.5, labels_for(output, label) > 0.5)
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

    return iteration, optimizer  # return, too, whatever else has variables that it changes


# ---- Training -------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> int:
    """Train or resume; returns the exit code. Raises UserError or OSError."""
    data, device = load_data(args.data), select_device(args)
    with lock_folder(Path(args.output)):
        run = Run(args, data)
        run.start()
        if run.done >= args.epochs:
            return run.finish()
        say(f"Training on {device}, in {args.precision}")
        say(f"{args.data}: {len(data)} pictures of {' x '.join(map(str, data.shape[1:]))}")
        with contextlib.redirect_stdout(io.StringIO()) as tables:  # say() never fails, Keras may
            for network in run.networks.values():
                network.summary()
        for line in tables.getvalue().splitlines():
            say(line)

        drawn = batches(data, args.data, args.seed, range(run.done, args.epochs), args.batch_size)
        with progress_line(run.done, args.epochs) as show, catch_signals() as signals:
            for epoch, (x_real, noise) in enumerate(drawn, run.done):
                metrics = run.iteration(x_real, noise)
                run.pending.append(metrics)
                is_preview = epoch % args.save_freq == 0
                if is_preview:
                    run.save_preview()
                show(epoch, metrics, is_preview)
                stop = bool(signals)  # read once: a later signal counts after the next iteration
                last = stop or run.done == args.epochs
                if last or time.monotonic() - run.saved_at >= args.checkpoint_seconds:
                    run.save()
                if stop:
                    again = "the same command without --fresh" if args.fresh else "the same command"
                    say(f"Stopped after {run.done} of {args.epochs} iterations; {again} resumes")
                    return 128 + signals[0]
        return run.finish()


# ---- The article ends here. The rest makes it fast, safe to interrupt and easy to use. ------


# ---- The same networks, computed faster -----------------------------------------------------
# `fuse` gives a second model that shares a network's layers and variables, and computes the same
# values in fewer or cheaper operations. Nothing here may change what a network computes.


def upsampled_conv2d_transposed(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """As `upsampled_conv2d_9`, but as one transposed convolution with a 4x4 kernel.

    16 multiplications per pixel of x and pair of channels instead of 9, but it moves far less data
    through memory, which is what takes the time on a GPU (Aitken et al. 2017, arXiv:1707.02937).
    """
    _, height, width, _ = x.shape
    # Along an axis, each of the 4 taps is the sum of those of the 3 that read the same pixel of x.
    sums = tf.constant([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], kernel.dtype)
    kernel = tf.einsum("ai,bj,ijcf->abfc", sums, sums, kernel)
    shape = (tf.shape(x)[0], 2 * height, 2 * width, kernel.shape[2])
    return add_bias(tf.nn.conv2d_transpose(x, kernel, shape, strides=2), bias)


@tf.custom_gradient
def add_bias(y: tf.Tensor, bias: tf.Tensor) -> tuple:
    """y (N, H, W, F) + bias (F,), whose gradient is summed in float32, also in half precision."""

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.reshape(dy, (-1, dy.shape[-1]))
        # A matrix product adds up in float32. TensorFlow's own gradient of a bias may not.
        return dy, tf.matmul(tf.ones_like(pixels[:, :1]), pixels, transpose_a=True)[0]

    return tf.nn.bias_add(y, bias), gradient


@tf.custom_gradient
def upsampled_conv2d_9(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tuple:
    """A 3x3 "same" convolution of x upsampled 2x (nearest), without the upsampled tensor.

    Upsampling turns each pixel of x into a 2x2 block of equal pixels. Along one axis, the kernel's
    middle tap reads the same block for both of its pixels; an outer tap reads the neighbour for
    one of them. So we multiply at the size of x first, and add up afterwards: 1 + 2 + 2 + 4 = 9
    multiplications per pixel of x and pair of channels instead of 36.

    Shapes: x (N, H, W, C), kernel (3, 3, C, F), bias (F,) -> (N, 2H, 2W, F), of one float type.
    """
    _, height, width, channels = x.shape
    filters = kernel.shape[-1]
    middle, outer = slice(1, 2), slice(0, 3, 2)  # taps along an axis: 1; 0 and 2

    def products(vertical: slice, horizontal: slice) -> tf.Tensor:
        taps = kernel[vertical, horizontal]
        r, c = taps.shape[0] - 1, taps.shape[1] - 1  # outer: one more position than pixels
        return tf.nn.conv2d(x, taps, 1, [[0, 0], [r, r], [c, c], [0, 0]])

    sums = []
    for vertical in (middle, outer):
        with tf.control_dependencies(sums):  # sequential, to limit peak memory
            a, b = products(vertical, middle), products(vertical, outer)
        if vertical is middle:
            a = tf.nn.bias_add(a, bias)  # `a` reaches every output pixel exactly once
        sums.append(tf.stack([a + b[:, :, :-1], a + b[:, :, 1:]], axis=3))
    a, b = sums
    y = tf.stack([a + b[:, :-1], a + b[:, 1:]], axis=2)

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # For each pixel p of x, a tap's gradient needs the sum of dy over the 2x2 pixels that read
        # p through this tap. Along an axis, with p's own two pixels in brackets:
        #
        #     dy, pixel by pixel     . .[. .]. .
        #     tap 0                    . .[. .]      one pixel later: shifted by 1
        #     tap 1                  . .[. .]        p's own: not shifted
        #     tap 2                . .[. .]          one pixel earlier: shifted by 1
        #
        # With dy padded by 1, taps 0 and 2 use the same blocks, except for the first or the last.
        # Matrix products are used, as TensorFlow's gradient for a kernel is slow on CPUs.
        pixels = tf.reshape(x, (-1, channels))
        # Times 4, as average pooling gives a quarter of the sums
        kernels = tf.unstack(4 * tf.reshape(kernel, (9, channels, filters)))
        dx, by_tap = tf.zeros_like(pixels), {}
        taps = (1,), (0, 2)  # along an axis, for a shift of 0 and of 1
        own = slice(1, None), slice(None), slice(None, -1)  # by tap: the blocks of the pixels of x
        for r, c in itertools.product((0, 1), repeat=2):
            with tf.control_dependencies([dx, *by_tap.values()]):  # sequential again
                shifted = tf.pad(dy, [[0, 0], [r, r], [c, c], [0, 0]])
            means = tf.nn.avg_pool2d(shifted, 2, 2, "VALID")
            if r == c == 0:
                dbias = 4 * tf.raw_ops.BiasAddGrad(out_backprop=means)
            for i, j in itertools.product(taps[r], taps[c]):
                with tf.control_dependencies([dx, *by_tap.values()]):
                    blocks = tf.reshape(means[:, own[i], own[j]], (-1, filters))
                dx += tf.matmul(blocks, kernels[3 * i + j], transpose_b=True)
                by_tap[i, j] = tf.matmul(pixels, blocks, transpose_a=True)
        dkernel = 4 * tf.stack([by_tap[tap] for tap in sorted(by_tap)])
        return tf.reshape(dx, tf.shape(x)), tf.reshape(dkernel, kernel.shape), dbias

    return tf.reshape(y, (-1, 2 * height, 2 * width, filters)), gradient


upsampled_conv2d = upsampled_conv2d_transposed if GPUS else upsampled_conv2d_9


class UpsampledConv2D(layers.Layer):
    """UpSampling2D and a built 3x3 "same" Conv2D in one layer. It shares the Conv2D's variables."""

    def __init__(self, conv: layers.Conv2D) -> None:
        super().__init__(dtype=conv.dtype_policy)
        self.conv = conv

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """(N, H, W, C) -> (N, 2H, 2W, F)."""
        return upsampled_conv2d(x, *map(tf.convert_to_tensor, (self.conv.kernel, self.conv.bias)))


class FusedBatchNormalization(layers.Layer):
    """A built BatchNormalization, in TensorFlow's fused kernel. It shares that layer's variables.

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
        if not (training and norm.trainable):
            return fused(*arguments, is_training=False)[0]
        y, mean, variance = fused(*arguments, exponential_avg_factor=1 - norm.momentum)
        norm.moving_mean.assign(mean)
        norm.moving_variance.assign(variance)
        return y


def is_stock(layer: layers.Layer, stock: layers.Layer, *may_differ: str) -> bool:
    """Whether a layer has the class and settings of `stock`, but for weights and `may_differ`."""
    if type(layer) is not type(stock):
        return False
    # Initializers, regularizers and constraints belong to the weights, which stay the same.
    weights = r"(kernel|bias|beta|gamma|moving_\w+)_(initializer|regularizer|constraint)"
    ignored = "|".join(("name", "dtype", "trainable", weights, *may_differ))
    a, b = layer.get_config(), stock.get_config()
    return all(re.fullmatch(ignored, key) for key in a | b if a.get(key) != b.get(key))


def fuse(model: keras.Model) -> keras.Model:
    """A second model that computes what `model` does, faster, with the same layers and variables.

    `model` owns the weights and stays usable. Layers, and kinds of models, that cannot be computed
    faster stay as they are.
    """
    sequential, operations = model, getattr(model, "operations", [])
    # The article's Model(image, Sequential(...)(image)): fuse the Sequential. Equal shapes are
    # excluded, as it could be called twice there.
    if len(operations) == 2 and model.input_shape != model.output_shape:
        options = operations[1]._inbound_nodes[-1].arguments.kwargs.values()
        sequential = operations[1] if all(option is None for option in options) else model
    # A subclass may do more in its call(), so it stays as it is.
    if type(sequential) is not keras.Sequential or not type(model).__module__.startswith("keras."):
        return model
    upsampling, norm = layers.UpSampling2D(), layers.BatchNormalization()
    conv = layers.Conv2D(1, kernel_size=3, padding="same")
    x = inputs = keras.Input(model.input_shape[1:])
    remaining = list(sequential.layers)
    while remaining:
        layer = remaining.pop(0)
        if not re.fullmatch(r"[A-Za-z0-9.][\w.>-]*", layer.name, re.ASCII):
            layer.name = f"layer_{len(remaining) + 1}"  # TensorFlow allows fewer characters
        following = remaining[0] if remaining else None
        same_type = following and layer.compute_dtype == following.compute_dtype
        if same_type and is_stock(layer, upsampling) and is_stock(following, conv, "filters"):
            layer = UpsampledConv2D(remaining.pop(0))
        elif len(x.shape) == 4 and is_stock(layer, norm, "momentum", "epsilon"):
            layer = FusedBatchNormalization(layer)
        x = layer(x)
    return keras.Model(inputs, x)


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


# ---- The data -------------------------------------------------------------------------------
# The file is memory-mapped, so each batch is read from the disk. Every value is checked to be in
# -1..1 before a network gets it.


def bad_data(path: str, problem: str) -> UserError:
    """The error for a data file that has to be made again."""
    return UserError(f"{path}: {problem}; make it again with image_resizer.py")


def check_range(pictures: np.ndarray, path: str) -> None:
    """Raise UserError, naming the file, unless all values are numbers in -1..1."""
    low, high = pictures.min(), pictures.max()  # NaN if there is one
    if not -1 <= low <= high <= 1:
        raise bad_data(path, f"holds values from {low:g} to {high:g}, not numbers in -1..1")


def evenly_spaced(length: int, count: int) -> np.ndarray:
    """Up to `count` indices from 0 to length - 1 at even distances, both ends included."""
    return np.linspace(0, length - 1, min(count, length), dtype=int)


def load_data(path: str) -> np.ndarray:
    """Memory-map pictures: floating point (N, height, width, 1 or 3) in -1..1.

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
        raise UserError(f"{path}: cannot be read ({reason(error)}); use another --data") from None
    except Exception as error:  # a wrong byte in the header makes numpy raise anything
        raise bad_data(path, f"not a whole .npy file ({reason(error)})") from None
    shape = data.shape[1:]
    fits = len(shape) == 3 and shape[2] in (1, 3) and doublings(*shape[:2])
    if not (data.size and fits and np.issubdtype(data.dtype, np.floating)):
        wanted = "floating point of shape (pictures, height, width, 1 or 3), of a possible size"
        raise bad_data(path, f"holds {data.dtype} of shape {data.shape}, not {wanted}")
    sample = data[evenly_spaced(len(data), 256)]
    check_range(sample, path)
    if sample.min() >= 0:
        raise bad_data(path, "no value is below 0, as if scaled to 0..1 and not to -1..1")
    return data


def batches(data: np.ndarray, path: str, seed: int, epochs: range, batch_size: int) -> Iterator:
    """The batches of `epochs`, prefetched. Raises UserError, naming the file, for bad values."""
    with ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(draw_batch, data, seed, epochs.start, batch_size)
        for epoch in epochs:
            x_real, noise = drawn.result()
            # Draw the next one while this one trains. The one after the last is not used.
            drawn = pool.submit(draw_batch, data, seed, epoch + 1, batch_size)
            check_range(x_real, f"a batch of {path}")
            yield tf.constant(x_real), tf.constant(noise)


# ---- A run ----------------------------------------------------------------------------------
# `Run` holds everything about a run, and writes each file completely or not at all.

START_OVER = "start over with --fresh, or use another --output"


class Run:
    """The complete state of a training run. A checkpoint holds these three, and nothing else:

    state: every variable that an iteration uses: both networks', the optimizer's, and others
    history: the metrics of each iteration, float32 (iterations, 4), in the order of METRICS
    settings: what must not change between runs: data, options, labels, networks, optimizer
    """

    def __init__(self, args: argparse.Namespace, data: np.ndarray) -> None:
        """Build the networks; --output is not touched. Raises UserError if they do not fit."""
        if args.tensorboard and not importlib.util.find_spec("tensorboard"):
            raise UserError("--tensorboard needs one more package: pip install tensorboard")
        self.args, self.output = args, Path(args.output)
        self.history = np.empty((0, len(METRICS)), np.float32)
        self.pending: list[tf.Tensor] = []  # metrics still on the device, not in the history yet
        self.state: list[keras.Variable] = []  # filled when the iteration is compiled
        self.log, self.logged = None, 0  # the TensorBoard log; how many iterations are in it
        self.saved_at = time.monotonic()
        self.fixed_noise = random_noise(PREVIEW_COUNT, args.seed, PREVIEW_NOISE, NOISE_SIZE)

        image_shape = data.shape[1:]
        with errors_in_one_line():
            self.networks = build_networks(image_shape, args.precision, args.seed)
            built = build_iteration(**self.networks)
            self.iteration, *self.returned = keras.tree.flatten(built)
            # What is saved for people are copies in float32. One of them paints the previews.
            self.float32_copies = build_networks(image_shape, "float32", args.seed)
            self.paint = build_painter(self.float32_copies["generator"])
            # Draw and paint once before anything is removed: these functions are edited, too.
            first, again = (
                [np.ascontiguousarray(x) for x in draw_batch(data, args.seed, 0, args.batch_size)]
                for _ in range(2)
            )
            if any(a.tobytes() != b.tobytes() for a, b in zip(first, again, strict=True)):
                raise UserError("draw_batch has to draw the same again; take all from its `rng`")
            self.batch = [tf.TensorSpec(each.shape, each.dtype) for each in first]
            with tempfile.TemporaryDirectory() as folder:
                save_images(Path(folder) / "first.png", self.paint(self.fixed_noise))
            others = {f"optimizer {i}": owner for i, owner in enumerate(self.returned, 1)}
            program = {
                name: {"class": type(owner).__name__, **getattr(owner, "get_config", dict)()}
                for name, owner in (self.float32_copies | others).items()
            }
        check_saveable(self.float32_copies["discriminator"], image_shape)
        check_saveable(self.float32_copies["generator"], (NOISE_SIZE,))

        sample = np.ascontiguousarray(data[evenly_spaced(len(data), 64)], np.float32)
        settings = {
            "the data": f"{len(data)} pictures, checksum {zlib.crc32(sample):08x}",
            "the shape of a picture": image_shape,
            "the noise size": NOISE_SIZE,
            "--batch-size": args.batch_size,
            "--save-freq": args.save_freq,
            "--seed": args.seed,
            "--precision": args.precision,
            "--init": args.init and {"run": args.init},
            "labels": [np.asarray(label).tolist() for label in (Y_REAL, Y_FAKE)],
            "keras": keras.__version__,
            "program": program,
            "the first batch": [f"checksum {zlib.crc32(each):08x}" for each in first],
        }
        # As they will come back from JSON; what JSON cannot hold becomes the name of its type
        self.settings = json.loads(json.dumps(settings, default=lambda value: type(value).__name__))

    @property
    def done(self) -> int:
        """How many iterations have been trained."""
        return len(self.history) + len(self.pending)

    def previews(self) -> dict[int, Path]:
        """The file of each preview up to now, by its iteration: 0, SAVE_FREQ, 2 * SAVE_FREQ ..."""
        epochs = range(0, self.done, self.args.save_freq)
        return {epoch: self.output / f"trained-{i}.png" for i, epoch in enumerate(epochs, 1)}

    def start(self) -> None:
        """Begin in one of four ways. Raises UserError if the command does not fit the folder.

        1. New: --output holds no run, or --fresh removes it. The weights are random.
        2. --init: new, but starts from another run's newest networks and Adam moments.
        3. Resumed: --output holds a run of the same program and data. All is as it was.
        4. Finished: as 3, but no iteration is left.
        """
        for path in find_files(self.output, RUN_FILES, unfinished=True):
            path.unlink()
        saved = None if self.args.fresh else load_state(self.output)
        if saved:
            self.resume(*saved)
        else:
            self.compile_iteration({})
            if self.args.init:
                self.take_networks_of(Path(self.args.init))
            self.claim_folder()
            self.save_state()
        if self.args.tensorboard:  # anew: a killed run's log may go beyond the last checkpoint
            for path in find_files(self.output, LOG_FILES):
                path.unlink()
            logs = self.output / "logs"
            make_folder(logs)
            self.log = tf.summary.create_file_writer(str(logs), filename_suffix=".art_gan")
            self.write_log()

    def resume(self, values: list[np.ndarray], history: np.ndarray, settings: dict) -> None:
        """Continue from a saved state. Raises UserError if it is not one of this run."""
        self.history = history
        self.check_settings(settings)
        if self.done >= self.args.epochs:
            return
        self.compile_iteration(settings)
        self.check_settings(settings)  # again, as the iteration's checksum is known only now
        if [v.shape for v in self.state] != [value.shape for value in values]:
            raise UserError(f"{self.output}: holds a run of other networks; {START_OVER}")
        # If the programs could not be compared, the code's learning rate counts, not the saved one.
        same_code = "program" in settings and settings.get("keras") == keras.__version__
        for variable, value in zip(self.state, values, strict=True):
            if same_code or variable.name != "learning_rate":
                variable.assign(value)
        say(f"Resuming from iteration {self.done} of {self.args.epochs}")

    def compile_iteration(self, saved: dict) -> None:
        """Compile the iteration, collect `state`. Raises UserError if some of it is not saved.

        `saved` holds the settings of the run to resume, and {} for a new one.
        """
        versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
        where = f"the iteration's graph ({versions}, {'GPU' if GPUS else 'CPU'})"
        with errors_in_one_line():
            compiled = self.iteration.get_concrete_function(*self.batch)
            owners = [*self.networks.values(), *self.returned]
            # A network's `variables` include its dropout's state. A SeedGenerator has a `state`.
            held = [getattr(owner, "variables", getattr(owner, "state", owner)) for owner in owners]
            self.state = keras.tree.flatten(held)
            check_iteration(compiled, self.state)
            found = self.settings[where] = checksum(compiled, self.state)
            if found != saved.get(where):  # else that run has traced it twice, which takes a second
                again = tf.function(self.iteration.python_function, autograph=False)
                if found != checksum(again.get_concrete_function(*self.batch), self.state):
                    problem = "numbers of Python or numpy would be drawn once only"
                    raise UserError(f"{problem}; {SEEDED}")
        for name, network in self.networks.items():
            leaves = [each for each in network._flatten_layers() if not each._layers]
            if frozen := [each.name for each in leaves if each.weights and not each.trainable]:
                say(f"{name}: frozen layers stay as they are: {', '.join(frozen)}")

    def check_settings(self, saved: dict) -> None:
        """Raise UserError, naming what differs, unless the run there is the same as this one."""
        init = saved.setdefault("--init", None)  # older checkpoints have none
        if not self.args.init or (isinstance(init, dict) and init.get("run") == self.args.init):
            self.settings["--init"] = init  # the networks were taken over when the run began
        now = dict(self.settings)
        if saved.get("keras") != now.pop("keras"):
            del now["program"]  # another version of Keras may write it differently
        old = {name: saved[name] for name in now if name in saved}  # older checkpoints hold fewer
        changes = differences(old, {name: now[name] for name in old})
        # Other data, seeds and sizes give another first batch: then that says nothing new.
        if changes := [each for each in changes if "first batch" not in each] or changes:
            more = f"; and {len(changes) - 3} more" * (len(changes) > 3)
            hint = f"there, --init {shlex.quote(self.args.output)} continues with these networks"
            problem = f"the run there used different settings ({'; '.join(changes[:3])}{more})"
            raise UserError(f"{self.output}: {problem}; use the same ones, {START_OVER} ({hint})")

    def take_networks_of(self, other: Path) -> None:
        """Take over another run's networks, and its optimizer where it fits. Raises UserError."""
        found = load_state(other) if other.resolve() != self.output.resolve() else None
        if not found:
            raise UserError(f"--init {other}: holds no checkpoint of another run; use its --output")
        values, history, settings = found
        networks = self.networks.values()
        needed = {weight.path for network in networks for weight in network.weights}
        paths = [path_of(variable) for variable in self.state]
        # Older checkpoints hold no names. Then go by order; if the counts differ, networks only.
        first = paths[: sum(len(network.variables) for network in networks)]
        names = settings.get("variables", paths if len(values) == len(paths) else first)
        saved = dict(zip(numbered(names), values, strict=False))
        for variable, (path, number) in zip(self.state, numbered(paths), strict=True):
            value = saved.get((path, number))
            if value is not None and value.shape == variable.shape:
                if variable.name != "learning_rate":  # that is what the code says
                    variable.assign(value)
            elif path in needed:
                there = getattr(value, "shape", "missing")
                problem = f"its {path} is {there}, here it is {tuple(variable.shape)}"
                raise UserError(f"--init {other}: {problem}; it needs the same networks and size")
        self.settings["--init"] = {"run": self.args.init, "iteration": len(history)}
        say(f"Starting with the networks of {other} after {len(history)} iterations")

    def claim_folder(self) -> None:
        """For --fresh, remove the older run; else raise UserError if files like a run's exist."""
        found = find_files(self.output, FRESH_FILES if self.args.fresh else RUN_FILES)
        names = ", ".join(path.relative_to(self.output).as_posix() for path in found[:4])
        names += f" and {len(found) - 4} more" * (len(found) > 4)
        if found and not self.args.fresh:
            problem = f"holds {names}, but no checkpoint that shows which run they are of"
            raise UserError(f"{self.output}: {problem}; move them, {START_OVER}")
        # Checkpoints first, each removal synced: a power cut must not leave one without its files.
        for path in [*checkpoint_paths(self.output), *found]:
            path.unlink(missing_ok=True)
            sync(path.parent)
        if found:
            say(f"--fresh removed from {self.output}: {names}")

    def update(self) -> None:
        """Fetch the pending metrics, and give the float32 copies the current weights.

        Says, once, if one network has won. Raises UserError if something is not finite.
        """
        known = len(self.history)
        self.history = np.vstack([self.history, *self.pending]).astype(np.float32)
        self.pending.clear()
        check_finite(self.history, self.state)
        if text := verdict(self.history, known):
            say(text)
        for name, copy in self.float32_copies.items():
            for variable, value in zip(copy.variables, self.networks[name].variables, strict=True):
                variable.assign(value)
            copy.name = f"{name}-{self.done}"  # --generate names pictures after it

    def save_preview(self) -> None:
        """Save a preview and, under the same name, the float32 generator that paints it."""
        self.update()
        path = self.previews()[self.done - 1]
        with replace_file(path.with_suffix(".keras")) as temporary:
            self.float32_copies["generator"].save(temporary)
        save_images(path, self.paint(self.fixed_noise))
        self.write_log()

    def save(self) -> None:
        """Save everything that resuming needs, and the newest networks and metrics for people."""
        self.update()
        for name, copy in self.float32_copies.items():
            with replace_file(self.output / f"{name}.keras") as temporary:
                copy.save(temporary)
        table = np.column_stack([np.arange(self.done), self.history])
        header = ",".join(("epoch", *METRICS))
        with replace_file(self.output / "metrics.csv") as temporary:
            np.savetxt(temporary, table, "%d" + len(METRICS) * ",%.9g", header=header, comments="")
        self.save_state()  # last: a run that is finished does not write the files above again
        self.write_log()

    def save_state(self) -> None:
        """Save the complete training state as one .npz; remove those no longer needed."""
        self.settings["variables"] = [path_of(variable) for variable in self.state]
        values = [variable.numpy() for variable in self.state]
        # A .npz cannot hold bfloat16 ("V" for numpy). float32 can hold each of its numbers.
        values = [value.astype("f4") if value.dtype.kind == "V" else value for value in values]
        file = io.BytesIO()  # on a full disk, an open zip file would print errors of its own
        np.savez(file, *values, metrics=self.history, settings=json.dumps(self.settings))
        path = self.output / "checkpoint" / f"{self.done:08}.npz"
        make_folder(path.parent)
        with replace_file(path) as temporary:
            temporary.write_bytes(file.getbuffer())
        remove_old_states(path)
        self.saved_at = time.monotonic()

    def write_log(self) -> None:
        """Write metrics and previews that the TensorBoard log does not have yet."""
        if not self.log:
            return
        previews = self.previews()
        try:
            with self.log.as_default():
                for step in range(self.logged, len(self.history)):
                    for name, value in zip(METRICS, self.history[step], strict=True):
                        tf.summary.scalar(name, value, step)
                    if step in previews and (image := open_preview(previews[step])):
                        tf.summary.image("preview", np.asarray(image)[np.newaxis], step)
            self.log.flush()
            self.logged = len(self.history)
        except tf.errors.OpError as error:  # a full disk, for example
            self.log = None
            problem = f"the TensorBoard log ends here ({reason(error)})"
            say(f"warning: {problem}; resume the run to write it again", "stderr")

    def finish(self) -> int:
        """Make the time-lapse of a finished run, and say what comes next; returns the exit code."""
        save_timelapse(self.output / TIMELAPSE, self.previews().values())
        output = self.args.output
        where = "" if output == OUTPUT_DIR else f" --output {shlex.quote(output)}"
        say(
            f"Finished {self.done} iterations. To paint new pictures: python art_gan.py "
            f"--generate {PREVIEW_COUNT}{where}; to train on: the same command without --fresh "
            f"and with --epochs {2 * self.done}"
        )
        return 0


def build_networks(
    image_shape: tuple[int, int, int], precision: str, seed: int
) -> dict[str, keras.Model]:
    """Build both networks, by name. The same seed gives the same weights and names of layers.

    Raises UserError if they do not fit each other and the data.
    """
    keras.utils.clear_session()  # so that layers are numbered from 0
    keras.utils.set_random_seed(seed)  # for initial weights and dropout
    keras.config.set_dtype_policy(precision)
    networks = {
        "discriminator": build_discriminator(image_shape),
        "generator": build_generator(NOISE_SIZE, image_shape),
    }
    for name, network in networks.items():
        if not hasattr(network, "output_shape"):  # a user's subclass
            advice = "return keras.Model(x, network(x)) of it, with x = keras.Input(...)"
            raise UserError(f"build_{name} returns a model without shapes; {advice}")
    generator = networks["generator"]
    taken, made = generator.input_shape[1:], generator.output_shape[1:]
    if taken != (NOISE_SIZE,):
        raise UserError(f"build_generator takes noise of {taken}, NOISE_SIZE is {NOISE_SIZE}")
    if made != image_shape:
        problem = f"build_generator makes pictures of {made}, the data's are {image_shape}"
        raise UserError(f"{problem}; change it, or make data of that size")
    return networks


def check_finite(history: np.ndarray, variables: list[keras.Variable]) -> None:
    """Raise UserError, naming the iteration, if a loss or a variable is not finite."""
    wrong = [f"a loss at iteration {i}" for i in np.flatnonzero(~np.isfinite(history).all(axis=1))]
    bad = [path_of(variable) for variable in variables if not np.isfinite(variable.numpy()).all()]
    wrong += [f"{path} at iteration {len(history) - 1}" for path in bad]
    if wrong:
        advice = "and would be again if resumed: start over with --fresh and another --seed"
        raise UserError(f"{wrong[0]} is not finite, {advice}")


def verdict(history: np.ndarray, known: int) -> str | None:
    """What to say if one network has won since iteration `known`; None if not, or if said before.

    The bounds are for this cross-entropy, which is 16.1 at most. Other losses are rarely within
    them: then nothing is said, which is better than something wrong.
    """
    sums = np.cumsum(np.vstack([np.zeros((1, 4)), history]), axis=0, dtype=np.float64)
    means = (sums[VERDICT_ITERATIONS:] - sums[:-VERDICT_ITERATIONS]) / VERDICT_ITERATIONS
    # The lowest and the highest means, in the order of METRICS. Guessing has a loss of ln 2 = 0.69.
    won = (0, 0.95, 5, 0), (0.4, 1, 16.2, 0.05)
    blind = (0.65, 0.45, 0.5, 0), (0.79, 0.55, 0.9, 1)
    for (lowest, highest), problem in (
        (won, "the discriminator has won, and the generator learns little more"),
        (blind, "the discriminator does not tell paintings from fakes, so no network learns"),
    ):
        hits = np.flatnonzero(((lowest <= means) & (means <= highest)).all(axis=1))
        if len(hits) and hits[0] + VERDICT_ITERATIONS > known:
            d_loss, d_accuracy, g_loss, _ = means[hits[0]]
            return (
                f"It seems that {problem}: for {VERDICT_ITERATIONS} iterations, its accuracy was "
                f"{d_accuracy:.0%}, its loss {d_loss:.2f} and the generator's {g_loss:.2f}. "
                "Try more pictures, or another --seed with --fresh"
            )
    return None


# ---- Edits ----------------------------------------------------------------------------------
# People change the networks and the iteration above. Either a change does what its author means, or
# the run ends in one line that says why not, before anything is trained or overwritten.

SEEDED = "use keras.random with a SeedGenerator, and let build_iteration return that, too"


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn an error in an edited network or iteration into a UserError of one line."""
    try:
        yield
    except (UserError, OSError, MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        name = Path(__file__).name
        place = [frame for frame in frames if Path(frame.filename).name == name][-1]
        raise UserError(f"{name}, line {place.lineno}, {place.line!r}: {cause(error)}") from error


def cause(error: Exception) -> str:
    """What is wrong with a network, in one line: the last part of Keras' message, or all of it."""
    text = str(error).rpartition("Exception encountered: ")[2]
    bold = re.search(r"\x1b\[1m(.+?)\x1b\[0m", text, re.DOTALL)  # how Keras marks it
    return f"{' '.join((bold[1] if bold else text).split()):.200}" or type(error).__name__


def check_trainable(network: keras.Model, gradients: list[tf.Tensor | None]) -> None:
    """Raise UserError if a training step of a network would leave trainable weights as they are."""
    if not gradients:
        problem = f"no weight of the {network.name} is trainable, so it would learn nothing"
        raise UserError(f"{problem}; remove `trainable = False`: freezing is not needed here")
    pairs = zip(network.trainable_variables, gradients, strict=True)
    if paths := [variable.path for variable, gradient in pairs if gradient is None]:
        problem = f"no gradient reaches {', '.join(paths)}, so training would not change them"
        raise UserError(f"{problem}; use that layer, or freeze it with layer.trainable = False")


def check_iteration(compiled: Any, state: list[keras.Variable]) -> None:
    """Raise UserError if a compiled iteration cannot be resumed, or does not return METRICS."""
    if getattr(compiled.structured_outputs, "shape", None) != (len(METRICS),):
        raise UserError(f"the iteration has to return {len(METRICS)} numbers, those of METRICS")
    known = {id(variable.handle) for variable in state}
    used = [each for each in compiled.captured_inputs if each.dtype == tf.resource]
    if lost := sum(id(handle) not in known for handle in used):
        names = {v.name for v in compiled.graph.variables if id(v.handle) not in known}
        problem = f"the iteration uses {lost} variables that are not saved {sorted(names)[:3]}"
        owner = "an optimizer, a model, a SeedGenerator of keras.random"
        raise UserError(f"{problem}; let build_iteration return what owns them, too: {owner}")
    graph = compiled.graph.as_graph_def()
    for node in itertools.chain(graph.node, *(f.node_def for f in graph.library.function)):
        seeded = {"seed", "seed2"} <= set(node.attr) and "Cudnn" not in node.op
        if seeded or node.op in ("PyFunc", "EagerPyFunc"):
            what = f"tf.random or Python ({node.op})"
            raise UserError(f"the iteration uses {what}, whose state is not saved; {SEEDED}")


def checksum(compiled: Any, state: list[keras.Variable]) -> str:
    """A text that is the same for the same operations on the same inputs and variables."""
    graph, handles = compiled.graph.as_graph_def(), [id(variable.handle) for variable in state]
    functions = {function.signature.name: function for function in graph.library.function}

    def record(nodes: Iterable, arguments: Iterable = ()) -> str:
        place, found = {each.name: i for i, each in enumerate([*arguments, *nodes])}, []
        for node in nodes:
            inputs = [name.partition(":") for name in node.input if name[0] != "^"]
            found += [node.op, *((place.get(name), output) for name, _, output in inputs)]
            for key, value in sorted(node.attr.items()):
                if key[0] != "_":  # such a key, and the name of a function, differ each time
                    called = [functions[f.name] for f in (value.func, *value.list.func) if f.name]
                    bodies = [record(f.node_def, f.signature.input_arg) for f in called]
                    found += [key, *(bodies or [value.SerializeToString()])]
        return repr(found)

    used = [handles.index(id(each)) for each in compiled.captured_inputs if id(each) in handles]
    return f"checksum {zlib.crc32(f'{used}{record(graph.node)}'.encode()):08x}"


def check_saveable(network: keras.Model, shape: tuple[int, ...]) -> None:
    """Raise UserError if saving and opening changes a network, OSError if it cannot be saved.

    `shape` is that of one of its inputs.
    """
    own = "layers of your own need get_config and @keras.saving.register_keras_serializable()"
    x = np.random.default_rng(0).normal(size=(network.input_shape[0] or 1, *shape))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.keras"
        try:
            network.save(path)
            networks = network, network, keras.models.load_model(path)
            y, again, reopened = (keras.ops.convert_to_numpy(each(x)) for each in networks)
        except MemoryError:
            raise
        except OSError as error:
            raise OSError(error.errno, reason(error), str(path)) from error
        except Exception as error:
            problem = f"the {network.name}, once saved, cannot be opened again ({cause(error)})"
            raise UserError(f"{problem}; {own}; use no Lambda") from None
    if np.allclose(y, again) and not np.allclose(y, reopened, atol=1e-3):
        problem = f"the {network.name}, once saved and opened again, computes something else"
        raise UserError(f"{problem}; {own}, with all arguments; keep random numbers as weights")


def differences(saved: dict, now: dict) -> list[str]:
    """What differs between two records, in words; the most informative differences first."""

    def in_words(value: Any) -> str:
        return f"{value:.6g}" if isinstance(value, float) else f"{value!s:.120}"

    old, new = dict(flattened(saved)), dict(flattened(now))
    changed = [name for name in old | new if old.get(name) != new.get(name)]
    # If only one of them has a layer, its class says enough: its other settings come last.
    changed.sort(key=lambda n: (n not in old or n not in new) and not n.endswith(" class_name"))
    return [f"{n} was {in_words(old.get(n))}, is {in_words(new.get(n))}" for n in changed]


def flattened(record: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """A nested record as pairs: a name in words, such as "generator conv2d filters"; a value."""
    match record:
        case dict():
            for key, value in record.items():
                if key in ("config", "layers"):
                    yield from flattened(value, name)
                elif key not in ("module", "registered_name", "build_config", "shared_object_id"):
                    yield from flattened(value, f"{name} {key}".lstrip())
        case [{"config": dict()}, *_]:  # layers
            for i, layer in enumerate(record):
                match layer:
                    case {"config": {"name": label}}:
                        yield from flattened(layer, f"{name} {label}")
                    case _:
                        yield from flattened(layer, f"{name} {i}")
        case _:
            yield name, record


def path_of(variable: keras.Variable | tf.Variable) -> str:
    """The full name of a variable, such as "generator/conv2d/kernel"."""
    return getattr(variable, "path", variable.name)


def numbered(names: list[str]) -> list[tuple[str, int]]:
    """Each name, and how many equal ones come before it: two networks may use the same name."""
    return [(name, names[:i].count(name)) for i, name in enumerate(names)]


# ---- The files of a run ---------------------------------------------------------------------
# A folder belongs to a run once it holds a checkpoint; the first is saved before iteration 0.
# Without a checkpoint, only --fresh overwrites files.

# Files of training, files of painting, and those of both that --fresh removes
LOG_FILES = re.compile(r"logs/events\.out\.tfevents\..+\.art_gan")
RUN_FILES = re.compile(
    r"checkpoint/[0-9]{8}\.npz|trained-[1-9][0-9]*\.(png|keras)|(generator|discriminator)\.keras|"
    rf"metrics\.csv|{re.escape(TIMELAPSE)}|{LOG_FILES.pattern}"
)
ART_FILES = re.compile(r"art/[\w.-]+-seed[0-9]+-([0-9]{4,}|grid)\.png|interpolation-[\w.-]+\.webp")
FRESH_FILES = re.compile(
    rf"{RUN_FILES.pattern}|art/(generator|trained)-[0-9]+-seed[0-9]+-([0-9]{{4,}}|grid)\.png|"
    r"interpolation-(generator|trained)-[0-9]+-seed[0-9]+[0-9-]*\.webp"
)


def checkpoint_paths(output: Path) -> list[Path]:
    """The saved training states, the newest first."""
    return sorted((output / "checkpoint").glob("[0-9]" * 8 + ".npz"), reverse=True)


def load_state(output: Path) -> tuple[list[np.ndarray], np.ndarray, dict] | None:
    """The values, history and settings of the newest undamaged state of a run; None without one.

    Warns of damaged ones. Raises UserError if all are damaged, OSError if one cannot be read.
    """
    paths = checkpoint_paths(output)
    for path in paths:
        content = path.read_bytes()  # outside the try: a disk error is not a damaged file
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:  # verifies checksums
                values = [file[f"arr_{i}"] for i in range(len(file.files) - 2)]
                history, settings = file["metrics"], json.loads(str(file["settings"]))
            named = all(isinstance(name, str) for name in settings.get("variables", []))
            numbers = all(v.dtype.kind in "biuf" and v.itemsize <= 8 for v in values)
            if history.shape != (int(path.stem), len(METRICS)) or not (named and numbers):
                raise ValueError("its metrics or variables are not those of a run")
            return values, history.astype(np.float32), settings
        except MemoryError:
            raise
        except Exception as error:  # a wrong byte makes zipfile, numpy or json raise anything
            say(f"{path}: damaged ({reason(error)}); it is not used", "stderr")
    if paths:
        raise UserError(f"{output}: every checkpoint is damaged; {START_OVER}")
    return None


def remove_old_states(saved: Path) -> None:
    """Keep `saved`, one before it, and what a slow bucket may still be uploading."""
    paths = checkpoint_paths(saved.parent.parent)
    newer = paths.index(saved)  # so many are damaged, else the run would have used them: put last
    now = saved.stat().st_mtime  # the clock of the disk, which may be a server's
    for place, path in enumerate(paths[newer:] + paths[:newer]):
        old = now - path.stat().st_mtime > UPLOAD_SECONDS
        if place >= CHECKPOINTS_AT_MOST or (place >= CHECKPOINTS and old):
            path.unlink()


@contextlib.contextmanager
def lock_folder(folder: Path, wait: bool = False) -> Iterator[None]:
    """Make and lock a folder. If another process has it locked, wait, or raise UserError."""
    make_folder(folder)
    with contextlib.ExitStack() as stack:
        lock = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                problem = "another run writes there; stop it, or use another --output"
                raise UserError(f"{folder}: {problem}") from None
            say(f"{folder}: waiting until another command has painted there", "stderr")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # this disk has no locks: go on without one
            pass
        yield


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, and sync each, so that they survive a power cut."""
    for missing in reversed([each for each in (folder, *folder.parents) if not each.is_dir()]):
        missing.mkdir(exist_ok=True)
        sync(missing.parent)


def find_files(output: Path, names: re.Pattern, unfinished: bool = False) -> list[Path]:
    """Files in `output` whose relative names match; if `unfinished`, their leftover .part files."""
    found = []
    for path in sorted(output.glob("*/*")) + sorted(output.glob("*")):
        relative = path.relative_to(output).as_posix()
        final = PART.sub(r"\1", relative)
        if names.fullmatch(final) and (final != relative) == unfinished and not path.is_dir():
            found.append(path)
    return found


# ---- Painting -------------------------------------------------------------------------------
# Pictures, previews and animations. A picture depends on its generator, --seed and number alone.


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Save a picture, uint8 (height, width, 1 or 3)."""
    with replace_file(path) as temporary:
        Image.fromarray(picture.squeeze(-1) if picture.shape[2] == 1 else picture).save(temporary)


def build_painter(generator: keras.Model) -> Callable[[Iterable], Iterator[np.ndarray]]:
    """A function: noise (N, NOISE_SIZE) -> N pictures, uint8 (*image_shape), one at a time."""
    # One batch size for all: so a picture depends on its own noise only, and memory is constant.
    noise_size = generator.input_shape[1]
    fast_generator = tf.function(partial(fuse(generator), training=False), autograph=False)
    compiled = fast_generator.get_concrete_function(tf.TensorSpec((PREVIEW_COUNT, noise_size)))
    if not compiled.structured_outputs.dtype.is_floating:
        raise UserError(f"the {generator.name} makes pictures that are not floating point")

    def painter(noise: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        vectors = iter(noise)
        while batch := list(itertools.islice(vectors, PREVIEW_COUNT)):
            padded = np.pad(batch, [(0, PREVIEW_COUNT - len(batch)), (0, 0)])
            generated_images = 0.5 * compiled(tf.constant(padded)).numpy() + 0.5
            if not np.isfinite(generated_images).all():
                raise UserError(f"the {generator.name} makes pictures that are not finite")
            # Clipped: without tanh, values can exceed 1, and 256 would wrap around to 0
            yield from np.clip(generated_images * 255, 0, 255).astype(np.uint8)[: len(batch)]

    return painter


def open_preview(path: Path) -> Image.Image | None:
    """Open a preview: None if it was deleted or, with a warning, if it is damaged."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # damaged files make Pillow raise anything
        if not isinstance(error, FileNotFoundError):
            say(f"warning: {path}: left out ({reason(error)})", "stderr")
        return None


def save_animation(path: Path, frames: Iterable[Image.Image], duration: int, text: str) -> None:
    """Write RGB frames as a looping animation; `duration` is milliseconds per frame."""
    first, *others = frames
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = text
    options = {"duration": duration, "loop": 0, "exif": exif}
    with replace_file(path) as temporary:
        first.save(temporary, save_all=True, append_images=others, **options)


def save_timelapse(path: Path, previews: Iterable[Path]) -> None:
    """Animate up to TIMELAPSE_FRAMES previews, unless `path` already shows exactly these."""
    previews = [preview for preview in previews if preview.is_file()]
    previews = [previews[i] for i in evenly_spaced(len(previews), TIMELAPSE_FRAMES)]
    crc = 0
    for preview in previews:
        crc = zlib.crc32(preview.read_bytes(), crc)
    text = f"previews with checksum {crc:08x}"
    with contextlib.suppress(Exception), Image.open(path) as image:  # missing or damaged
        if image.getexif().get(ExifTags.Base.ImageDescription) == text:
            return
    frames = [frame for preview in previews if (frame := open_preview(preview))]
    same = [frame for frame in frames if frame.size == frames[-1].size]
    if others := len(frames) - len(same):
        say(f"{path}: {others} previews of another size than the newest are left out")
    for frame in same:
        frame.thumbnail((TIMELAPSE_PIXELS, TIMELAPSE_PIXELS))
    if same:
        save_animation(path, same, TIMELAPSE_MS, text)


def open_generator(path: Path) -> tuple[keras.Model, Callable]:
    """Open any generator file; returns it and its painter, see build_painter.

    Raises UserError if it is not one, OSError if it is unreadable.
    """
    path.open("rb").close()  # outside the try: a disk error is not a damaged file
    try:
        generator = keras.models.load_model(path, compile=False)
        if not all(np.isfinite(weights).all() for weights in generator.get_weights()):
            raise ValueError("it holds weights that are not finite")
        match generator.input_shape, generator.output_shape:
            case (_, int(size)), (_, _, _, 1 | 3) if size:
                return generator, build_painter(generator)
        raise ValueError("not a generator: it does not turn vectors of noise into pictures")
    except (tf.errors.ResourceExhaustedError, MemoryError):
        raise
    except Exception as error:  # a wrong byte makes zipfile, json or h5py raise anything
        advice = "use another one; layers of your own have to be registered in art_gan.py"
        raise UserError(f"{path}: cannot be used ({cause(error)}); {advice}") from None


def find_generator(output: Path, source: str | None) -> Path:
    """The file of the generator that paints: the newest, or what --from names. Raises UserError."""
    if source and not source.isdigit():
        path = Path(source)
    else:
        path = output / (f"trained-{source}.keras" if source else "generator.keras")
    if path.exists():
        return path
    found = (re.fullmatch(r"trained-([1-9][0-9]*)\.keras", p.name) for p in output.glob("*"))
    numbers = sorted(int(match[1]) for match in found if match)
    if numbers and path.parent == output:
        raise UserError(f"{path}: no such generator; --from can be {', '.join(map(str, numbers))}")
    advice = "train one first: python art_gan.py, or paint with --from output/example.keras"
    raise UserError(f"{path}: no trained generator; {advice}")


def paint(args: argparse.Namespace) -> int:
    """Do --generate or --interpolate; returns the exit code. Raises UserError or OSError."""
    output, art = Path(args.output), Path(args.output) / "art"
    path = find_generator(output, args.source)
    select_device(args)
    generator, painter = open_generator(path)
    # A run names its newest generator after its iteration; other files have their own names.
    stem = generator.name if path.name == "generator.keras" else path.stem
    name = re.sub(r"[^\w.-]", "_", stem) + f"-seed{args.seed}"
    numbers = args.interpolate or range(1, args.generate + 1)
    noise = random_noise(max(numbers), args.seed, ART_NOISE, generator.input_shape[1])
    noise = noise[np.array(numbers) - 1]
    if args.interpolate:
        noise = interpolate(noise)
    pictures = track(painter(noise), "Painting", len(noise), disable=not is_terminal())
    with lock_folder(art, wait=True):
        for unfinished in find_files(output, ART_FILES, unfinished=True):
            unfinished.unlink()
        if args.interpolate:
            if numbers != list(range(1, len(numbers) + 1)):
                name += "".join(f"-{number}" for number in numbers)
            if len(name) > 200:  # file systems allow 255 bytes
                name = f"{name:.180}-{zlib.crc32(name.encode())}"
            loop = output / f"interpolation-{name}.webp"
            frames = (Image.fromarray(np.broadcast_to(p, (*p.shape[:2], 3))) for p in pictures)
            save_animation(loop, frames, INTERPOLATION_MS, f"a loop through pictures of {path}")
            say(f"{loop}: a loop of {len(noise)} pictures")
        else:
            grid = list(itertools.islice(pictures, PREVIEW_COUNT))
            for number, picture in enumerate(itertools.chain(grid, pictures), 1):
                save_picture(art / f"{name}-{number:04}.png", picture)
            save_images(art / f"{name}-grid.png", grid)
            say(f"{len(noise)} pictures and a grid in {art}; for others, use another --seed")
    return 0


def interpolate(points: np.ndarray) -> np.ndarray:
    """INTERPOLATION_STEPS vectors from each point to the next, and from the last to the first."""
    # Spherical interpolation: noise lies near a sphere, and a straight line would leave it.
    t = np.arange(INTERPOLATION_STEPS)[:, np.newaxis] / INTERPOLATION_STEPS
    steps = []
    for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
        angle = np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -0.999, 0.999))
        steps.append((np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle))
    return np.concatenate(steps).astype(np.float32)


# ---- Device, signals, screen ----------------------------------------------------------------
# A run prints only after it has saved, and goes on if printing fails.


def select_device(args: argparse.Namespace) -> str:
    """Choose and name the device. Raises UserError if training would use the CPU by accident."""
    if GPUS:
        with contextlib.suppress(RuntimeError, ValueError):  # a notebook has set them up already
            tf.config.set_visible_devices(GPUS[0], "GPU")
            tf.config.experimental.set_memory_growth(GPUS[0], True)  # leave room for --generate
        return tf.config.experimental.get_device_details(GPUS[0]).get("device_name", GPUS[0].name)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    # tensorflow[and-cuda] installs cuda_nvcc; PyTorch, which installs the others, does not.
    packages = any((folder / "cuda_nvcc").is_dir() for folder in NVIDIA)
    if not hidden and (packages or any(Path("/dev").glob("nvidia[0-9]*")) or which("nvidia-smi")):
        TENSORFLOW_LINES.seek(0)
        for line in [] if SHOW_LINES else TENSORFLOW_LINES:
            say(line.rstrip(), "stderr")
        advice = f'install its packages: pip install "tensorflow[and-cuda]=={tf.__version__}"'
        if packages:
            advice = "TF_CPP_MIN_LOG_LEVEL=0 shows why, CUDA_VISIBLE_DEVICES=-1 uses the CPU"
        problem = f"TensorFlow finds no NVIDIA GPU; {advice}"
        if packages and not args.painting:
            raise UserError(problem)
        say(f"warning: {problem}", "stderr")
    if args.precision == "mixed_float16":
        say("warning: mixed_float16 is for GPUs and slow on a CPU; use float32", "stderr")
    with contextlib.suppress(OSError):  # no such file: not Linux
        if args.precision == "mixed_bfloat16" and "bf16" not in Path("/proc/cpuinfo").read_text():
            say("warning: this CPU has no bfloat16, which is slow on it; use float32", "stderr")
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
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):  # what is ignored stays ignored (nohup)
                with contextlib.suppress(ValueError):  # in a thread, which cannot catch signals
                    signal.signal(number, receive)
                    stack.callback(signal.signal, number, before)
        yield received


def is_terminal() -> bool:
    """Whether standard output is a terminal; it may be closed, or a notebook's."""
    with contextlib.suppress(AttributeError, ValueError):
        return sys.stdout.isatty()
    return False


@contextlib.contextmanager
def progress_line(first: int, epochs: int) -> Iterator[Callable[[int, tf.Tensor, bool], None]]:
    """Give `show`: a terminal's progress bar, and the article's printed line at each preview."""
    text = TextColumn("{task.completed}/{task.total} {task.description}", markup=False)
    # The pace is the mean over the last 1,000 updates of the bar. The bar is drawn here, not by a
    # thread of Rich, whose error could not be caught when the terminal is closed.
    options = {"speed_estimate_period": float("inf"), "auto_refresh": False}
    # A short bar, as a narrow terminal cuts the text
    progress = Progress(text, BarColumn(8), disable=not is_terminal(), **options)
    bar = progress.add_task("compiling", total=epochs, completed=first)
    task, shown_at = progress.tasks[bar], 0.0

    def show(epoch: int, metrics: tf.Tensor, preview: bool) -> None:
        nonlocal shown_at
        if not preview and epoch + 1 < epochs and time.monotonic() - shown_at < 1:
            return  # showing waits for the device, so it is done once a second at the most
        d_loss, d_accuracy, g_loss, g_accuracy = metrics.numpy().tolist()
        shown_at = time.monotonic()
        progress.update(bar, completed=epoch + 1)
        pace = f"compiled in {task.elapsed:.1f} s"
        if task.speed:
            left = datetime.timedelta(seconds=task.time_remaining)
            pace = f"{left} left, {1 / task.speed:.2f} s/iteration"
        losses = f"D {d_loss:.3f} {d_accuracy:4.0%}, G {g_loss:.3f} {g_accuracy:4.0%}"
        progress.update(bar, description=f"{pace}, {losses}")
        with tolerate("stdout"):
            progress.refresh()
        if preview:
            say(
                f"{epoch} epoch, Discriminator accuracy: {100 * d_accuracy}, "
                f"Generator accuracy: {100 * g_accuracy}, {pace}"
            )

    with tolerate("stdout"):
        progress.start()
        progress.console.show_cursor()  # Rich hides it; after a kill it would stay hidden
    try:
        yield show
    finally:
        with tolerate("stdout"):
            progress.stop()


# ---- Command line ---------------------------------------------------------------------------
# Wrong options end with exit code 2, before any file is touched.


def whole_number(text: str, least: int = 1) -> int:
    """An argparse type: a whole number from `least` to 2**32 - 1, the largest seed."""
    if not (re.fullmatch("[0-9]{1,10}", text) and least <= int(text) < 2**32):
        problem = f"{text!r:.100} is not a whole number from {least} to {2**32 - 1}"
        raise argparse.ArgumentTypeError(problem)
    return int(text)


def picture_numbers(text: str) -> list[int]:
    """An argparse type: "3,17,42" -> these numbers; "4" -> 1, 2, 3, 4. At least two."""
    if "," in text:
        return [whole_number(number) for number in text.split(",")]
    return list(range(1, whole_number(text, 2) + 1))


def file_name(text: str) -> str:
    """An argparse type: a path. "" is refused: it would mean this folder, perhaps by accident."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return str(Path(text))


def generator_name(text: str) -> str:
    """An argparse type: the number of a preview, or a path."""
    return str(whole_number(text)) if text.isdigit() else file_name(text)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line's options. Raises SystemExit if they are wrong."""
    text = "Train a GAN that paints; the same command resumes where it stopped."
    parser = image_resizer.Parser(description=text, epilog="Defaults are in parentheses.")
    add = parser.add_argument
    from_zero = partial(whole_number, least=0)
    kept = f"the newest {CHECKPOINTS} and those of the last {UPLOAD_SECONDS} seconds are kept"
    for option, kind, default, text in (
        ("--data", file_name, DATA_FILE, "pictures, made by image_resizer.py"),
        ("--output", file_name, OUTPUT_DIR, "folder for all that a run writes"),
        ("--epochs", whole_number, EPOCHS, "iterations"),
        ("--batch-size", whole_number, BATCH_SIZE, "pictures per iteration"),
        ("--save-freq", whole_number, SAVE_FREQ, "iterations per preview"),
        ("--checkpoint-seconds", from_zero, CHECKPOINT_SECONDS, f"seconds per checkpoint; {kept}"),
        ("--seed", from_zero, 0, "random seed"),
    ):
        add(option, type=kind, default=str(default), help=f"{text} (%(default)s)")
    precisions = ("float32", "mixed_bfloat16", "mixed_float16")
    faster = "half precision may be faster (%(default)s)"
    add("--precision", choices=precisions, default="float32", help=faster)
    add("--init", type=file_name, metavar="RUN", help="start from the networks of the run in RUN")
    add("--tensorboard", action="store_true", help="also write curves and previews to logs/")
    jobs = parser.add_mutually_exclusive_group()
    jobs.add_argument("--fresh", action="store_true", help="delete the run and its art, start over")
    jobs.add_argument("--generate", type=whole_number, metavar="N", help="paint N new pictures")
    loop = "animate a loop through N new pictures, or for example through pictures 3,17,42"
    jobs.add_argument("--interpolate", type=picture_numbers, metavar="N", help=loop)
    source = "paint with the generator of preview N, or with that file"
    add("--from", dest="source", type=generator_name, metavar="N or FILE", help=source)
    args = parser.parse_args(argv)
    args.painting = bool(args.generate or args.interpolate)
    if args.source and not args.painting:
        parser.error("argument --from: goes with --generate or --interpolate")
    if args.init and args.painting:
        parser.error("argument --init: does not go with --generate or --interpolate")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Raises SystemExit for bad options."""
    args = parse_args(argv)
    keras.config.set_image_data_format("channels_last")  # whatever keras.json says
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    job = paint if args.painting else train
    without = ", without --fresh once it has removed the old run" if args.fresh else ""
    again = f"the same command again{without}"
    try:
        for name in (
            *("NOISE_SIZE", "PREVIEW_ROWS", "PREVIEW_COLS", "CHECKPOINTS", "CHECKPOINTS_AT_MOST"),
            *("VERDICT_ITERATIONS", "TIMELAPSE_FRAMES", "TIMELAPSE_MS", "TIMELAPSE_PIXELS"),
            *("INTERPOLATION_STEPS", "INTERPOLATION_MS"),
        ):
            if not (isinstance(number := globals()[name], int) and number > 0):
                raise UserError(f"{name} is {number!r}; make it a whole number above 0")
        if Path(TIMELAPSE).suffix not in (".webp", ".gif", ".png") or len(METRICS) != 4:
            raise UserError("TIMELAPSE has to be a .webp, .gif or .png, METRICS four names")
        return job(args)
    except KeyboardInterrupt:  # outside the training loop, where there is nothing to save
        say(f"art_gan.py: interrupted; run {again}", "stderr")
        return 128 + signal.SIGINT
    except UserError as error:
        problem = str(error)
    except (tf.errors.ResourceExhaustedError, MemoryError):
        problem = f"out of memory; stop other programs, then run {again}"
        if job is train:
            problem += ". Or a new run, in another --output, can use a smaller --batch-size"
    except tf.errors.OpError as error:
        gpu = "if this is about the GPU, see README.md, or hide it with CUDA_VISIBLE_DEVICES=-1"
        problem = f"TensorFlow failed: {reason(error)}; {gpu}"
    except OSError as error:
        problem = f"{error.filename or args.output}: {reason(error)}; fix that, then run {again}"
        if job is train:
            problem += ": it resumes from the last checkpoint. Or use another --output"
    say(f"art_gan.py: error: {problem}", "stderr")
    return 1


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
