"""Every file that art_gan.py reads or replaces, damaged in every way: one line, and nothing lost.

Bytes are changed, files cut, emptied and exchanged; files become folders, and folders files.
"""

import json
import re
import shutil

import numpy as np
import pytest
import tiny
from conftest import checkpoints, contents, empty, flip, halve, pictures, refusal, training

from image_resizer import UserError

slow = pytest.mark.slow


def folder_instead(path):
    """A folder, with something in it, in the place of a file."""
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "mine.txt").write_text("not yours")


def file_instead(path):
    """A file in the place of a folder."""
    shutil.rmtree(path, ignore_errors=True)
    path.write_text("not yours")


def random_bytes(path):
    path.write_bytes(np.random.default_rng(0).bytes(3000))


def array_instead(path):
    with open(path, "wb") as file:
        np.save(file, pictures(1))


def archive_instead(path):
    with open(path, "wb") as file:
        np.savez(file, pictures(1))


def flip_early(path):
    flip(path, min(40, path.stat().st_size - 1))


def flip_late(path):
    flip(path, -30)


DAMAGES = (flip, flip_early, flip_late, halve, empty, random_bytes, array_instead, archive_instead)
TRAINING, FINISHED = ("--epochs", 4), ("--epochs", 3)
PAINTING, LOOPING = ("--generate", 1), ("--interpolate", 2)
# What is damaged, and the commands that read it, or write in its place
READ = {
    "checkpoint/00000003.npz": (TRAINING, FINISHED),
    "trained-1.png": (FINISHED, (*TRAINING, "--tensorboard")),
    "training.webp": (FINISHED,),
    "generator.keras": (PAINTING, LOOPING),
    "trained-1.keras": ((*PAINTING, "--from", 1),),
}
WRITTEN = {
    **READ,
    "discriminator.keras": (TRAINING,),
    "generator.keras": (TRAINING, PAINTING),
    "metrics.csv": (TRAINING,),
    "trained-1.png": (FINISHED, TRAINING, (*TRAINING, "--tensorboard")),
    "trained-3.png": (("--epochs", 5),),
    "trained-3.keras": (("--epochs", 5),),
    "checkpoint/00000004.npz": (TRAINING,),
    "art/generator-3-seed0-0001.png": (PAINTING,),
    "art/generator-3-seed0-grid.png": (PAINTING,),
    "interpolation-generator-3-seed0.webp": (LOOPING,),
}
FOLDERS = {
    "checkpoint": (TRAINING, FINISHED),
    "art": (PAINTING, TRAINING),
    "logs": (TRAINING, (*TRAINING, "--tensorboard")),
    ".": (TRAINING, PAINTING, LOOPING),
}


def cases(files):
    return [
        pytest.param(name, command, id=f"{name} {' '.join(map(str, command))}")
        for name, commands in files.items()
        for command in commands
    ]


def check(result, path, output, before):
    """It went well, or ended with one line that names the file; nothing else was lost."""
    said = result.stdout + result.stderr
    assert result.returncode in (0, 1) and "Traceback" not in said, said
    if result.returncode:
        line = refusal(result)
        assert str(path) in line or f"{path}: " in result.stderr, line
    now = contents(output) if output.is_dir() else {}
    assert not [name for name in now if ".part-" in name]
    lost = {name for name in before if name not in now} - {path.relative_to(output).as_posix()}
    assert not {name for name in lost if not name.startswith("checkpoint/")}
    assert len([name for name in now if name.startswith("checkpoint/")]) >= min(
        2, len([name for name in before if name.startswith("checkpoint/")])
    )


@slow
@pytest.mark.parametrize(("name", "command"), cases(READ))
def test_damaged_files_end_nothing_without_their_name(name, command, half, data, output, main):
    for damage in DAMAGES:
        shutil.copytree(half, output, copy_function=shutil.copy)
        path = output / name
        damage(path)
        before = contents(output)
        check(main(*training(data, output, *command)), path, output, before)
        shutil.rmtree(output)


@slow
@pytest.mark.parametrize(("name", "command"), cases(WRITTEN))
def test_folders_in_the_place_of_files(name, command, halfway, data, main):
    path = halfway / name
    path.parent.mkdir(exist_ok=True)
    folder_instead(path)
    before = contents(halfway)
    check(main(*training(data, halfway, *command)), path, halfway, before)
    assert (path / "mine.txt").read_text() == "not yours"


@slow
@pytest.mark.parametrize(("name", "command"), cases(FOLDERS))
def test_files_in_the_place_of_folders(name, command, halfway, data, main):
    path = halfway / name
    file_instead(path)
    before = contents(halfway)
    result = main(*training(data, halfway, *command))
    said = result.stdout + result.stderr
    assert result.returncode in (0, 1) and "Traceback" not in said, said
    if result.returncode:
        # Without its checkpoints, a run's files may be someone else's: the folder is named.
        assert str(path.parent if name == "checkpoint" else path) in refusal(result)
        assert contents(halfway) == before
    assert path.read_text() == "not yours"
    assert before.keys() <= contents(halfway).keys() if halfway.is_dir() else not before


def outcome(read, *arguments):
    """The error of a function for which a file is no reason for any other; None if it is fine."""
    try:
        read(*arguments)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return str(error)
    except OSError as error:
        assert error.filename
        return str(error)
    return None


def test_any_bit_of_the_datas_header(tmp_path):
    """One line that names the file, or data of the same pictures."""
    path = tmp_path / "data.npy"
    np.save(path, pictures(4))
    content = path.read_bytes()
    refused = 0
    for place in range(128):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            error = outcome(tiny.load_data, str(path))
            assert error is None or error.startswith(f"{path}: ")
            refused += error is not None
    assert refused > 500


def test_the_datas_header_cut_anywhere(tmp_path):
    path = tmp_path / "data.npy"
    np.save(path, pictures(4))
    content = path.read_bytes()
    for length in range(0, 200):
        path.write_bytes(content[:length])
        assert outcome(tiny.load_data, str(path)).startswith(f"{path}: ")


def places(path, count=150):
    """Places of a file: some at random, and those of its first and last hundred bytes."""
    size = path.stat().st_size
    ends = [*range(min(100, size)), *range(max(0, size - 100), size)]
    return sorted({*ends[::2], *np.random.default_rng(5).integers(size, size=count).tolist()})


@slow
def test_any_byte_of_a_state(half, output):
    """It is not used, or holds what it held."""
    (output / "checkpoint").mkdir(parents=True)
    path = output / "checkpoint" / "00000003.npz"
    shutil.copy(half / "checkpoint" / path.name, path)
    content, (values, history, settings) = path.read_bytes(), tiny.load_state(output)
    for place in places(path):
        flip(path, place)
        error = outcome(tiny.load_state, output)
        if error is None:
            now, metrics, same = tiny.load_state(output)
            assert same == settings and len(now) == len(values)
            for a, b in zip([*now, metrics], [*values, history], strict=True):
                np.testing.assert_array_equal(a, b)
        else:
            assert error.startswith(f"{output}: every checkpoint is damaged")
        path.write_bytes(content)


@slow
def test_any_byte_of_a_generator(half, tmp_path):
    path = tmp_path / "generator.keras"
    shutil.copy(half / path.name, path)
    content = path.read_bytes()
    for place in places(path):
        flip(path, place)
        error = outcome(tiny.open_generator, path)
        assert error is None or str(path) in error
        path.write_bytes(content)


@slow
@pytest.mark.parametrize("name", ["trained-1.png", "training.webp"])
def test_any_byte_of_a_picture(name, halfway, capsys):
    """A damaged preview is left out, by its name; a damaged time-lapse is made again."""
    path = halfway / name
    content, previews = path.read_bytes(), [halfway / f"trained-{cnt}.png" for cnt in (1, 2)]
    for place in places(path, 50):
        flip(path, place)
        assert outcome(tiny.save_timelapse, halfway / "training.webp", previews) is None
        said = capsys.readouterr()
        assert not said.err or f"warning: {path}: left out (" in said.err
        path.write_bytes(content)


# ---- States that nobody's run has written ---------------------------------------------------


def not_a_record(saved):
    saved["settings"] = json.dumps([1, 2])


def no_json(saved):
    saved["settings"] = "{"


def settings_of_numbers(saved):
    saved["settings"] = np.arange(4)


def with_settings(**changes):
    def change(saved):
        saved["settings"] = json.dumps(json.loads(str(saved["settings"])) | changes)

    return change


def no_settings(saved):
    saved["settings"] = "{}"


def fewer_metrics(saved):
    saved["metrics"] = saved["metrics"][:-1]


def flat_metrics(saved):
    saved["metrics"] = saved["metrics"][0]


def metrics_of_words(saved):
    saved["metrics"] = np.full((3, 4), "word")


def without_metrics(saved):
    del saved["metrics"]


def without_an_array(saved):
    del saved["arr_0"]


def another_shape(saved):
    saved["arr_1"] = np.zeros((3, 3), np.float32)


def array_of_words(saved):
    name = next(n for n, value in saved.items() if n.startswith("arr_") and value.ndim == 2)
    saved[name] = np.full(saved[name].shape, "word")


def array_of_complex_numbers(saved):
    name = next(n for n, value in saved.items() if n.startswith("arr_") and value.ndim == 2)
    saved[name] = saved[name] * 1j


def array_of_long_numbers(saved):
    name = next(n for n, value in saved.items() if n.startswith("arr_") and value.ndim == 2)
    saved[name] = saved[name].astype(np.longdouble)


CRAFTED = {
    change.__name__: change
    for change in (not_a_record, no_json, settings_of_numbers, fewer_metrics, flat_metrics)
}
CRAFTED |= {
    change.__name__: change
    for change in (metrics_of_words, without_metrics, without_an_array, another_shape)
}
CRAFTED |= {
    change.__name__: change
    for change in (no_settings, array_of_words, array_of_complex_numbers, array_of_long_numbers)
}
CRAFTED |= {
    "init is a word": with_settings(**{"--init": "word"}),
    "init is a list": with_settings(**{"--init": [1]}),
    "program is a list": with_settings(program=[{}]),
    "layers are numbers": with_settings(program={"generator": {"layers": [{"config": {}}, 3]}}),
    "layers have no config": with_settings(program={"generator": {"layers": [{}, {}]}}),
    "configs are words": with_settings(program={"generator": {"layers": [{"config": "word"}]}}),
    "names are lists": with_settings(program={"layers": [{"config": {"name": [1]}}]}),
    "variables are a number": with_settings(variables=3),
    "variables are lists": with_settings(variables=[[1]]),
    "deep": with_settings(program=json.loads("[" * 500 + "]" * 500)),
    "the data is a record": with_settings(**{"the data": {"a": {"b": 1}}}),
}


@slow
@pytest.mark.parametrize("job", ["--epochs", "--init"])
@pytest.mark.parametrize("craft", CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_state_ends_in_one_line(craft, job, halfway, data, tmp_path, main):
    for path in checkpoints(halfway):
        with np.load(path) as file:
            saved = {name: file[name] for name in file.files}
        if path.stem == "00000003":
            craft(saved)
            np.savez(path, **saved)
        else:
            path.unlink()
    before = contents(halfway)
    command = training(data, halfway, "--epochs", 4)
    if job == "--init":
        command = training(data, tmp_path / "new", "--epochs", 1, "--init", halfway)
    result = main(*command)
    if result.returncode:
        assert re.search(re.escape(str(halfway)), refusal(result))
        assert contents(halfway) == before
    else:
        assert result.returncode == 0 and "Traceback" not in result.stderr
