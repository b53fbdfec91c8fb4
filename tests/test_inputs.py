"""What is refused, in one line and before anything is touched: data, options, settings, folders."""

import contextlib
import fcntl
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import (
    ART_GAN,
    assert_same_end,
    checkpoints,
    contents,
    halve,
    iterations,
    part,
    pictures,
    python,
    refusal,
    training,
)

import art_gan

# ---- Data -----------------------------------------------------------------------------------


def nan(array):
    array[3, 4, 5, 1] = np.nan
    return array


def archive(path):
    with open(path, "wb") as file:
        np.savez(file, pictures())


def saved(array):
    return lambda path: np.save(path, array())


BAD_DATA = {
    "missing": (lambda path: None, "no such file; make it first: python image_resizer.py"),
    "folder": (lambda path: path.mkdir(), r"cannot be read \(Is a directory\)"),
    "empty": (lambda path: path.touch(), "not a whole .npy file"),
    "text": (lambda path: path.write_text("no pictures"), "not a whole .npy file"),
    "truncated": (lambda path: (np.save(path, pictures()), halve(path)), "not a whole .npy file"),
    "pickled": (saved(lambda: np.array([{}] * 4)), "not a whole .npy file"),
    "archive": (archive, "not a whole .npy file"),
    "half an archive": (lambda path: (archive(path), halve(path)), "not a whole .npy file"),
    "one picture": (saved(lambda: pictures()[0]), r"of shape \(32, 32, 3\), not"),
    "two channels": (saved(lambda: pictures(channels=2)), r"of shape \(40, 32, 32, 2\), not"),
    "none": (saved(lambda: pictures()[:0]), r"shape \(0, 32|not a whole .npy file"),
    "too small": (saved(lambda: pictures(4, size=16)), r"\(4, 16, 16, 3\), not"),
    "too large": (saved(lambda: pictures(1, size=520)), r"\(1, 520, 520, 3\), not"),
    "odd size": (saved(lambda: pictures(4, size=33)), r"\(4, 33, 33, 3\), not"),
    "uint8": (saved(lambda: np.zeros((4, 32, 32, 3), np.uint8)), "holds uint8"),
    "0..255": (saved(lambda: 127 * (pictures() + 1)), r"values from 0.* to 25\d"),
    "0..1": (saved(lambda: (pictures() + 1) / 2), "no value is below 0"),
    "nan": (saved(lambda: nan(pictures())), "values from nan to nan"),
}


@pytest.mark.parametrize(("make", "reason"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_is_refused(make, reason, tmp_path):
    make(tmp_path / "data.npy")
    with pytest.raises(art_gan.UserError, match=reason) as caught:
        art_gan.load_data(str(tmp_path / "data.npy"))
    assert str(caught.value).startswith(str(tmp_path / "data.npy"))
    assert re.search("image_resizer.py|--data", str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(48, 48, 3), (32, 64, 1), (96, 64, 3), (512, 512, 1)])
def test_other_sizes_and_grey_pictures_are_data(shape, tmp_path):
    array = np.random.default_rng(1).uniform(-1, 1, (3, *shape)).astype(np.float16)
    np.save(tmp_path / "data.npy", array)
    np.testing.assert_array_equal(art_gan.load_data(str(tmp_path / "data.npy")), array)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(32, 64, 1), (48, 32, 3)])
def test_such_data_trains_and_paints(shape, output, tmp_path, main):
    array = np.random.default_rng(1).uniform(-1, 1, (9, *shape)).astype(np.float32)
    np.save(tmp_path / "data.npy", array)
    options = training(tmp_path / "data.npy", output, "--epochs", 3)
    assert main(*options, "--tensorboard").returncode == 0
    assert main("--output", output, "--generate", 2).returncode == 0
    assert main("--output", output, "--interpolate", 2).returncode == 0
    assert (output / "training.webp").exists()


def test_bad_data_is_refused_by_the_command(output, tmp_path, main):
    path = tmp_path / "data.npy"
    options = ("--data", path, "--output", output)
    assert refusal(main(*options)).startswith(f"art_gan.py: error: {path}: no such file")
    np.save(path, 127.5 * (pictures() + 1))
    assert "not numbers in -1..1" in refusal(main(*options))
    assert not output.exists()


@pytest.mark.slow
def test_data_in_fortran_order_is_the_same_data(half, tmp_path, main):
    np.save(tmp_path / "data.npy", np.asfortranarray(pictures()))
    assert main(*training(tmp_path / "data.npy", half, "--epochs", 3)).returncode == 0


@pytest.mark.slow
def test_nan_that_the_first_look_misses_ends_the_run(output, tmp_path, main):
    array = pictures(300)
    looked_at = np.linspace(0, 299, 256).astype(int)
    unseen = np.setdiff1d(np.arange(300), looked_at)
    array[unseen, 4, 5, 1] = np.nan
    np.save(tmp_path / "data.npy", array)
    art_gan.load_data(str(tmp_path / "data.npy"))
    draws = (np.random.default_rng([0, epoch]).integers(300, size=4) for epoch in range(100))
    bad = next(epoch for epoch, drawn in enumerate(draws) if np.isin(drawn, unseen).any())

    options = ("--epochs", 100, "--checkpoint-seconds", 0)
    result = main(*training(tmp_path / "data.npy", output, *options))
    assert f"{tmp_path / 'data.npy'}: holds values from nan to nan" in refusal(result)
    assert iterations(output) == bad


# ---- Options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["--batch-size", "0"],
        ["--save-freq", "0"],
        ["--epochs", "x"],
        ["--epochs", "1e4"],
        ["--seed", "-1"],
        ["--seed", "4294967296"],
        ["--seed", 5000 * "1"],
        ["--checkpoint-seconds", "-1"],
        ["--generate", "0"],
        ["--interpolate", "1"],
        ["--interpolate", "3,0"],
        ["--interpolate", "3,"],
        ["--interpolate", "3,x"],
        ["--generate", "2", "--interpolate", "2"],
        ["--generate", "2", "--fresh"],
        ["--generate", "2", "--init", "other"],
        ["--precision", "float16"],
        ["--from", "1"],
        ["--generate", "1", "--from", "0"],
        ["--nonsense"],
        ["--data", ""],
        ["--output", ""],
        ["--output", "", "--fresh"],
        ["--init", ""],
        ["--generate", "1", "--from", ""],
    ],
    ids=lambda options: " ".join(options)[:40],
)
def test_bad_options_are_refused(options, main, capsys, tmp_path, monkeypatch):
    """... and nothing is touched, not even in the current folder."""
    (tmp_path / "checkpoint").mkdir()
    for name in ("checkpoint/00000001.npz", "trained-1.png", "generator.keras"):
        (tmp_path / name).touch()
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(*options)
    assert caught.value.code == 2 and contents(tmp_path) == before
    *_, line = capsys.readouterr().err.splitlines()
    assert "error: " in line and any(word in line for word in options if word)
    assert len(line) < 300
    if options[-1] in ("x", "1e4"):
        assert f"'{options[-1]}' is not a whole number" in line
    if options[-1] == "":
        assert line.endswith(f"{options[-2]}: is empty")


@pytest.mark.slow
def test_a_bad_option_is_refused_by_the_command():
    result = python(ART_GAN, "--batch-size", 0)
    assert result.returncode == 2
    *_, line = result.stderr.splitlines()
    assert line.endswith("argument --batch-size: '0' is not a whole number from 1 to 4294967295")


def test_a_bad_option_is_one_line_without_control_characters(main, capsys):
    with pytest.raises(SystemExit):
        main("x\x1b[31mred")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("error: unrecognized arguments: x\\x1b[31mred")


# ---- Another run than the one in the folder -------------------------------------------------


@pytest.mark.slow
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
    assert f"used different settings ({difference}" in line and "use the same" in line
    assert "--fresh" in line and "--output" in line
    assert contents(half) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (pictures(seed=2), r"\(the data was 40 pictures, checksum \w+, is 40 pictures, checksum"),
        (pictures(39), r"\(the data was 40 pictures, checksum \w+, is 39 pictures, checksum \w+\)"),
        (pictures(size=64), r"the shape of a picture was \[32, 32, 3\], is \[64, 64, 3\]"),
    ],
    ids=["same number", "one less", "other size"],
)
def test_other_data_is_refused(other, difference, half, main, tmp_path):
    np.save(tmp_path / "other.npy", other)
    line = refusal(main(*training(tmp_path / "other.npy", half, "--epochs", 3)))
    assert re.search(difference, line) and "--fresh" in line


@pytest.mark.slow
def test_another_noise_size_is_refused(half, data, main, monkeypatch):
    monkeypatch.setattr(tiny, "NOISE_SIZE", 101)
    assert "the noise size was 100, is 101" in refusal(main(*training(data, half, "--epochs", 3)))


@pytest.mark.slow
def test_a_state_of_other_networks_is_refused(half, data, main):
    before = contents(half)
    line = refusal(main(*training(data, half, "--epochs", 6), program=art_gan))
    assert "used different settings" in line and "; and " in line
    assert contents(half) == before


@pytest.mark.slow
def test_init_is_refused_without_another_run(half, data, output, main, tmp_path):
    before = contents(half)
    for where in (tmp_path / "none", output, tmp_path):
        line = refusal(main(*training(data, output, "--init", where)))
        assert f"--init {where}: holds no checkpoint of another run" in line
        assert not output.exists() or not any(output.iterdir())
    np.save(tmp_path / "larger.npy", pictures(size=64))
    line = refusal(main(*training(tmp_path / "larger.npy", output, "--init", half)))
    assert f"--init {half}: its " in line and "needs the same networks and size" in line
    assert not any(output.iterdir()) and contents(half) == before


@pytest.mark.slow
def test_init_begins_as_another_run(half, data, output, main):
    """... which is only read. The same command resumes, also when the other run has trained on."""
    before = contents(half)
    options = training(data, output, "--init", half, "--seed", 5)
    result = main(*options, "--epochs", 1)
    assert result.returncode == 0 and f"networks of {half} after 3 iterations" in result.stdout
    result = main(*options, "--epochs", 2)
    assert result.returncode == 0 and "Resuming from iteration 1 of 2" in result.stdout
    assert contents(half) == before


# ---- --fresh, and folders -------------------------------------------------------------------


@pytest.mark.slow
def test_fresh_starts_over(halfway, data, whole, start):
    """It removes what the old run wrote, by its exact names, says so, and removes nothing else."""
    ours = ("trained-99.png", "trained-99.keras", "training.webp", "metrics.csv", "generator.keras")
    ours += ("discriminator.keras", "checkpoint/12345678.npz")
    ours += ("logs/events.out.tfevents.1.host.2.0.art_gan",)
    ours += ("art/generator-3-seed0-0001.png", "art/generator-3-seed0-grid.png")
    ours += ("art/trained-2-seed7-0012.png", "interpolation-generator-3-seed0.webp")
    ours += ("interpolation-trained-2-seed0-3-17-42.webp",)
    kept = ("README.md", "example.png", "trained-best.png", "trained-007.png")
    kept += ("checkpoint/model.safetensors", "checkpoint/123456789.npz")
    kept += ("checkpoint/x/00000001.npz", "logs/events.out.tfevents.1.host.2.0.v2")
    kept += ("art/mine.png", "art/generator-best-seed0-0001.png", "interpolation-mine-seed0.webp")
    kept += ("art/generator-3-seed0-0001-edited.psd", "interpolation-generator-3-seed0-cut.webp")
    kept += (".part-notes.txt", "checkpoint/.part-1")
    for name in (*ours, *kept):
        (halfway / name).parent.mkdir(parents=True, exist_ok=True)
        (halfway / name).write_text("old")
    unfinished = [part(halfway / name) for name in ("metrics.csv", "checkpoint/00000007.npz")]
    options = training(data, halfway, "--epochs", 6, "--fresh")
    process = start(*options, signals={"trained-1.keras": signal.SIGKILL})
    assert process.wait() == -signal.SIGKILL
    assert not any(path.exists() for path in (*unfinished, *(halfway / name for name in ours)))
    assert [path.name for path in checkpoints(halfway)] == ["00000000.npz"]
    assert re.search(rf"--fresh removed from {halfway}: .+, .+ and \d+ more", process.printed)
    assert "Resuming" not in process.printed
    process = start(*options)
    assert process.wait() == 0
    for name in kept:
        assert (halfway / name).read_text() == "old"
        (halfway / name).unlink()
    for name in ("art", "logs", "checkpoint/x"):
        (halfway / name).rmdir()
    assert_same_end(halfway, whole[0])


def folder_of_others(output, half):
    """Someone else's files with names like ours, without any state."""
    output.mkdir()
    for name in ("generator.keras", "metrics.csv", "trained-9.keras", "notes.txt"):
        (output / name).write_text("not yours")


def copy_without_states(output, half):
    shutil.copytree(half, output)
    shutil.rmtree(output / "checkpoint")


def copy_with_an_old_preview(output, half):
    copy_without_states(output, half)
    os.utime(output / "trained-1.png", (0, 0))


def one_preview(output, half):
    output.mkdir()
    (output / "trained-1.png").write_text("not yours")


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [folder_of_others, copy_without_states, copy_with_an_old_preview, one_preview]
)
def test_files_without_a_state_are_refused_and_kept(make, output, half, data, main):
    make(output, half)
    before = contents(output)
    line = refusal(main(*training(data, output, "--epochs", 1)))
    assert f"{output}: holds " in line
    assert "but no checkpoint that shows which run they are of" in line and "--fresh" in line
    assert any(name in line for name in before)
    assert contents(output) == before
    result = main(*training(data, output, "--epochs", 1, "--fresh"))
    assert result.returncode == 0 and f"--fresh removed from {output}: " in result.stdout
    assert (output / "notes.txt").exists() == ("notes.txt" in before)


@pytest.mark.slow
def test_fresh_in_an_empty_folder_says_nothing(output, data, main):
    result = main(*training(data, output, "--epochs", 1, "--fresh"))
    assert result.returncode == 0 and "removed" not in result.stdout


@pytest.mark.slow
def test_two_runs_in_one_folder(data, output, start, main):
    process = start(*training(data, output))
    process.wait_for("0 epoch, ")
    line = refusal(main(*training(data, output, "--epochs", 1)))
    assert f"{output}: another run writes there" in line
    assert process.process.is_alive()
    process.send(signal.SIGKILL)
    process.wait()
    lock = os.open(output, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the killed run left none
    os.close(lock)


def test_an_output_folder_that_cannot_be_made(data, main, tmp_path):
    (tmp_path / "file").touch()
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    outputs = [tmp_path / "file", tmp_path / "file" / "below"]
    outputs += [tmp_path / "file" / "below" / "deep"]
    with contextlib.suppress(OSError):
        os.symlink(tmp_path / "nowhere", tmp_path / "link")
        outputs.append(tmp_path / "link")
    outputs += [Path("/proc/output")]
    outputs += [closed, closed / "below"] * (os.geteuid() != 0)  # root may do everything
    for output in outputs:
        for job in ([], ["--fresh"]):
            line = refusal(main(*training(data, output, *job)))
            assert f"{tmp_path}/" in line or str(output) in line  # or the parent that is a file
            assert "use another --output" in line
