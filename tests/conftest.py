"""What the tests share.

Runs train on 40 random pictures of 32 x 32 pixels, mostly with the small networks of tiny.py: in
this process (`main`), in one that is forked (`start`) or, where its beginning matters, in one of
its own (`script`). They use the CPU: there, float32 is exact (a GPU multiplies in TF32) and
repeatable.
"""

import csv
import filecmp
import gc
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, Path(__file__).resolve().parents[:2]))

import child
import keras
import numpy as np
import pytest
import tiny

pytest_plugins = ["helpers_resizer"]
TINY = Path(__file__).resolve().parent / "tiny.py"
ART_GAN = TINY.parents[1] / "art_gan.py"


# ---- Running --------------------------------------------------------------------------------


def environment(**variables):
    """The environment of a process."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return inherited | variables


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


def script(*arguments, **options):
    """Run art_gan.py with the small networks to its end."""
    return python(TINY, *arguments, **options)


def training(data, output, *options):
    """Options of a short run that saves its state at the beginning and at the end."""
    short = ("--batch-size", 4, "--save-freq", 2, "--checkpoint-seconds", 3600)
    return ["--data", data, "--output", output, *short, *options]


@pytest.fixture
def main(capsys):
    """Call art_gan.main, with the small networks unless told otherwise, in this process."""

    def call(*arguments, program=tiny):
        capsys.readouterr()
        code = program.main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    yield call
    keras.utils.clear_session()
    gc.freeze()  # TensorFlow keeps what it has compiled: do not look at it again in each test


@pytest.fixture
def start(tmp_path, output):
    """Start runs in forked processes, see child.py; they are killed at the end of the test."""
    children = []

    def begin(*arguments, **options):
        options = {"logs": tmp_path, "folder": output} | options
        children.append(child.Child(*arguments, **options))
        return children[-1]

    yield begin
    for each in children:
        each.process.kill()
        each.process.join()


def refusal(result):
    """The one line of a run that failed. TensorFlow may write log lines of its own before it."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr
    *before, last = result.stderr.splitlines()
    assert last.startswith("art_gan.py: error: ")
    ours = [line for line in before if not re.match(r"[IWE]\d{4} [\d:.]+ +\d+ \w+\.cc:", line)]
    assert not [line for line in ours if "error: " in line]
    return last


# ---- Files of a run -------------------------------------------------------------------------


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


def part(path):
    """Leave an unfinished file for `path`, as a run that is killed does; returns its path."""
    unfinished = path.with_name(f".part-0123456789abcdef-{path.name}")
    unfinished.write_bytes(b"unfinished")
    return unfinished


def contents(output):
    """A fingerprint of every file: its name, size and time of writing."""
    return {
        str(path.relative_to(output)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in output.rglob("*")
        if path.is_file()
    }


def archived(path):
    """What is in a network's file, but for the date."""
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist() if name != "metadata.json"}


def assert_same_end(output, expected):
    """Two finished runs left the same: pictures, metrics, weights and training state."""
    names = [path.name for path in sorted(expected.iterdir())]
    assert [path.name for path in sorted(output.iterdir())] == names
    files = [name for name in names if name != "checkpoint" and not name.endswith(".keras")]
    assert filecmp.cmpfiles(output, expected, files, shallow=False) == (files, [], [])
    for name in names:
        if name.endswith(".keras") and archived(output / name) != archived(expected / name):
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


# ---- Damage ---------------------------------------------------------------------------------


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip(path, place=None):
    """Change one byte, in the middle unless told otherwise."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 255
    path.write_bytes(content)


def move_clock(folder, seconds):
    """Set the modification times of all files back or ahead."""
    for path in folder.rglob("*"):
        changed = path.stat().st_mtime + seconds
        os.utime(path, (changed, changed))


# ---- Fixtures -------------------------------------------------------------------------------


def pictures(count=40, size=32, seed=1, channels=3):
    shape = (count, size, size, channels)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder for what several tests use."""
    path = tmp_path_factory.mktemp("runs")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def data(folder):
    path = folder / "cubism_data.npy"
    np.save(path, pictures())
    return path


def trained(path, *options):
    """Train to the end in a forked process; returns what it printed."""
    process = child.Child(*options, logs=path.parent, folder=path)
    assert process.wait() == 0, process.printed
    return process.printed


@pytest.fixture(scope="session")
def whole(folder, data):
    """An uninterrupted run of 6 iterations: its folder and what it printed."""
    output = folder / "whole"
    return output, trained(output, *training(data, output, "--epochs", 6))


@pytest.fixture(scope="session")
def half(folder, data):
    """The folder of the same run, of 3 iterations, with a state of each."""
    output = folder / "half"
    trained(output, *training(data, output, "--epochs", 3, "--checkpoint-seconds", 0))
    return output


@pytest.fixture
def output(tmp_path):
    """The folder that a test's run writes to."""
    return tmp_path / "output"


@pytest.fixture
def halfway(half, output):
    """A copy of the run of 3 iterations, to resume."""
    shutil.copytree(half, output, copy_function=shutil.copy)  # as if just written: none is old
    return output


@pytest.fixture
def generator(half, output):
    """A folder that holds a generator and nothing else."""
    output.mkdir()
    shutil.copy(half / "generator.keras", output)
    return output
