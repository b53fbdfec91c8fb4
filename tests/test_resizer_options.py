"""Test image_resizer.py's command line: its options, their limits, and what it refuses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers_resizer import SCRIPT, load, run

import image_resizer

not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")


def test_output_size_and_crop_options(dataset, tmp_path):
    done = run("dataset", "--output", "my data.npy", "--size", 64, "--crop", cwd=tmp_path)
    assert done.stdout == (
        "my data.npy: float32 (5, 64, 64, 3), 0.2 MB; 0 files skipped\n"
        "next: python art_gan.py --data 'my data.npy'\n"
    )
    assert done.stderr.splitlines() == [f"{n}/5 files" for n in range(1, 6)]
    array = np.load(tmp_path / "my data.npy")
    cropped = load(dataset / "a.jpg", 64, crop=True)
    assert np.array_equal(array[2], (cropped / 127.5 - 1).astype(np.float32))
    assert sorted(os.listdir(tmp_path)) == ["dataset", "my data.npy"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["none"], "cannot read 'none': No such file or directory; fix that, or name another\n"),
        (["dataset/a.jpg"], "cannot read 'dataset/a.jpg': Not a directory; fix that, or name "),
        (["empty"], "no readable picture in 'empty' (0 skipped); add some\n"),
        (["hollow"], "no readable picture in 'hollow' (0 skipped); add some\n"),
        (["bad"], "no readable picture in 'bad' (1 skipped); add some\n"),
        (["bad", "--recursive"], "no readable picture in 'bad' (1 skipped); add some\n"),
        (["apple"], "no readable picture in 'apple' (0 skipped, 2 .heic, 1 .md); add some\n"),
        (
            ["."],
            "no readable picture in '.' (0 skipped); but 9 in sub-folders: use --recursive\n",
        ),
        (
            ["one deep"],
            "no readable picture in 'one deep' (0 skipped); but 3 in sub-folders: "
            "use --recursive\n",
        ),
        (
            ["dataset", "--output", "no/x.npy"],
            "cannot write 'no/x.npy': No such file or directory; fix that, or name another\n",
        ),
        (
            ["dataset", "--output", "empty"],
            "--output 'empty' is not a .npy file; name one, such as ",
        ),
        (
            ["dataset", "--output", "dataset/e.png"],
            "--output 'dataset/e.png' is not a .npy file; name ",
        ),
        (["dataset", "--output", ""], "--output '' is not a .npy file"),
        (
            ["dataset", "--output", os.devnull],
            f"--output {os.devnull!r} is not a .npy file; name one",
        ),
    ],
)
def test_refusals_are_one_line(dataset, tmp_path, monkeypatch, capsys, arguments, line):
    for path in ("empty", "hollow/inside", "bad", "apple", "one deep/a", "one deep/one/the best"):
        (tmp_path / path).mkdir(parents=True)
    for path in ("apple/README.md", "apple/b.heic", "apple/c.HEIC"):
        (tmp_path / path).touch()
    for path in (
        "bad/x.jpg",
        "one deep/a/x.jpg",
        "one deep/one/the best/x.JPG",
        "one deep/one/the best/y.png",
    ):
        (tmp_path / path).touch()
    (tmp_path / "one deep/a/.hidden.jpg").touch()
    (tmp_path / "one deep/a/weights.h5").touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert image_resizer.main(arguments) == 1
    out, err = capsys.readouterr()
    progress = ("skip", "1/1", "1/3", "2/3", "3/3")
    lines = [line for line in err.splitlines(True) if not line.startswith(progress)]
    assert len(lines) == 1
    assert lines[0].startswith(f"image_resizer.py: error: {line}")
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before


@not_root
@pytest.mark.parametrize("forbidden", ["dataset", "locked"])
def test_forbidden_folders(dataset, tmp_path, forbidden):
    (tmp_path / "locked").mkdir()
    (tmp_path / forbidden).chmod(0)
    done = run("dataset", "--output", "locked/x.npy", cwd=tmp_path)
    (tmp_path / forbidden).chmod(0o700)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "Permission denied; " in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--size", "100"], ["--sise", "64"], ["a", "b"], ["a", "\x1b[31mb"], ["--size", "9" * 5000]],
)
def test_bad_options_end_with_2(tmp_path, arguments):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("image_resizer.py: error: ")
    assert done.stderr.count("\n") == 1 and "\x1b" not in done.stderr


@pytest.mark.parametrize("name", ["picture", "long", "gone"])
def test_outputs_that_cannot_be_written(dataset, tmp_path, name):
    output = {"long": "x" * 300 + ".npy", "gone": "gone/x.npy"}.get(name, f"{name}.npy")
    if name == "picture":
        (tmp_path / output).symlink_to("dataset/a.jpg")
    before = (dataset / "a.jpg").read_bytes()
    done = run("dataset", "--output", output, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("image_resizer.py: er")
    assert "Traceback" not in done.stderr and (dataset / "a.jpg").read_bytes() == before


def test_folders_that_are_nested_too_deeply_are_named(dataset, tmp_path):
    deep = dataset
    for _ in range(600):
        deep = deep / "d"
    os.makedirs(deep)
    done = run("dataset", "--recursive", "--size", 32, cwd=tmp_path)
    assert done.returncode == 0 and "nested too deeply\n" in done.stderr
    assert "1 files skipped" in done.stdout


@not_root
@pytest.mark.parametrize("link", ["secret/a.png", "secret/sub"])
def test_links_into_a_forbidden_folder_are_skipped(dataset, tmp_path, link):
    (tmp_path / "secret" / "sub").mkdir(parents=True)
    (dataset / "z.png").symlink_to(f"../{link}")
    (tmp_path / "secret").chmod(0)
    done = run("dataset", "--size", 32, cwd=tmp_path)
    (tmp_path / "secret").chmod(0o700)
    assert done.returncode == 0 and "skipped 'dataset/z.png': " in done.stderr


def test_the_articles_command_hints_at_the_sample(dataset, tmp_path):
    (tmp_path / "other").mkdir()
    dataset.rename(tmp_path / "other" / "sample")
    (tmp_path / "other").rename(dataset)
    done = run(cwd=tmp_path)
    assert done.stderr.endswith("; but 5 in sub-folders: use --recursive\n")
    assert run("dataset/", "--recursive", cwd=tmp_path).returncode == 0


def test_importing_does_no_work(tmp_path):
    code = f"import sys; sys.path.insert(0, {os.path.dirname(SCRIPT)!r}); import image_resizer"
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert os.listdir(tmp_path) == []


# Sizes and colours


def test_sizes(capsys):
    allowed = [n for n in range(1, 600) if image_resizer.doublings(n, n)]
    assert allowed == [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512]
    assert all(image_resizer.parse_size(str(n)) == (n, n) for n in allowed)
    assert image_resizer.parse_size("96x128") == (128, 96)
    assert image_resizer.doublings(128, 96) == 4 and image_resizer.doublings(512, 32) == 3
    for text, names in {
        "100": "96 or 112",
        "33": "32 or 40",
        "130": "128 or 160",
        "1": "32",
        "9999": "512",
        "100x130": "96x128 or 112x144",
        "127x144": "112x144",
        "20x600": "32x512",
        "128x": "32",
        "-64": "32",
        "six": "32",
        "0x0": "32x32",
    }.items():
        with pytest.raises(SystemExit) as ended:
            image_resizer.main(["none", "--size=" + text])
        line = capsys.readouterr().err.splitlines()[-1]
        problem = f"argument --size: {text!r} is not possible; use {names}"
        assert ended.value.code == 2 and line.endswith(f"error: {problem}")
        assert all(image_resizer.parse_size(name) for name in names.split(" or "))


def test_pictures_that_are_not_square_and_grey(dataset, tmp_path):
    for options, shape in ((["--grey"], (128, 96, 1)), (["--crop"], (128, 96, 3))):
        done = run("dataset", "--size", "96x128", *options, cwd=tmp_path)
        array = np.load(tmp_path / "cubism_data.npy")
        assert array.shape == (5, *shape) and array.dtype == np.float32
        size = array.nbytes / 1e6
        assert done.stdout.startswith(f"cubism_data.npy: float32 {array.shape}, {size:.1f} MB; 0")
        crop = "--crop" in options
        picture = image_resizer.load_picture(dataset / "a.jpg", shape, crop)
        assert np.array_equal(array[2], (picture / 127.5 - 1).astype(np.float32))


@pytest.mark.parametrize(
    ("edit", "code", "words"),
    [
        ("IMAGE_SIZE = 48", 0, "(5, 48, 48, 3), 0.1 MB"),
        ('IMAGE_SIZE = "96x128"', 0, "(5, 128, 96, 3), 0.7 MB"),
        ("IMAGE_SIZE = 100", 2, "error: argument --size: '100' is not possible; use 96 or 112\n"),
        ("IMAGE_CHANNELS = 1", 0, "(5, 128, 128, 1), 0.3 MB"),
        ("IMAGE_CHANNELS = 4", 1, "error: IMAGE_CHANNELS is 4; use 3, or 1 for grey pictures\n"),
    ],
)
def test_edited_constants(dataset, tmp_path, edit, code, words):
    name = edit.split(" = ")[0]
    script, count = re.subn(f"^{name} = .*", edit, Path(SCRIPT).read_text(), flags=re.M)
    (tmp_path / "edited.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "edited.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert count == 1 and done.returncode == code and words in done.stdout + done.stderr
    if code == 0:
        shape = np.load(tmp_path / "cubism_data.npy", mmap_mode="r").shape
        assert f"float32 {shape}, " in done.stdout
