"""Previews, the time-lapse, and what --generate and --interpolate paint."""

import fcntl
import json
import os
import re
import shutil
import signal
import struct
import zipfile
import zlib

import keras
import numpy as np
import pytest
import tiny
from conftest import (
    ART_GAN,
    contents,
    halve,
    leftovers,
    part,
    python,
    refusal,
    script,
    training,
)
from PIL import ExifTags, Image

import art_gan

pytestmark = pytest.mark.slow


def images(folder):
    return {path.name: np.asarray(Image.open(path)) for path in folder.iterdir()}


def frames_of(path):
    """The frames of an animation, each as often as it is shown for INTERPOLATION_MS."""
    frames = []
    with Image.open(path) as animation:
        assert animation.is_animated and animation.info["loop"] == 0
        for number in range(animation.n_frames):
            animation.seek(number)
            frame = np.asarray(animation.convert("RGB"), float)
            # The encoder shows a frame for longer instead of another that looks like it.
            frames += [frame] * (animation.info["duration"] // art_gan.INTERPOLATION_MS)
    return frames


# ---- New pictures ---------------------------------------------------------------------------


def test_the_example_paints_the_readmes_picture(tmp_path):
    """Byte for byte on one kind of processor; on others, sums round another way here and there."""
    example = ART_GAN.parent / "output" / "example.png"
    _, paint = art_gan.open_generator(example.with_suffix(".keras"))
    noise = art_gan.random_noise(art_gan.PREVIEW_COUNT, 0, art_gan.PREVIEW_NOISE)
    art_gan.save_images(tmp_path / "painted.png", paint(noise))
    wanted, painted = (
        np.asarray(Image.open(path), int) for path in (example, tmp_path / "painted.png")
    )
    assert wanted.shape == painted.shape == (276, 480, 3)
    assert abs(wanted - painted).max() <= 1 and (wanted != painted).mean() < 1e-4


def test_new_pictures(generator, main):
    (generator / "art").mkdir()
    part(generator / "art" / "generator-2-seed3-0001.png")
    mine = part(generator / "art" / "mine.png")
    assert main("--generate", 30, "--output", generator, "--seed", 3).returncode == 0
    assert leftovers(generator) == [mine.name]
    mine.unlink()
    first = images(generator / "art")
    names = [f"generator-3-seed3-{number:04}.png" for number in range(1, 31)]
    grid = "generator-3-seed3-grid.png"
    assert sorted(first) == [*names, grid]
    for number, name in enumerate(names):
        assert first[name].shape == (32, 32, 3)
        top, left = (4 + 36 * place for place in divmod(number, 7))
        if number < 28:
            place = first[grid][top : top + 32, left : left + 32]
            np.testing.assert_array_equal(place, first[name])
    assert len({picture.tobytes() for picture in first.values()}) == 31
    assert first[grid].shape == (4 + 4 * 36, 4 + 7 * 36, 3)

    shutil.rmtree(generator / "art")
    assert main("--generate", 2, "--output", generator, "--seed", 3).returncode == 0
    again = images(generator / "art")
    assert main("--generate", 2, "--output", generator, "--seed", 4).returncode == 0
    other = images(generator / "art")
    for name in names[:2]:
        np.testing.assert_array_equal(again[name], first[name])
        assert (other[name.replace("seed3", "seed4")] != first[name]).any()


def test_new_pictures_by_the_command(generator, tmp_path):
    result = script("--generate", 2, "--output", generator, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "2 pictures and a grid in" in result.stdout
    assert sorted(path.name for path in generator.iterdir()) == ["art", "generator.keras"]
    names = [f"generator-3-seed0-{end}.png" for end in ("0001", "0002", "grid")]
    assert sorted(images(generator / "art")) == names


def test_ten_painters_at_once_all_paint(generator, start, main):
    """They wait for each other, and none removes what another one is writing."""
    painters = [
        start("--generate", 3, "--output", generator, "--seed", seed, folder=generator)
        for seed in range(10)
    ]
    assert [painter.wait() for painter in painters] == [0] * 10
    assert len(images(generator / "art")) == 40 and not leftovers(generator)


def test_a_painter_says_that_it_waits(generator, start):
    (generator / "art").mkdir()
    lock = os.open(generator / "art", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    painter = start("--generate", 1, "--output", generator, folder=generator)
    painter.wait_for("waiting until another command has painted there")
    os.close(lock)
    assert painter.wait() == 0


def test_loops_through_many_pictures_have_names_of_their_own(generator, main, monkeypatch):
    monkeypatch.setattr(tiny, "INTERPOLATION_STEPS", 1)
    for last in (71, 72):
        numbers = ",".join(map(str, [*range(100, 170), last]))
        assert main("--interpolate", numbers, "--output", generator).returncode == 0
    loops = list(generator.glob("interpolation-*.webp"))
    assert len(loops) == 2
    assert main("--generate", 1, "--output", generator).returncode == 0
    assert all(art_gan.FRESH_FILES.fullmatch(path.name) for path in loops)


def test_painting_while_a_run_trains(data, output, start, main):
    process = start(*training(data, output, "--checkpoint-seconds", 0))
    process.poll((output / "generator.keras").exists)
    assert main("--generate", 1, "--output", output).returncode == 0
    assert process.process.is_alive()


def test_painting_with_the_generator_of_a_preview(half, generator, main, tmp_path):
    for cnt in (1, 2):
        shutil.copy(half / f"trained-{cnt}.keras", generator)
    shutil.copy(half / "trained-1.keras", tmp_path / "of a friend.keras")
    sources = [(), ("--from", 1), ("--from", 2), ("--from", tmp_path / "of a friend.keras")]
    for source in sources:
        assert main("--generate", 1, "--output", generator, *source).returncode == 0
        assert main("--interpolate", 2, "--output", generator, *source).returncode == 0
    art = images(generator / "art")
    stems = ("generator-3", "trained-1", "trained-2", "of_a_friend")
    names = [f"{stem}-seed0-0001.png" for stem in stems]
    # The second preview was painted after three iterations, as the newest generator.
    assert set(names) <= set(art) and len({art[name].tobytes() for name in names}) == 2
    assert {path.name for path in generator.glob("*.webp")} == {
        f"interpolation-{stem}-seed0.webp" for stem in stems
    }
    line = refusal(main("--generate", 1, "--output", generator, "--from", 63))
    assert line.endswith("trained-63.keras: no such generator; --from can be 1, 2")
    missing = tmp_path / "missing.keras"
    line = refusal(main("--generate", 1, "--output", generator, "--from", missing))
    assert f"{missing}: no " in line


def test_a_loop_through_new_pictures(generator, main):
    blocks = keras.Sequential(name="generator-3")  # large ones, which a .webp keeps
    blocks.add(keras.Input((100,)))
    blocks.add(keras.layers.Dense(48, activation="tanh", kernel_initializer="random_normal"))
    blocks.add(keras.layers.Reshape((4, 4, 3)))
    blocks.add(keras.layers.UpSampling2D(8))
    blocks.save(generator / "generator.keras")
    options = ("--output", generator, "--seed", 3)
    assert main("--interpolate", 2, *options).returncode == 0
    assert main("--interpolate", "1,2,5", *options).returncode == 0
    assert main("--generate", 5, *options).returncode == 0
    loops = {"": (1, 2), "-1-2-5": (1, 2, 5)}
    for name, numbers in loops.items():
        frames = frames_of(generator / f"interpolation-generator-3-seed3{name}.webp")
        assert len(frames) == len(numbers) * art_gan.INTERPOLATION_STEPS
        assert frames[0].shape == (32, 32, 3)
        steps = [np.abs(a - b).mean() for a, b in zip(frames, frames[1:] + frames[:1], strict=True)]
        across = np.abs(frames[0] - frames[art_gan.INTERPOLATION_STEPS]).mean()
        assert max(steps) < across / 2  # the last step, back to the first frame, included
        for place, number in enumerate(numbers):  # it passes through the pictures of the same seed
            path = generator / "art" / f"generator-3-seed3-{number:04}.png"
            picture = np.asarray(Image.open(path), float)
            frame = frames[art_gan.INTERPOLATION_STEPS * place]
            assert np.abs(frame - picture).mean() < np.abs(frame - frames[15]).mean()


def test_new_pictures_from_another_noise_size(tmp_path, main):
    art_gan.build_generator(2, (32, 64, 1)).save(tmp_path / "generator.keras")
    assert main("--generate", 1, "--output", tmp_path).returncode == 0
    assert main("--interpolate", 2, "--output", tmp_path).returncode == 0
    assert images(tmp_path / "art")["generator-seed0-0001.png"].shape == (32, 64)


# ---- Generators that are none ---------------------------------------------------------------


@pytest.mark.parametrize("job", ["--generate", "--interpolate"])
def test_no_generator(job, main, tmp_path):
    line = refusal(main(job, 2, "--output", tmp_path / "none"))
    assert "generator.keras: no trained generator; train one first" in line
    assert not (tmp_path / "none").exists()
    (tmp_path / "generator.keras").write_bytes(b"no zip archive")
    assert "generator.keras: cannot be used (" in refusal(main(job, 2, "--output", tmp_path))
    (tmp_path / "generator.keras").rename(tmp_path / "trained-63.keras")
    line = refusal(main(job, 2, "--output", tmp_path))
    assert line.endswith("generator.keras: no such generator; --from can be 63")


def several_inputs():
    one, other = keras.Input((100,)), keras.Input((100,))
    return keras.Model([one, other], keras.layers.Add()([one, other]))


def several_outputs():
    noise = keras.Input((100,))
    picture = keras.layers.Reshape((10, 10, 1))(noise)
    return keras.Model(noise, [picture, picture])


def of_layers(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


NOT_GENERATORS = {
    "a classifier": lambda: tiny.build_discriminator((32, 32, 3)),
    "pictures to pictures": lambda: of_layers((32, 32, 3), keras.layers.Activation("tanh")),
    "vectors": lambda: of_layers((100,), keras.layers.Dense(3)),
    "two channels": lambda: of_layers((8,), keras.layers.Reshape((2, 2, 2))),
    "several inputs": several_inputs,
    "several outputs": several_outputs,
    "any length of noise": lambda: of_layers((None,), keras.layers.Reshape((-1, 2, 1))),
    "words": lambda: of_layers((), keras.layers.Identity()),
}


@pytest.mark.parametrize("job", ["--generate", "--interpolate"])
@pytest.mark.parametrize("make", NOT_GENERATORS.values(), ids=NOT_GENERATORS)
def test_what_is_no_generator_is_refused(make, job, main, output):
    output.mkdir()
    make().save(output / "generator.keras")
    line = refusal(main(job, 2, "--output", output))
    assert f"{output / 'generator.keras'}: cannot be used (not a generator: it does" in line
    assert [path.name for path in output.iterdir()] == ["generator.keras"]


def of_bytes():
    noise = keras.Input((8,))
    x = keras.layers.Reshape((2, 2, 3))(keras.layers.Dense(12, activation="sigmoid")(noise))
    return keras.Model(noise, keras.ops.cast(255 * x, "uint8"))


def for_one_picture():
    noise = keras.Input((12,))
    return keras.Model(noise, keras.ops.reshape(noise, (1, 2, 2, 3)))


def too_bright():
    model = of_layers((8,), keras.layers.Dense(12), keras.layers.Reshape((2, 2, 3)))
    model.set_weights([np.full_like(weights, 3e38) for weights in model.get_weights()])
    return model


@pytest.mark.parametrize("make", [of_bytes, for_one_picture, too_bright])
def test_a_generator_that_paints_no_pictures_is_refused(make, main, output):
    output.mkdir()
    make().save(output / "generator.keras")
    refusal(main("--generate", 2, "--output", output))
    assert not list(output.glob("art/*"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_generator_whose_weights_are_not_finite_is_refused(value, generator, main):
    model = keras.models.load_model(generator / "generator.keras")
    kernel, bias = model.get_weights()
    kernel[3, 5] = value
    model.set_weights([kernel, bias])
    model.save(generator / "generator.keras")
    line = refusal(main("--generate", 1, "--output", generator))
    assert "generator.keras: cannot be used (it holds weights that are not finite" in line
    assert [path.name for path in generator.iterdir()] == ["generator.keras"]


NAMES = ["with spaces", "accentué", "コン", "escape\x1b[31m", "line\nbreak", "-x", "_", "%s {0}"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_layers_of_any_name_paint(name, output, main):
    """... or are refused in one line, without control characters on the terminal."""
    output.mkdir()
    model = of_layers((9,), keras.layers.Dense(12, name=name), keras.layers.Reshape((2, 2, 3)))
    model.save(output / "generator.keras")
    result = main("--generate", 1, "--output", output)
    assert result.returncode == 0 or refusal(result)
    assert result.returncode == 0 or not name.isprintable()
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", result.stdout + result.stderr)


@pytest.mark.parametrize(
    "name", [*NAMES, "nul\x00", "../../evil", "/etc/evil", "x" * 300, "."], ids=ascii
)
def test_a_generators_name_stays_in_the_folder(name, output, main, tmp_path):
    output.mkdir()
    model = of_layers((9,), keras.layers.Dense(12), keras.layers.Reshape((2, 2, 3)))
    model.save(output / "generator.keras")
    with zipfile.ZipFile(output / "generator.keras") as archive:
        files = {each: archive.read(each) for each in archive.namelist()}
    config = json.loads(files["config.json"])
    config["config"]["name"] = name
    files["config.json"] = json.dumps(config)
    with zipfile.ZipFile(output / "generator.keras", "w") as archive:
        for each, content in files.items():
            archive.writestr(each, content)
    for job in ("--generate", "--interpolate"):
        result = main(job, 2, "--output", output)
        assert result.returncode == 0 or refusal(result)
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", result.stdout + result.stderr)
    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} <= {
        output,
        output / "art",
    }


def test_the_generator_of_a_newer_keras(generator, main):
    """One line, without the advice to install the Keras that the file names."""
    path = generator / "generator.keras"
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    config["config"]["layers"][1]["config"]["brand_new_option"] = 1
    files["config.json"] = json.dumps(config)
    files["metadata.json"] = json.dumps({"keras_version": "9.8.7"})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    line = refusal(main("--generate", 1, "--output", generator))
    assert "brand_new_option" in line and "9.8.7" not in line and "install" not in line


# ---- Previews and the time-lapse ------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_each_preview_keeps_the_generator_that_painted_it(
    precision, whole, data, output, start, main, tmp_path
):
    """... also after a kill and a resume. Painted again, it gives the same file."""
    if precision == "float32":
        output = whole[0]
    else:
        options = training(data, output, "--epochs", 6, "--precision", precision)
        options += ["--checkpoint-seconds", 0]
        process = start(*options, signals={"trained-3.keras": signal.SIGKILL})
        assert process.wait() == -signal.SIGKILL
        assert main(*options).returncode == 0
    noise = art_gan.random_noise(art_gan.PREVIEW_COUNT, 0, art_gan.PREVIEW_NOISE)
    previews = sorted(path.stem for path in output.glob("trained-*.png"))
    assert previews == ["trained-1", "trained-2", "trained-3"]
    for number, name in enumerate(previews):
        generator = keras.models.load_model(output / f"{name}.keras")
        assert generator.name == f"generator-{2 * number + 1}"
        art_gan.save_images(tmp_path / "again.png", art_gan.build_painter(generator)(noise))
        assert (tmp_path / "again.png").read_bytes() == (output / f"{name}.png").read_bytes()


def test_the_articles_previews_are_painted_by_their_generators(data, output, main, tmp_path):
    """The same, with the article's networks."""
    assert main(*training(data, output, "--epochs", 1), program=art_gan).returncode == 0
    noise = art_gan.random_noise(art_gan.PREVIEW_COUNT, 0, art_gan.PREVIEW_NOISE)
    generator = keras.models.load_model(output / "trained-1.keras")
    art_gan.save_images(tmp_path / "again.png", art_gan.build_painter(generator)(noise))
    assert (tmp_path / "again.png").read_bytes() == (output / "trained-1.png").read_bytes()
    shutil.rmtree(output)


def test_the_time_lapse(whole, tmp_path):
    with Image.open(whole[0] / "training.webp") as animation:
        assert animation.size == (4 + 7 * 36, 4 + 4 * 36)
    paths = [tmp_path / f"trained-{cnt}.png" for cnt in (1, 2, 3)]
    for seed, path in enumerate(paths):
        colours = np.random.default_rng(seed).integers(256, size=(4, 7, 3)).astype(np.uint8)
        Image.fromarray(colours.repeat(36, 0).repeat(36, 1)).save(path)
    art_gan.save_timelapse(tmp_path / "training.webp", paths)
    with Image.open(tmp_path / "training.webp") as animation:
        assert (animation.n_frames, animation.size) == (3, (7 * 36, 4 * 36))
        for number, path in enumerate(paths):
            animation.seek(number)
            frame = np.asarray(animation.convert("RGB"), float)
            assert np.abs(frame - np.asarray(Image.open(path), float)).mean() < 12


def previews(folder, *colours, size=(8, 8)):
    paths = [folder / f"trained-{number}.png" for number in range(1, len(colours) + 1)]
    for path, colour in zip(paths, colours, strict=True):
        Image.new("RGB", size, (colour, 0, 0)).save(path)
    return paths


def reds(path):
    """The red of each frame."""
    with Image.open(path) as animation:
        found = []
        for number in range(animation.n_frames):
            animation.seek(number)
            found.append(animation.convert("RGB").getpixel((4, 4))[0])
        return found


def test_the_time_lapse_of_many_or_no_previews(tmp_path, monkeypatch):
    """Of too many it shows some, the first and the last among them."""
    path = tmp_path / "training.webp"
    art_gan.save_timelapse(path, [tmp_path / "trained-1.png"])
    assert not path.exists()
    monkeypatch.setattr(art_gan, "TIMELAPSE_FRAMES", 3)
    art_gan.save_timelapse(path, previews(tmp_path, 40, 80, 120, 160, 200, 240))
    first, _, last = reds(path)
    assert abs(first - 40) < 12 and abs(last - 240) < 12


def test_the_time_lapse_is_made_again_when_its_previews_are_others(tmp_path):
    """Not by their dates: those of copies say nothing."""
    path = tmp_path / "training.webp"
    paths = previews(tmp_path, 0, 100, 200)
    art_gan.save_timelapse(path, paths)
    with Image.open(path) as animation:
        assert "checksum" in animation.getexif()[ExifTags.Base.ImageDescription]
    before = contents(tmp_path)
    for each in paths:
        each.touch()
    art_gan.save_timelapse(path, paths)
    assert contents(tmp_path)["training.webp"] == before["training.webp"]
    Image.new("RGB", (8, 8), (50, 0, 0)).save(paths[2])
    art_gan.save_timelapse(path, paths)
    assert abs(reds(path)[2] - 50) < 12
    paths[1].unlink()
    art_gan.save_timelapse(path, paths)
    assert len(reds(path)) == 2
    halve(path)
    art_gan.save_timelapse(path, paths)
    assert len(reds(path)) == 2


def test_previews_that_do_not_fit_are_left_out_of_the_time_lapse(tmp_path, capsys):
    """Damaged ones, those that are huge when opened, and those of another size."""
    path = tmp_path / "training.webp"
    paths = previews(tmp_path, 0, 50, 100, 150, 200)
    halve(paths[1])
    Image.new("RGB", (9, 8)).save(paths[2])
    paths[3].write_bytes(bomb(40_000, 40_000))
    art_gan.save_timelapse(path, paths)
    assert len(reds(path)) == 2
    said = capsys.readouterr()
    for damaged in (paths[1], paths[3]):
        assert f"warning: {damaged}: left out (" in said.err
    assert f"{path}: 1 previews of another size than the newest are left out" in said.out


def bomb(width, height):
    """A small file of a picture that needs gigabytes once it is opened."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("damage", [halve, lambda path: path.write_bytes(bomb(40_000, 40_000))])
def test_a_damaged_preview_ends_no_run(damage, halfway, data, main):
    """Neither when the time-lapse is made, nor in the TensorBoard log, also when resumed again."""
    damage(halfway / "trained-1.png")
    for epochs in (4, 5, 5):
        result = main(*training(data, halfway, "--epochs", epochs, "--tensorboard"))
        assert result.returncode == 0, result.stderr
        assert f"warning: {halfway / 'trained-1.png'}: left out (" in result.stderr


def test_an_animation_shows_every_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), (5 * number, 0, 200)) for number in range(50)]
    art_gan.save_animation(tmp_path / "a.webp", frames, 40, "")
    found = reds(tmp_path / "a.webp")
    assert len(found) == 50 and all(abs(red - 5 * n) < 12 for n, red in enumerate(found))
    art_gan.save_animation(tmp_path / "a.webp", frames[:1], 40, "")
    assert len(reds(tmp_path / "a.webp")) == 1


def test_the_generator_opens_without_this_project(half, data, output, tmp_path, main):
    """Also that of a mixed_bfloat16 run, with nothing but float32 in it."""
    options = training(data, output, "--epochs", 1, "--precision", "mixed_bfloat16")
    result = main(*options, program=art_gan)
    assert result.returncode == 0 and "in mixed_bfloat16" in result.stdout
    code = """
import sys, keras, numpy
for path in sys.argv[1:]:
    model = keras.models.load_model(path)
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    pictures = model.predict(numpy.zeros((5, 100), "float32"), verbose=0)
    assert pictures.shape == (5, 32, 32, 3) and pictures.dtype == "float32"
    assert abs(pictures).max() <= 1
"""
    paths = [folder / "generator.keras" for folder in (half, output)]
    env = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1", "PATH": "/usr/bin:/bin"}
    result = python("-c", code, *paths, cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    shutil.rmtree(output)
