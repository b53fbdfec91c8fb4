"""Edits of art_gan.py that cannot work end the run in one line, before anything is trained.

Every test edits a copy of the script as its users do, and calls its main().
"""

import shutil

import pytest
from conftest import contents, python, refusal, training
from helpers_edits import (
    COMBINED,
    LABEL,
    LABELS,
    LAST,
    OPTIMIZER,
    RETURN,
    edited,
    in_discriminator,
    in_generator,
    in_iteration,
    write_edited,
)
from test_edits import AVERAGE, OWN_LAYER, OWN_MODEL, TWO_OPTIMIZERS

pytestmark = pytest.mark.slow

FREEZE = "discriminator.trainable = False\n"
START = "        run.start()\n"
BRANCH = """\
def build_discriminator(image_shape):
    image = keras.Input(image_shape)
    x = layers.Conv2D(8, kernel_size=3, strides=4, padding="same")(image)
    y = layers.Conv2D(8, kernel_size=3, strides=4, padding="same", name="side")(image)
    x = layers.Concatenate()([x, keras.ops.stop_gradient(y)])
    x = layers.Dense(1, activation="sigmoid", dtype="float32")(layers.Flatten()(x))
    return keras.Model(image, x)
"""
UNUSED = OWN_MODEL.replace(
    "        self.dense.build(shape)\n",
    "        self.dense.build(shape)\n        self.other = layers.Dense(3)\n"
    "        self.other.build(shape)\n",
)
NO_CONFIG = OWN_LAYER[: OWN_LAYER.index("    def get_config")] + in_generator(
    (LAST, f"    model.add(Scale(lambda: 0.9))\n{LAST}")
)
NO_CONFIG = NO_CONFIG.replace("self.factor * x", "self.factor() * x")
DIRECT = (
    OWN_MODEL[: OWN_MODEL.index("    noise = keras.Input")] + "    return Painter(image_shape)\n"
)
OWN_SCHEDULE = (
    "type('Warm', (keras.optimizers.schedules.LearningRateSchedule,), "
    "{'__call__': lambda self, step: 1e-3})"
)
FACTOR = ' | {"factor": self.factor}'
REGISTER = "@keras.saving.register_keras_serializable()\n"

BROKEN = {
    # State that would be lost
    "an optimizer that is not returned": [
        [*TWO_OPTIMIZERS, (RETURN, "return iteration, fast")],
        "variables that are not saved",
    ],
    "an average that is not returned": [AVERAGE, "variables that are not saved"],
    "keras.random without a seed": [
        [in_iteration("y_real = keras.random.uniform((4, 1), 0.8, 1.0)")],
        "SeedGenerator",
    ],
    "tf.random": [[in_iteration("y_real = tf.random.uniform((4, 1), 0.8, 1.0)")], "tf.random"],
    "numpy.random": [
        [in_iteration("y_real = np.random.uniform(0.8, 1.0, (4, 1))")],
        "would be drawn once",
    ],
    "numpy.random.default_rng": [
        [
            (LABEL, f"{LABEL}    rng = np.random.default_rng(1)\n"),
            in_iteration("y_real = rng.uniform(0.8, 1.0, (4, 1))"),
        ],
        "would be drawn once",
    ],
    "every second iteration": [
        [
            (LABEL, f"{LABEL}    steps = itertools.count()\n"),
            in_iteration("y_real = 0.9 if next(steps) % 2 else 1.0"),
        ],
        "would be drawn once",
    ],
    "numpy.random in an operation": [
        [
            in_iteration(
                "add = tf.numpy_function(lambda: np.float32(np.random.rand()), [], tf.float32)\n"
                "add.set_shape(())\n"
                "x_real += 0.1 * add"
            )
        ],
        "PyFunc",
    ],
    "tf.random of another distribution": [
        [in_iteration("noise += tf.random.truncated_normal((4, 100))")],
        "tf.random",
    ],
    "tf.random in another function": [
        [in_iteration("noise += tf.function(lambda: tf.random.normal((4, 100)))()")],
        "tf.random",
    ],
    # Iterations that would fail later
    "five metrics": [
        [("fooled], axis=0)", "fooled, [0.0]], axis=0)")],
        "has to return 4 numbers",
    ],
    "no metrics": [[("        return tf.concat([0.5", "        _ = tf.concat([0.5")], "4 numbers"],
    "nothing beside the optimizer": [[(RETURN, f"{RETURN}, None")], "NoneType"],
    "a schedule without get_config": [
        [(OPTIMIZER, f"schedule = {OWN_SCHEDULE}\n    optimizer = FusedAdam(schedule())")],
        "get_config",
    ],
    # Networks that would not learn
    "frozen in build_discriminator": [
        [in_discriminator((LAST, f"    model.trainable = False\n{LAST}"))],
        "no weight of the discriminator is trainable",
    ],
    "frozen in build_combined": [
        [("    noise = keras.Input(generator", f"    {FREEZE}    noise = keras.Input(generator")],
        "no weight of the discriminator is trainable",
    ],
    "frozen before build_combined": [
        [(COMBINED, f"    {FREEZE}{COMBINED}")],
        "remove `trainable = False`",
    ],
    "frozen after build_combined": [
        [(LABEL, f"{LABEL}    {FREEZE}")],
        "no weight of the discriminator is trainable",
    ],
    "noise of another size": [
        [in_generator(("keras.Input((noise_size,))", "keras.Input((50,))"))],
        "takes noise of (50,), NOISE_SIZE is 100",
    ],
    # What draws and what paints
    "a typo in draw_batch": [
        [("    return [x_real, noise_from(rng,", "    return [x_reel, noise_from(rng,")],
        ["art_gan.py, line ", "x_reel"],
    ],
    "noise of another shape": [
        [("noise_from(rng, batch_size, NOISE_SIZE)", "noise_from(rng, batch_size, 50)")],
        "art_gan.py, line ",
    ],
    "batches from numpy's own state": [
        [
            (
                "    return [x_real,",
                "    x_real += np.random.rand(1).astype('f4')\n    return [x_real,",
            )
        ],
        "draw_batch has to draw the same again",
    ],
    "a typo in save_images": [
        [
            (
                "        row, col = divmod(image_count, PREVIEW_COLS)",
                "        row, col = divmod(count, 7)",
            )
        ],
        ["art_gan.py, line ", "'count'"],
    ],
    "frozen in train": [
        [(START, f"        run.networks['discriminator'].trainable = False\n{START}")],
        "no weight of the discriminator is trainable",
    ],
    "frozen generator": [
        [(LABEL, f"{LABEL}    generator.trainable = False\n")],
        "no weight of the generator is trainable",
    ],
    "stopped gradient": [
        [
            (
                "discriminator(generator(noise))",
                "discriminator(keras.ops.stop_gradient(generator(noise)))",
            )
        ],
        "no gradient reaches generator/dense",
    ],
    "stopped branch": [[BRANCH], "no gradient reaches side/kernel, side/bias"],
    "unused layer": [[UNUSED], "no gradient reaches"],
    # Networks of another shape
    "a larger picture": [
        [in_generator(("UpSampling2D(4)", "UpSampling2D(8)"))],
        ("(64, 64, 3)", "(32, 32, 3)"),
    ],
    "a grey picture": [[in_generator(("(channels,", "(1,"))], ("(32, 32, 1)", "(32, 32, 3)")],
    "a dense layer of another size": [
        [in_generator(("* 8, activation", "* 9, activation"))],
        ("art_gan.py, line", "Reshape"),
    ],
    "more labels than pictures": [
        [(LABELS, "Y_REAL, Y_FAKE = np.full((32, 1), 0.9), np.zeros((32, 1))")],
        ("32", "4"),
    ],
    "a name that is not there": [[in_generator(('"relu"', "rellu"))], ("line", "rellu")],
    # Networks that could not be opened again
    "Lambda": [
        [in_generator((LAST, f"    model.add(layers.Lambda(lambda x: 0.9 * x))\n{LAST}"))],
        ("the generator", "Lambda"),
    ],
    "Lambda in the discriminator": [
        [in_discriminator((LAST, f"    model.add(layers.Lambda(lambda x: 0.9 * x))\n{LAST}"))],
        ("the discriminator", "Lambda"),
    ],
    "unregistered layer": [
        [OWN_LAYER.replace(REGISTER, "")],
        ("Could not locate class 'Scale'", "register_keras_serializable"),
    ],
    "a layer without get_config": [[NO_CONFIG], "get_config"],
    "a layer that forgets a setting": [
        [OWN_LAYER.replace("factor, **", "factor=0.5, **").replace(FACTOR, "")],
        ("the generator", "computes something else", "get_config"),
    ],
    "a layer with random numbers": [
        [
            OWN_LAYER.replace("self.factor * x", "self.noise * x").replace(
                "self.factor = factor", "self.factor, self.noise = factor, np.random.rand()"
            )
        ],
        "computes something else",
    ],
    "a model without shapes": [[DIRECT], "keras.Model("],
}


@pytest.fixture(scope="module")
def base(folder, data):
    """A run of the script, not edited, that no edit may touch."""
    output = folder / "to keep"
    assert edited(folder).main(list(map(str, training(data, output, "--epochs", 1)))) == 0
    return output


@pytest.mark.parametrize(("edits", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_edit_is_one_line(edits, words, base, data, output, tmp_path, main):
    """The run that --fresh was to replace is still there."""
    shutil.copytree(base, output)
    before = contents(output)
    program = edited(tmp_path, *edits)
    result = main(*training(data, output, "--epochs", 2, "--fresh"), program=program)
    line = refusal(result)
    for each in (words,) if isinstance(words, str) else words:
        assert each in line
    assert len(line) < 600
    assert "epoch, Discriminator" not in result.stdout
    assert contents(output) == before


@pytest.mark.parametrize("nested", [False, True])
def test_layers_that_are_frozen_on_purpose_are_named(nested, data, output, tmp_path, main):
    lines = "    model.layers[0].trainable = False\n"
    if nested:
        lines += (
            "    image = keras.Input(image_shape)\n    model = keras.Model(image, model(image))\n"
        )
    program = edited(tmp_path, in_discriminator((LAST, lines + LAST)))
    result = main(*training(data, output, "--epochs", 1), program=program)
    assert result.returncode == 0
    assert "discriminator: frozen layers stay as they are: conv2d\n" in result.stdout


def test_the_script_itself_refuses_an_unregistered_layer(data, output, tmp_path):
    """There, Keras could find the class in __main__; who opens the file elsewhere could not."""
    script = write_edited(tmp_path, OWN_LAYER.replace(REGISTER, ""))
    line = refusal(python(script, *training(data, output, "--epochs", 1)))
    assert "Could not locate class 'Scale'" in line
    assert not list(output.glob("*.keras"))


NOTEBOOK = """\
import runpy, sys

variable = "still here"
sys.argv = {argv}
try:
    runpy.run_path({script!r}, run_name="__main__")
except SystemExit as error:
    print("left with", error.code, variable)
"""


@pytest.mark.parametrize(("option", "code"), [("1", 0), ("0", 2)])
def test_a_notebook_that_runs_the_script_keeps_its_kernel(option, code, data, output, tmp_path):
    """`%run art_gan.py` does it with runpy; os._exit would end the kernel."""
    script = str(write_edited(tmp_path))
    argv = [script, *map(str, training(data, output, "--epochs", option))]
    result = python("-c", NOTEBOOK.format(argv=argv, script=script))
    assert f"left with {code} still here" in result.stdout, result.stderr
