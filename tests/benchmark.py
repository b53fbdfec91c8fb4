"""Measure art_gan.py and image_resizer.py against the article's own loops; prints Markdown tables.

    python tests/benchmark.py                     the README's tables; with a GPU, one about it
    python tests/benchmark.py --iterations 50     the same, long enough to see memory grow
    python tests/benchmark.py --growth            how the cost of training grows instead

Each contender is a process of its own, which warms up and then takes a turn whenever it is told to.
On a CPU they go in turn, so that a machine that slows down slows all of them. On a GPU they train
one after the other, as its memory may not hold all of them at once.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the imports are late, as a resizer needs no TensorFlow
os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # or one contender takes the whole GPU

LOOP, PROJECT = "article's loop", "this project, float32"
# Options of project_loop(); a contender's name lists its own.
NO_TF32, NO_FUSE, XLA, CONSTANT = "without TF32", "without fuse()", "XLA", "one constant batch"
NINE, TRANSPOSED = "upsampled_conv2d_9", "upsampled_conv2d_transposed"  # instead of the usual one
PRECISIONS = (("float32",), ("float32", NO_TF32), ("mixed_bfloat16",), ("mixed_float16",))
NOT_COUNTED = {"Const", "Placeholder", "NoOp", "Identity", "ReadVariableOp"}  # they compute nothing
SIZES = (32, 64, 128, 256)
PICTURES, DRAWN = 512, 200  # for training; for the resizer
WARM_UP, GPU_WARM_UP = 2, 10  # iterations that are not timed
REPEATS = 3  # of the resizers and the start
GROWTH_ITERATIONS, GROWTH_BATCHES, GROWTH_PICTURES = 5, (8, 16, 32, 64), (64, 512, 4096)


# ---- In a contender's process: generators that prepare, and after each `yield` do a turn -----


def build_networks(pictures):
    import art_gan

    shape = pictures.shape[1:]
    return art_gan.build_generator(art_gan.NOISE_SIZE, shape), art_gan.build_discriminator(shape)


def device_peak():
    """The largest number of bytes that tensors took on the GPU so far; None without a GPU."""
    import art_gan

    config = art_gan.tf.config
    if config.list_physical_devices("GPU"):
        return config.experimental.get_memory_info("GPU:0")["peak"]


def count_operations(iteration, batch):
    """The number of operations in the graph of one iteration and in the functions it calls."""
    graph = iteration.get_concrete_function(*batch).graph.as_graph_def()
    nodes = [*graph.node, *(node for call in graph.library.function for node in call.node_def)]
    return sum(node.op not in NOT_COUNTED for node in nodes)


def article_loop(data, batch_size):
    """The article's iteration as one ports it to Keras 3 by hand, replacing names alone.

    Its discriminator does not train: `trainable = False` now holds for its own steps, too. So it
    does less than the article's and than this project's. On a GPU, Keras 3 compiles it with XLA.
    """
    os.environ["TF_NUM_INTEROP_THREADS"] = str(os.cpu_count())  # TensorFlow's choice, not ours
    import art_gan

    def compile_model(model):
        adam = art_gan.keras.optimizers.Adam(1.5e-4, 0.5)  # Keras 3 refuses one for two models
        model.compile(loss="binary_crossentropy", optimizer=adam, metrics=["accuracy"])

    pictures = np.load(data)
    generator, discriminator = build_networks(pictures)
    compile_model(discriminator)
    discriminator.trainable = False
    combined = art_gan.build_combined(generator, discriminator)
    compile_model(combined)
    y_real, y_fake = np.ones((batch_size, 1)), np.zeros((batch_size, 1))

    while True:
        yield "-", device_peak()
        x_real = pictures[np.random.randint(0, len(pictures), batch_size)]
        noise = np.random.normal(0, 1, (batch_size, art_gan.NOISE_SIZE))
        x_fake = generator.predict(noise, verbose=0)
        discriminator.train_on_batch(x_real, y_real)
        discriminator.train_on_batch(x_fake, y_fake)
        combined.train_on_batch(noise, y_real)


def project_loop(data, batch_size, precision, *options):
    """This project's iteration, with any of the options above.

    Each turn gives the number of operations of one iteration and the peak memory on the GPU.
    """
    import art_gan

    art_gan.keras.config.set_dtype_policy(precision)
    if NO_TF32 in options:
        art_gan.tf.config.experimental.enable_tensor_float_32_execution(False)
    if NO_FUSE in options:
        art_gan.fuse = lambda model: model
    for form in {NINE, TRANSPOSED} & set(options):
        art_gan.upsampled_conv2d = getattr(art_gan, form)
    pictures = art_gan.load_data(data)
    step, _ = art_gan.build_iteration(*build_networks(pictures), jit_compile=XLA in options)
    stream = art_gan.batches(pictures, data, 0, range(10**9), batch_size)
    first = next(stream)
    if CONSTANT in options:
        stream = itertools.repeat(first)
    operations = count_operations(step, first)
    while True:
        yield operations, device_peak()
        step(*next(stream)).numpy()  # numpy() waits for the device


def article_resizer(folder, output, size):
    while True:
        yield
        training_data = []
        for filename in os.listdir(folder):
            image = Image.open(os.path.join(folder, filename))
            image = image.resize((size, size), Image.LANCZOS)  # then called ANTIALIAS
            training_data.append(np.asarray(image))
        training_data = np.reshape(training_data, (-1, size, size, 3)) / 127.5 - 1
        np.save(output, training_data)


def project_resizer(folder, output, size):
    import image_resizer

    while True:
        yield
        image_resizer.resize_folder(folder, output, (size, size, 3))


def python(*arguments):
    while True:
        yield
        command = [sys.executable, *arguments]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def machine():
    """Yields the line that says what is measured on, and whether that has a GPU."""
    import art_gan

    tf, flags = art_gan.tf, {"avx512_bf16", "amx_bf16"} & set(proc("cpuinfo", "flags").split())
    gpu, gpus = "no GPU", tf.config.list_physical_devices("GPU")
    if gpus:
        gpu = tf.config.experimental.get_device_details(gpus[0])["device_name"]
    line = (
        f"{proc('cpuinfo', 'model name') or platform.machine()}, {os.cpu_count()} cores, "
        f"{' '.join(sorted(flags)) or 'no bf16'}; {gpu}; Python {platform.python_version()}, "
        f"TensorFlow {tf.__version__}, Keras {art_gan.keras.__version__}"
    )
    yield line, bool(gpus)


def proc(file, key):
    """What stands behind the first `key` in a file of /proc; nothing on systems without it."""
    with contextlib.suppress(OSError), open(f"/proc/{file}") as lines:
        return next((line.split(":")[1].strip() for line in lines if line.startswith(key)), "")
    return ""


def serve(pipe, log, task, *arguments):
    os.dup2(os.open(log, os.O_WRONLY), 2)  # TensorFlow's messages; shown if this process fails
    turns = task(*arguments)
    while pipe.recv():
        start = time.perf_counter()
        result = next(turns)
        seconds = time.perf_counter() - start
        # The peak, and what is no mapped file. (ru_maxrss would begin with the parent's memory.)
        memory = (proc("self/status", key).removesuffix(" kB") for key in ("VmHWM", "RssAnon"))
        pipe.send((result, seconds, *(1024 * float(kilobytes or "nan") for kilobytes in memory)))


# ---- In the first process -------------------------------------------------------------------


class ContenderFailed(SystemExit):
    """A contender's process ended, and in a few words why; ends the benchmark unless caught."""


@contextlib.contextmanager
def contender(*job):
    """Start a process that serves `job`; give the function that lets it take a turn.

    Between its turns it is stopped: else it would read batches ahead while others run, and an
    input that is too slow would not show.
    """
    context = multiprocessing.get_context("spawn")
    pipe, its_pipe = context.Pipe()
    with tempfile.NamedTemporaryFile("r") as log:
        process = context.Process(target=serve, args=(its_pipe, log.name, *job))
        process.start()
        its_pipe.close()  # so that recv() ends when the process does

        def turn():
            try:
                os.kill(process.pid, signal.SIGCONT)
                pipe.send("go")
                answer = pipe.recv()
                os.kill(process.pid, signal.SIGSTOP)
                return answer
            except (EOFError, OSError):
                process.join()
                messages = log.read()
                print(f"{messages}{job[0].__name__}{job[1:]} failed", file=sys.stderr, flush=True)
                errors = re.findall(r"^(?:\w+\.)*(\w+Error)\b", messages, re.MULTILINE)
                reason = errors[-1] if errors else f"exit code {process.exitcode}"
                raise ContenderFailed(f"failed: {reason}") from None

        try:
            yield turn
        finally:
            process.kill()
            process.join()


def measure(count, warm_up, jobs):
    """Let each of `jobs`, {name: (generator function, *arguments)}, take `count` turns.

    Returns {name: (median seconds, peak bytes, growth in bytes since turn three, last result)}.
    """
    turns, result = {}, {}
    with contextlib.ExitStack() as stack:
        for name, job in jobs.items():
            turns[name] = stack.enter_context(contender(*job))
            for _ in range(1 + warm_up):  # the first prepares
                turns[name]()
        rounds = [{name: turn() for name, turn in turns.items()} for _ in range(count)]
    for name in jobs:
        given, seconds, peaks, anonymous = zip(*(each[name] for each in rounds), strict=True)
        growth = anonymous[-1] - anonymous[min(2, count - 1)]
        result[name] = median(seconds), peaks[-1], growth, given[-1]
    return result


def print_table(title, heads, row, rows):
    print(f"\n{title}\n\n{heads}\n| ---{' | ---:' * (heads.count('|') - 2)} |", flush=True)
    for values in rows:
        print(row.format(*values), flush=True)


def make_data(folder, size, number):
    """Write training data of `number` pictures, a multiple of 64; returns the file's name."""
    path = str(folder / f"{size}px-{number}.npy")
    data = np.lib.format.open_memmap(path, "w+", np.float32, (number, size, size, 3))
    values = np.random.default_rng(0).random((64, size, size, 3), np.float32)
    data.reshape(-1, *values.shape)[:] = 2 * values - 1
    return path


def draw_pictures(folder):
    rng = np.random.default_rng(0)
    for number in range(DRAWN):
        width, height = rng.integers((900, 700), (1100, 900)).tolist()
        blots = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        blots.resize((width, height)).save(folder / f"{number}.jpg", quality=90)


def training_jobs(folder, size, batch_size, variants):
    """{name: job} of the article's loop, and of project_loop() with each of `variants`."""
    data = make_data(folder, size, PICTURES), batch_size
    ours = {", ".join(("this project", *each)): (project_loop, *data, *each) for each in variants}
    return {LOOP: (article_loop, *data), **ours}


def measure_cpu(folder, size, batch_size, iterations, plain):
    variants = [("float32",), ("mixed_bfloat16",), ("float32", CONSTANT)]
    variants += [("float32", NO_FUSE), ("float32", TRANSPOSED)] * plain
    result = measure(iterations, WARM_UP, training_jobs(folder, size, batch_size, variants))
    loop = result[LOOP]
    print_table(
        f"One iteration, {size} px, batch {batch_size}: medians of {iterations}",
        "| contender | seconds | ratio | peak memory, GB | ratio | growth, MB | operations |",
        "| {} | {:.3f} | {:.2f} | {:.2f} | {:.2f} | {:+.1f} | {} |",
        (
            (name, seconds, seconds / loop[0], peak / 1e9, peak / loop[1], growth / 1e6, operations)
            for name, (seconds, peak, growth, (operations, _)) in result.items()
        ),
    )
    ratio = result[PROJECT][0] / result[f"{PROJECT}, {CONSTANT}"][0]
    print(f"\nPrefetched batches, of one constant batch: {ratio:.3f}", flush=True)


def measure_gpu(folder, size, batch_size, iterations):
    choices = itertools.product(PRECISIONS, [(), (NINE,), (NO_FUSE,)], [(), (XLA,)])
    variants = [sum(choice, ()) for choice in choices] + [("float32", CONSTANT)]

    def rows():
        loop_seconds = float("nan")  # if it fails
        for name, job in training_jobs(folder, size, batch_size, variants).items():
            try:
                result = measure(iterations, GPU_WARM_UP, {name: job})
            except ContenderFailed as failure:
                yield name, failure, "", "", ""
                continue
            seconds, _, _, (operations, peak) = result[name]
            if name == LOOP:
                loop_seconds = seconds
            ratio = seconds / loop_seconds
            yield name, f"{seconds:.4f}", f"{ratio:.2f}", f"{peak / 1e9:.2f}", operations

    print_table(
        f"One iteration on the GPU, {size} px, batch {batch_size}: medians of {iterations}",
        "| contender | seconds | ratio | peak device memory, GB | operations |",
        "| {} | {} | {} | {} | {} |",
        rows(),
    )


def measure_resizer(folder, size, pictures):
    once, four_times = Path(pictures or folder / "once"), folder / "four times"
    if not pictures:
        once.mkdir()
        draw_pictures(once)
    four_times.mkdir()
    for path, number in itertools.product(once.iterdir(), range(4)):
        (four_times / f"{number}-{path.name}").symlink_to(path.resolve())

    def rows():
        for source in (once, four_times):
            job = str(source), str(folder / "resized.npy"), size
            jobs = {LOOP: (article_resizer, *job), "this project": (project_resizer, *job)}
            result, number = measure(REPEATS, 0, jobs), len(os.listdir(source))
            for name, (seconds, peak, *_) in result.items():
                yield name, number, number / seconds, result[LOOP][0] / seconds, peak / 1e6

    print_table(
        f"The resizer, {size} px: medians of {REPEATS}",
        "| contender | pictures | pictures per second | ratio | peak memory, MB |",
        "| {} | {} | {:.1f} | {:.2f} | {:.0f} |",
        rows(),
    )


def measure_start(folder):
    train = f"art_gan.py --data {make_data(folder, 32, PICTURES)} --epochs 1 --fresh --output"
    jobs = {
        "`python art_gan.py --epochs 1`, 32 px": (python, *train.split(), str(folder / "output")),
        "of these, to import it": (python, "-c", "import art_gan"),
    }
    rows = ((name, seconds) for name, (seconds, *_) in measure(REPEATS, 0, jobs).items())
    title = f"Start-up: medians of {REPEATS}"
    print_table(title, "| command | seconds |", "| {} | {:.1f} |", rows)


def measure_growth(folder, largest, batch_size):
    usual = min(largest, 128)
    cases = [(size, batch_size, PICTURES) for size in SIZES if size <= largest]
    cases += [(usual, each, PICTURES) for each in GROWTH_BATCHES]
    cases += [(usual, batch_size, pictures) for pictures in GROWTH_PICTURES]

    def rows():
        for size, batch, pictures in dict.fromkeys(cases):
            job = project_loop, make_data(folder, size, pictures), batch, "float32"
            ((seconds, peak, *_),) = measure(GROWTH_ITERATIONS, WARM_UP, {PROJECT: job}).values()
            yield size, batch, pictures, seconds, peak / 1e9

    print_table(
        f"One iteration, {PROJECT}: medians of {GROWTH_ITERATIONS}",
        "| size, px | batch | pictures | seconds | peak memory, GB |",
        "| {} | {} | {} | {:.3f} | {:.2f} |",
        rows(),
    )


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--size", type=int, choices=SIZES, default=128, help="of the pictures, in pixels")
    add("--batch-size", type=int, default=32, help="pictures in one iteration")
    add("--iterations", type=int, default=10, help="of each contender; 0: no training")
    add("--plain", action="store_true", help="on a CPU, also without fuse(), and as on a GPU")
    add("--pictures", metavar="FOLDER", help="RGB pictures, and no other files, for the resizer")
    add("--growth", action="store_true", help="how the cost grows instead; --size is the largest")
    args = parser.parse_args()
    # Unwind, or stopped processes stay behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with contender(machine) as turn:
        line, gpu = turn()[0]
        print(line, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if args.growth:
            return measure_growth(folder, args.size, args.batch_size)
        if args.iterations and gpu:
            measure_gpu(folder, args.size, args.batch_size, args.iterations)
        elif args.iterations:
            measure_cpu(folder, args.size, args.batch_size, args.iterations, args.plain)
        measure_resizer(folder, args.size, args.pictures)
        measure_start(folder)


if __name__ == "__main__":
    main()
