"""art_gan.py from outside: refusals, stops, kills, failures, and all that a run leaves behind.

Runs are real processes, on 40 random pictures of 32 x 32 pixels. As TensorFlow takes seconds to
start, a refusal that needs no second process is provoked in this one.
"""

import contextlib
import csv
import filecmp
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import art_gan

fcntl = pytest.importorskip("fcntl", reason="signals and locks are tested on POSIX only")

ART_GAN = Path(art_gan.__file__).resolve()
PREVIEW = re.compile(
    r"(\d+) epoch, Discriminator accuracy: ([\d.]+), Generator accuracy: ([\d.]+), (.+)"
)

# art_gan.py with a fault at the file of a given name: its second argument bytes fit on the disk,
# or it is killed when the file is half written ("before" it is in its place), or just in place.
FAULTY = """
import contextlib, os, resource, signal, sys
import art_gan

fault, name, *arguments = sys.argv[1:]
original = art_gan.replacing

@contextlib.contextmanager
def replacing(path):
    hit = path.name == name
    if hit and fault.isdigit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(fault), resource.RLIM_INFINITY))
    with original(path) as temporary:
        yield temporary
        if hit and fault == "before":
            os.truncate(temporary, os.path.getsize(temporary) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    if hit and fault == "after":
        os.kill(os.getpid(), signal.SIGKILL)

art_gan.replacing = replacing
sys.exit(art_gan.main(arguments))
"""


# ---- Helpers --------------------------------------------------------------------------------


def environment(**variables):
    """The environment of a process: no GPU, as only a CPU computes the same twice."""
    return (
        os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ART_GAN.parent)} | variables
    )


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
def start(*arguments, script=ART_GAN, env=None, **options):
    """Give a process of art_gan.py; in the end it is dead."""
    process = subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        text=True,
        env=env or environment(),
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
    return ["--data", data, "--output", output, "--batch-size", 4, "--save-freq", 2, *options]


def refusal(result):
    """The one line of a refused or failed run. TensorFlow writes log lines of its own before it."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr
    *before, last = result.stderr.splitlines()
    assert last.startswith("art_gan.py: error: ")
    ours = [line for line in before if not re.match(r"[IWE]\d{4} [\d:.]+ +\d+ \w+\.cc:", line)]
    assert not [line for line in ours if "error: " in line]
    return last


def checkpoints(output):
    return sorted((output / "checkpoint").iterdir())


def iterations(output):
    """How many iterations the newest checkpoint stands for; 0 without any."""
    paths = [path for path in checkpoints(output) if path.stem.isdigit()]
    return int(paths[-1].stem) if paths else 0


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
    """All that two finished runs left is the same."""
    names = [path.name for path in sorted(expected.iterdir())]
    assert [path.name for path in sorted(output.iterdir())] == names
    files = [name for name in names if name not in ("checkpoint", "generator.keras")]
    assert filecmp.cmpfiles(output, expected, files, shallow=False) == (files, [], [])
    for one, other in zip(weights(output), weights(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not leftovers(output)
    assert len(checkpoints(output)) == art_gan.CHECKPOINTS
    newest = checkpoints(output)[-1]
    assert newest.name == checkpoints(expected)[-1].name
    with np.load(newest) as one, np.load(checkpoints(expected)[-1]) as other:
        assert one.files == other.files
        for name in one.files:
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
    """The folder of the same run, of 3 iterations."""
    result = run(*training(data, folder / "half", "--epochs", 3))
    assert result.returncode == 0, result.stderr
    return folder / "half"


@pytest.fixture
def output(tmp_path):
    """The folder that a test's run writes to."""
    yield tmp_path / "output"
    shutil.rmtree(tmp_path / "output", ignore_errors=True)


@pytest.fixture
def halfway(half, output):
    """A copy of the run of 3 iterations, to be gone on with."""
    shutil.copytree(half, output)
    return output


@pytest.fixture
def main(monkeypatch, capsys):
    """Call art_gan.main here. It does not lock, as the lock would outlast it."""
    monkeypatch.setattr(art_gan, "fcntl", None)

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
    "folder": (lambda path: path.mkdir(), "not a whole .npy file"),
    "empty": (lambda path: path.touch(), "not a whole .npy file"),
    "text": (lambda path: path.write_text("no pictures"), "not a whole .npy file"),
    "truncated": (lambda path: (np.save(path, pictures()), halve(path)), "not a whole .npy file"),
    "pickled": (lambda path: np.save(path, np.array([{}] * 4)), "not a whole .npy file"),
    "archive": (archive, "holds an archive"),
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
    array = pictures()
    same = art_gan.spread(np.asfortranarray(array), 64)
    assert same.tobytes() == art_gan.spread(array, 64).tobytes() and same.data.c_contiguous


@pytest.mark.parametrize(("make", "reason"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_is_refused(make, reason, tmp_path):
    make(tmp_path / "data.npy")
    with pytest.raises(art_gan.ArtError, match=reason) as caught:
        art_gan.load_data(str(tmp_path / "data.npy"))
    assert str(caught.value).startswith(str(tmp_path / "data.npy"))
    assert "image_resizer.py" in str(caught.value) and "\n" not in str(caught.value)


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
        "--epochs 1.5",
        "--seed -1",
        "--seed 4294967296",
        "--generate 0",
        "--interpolate 1",
        "--generate 2 --interpolate 2",
        "--precision float16",
        "--nonsense",
    ],
)
def test_bad_options_are_refused(options, main, capsys):
    with pytest.raises(SystemExit) as caught:
        main(*options.split())
    assert caught.value.code == 2
    assert options.split()[-2 if " " in options else -1] in capsys.readouterr().err


def test_a_bad_option_is_refused_by_the_command():
    result = run("--batch-size", 0)
    assert result.returncode == 2
    assert "argument --batch-size: 0 is less than 1" in result.stderr.splitlines()[-1]


def test_nan_that_the_first_look_misses_ends_the_run(output, tmp_path):
    array = pictures(300)
    looked_at = np.linspace(0, 299, 256).astype(int)
    unseen = np.setdiff1d(np.arange(300), looked_at)
    array[unseen, 4, 5, 1] = np.nan
    np.save(tmp_path / "data.npy", array)
    art_gan.load_data(str(tmp_path / "data.npy"))
    draws = (np.random.default_rng([0, epoch]).integers(300, size=4) for epoch in range(100))
    bad = next(epoch for epoch, drawn in enumerate(draws) if np.isin(drawn, unseen).any())

    result = run(*training(tmp_path / "data.npy", output, "--epochs", 100, "--save-freq", 1))
    assert f"{tmp_path / 'data.npy'}: holds values from nan to nan" in refusal(result)
    assert iterations(output) == bad


# ---- Resume ---------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["float64 data", "another keras.json", flip, halve, empty])
def test_a_run_goes_on_to_the_same_end(what, halfway, data, whole, tmp_path):
    """... on the article's float64 file, in another Keras set-up, or from the last but one save."""
    env, going_on = environment(), 3
    if what == "float64 data":
        np.save(tmp_path / "float64.npy", np.load(data).astype(np.float64))
        data = tmp_path / "float64.npy"
    elif what == "another keras.json":
        settings = {"backend": "torch", "image_data_format": "channels_first", "floatx": "float16"}
        (tmp_path / "keras.json").write_text(json.dumps(settings))
        env |= {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "jax"}
    else:
        going_on = 1
        what(halfway / "checkpoint" / "00000003.npz")

    result = run(*training(data, halfway, "--epochs", 6), env=env)
    assert result.returncode == 0, result.stderr
    assert f"Going on from iteration {going_on} of 6" in result.stdout
    damaged = re.findall(r"(\S+): damaged \(.+\); trying the one before it", result.stderr)
    assert damaged == ([str(halfway / "checkpoint" / "00000003.npz")] if callable(what) else [])
    assert_same_end(halfway, whole[0])


def test_twenty_kills_do_not_change_the_end(data, output, folder):
    """Twenty random moments, some of them in start-up, most around a save of each iteration."""
    steady = folder / "steady"
    options = ("--save-freq", 1, "--epochs", 40)
    result = run(*training(data, steady, *options))
    assert result.returncode == 0, result.stderr
    pace = float(re.findall(r"([\d.]+) s/iteration", result.stdout)[-1])

    rng = random.Random(2019)
    resumed_at = []
    for _ in range(20):
        previews = rng.choice([0, 1, 1, 1, 2, 2])
        delay = rng.uniform(0, pace)
        done = iterations(output) if output.exists() else 0
        with start(*training(data, output, *options)) as process:
            printed = wait_for(process, "Training on")
            for _ in range(previews):
                printed += wait_for(process, " epoch, ")
            time.sleep(delay)
            process.kill()
            printed += process.stdout.read()
            assert process.wait() == -signal.SIGKILL
        going_on = [int(k) for k in re.findall(r"Going on from iteration (\d+) of 40", printed)]
        assert going_on == [done] if done and previews else set(going_on) <= {done}
        resumed_at += going_on
    assert len(resumed_at) >= 10 and len(set(resumed_at)) >= 5

    result = run(*training(data, output, *options))
    assert result.returncode == 0, result.stderr
    assert_same_end(output, steady)


def test_kills_in_each_kind_of_write(halfway, data, whole):
    faults = [
        ("before", "trained-3.png"),
        ("before", "generator.keras"),
        ("before", "metrics.csv"),
        ("before", "00000005.npz"),
        ("after", "00000005.npz"),
        ("before", "training.webp"),
    ]
    # As of a kill while a stop is saved, at an iteration that no later run saves.
    (halfway / "checkpoint" / ".part-00000004.npz").touch()
    for fault, name in faults:
        result = python("-c", FAULTY, fault, name, *training(data, halfway, "--epochs", 6))
        assert result.returncode == -signal.SIGKILL, (name, result.stderr)
        assert leftovers(halfway) == ([f".part-{name}"] if fault == "before" else [])
    assert run(*training(data, halfway, "--epochs", 6)).returncode == 0
    assert_same_end(halfway, whole[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_iteration_under_way(number, data, output):
    with start(*training(data, output, "--save-freq", 1000), stderr=subprocess.PIPE) as process:
        wait_for(process, "0 epoch, ")
        poll((output / "checkpoint" / "00000001.npz").exists, process)
        process.send_signal(number)
        printed, errors = process.communicate()
    assert process.returncode == 128 + number and "Traceback" not in errors
    done = iterations(output)
    assert printed == f"Stopped at iteration {done} of 10000; the same command goes on\n"
    assert [row["epoch"] for row in rows(output)] == [str(epoch) for epoch in range(done)]
    assert len(weights(output)) == len(art_gan.build_generator(100, 3, 1).get_weights())
    names = ["checkpoint", "generator.keras", "metrics.csv", "trained-1.png"]  # no training.webp
    assert sorted(path.name for path in output.iterdir()) == names


def test_all_checkpoints_damaged(halfway, data, main):
    for path, damage in zip(checkpoints(halfway), (flip, empty), strict=True):
        damage(path)
    before = contents(halfway)
    result = main(*training(data, halfway, "--epochs", 6))
    assert "no whole checkpoint; start over with --fresh" in refusal(result)
    assert len(result.stderr.splitlines()) == 3  # each of the two is named
    assert contents(halfway) == before


def test_a_finished_run_says_so(half, data, main):
    before = contents(half)
    result = main(*training(data, half, "--epochs", 3))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{half}: finished, 3 iterations; to go on: --epochs 6\n"
    assert contents(half) == before


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
    assert f"started otherwise ({difference}); go on" in line
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


def test_fresh_starts_over(halfway, data, whole, folder):
    """After a refusal; what the old run wrote goes, the rest stays."""
    kept = ("art/seed0-0001.png", "README.md", "example.png")
    (halfway / "art").mkdir()
    for name in (*kept, "trained-99.png", "training.webp", "checkpoint/.part-00000007.npz"):
        (halfway / name).write_text("old")
    for name in ("metrics.csv", "generator.keras"):
        (halfway / name).write_text("old")
    line = refusal(run(*training(data, halfway, "--seed", 7, "--epochs", 3)))
    assert "(--seed was 0, is 7)" in line and "--fresh" in line

    with start(*training(data, halfway, "--epochs", 6, "--fresh")) as process:
        printed = wait_for(process, "Training on")
        assert not {path.name for path in halfway.iterdir()} & {
            "metrics.csv",
            "generator.keras",
            "training.webp",
            "trained-99.png",
        }
        assert not checkpoints(halfway)
        printed += process.stdout.read()
        assert process.wait() == 0
    assert "Going on" not in printed
    for name in kept:
        assert (halfway / name).read_text() == "old"
        (halfway / name).unlink()
    (halfway / "art").rmdir()
    assert_same_end(halfway, whole[0])


def test_two_runs_in_one_folder(data, output):
    with start(*training(data, output)) as process:
        wait_for(process, "0 epoch, ")
        line = refusal(run(*training(data, output, "--epochs", 1)))
        assert f"{output}: another run writes there" in line
        assert process.poll() is None
        process.kill()
    lock = os.open(output, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the killed run left none
    os.close(lock)


# ---- Failures -------------------------------------------------------------------------------


def test_check_finite():
    metrics = np.zeros((5, 4), np.float32)
    variables = [keras.Variable(np.zeros(3), name=name) for name in ("first", "second")]
    art_gan.check_finite(metrics, variables)
    variables[1].assign([0, np.inf, 0])
    with pytest.raises(art_gan.ArtError, match=r"^second at iteration 4 is not finite.*--fresh"):
        art_gan.check_finite(metrics, variables)
    metrics[2, 1] = np.nan
    with pytest.raises(art_gan.ArtError, match=r"^a loss at iteration 2 is not finite"):
        art_gan.check_finite(metrics, variables)


def test_a_run_that_is_not_finite_stops_before_it_saves(halfway, data):
    newest = halfway / "checkpoint" / "00000003.npz"
    with np.load(newest) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["arr_0"][0, 0, 0, 0] = np.nan
    np.savez(newest, **arrays)
    before = contents(halfway)
    result = run(*training(data, halfway, "--epochs", 8))
    assert "a loss at iteration 3 is not finite" in refusal(result)
    assert contents(halfway) == before


def test_a_full_disk_in_each_kind_of_write(halfway, data, whole):
    """One line each, with all checkpoints intact; with room again, the run ends as if none was."""
    faults = [
        (10_000, "trained-3.png"),
        (1_000_000, "generator.keras"),
        (10, "metrics.csv"),
        (20_000_000, "00000005.npz"),
        (1_000, "training.webp"),
    ]
    before = {path.name: path.read_bytes() for path in checkpoints(halfway)}
    for room, name in faults:
        result = python("-c", FAULTY, room, name, *training(data, halfway, "--epochs", 6))
        line = refusal(result)
        assert "File too large; mend that" in line and "goes on from the last checkpoint" in line
        assert not leftovers(halfway)
        if name != "training.webp":  # which is written when the run is over
            assert {path.name: path.read_bytes() for path in checkpoints(halfway)} == before
    assert run(*training(data, halfway, "--epochs", 6)).returncode == 0
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
    with start(*training(data, output), stderr=subprocess.PIPE) as process:
        wait_for(process, "0 epoch, ")
        output.rename(tmp_path / "moved")
        shutil.rmtree(tmp_path / "moved")
        printed, errors = process.communicate()
    result = subprocess.CompletedProcess(process.args, process.returncode, printed, errors)
    assert re.search(f"error: {output}/.*: No such file or directory; mend", refusal(result))
    assert not output.exists()


@pytest.mark.parametrize(
    "error", [tf.errors.ResourceExhaustedError(None, None, "OOM\nwhen allocating"), MemoryError()]
)
def test_out_of_memory(error, main, monkeypatch):
    def train(args):
        raise error

    monkeypatch.setattr(art_gan, "train", train)
    assert refusal(main()) == "art_gan.py: error: out of memory; use a smaller --batch-size"


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
    assert main("--generate", 30, "--output", trained, "--seed", 3).returncode == 0
    first = images(trained / "art")
    names = [f"seed3-{number:04}.png" for number in range(1, 31)]
    assert sorted(first) == [*names, "seed3-grid.png"]
    for number, name in enumerate(names):
        assert first[name].shape == (32, 32, 3)
        top, left = (4 + 36 * place for place in divmod(number, 7))
        if number < 28:
            place = first["seed3-grid.png"][top : top + 32, left : left + 32]
            np.testing.assert_array_equal(place, first[name])
    assert len({picture.tobytes() for picture in first.values()}) == 31
    assert first["seed3-grid.png"].shape == (4 + 4 * 36, 4 + 7 * 36, 3)

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
    assert sorted(images(trained / "art")) == ["seed0-0001.png", "seed0-0002.png", "seed0-grid.png"]


def test_a_loop_through_new_pictures(trained, main):
    assert main("--interpolate", 2, "--output", trained, "--seed", 3).returncode == 0
    assert main("--generate", 2, "--output", trained, "--seed", 3).returncode == 0
    with Image.open(trained / "interpolation-seed3.webp") as animation:
        assert animation.is_animated and animation.info["loop"] == 0
        frames = []
        for number in range(animation.n_frames):
            animation.seek(number)
            frame = np.asarray(animation.convert("RGB"), float)
            # The encoder shows a frame for longer instead of another that looks like it.
            frames += [frame] * (animation.info["duration"] // art_gan.LOOP_MS)
    assert (len(frames), frames[0].shape) == (2 * art_gan.LOOP_STEPS, (32, 32, 3))
    steps = [np.abs(a - b).mean() for a, b in zip(frames, frames[1:] + frames[:1], strict=True)]
    across = np.abs(frames[0] - frames[art_gan.LOOP_STEPS]).mean()
    assert max(steps) < across / 2  # the last step, back to the first frame, included
    for number in (1, 2):  # it passes through the pictures of the same seed
        picture = np.asarray(Image.open(trained / "art" / f"seed3-{number:04}.png"), float)
        frame = frames[art_gan.LOOP_STEPS * (number - 1)]
        assert np.abs(frame - picture).mean() < np.abs(frame - frames[15]).mean()


@pytest.mark.parametrize("job", ["--generate", "--interpolate"])
def test_no_generator(job, main, tmp_path):
    line = refusal(main(job, 2, "--output", tmp_path / "none"))
    assert "generator.keras: no trained generator; train one first" in line
    (tmp_path / "generator.keras").write_bytes(b"no zip archive")
    assert "generator.keras: cannot be read (" in refusal(main(job, 2, "--output", tmp_path))


def test_the_time_lapse_of_many_or_no_previews(tmp_path, monkeypatch):
    art_gan.save_timelapse(tmp_path, 9, 2)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(art_gan, "TIMELAPSE_FRAMES", 3)
    for number in range(1, 6):
        Image.new("RGB", (8, 8), (50 * number, 0, 0)).save(tmp_path / f"trained-{number}.png")
    art_gan.save_timelapse(tmp_path, 9, 2)
    with Image.open(tmp_path / "training.webp") as animation:
        assert animation.n_frames == 3


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
    lines = [line for line in printed.splitlines() if "epoch" in line]
    found = [PREVIEW.fullmatch(line).groups() for line in lines]
    assert [int(epoch) for epoch, *_ in found] == [0, 2, 4]
    for epoch, d_accuracy, g_accuracy, pace in found:
        row = rows(output)[int(epoch)]
        assert d_accuracy == str(100 * float(row["discriminator_accuracy"]))
        assert g_accuracy == str(100 * float(row["generator_accuracy"]))
        assert re.fullmatch(r"compiled in .* s|[\d.]+ s/iteration, \d+:\d\d:\d\d left", pace)
    assert "\r" not in printed and "\x1b" not in printed and "━" not in printed.split(lines[0])[1]
    assert printed.splitlines()[-1].startswith("Finished 6 iterations")


def test_the_metrics(whole):
    names = art_gan.METRICS.split(",")
    table = rows(whole[0])
    assert list(table[0]) == ["epoch", *names]
    assert [row["epoch"] for row in table] == ["0", "1", "2", "3", "4", "5"]
    with np.load(checkpoints(whole[0])[-1]) as file:
        values = [[np.float32(row[name]) for name in names] for row in table]
        np.testing.assert_array_equal(values, file["metrics"])


def test_a_terminal_gets_a_bar_and_an_idle_nvidia_gpu_a_warning(data, output, tmp_path):
    pty = pytest.importorskip("pty")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    env = environment(
        PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        CUDA_VISIBLE_DEVICES="99",  # none is hidden on purpose, and none is there
        TERM="xterm",
        COLUMNS="120",
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
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.decode())  # without colours
    assert re.search(r"4/4 .*━.*D \d\.\d{3} +\d+%, G \d\.\d{3} +\d+%, .* s/iteration", shown)
    assert len(re.findall(r"\d epoch, Discriminator accuracy: ", shown)) == 2
    assert re.search(r"Training on the CPU \(.+, \d+ cores\), in float32", shown)
    warnings = [line for line in errors.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "tensorflow[and-cuda]" in warnings[0]


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
        assert "the same command goes on" in process.stdout.read()
        assert process.wait() == 143
    stopped = iterations(output)
    with start(*options, **job) as process:
        wait_for(process, f"Going on from iteration {stopped} of 6")
        process.stdout.read()
        assert process.wait() == 0
    assert_same_end(output, whole[0])
    written = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    assert {name for name in written if "__pycache__" not in name} == set(tracked)
