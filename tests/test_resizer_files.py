"""Test that image_resizer.py writes its file whole or not at all, whatever fails or stops it."""

import errno
import fcntl
import io
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers_resizer import COLOUR, SCRIPT, parts, resize, run, start, wait_for_part
from PIL import Image

import image_resizer


def show(terminal):
    """Return what a terminal of 80 columns receives until the last process has closed it."""
    shown = b""
    while True:
        try:
            text = os.read(terminal, 10000)
        except OSError:  # Linux raises EIO at the end
            text = b""
        if not text:
            os.close(terminal)
            return shown.decode()
        shown += text


@pytest.mark.parametrize("broken", [False, True])
def test_closing_the_terminal_does_not_lose_the_file(dataset, tmp_path, broken):
    for n in range(6):
        Image.new("RGB", (2500, 2500)).save(dataset / f"f{n}.jpg")
    if broken:
        (dataset / "z.jpg").touch()  # is named when the terminal is gone
    terminal, end = os.openpty()
    process = start(cwd=tmp_path, stderr=end)
    os.close(end)
    wait_for_part(tmp_path)
    os.close(terminal)
    assert process.wait(timeout=30) == 0
    assert np.load(tmp_path / "cubism_data.npy").shape == (11, 128, 128, 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_the_older_file(slow_folder, tmp_path, number):
    older = tmp_path / "cubism_data.npy"
    older.write_bytes(b"older")
    process = start("slow", cwd=tmp_path)
    wait_for_part(tmp_path, 500_000)
    process.send_signal(number)
    started = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 3  # all of them would take far longer
    assert process.returncode == 130 and out == ""
    last = "image_resizer.py: interrupted; 'cubism_data.npy' is as it was before"
    assert err.splitlines()[-1] == last and "Traceback" not in err
    assert older.read_bytes() == b"older"
    assert sorted(os.listdir(tmp_path)) == ["cubism_data.npy", "slow"]


def test_interruption_does_not_wait_for_the_queue(dataset, tmp_path, monkeypatch):
    for n in range(200):
        (dataset / f"{n}.png").write_bytes((dataset / "e.png").read_bytes())
    loaded, original = [], image_resizer.load_picture

    def slow(path, shape, crop):
        loaded.append(path)
        time.sleep(0.005)
        return original(path, shape, crop)

    def interrupt(line, stream):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_resizer, "load_picture", slow)
    monkeypatch.setattr(image_resizer, "say", interrupt)
    with pytest.raises(KeyboardInterrupt):
        resize(dataset, tmp_path / "out.npy")
    assert len(loaded) < 50 + 2 * (os.cpu_count() or 1)
    assert os.listdir(tmp_path) == ["dataset"]


def test_full_disk_leaves_the_older_file(dataset, tmp_path):

    def small_files_only():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    older = tmp_path / "cubism_data.npy"
    older.write_bytes(b"older")
    done = run(cwd=tmp_path, preexec_fn=small_files_only)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "image_resizer.py: error: cannot write 'cubism_data.npy': File too large; "
        "fix that, or name another"
    )
    assert older.read_bytes() == b"older"
    assert sorted(os.listdir(tmp_path)) == ["cubism_data.npy", "dataset"]


def test_failure_without_a_picture_leaves_the_older_file(tmp_path):
    older = tmp_path / "old.npy"
    older.write_bytes(b"older")
    assert run(tmp_path, "--output", "old.npy", cwd=tmp_path).returncode == 1
    assert older.read_bytes() == b"older" and os.listdir(tmp_path) == ["old.npy"]


def test_an_interruption_while_it_loads_is_no_traceback(dataset, tmp_path):
    for library in ("numpy", "PIL"):
        process = start("dataset", cwd=tmp_path)
        libraries = Path(f"/proc/{process.pid}/maps")
        while process.poll() is None and f"/{library}/" not in libraries.read_text():
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in err


def test_leftovers_on_a_disk_that_locks_only_what_is_open_for_writing(
    dataset, tmp_path, monkeypatch
):
    """As NFS does."""

    def flock(file, operation):
        if not fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE:
            raise OSError(errno.EBADF, "Bad file descriptor")
        return original(file, operation)

    original = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", flock)
    leftover = tmp_path / ".part-0123456789abcdef-x.npy"
    leftover.write_bytes(bytes(1000))
    assert resize(dataset, tmp_path / "x.npy")[0] == 5 and not leftover.exists()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_new_file_has_ordinary_permissions_and_replaces_leftovers(dataset, tmp_path, mask, mode):
    (tmp_path / "disk").mkdir()
    (tmp_path / "cubism_data.npy").symlink_to("disk/real.npy")
    leftover = tmp_path / "disk" / ".part-0123456789abcdef-real.npy"
    leftover.write_bytes(bytes(5_000_000))
    assert run(cwd=tmp_path, umask=mask).returncode == 0
    assert (tmp_path / "cubism_data.npy").is_symlink() and not leftover.exists()
    real = tmp_path / "disk" / "real.npy"
    assert real.stat().st_mode & 0o777 == mode
    assert real.stat().st_size == 128 + 5 * 128 * 128 * 3 * 4
    assert np.load(tmp_path / "cubism_data.npy", mmap_mode="r").shape == (5, 128, 128, 3)


@pytest.fixture
def stopped(dataset, slow_folder, tmp_path):
    """Return a run on dataset/ that is suspended while it writes, and its temporary file."""
    for n in range(12):
        (dataset / f"f{n}.jpg").symlink_to(slow_folder / "0.jpg")
    process = start("dataset", "--size", 32, cwd=tmp_path)
    part = wait_for_part(tmp_path)
    process.send_signal(signal.SIGSTOP)
    yield process, part
    process.kill()


def resume(process):
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err


def test_a_killed_run_does_not_touch_the_file_of_another(stopped, dataset, tmp_path):
    first, part = stopped
    second = start("slow", "--size", 64, cwd=tmp_path)
    leftover = wait_for_part(tmp_path, known=[part])
    second.kill()
    second.communicate()
    assert part.exists() and leftover.exists()
    resume(first)
    assert np.load(tmp_path / "cubism_data.npy").shape == (17, 32, 32, 3)
    assert leftover.exists() and not part.exists()
    assert resize(dataset, tmp_path / "cubism_data.npy", 32) == (17, 0)
    assert sorted(os.listdir(tmp_path)) == ["cubism_data.npy", "dataset", "slow"]


def test_two_runs_on_one_file_both_finish(stopped, dataset, tmp_path):
    first, part = stopped
    assert resize(dataset, tmp_path / "cubism_data.npy", 64) == (17, 0)
    assert part.exists()
    assert np.load(tmp_path / "cubism_data.npy").shape == (17, 64, 64, 3)
    resume(first)
    assert np.load(tmp_path / "cubism_data.npy").shape == (17, 32, 32, 3)
    assert sorted(os.listdir(tmp_path)) == ["cubism_data.npy", "dataset", "slow"]


def test_only_the_leftovers_of_the_same_file_are_removed(dataset, tmp_path):
    for name in (".part-0123456789abcdef-[a]*.npy", f".part-{'f' * 16}-[a]*.npy"):
        (tmp_path / name).write_text("killed")
    (tmp_path / f".part-{'f' * 16}-[a]*.npy").chmod(0)
    kept = [
        f".part-{'0' * 16}-[a]*.npy",  # a folder
        f".part-{'1' * 16}-[a]*.npy",  # a pipe
        f".part-{'2' * 16}-a.npy",
        f".part-{'3' * 16}-[a]*.npy.npy",
        f".part-{'4' * 15}-[a]*.npy",
        "[a]*.npy.part",
    ]
    os.mkfifo(tmp_path / kept[1])
    (tmp_path / kept[0]).mkdir()
    for name in kept[2:]:
        (tmp_path / name).write_text("kept")
    assert run("--output", "[a]*.npy", cwd=tmp_path).returncode == 0
    left = set(os.listdir(tmp_path)) - {f".part-{'f' * 16}-[a]*.npy"}
    assert left == {"[a]*.npy", "dataset", *kept}


def test_without_locks(dataset, tmp_path, monkeypatch):
    def refuse(file, kind):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    other = tmp_path / f".part-{'0' * 16}-out.npy"  # may be a running one's
    other.write_text("other")
    assert resize(dataset, tmp_path / "out.npy") == (5, 0)
    assert sorted(os.listdir(tmp_path)) == sorted(["dataset", "out.npy", other.name])


def test_a_locked_folder_stops_no_run(dataset, tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)  # as art_gan.py does
    assert resize(dataset, tmp_path / "out.npy", 32) == (5, 0)
    os.close(folder)


def test_an_empty_file_of_another_run_is_not_removed(dataset, tmp_path):
    """It may have been made this instant, and not be locked yet."""
    (tmp_path / f".part-{'0' * 16}-out.npy").touch()
    assert resize(dataset, tmp_path / "out.npy", 32) == (5, 0)
    assert len(parts(tmp_path)) == 1


@pytest.mark.parametrize("error", [None, OSError(errno.EINVAL, "Invalid"), KeyboardInterrupt()])
def test_file_and_folder_are_on_the_disk_before_it_is_reported(
    dataset, tmp_path, monkeypatch, error
):
    output, steps, fsync = tmp_path / "out.npy", [], os.fsync

    def record(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append((path.name, path.stat().st_size, output.exists()))
        fsync(descriptor)
        if error and path == tmp_path:
            raise error

    monkeypatch.setattr(os, "fsync", record)
    assert resize(dataset, output, 32) == (5, 0)
    (name, size, existed), (folder_name, _, exists) = steps
    assert image_resizer.PART.fullmatch(name)[1] == "out.npy"
    assert (size, existed) == (output.stat().st_size, False)
    assert (folder_name, exists) == (tmp_path.name, True)


def run_shell(command, cwd):
    """Return the exit code; Python's output is buffered, so that it is also flushed at the end."""
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    return subprocess.run(["sh", "-c", command], cwd=cwd, env=environment, timeout=60).returncode


@pytest.mark.parametrize(
    "shell",
    [
        "{} > /dev/full",
        "{} 2> /dev/full",
        "{} > /dev/full 2>&1",
        "{} 2>&-",
        "{} >&-",
        "{} <&- >&- 2>&-",
        "({}; echo $? > code) | true; exit $(cat code)",
        "({} 2>&1; echo $? > code) | true; exit $(cat code)",
    ],
)
def test_streams_that_fail_do_not_lose_the_file(dataset, tmp_path, capfd, shell):
    (dataset / "C.jpg").touch()
    Image.new("RGB", (64, 64), "red").save(dataset / "z.tif", compression="tiff_adobe_deflate")
    damaged = bytearray((dataset / "z.tif").read_bytes())
    damaged[20] ^= 255  # libtiff itself prints a line about it to descriptor 2
    (dataset / "z.tif").write_bytes(damaged)
    Image.fromarray(COLOUR).save(dataset / "zz.png")

    assert resize(dataset, tmp_path / "expected.npy", 32) == (6, 2)
    assert "ZIPDecode" in capfd.readouterr().err
    command = shlex.join([sys.executable, SCRIPT, "--size", "32"])
    assert run_shell(shell.format(command), tmp_path) == 0
    written = (tmp_path / "cubism_data.npy").read_bytes()
    assert written == (tmp_path / "expected.npy").read_bytes()


@pytest.mark.parametrize("stream", ["2> /dev/full", "2>&-"])
def test_an_error_that_cannot_be_shown_ends_with_1(tmp_path, stream):
    command = shlex.join([sys.executable, SCRIPT, "none"])
    assert run_shell(f"{command} {stream}", tmp_path) == 1


def test_names_that_the_output_cannot_show_do_not_lose_the_file(dataset, tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert run("--output", "ü.npy", cwd=tmp_path, env=environment).returncode == 0
    assert (tmp_path / "ü.npy").exists()


def test_text_that_cannot_be_encoded_does_not_silence_what_follows(dataset, tmp_path):
    (dataset / "ü.png").touch()
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run("--output", "ü.npy", cwd=tmp_path, env=environment)
    assert "skipped 'dataset/\\xfc.png': empty" in done.stderr and "6/6 files" in done.stderr
    assert done.stdout.startswith("\\xfc.npy: float32") and "next: " in done.stdout


def test_say_survives_every_kind_of_stream(monkeypatch, capfd):
    for stream in ("stdout", "stderr"):
        with open(os.devnull) as unwritable:
            for file in (None, io.StringIO(), unwritable):
                monkeypatch.setattr(sys, stream, file)
                image_resizer.say("lost", stream)
        image_resizer.say("lost", stream)  # it is closed
        monkeypatch.undo()
        image_resizer.say("shown", stream)
    assert capfd.readouterr() == ("shown\n", "shown\n")


def test_a_slow_reader_loses_one_text_only():
    code = "import os, image_resizer as r; os.set_blocking(1, False); r.say('x' * 10**6); "
    code += "os.read(0, 1); os.set_blocking(1, True); r.say('last')"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(SCRIPT).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    time.sleep(1)  # the pipe is full
    out, _ = process.communicate(b"go", timeout=30)
    assert process.returncode == 0 and out.endswith(b"last\n")


# Disks that fail


def test_a_folder_that_vanishes_ends_the_run(slow_folder, tmp_path):
    older = tmp_path / "cubism_data.npy"
    older.write_bytes(b"older")
    process = start("slow", cwd=tmp_path)
    wait_for_part(tmp_path, 500_000)
    slow_folder.rename(tmp_path / "unplugged")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1 and out == ""
    assert re.fullmatch(
        r"image_resizer.py: error: cannot read 'slow/\d+.jpg': No such file or directory; "
        r"fix that, or name another",
        err.splitlines()[-1],
    )
    assert older.read_bytes() == b"older" and not parts(tmp_path)


def test_links_whose_disk_vanishes_end_the_run(slow_folder, dataset, tmp_path):
    for n in range(50):
        (dataset / f"z{n}.jpg").symlink_to(slow_folder / "0.jpg")
    process = start(cwd=tmp_path)
    wait_for_part(tmp_path, 500_000)
    slow_folder.rename(tmp_path / "unplugged")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and "error: cannot read 'dataset/z" in err
    assert sorted(os.listdir(tmp_path)) == ["dataset", "unplugged"]


def test_an_input_error_ends_the_run(dataset, tmp_path):
    (dataset / "f.jpg").symlink_to("/proc/self/mem")  # reading its beginning is an input error
    done = run(cwd=tmp_path)
    assert done.returncode == 1 and os.listdir(tmp_path) == ["dataset"]
    error = "cannot read 'dataset/f.jpg': Input/output error; fix that, or name another"
    assert done.stderr.splitlines()[-1] == f"image_resizer.py: error: {error}"


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp"])
def test_an_input_error_in_the_middle_ends_the_run(tmp_path, monkeypatch, suffix):
    """A decoder in C does not say that; so a picture that it calls damaged is read once more."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    options = {"compression": "tiff_lzw"} if suffix == "tif" else {}
    Image.fromarray(noise).save(folder / f"a.{suffix}", **options)
    original = Path.open

    class Broken(io.FileIO):
        def readinto(self, buffer):
            if self.tell() >= 65536:
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(buffer)

        def fileno(self):  # what libtiff reads from: half of the file
            half = tmp_path / "half"
            half.write_bytes((folder / f"a.{suffix}").read_bytes()[:65536])
            return os.open(half, os.O_RDONLY)

    def damaged(path, mode="r", **options):
        if path.parent != folder:
            return original(path, mode, **options)
        return io.BufferedReader(Broken(path), 4096)

    monkeypatch.setattr(Path, "open", damaged)
    with pytest.raises(image_resizer.UserError, match=r"a.*: Input/output error; fix"):
        resize(folder, tmp_path / "x.npy")
    assert os.listdir(tmp_path / "dataset") and not (tmp_path / "x.npy").exists()


def test_a_disk_that_is_too_small_is_known_at_the_start(dataset, tmp_path):
    count = shutil.disk_usage(tmp_path).free // (512 * 512 * 3 * 4) + 1
    if count > 200_000:
        pytest.skip("the disk is too large")
    for n in range(count):
        os.symlink("a.jpg", dataset / f"link{n}.jpg")
    older = tmp_path / "cubism_data.npy"
    older.write_bytes(b"older")
    done = run("--size", 512, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert re.search(
        r"error: cannot write 'cubism_data.npy': [\d.]+ GB do not fit on that disk; fix that, or",
        done.stderr,
    )
    assert older.read_bytes() == b"older"


# What the other programs use


def test_replace_file(tmp_path):
    target = tmp_path / "a.png"
    with image_resizer.replace_file(target) as part:
        assert image_resizer.PART.fullmatch(part.name)[1] == "a.png"
        assert part.parent == tmp_path and part.read_bytes() == b"" and not target.exists()
        part.write_bytes(b"new")
    assert target.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.png"]
    for error in (KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")):
        with pytest.raises(type(error)) as caught, image_resizer.replace_file(target) as part:
            part.write_bytes(b"half")
            raise error
        assert target.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.png"]
    assert caught.value.filename == str(target) and caught.value.errno == errno.ENOSPC
    with pytest.raises(IsADirectoryError) as caught:
        (tmp_path / "folder").mkdir()
        with image_resizer.replace_file(tmp_path / "folder") as part:
            part.write_bytes(b"new")
    assert caught.value.filename == str(tmp_path / "folder") and not parts(tmp_path)
    with pytest.raises(FileNotFoundError) as caught, image_resizer.replace_file(target):
        (tmp_path / "other").open()
    assert caught.value.filename == str(tmp_path / "other")  # not ours: the name stays


def test_reason_is_one_line_and_never_empty():
    for error, words in (
        (OSError(errno.ENOSPC, "No space left on device", "a"), "No space left on device"),
        (ValueError("\n first\nsecond"), "first"),
        (AssertionError(), "AssertionError"),
        (KeyError("a"), "'a'"),
    ):
        assert image_resizer.reason(error) == words
