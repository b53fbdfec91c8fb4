"""The networks and their losses, held to the 2019 software and to the article's tables."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers_networks import FORMS, build, loss_and_gradients, without_dropout

import art_gan

GOLDEN = Path(__file__).parent / "golden" / "keras231_size32_seed2019.json"


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


# ---- Equal to Keras 2.3.1 on TensorFlow 1.14 ----


def golden_case():
    """The weights, noise and pictures that the golden figures were taken at."""
    rng = np.random.RandomState(2019)
    generator, discriminator = map(without_dropout, build())
    for model in (generator, discriminator):
        for layer in model.layers:
            shapes = [w.shape for w in layer.get_weights()]
            if len(shapes) == 2:
                kernel = rng.normal(0, 1, shapes[0]) * np.sqrt(1 / np.prod(shapes[0][:-1]))
                layer.set_weights([kernel, rng.normal(0, 0.05, shapes[1])])
            elif len(shapes) == 4:
                gamma, beta, mean, log_variance = (rng.normal(0, 0.1, s) for s in shapes)
                layer.set_weights([1 + gamma, beta, mean, np.exp(log_variance)])
    noise = rng.normal(0, 1, (8, 100)).astype(np.float32)
    real = rng.uniform(-1, 1, (8, 32, 32, 3)).astype(np.float32)
    return generator, discriminator, noise, real


def passes(generator, discriminator, noise, real, transform):
    """Loss, output, accuracy and gradients of the article's three passes."""
    forward_generator, forward_discriminator = transform(generator), transform(discriminator)
    combined = art_gan.build_combined(forward_generator, forward_discriminator)
    fake = forward_generator(noise, training=False)
    results = {"fake": fake.numpy()}
    for name, model, x, label, trained in (
        ("discriminator_real", forward_discriminator, real, 1.0, discriminator),
        ("discriminator_fake", forward_discriminator, fake, 0.0, discriminator),
        ("combined", combined, noise, 1.0, generator),
    ):
        x = tf.convert_to_tensor(x)
        results[name] = loss_and_gradients(model, x, label, trained)
    return results


@pytest.mark.parametrize("form", [None, *FORMS])
def test_losses_outputs_and_gradients_are_those_of_2019(form, monkeypatch):
    """As Keras computes the networks, and fused with each form of the upsampled convolution."""
    monkeypatch.setattr(art_gan, "upsampled_conv2d", FORMS.get(form))
    golden = json.loads(GOLDEN.read_text())
    results = passes(*golden_case(), art_gan.fuse if form else lambda model: model)
    close = {"rtol": 1e-5, "atol": 1e-6}
    fake, expected = results["fake"], golden["fake"]
    np.testing.assert_allclose(fake.ravel()[:9], expected["first_pixels"], **close)
    np.testing.assert_allclose(
        [fake.mean(), fake.std()], [expected["mean"], expected["std"]], **close
    )
    for name in ("discriminator_real", "discriminator_fake", "combined"):
        loss, output, gradients = results[name]
        label = float(name != "discriminator_fake")
        np.testing.assert_allclose(loss, golden[name]["loss"], **close)
        np.testing.assert_allclose(np.ravel(output), golden[name]["output"], **close)
        accuracy = np.mean((np.ravel(output) > 0.5) == label)
        assert accuracy == golden[name]["accuracy"]
        assert [list(g.shape) for g in gradients] == golden[name]["gradient_shapes"]
        norms = [np.linalg.norm(g) for g in gradients]
        np.testing.assert_allclose(norms, golden[name]["gradient_norms"], rtol=1e-3, atol=2e-6)


def test_the_articles_freezing_line_would_fail_that_test():
    """What a port by hand does: on Keras 3 it freezes the discriminator for its own steps too."""
    golden = json.loads(GOLDEN.read_text())
    generator, discriminator, noise, _ = golden_case()
    discriminator.trainable = False
    assert discriminator.trainable_variables == []
    combined = art_gan.build_combined(generator, discriminator)
    loss, _, _ = loss_and_gradients(combined, tf.convert_to_tensor(noise), 1.0, generator)
    assert abs(float(loss) - golden["combined"]["loss"]) > 0.01


def test_the_loss_is_clipped_as_in_2019():
    saturated = tf.constant([[0.0], [1.0]])
    largest = -np.log(1e-7)
    with tf.GradientTape() as tape:
        tape.watch(saturated)
        loss = art_gan.binary_crossentropy(1.0, saturated)
    np.testing.assert_allclose(loss, largest / 2, rtol=1e-4)
    assert not tape.gradient(loss, saturated).numpy().any()
    assert abs(float(art_gan.binary_crossentropy(0.0, tf.constant([[0.25]]))) + np.log(0.75)) < 1e-6


# ---- The article's tables ----


def table(model):
    return [
        (type(layer).__name__, layer.output.shape[1:], layer.count_params())
        for layer in model.layers
    ]


def test_the_discriminators_table():
    model = art_gan.build_discriminator((128, 128, 3))
    assert table(model) == [
        ("Conv2D", (64, 64, 32), 896),
        ("LeakyReLU", (64, 64, 32), 0),
        ("Dropout", (64, 64, 32), 0),
        ("Conv2D", (32, 32, 64), 18496),
        ("ZeroPadding2D", (33, 33, 64), 0),
        ("BatchNormalization", (33, 33, 64), 256),
        ("LeakyReLU", (33, 33, 64), 0),
        ("Dropout", (33, 33, 64), 0),
        ("Conv2D", (17, 17, 128), 73856),
        ("BatchNormalization", (17, 17, 128), 512),
        ("LeakyReLU", (17, 17, 128), 0),
        ("Dropout", (17, 17, 128), 0),
        ("Conv2D", (17, 17, 256), 295168),
        ("BatchNormalization", (17, 17, 256), 1024),
        ("LeakyReLU", (17, 17, 256), 0),
        ("Dropout", (17, 17, 256), 0),
        ("Conv2D", (17, 17, 512), 1180160),
        ("BatchNormalization", (17, 17, 512), 2048),
        ("LeakyReLU", (17, 17, 512), 0),
        ("Dropout", (17, 17, 512), 0),
        ("Flatten", (147968,), 0),
        ("Dense", (1,), 147969),
    ]
    assert model.count_params() == 1720385
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == 1720385 - 1920


def test_the_generators_table():
    model = art_gan.build_generator(100, (128, 128, 3))
    rows = [("Dense", (4096,), 413696), ("Reshape", (4, 4, 256), 0)]
    for size in (8, 16, 32, 64, 128):
        rows += [
            ("UpSampling2D", (size, size, 256), 0),
            ("Conv2D", (size, size, 256), 590080),
            ("BatchNormalization", (size, size, 256), 1024),
            ("Activation", (size, size, 256), 0),
        ]
    assert table(model) == [
        *rows,
        ("Conv2D", (128, 128, 3), 6915),
        ("Activation", (128, 128, 3), 0),
    ]
    assert sum(count for *_, count in rows) == 3369216  # what the article prints
    assert model.count_params() == 3376131
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == 3376131 - 2560


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((32, 32, 3), (4, 4)),
        ((48, 48, 3), (6, 6)),
        ((80, 80, 3), (5, 5)),
        ((96, 128, 3), (6, 8)),
        ((64, 40, 1), (8, 5)),
        ((224, 224, 3), (7, 7)),
        pytest.param((512, 384, 3), (8, 6), marks=pytest.mark.slow),
    ],
)
def test_every_size_goes_through_both_networks(shape, first):
    """The generator begins with a picture whose shorter side is 4 to 7, and doubles it."""
    generator, discriminator = build(*shape)
    sizes = [layer.output.shape[1:3] for layer in generator.layers if len(layer.output.shape) == 4]
    doubled = sorted({(height, width) for height, width in sizes})
    assert doubled == [(first[0] << i, first[1] << i) for i in range(len(doubled))]
    assert generator.output_shape == discriminator.input_shape == (None, *shape)
    assert generator.count_params() < 5e6
    assert discriminator(generator(np.zeros((1, 100), np.float32))).shape == (1, 1)
