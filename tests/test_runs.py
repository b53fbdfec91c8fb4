"""art_gan.py from outside: errors, interruptions, crashes, restarts, and the files of a run.

Runs train on 40 random pictures of 32 x 32 pixels, in real processes where processes matter, and
else in this one, as TensorFlow takes seconds to start.
"""

import contextlib
import csv
import errno
import filecmp
import importlib.util
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
import weakref
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import art_gan

fcntl = pytest.importorskip("fcntl", reason="signals and locks are tested on POSIX only")

pytestmark = pytest.mark.slow
ART_GAN = Path(art_gan.__file__).resolve()
PREVIEW = re.compile(
    r"(\d+) epoch, Discriminator accuracy: ([\d.]+), Generator accuracy: ([\d.]+), (.+)"
)

# art_gan.py that is killed when it writes the file of a given name: "before" the finished file has
# its name, or just "after" that.
FAULTY = """
import contextlib, os, signal, sys
import art_gan

fault, name, *arguments = sys.argv[1:]
original = art_gan.replace_file

@contextlib.contextmanager
def replace_file(path):
    hit = path.name == name
    with original(path) as temporary:
        yield temporary
        if hit and fault == "before":
            os.truncate(temporary, os.path.getsize(temporary) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    if hit and fault == "after":
        os.kill(os.getpid(), signal.SIGKILL)

art_gan.replace_file = replace_file
sys.exit(art_gan.main(arguments))
"""


# ---- Helpers --------------------------------------------------------------------------------


def environment(**variables):
    """The environment of a process: no GPU, as only a CPU computes the same twice."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return inherited | {"CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ART_GAN.parent)} | variables


def python(*arguments, env=None, **options):
    """Run Python to its end."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=env or environment(),
        **options,
    )


def run(*arguments, **options):
    """Run art_gan.py to its end."""
    return python(ART_GAN, *arguments, **options)


@contextlib.contextmanager
def start(*arguments, script=ART_GAN, env=None, ignored=(), **options):
    """Give a process of art_gan.py that ignores some signals; kill it at the end."""

    def set_signals():  # whatever these tests inherited, as a background job for example
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        text=True,
        env=env or environment(),
        preexec_fn=set_signals,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL} | options,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process, text):
    """Read what a process prints up to the line that holds `text`; return all those lines."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    pytest.fail(f"ended with {process.wait()} without {text!r}:\n{''.join(lines)}")


def poll(condition, process):
    """Wait until `condition` holds while the process runs."""
    while not condition():
        assert process.poll() is None, "ended too early"
        time.sleep(0.01)


def training(data, output, *options):
    """Options of a short run that saves its state at the end only."""
    short = ("--batch-size", 4, "--save-freq", 2, "--checkpoint-seconds", 3600)
    return ["--data", data, "--output", output, *short, *options]


def refusal(result):
    """The one line of a run that failed. TensorFlow writes log lines of its own before it."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr
    *before, last = result.stderr.splitlines()
    assert last.startswith("art_gan.py: error: ")
    ours = [line for line in before if not re.match(r"[IWE]\d{4} [\d:.]+ +\d+ \w+\.cc:", line)]
    assert not [line for line in ours if "error: " in line]
    return last


def checkpoints(output):
    return sorted((output / "checkpoint").glob("0???????.npz"))


def iterations(output):
    """How many iterations the newest checkpoint holds; 0 without any."""
    paths = checkpoints(output)
    return int(paths[-1].stem) if paths else 0


def arrays(path):
    """What is in a checkpoint."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def rows(output):
    with open(output / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def leftovers(output):
    return [path.name for path in output.rglob(".part-*")]


def weights(output):
    return keras.models.load_model(output / "generator.keras").get_weights()


def contents(output):
    """A fingerprint of every file: its name, size and time of writing."""
    return {
        str(path.relative_to(output)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in output.rglob("*")
        if path.is_file()
    }


def assert_same_end(output, expected):
    """Two finished runs left the same: pictures, metrics, weights and training state."""
    names = [path.name for path in sorted(expected.iterdir())]
    assert [path.name for path in sorted(output.iterdir())] == names
    files = [name for name in names if name != "checkpoint" and not name.endswith(".keras")]
    assert filecmp.cmpfiles(output, expected, files, shallow=False) == (files, [], [])
    for name in names:
        if name.endswith(".keras"):
            one, other = (keras.models.load_model(folder / name) for folder in (output, expected))
            assert one.name == other.name
            for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
                np.testing.assert_array_equal(a, b, err_msg=name)
    assert not leftovers(output)
    newest, wanted = checkpoints(output)[-1], checkpoints(expected)[-1]
    assert newest.name == wanted.name
    one, other = arrays(newest), arrays(wanted)
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip(path):
    """Change one byte in the middle."""
    with open(path, "rb+") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 255]))


# ---- Fixtures -------------------------------------------------------------------------------


def pictures(count=40, size=32, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, (count, size, size, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for what several tests use; emptied, as each run fills 100 MB."""
    path = tmp_path_factory.mktemp("runs")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def data(folder):
    path = folder / "cubism_data.npy"
    np.save(path, pictures())
    return path


@pytest.fixture(scope="module")
def whole(folder, data):
    """An uninterrupted run of 6 iterations: its folder and what it printed."""
    result = run(*training(data, folder / "whole", "--epochs", 6))
    assert result.returncode == 0, result.stderr
    return folder / "whole", result.stdout


@pytest.fixture(scope="module")
def half(folder, data):
    """The folder of the same run, of 3 iterations, with a state of each."""
    options = ("--epochs", 3, "--checkpoint-seconds", 0)
    result = run(*training(data, folder / "half", *options))
    assert result.returncode == 0, result.stderr
    return folder / "half"


@pytest.fixture
def output(tmp_path):
    """The folder that a test's run writes to."""
    yield tmp_path / "output"
    shutil.rmtree(tmp_path / "output", ignore_errors=True)


@pytest.fixture
def halfway(half, output):
    """A copy of the run of 3 iterations, to resume."""
    shutil.copytree(half, output)
    return output


@pytest.fixture
def main(capsys):
    """Call art_gan.main in this process."""

    def call(*arguments):
        code = art_gan.main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    return call


# ---- Refusals -------------------------------------------------------------------------------


def nan(array):
    array[3, 4, 5, 1] = np.nan
    return array


def archive(path):
    with open(path, "wb") as file:
        np.savez(file, pictures())


BAD_DATA = {
    "missing": (lambda path: None, "no such file; make it first: python image_resizer.py"),
    "folder": (lambda path: path.mkdir(), r"cannot be read \(Is a directory\)"),
    "empty": (lambda path: path.touch(), "not a whole .npy file"),
    "text": (lambda path: path.write_text("no pictures"), "not a whole .npy file"),
    "truncated": (lambda path: (np.save(path, pictures()), halve(path)), "not a whole .npy file"),
    "pickled": (lambda path: np.save(path, np.array([{}] * 4)), "not a whole .npy file"),
    "archive": (archive, "not a whole .npy file"),
    "half an archive": (lambda path: (archive(path), halve(path)), "not a whole .npy file"),
    "one picture": (lambda path: np.save(path, pictures()[0]), r"of shape \(32, 32, 3\), not"),
    "grey": (lambda path: np.save(path, pictures()[..., :1]), r"of shape \(40, 32, 32, 1\), not"),
    "none": (lambda path: np.save(path, pictures()[:0]), r"shape \(0, 32|not a whole .npy file"),
    "size": (lambda path: np.save(path, pictures(size=48)), "48, 48, 3.*size 32, 64, 128, 256"),
    "uint8": (lambda path: np.save(path, np.zeros((4, 32, 32, 3), np.uint8)), "holds uint8"),
    "0..255": (lambda path: np.save(path, 127 * (pictures() + 1)), r"values from 0.* to 25\d"),
    "0..1": (lambda path: np.save(path, (pictures() + 1) / 2), "no value is below 0"),
    "nan": (lambda path: np.save(path, nan(pictures())), "values from nan to nan"),
}


def test_data_in_fortran_order_is_the_same_data():
    args = art_gan.parse_args([])
    settings = [
        art_gan.run_settings(args, order(pictures())) for order in (np.array, np.asfortranarray)
    ]
    assert settings[0] == settings[1]


@pytest.mark.parametrize(("make", "reason"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_is_refused(make, reason, tmp_path):
    make(tmp_path / "data.npy")
    with pytest.raises(art_gan.UserError, match=reason) as caught:
        art_gan.load_data(str(tmp_path / "data.npy"))
    assert str(caught.value).startswith(str(tmp_path / "data.npy"))
    assert re.search("image_resizer.py|--data", str(caught.value))
    assert "\n" not in str(caught.value)


def test_bad_data_is_refused_by_the_command(tmp_path):
    path = tmp_path / "data.npy"
    options = ("--data", path, "--output", tmp_path / "output")
    assert refusal(run(*options)).startswith(f"art_gan.py: error: {path}: no such file")
    np.save(path, 127.5 * (pictures() + 1))
    assert "not numbers in -1..1" in refusal(run(*options))
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "options",
    [
        "--batch-size 0",
        "--save-freq 0",
        "--epochs x",
        "--epochs 1e4",
        "--seed -1",
        "--seed 4294967296",
        "--generate 0",
        "--interpolate 1",
        "--generate 2 --interpolate 2",
        "--precision float16",
        "--from 1",
        "--generate 1 --from 0",
        "--nonsense",
    ],
)
def test_bad_options_are_refused(options, main, capsys):
    with pytest.raises(SystemExit) as caught:
        main(*options.split())
    assert caught.value.code == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert "error: " in line and any(word in line for word in options.split())
    if options.endswith(("x", "1e4")):
        assert f"'{options.split()[-1]}' is not a whole number" in line


def test_a_bad_option_is_refused_by_the_command():
    result = run("--batch-size", 0)
    assert result.returncode == 2
    *_, line = result.stderr.splitlines()
    assert line.endswith("argument --batch-size: '0' is not a whole number from 1 to 4294967295")


def test_nan_that_the_first_look_misses_ends_the_run(output, tmp_path):
    array = pictures(300)
    looked_at = np.linspace(0, 299, 256).astype(int)
    unseen = np.setdiff1d(np.arange(300), looked_at)
    array[unseen, 4, 5, 1] = np.nan
    np.save(tmp_path / "data.npy", array)
    art_gan.load_data(str(tmp_path / "data.npy"))
    draws = (np.random.default_rng([0, epoch]).integers(300, size=4) for epoch in range(100))
    bad = next(epoch for epoch, drawn in enumerate(draws) if np.isin(drawn, unseen).any())

    options = ("--epochs", 100, "--checkpoint-seconds", 0)
    result = run(*training(tmp_path / "data.npy", output, *options))
    assert f"{tmp_path / 'data.npy'}: holds values from nan to nan" in refusal(result)
    assert iterations(output) == bad


# ---- Resume ---------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["float64 data", "another keras.json", flip, halve, empty])
def test_a_resumed_run_ends_as_if_it_had_not_stopped(what, halfway, data, whole, tmp_path):
    """... with the article's float64 file, another Keras set-up, or a damaged newest state."""
    env, first = environment(), 3
    if what == "float64 data":
        np.save(tmp_path / "float64.npy", np.load(data).astype(np.float64))
        data = tmp_path / "float64.npy"
    elif what == "another keras.json":
        settings = {"backend": "torch", "image_data_format": "channels_first", "floatx": "float16"}
        (tmp_path / "keras.json").write_text(json.dumps(settings))
        env |= {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "jax"}
    else:
        first = 2
        what(halfway / "checkpoint" / "00000003.npz")

    result = run(*training(data, halfway, "--epochs", 6), env=env)
    assert result.returncode == 0, result.stderr
    assert f"Resuming from iteration {first} of 6" in result.stdout
    damaged = re.findall(r"(\S+): damaged \(.+\); it is not used", result.stderr)
    assert damaged == ([str(halfway / "checkpoint" / "00000003.npz")] if callable(what) else [])
    assert_same_end(halfway, whole[0])


def test_twenty_kills_do_not_change_the_end(data, output, folder, tmp_path):
    """At random moments, most of them between a preview and the next state, some in start-up.

    Nothing is left behind in the temporary folder either.
    """
    steady = folder / "steady"
    options = ("--save-freq", 1, "--epochs", 40, "--checkpoint-seconds", 1)
    result = run(*training(data, steady, *options))
    assert result.returncode == 0, result.stderr
    pace = float(re.findall(r"([\d.]+) s/iteration", result.stdout)[-1])
    env = environment(TMPDIR=str(tmp_path))

    rng = random.Random(2019)
    resumed_at, lost = [], 0
    for _ in range(20):
        done = iterations(output) if output.exists() else 0
        previews = rng.randrange(0, round(2 / pace) + 2)  # two seconds' worth, so some save a state
        with start(*training(data, output, *options), env=env) as process:
            printed = wait_for(process, "Training on")
            for _ in range(min(previews, 39 - done)):
                printed += wait_for(process, " epoch, ")
            time.sleep(rng.uniform(0, pace))
            process.kill()
            printed += process.stdout.read()
            assert process.wait() == -signal.SIGKILL
        first = [int(k) for k in re.findall(r"Resuming from iteration (\d+) of 40", printed)]
        assert first == [done] if done and previews else set(first) <= {done}
        resumed_at += first
        lost += len(list(output.glob("trained-*.png"))) > iterations(output)
    assert len(resumed_at) >= 8 and len(set(resumed_at)) >= 4 and lost >= 5
    assert not list(tmp_path.glob("*autograph*"))

    result = run(*training(data, output, *options))
    assert result.returncode == 0, result.stderr
    assert_same_end(output, steady)


def test_kills_in_each_kind_of_write(halfway, data, whole):
    faults = [
        ("before", "trained-3.keras"),
        ("before", "trained-3.png"),
        ("before", "generator.keras"),
        ("before", "metrics.csv"),
        ("before", "00000006.npz"),
        ("after", "00000006.npz"),
        ("before", "training.webp"),
    ]
    # As left by a kill while a stop is saved, at an iteration that no later run saves.
    (halfway / "checkpoint" / ".part-00000004.npz").touch()
    for fault, name in faults:
        result = python("-c", FAULTY, fault, name, *training(data, halfway, "--epochs", 6))
        assert result.returncode == -signal.SIGKILL, (name, result.stderr)
        assert leftovers(halfway) == ([f".part-{name}"] if fault == "before" else [])
    assert run(*training(data, halfway, "--epochs", 6)).returncode == 0
    assert_same_end(halfway, whole[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_after_the_iteration_under_way(number, data, output):
    """... and saves it. SIGHUP does not if it was ignored at the start, as under nohup."""
    ignored = (signal.SIGHUP,) if number == signal.SIGTERM else ()
    pipes = {"stderr": subprocess.PIPE, "ignored": ignored}
    with start(*training(data, output, "--save-freq", 1), **pipes) as process:
        wait_for(process, "0 epoch, ")
        for each in ignored:
            process.send_signal(each)
            wait_for(process, " epoch, ")
            wait_for(process, " epoch, ")
        process.send_signal(number)
        printed, errors = process.communicate()
    assert process.returncode == 128 + number and "Traceback" not in errors
    done = iterations(output)
    *_, last = printed.splitlines()
    assert last == f"Stopped after {done} of 10000 iterations; the same command resumes"
    assert [row["epoch"] for row in rows(output)] == [str(epoch) for epoch in range(done)]
    assert keras.models.load_model(output / "generator.keras").name == f"generator-{done}"
    previews = [
        f"trained-{cnt}.{suffix}" for cnt in range(1, done + 1) for suffix in ("keras", "png")
    ]
    names = ["checkpoint", "generator.keras", "metrics.csv", *previews]  # no training.webp
    assert {path.name for path in output.iterdir()} == set(names)


# art_gan.py that gets two signals: one at the second preview, one while it saves the state.
TWICE = """
import os, signal, sys
import art_gan

number = int(sys.argv[1])
signal.signal(number, signal.SIG_DFL)  # whatever these tests inherited, from nohup for example
save_preview, save_checkpoint = art_gan.Run.save_preview, art_gan.save_checkpoint

def preview(run, cnt, noise):
    save_preview(run, cnt, noise)
    if cnt == 2:
        os.kill(os.getpid(), number)

def checkpoint(*arguments):
    os.kill(os.getpid(), number)
    save_checkpoint(*arguments)

art_gan.Run.save_preview, art_gan.save_checkpoint = preview, checkpoint
sys.exit(art_gan.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_second_signal(number, data, output):
    """A second Ctrl-C ends the run at once. A second SIGHUP, which shells send, does not."""
    result = python("-c", TWICE, int(number), *training(data, output))
    if number == signal.SIGINT:
        assert result.returncode == -signal.SIGINT and not checkpoints(output)
    else:
        assert result.returncode == 129 and iterations(output) == 3


def test_previews_of_another_run_do_not_stay(data, whole, output):
    """... when that was killed before its first state. Names that are not its own do."""
    result = python("-c", FAULTY, "after", "trained-6.png", *training(data, output, "--seed", 5))
    assert result.returncode == -signal.SIGKILL
    (output / "trained-best.png").touch()
    assert run(*training(data, output, "--epochs", 6)).returncode == 0
    (output / "trained-best.png").unlink()
    assert_same_end(output, whole[0])


def test_previews_without_their_checkpoint_are_not_removed(halfway, data, main):
    """Unless they are as young as the first minute of a run, which has no checkpoint yet."""
    for path in checkpoints(halfway):
        path.unlink()
    os.utime(halfway / "trained-1.png", (0, 0))
    before = contents(halfway)
    line = refusal(main(*training(data, halfway, "--epochs", 1)))
    assert "holds previews of a longer run, but no checkpoint; start over with --fresh" in line
    assert contents(halfway) == before
    os.utime(halfway / "trained-1.png")
    assert main(*training(data, halfway, "--epochs", 1)).returncode == 0
    assert [path.name for path in halfway.glob("trained-*.png")] == ["trained-1.png"]


def test_states_follow_the_clock_not_the_previews(data, output):
    """The first state comes after --checkpoint-seconds, the next after as many again."""
    options = ("--save-freq", 1, "--checkpoint-seconds", 2)
    with start(*training(data, output, *options)) as process:
        poll((output / "checkpoint").exists, process)
        began = time.time()
        poll(lambda: len(checkpoints(output)) == 2, process)
        process.kill()
    first, second = (path.stat().st_mtime for path in checkpoints(output))
    assert first - began > 2 and 2 <= second - first < 20
    assert len(list(output.glob("trained-*.png"))) >= iterations(output) > 2


def test_young_states_are_kept_and_old_ones_removed(tmp_path):
    """The newest two stay; so does what a slow bucket may still be receiving."""
    (tmp_path / "checkpoint").mkdir()
    ours = [f"{number:08}.npz" for number in range(1, 6)]
    for age, name in zip((500, 400, 299, 200, 100), ours, strict=True):
        path = tmp_path / "checkpoint" / name
        path.touch()
        os.utime(path, (time.time() - age, time.time() - age))
    (tmp_path / "checkpoint" / "1.npz").touch()
    (tmp_path / "checkpoint" / "model.npz").touch()
    os.utime(tmp_path / "checkpoint" / "1.npz", (0, 0))
    art_gan.save_checkpoint(tmp_path, [], np.zeros((6, 4), np.float32), {})
    names = {path.name for path in (tmp_path / "checkpoint").iterdir()}
    assert names == {*ours[2:], "00000006.npz", "1.npz", "model.npz"}

    for path in checkpoints(tmp_path):
        os.utime(path, (0, 0))
    art_gan.save_checkpoint(tmp_path, [], np.zeros((7, 4), np.float32), {})
    assert [path.name for path in checkpoints(tmp_path)] == ["00000006.npz", "00000007.npz"]


def test_a_damaged_state_takes_no_place_of_a_good_one(tmp_path):
    """The run was resumed before it. It goes when there are two good states."""
    (tmp_path / "checkpoint").mkdir()
    for number in (3, 9):
        path = tmp_path / "checkpoint" / f"{number:08}.npz"
        path.touch()
        os.utime(path, (0, 0))
    for done in (4, 5):
        art_gan.save_checkpoint(tmp_path, [], np.zeros((done, 4), np.float32), {})
        os.utime(tmp_path / "checkpoint" / f"{done:08}.npz", (0, 0))
    assert [path.name for path in checkpoints(tmp_path)] == ["00000004.npz", "00000005.npz"]


def test_what_is_saved_outlasts_a_power_cut(tmp_path, monkeypatch):
    """The file is on the disk before it gets its name, and the name before it is reported."""
    events = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: events.append(Path(f"/proc/self/fd/{fd}").readlink())
    )
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), rename(a, b)))
    with art_gan.replace_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("text")
    if sys.platform == "linux":
        assert events == [tmp_path / ".part-a.txt", "rename", tmp_path]


def test_an_old_time_lapse_stays_until_the_run_is_finished(halfway, data, whole, main):
    """Also if the disk is full in between; then it is made again."""
    film = halfway / "training.webp"
    before = film.read_bytes()
    with full_disk("generator.keras", 1000):
        line = refusal(main(*training(data, halfway, "--epochs", 6)))
    assert "File too large" in line and film.read_bytes() == before
    assert main(*training(data, halfway, "--epochs", 6)).returncode == 0
    assert_same_end(halfway, whole[0])


def test_all_checkpoints_damaged(halfway, data, main):
    for path, damage in zip(checkpoints(halfway), (flip, empty, halve), strict=True):
        damage(path)
    before = contents(halfway)
    result = main(*training(data, halfway, "--epochs", 6))
    assert "every checkpoint is damaged; start over with --fresh" in refusal(result)
    assert len(result.stderr.splitlines()) == 4  # each of the three is named
    assert contents(halfway) == before


def test_an_unreadable_disk_is_not_a_damaged_checkpoint(halfway, data, main, monkeypatch):
    def read_bytes(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    before = contents(halfway)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    line = refusal(main(*training(data, halfway, "--epochs", 6)))
    assert "00000003.npz: Input/output error; fix that" in line
    assert "--fresh" not in line and "damaged" not in line
    line = refusal(main("--generate", 1, "--output", halfway))
    assert "generator.keras: Input/output error" in line
    shutil.rmtree(halfway / "art", ignore_errors=True)
    assert contents(halfway) == before


def test_a_lack_of_memory_is_not_a_damaged_checkpoint(halfway, data, main, monkeypatch):
    def load(*arguments, **options):
        raise MemoryError

    before = contents(halfway)
    monkeypatch.setattr(np, "load", load)
    monkeypatch.setattr(keras.models, "load_model", load)
    for job in ([], ["--generate", 1]):
        line = refusal(main(*training(data, halfway, "--epochs", 6, *job)))
        assert "out of memory" in line and "damaged" not in line and "Keras" not in line
    shutil.rmtree(halfway / "art", ignore_errors=True)
    assert contents(halfway) == before


def test_a_finished_run_says_so(half, data, main):
    before = contents(half)
    result = main(*training(data, half, "--epochs", 3))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Finished 3 iterations. ") and "--epochs 6" in result.stdout
    assert contents(half) == before


def global_state():
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    settings = keras.config.dtype_policy().name, keras.config.floatx()
    formats = keras.config.image_data_format()
    descriptors = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else None
    streams = sys.stdout, sys.stderr
    state = random.getstate(), np.random.get_state()[1].tolist()
    return handlers, settings, formats, streams, state, descriptors


class BrokenStream(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


@pytest.mark.parametrize("stream", ["odd", "closed", "broken"])
def test_main_with_a_stream_of_a_notebook(stream, halfway, data, monkeypatch):
    """Without an encoding or a descriptor, closed, or broken: the run does not mind."""
    closed, written = io.StringIO(), []
    closed.close()
    odd = types.SimpleNamespace(write=written.append, flush=lambda: None, isatty=lambda: False)
    streams = {"odd": odd, "closed": closed, "broken": BrokenStream()}
    monkeypatch.setattr(sys, "stdout", streams[stream])
    assert art_gan.main(list(map(str, training(data, halfway, "--epochs", 4)))) == 0
    assert iterations(halfway) == 4
    assert "Finished 4 iterations" in "".join(written) or stream != "odd"


def test_main_in_a_thread(halfway, data):
    """... which cannot catch signals."""
    options = list(map(str, training(data, halfway, "--epochs", 4)))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(art_gan.main, options).result() == 0
    assert iterations(halfway) == 4


def test_main_can_be_called_again_and_again(data, output, main, monkeypatch):
    """From Python or a notebook: all that is global is as before, also after an error."""
    keras.config.set_dtype_policy("mixed_float16")
    keras.config.set_image_data_format("channels_first")
    try:
        options = training(data, output, "--precision", "mixed_bfloat16")
        for epochs, code in ((1, 0), (2, 0), (2, 0), (3, 1)):
            before = global_state()
            extra = ("--seed", 1) if code else ()
            result = main(*options, "--epochs", epochs, *extra)
            assert result.returncode == code, result.stderr
            after = global_state()
            assert after == before
        model = keras.models.load_model(output / "generator.keras")
        assert {weight.dtype for weight in model.weights} == {"float32"}
        assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    finally:
        keras.config.set_dtype_policy("float32")
        keras.config.set_image_data_format("channels_last")


# ---- Another run than the one in the folder -------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "difference"),
    [
        ("--batch-size", 5, "--batch-size was 4, is 5"),
        ("--seed", 1, "--seed was 0, is 1"),
        ("--save-freq", 3, "--save-freq was 2, is 3"),
        ("--precision", "mixed_bfloat16", "--precision was float32, is mixed_bfloat16"),
    ],
)
def test_another_setting_is_refused(option, value, difference, half, data, main):
    before = contents(half)
    line = refusal(main(*training(data, half, option, value, "--epochs", 3)))
    assert f"used different settings ({difference}); use the same" in line
    assert "--fresh" in line and "--output" in line
    assert contents(half) == before


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (pictures(seed=2), r"\(the data was 40 pictures, checksum \w+, is 40 pictures, checksum"),
        (pictures(39), r"\(the data was 40 pictures, checksum \w+, is 39 pictures, checksum \w+\)"),
        (pictures(size=64), r"checksum \w+; the picture size was 32, is 64\)"),
    ],
    ids=["same number", "one less", "other size"],
)
def test_other_data_is_refused(other, difference, half, data, main, tmp_path):
    np.save(tmp_path / "other.npy", other)
    line = refusal(main(*training(tmp_path / "other.npy", half, "--epochs", 3)))
    assert re.search(difference, line) and "--fresh" in line


def test_another_noise_size_is_refused(half, data, main, monkeypatch):
    monkeypatch.setattr(art_gan, "NOISE_SIZE", 101)
    assert "(the noise size was 100, is 101)" in refusal(main(*training(data, half, "--epochs", 3)))


def test_fresh_starts_over(halfway, data, whole):
    """It removes what the old run wrote, by its exact names, and nothing else."""
    ours = ("trained-99.png", "trained-99.keras", "training.webp", "checkpoint/.part-00000007.npz")
    ours += ("metrics.csv", "generator.keras", ".part-metrics.csv", "checkpoint/12345678.npz")
    ours += ("logs/events.out.tfevents.1.host.2.0.art_gan",)
    kept = ("art/generator-3-seed0-0001.png", "README.md", "example.png", "trained-best.png")
    kept += (
        "checkpoint/other_model.safetensors",
        "checkpoint/123456789.npz",
        "checkpoint/x/00000001.npz",
    )
    kept += (".part-notes.txt", "checkpoint/.part-1", "logs/events.out.tfevents.1.host.2.0.v2")
    kept += ("trained-007.png", "interpolation-generator-3-seed0.webp")
    for name in (*ours, *kept):
        (halfway / name).parent.mkdir(parents=True, exist_ok=True)
        (halfway / name).write_text("old")
    with start(*training(data, halfway, "--epochs", 6, "--fresh")) as process:
        printed = wait_for(process, "Training on")
        assert not any((halfway / name).exists() for name in ours)
        assert not checkpoints(halfway)
        printed += process.stdout.read()
        assert process.wait() == 0
    assert "Resuming" not in printed
    for name in kept:
        assert (halfway / name).read_text() == "old"
        (halfway / name).unlink()
    for name in ("art", "logs", "checkpoint/x"):
        (halfway / name).rmdir()
    assert_same_end(halfway, whole[0])


def test_two_runs_in_one_folder(data, output, main):
    with start(*training(data, output)) as process:
        wait_for(process, "0 epoch, ")
        line = refusal(main(*training(data, output, "--epochs", 1)))
        assert f"{output}: another run writes there" in line
        assert process.poll() is None
        process.kill()
    lock = os.open(output, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the killed run left none
    os.close(lock)


# ---- Consoles that fail -----------------------------------------------------------------------


@pytest.mark.parametrize("console", [">/dev/full 2>&1", ">&- 2>&-", "| head -n 1"])
def test_a_failing_console_does_not_end_a_run(console, data, whole, output):
    if "/dev/full" in console and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    command = shlex.join(
        map(str, [sys.executable, ART_GAN, *training(data, output, "--epochs", 6)])
    )
    script = f"{command} {console}; exit ${{PIPESTATUS[0]}}"  # 120: Python failed to flush
    done = subprocess.run(["bash", "-c", script], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0
    if "2>" not in console:
        assert not re.search("Traceback|Exception ignored|error: ", done.stderr)
    assert_same_end(output, whole[0])


def test_a_full_pipe_that_does_not_block_loses_text_only():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(writer, "w") as file, open(os.devnull, "w") as null:
        stream = art_gan.SafeStream(file)
        for _ in range(3000):
            stream.write(100 * "x")
            stream.flush()
        assert set(os.read(reader, 10**6)) == set(b"x")
        os.dup2(null.fileno(), writer)  # or what is left in the file's buffer could not be written
    os.close(reader)


def test_the_exit_code_is_the_runs_when_the_reader_of_a_pipe_is_gone(data, output, main):
    with start(*training(data, output, "--save-freq", 1), stderr=subprocess.PIPE) as process:
        wait_for(process, "0 epoch, ")
        process.stdout.close()
        poll((output / "trained-4.png").exists, process)
        process.terminate()
        errors = process.stderr.read()
        assert process.wait() == 143
    assert "Traceback" not in errors and "error: " not in errors
    assert iterations(output) >= 4


# ---- Failures -------------------------------------------------------------------------------


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


def test_a_run_that_is_not_finite_stops_before_it_saves(halfway, data, main):
    newest = halfway / "checkpoint" / "00000003.npz"
    saved = arrays(newest)
    saved["arr_0"][0, 0, 0, 0] = np.nan
    np.savez(newest, **saved)
    before = contents(halfway)
    result = main(*training(data, halfway, "--epochs", 8))
    assert "a loss at iteration 3 is not finite" in refusal(result)
    assert contents(halfway) == before


@contextlib.contextmanager
def full_disk(name, room):
    """In this process, `room` bytes are left for the file of that name."""
    resource = pytest.importorskip("resource")
    limits, original = resource.getrlimit(resource.RLIMIT_FSIZE), art_gan.replace_file

    @contextlib.contextmanager
    def replace_file(path):
        if path.name == name:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        with original(path) as temporary:
            yield temporary

    try:
        art_gan.replace_file = replace_file
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        art_gan.replace_file = original


def test_a_full_disk_in_each_kind_of_write(halfway, data, whole, main):
    """One line each, with all checkpoints intact; with room again, the run ends as usual."""
    faults = [
        (1_000_000, "trained-3.keras"),
        (10_000, "trained-3.png"),
        (1_000_000, "generator.keras"),
        (10, "metrics.csv"),
        (20_000_000, "00000006.npz"),
        (1_000, "training.webp"),
    ]
    before = {path.name: path.read_bytes() for path in checkpoints(halfway)}
    for room, name in faults:
        with full_disk(name, room):
            line = refusal(main(*training(data, halfway, "--epochs", 6)))
        assert "File too large; fix that" in line and "resumes from the last checkpoint" in line
        assert not leftovers(halfway)
        if name != "training.webp":  # which is written when the run is over
            assert {path.name: path.read_bytes() for path in checkpoints(halfway)} == before
    assert main(*training(data, halfway, "--epochs", 6)).returncode == 0
    assert_same_end(halfway, whole[0])


def test_an_output_folder_that_cannot_be_written(data, main, tmp_path):
    (tmp_path / "file").touch()
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    outputs = [tmp_path / "file", tmp_path / "file" / "below"]
    outputs += [Path("/proc/output")] * (sys.platform == "linux")
    outputs += [closed, closed / "below"] * (os.geteuid() != 0)  # root may do everything
    for output in outputs:
        line = refusal(main(*training(data, output)))
        assert str(output) in line and "use another --output" in line


def test_an_output_folder_that_vanishes(data, output, tmp_path):
    with start(*training(data, output, "--save-freq", 1), stderr=subprocess.PIPE) as process:
        wait_for(process, "0 epoch, ")
        output.rename(tmp_path / "moved")
        shutil.rmtree(tmp_path / "moved")
        printed, errors = process.communicate()
    result = subprocess.CompletedProcess(process.args, process.returncode, printed, errors)
    assert re.search(f"error: {output}/.*: No such file or directory; fix", refusal(result))
    assert not output.exists()


@pytest.mark.parametrize(
    "error", [tf.errors.ResourceExhaustedError(None, None, "OOM\nwhen allocating"), MemoryError()]
)
def test_out_of_memory(error, main, monkeypatch):
    def train(args):
        raise error

    monkeypatch.setattr(art_gan, "train", train)
    monkeypatch.setattr(art_gan, "paint", lambda args: train(args))
    line, painting = refusal(main("--fresh")), refusal(main("--generate", 1))
    assert "out of memory; stop other programs, then run the same command without --fresh" in line
    assert "a new run, in another --output, can use a smaller --batch-size" in line
    assert painting.endswith("out of memory; stop other programs, then run the same command again")


def test_an_error_of_tensorflow_is_one_line(main, monkeypatch):
    def train(args):
        raise tf.errors.InternalError(
            None, None, "cuDNN version 9.28 has no kernel\nat stream.cc:1"
        )

    monkeypatch.setattr(art_gan, "train", train)
    line = refusal(main())
    assert "TensorFlow failed: cuDNN version 9.28 has no kernel; " in line
    assert "CUDA_VISIBLE_DEVICES=-1" in line


# ---- Pictures -------------------------------------------------------------------------------


@pytest.fixture
def trained(half, output):
    """A folder that holds a generator and nothing else."""
    output.mkdir()
    shutil.copy(half / "generator.keras", output)
    return output


def images(folder):
    return {path.name: np.asarray(Image.open(path)) for path in folder.iterdir()}


def test_new_pictures(trained, main):
    (trained / "art").mkdir()
    (trained / "art" / ".part-generator-2-seed3-0001.png").touch()  # of a run that was killed
    (trained / "art" / ".part-mine.png").touch()
    assert main("--generate", 30, "--output", trained, "--seed", 3).returncode == 0
    assert leftovers(trained) == [".part-mine.png"]
    (trained / "art" / ".part-mine.png").unlink()
    first = images(trained / "art")
    names = [f"generator-3-seed3-{number:04}.png" for number in range(1, 31)]
    grid = "generator-3-seed3-grid.png"
    assert sorted(first) == [*names, grid]
    for number, name in enumerate(names):
        assert first[name].shape == (32, 32, 3)
        top, left = (4 + 36 * place for place in divmod(number, 7))
        if number < 28:
            place = first[grid][top : top + 32, left : left + 32]
            np.testing.assert_array_equal(place, first[name])
    assert len({picture.tobytes() for picture in first.values()}) == 31
    assert first[grid].shape == (4 + 4 * 36, 4 + 7 * 36, 3)

    shutil.rmtree(trained / "art")
    assert main("--generate", 2, "--output", trained, "--seed", 3).returncode == 0
    again = images(trained / "art")
    assert main("--generate", 2, "--output", trained, "--seed", 4).returncode == 0
    other = images(trained / "art")
    for name in names[:2]:
        np.testing.assert_array_equal(again[name], first[name])
        assert (other[name.replace("seed3", "seed4")] != first[name]).any()


def test_new_pictures_by_the_command(trained, tmp_path):
    result = run("--generate", 2, "--output", trained, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "2 pictures and a grid in" in result.stdout
    assert sorted(path.name for path in trained.iterdir()) == ["art", "generator.keras"]
    names = [f"generator-3-seed0-{end}.png" for end in ("0001", "0002", "grid")]
    assert sorted(images(trained / "art")) == names


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_each_preview_keeps_the_generator_that_painted_it(
    precision, whole, data, output, main, tmp_path
):
    """... also after a kill and a resume. Painted again, it gives the same file."""
    if precision == "float32":
        output = whole[0]
    else:
        options = training(data, output, "--epochs", 6, "--precision", precision)
        result = python("-c", FAULTY, "after", "trained-2.png", *options, "--checkpoint-seconds", 1)
        assert result.returncode == -signal.SIGKILL, result.stderr
        assert main(*options).returncode == 0
    noise = art_gan.random_noise(art_gan.PREVIEW_COUNT, 0, art_gan.PREVIEW_STREAM)
    previews = sorted(path.stem for path in output.glob("trained-*.png"))
    assert previews == ["trained-1", "trained-2", "trained-3"]
    for name in previews:
        generator = keras.models.load_model(output / f"{name}.keras")
        art_gan.save_images(tmp_path / "again.png", art_gan.build_painter(generator)(noise))
        assert (tmp_path / "again.png").read_bytes() == (output / f"{name}.png").read_bytes()


def test_painting_with_the_generator_of_a_preview(half, trained, main):
    for cnt in (1, 2):
        shutil.copy(half / f"trained-{cnt}.keras", trained)
    for option in ((), ("--from", 1), ("--from", 2)):
        assert main("--generate", 1, "--output", trained, *option).returncode == 0
        assert main("--interpolate", 2, "--output", trained, *option).returncode == 0
    art = images(trained / "art")
    names = [f"{name}-seed0-0001.png" for name in ("generator-3", "trained-1", "trained-2")]
    # The second preview was painted after three iterations, as the newest generator.
    assert set(names) <= set(art) and len({art[name].tobytes() for name in names}) == 2
    assert {path.name for path in trained.glob("*.webp")} == {
        f"interpolation-{name}-seed0.webp" for name in ("generator-3", "trained-1", "trained-2")
    }
    line = refusal(main("--generate", 1, "--output", trained, "--from", 63))
    assert line.endswith("trained-63.keras: no such generator; --from can be 1, 2")


def test_a_loop_through_new_pictures(trained, main):
    generator = keras.models.load_model(trained / "generator.keras")
    *_, kernel, bias = generator.get_weights()
    generator.set_weights([*generator.get_weights()[:-2], 20 * kernel, bias])  # more contrast
    generator.save(trained / "generator.keras")
    assert main("--interpolate", 2, "--output", trained, "--seed", 3).returncode == 0
    assert main("--generate", 2, "--output", trained, "--seed", 3).returncode == 0
    with Image.open(trained / "interpolation-generator-3-seed3.webp") as animation:
        assert animation.is_animated and animation.info["loop"] == 0
        frames = []
        for number in range(animation.n_frames):
            animation.seek(number)
            frame = np.asarray(animation.convert("RGB"), float)
            # The encoder shows a frame for longer instead of another that looks like it.
            frames += [frame] * (animation.info["duration"] // art_gan.INTERPOLATION_MS)
    assert (len(frames), frames[0].shape) == (2 * art_gan.INTERPOLATION_STEPS, (32, 32, 3))
    steps = [np.abs(a - b).mean() for a, b in zip(frames, frames[1:] + frames[:1], strict=True)]
    across = np.abs(frames[0] - frames[art_gan.INTERPOLATION_STEPS]).mean()
    assert max(steps) < across / 2  # the last step, back to the first frame, included
    for number in (1, 2):  # it passes through the pictures of the same seed
        name = f"generator-3-seed3-{number:04}.png"
        picture = np.asarray(Image.open(trained / "art" / name), float)
        frame = frames[art_gan.INTERPOLATION_STEPS * (number - 1)]
        assert np.abs(frame - picture).mean() < np.abs(frame - frames[15]).mean()


@pytest.mark.parametrize("count", [1, 50])
def test_an_animation_keeps_one_frame_in_memory(count, tmp_path):
    references, most, ended = [], 0, False

    def frames():
        nonlocal most, ended
        for number in range(count):
            frame = Image.new("RGB", (8, 8), (5 * number, 0, 200))
            references.append(weakref.ref(frame))
            most = max(most, sum(reference() is not None for reference in references))
            yield frame
        ended = True  # so that a progress bar is complete

    art_gan.save_animation(tmp_path / "a.webp", frames(), count, 40)
    assert most <= 3 and ended
    with Image.open(tmp_path / "a.webp") as animation:
        assert animation.n_frames == count
        for number in range(count):
            animation.seek(number)
            assert abs(animation.convert("RGB").getpixel((4, 4))[0] - 5 * number) < 12


@pytest.mark.parametrize("job", ["--generate", "--interpolate"])
def test_no_generator(job, main, tmp_path):
    line = refusal(main(job, 2, "--output", tmp_path / "none"))
    assert "generator.keras: no trained generator; train one first" in line
    (tmp_path / "generator.keras").write_bytes(b"no zip archive")
    assert "generator.keras: cannot be read (" in refusal(main(job, 2, "--output", tmp_path))
    (tmp_path / "generator.keras").rename(tmp_path / "trained-63.keras")
    line = refusal(main(job, 2, "--output", tmp_path))
    assert line.endswith("generator.keras: no such generator; --from can be 63")


def test_the_generator_of_a_newer_keras(trained, main):
    """Its first line only, with the Keras that is installed and the one that wrote it."""
    path = trained / "generator.keras"
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    config["config"]["layers"][1]["config"]["brand_new_option"] = 1
    files["config.json"] = json.dumps(config)
    files["metadata.json"] = json.dumps({"keras_version": "9.8.7"})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    line = refusal(main("--generate", 1, "--output", trained))
    assert f"read with Keras {keras.__version__}, written by Keras 9.8.7" in line


def test_the_time_lapse_of_many_or_no_previews(tmp_path, monkeypatch):
    """Of too many it shows some, the first and the last among them."""
    args = art_gan.parse_args(["--save-freq", "2"])
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "00000011.npz").touch()
    art_gan.finish(tmp_path, 11, args)
    assert not (tmp_path / "training.webp").exists()
    monkeypatch.setattr(art_gan, "TIMELAPSE_FRAMES", 3)
    for number in range(1, 7):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / f"trained-{number}.png")
    art_gan.finish(tmp_path, 11, args)
    with Image.open(tmp_path / "training.webp") as animation:
        assert animation.n_frames == 3
        for frame, number in ((0, 1), (2, 6)):
            animation.seek(frame)
            assert abs(animation.convert("RGB").getpixel((4, 4))[0] - 40 * number) < 12


def test_new_pictures_from_another_noise_size(tmp_path, main):
    art_gan.build_generator(2, 3, 1).save(tmp_path / "generator.keras")
    assert main("--generate", 1, "--output", tmp_path).returncode == 0
    assert main("--interpolate", 2, "--output", tmp_path).returncode == 0


def test_the_time_lapse(whole):
    with Image.open(whole[0] / "training.webp") as animation:
        assert (animation.n_frames, animation.size) == (3, (4 + 7 * 36, 4 + 4 * 36))
        for number in range(3):
            animation.seek(number)
            frame = np.asarray(animation.convert("RGB"), float)
            preview = np.asarray(Image.open(whole[0] / f"trained-{number + 1}.png"), float)
            assert np.abs(frame - preview).mean() < 12


def test_the_generator_opens_without_this_project(half, data, output, tmp_path):
    """Also that of a mixed_bfloat16 run, with nothing but float32 in it."""
    result = run(*training(data, output, "--epochs", 1, "--precision", "mixed_bfloat16"))
    assert result.returncode == 0, result.stderr
    assert "in mixed_bfloat16" in result.stdout
    code = """
import sys, keras, numpy
for path in sys.argv[1:]:
    model = keras.models.load_model(path)
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    pictures = model.predict(numpy.zeros((5, 100), "float32"), verbose=0)
    assert pictures.shape == (5, 32, 32, 3) and pictures.dtype == "float32"
    assert abs(pictures).max() <= 1
"""
    paths = [folder / "generator.keras" for folder in (half, output)]
    env = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    result = python("-c", code, *paths, cwd=tmp_path, env=env | {"KERAS_BACKEND": "tensorflow"})
    assert result.returncode == 0, result.stderr


# ---- What a run prints ----------------------------------------------------------------------


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


def test_the_metrics(whole):
    names = list(art_gan.METRICS)
    table = rows(whole[0])
    assert list(table[0]) == ["epoch", *names]
    assert [row["epoch"] for row in table] == ["0", "1", "2", "3", "4", "5"]
    with np.load(checkpoints(whole[0])[-1]) as file:
        values = [[np.float32(row[name]) for name in names] for row in table]
        np.testing.assert_array_equal(values, file["metrics"])


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
    options = training(data, output, "--epochs", 4)
    with start(*options, env=env, stdout=slave, stderr=subprocess.PIPE) as process:
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


def test_a_discriminator_that_has_won_is_reported_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(art_gan, "WON_ITERATIONS", 5)
    settings = {"the picture size": 32, "--save-freq": 100}
    start = np.zeros((3, 4), np.float32)
    start[1:, 1] = 1
    generator = art_gan.build_generator(art_gan.NOISE_SIZE, 3, 1)
    run = art_gan.Run(tmp_path, settings, generator, [], start)
    said = []
    for accuracy in (1, 0.99, 0.995, 1, 1, 0.98, 1, 1, 1, 1, 1, 1):
        run.pending.append(tf.constant([0, accuracy, 0, 0], tf.float32))
        run.update_history()
        said.append(capsys.readouterr().out)
    assert [bool(text) for text in said] == [False, False, True] + [False] * 9
    assert "99% or more for 5 iterations in a row" in said[2] and "--seed" in said[2]


def test_tensorboard_shows_one_curve_of_a_killed_and_resumed_run(data, whole, output, main):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = training(data, output, "--epochs", 6, "--tensorboard")
    (output / "logs").mkdir(parents=True)
    (output / "logs" / "events.out.tfevents.1.host.2.0.v2").touch()  # of another program
    result = python("-c", FAULTY, "after", "trained-2.png", *options, "--checkpoint-seconds", 1)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert main(*options).returncode == 0
    events = loader.EventAccumulator(str(output / "logs"), {"tensors": 0, "images": 0}).Reload()
    table = rows(output)
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
    (output / "logs" / "events.out.tfevents.1.host.2.0.v2").unlink()
    shutil.rmtree(output / "logs")
    assert_same_end(output, whole[0])


def test_a_full_disk_ends_the_tensorboard_log_and_not_the_run(
    data, whole, output, main, monkeypatch
):
    pytest.importorskip("tensorboard")

    def scalar(name, value, step):
        if step == 3:
            raise tf.errors.ResourceExhaustedError(None, None, "logs: No space left on device")

    monkeypatch.setattr(tf.summary, "scalar", scalar)
    result = main(*training(data, output, "--epochs", 6, "--tensorboard"))
    assert result.returncode == 0
    assert result.stderr.count("warning: the TensorBoard log ends here (logs: No space left") == 1
    shutil.rmtree(output / "logs")
    assert_same_end(output, whole[0])


def test_tensorboard_is_optional(data, output, main, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = refusal(main(*training(data, output, "--tensorboard")))
    assert line.endswith("--tensorboard needs one more package: pip install tensorboard")


# ---- Half precision and GPUs ------------------------------------------------------------------


def test_a_float16_run_resumes_exactly_across_skipped_steps(data, tmp_path, main, monkeypatch):
    """Four iterations at once, and two and two; the loss scale begins far too high."""
    scaled = partial(keras.optimizers.LossScaleOptimizer, initial_scale=2.0**40)
    monkeypatch.setattr(keras.optimizers, "LossScaleOptimizer", scaled)
    options = ("--precision", "mixed_float16", "--checkpoint-seconds", 0)
    result = main(*training(data, tmp_path / "one", *options, "--epochs", 4))
    assert result.returncode == 0, result.stderr
    assert "warning: mixed_float16 is for GPUs and slow on a CPU" in result.stderr
    for epochs in (2, 4):
        assert main(*training(data, tmp_path / "two", *options, "--epochs", epochs)).returncode == 0
    assert_same_end(tmp_path / "two", tmp_path / "one")
    first, last = (arrays(checkpoints(tmp_path / "one")[i]) for i in (0, -1))
    scales = [
        [v for v in each.values() if v.shape == () and v.dtype == np.float32 and v > 2**9]
        for each in (first, last)
    ]
    assert scales[0][0] > scales[1][0]  # steps were skipped before and after the first state
    shutil.rmtree(tmp_path / "one")
    shutil.rmtree(tmp_path / "two")


def test_one_gpu_is_used_and_shared(monkeypatch, capsys):
    gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{i}", "GPU") for i in range(2)]
    calls = []
    experimental = tf.config.experimental
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *call: calls.append(call))
    monkeypatch.setattr(experimental, "set_memory_growth", lambda *call: calls.append(call))
    details = {"device_name": "Tesla V100"}
    monkeypatch.setattr(experimental, "get_device_details", lambda gpu: details)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    args = art_gan.parse_args(["--precision", "mixed_float16"])
    assert art_gan.select_device(args) == "Tesla V100"
    assert calls == [(gpus[0], "GPU"), (gpus[0], True)]
    printed = capsys.readouterr()
    assert "CUDA_VISIBLE_DEVICES=6 python art_gan.py" in printed.out and not printed.err
    for visible in ("0", "all", ""):  # set after TensorFlow has started
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        art_gan.select_device(args)
        assert "CUDA_VISIBLE_DEVICES=1 python" in capsys.readouterr().out
    args.generate = 1
    art_gan.select_device(args)
    assert not capsys.readouterr().out


# ---- A cloud's job runner -------------------------------------------------------------------


def test_the_contract_with_a_job_runner(data, whole, output, tmp_path):
    """A fresh copy, read-only data elsewhere, SIGTERM in the middle, the same command again."""
    project, mount = tmp_path / "project", tmp_path / "mount"
    listed = subprocess.run(["git", "ls-files"], cwd=ART_GAN.parent, capture_output=True, text=True)
    tracked = listed.stdout.splitlines()
    if ART_GAN.name not in tracked:  # not a clone
        tracked = [path.name for path in ART_GAN.parent.glob("*.py")]
    for name in tracked:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ART_GAN.parent / name, project / name)
    mount.mkdir()
    shutil.copy(data, mount / "cubism_data.npy")
    (mount / "cubism_data.npy").chmod(0o444)
    mount.chmod(0o555)

    env = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    options = training(mount / "cubism_data.npy", output, "--epochs", 6)
    job = {"script": "art_gan.py", "cwd": project, "env": env, "stdin": subprocess.DEVNULL}
    with start(*options, **job) as process:
        wait_for(process, "0 epoch, ")
        process.terminate()
        assert "the same command resumes" in process.stdout.read()
        assert process.wait() == 143
    stopped = iterations(output)
    with start(*options, **job) as process:
        wait_for(process, f"Resuming from iteration {stopped} of 6")
        process.stdout.read()
        assert process.wait() == 0
    assert_same_end(output, whole[0])
    written = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    assert {name for name in written if "__pycache__" not in name} == set(tracked)


def test_a_slow_bucket_that_dies_with_the_machine_holds_a_state(data, output, tmp_path):
    """An rclone mount, as SkyPilot's MOUNT_CACHED: it uploads files a while after they are closed.

    Both the run and the mount are killed. What the bucket got has to be enough to resume.
    """
    if not (shutil.which("rclone") and shutil.which("fusermount3") and os.path.exists("/dev/fuse")):
        pytest.skip("needs rclone and fuse3")
    bucket, mount = tmp_path / "bucket", tmp_path / "mount"
    bucket.mkdir()
    mount.mkdir()
    command = ["rclone", "mount", f":local:{bucket}", mount, "--vfs-cache-mode", "full"]
    command += ["--vfs-write-back", "1s", "--vfs-fast-fingerprint", "--bwlimit", "20M"]
    command += ["--cache-dir", tmp_path / "cache", "--config", os.devnull]
    options = ("--save-freq", 5, "--checkpoint-seconds", 4)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as rclone:
        try:
            deadline = time.monotonic() + 20
            while not os.path.ismount(mount):
                if rclone.poll() is not None:
                    pytest.skip(f"rclone cannot mount here: {rclone.stderr.read()}")
                assert time.monotonic() < deadline
                time.sleep(0.1)
            with start(*training(data, mount / "run", *options)) as process:
                poll(lambda: len(checkpoints(mount / "run")) >= 5, process)
                process.kill()
            made = [int(path.stem) for path in checkpoints(mount / "run")]
        finally:
            rclone.kill()
            subprocess.run(["fusermount3", "-uz", mount], capture_output=True)
    shutil.copytree(bucket / "run", output)
    epochs = made[-1] + 2
    with start(*training(data, output, *options, "--epochs", epochs)) as process:
        printed = wait_for(process, "Resuming from iteration")
        assert int(re.search(r"Resuming from iteration (\d+)", printed)[1]) in made
        process.stdout.read()
        assert process.wait() == 0
