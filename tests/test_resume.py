"""A run that is stopped, killed or copied and started again ends as if it had not stopped."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
import tiny
from conftest import (
    ART_GAN,
    arrays,
    assert_same_end,
    checkpoints,
    contents,
    empty,
    environment,
    flip,
    halve,
    iterations,
    leftovers,
    move_clock,
    part,
    python,
    refusal,
    rows,
    script,
    trained,
    training,
)

import art_gan

pytestmark = pytest.mark.slow


# ---- The end is the same --------------------------------------------------------------------


def test_the_articles_networks_resume_exactly(data, main, tmp_path):
    """In another process, and with the article's float64 file of the same pictures."""
    np.save(tmp_path / "float64.npy", np.load(data).astype(np.float64))
    whole, output = tmp_path / "whole", tmp_path / "output"
    assert main(*training(data, whole, "--epochs", 4), program=art_gan).returncode == 0
    assert python(ART_GAN, *training(data, output, "--epochs", 2)).returncode == 0
    options = training(tmp_path / "float64.npy", output, "--epochs", 4)
    result = main(*options, program=art_gan)
    assert result.returncode == 0 and "Resuming from iteration 2 of 4" in result.stdout
    assert_same_end(output, whole)
    shutil.rmtree(whole)
    shutil.rmtree(output)


def test_another_keras_json_changes_nothing(halfway, data, whole, tmp_path):
    settings = {"backend": "torch", "image_data_format": "channels_first", "floatx": "float16"}
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    env = environment(KERAS_HOME=str(tmp_path), KERAS_BACKEND="jax")
    result = script(*training(data, halfway, "--epochs", 6), env=env)
    assert result.returncode == 0, result.stderr
    assert "Resuming from iteration 3 of 6" in result.stdout
    assert_same_end(halfway, whole[0])


@pytest.mark.parametrize("damage", [flip, halve, empty])
def test_a_run_resumes_before_a_damaged_state(damage, halfway, data, whole, main):
    newest = halfway / "checkpoint" / "00000003.npz"
    damage(newest)
    result = main(*training(data, halfway, "--epochs", 6))
    assert result.returncode == 0, result.stderr
    assert "Resuming from iteration 2 of 6" in result.stdout
    assert re.findall(r"(\S+): damaged \(.+\); it is not used", result.stderr) == [str(newest)]
    assert_same_end(halfway, whole[0])


def test_twenty_kills_at_random_moments_do_not_change_the_end(data, output, start, tmp_path):
    """In start-up and later; every second run saves no state, so that its previews are repeated."""
    steady, options = tmp_path / "steady", ("--save-freq", 1, "--epochs", 100)
    began = time.monotonic()
    trained(steady, *training(data, steady, *options))
    pace = (time.monotonic() - began) / 100

    rng = random.Random(2019)
    resumed_at, lost = [], 0
    for attempt in range(20):
        done = iterations(output) if output.exists() else 0
        seconds = 3600 if attempt % 2 else 0
        previews = rng.randrange(0, 6)  # none: killed in start-up
        process = start(*training(data, output, *options, "--checkpoint-seconds", seconds))
        process.wait_for("Training on")
        process.wait_for(" epoch, ", min(previews, 99 - done))
        time.sleep(rng.uniform(0, pace))
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        first = [
            int(k) for k in re.findall(r"Resuming from iteration (\d+) of 100", process.printed)
        ]
        assert first == [done] or not (first or done)
        resumed_at += first
        lost += len(list(output.glob("trained-*.png"))) > iterations(output)
    assert len(resumed_at) >= 18 and len(set(resumed_at)) >= 5 and lost >= 6
    assert not list(tmp_path.glob("*autograph*"))

    process = start(*training(data, output, *options))
    assert process.wait() == 0, process.printed
    assert_same_end(output, steady)


def test_a_kill_before_the_first_preview_leaves_a_run_that_resumes(data, whole, output, start):
    process = start(*training(data, output), signals={"trained-1.keras": signal.SIGKILL})
    assert process.wait() == -signal.SIGKILL
    assert iterations(output) == 0 and len(checkpoints(output)) == 1
    process = start(*training(data, output, "--epochs", 6))
    assert process.wait() == 0 and "Resuming from iteration 0 of 6" in process.printed
    assert_same_end(output, whole[0])


def test_previews_after_the_state_are_not_removed_but_written_again(data, whole, output, start):
    """As they are, at the moment at which the resumed run begins."""
    process = start(*training(data, output, "--epochs", 6), signals={"metrics.csv": signal.SIGKILL})
    assert process.wait() == -signal.SIGKILL and iterations(output) == 0
    previews = contents(output)
    names = {f"trained-{cnt}.{suffix}" for cnt in (1, 2, 3) for suffix in ("png", "keras")}
    assert names <= set(previews)
    process = start(*training(data, output), signals={"trained-1.keras": signal.SIGKILL})
    assert process.wait() == -signal.SIGKILL and "Resuming from iteration 0" in process.printed
    now = contents(output)
    assert {name: now[name] for name in names} == {name: previews[name] for name in names}
    process = start(*training(data, output, "--epochs", 6))
    assert process.wait() == 0
    assert_same_end(output, whole[0])


@pytest.mark.parametrize("seconds", [-3600, 3600, "copied"])
def test_no_clock_and_no_copy_changes_the_end(seconds, halfway, data, whole, main):
    """Also if the newest preview is of 1970."""
    if seconds == "copied":
        halfway.rename(halfway.with_name("original"))
        shutil.copytree(halfway.with_name("original"), halfway, copy_function=shutil.copyfile)
    else:
        move_clock(halfway, seconds)
    os.utime(halfway / "trained-2.png", (0, 0))
    assert main(*training(data, halfway, "--epochs", 6)).returncode == 0
    assert_same_end(halfway, whole[0])


def test_unfinished_files_of_a_killed_run_are_removed(halfway, data, whole, main):
    """Those of files that are a run's, and no others."""
    for name in ("checkpoint/00000004.npz", "generator.keras", "trained-9.png", "training.webp"):
        part(halfway / name)
    kept = [part(halfway / name) for name in ("notes.txt", "trained-best.png", "checkpoint/1.npz")]
    assert main(*training(data, halfway, "--epochs", 6)).returncode == 0
    assert sorted(leftovers(halfway)) == sorted(path.name for path in kept)
    for path in kept:
        path.unlink()
    assert_same_end(halfway, whole[0])


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
    first, last = (arrays(checkpoints(tmp_path / "one")[i]) for i in (1, -1))
    scales = [
        [v for v in each.values() if v.shape == () and v.dtype == np.float32 and v > 2**9]
        for each in (first, last)
    ]
    assert scales[0][0] > scales[1][0]  # steps were skipped before and after the first state


def test_a_finished_run_says_so(half, data, main):
    before = contents(half)
    result = main(*training(data, half, "--epochs", 3))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Finished 3 iterations. ") and "--epochs 6" in result.stdout
    assert contents(half) == before


# ---- Signals --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_after_the_iteration_under_way(number, data, output, start):
    """... and saves it. SIGHUP does not if it was ignored at the start, as under nohup."""
    ignored = (signal.SIGHUP,) if number == signal.SIGTERM else ()
    process = start(*training(data, output, "--save-freq", 1), ignored=ignored)
    process.wait_for(" epoch, ")
    for each in ignored:
        process.send(each)
        process.wait_for(" epoch, ", process.printed.count(" epoch, ") + 2)
    process.send(number)
    assert process.wait() == 128 + number and "Traceback" not in process.printed
    done = iterations(output)
    *_, last = process.printed.splitlines()
    assert last == f"Stopped after {done} of 10000 iterations; the same command resumes"
    assert [row["epoch"] for row in rows(output)] == [str(epoch) for epoch in range(done)]
    assert keras.models.load_model(output / "generator.keras").name == f"generator-{done}"
    names = [f"trained-{cnt}.{suffix}" for cnt in range(1, done + 1) for suffix in ("keras", "png")]
    names += ["checkpoint", "discriminator.keras", "generator.keras", "metrics.csv"]
    assert {path.name for path in output.iterdir()} == set(names)  # no training.webp


def test_a_stopped_run_with_fresh_resumes_without_it(data, output, start):
    process = start(*training(data, output, "--fresh"), signals={"trained-1.png": signal.SIGTERM})
    assert process.wait() == 143
    assert "; the same command without --fresh resumes" in process.printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_second_signal(number, data, output, start):
    """A second Ctrl-C ends the run at once. A second SIGHUP, which shells send, does not.

    The first comes at the second preview, the other one while the state is saved.
    """
    signals = {"trained-2.png": number, "metrics.csv": number}
    process = start(*training(data, output), signals=signals)
    if number == signal.SIGINT:
        assert process.wait() == -signal.SIGINT and iterations(output) == 0
    else:
        assert process.wait() == 129 and iterations(output) == 3


def test_ctrl_c_before_the_first_iteration_is_one_line(data, output, start):
    process = start(*training(data, output), signals={"00000000.npz": signal.SIGINT})
    assert process.wait() == 130
    *_, last = process.printed.splitlines()
    assert last == "art_gan.py: interrupted; run the same command again"
    assert "Traceback" not in process.printed and not leftovers(output)


# ---- States ---------------------------------------------------------------------------------


def test_states_follow_the_clock_not_the_previews(data, output, start):
    """One before iteration 0, the next after --checkpoint-seconds, and so on."""
    options = ("--save-freq", 1, "--checkpoint-seconds", 2)
    process = start(*training(data, output, *options))
    process.poll(lambda: len(checkpoints(output)) == 3)
    process.send(signal.SIGKILL)
    zero, first, second = (path.stat().st_mtime for path in checkpoints(output))
    assert 2 <= first - zero < 20 and 2 <= second - first < 20
    assert iterations(output) > 2 and checkpoints(output)[0].stem == "00000000"


@pytest.mark.parametrize("clock", [-3600, 0, 3600])
def test_young_states_are_kept_and_old_ones_removed(clock, tmp_path):
    """The newest two stay; so does what a slow bucket may still be receiving.

    What counts is the disk's clock, which may be a server's.
    """
    folder, now = tmp_path / "checkpoint", time.time() + clock
    folder.mkdir()
    ours = [f"{number:08}.npz" for number in range(1, 7)]
    for age, name in zip((500, 400, 299, 200, 100, 0), ours, strict=True):
        (folder / name).touch()
        os.utime(folder / name, (now - age, now - age))
    for name in ("1.npz", "model.npz"):
        (folder / name).touch()
        os.utime(folder / name, (0, 0))
    tiny.remove_old_states(folder / ours[-1])
    assert {path.name for path in folder.iterdir()} == {*ours[2:], "1.npz", "model.npz"}

    for path in checkpoints(tmp_path)[:-1]:
        os.utime(path, (0, 0))
    tiny.remove_old_states(folder / ours[-1])
    assert [path.name for path in checkpoints(tmp_path)] == ours[-2:]


def test_the_number_of_young_states_is_limited(halfway, data, main):
    """A clock that stands still, or ever so short --checkpoint-seconds, do not fill the disk."""
    options = ("--epochs", 20, "--checkpoint-seconds", 0)
    assert main(*training(data, halfway, *options)).returncode == 0
    names = [path.stem for path in checkpoints(halfway)]
    assert names == [f"{number:08}" for number in range(11, 21)]


def test_a_damaged_state_takes_no_place_of_a_good_one(tmp_path):
    """The run was resumed before it. It goes when there are two good states."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for number in (3, 9, 4, 5):
        path = folder / f"{number:08}.npz"
        path.touch()
        os.utime(path, (1000 * number, 1000 * number) if number != 9 else (0, 0))
        if number != 9:
            tiny.remove_old_states(path)
    assert [path.name for path in checkpoints(tmp_path)] == ["00000004.npz", "00000005.npz"]


def test_all_checkpoints_damaged(halfway, data, main):
    damages = (flip, empty, halve, flip)
    for path, damage in zip(checkpoints(halfway), damages, strict=True):
        damage(path)
    before = contents(halfway)
    result = main(*training(data, halfway, "--epochs", 6))
    assert "every checkpoint is damaged; start over with --fresh" in refusal(result)
    assert len(result.stderr.splitlines()) == 5  # each of the four is named
    assert contents(halfway) == before


def test_an_unreadable_disk_is_not_a_damaged_checkpoint(halfway, data, main, monkeypatch):
    def read_bytes(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    before = contents(halfway)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    line = refusal(main(*training(data, halfway, "--epochs", 6)))
    assert "00000003.npz: Input/output error; fix that" in line
    assert "--fresh" not in line and "damaged" not in line
    assert contents(halfway) == before


def test_a_lack_of_memory_is_not_a_damaged_file(halfway, data, main, monkeypatch):
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


# ---- A cloud's job runner -------------------------------------------------------------------


def test_the_contract_with_a_job_runner(data, whole, output, tmp_path):
    """A fresh copy, read-only data elsewhere, SIGTERM in the middle, the same command again."""
    project, mount = tmp_path / "project", tmp_path / "mount"
    listed = subprocess.run(["git", "ls-files"], cwd=ART_GAN.parent, capture_output=True, text=True)
    tracked = [name for name in listed.stdout.splitlines() if (ART_GAN.parent / name).exists()]
    if ART_GAN.name not in tracked:  # not a clone
        tracked = [path.name for path in ART_GAN.parent.glob("*.py")]
    for name in tracked:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ART_GAN.parent / name, project / name)
    (project / "art_gan.py").write_text(tiny.edited(ART_GAN.read_text()))
    mount.mkdir()
    shutil.copy(data, mount / "cubism_data.npy")
    (mount / "cubism_data.npy").chmod(0o444)
    mount.chmod(0o555)

    env = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    options = training(mount / "cubism_data.npy", output, "--epochs", 6)
    job = {"cwd": project, "env": env, "stdin": subprocess.DEVNULL}
    wait = {"stdout": subprocess.PIPE, "text": True, **job}
    command = [*map(str, [os.sys.executable, "art_gan.py", *options])]
    with subprocess.Popen(command, **wait) as process:
        while " epoch, " not in process.stdout.readline():
            assert process.poll() is None
        process.terminate()
        assert "the same command resumes" in process.stdout.read()
        assert process.wait() == 143
    result = python("art_gan.py", *options, **job)
    assert result.returncode == 0 and "Resuming from iteration " in result.stdout
    assert_same_end(output, whole[0])
    written = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    assert {name for name in written if "__pycache__" not in name} == set(tracked)


def test_a_slow_bucket_that_dies_with_the_machine_holds_a_state(data, output, start, tmp_path):
    """An rclone mount, as SkyPilot's MOUNT_CACHED: it uploads files a while after they are closed.

    Both the run and the mount are killed. What the bucket got has to be enough to resume.
    """
    if not (shutil.which("rclone") and shutil.which("fusermount3") and os.path.exists("/dev/fuse")):
        pytest.skip("needs rclone and fuse3")
    bucket, mount = tmp_path / "bucket", tmp_path / "mount"
    bucket.mkdir()
    mount.mkdir()
    command = ["rclone", "mount", f":local:{bucket}", mount, "--vfs-cache-mode", "full"]
    command += ["--vfs-write-back", "1s", "--vfs-fast-fingerprint", "--bwlimit", "1M"]
    command += ["--cache-dir", tmp_path / "cache", "--config", os.devnull]
    options = ("--save-freq", 50, "--checkpoint-seconds", 2)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as rclone:
        try:
            deadline = time.monotonic() + 20
            while not os.path.ismount(mount):
                if rclone.poll() is not None:
                    pytest.skip(f"rclone cannot mount here: {rclone.stderr.read()}")
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process = start(*training(data, mount / "run", *options), folder=mount / "run")
            process.poll(lambda: len(checkpoints(mount / "run")) >= 5)
            process.send(signal.SIGKILL)
            process.wait()
            made = [int(path.stem) for path in checkpoints(mount / "run")]
        finally:
            rclone.kill()
            subprocess.run(["fusermount3", "-uz", mount], capture_output=True)
    shutil.copytree(bucket / "run", output)
    process = start(*training(data, output, *options, "--epochs", made[-1] + 2))
    assert process.wait() == 0, process.printed
    assert int(re.search(r"Resuming from iteration (\d+)", process.printed)[1]) in made
