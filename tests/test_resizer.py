"""Test what image_resizer.py finds in folders, and what it says of each file."""

import errno
import logging
import os
import re
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers_resizer import COLOUR, RAMP, greys, png, resize, run
from PIL import Image

import image_resizer
from image_resizer import UserError

not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")


def test_more_pictures_than_are_in_flight_keep_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(image_resizer, "IN_FLIGHT", 4)
    for value in range(110):
        Image.new("L", (32, 32), value).save(tmp_path / f"{value:03}.png")
        (tmp_path / f"{value:03}.md").touch()
    output = tmp_path / "out.npy"
    assert resize(tmp_path, output, 32) == (110, 0)
    lines = [f"{done}/220 files" for done in range(22, 221, 22)]
    assert capsys.readouterr().err.splitlines() == lines
    values = (np.load(output)[:, 0, 0, 0] + 1) * 127.5
    assert np.array_equal(values.round(), np.arange(110))


def test_broken_pictures_are_named_and_others_ignored(dataset, tmp_path):
    whole = (dataset / "a.jpg").read_bytes()
    (dataset / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (dataset / "cut_without_suffix").write_bytes(whole[: len(whole) // 2])
    (dataset / "empty.PNG").touch()
    (dataset / "text.jpg").write_text("<html>404</html>")
    (dataset / "gone.jpg").symlink_to("nowhere.jpg")
    (dataset / "two\nlines.gif").touch()
    (dataset / "[red].gif").touch()
    (dataset / "bomb.png").write_bytes(png(8, 2, COLOUR[:1], size=(20000, 15000)))
    tags = {256: 1, 257: 1, 277: 10}  # ten samples per pixel, of which Pillow logs an error
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    (dataset / "tags.tif").write_bytes(b"II*\0\x08\0\0\0\x03\0" + entries + bytes(4))
    for name in ("README.md", "draw.py", "notes.txt", ".hidden.jpg", "._a.jpg", ".DS_Store", "e"):
        (dataset / name).write_text("Pictures? P1 #define")
    np.save(dataset / "cubism_data.npy", RAMP)
    for name in ("weights.h5", "weights.hdf5"):
        (dataset / name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    (dataset / "folder.jpg").mkdir()
    os.mkfifo(dataset / "pipe.jpg")

    done = run(cwd=tmp_path)
    assert done.returncode == 0
    lines = [line.split(": ", 1) for line in done.stderr.splitlines() if "skipped" in line]
    unknown = "empty, or not a picture that Pillow knows"
    truncated = [words.pop() for words in lines if "cut" in words[0]]
    assert all(re.fullmatch("image file is truncated .*", words) for words in truncated)
    assert sorted(lines) == [
        ["skipped 'dataset/[red].gif'", unknown],
        ["skipped 'dataset/bomb.png'", "too large: 300 megapixels; shrink it"],
        ["skipped 'dataset/cut.jpg'"],
        ["skipped 'dataset/cut_without_suffix'"],
        ["skipped 'dataset/empty.PNG'", unknown],
        ["skipped 'dataset/gone.jpg'", "a link to nothing that can be read"],
        ["skipped 'dataset/tags.tif'", unknown],
        ["skipped 'dataset/text.jpg'", unknown],
        ["skipped 'dataset/two\\nlines.gif'", unknown],
    ]
    assert done.stdout == (
        "cubism_data.npy: float32 (5, 128, 128, 3), 1.0 MB; 9 files skipped\n"
        "not pictures that Pillow can read: 1 .md, 1 .npy, 1 .py, 1 without a suffix, 1 .txt, "
        "1 .jpg, 1 .h5, 1 .hdf5\n"
        "next: python art_gan.py\n"
    )
    assert np.load(tmp_path / "cubism_data.npy").shape == (5, 128, 128, 3)


@not_root
def test_forbidden_picture_is_skipped(dataset, tmp_path):
    (dataset / "a.jpg").chmod(0)
    done = run(cwd=tmp_path)
    assert "skipped 'dataset/a.jpg': Permission denied\n" in done.stderr
    assert "1 files skipped" in done.stdout


def test_whatever_a_decoder_raises_ends_as_one_line(dataset, tmp_path, monkeypatch, capsys):
    for error, line in (
        (struct.error("first\nsecond"), "first"),
        (AssertionError(), "AssertionError"),
        (EOFError("\n"), "EOFError"),
        (MemoryError(), "MemoryError"),
        (RecursionError("deep"), "deep"),
        (OSError("cut"), "cut"),
        (OSError(errno.EINVAL, "Invalid argument"), "Invalid argument"),
    ):

        def faulty(image, error=error):
            if image.size == (200, 301):
                raise error

        monkeypatch.setattr(image_resizer, "is_misread", faulty)
        assert resize(dataset, tmp_path / "out.npy") == (4, 1)
        assert f"B.jpg': {line}\n" in capsys.readouterr().err


def test_files_that_are_not_pictures_are_counted_by_suffix(dataset, tmp_path):
    for name in ("1.md", "x", "1.heic", "2.HEIC", "y", "3.heic", "b.\x1b[2J\n", "über.dätä"):
        (dataset / name).touch()
    done = run(cwd=tmp_path)
    assert done.stdout.splitlines()[1:] == [
        "not pictures that Pillow can read: 3 .heic, 2 without a suffix, 1 .md, "
        "1 .\\x1b[2j\\n, 1 .dätä",
        "next: python art_gan.py",
    ]


@pytest.fixture
def tree(tmp_path):
    """Return tree/ with pictures on several levels; the grey of each tells which one it is."""
    tree = tmp_path / "tree"
    for grey, name in enumerate(
        (
            "B/z.png",
            "a/b/c.png",
            "a/b.png",
            "a.png",
            "b/a.png",
            ".h/a.png",
            "a/.h/a.png",
            "b/.a.png",
        )
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), grey).save(tree / name)
    (tree / "a" / "notes.md").touch()
    (tree / "b" / "[x].png").touch()
    return tree


@pytest.mark.parametrize("backwards", [False, True])
def test_the_order_of_a_disk_does_not_matter(tmp_path, monkeypatch, backwards):
    """A folder that can be reached in two ways is read under its first name."""
    (tmp_path / "c" / "z").mkdir(parents=True)
    (tmp_path / "c" / "a").symlink_to("z")
    for grey, name in enumerate(("c/z/z.png", "c/m.png", "c/b/b.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (32, 32), grey).save(tmp_path / name)
    walk = os.walk

    def walked(*arguments, **options):
        for parent, folders, names in walk(*arguments, **options):
            folders.sort(reverse=backwards)
            yield parent, folders, names

    monkeypatch.setattr(os, "walk", walked)
    assert resize(tmp_path / "c", tmp_path / "x.npy", recursive=True) == (3, 1)
    assert greys(tmp_path / "x.npy") == [0, 2, 1]


def test_a_linked_folder_that_is_not_read_ends_nothing(tree, tmp_path):
    (tree / "processes").symlink_to("/proc/self")
    done = run("tree", "--size", 32, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_pictures_in_sub_folders_are_counted_and_the_hint_reads_them(tree, tmp_path):
    command = ["tree", "--size", 32, "--output", "my data.npy"]
    done = run(*command, cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "my data.npy: float32 (1, 32, 32, 3), 0.0 MB; 0 files skipped",
        "5 pictures in sub-folders were not read; to read them, use --recursive",
        "next: python art_gan.py --data 'my data.npy'",
    ]
    assert greys(tmp_path / "my data.npy") == [3]
    done = run(*command, "--recursive", cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "my data.npy: float32 (5, 32, 32, 3), 0.1 MB; 1 files skipped",
        "not pictures that Pillow can read: 1 .md",
        "next: python art_gan.py --data 'my data.npy'",
    ]
    assert "skipped 'tree/b/[x].png': empty, or not a picture that Pillow knows\n" in done.stderr
    assert greys(tmp_path / "my data.npy") == [0, 1, 2, 3, 4]


def test_main_changes_nothing_of_the_process(tree, tmp_path):
    output = str(tmp_path / "x.npy")
    before = [signal.getsignal(signal.SIGTERM), logging.getLogger("PIL").level]
    for arguments, count in ((["--recursive", str(tree)], 5), ([str(tree)], 1)):
        assert image_resizer.main([*arguments, "--size", "32", "--output", output]) == 0
        assert len(np.load(output)) == count
    assert [signal.getsignal(signal.SIGTERM), logging.getLogger("PIL").level] == before


def test_links_to_folders_are_read_once(tree, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("L", (32, 32), 99).save(elsewhere / "x.png")
    for link, target in {
        "linked": "../elsewhere",  # read
        "twice": "../elsewhere",  # these are not
        "a/loop": "..",
        "a/above": "../..",
        "aside": "b",
        "a/self": "self",
        "lost": "../nowhere",
    }.items():
        (tree / link).symlink_to(target)
    (elsewhere / "back").symlink_to("../tree")
    (tmp_path / "link").symlink_to("tree")
    for name in ("tree", "link", "link/", str(tree)):
        done = run(name, "--recursive", "--size", 32, cwd=tmp_path)
        assert sorted(greys(tmp_path / "cubism_data.npy")) == [0, 1, 2, 3, 4, 99]
        named = [line.split("'")[1] for line in done.stderr.splitlines() if "a link to a" in line]
        assert len(named) == 5 and {Path(path).name for path in named[:]} >= {"loop", "above"}
        named = [line.split("'")[1] for line in done.stderr.splitlines() if "to nothing" in line]
        assert [Path(path).name for path in named] == ["self", "lost"]
        assert f"; {8} files skipped" in done.stdout
    done = run("tree", "--size", 32, cwd=tmp_path)
    assert greys(tmp_path / "cubism_data.npy") == [3]
    assert "\n6 pictures in sub-folders were not read" in done.stdout


def test_the_articles_folder_as_a_link_to_another_disk(tree, tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "paintings").symlink_to("../tree")
    done = run("--size", 32, cwd=tmp_path)
    assert done.returncode == 1 and "but 6 in sub-folders" in done.stderr
    assert run("--size", 32, "--recursive", cwd=tmp_path).returncode == 0
    assert greys(tmp_path / "cubism_data.npy") == [0, 1, 2, 3, 4]


@not_root
def test_forbidden_sub_folder_is_named_and_counted(tree, tmp_path):
    (tree / "a").chmod(0)
    done = run("tree", "--recursive", "--size", 32, cwd=tmp_path)
    (tree / "a").chmod(0o700)
    assert done.returncode == 0 and "skipped 'tree/a': Permission denied\n" in done.stderr
    assert "2 files skipped" in done.stdout
    assert greys(tmp_path / "cubism_data.npy") == [0, 3, 4]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_sub_folder_that_fails(tree, tmp_path, monkeypatch, capsys, number):
    scandir = os.scandir

    def failing(path):
        if str(path).endswith("a"):
            raise OSError(number, os.strerror(number), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    output = tmp_path / "x.npy"
    if number == errno.EIO:
        with pytest.raises(UserError, match="a': Input/output error; fix that"):
            resize(tree, output, 32, recursive=True)
        assert not output.exists()
    else:
        assert resize(tree, output, 32, recursive=True) == (3, 2)
        assert f"skipped {str(tree / 'a')!r}: Permission denied\n" in capsys.readouterr().err
        assert greys(output) == [0, 3, 4]


def test_plain_lines_are_few(dataset, tmp_path, capsys):
    for n in range(1229):
        (dataset / f"{n}.md").touch()
    assert resize(dataset, tmp_path / "out.npy") == (5, 0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[-1] == "1234/1234 files"


# Words


def test_texts_are_no_pictures(tmp_path):
    (tmp_path / "dataset").mkdir()
    for name, text in {
        "notes": "P1 is the first point, P2 the second",
        "main.c": "#define X 1\nstatic char s[] = {1};\n",
        "main.h": "#define a_width 16\n#define a_height 16\nint x;\n",
        "paper.txt": "%!PS is how PostScript begins",
    }.items():
        (tmp_path / "dataset" / name).write_text(text)
    (tmp_path / "dataset" / "broken.pbm").write_text("P1 is no picture")
    Image.new("L", (8, 8)).save(tmp_path / "dataset" / "a.png")
    done = run(cwd=tmp_path)
    assert [line.split(":")[0] for line in done.stderr.splitlines() if "skip" in line] == [
        "skipped 'dataset/broken.pbm'"
    ]
    assert "1 files skipped\nnot pictures that Pillow can read: 1 .c, 1 .h, 1 " in done.stdout


def test_an_mpo_is_a_picture(dataset, tmp_path):
    (dataset / "broken.mpo").touch()
    Image.new("RGB", (32, 32)).save(dataset / "whole.mpo")
    assert resize(dataset, tmp_path / "x.npy") == (6, 1)


def test_heic_is_named(dataset, tmp_path):
    for name in ("a.heic", "b.jpg"):
        (dataset / name).write_bytes(bytes(3) + b"\x1cftypheic" + bytes(64))
    done = run(cwd=tmp_path)
    for name in ("a.heic", "b.jpg"):
        words = f"skipped 'dataset/{name}': HEIC; pip install pillow-heif, or export it as JPEG\n"
        assert words in done.stderr or image_resizer.is_picture(Path("a.heic"))


def test_lines_of_libtiff_do_not_appear(dataset, tmp_path):
    Image.new("RGB", (64, 64), "red").save(dataset / "z.tif", compression="tiff_adobe_deflate")
    damaged = bytearray((dataset / "z.tif").read_bytes())
    damaged[20] ^= 255
    (dataset / "z.tif").write_bytes(damaged)
    done = run(cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if not line.endswith("/6 files")]
    assert len(lines) == 1 and lines[0].startswith("skipped 'dataset/z.tif': ")
