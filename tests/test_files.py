"""The files of a run: full disks, power cuts, links, folders that vanish, and names of others."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    assert_same_end,
    checkpoints,
    contents,
    leftovers,
    refusal,
    training,
)

pytestmark = pytest.mark.slow

# ---- Full disks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "room"),
    [
        ("trained-3.keras", 1000),
        ("trained-3.png", 1000),
        ("discriminator.keras", 1000),
        ("generator.keras", 1000),
        ("metrics.csv", 10),
        ("00000006.npz", 5000),
        ("training.webp", 500),
    ],
)
def test_a_full_disk_costs_nothing(name, room, halfway, data, whole, start):
    """One line that names the file, with all states intact; with room again, the run ends as
    usual."""
    before = {path.name: path.read_bytes() for path in checkpoints(halfway)}
    film = (halfway / "training.webp").read_bytes()
    process = start(*training(data, halfway, "--epochs", 6), rooms={name: room})
    assert process.wait() == 1 and "Traceback" not in process.printed
    *_, line = process.printed.splitlines()
    path = halfway / ("checkpoint" if name.endswith(".npz") else "") / name
    assert line.startswith(f"art_gan.py: error: {path}: File too large; fix that")
    assert "resumes from the last checkpoint" in line and ".part-" not in line
    assert not leftovers(halfway)
    assert (halfway / "training.webp").read_bytes() == film
    if name != "training.webp":  # which is written when the run is over
        assert {path.name: path.read_bytes() for path in checkpoints(halfway)} == before
    process = start(*training(data, halfway, "--epochs", 6))
    assert process.wait() == 0
    assert_same_end(halfway, whole[0])


@pytest.mark.parametrize(
    ("job", "name"),
    [
        ("--generate", "art/generator-3-seed0-0002.png"),
        ("--generate", "art/generator-3-seed0-grid.png"),
        ("--interpolate", "interpolation-generator-3-seed0.webp"),
    ],
)
def test_a_full_disk_while_painting(job, name, generator, start):
    rooms = {os.path.basename(name): 50}
    process = start(job, 2, "--output", generator, folder=generator, rooms=rooms)
    assert process.wait() == 1
    *_, line = process.printed.splitlines()
    assert line.startswith(f"art_gan.py: error: {generator / name}: File too large; fix that")
    assert "checkpoint" not in line and not leftovers(generator)


# ---- Power cuts -----------------------------------------------------------------------------


def changes(operations, output):
    """What `watch` has noted: pairs of an operation and a name relative to the folder."""
    lines = [line.split(" ", 2) for line in operations]
    lines = [words for words in lines if words[0] != "-" or words[1] != "os.remove"]
    return [(event, os.path.relpath(path, output)) for _, event, path in lines]


def test_fresh_has_removed_states_on_the_disk_before_anything_else_changes(halfway, data, start):
    """Else they could come back after a power cut, without the previews that belong to them."""
    process = start(*training(data, halfway, "--epochs", 1, "--fresh"))
    assert process.wait() == 0
    events = changes(process.operations, halfway)
    removed = {name: i for i, (event, name) in reversed([*enumerate(events)]) if "remove" in event}
    states = [i for name, i in removed.items() if re.fullmatch(r"checkpoint/\d{8}\.npz", name)]
    synced = [i for i, event in enumerate(events) if event == ("fsync", "checkpoint")]
    assert len(states) == 4 and "trained-1.png" in removed
    first = min(i for i, each in enumerate(events) if i not in states and each[0] != "fsync")
    assert any(max(states) < i < first for i in synced)


def test_a_new_folder_and_its_parents_are_on_the_disk(data, tmp_path, start):
    output = tmp_path / "some" / "where" / "deep"
    process = start(*training(data, output, "--epochs", 1), folder=tmp_path)
    assert process.wait() == 0
    events = changes(process.operations, tmp_path)
    for parent, name in ((".", "some"), ("some", "some/where"), ("some/where", "some/where/deep")):
        made = events.index(("os.mkdir", name))
        assert events[made + 1 :].index(("fsync", parent)) < 3
    state = events.index(("os.rename", "some/where/deep/checkpoint/00000000.npz"))
    assert ("fsync", "some/where/deep") in events  # which holds checkpoint/
    assert ("fsync", "some/where/deep/checkpoint") in events[state:]


def test_each_file_is_on_the_disk_before_it_gets_its_name(halfway, data, start):
    process = start(*training(data, halfway, "--epochs", 6))
    assert process.wait() == 0
    events = changes(process.operations, halfway)
    renamed = [i for i, (event, _) in enumerate(events) if event == "os.rename"]
    assert len(renamed) == 7
    for i in renamed:
        folder, name = os.path.split(events[i][1])
        event, before = events[i - 1]
        assert event == "fsync" and re.fullmatch(rf"\.part-\w+-{name}", os.path.basename(before))
        assert ("fsync", folder or ".") in events[i : i + 3]


# ---- Files of others ------------------------------------------------------------------------


def test_planted_links_are_not_followed(data, output, tmp_path, main):
    """Under the names that unfinished files once had, and under those of files of a run."""
    precious = tmp_path / "precious"
    precious.write_text("not yours")
    assert main(*training(data, output, "--epochs", 1)).returncode == 0
    planted = [".part-generator.keras", ".part-trained-2.png", "checkpoint/.part-00000003.npz"]
    taken = ["generator.keras", "metrics.csv", "training.webp", "trained-2.png", "trained-2.keras"]
    for name in (*planted, *taken):
        (output / name).unlink(missing_ok=True)
        (output / name).symlink_to(precious)
    (output / ".part-0123456789abcdef-metrics.csv").symlink_to(precious)
    assert main(*training(data, output, "--epochs", 3)).returncode == 0
    assert main("--generate", 1, "--output", output).returncode == 0
    assert precious.read_text() == "not yours"
    assert not any((output / name).is_symlink() for name in taken)
    assert all((output / name).is_symlink() for name in planted)
    for name in taken:
        (output / name).unlink()
        (output / name).symlink_to(precious)
    assert main(*training(data, output, "--epochs", 1, "--fresh")).returncode == 0
    assert precious.read_text() == "not yours"


def test_nobodys_files_are_changed_by_a_run(data, output, main):
    """Hidden files, files with names almost like ours, folders of others."""
    output.mkdir()
    others = ("notes.txt", "trained-01.png", "trained-best.keras", "TRAINED-1.PNG", ".hidden")
    others += ("checkpoint/model.npz", "art/mine.png", "logs/events.out.tfevents.1.x", "a/b/c")
    others += ("generator.keras.bak", ".part-x", "trained-1.png\n", "trained-1.pngx")
    for name in others:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("not yours")
    before = contents(output)
    for options in (["--epochs", 3], ["--epochs", 1, "--fresh"], ["--generate", 2]):
        assert main(*training(data, output, *options)).returncode == 0
        now = contents(output)
        assert {name: now[name] for name in before} == before


def test_no_control_character_of_a_name_reaches_the_terminal(half, data, main, tmp_path):
    hostile = "a\rb\x1b[31mred\x9b31mtab\ttwo\nlines"
    folder, file = tmp_path / hostile, tmp_path / f"{hostile}.npy"
    shutil.copytree(half, folder)
    np.save(tmp_path / "bad.npy", np.zeros(3))
    shutil.copy(tmp_path / "bad.npy", file)
    commands = [
        ["--data", file, "--output", tmp_path / "new"],
        ["--data", tmp_path / f"{hostile}-missing", "--output", tmp_path / "new"],
        training(data, folder, "--seed", 1),
        training(data, folder, "--epochs", 3),
        training(data, folder, "--epochs", 4),
        training(data, file),
        training(data, tmp_path / "other", "--init", tmp_path / hostile / "none"),
        training(data, tmp_path / "other", "--init", folder, "--epochs", 1),
        ["--generate", 1, "--output", folder],
        ["--interpolate", 2, "--output", folder],
        ["--generate", 1, "--output", folder, "--from", 7],
        ["--generate", 1, "--output", folder, "--from", file],
        training(data, folder, "--epochs", 1, "--fresh"),
    ]
    for command in commands:
        result = main(*command)
        said = result.stdout + result.stderr
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", said), (command, said)
        assert result.returncode == 0 or len(result.stderr.splitlines()) == 1, (command, said)


def test_settings_of_a_strangers_state_are_shown_without_control_characters(halfway, data, main):
    edit_settings(halfway, {"--precision": "\x1b[31mred\nline"})
    line = refusal(main(*training(data, halfway, "--epochs", 6)))
    assert "--precision was" in line and "\x1b" not in line


def edit_settings(output, changes):
    """Change the settings in all states of a run."""
    for path in checkpoints(output):
        with np.load(path) as file:
            saved = {name: file[name] for name in file.files}
        saved["settings"] = json.dumps(json.loads(str(saved["settings"])) | changes)
        np.savez(path, **saved)


# ---- Folders --------------------------------------------------------------------------------


def test_a_folder_that_vanishes(data, output, start, tmp_path):
    process = start(*training(data, output, "--save-freq", 1))
    process.wait_for("0 epoch, ")
    output.rename(tmp_path / "moved")
    assert process.wait() == 1 and "Traceback" not in process.printed
    *_, line = process.printed.splitlines()
    assert re.search(f"error: {output}/.*: No such file or directory; fix", line)
    assert ".part-" not in line and not output.exists()


def test_a_file_system_without_locks(data, whole, output, main, monkeypatch):
    def flock(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert main(*training(data, output, "--epochs", 6)).returncode == 0
    assert_same_end(output, whole[0])
    assert main("--generate", 1, "--output", output).returncode == 0


def state_of(process):
    return re.search(r"State:\s+(\w)", Path(f"/proc/{process.process.pid}/status").read_text())[1]


def test_two_runs_in_a_folder_without_locks_fail_by_the_names_of_their_files(
    data, output, start, main, monkeypatch
):
    """The second one removes what the first one has not finished."""
    process = start(*training(data, output), signals={9: signal.SIGSTOP})
    process.poll(lambda: leftovers(output) and leftovers(output)[0].endswith("-trained-1.png"))
    process.poll(lambda: "T" in state_of(process))  # it has stopped, before it gives the name
    monkeypatch.setattr(fcntl, "flock", lambda *arguments: None)
    main(*training(data, output, "--epochs", 1))
    process.send(signal.SIGCONT)
    assert process.wait() == 1
    *_, line = process.printed.splitlines()
    assert line.startswith(f"art_gan.py: error: {output / 'trained-1.png'}: ")
    assert ".part-" not in line


def test_a_run_that_is_not_finite_stops_before_it_saves(halfway, data, main):
    newest = halfway / "checkpoint" / "00000003.npz"
    with np.load(newest) as file:
        saved = {name: file[name] for name in file.files}
    kernel = next(n for n, value in saved.items() if n.startswith("arr_") and value.ndim == 2)
    saved[kernel][0, 0] = np.nan
    np.savez(newest, **saved)
    before = contents(halfway)
    result = main(*training(data, halfway, "--epochs", 8))
    assert "a loss at iteration 3 is not finite" in refusal(result)
    assert contents(halfway) == before
