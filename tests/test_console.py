"""What a run prints, and consoles that fail: neither changes how a run ends."""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from conftest import (
    TINY,
    assert_same_end,
    checkpoints,
    environment,
    iterations,
    refusal,
    rows,
    training,
)
from PIL import Image

import art_gan

PREVIEW = re.compile(
    r"(\d+) epoch, Discriminator accuracy: ([\d.]+), Generator accuracy: ([\d.]+), (.+)"
)
slow = pytest.mark.slow


# ---- Consoles that fail ---------------------------------------------------------------------


@slow
@pytest.mark.parametrize("console", [">/dev/full 2>&1", ">&- 2>&-", "| head -n 1"])
def test_a_failing_console_does_not_end_a_run(console, data, whole, output):
    if "/dev/full" in console and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    command = shlex.join(map(str, [sys.executable, TINY, *training(data, output, "--epochs", 6)]))
    script = f"{command} {console}; exit ${{PIPESTATUS[0]}}"  # 120: Python failed to flush
    done = subprocess.run(["bash", "-c", script], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0
    if "2>" not in console:
        assert not re.search("Traceback|Exception ignored|error: ", done.stderr)
    assert_same_end(output, whole[0])


@slow
def test_the_exit_code_is_the_runs_when_the_reader_of_a_pipe_is_gone(data, output):
    command = [sys.executable, str(TINY), *map(str, training(data, output, "--save-freq", 1))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(), **pipes) as process:
        while " epoch, " not in process.stdout.readline():
            assert process.poll() is None
        process.stdout.close()
        while not (output / "trained-9.png").exists():
            assert process.poll() is None
        process.terminate()
        errors = process.stderr.read()
        assert process.wait() == 143
    assert "Traceback" not in errors and "error: " not in errors
    assert iterations(output) >= 9


@slow
def test_a_terminal_that_is_closed_stops_a_run_that_then_resumes(data, whole, output):
    """Its shell sends SIGHUP, and nothing can be printed any more."""
    pty = pytest.importorskip("pty")
    terminal, slave = pty.openpty()
    command = [sys.executable, str(TINY), *map(str, training(data, output))]
    env = environment(TERM="xterm")
    hang_up = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)}
    with subprocess.Popen(command, env=env, stdout=slave, stderr=slave, **hang_up) as process:
        os.close(slave)
        shown = b""
        while b" epoch, " not in shown:
            shown += os.read(terminal, 4096)
        os.close(terminal)
        process.send_signal(signal.SIGHUP)
        assert process.wait() == 129
    assert iterations(output) > 0


class BrokenStream(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


@slow
@pytest.mark.parametrize("stream", ["odd", "closed", "broken", "none"])
def test_main_with_a_stream_of_a_notebook(stream, halfway, data, monkeypatch):
    """Without an encoding or a descriptor, closed, broken or missing: the run does not mind."""
    closed, written = io.StringIO(), []
    closed.close()
    odd = types.SimpleNamespace(write=written.append, flush=lambda: None, isatty=lambda: False)
    streams = {"odd": odd, "closed": closed, "broken": BrokenStream(), "none": None}
    monkeypatch.setattr(sys, "stdout", streams[stream])
    assert tiny.main(list(map(str, training(data, halfway, "--epochs", 4)))) == 0
    assert iterations(halfway) == 4
    assert "Finished 4 iterations" in "".join(written) or stream != "odd"


@slow
def test_main_in_a_thread(halfway, data):
    """... which cannot catch signals."""
    options = list(map(str, training(data, halfway, "--epochs", 4)))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(tiny.main, options).result() == 0
    assert iterations(halfway) == 4


def handlers_and_files():
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    descriptors = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else None
    return handlers, sys.stdout, sys.stderr, descriptors


@slow
def test_main_can_be_called_again_and_again(data, output, main):
    """From Python or a notebook, whatever Keras is set to, and also after an error.

    Signals and streams are as before, and no file stays open.
    """
    keras.config.set_dtype_policy("mixed_float16")
    keras.config.set_image_data_format("channels_first")
    try:
        options = training(data, output, "--precision", "mixed_bfloat16")
        for epochs, code in ((1, 0), (2, 0), (2, 0), (3, 1)):
            before = handlers_and_files()
            extra = ("--seed", 1) if code else ()
            result = main(*options, "--epochs", epochs, *extra)
            assert result.returncode == code, result.stderr
            assert handlers_and_files() == before
        model = keras.models.load_model(output / "generator.keras")
        assert {weight.dtype for weight in model.weights} == {"float32"}
        assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    finally:
        keras.config.set_dtype_policy("float32")
        keras.config.set_image_data_format("channels_last")


# ---- What is printed ------------------------------------------------------------------------


@slow
def test_the_log_has_one_line_for_each_preview(whole):
    output, printed = whole
    lines = [line for line in printed.splitlines() if " epoch, " in line]
    found = [PREVIEW.fullmatch(line).groups() for line in lines]
    assert [int(epoch) for epoch, *_ in found] == [0, 2, 4]
    for epoch, d_accuracy, g_accuracy, pace in found:
        row = rows(output)[int(epoch)]
        assert d_accuracy == str(100 * float(row["discriminator_accuracy"]))
        assert g_accuracy == str(100 * float(row["generator_accuracy"]))
        assert re.fullmatch(r"compiled in .* s|\d+:\d\d:\d\d left, [\d.]+ s/iteration", pace)
    assert "\r" not in printed and "\x1b" not in printed and "━" not in printed.split(lines[0])[1]
    assert printed.splitlines()[-1].startswith("Finished 6 iterations")


@slow
def test_the_metrics(whole):
    names = list(art_gan.METRICS)
    table = rows(whole[0])
    assert list(table[0]) == ["epoch", *names]
    assert [row["epoch"] for row in table] == ["0", "1", "2", "3", "4", "5"]
    with np.load(checkpoints(whole[0])[-1]) as file:
        values = [[np.float32(row[name]) for name in names] for row in table]
        np.testing.assert_array_equal(values, file["metrics"])


@slow
@pytest.mark.parametrize("columns", [120, 40])
def test_a_terminal_gets_a_progress_line_and_an_idle_nvidia_gpu_a_warning(
    columns, data, output, tmp_path
):
    """A narrow terminal keeps the counter and the time left. The cursor is never hidden for long:
    a process that is killed cannot bring it back."""
    pty = pytest.importorskip("pty")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    env = environment(
        PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        CUDA_VISIBLE_DEVICES="99",  # none is hidden on purpose, and none is there
        TERM="xterm",
        COLUMNS=str(columns),
    )
    terminal, slave = pty.openpty()
    command = [sys.executable, str(TINY), *map(str, training(data, output, "--epochs", 4))]
    pipes = {"stdout": slave, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=env, **pipes) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other side is closed
            while piece := os.read(terminal, 4096):
                shown += piece
        errors = process.stderr.read()
        assert process.wait() == 0, errors
    os.close(terminal)
    before_the_first_iteration = shown.split(b" epoch, ")[0]
    assert shown.count(b"\x1b[?25l") == before_the_first_iteration.count(b"\x1b[?25l") == 1
    assert re.search(rb"\x1b\[\?25l.{0,400}\x1b\[\?25h", before_the_first_iteration, re.DOTALL)
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.decode())  # without colours
    rest = {
        120: r", \d+\.\d\d s/iteration, D \d\.\d{3} +\d+%, G \d\.\d{3} +\d+% ━",
        40: r", \d+\.\d\d s/iteration, D.{0,8}…",
    }
    assert re.search(r"4/4 0:00:00 left" + rest[columns], shown)
    assert len(re.findall(r"\d epoch, Discriminator accuracy: ", shown)) == 2
    assert re.search(r"Training on the CPU \(\d+ cores\), in float32", shown)
    warnings = [line for line in errors.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "tensorflow[and-cuda]" in warnings[0]


def test_a_network_that_has_won_is_reported_once():
    won, even = [0.1, 0.99, 8.0, 0.01], [0.6, 0.7, 1.0, 0.4]
    blind = [0.7, 0.5, 0.7, 0.5]
    for values, text in ((won, "the discriminator has won"), (blind, "does not tell paintings")):
        history = np.array(600 * [even] + 700 * [values], np.float32)
        said = [art_gan.verdict(history[:n], n - 100) for n in range(100, 1301, 100)]
        (first,) = [number for number, each in enumerate(said) if each]
        assert text in said[first] and "--seed with --fresh" in said[first]
        assert 9 <= first <= 11
    assert not art_gan.verdict(np.array(2000 * [even], np.float32), 0)


# ---- TensorBoard ----------------------------------------------------------------------------


def log_of(output):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return loader.EventAccumulator(str(output / "logs"), {"tensors": 0, "images": 0}).Reload()


def check_log(output):
    """The TensorBoard log shows the run's metrics, and its three previews."""
    events, table = log_of(output), rows(output)
    assert set(events.Tags()["tensors"]) == {*art_gan.METRICS, "preview"}
    for name in art_gan.METRICS:
        curve = events.Tensors(name)
        assert [event.step for event in curve] == list(range(6))
        values = [np.float32(row[name]) for row in table]
        np.testing.assert_array_equal([tf.make_ndarray(e.tensor_proto) for e in curve], values)
    previews = events.Tensors("preview")
    assert [event.step for event in previews] == [0, 2, 4]
    *_, png = tf.make_ndarray(previews[-1].tensor_proto)
    expected = np.asarray(Image.open(output / "trained-3.png"))
    np.testing.assert_array_equal(tf.io.decode_png(png), expected)


@slow
def test_tensorboard_shows_one_curve_of_a_killed_and_resumed_run(data, whole, output, start, main):
    options = training(data, output, "--epochs", 6, "--tensorboard", "--checkpoint-seconds", 0)
    (output / "logs").mkdir(parents=True)
    (output / "logs" / "events.out.tfevents.1.host.2.0.v2").touch()  # of another program
    process = start(*options, signals={"trained-3.keras": signal.SIGKILL})
    assert process.wait() == -signal.SIGKILL
    assert main(*options).returncode == 0
    check_log(output)
    (output / "logs" / "events.out.tfevents.1.host.2.0.v2").unlink()
    shutil.rmtree(output / "logs")
    assert_same_end(output, whole[0])


@slow
def test_tensorboard_shows_a_finished_run(data, whole, output, main):
    shutil.copytree(whole[0], output)
    assert main(*training(data, output, "--epochs", 6, "--tensorboard")).returncode == 0
    check_log(output)
    shutil.rmtree(output / "logs")
    assert_same_end(output, whole[0])


@slow
def test_tensorboard_is_optional(data, output, main, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = refusal(main(*training(data, output, "--tensorboard")))
    assert line.endswith("--tensorboard needs one more package: pip install tensorboard")
    assert not list(output.glob("*"))


def test_a_full_disk_ends_the_tensorboard_log_and_not_the_run(
    data, whole, output, main, monkeypatch
):
    def scalar(name, value, step):
        if step == 3:
            raise tf.errors.ResourceExhaustedError(None, None, "logs: No space left on device")

    monkeypatch.setattr(tf.summary, "scalar", scalar)
    result = main(*training(data, output, "--epochs", 6, "--tensorboard"))
    assert result.returncode == 0
    assert result.stderr.count("warning: the TensorBoard log ends here (logs: No space left") == 1
    shutil.rmtree(output / "logs")
    assert_same_end(output, whole[0])


# ---- Failures -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [tf.errors.ResourceExhaustedError(None, None, "OOM\nwhen allocating"), MemoryError()]
)
def test_out_of_memory(error, main, monkeypatch):
    def train(args):
        raise error

    monkeypatch.setattr(tiny, "train", train)
    monkeypatch.setattr(tiny, "paint", lambda args: train(args))
    line, painting = refusal(main("--fresh")), refusal(main("--generate", 1))
    assert "out of memory; stop other programs, then run the same command again, without" in line
    assert "a new run, in another --output, can use a smaller --batch-size" in line
    assert painting.endswith("out of memory; stop other programs, then run the same command again")


def test_an_error_of_tensorflow_is_one_line(main, monkeypatch):
    def train(args):
        raise tf.errors.InternalError(
            None, None, "cuDNN version 9.28 has no kernel\nat stream.cc:1"
        )

    monkeypatch.setattr(tiny, "train", train)
    line = refusal(main())
    assert "TensorFlow failed: cuDNN version 9.28 has no kernel; " in line
    assert "CUDA_VISIBLE_DEVICES=-1" in line


def test_check_finite():
    metrics = np.zeros((5, 4), np.float32)
    variables = [keras.Variable(np.zeros(3), name=name) for name in ("first", "second")]
    art_gan.check_finite(metrics, variables)
    variables[1].assign([0, np.inf, 0])
    with pytest.raises(art_gan.UserError, match=r"^second at iteration 4 is not finite.*--fresh"):
        art_gan.check_finite(metrics, variables)
    metrics[2, 1] = np.nan
    with pytest.raises(art_gan.UserError, match=r"^a loss at iteration 2 is not finite"):
        art_gan.check_finite(metrics, variables)
