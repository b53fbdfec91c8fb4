"""What people change in art_gan.py takes effect, or the run ends in one line that says why not.

Every test edits a copy of the script as its users do, and calls its main().
"""

import shutil

import numpy as np
import pytest
from conftest import arrays, checkpoints, contents, refusal, rows, training
from helpers_edits import (
    LABEL,
    LABELS,
    LAST,
    OPTIMIZER,
    RETURN,
    change_settings,
    edited,
    in_discriminator,
    in_generator,
    in_iteration,
    state,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(folder, data):
    """A run of 4 iterations of the script, with the small networks and otherwise not edited."""
    output = folder / "not edited"
    program = edited(folder)
    options = ("--epochs", 4, "--checkpoint-seconds", 0)
    assert program.main(list(map(str, training(data, output, *options)))) == 0
    return output


@pytest.fixture
def there(base, output):
    """A copy of that run after 2 iterations."""
    shutil.copytree(base, output)
    for path in checkpoints(output)[3:]:
        path.unlink()
    return output


# ---- Labels ----


def test_labels_are_numbers(data, output, tmp_path, main):
    """With weights that stay, a loss is linear in its label: 0.9 is nine tenths of the way to 1."""
    losses = {}
    for labels in (
        "1.0, 0.0",
        "0.0, 1.0",
        "0.9, 0.1",
        "0.9, 0.0",
        "np.full(4, 0.9), np.full((4, 1), 0.1)",
        "np.array([1, 0.8, 0.8, 1]), tf.constant([[0.0], [0.2], [0.2], [0.0]])",
    ):
        still = (OPTIMIZER, "optimizer = keras.optimizers.SGD(0.0)")
        shutil.rmtree(output, ignore_errors=True)
        program = edited(
            tmp_path, still, (LABELS, f"Y_REAL, Y_FAKE = {labels}"), in_discriminator(("0.25", "0"))
        )
        result = main(*training(data, output, "--epochs", 1), program=program)
        assert result.returncode == 0, result.stderr
        row = rows(output)[0]
        losses[labels] = [float(row[f"{name}_loss"]) for name in ("discriminator", "generator")]
    article, flipped, *others = (np.array(pair) for pair in losses.values())
    both, one_sided, arrays_of_labels, noisy = others
    np.testing.assert_allclose(both, 0.9 * article + 0.1 * flipped, rtol=1e-5)
    np.testing.assert_allclose(arrays_of_labels, both, rtol=1e-6)
    np.testing.assert_allclose(one_sided[1], both[1], rtol=1e-6)
    assert one_sided[0] != both[0]
    assert 0 < abs(noisy[0] - both[0]) < 0.1  # pictures count differently
    accuracies = [float(rows(output)[0][f"{name}_accuracy"]) for name in ("discriminator",)]
    assert 0 <= accuracies[0] <= 1


NOISY = in_iteration("y_real = keras.random.uniform((4, 1), 0.8, 1.0, seed=seeds)")
SEEDS = (LABEL, f"{LABEL}    seeds = keras.random.SeedGenerator(7)\n")


def test_noisy_labels_are_other_ones_in_each_iteration(data, output, tmp_path, main):
    """Also after the run has been resumed."""
    program = edited(tmp_path, NOISY, SEEDS, (RETURN, f"{RETURN}, seeds"))
    for epochs in (2, 4):
        command = training(data, output, "--epochs", epochs, "--checkpoint-seconds", 0)
        assert main(*command, program=program).returncode == 0
    states = [state(output, number)[0] for number in range(5)]
    path = list(states[0])[-1]  # what build_iteration returns last
    assert len({each[path].tobytes() for each in states}) == 5


# ---- A resumed run is the same program ----

BATCH_NORM = "model.add(layers.BatchNormalization(momentum=0.8))"
SCHEDULE = "FusedAdam(keras.optimizers.schedules.ExponentialDecay(1e-3, 9, 0.9), beta_1=0.5)"
LOSS = """\
def binary_crossentropy(label, probability):
    return {}
"""
DIFFERENCES = {
    "labels and noise": (
        [(LABELS, "Y_REAL, Y_FAKE = 0.9, 0.0"), ("NOISE_SIZE = 100", "NOISE_SIZE = 50")],
        ["labels was [1.0, 0.0], is [0.9, 0.0]", "the noise size was 100, is 50"],
    ),
    "settings of Adam": (
        [(OPTIMIZER, "optimizer = FusedAdam(1e-2, beta_1=0.9, clipnorm=1.0)")],
        ["rate was 0.00015, is 0.01", "beta_1 was 0.5, is 0.9", "clipnorm was None, is 1"],
    ),
    "schedule": ([(OPTIMIZER, f"optimizer = {SCHEDULE}")], ["learning_rate was 0.00015"]),
    "RMSprop": (
        [(OPTIMIZER, "optimizer = keras.optimizers.RMSprop(1e-4)")],
        ["optimizer 1 class was FusedAdam, is RMSprop"],
    ),
    "the discriminator's numbers": (
        [in_discriminator(("LeakyReLU(0.2)", "LeakyReLU(0.3)"), ("0.25", "0.4"), ("0.8", "0.9"))],
        ["slope was 0.2, is 0.3", "rate was 0.25, is 0.4", "momentum was 0.8, is 0.9"],
    ),
    "activation": ([in_generator(('"relu"', '"elu"'))], ["activation was relu, is elu"]),
    "filters and their beginning": (
        [
            in_discriminator(
                ("Conv2D(8", "Conv2D(16"),
                ("strides=4,", "strides=4, kernel_initializer='he_normal',"),
            )
        ],
        ["conv2d filters was 8, is 16", "kernel_initializer"],
    ),
    "regularizer": (
        [in_discriminator(("strides=4,", "strides=4, kernel_regularizer='l2',"))],
        ["discriminator conv2d kernel_regularizer"],
    ),
    "another layer": (
        [in_discriminator((LAST, f"    model.add(layers.Reshape((1,)))\n{LAST}"))],
        ["discriminator reshape", "is Reshape"],
    ),
    "loss": (
        [LOSS.format("tf.reduce_mean((label - probability) ** 2)")],
        ["the iteration's graph (Tens"],
    ),
    "labels in the iteration": (
        [in_iteration("y_real = 0.9")],
        ["the iteration's graph (Tens", "checksum"],
    ),
    "labels exchanged": (
        [
            ("fast_discriminator, x_real, y_real,", "fast_discriminator, x_real, y_fake,"),
            ("fast_discriminator, x_fake, y_fake,", "fast_discriminator, x_fake, y_real,"),
        ],
        ["the iteration's graph (Tens"],
    ),
    "noise": (
        [("rng.normal(size=(count, size))", "rng.uniform(-1, 1, size=(count, size))")],
        ["the first batch was"],
    ),
    "another normalization": (
        [in_generator((BATCH_NORM, "model.add(layers.GroupNormalization(4))"))],
        ["class_name was BatchNormalization, is None"],
    ),
}


@pytest.mark.parametrize(("edits", "differences"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_an_edited_run_is_not_resumed(edits, differences, there, data, tmp_path, main):
    before = contents(there)
    program = edited(tmp_path, *edits)
    line = refusal(main(*training(data, there, "--epochs", 4), program=program))
    for difference in (*differences, "--fresh", "--init"):
        assert difference in line
    assert len(line) < 700
    assert contents(there) == before


def test_the_same_program_is_resumed(there, base, data, tmp_path, main):
    """Also if it was edited to and fro."""
    program = edited(tmp_path)
    assert main(*training(data, there, "--epochs", 4), program=program).returncode == 0
    for name, value in arrays(checkpoints(base)[-1]).items():
        np.testing.assert_array_equal(arrays(checkpoints(there)[-1])[name], value, err_msg=name)


BUILT = "optimizer.build(discriminator.trainable_variables + generator.trainable_variables)"
TWO_BUILT = [
    (OPTIMIZER, "fast, slow = FusedAdam(4e-4, 0.5), FusedAdam(1e-4, 0.5)"),
    (BUILT, f"fast.{BUILT[10:]}\n    slow.{BUILT[10:]}"),
    (RETURN, "return iteration, fast, slow"),
]
CHOICE = (
    "        optimizer = {} if trained is discriminator else {}\n        loss, output, gradients"
)
BRANCHES = "x_real = tf.cond(x_real[0, 0, 0, 0] > 0, lambda: {}, lambda: {})"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        [[in_iteration(f"noise = tf.nn.leaky_relu(noise, alpha={slope})")] for slope in (0.2, 0.3)],
        [
            [in_iteration(BRANCHES.format(*branches))]
            for branches in (("x_real", "0.5 * x_real"), ("0.5 * x_real", "x_real"))
        ],
        [
            [*TWO_BUILT, ("        loss, output, gradients", CHOICE.format(*order))]
            for order in (("fast", "slow"), ("slow", "fast"))
        ],
    ],
    ids=["an attribute", "exchanged branches", "exchanged optimizers"],
)
def test_what_an_iteration_computes_is_in_the_record(first, second, data, output, tmp_path, main):
    command = training(data, output, "--epochs", 1)
    assert main(*command, program=edited(tmp_path, *first)).returncode == 0
    command = training(data, output, "--epochs", 2)
    line = refusal(main(*command, program=edited(tmp_path, *second)))
    assert "the iteration's graph (Tens" in line


def old_settings(settings):
    """What a state held before it recorded the program."""
    names = ("the data", "the noise size", "--batch-size", "--save-freq", "--seed", "--precision")
    kept = {name: value for name, value in settings.items() if name in names}
    return kept | {"the picture size": 32}


def test_a_state_without_a_record_is_resumed(there, base, data, tmp_path, main):
    change_settings(there, old_settings)
    program = edited(tmp_path)
    assert main(*training(data, there, "--epochs", 4), program=program).returncode == 0
    new, old = arrays(checkpoints(there)[-1]), arrays(checkpoints(base)[-1])
    assert new.pop("settings") == old.pop("settings")
    for name, value in old.items():
        np.testing.assert_array_equal(new[name], value, err_msg=name)


def test_a_learning_rate_is_not_restored(there, base, data, tmp_path, main):
    """Where no record refuses the edit, it takes effect."""
    change_settings(there, old_settings)
    program = edited(tmp_path, (OPTIMIZER, "optimizer = FusedAdam(1e-2, beta_1=0.5)"))
    assert main(*training(data, there, "--epochs", 4), program=program).returncode == 0
    values, expected = state(there)[0], state(base)[0]
    assert values["fused_adam/learning_rate"] == np.float32(1e-2)
    name = next(path for path in values if path.endswith("dense/kernel"))
    assert not np.allclose(values[name], expected[name], atol=1e-3)


def test_another_version_of_keras_is_no_difference(there, data, tmp_path, main):
    """It may word a configuration differently."""

    def reword(settings):
        settings["program"]["generator"]["new"] = True
        return settings | {"keras": "3.999"}

    change_settings(there, lambda settings: reword(settings) | {"keras": settings["keras"]})
    program = edited(tmp_path)
    command = training(data, there, "--epochs", 4)
    assert "generator new was True, is None" in refusal(main(*command, program=program))
    change_settings(there, reword)
    assert main(*command, program=program).returncode == 0


# ---- All state is saved ----

FUNCTIONAL = """\
def build_generator(noise_size, image_shape):
    height, width, channels = image_shape
    noise = keras.Input((noise_size,))
    x = layers.Dense(height // 2 * (width // 2) * 4, activation="relu")(noise)
    x = layers.Reshape((height // 2, width // 2, 4))(x)
    x = layers.BatchNormalization(momentum=0.8)(layers.UpSampling2D()(x))
    x = layers.Conv2D(channels, kernel_size=3, padding="same")(x)
    return keras.Model(noise, layers.Activation("tanh", dtype="float32")(x))
"""
ARTICLE = [
    in_discriminator(
        (
            LAST,
            "    image = keras.Input(image_shape)\n    return keras.Model(image, model(image))\n",
        )
    ),
    in_generator(
        (
            LAST,
            "    noise = keras.Input((noise_size,))\n    return keras.Model(noise, model(noise))\n",
        )
    ),
]
OWN_MODEL = """\
@keras.saving.register_keras_serializable()
class Painter(keras.Model):
    def __init__(self, shape, **options):
        super().__init__(**options)
        self.shape_of_picture = tuple(shape)
        self.dense = layers.Dense(int(np.prod(shape)), activation="tanh")
        self.reshape = layers.Reshape(self.shape_of_picture)

    def build(self, shape):
        self.dense.build(shape)

    def get_config(self):
        return super().get_config() | {"shape": list(self.shape_of_picture)}

    def call(self, noise):
        return self.reshape(self.dense(noise))


def build_generator(noise_size, image_shape):
    noise = keras.Input((noise_size,))
    return keras.Model(noise, Painter(image_shape)(noise))
"""
OWN_LAYER = """\
@keras.saving.register_keras_serializable()
class Scale(layers.Layer):
    def __init__(self, factor, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return self.factor * x

    def get_config(self):
        return super().get_config() | {"factor": self.factor}


""" + in_generator((LAST, f"    model.add(Scale(0.9))\n{LAST}"))
INJECT = """\
@keras.saving.register_keras_serializable()
class Inject(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(5)

    def call(self, x):
        return x + 0.1 * keras.random.normal(keras.ops.shape(x), seed=self.seeds)


""" + in_generator((LAST, f"    model.add(Inject())\n{LAST}"))
TWO_OPTIMIZERS = [
    (f"    {OPTIMIZER}", "    fast, slow = FusedAdam(4e-4, 0.5), FusedAdam(1e-4, 0.5)"),
    (
        "    optimizer.build(discriminator.trainable_variables + generator.trainable_variables)\n",
        "",
    ),
    (
        "        loss, output, gradients",
        "        optimizer = fast if trained is discriminator else slow\n"
        "        loss, output, gradients",
    ),
]
AVERAGE = [
    (
        LABEL,
        f"{LABEL}    average = keras.models.clone_model(generator)\n"
        "    average.set_weights(generator.get_weights())\n",
    ),
    (
        "        return tf.concat([0.5 * (real + fake)",
        "        with tf.control_dependencies([fooled]):\n"
        "            for mean, weight in zip(average.weights, generator.weights, strict=True):\n"
        "                mean.assign(0.9 * mean + 0.1 * weight)\n"
        "        return tf.concat([0.5 * (real + fake)",
    ),
]
NO_SIGMOID = in_discriminator(('activation="sigmoid", ', ""))
PATCHES = in_discriminator(("    model.add(layers.Flatten())\n", ""))
CRITIC = [NO_SIGMOID, (LABELS, "Y_REAL, Y_FAKE = 1.0, -1.0")]
EDITS = {
    "two optimizers": [*TWO_OPTIMIZERS, (RETURN, "return iteration, fast, slow")],
    "a layer in bfloat16": [in_discriminator(("strides=4,", 'strides=4, dtype="bfloat16",'))],
    "noise in every picture": [INJECT],
    "a learning rate that falls": [
        in_iteration("optimizer.learning_rate.assign(0.5 * optimizer.learning_rate)")
    ],
    "averaged generator, schedule": [
        *AVERAGE,
        (OPTIMIZER, f"optimizer = {SCHEDULE}"),
        (RETURN, f"{RETURN}, average"),
    ],
    "averaged weights, averaging optimizer": [
        *AVERAGE,
        ("beta_1=0.5", "beta_1=0.5, use_ema=True"),
        (RETURN, f"{RETURN}, average.weights"),
    ],
    "noisy labels, AdamW": [
        NOISY,
        SEEDS,
        (OPTIMIZER, "optimizer = keras.optimizers.AdamW(1e-3, clipnorm=1.0)"),
        (RETURN, f"{RETURN}, seeds"),
    ],
    "variables of TensorFlow, SGD": [
        in_iteration("count.assign_add(1.0)\ny_real = 1 - seeds.uniform((4, 1), 0.0, 0.2) / count"),
        (
            LABEL,
            f"{LABEL}    seeds = tf.random.Generator.from_seed(7)\n    count = tf.Variable(0.0)\n",
        ),
        (OPTIMIZER, "optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)"),
        (RETURN, f"{RETURN}, {{'seeds': seeds, 'count': count}}"),
    ],
    "functional, LSGAN": [
        FUNCTIONAL,
        LOSS.format("tf.reduce_mean((label - probability) ** 2)"),
        NO_SIGMOID,
    ],
    "article": ARTICLE,
    "a model of one's own, WGAN": [
        OWN_MODEL,
        LOSS.format("-tf.reduce_mean(label * probability)"),
        *CRITIC,
    ],
    "a layer of one's own, hinge": [
        OWN_LAYER,
        LOSS.format("tf.reduce_mean(tf.nn.relu(1 - label * probability))"),
        *CRITIC,
    ],
    "spectral normalization, no tanh": [
        in_discriminator(
            ("layers.Conv2D(", "layers.SpectralNormalization(layers.Conv2D("),
            ('padding="same")', 'padding="same"))'),
        ),
        in_generator(('    model.add(layers.Activation("tanh", dtype="float32"))\n', "")),
    ],
    "other layers, Keras' loss": [
        in_discriminator((BATCH_NORM, "model.add(layers.LayerNormalization())")),
        in_generator(
            (BATCH_NORM, "model.add(layers.GroupNormalization(4))"),
            (
                "UpSampling2D())\n    model.add(layers.Conv2D(8, kernel_size=3",
                "Conv2DTranspose(8, kernel_size=4, strides=2",
            ),
        ),
        LOSS.format("keras.losses.BinaryCrossentropy()(0 * probability + label, probability)"),
    ],
    "one of several augmentations": [
        in_iteration(
            "x_real = tf.switch_case(tf.cast(x_real[0, 0, 0, 0] > 0, tf.int32), "
            "[lambda: x_real, lambda: x_real[:, :, ::-1]])"
        )
    ],
    "patches": [PATCHES, (LABELS, "Y_REAL, Y_FAKE = np.full((4, 1), 0.9), np.zeros(4)")],
}


NO_CONSTANTS = {
    "SAVE_FREQ = 100": "SAVE_FREQ = 0",
    "EPOCHS = 10000": "EPOCHS = 1e1",
    "BATCH_SIZE = 32": "BATCH_SIZE = 4.0",
    "NOISE_SIZE = 100": "NOISE_SIZE = 0",
    "PREVIEW_ROWS = 4": "PREVIEW_ROWS = 2.5",
    "CHECKPOINTS_AT_MOST = 10": "CHECKPOINTS_AT_MOST = 0",
    "TIMELAPSE_PIXELS = 1024": "TIMELAPSE_PIXELS = 0",
}


@pytest.mark.parametrize("line", NO_CONSTANTS)
def test_constants_that_are_no_whole_numbers(line, data, there, tmp_path, capsys):
    before = contents(there)
    program = edited(tmp_path, (line, NO_CONSTANTS[line]))
    try:
        code = program.main(["--data", str(data), "--output", str(there), "--fresh"])
    except SystemExit as error:
        code = error.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code in (1, 2) and "whole number" in line and contents(there) == before


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
def test_an_edited_run_resumes_exactly(edits, data, output, tmp_path, main):
    program = edited(tmp_path, *edits)
    command = training(data, output, "--epochs", 3)
    result = main(*command, "--checkpoint-seconds", 0, program=program)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    whole, picture = arrays(checkpoints(output)[-1]), (output / "trained-2.png").read_bytes()
    for path in checkpoints(output)[2:]:
        path.unlink()
    result = main(*command, program=program)
    assert "Resuming from iteration 1" in result.stdout, result.stderr
    resumed = arrays(checkpoints(output)[-1])
    assert list(resumed) == list(whole) and (output / "trained-2.png").read_bytes() == picture
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    assert main(*command, "--generate", 2, program=program).returncode == 0
    names = sorted(path.name for path in (output / "art").iterdir())
    assert names == [f"generator-3-seed0-{each}.png" for each in ("0001", "0002", "grid")]


def test_the_second_of_two_optimizers_is_in_the_record(data, output, tmp_path, main):
    edits = EDITS["two optimizers"]
    command = training(data, output, "--epochs", 1)
    assert main(*command, program=edited(tmp_path, *edits)).returncode == 0
    for change in (("FusedAdam(4e-4, 0.5)", "FusedAdam(4e-4, 0.6)"), ("1e-4, 0.5", "1e-4, 0.6")):
        program = edited(tmp_path, *edits, change)
        assert "beta_1 was 0.5, is 0.6" in refusal(main(*command, program=program))
