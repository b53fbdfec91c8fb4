"""One iteration of training, its batches and its pictures."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers_networks import batch, build, loss_and_gradients, without_dropout
from keras import layers
from PIL import Image

import art_gan


@pytest.fixture(autouse=True)
def float32_and_seeded():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


# ---- One iteration ----


def test_one_iteration_moves_every_weight_of_both_networks():
    generator, discriminator = build()
    iteration, optimizer = art_gan.build_iteration(generator, discriminator)
    trained = generator.trainable_variables + discriminator.trainable_variables
    before = [variable.numpy() for variable in trained]
    metrics = iteration(*map(tf.constant, batch())).numpy()
    assert metrics.shape == (4,) and np.isfinite(metrics).all()
    assert set(metrics[[1, 3]] * 16) <= set(range(17))
    for variable, value in zip(trained, before, strict=True):
        assert not np.array_equal(variable.numpy(), value), variable.path
    assert int(optimizer.iterations) == 3


def test_the_generators_step_and_only_that_moves_the_generator():
    generator, discriminator = build()
    fused_generator, fused_discriminator = art_gan.fuse(generator), art_gan.fuse(discriminator)
    combined = art_gan.build_combined(fused_generator, fused_discriminator)
    pictures, noise = map(tf.constant, batch())

    before = generator.get_weights()
    x_fake = fused_generator(noise, training=False)
    loss_and_gradients(fused_discriminator, x_fake, 0.0, discriminator)
    loss_and_gradients(fused_discriminator, pictures, 1.0, discriminator)
    assert all(map(np.array_equal, before, generator.get_weights()))

    weights = [v.numpy() for v in discriminator.trainable_variables]
    _, _, gradients = loss_and_gradients(combined, noise, 1.0, generator)
    keras.optimizers.Adam(0.1).apply(gradients, generator.trainable_variables)
    assert all(map(np.array_equal, weights, discriminator.trainable_variables))
    assert not any(map(np.array_equal, before, generator.get_weights()))


def test_one_adam_counts_for_both_networks(monkeypatch):
    """Ten iterations against Adam written out: moments of their own, one counter for both."""

    def gradient(value, label):
        return np.cos(30 * value) + label

    def loss_and_gradients(model, x, label, network, scale_loss):
        output, variables = tf.fill((4, 1), 0.5), network.trainable_variables
        return tf.constant(1.0), output, [tf.cos(30 * v.value) + label for v in variables]

    monkeypatch.setattr(art_gan, "loss_and_gradients", loss_and_gradients)
    generator, discriminator = build()
    trained = [model.trainable_variables for model in (generator, discriminator)]
    expected = [[v.numpy().astype(np.float64) for v in variables] for variables in trained]
    moments = [[(0, 0) for _ in variables] for variables in trained]
    iteration, optimizer = art_gan.build_iteration(generator, discriminator)
    for epoch in range(10):
        iteration(*map(tf.constant, batch(count=4)))
        for step, (network, label) in enumerate(((1, 1), (1, 0), (0, 1)), 3 * epoch + 1):
            rate = 1.5e-4 * np.sqrt(1 - 0.999**step) / (1 - 0.5**step)
            for i, value in enumerate(expected[network]):
                g = gradient(value, label)
                m, v = moments[network][i]
                m, v = 0.5 * m + 0.5 * g, 0.999 * v + 0.001 * g**2
                moments[network][i] = m, v
                expected[network][i] = value - rate * m / (np.sqrt(v) + 1e-7)
    assert int(optimizer.iterations) == 30
    for variables, numbers in zip(trained, expected, strict=True):
        for variable, value in zip(variables, numbers, strict=True):
            np.testing.assert_allclose(variable.numpy(), value, atol=2e-6)


@pytest.mark.parametrize("network", [0, 1], ids=["generator", "discriminator"])
def test_a_regularizer_counts_in_the_step_of_its_own_network(network):
    models = build()
    for model in models:
        without_dropout(model)
    pictures, noise = map(tf.constant, batch())
    fused = [art_gan.fuse(model) for model in models]
    steps = (art_gan.build_combined(*fused), noise), (fused[1], pictures)

    def measure():
        return [
            loss_and_gradients(model, x, 1.0, trained)
            for (model, x), trained in zip(steps, models, strict=True)
        ]

    before = measure()
    layer = [layer for layer in models[network].layers if isinstance(layer, layers.Conv2D)][1]
    layer.kernel.regularizer = keras.regularizers.L2(0.5)
    after = measure()
    other = 1 - network
    np.testing.assert_allclose(after[other][0], before[other][0], rtol=1e-6)
    penalty = 0.5 * np.sum(layer.kernel.numpy() ** 2)
    np.testing.assert_allclose(after[network][0], before[network][0] + penalty, rtol=1e-5)
    index = [v.path for v in models[network].trainable_variables].index(layer.kernel.path)
    difference = after[network][2][index] - before[network][2][index]
    np.testing.assert_allclose(difference, layer.kernel.numpy(), rtol=1e-3, atol=1e-5)


def test_a_float16_step_that_overflows_changes_only_the_loss_scale():
    """Skipped: weights, moments and Adam's count; the scale is halved. The next steps count."""
    keras.config.set_dtype_policy("mixed_float16")
    generator, discriminator = build()
    iteration, optimizer = art_gan.build_iteration(generator, discriminator)
    inputs = [tf.constant(array) for array in batch()]
    optimizer.dynamic_scale.assign(2.0**60)
    adam = optimizer.inner_optimizer
    kept = discriminator.trainable_variables + generator.trainable_variables + adam.variables
    before = [variable.numpy() for variable in kept]
    metrics = iteration(*inputs).numpy()
    assert np.isfinite(metrics).all()
    assert all(np.array_equal(v.numpy(), b) for v, b in zip(kept, before, strict=True))
    assert float(optimizer.dynamic_scale) == 2.0**57  # halved by each of the three steps
    assert int(adam.iterations) == int(optimizer.step_counter) == 0

    optimizer.dynamic_scale.assign(2.0**10)
    iteration(*inputs)
    assert int(adam.iterations) == int(optimizer.step_counter) == 3
    changed = [not np.array_equal(v.numpy(), b) for v, b in zip(kept, before, strict=True)]
    assert np.mean(changed) > 0.9
    assert {optimizer.dynamic_scale.path, optimizer.step_counter.path} <= {
        variable.path for variable in optimizer.variables
    }


@pytest.mark.slow
def test_the_loss_scale_does_not_show_in_float16_steps():
    """Three iterations with scales 2**8 and 2**12 have nearly the same losses."""
    keras.config.set_dtype_policy("mixed_float16")
    results = []
    for exponent in (8, 12):
        keras.utils.set_random_seed(0)
        generator, discriminator = map(without_dropout, build())
        iteration, optimizer = art_gan.build_iteration(generator, discriminator)
        optimizer.dynamic_scale.assign(2.0**exponent)
        losses = [iteration(*map(tf.constant, batch(seed=seed))).numpy()[0] for seed in range(3)]
        assert int(optimizer.iterations) == 9
        results.append(losses)
    np.testing.assert_allclose(*results, rtol=0.05)


@pytest.mark.slow
def test_xla_is_a_switch_that_changes_no_figure():
    results = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        networks = map(without_dropout, build())
        iteration, _ = art_gan.build_iteration(*networks, jit_compile=jit_compile)
        results.append(iteration(*map(tf.constant, batch(count=4))))
    np.testing.assert_allclose(*results, rtol=1e-3)


# ---- Data and pictures ----


def test_a_batch_is_a_function_of_seed_and_epoch(tmp_path):
    data = np.random.default_rng(0).uniform(-1, 1, (10, 32, 32, 3)).astype(np.float32)
    epochs = range(3, 6)
    read = list(art_gan.batches(data, "data.npy", 7, epochs, 4))
    for epoch, (pictures, noise) in zip(epochs, read, strict=True):
        expected_pictures, expected_noise = art_gan.draw_batch(data, 7, epoch, 4)
        assert np.array_equal(pictures, expected_pictures) and np.array_equal(noise, expected_noise)
        assert pictures.dtype == noise.dtype == tf.float32
    assert not np.array_equal(read[0][0], read[1][0]) and not np.array_equal(read[0][1], read[1][1])
    assert not np.array_equal(art_gan.draw_batch(data, 8, 3, 4)[1], read[0][1])


def test_the_grid(tmp_path):
    pictures = [np.full((32, 32, 3), i, np.uint8) for i in range(28)]
    pictures[0][0, 0] = 200
    path = tmp_path / "grid.png"
    art_gan.save_images(path, pictures)
    grid = np.array(Image.open(path))
    assert grid.shape == (4 + 4 * 36, 4 + 7 * 36, 3)
    assert (grid[4, 4] == 200).all()
    for i in range(28):
        r, c = 4 + i // 7 * 36, 4 + i % 7 * 36
        assert (grid[r + 1 : r + 32, c : c + 32] == i).all()
        grid[r : r + 32, c : c + 32] = 255
    assert (grid == 255).all()
    art_gan.save_images(path, [np.zeros((128, 128, 3), np.uint8)] * 28)
    assert Image.open(path).size == (928, 532)


def test_pixels_are_truncated_and_do_not_depend_on_their_neighbours():
    generator, _ = build()
    paint = art_gan.build_painter(generator)
    noise = art_gan.random_noise(30, 5, 0)
    pictures = np.stack(list(paint(noise)))
    exact = (0.5 * art_gan.fuse(generator)(noise, training=False).numpy() + 0.5) * 255
    assert pictures.dtype == np.uint8 and pictures.shape == (30, 32, 32, 3)
    off = pictures != np.floor(exact)
    assert (off <= (np.abs(exact - np.round(exact)) < 1e-3)).all()  # but for rounding errors
    assert np.array_equal(list(paint(noise[:3])), pictures[:3])
