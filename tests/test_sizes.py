"""Pictures of other sizes, and grey ones, from the resizer to the paintings."""

import numpy as np
import pytest
from conftest import refusal, training
from helpers_edits import LAST, edited, in_generator
from PIL import Image

import art_gan
import image_resizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def paintings(folder):
    """A folder of colourful pictures, each twice as wide as high."""
    path = folder / "paintings"
    path.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        blots = Image.fromarray(rng.integers(0, 256, (4, 8, 3), np.uint8))
        blots.resize((200, 100)).save(path / f"{number}.png")
    return path


@pytest.fixture(scope="module")
def program(folder):
    return edited(folder)


CASES = {
    "48": (["--size", "48"], (48, 48, 3), "small"),
    "80": (["--size", "80"], (80, 80, 3), "small"),
    "96x128": (["--size", "96x128"], (128, 96, 3), "small"),  # width x height, as of a picture
    "grey": (["--size", "32", "--grey"], (32, 32, 1), "article"),
    "grey, wide": (["--size", "64x40", "--grey", "--crop"], (40, 64, 1), "small"),
}


@pytest.mark.parametrize(("options", "shape", "networks"), CASES.values(), ids=CASES)
def test_such_pictures_are_resized_learned_and_painted(
    options, shape, networks, paintings, program, output, tmp_path, main
):
    data = tmp_path / "data.npy"
    assert image_resizer.main([str(paintings), "--output", str(data), *options]) == 0
    assert np.load(data).shape == (6, *shape)
    program = art_gan if networks == "article" else program
    height, width, channels = shape
    command = training(data, output, "--epochs", 1)
    result = main(*command, program=program)
    assert result.returncode == 0, result.stderr
    assert "6 pictures of " + " x ".join(map(str, shape)) in result.stdout
    # Resumed, so that there are two previews
    assert main(*training(data, output, "--epochs", 3), program=program).returncode == 0

    where = "--output", output
    assert main(*where, "--generate", 2, program=program).returncode == 0
    assert main(*where, "--interpolate", "2,1", program=program).returncode == 0
    mode = "L" if channels == 1 else "RGB"
    grid = (4 + 7 * (width + 4), 4 + 4 * (height + 4))
    sizes = {output / f"trained-{number}.png": grid for number in (1, 2)}
    sizes[output / "art" / "generator-3-seed0-grid.png"] = grid
    sizes[output / "art" / "generator-3-seed0-0002.png"] = (width, height)
    for path, size in sizes.items():
        with Image.open(path) as image:
            assert (image.mode, image.size) == (mode, size)
            pixels = np.asarray(image)
            assert len(np.unique(pixels)) > 10
    with Image.open(output / "training.webp") as image:
        assert image.n_frames == 2
        assert image.width / image.height == pytest.approx(grid[0] / grid[1], abs=0.01)
    with Image.open(output / "interpolation-generator-3-seed0-2-1.webp") as image:
        assert image.size == (width, height)
        assert image.n_frames > 20  # equal ones are one
        first = np.asarray(image.convert("RGB"), float)
    with Image.open(output / "art" / "generator-3-seed0-0002.png") as image:
        assert np.abs(first - np.asarray(image.convert("RGB"))).mean() < 10


@pytest.mark.parametrize(("value", "colour"), [(1.15, 255), (-1.15, 0), (0.0, 127)])
def test_colours_do_not_wrap_around(value, colour, data, output, tmp_path, main):
    """A generator without tanh leaves -1..1."""
    constant = f"    model.add(layers.Rescaling(0.0, offset={value}))\n"
    program = edited(tmp_path, in_generator((LAST, constant + LAST)))
    assert main(*training(data, output, "--epochs", 1), program=program).returncode == 0
    assert main("--output", output, "--generate", 1, program=program).returncode == 0
    picture = np.asarray(Image.open(output / "art" / "generator-1-seed0-0001.png"))
    assert picture.min() == picture.max() == colour
    preview = np.asarray(Image.open(output / "trained-1.png"))
    assert set(np.unique(preview)) == {colour, 255}


def test_data_that_is_scaled_to_0_1_is_refused(output, tmp_path, main):
    """Also where all of it is dark, so that it would fit into -1..1."""
    rng = np.random.default_rng(0)
    for number, largest in enumerate((1, 0.5, 0.2)):
        path = tmp_path / f"{number}.npy"
        np.save(path, rng.uniform(0, largest, (9, 32, 32, 3)).astype(np.float32))
        line = refusal(main(*training(path, output, "--epochs", 1)))
        assert f"{path}: no value is below 0" in line and "image_resizer.py" in line


def test_previews_of_another_size_are_left_out_and_counted(data, output, tmp_path, main):
    command = training(data, output, "--epochs")
    assert main(*command, 3, program=edited(tmp_path)).returncode == 0
    program = edited(tmp_path, ("PREVIEW_ROWS = 4", "PREVIEW_ROWS = 2"))
    result = main(*command, 7, program=program)
    assert result.returncode == 0, result.stderr
    assert "training.webp: 2 previews of another size than the newest are left out" in result.stdout
    with (
        Image.open(output / "trained-4.png") as newest,
        Image.open(output / "training.webp") as all,
    ):
        assert all.size == newest.size == (4 + 7 * 36, 4 + 2 * 36)
        assert all.n_frames == 2


def test_fresh_removes_the_paintings_of_the_run_that_it_removes(data, output, tmp_path, main):
    """Else numbers 3 to 6 of the old run would stand beside 1 and 2 of the new one."""
    program = edited(tmp_path)
    command = training(data, output, "--epochs", 1)
    art = "--output", output, "--generate"
    assert main(*command, program=program).returncode == 0
    assert main(*art, 6, program=program).returncode == 0
    mine = output / "art" / "favourite.png"
    mine.write_bytes(b"mine")
    assert main(*command, "--fresh", "--seed", 1, program=program).returncode == 0
    assert main(*art, 2, program=program).returncode == 0
    names = sorted(path.name for path in (output / "art").iterdir())
    painted = [f"generator-1-seed0-{each}.png" for each in ("0001", "0002", "grid")]
    assert names == ["favourite.png", *painted]
