"""Runs that are killed before each of their file operations, and then resumed.

Operations before which the files are as before the last one, such as fsync, are left out. Each
resumed run has to end as if nothing had happened, with the files of others untouched, also in a
folder that was copied or whose modification times were moved.
"""

import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from child import Child
from conftest import assert_same_end, checkpoints, contents, move_clock, trained, training

pytestmark = pytest.mark.slow
OTHERS = ("notes.txt", "trained-best.png", "checkpoint/model.npz", "art/mine.png", "logs/mine")


def add_others(output):
    """Files that are not the run's, in the folder and in its folders."""
    for name in OTHERS:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("not yours")


def remove_others(output):
    """Check that these are as they were, and remove them."""
    for name in OTHERS:
        assert (output / name).read_text() == "not yours"
        (output / name).unlink()
    for name in ("art", "logs"):
        (output / name).rmdir()


def copied(output):
    """The folder is a copy: all files have new modification times."""
    output.rename(output.with_name("original"))
    shutil.copytree(output.with_name("original"), output, copy_function=shutil.copyfile)


MOVES = (
    lambda output: None,
    copied,
    lambda output: move_clock(output, -3600),
    lambda output: move_clock(output, 3600),
)


@pytest.fixture(scope="module")
def older(folder, data):
    """A run of 5 iterations of the same settings, which --fresh removes."""
    output = folder / "older"
    trained(output, *training(data, output, "--epochs", 5, "--checkpoint-seconds", 0))
    return output


@pytest.mark.parametrize("case", ["new", "resumed", "fresh"])
def test_a_kill_before_any_file_operation_costs_nothing(case, data, whole, half, older, tmp_path):
    before = {"new": None, "resumed": half, "fresh": older}[case]
    fresh = ["--fresh"] * (case == "fresh")

    def prepared(name):
        output = tmp_path / name / "output"
        if before:
            shutil.copytree(before, output)
        add_others(output)
        return output

    def ended(output, *options, signals=()):
        often = ["--checkpoint-seconds", 0] * (case == "resumed")
        arguments = training(data, output, "--epochs", 6, *often, *options)
        process = Child(*arguments, logs=output.parent, folder=output, signals=signals)
        return process.wait(), process

    def crash(number):
        """Kill a run before its operation of that number, and resume it."""
        output = prepared(f"{number}")
        code, process = ended(output, *fresh, signals={number: signal.SIGKILL})
        assert code == -signal.SIGKILL, process.printed
        MOVES[number % len(MOVES)](output)
        files = contents(output)
        code, process = ended(output)
        if code:  # --fresh had removed all states, but not yet what shows that there was a run
            assert fresh and "no checkpoint that shows which run" in process.printed
            assert not checkpoints(output) and contents(output).items() <= files.items()
            code, process = ended(output, "--fresh")
        assert code == 0 and "Traceback" not in process.printed, process.printed
        remove_others(output)
        assert_same_end(output, whole[0])
        shutil.rmtree(output.parent)

    code, process = ended(prepared("all"), *fresh)
    assert code == 0, process.printed
    changes = [each for each in process.operations if not each.startswith("-")]
    assert len(changes) > 30
    points = range(len(changes))
    if before:  # after the removals, every third one: a new run is killed at each of them
        removed = next(number for number in points if " open " in changes[number])
        points = [*points[:removed], *points[removed::3]]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(crash, points))
