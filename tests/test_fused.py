"""The networks computed faster, held to the networks as Keras computes them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers_networks import FORMS, batch, build, without_dropout
from keras import layers

import art_gan

SIZES = [
    (32, 32, 3),
    (48, 48, 3),
    (32, 64, 1),
    *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((96, 128, 3), (256, 256, 3))),
]


@pytest.fixture(autouse=True)
def float32_and_seeded():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Each form of the upsampled convolution, whatever the device is."""
    monkeypatch.setattr(art_gan, "upsampled_conv2d", FORMS[request.param])
    return FORMS[request.param]


def shaken(model, seed=1):
    """The model with all weights and statistics away from their initial zeros and ones."""
    rng = np.random.default_rng(seed)
    weights = model.get_weights()
    model.set_weights([w + rng.uniform(-0.02, 0.02, w.shape) * (1 + w) for w in weights])
    return without_dropout(model)


def forward_and_back(forward, owner, x, training):
    """The output, and the gradients of a fixed sum of it by x and by the owner's variables."""
    weight = np.random.default_rng(2).normal(size=(len(x), *owner.output_shape[1:]))
    with tf.GradientTape() as tape:
        tape.watch(x)
        output = forward(x, training=training)
        loss = tf.reduce_sum(weight.astype(np.float32) * output)
    return output, tape.gradient(loss, [x] + [v.value for v in owner.trainable_variables])


def distance(a, b):
    return np.linalg.norm(np.asarray(a) - np.asarray(b))


@pytest.mark.parametrize("network", [*FORMS, "discriminator"])
@pytest.mark.parametrize("shape", SIZES)
def test_fused_equals_plain_in_values_gradients_and_statistics(network, shape, monkeypatch):
    """The generator with each form of the upsampled convolution, and the discriminator."""
    monkeypatch.setattr(art_gan, "upsampled_conv2d", FORMS.get(network))
    generator, discriminator = build(*shape)
    height, width, channels = shape
    count = 4 if width < 128 else 2 if width < 256 else 1
    pictures, noise = batch(height, count, width=width, channels=channels)
    model, x = (discriminator, pictures) if network == "discriminator" else (generator, noise)
    fused = art_gan.fuse(shaken(model))
    start = model.get_weights()
    assert [v.path for v in fused.trainable_variables] == [
        v.path for v in model.trainable_variables
    ]
    np.testing.assert_allclose(fused(x), model(x), rtol=1e-4, atol=1e-4)
    assert all(np.array_equal(a, b) for a, b in zip(start, model.get_weights(), strict=True))

    x = tf.convert_to_tensor(x)
    results = []
    for forward in (model, fused):
        model.set_weights(start)
        results.append((*forward_and_back(forward, model, x, True), model.get_weights()))
    (plain_output, plain_gradients, plain), (output, gradients, moved) = results
    np.testing.assert_allclose(output, plain_output, rtol=1e-4, atol=1e-4)
    norms = [np.linalg.norm(gradient) for gradient in plain_gradients]
    for a, b, norm in zip(gradients, plain_gradients, norms, strict=True):
        assert distance(a, b) < 5e-3 * norm + 1e-5 * max(norms)

    names = [variable.path for variable in model.weights]
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    sizes = iter([layer.output.shape[1:-1] for layer in norms])
    for name, before, a, b in zip(names, start, moved, plain, strict=True):
        if name.endswith("moving_mean"):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        elif name.endswith("moving_variance"):
            n = len(x) * np.prod(next(sizes))
            unbiased = before * 0.8 + (b - before * 0.8) * n / (n - 1)
            np.testing.assert_allclose(a, unbiased, rtol=1e-4)
        else:
            assert np.array_equal(a, before)


def test_upsampled_conv2d_is_upsampling_then_convolution(form):
    rng = np.random.default_rng(0)
    x, kernel, bias = (
        tf.constant(rng.normal(size=s), tf.float32) for s in ((2, 5, 3, 4), (3, 3, 4, 6), 6)
    )
    weight = tf.constant(rng.normal(size=(2, 10, 6, 6)), tf.float32)

    def plain(x, kernel, bias):
        upsampled = tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2)
        return tf.nn.conv2d(upsampled, kernel, 1, "SAME") + bias

    results = []
    for function in (plain, form):
        with tf.GradientTape() as tape:
            tape.watch((x, kernel, bias))
            y = function(x, kernel, bias)
            loss = tf.reduce_sum(weight * y)
        results.append([y, *tape.gradient(loss, (x, kernel, bias))])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("half", [tf.bfloat16, tf.float16])
def test_upsampled_conv2d_in_half_precision(half, form):
    rng = np.random.default_rng(0)
    shapes = (4, 8, 8, 64), (3, 3, 64, 64), (64,)
    exact = [tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes]
    weight = tf.constant(rng.normal(size=(4, 16, 16, 64)), tf.float32)
    results = []
    for dtype in (tf.float32, half):
        arguments = [tf.cast(tensor, dtype) for tensor in exact]
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            y = form(*arguments)
            loss = tf.reduce_sum(tf.cast(weight, dtype) * y)
        results.append([tf.cast(t, tf.float32) for t in (y, *tape.gradient(loss, arguments))])
    for plain, rounded in zip(*results, strict=True):
        assert np.linalg.norm(plain - rounded) < 0.02 * np.linalg.norm(plain)


@pytest.mark.parametrize(
    "changed",
    [
        [layers.UpSampling2D(), layers.Conv2D(4, 3, padding="same", activation="relu")],
        [layers.UpSampling2D(), layers.Conv2D(4, 5, padding="same")],
        [layers.UpSampling2D(), layers.Conv2D(4, 3)],
        [layers.UpSampling2D(), layers.Conv2D(4, 3, padding="same", use_bias=False)],
        [layers.UpSampling2D(), layers.Conv2D(4, 3, padding="same", dilation_rate=2)],
        [layers.UpSampling2D(interpolation="bilinear"), layers.Conv2D(4, 3, padding="same")],
        [layers.UpSampling2D(), layers.UpSampling2D(), layers.Conv2D(4, 3, padding="same")],
        [layers.UpSampling2D()],
        [layers.UpSampling2D(dtype="bfloat16"), layers.Conv2D(4, 3, padding="same")],
        [layers.UpSampling2D(), layers.Conv2D(4, 3, padding="same", activity_regularizer="l2")],
        [layers.BatchNormalization(scale=False)],
        [layers.BatchNormalization(activity_regularizer="l2")],
        [layers.Flatten(), layers.Dense(5), layers.BatchNormalization()],
    ],
)
def test_fuse_keeps_what_it_cannot_compute_faster(changed):
    model = keras.Sequential([keras.Input((4, 4, 3)), *changed])
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    fused = art_gan.fuse(model)
    np.testing.assert_allclose(fused(x), model(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sum(fused.losses), sum(model.losses), rtol=1e-5)


@pytest.mark.parametrize(
    ("fused", "stock"),
    [
        (
            1,
            [
                layers.UpSampling2D(),
                layers.Conv2D(4, 3, padding="same", kernel_initializer="zeros"),
            ],
        ),
        (1, [layers.UpSampling2D(), layers.Conv2D(4, 3, padding="same", bias_regularizer="l2")]),
        (1, [layers.BatchNormalization(momentum=0.5, epsilon=0.1, gamma_constraint="non_neg")]),
        (2, [layers.BatchNormalization(trainable=False), layers.BatchNormalization()]),
        (0, [layers.UpSampling2D(), layers.Conv2D(4, 3)]),
    ],
)
def test_fuse_replaces_what_it_can_compute_faster(fused, stock):
    """Also if the weights start differently or are regularized."""
    model = art_gan.fuse(keras.Sequential([keras.Input((4, 4, 3)), *stock]))
    kinds = (art_gan.UpsampledConv2D, art_gan.FusedBatchNormalization)
    assert sum(isinstance(layer, kinds) for layer in model.layers) == fused


def test_every_such_layer_of_the_article_is_replaced():
    kinds = [type(layer).__name__ for model in build() for layer in art_gan.fuse(model).layers]
    assert (kinds.count("UpsampledConv2D"), kinds.count("FusedBatchNormalization")) == (3, 3 + 4)
    assert not {"UpSampling2D", "BatchNormalization"} & set(kinds)


@pytest.mark.parametrize("network", [0, 1], ids=["generator", "discriminator"])
@pytest.mark.parametrize("lists", [False, True])
def test_fuse_looks_through_the_articles_form(lists, network):
    """`Model(image, Sequential(...)(image))` gives the same fast model, of the same variables."""
    model = shaken(build()[network])
    inputs = keras.Input(model.input_shape[1:])
    outputs = model(inputs)
    article = keras.Model([inputs], [outputs]) if lists else keras.Model(inputs, outputs)
    fused, expected = art_gan.fuse(article), art_gan.fuse(model)
    assert [type(layer) for layer in fused.layers] == [type(layer) for layer in expected.layers]
    assert list(map(id, fused.trainable_variables)) == list(map(id, model.trainable_variables))
    start, x = model.get_weights(), tf.constant(batch(count=2)[1 - network])
    results = []
    for forward in (article, fused, expected):
        model.set_weights(start)
        output, gradients = forward_and_back(forward, model, x, True)
        results.append((tf.nest.flatten(output), gradients))
    ((plain_output,), plain), ((output,), gradients), ((same_output,), same) = results
    np.testing.assert_allclose(output, plain_output, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(output, same_output, rtol=1e-6, atol=1e-6)
    largest = max(np.linalg.norm(gradient) for gradient in plain)
    for a, b, c in zip(gradients, plain, same, strict=True):
        assert distance(a, b) < 5e-3 * np.linalg.norm(b) + 1e-5 * largest
        assert distance(a, c) < 1e-4 * np.linalg.norm(c) + 1e-6 * largest


class Halved(keras.Sequential):
    """It does something of its own with what its layers make."""

    def call(self, inputs, training=None):
        return 0.5 * super().call(inputs, training=training)


def other_model(kind):
    image = keras.Input((4, 4, 3))
    up, conv = layers.UpSampling2D(), layers.Conv2D(3, 3, padding="same")
    norm = layers.BatchNormalization()
    norms = keras.Sequential([keras.Input((4, 4, 3)), norm])
    match kind:
        case "branches":
            return keras.Model(image, layers.Add()([conv(up(image)), up(image)]))
        case "two inputs":
            other = keras.Input((4, 4, 3))
            return keras.Model([image, other], norm(layers.Add()([image, other])))
        case "two outputs":
            return keras.Model(image, [norm(image), conv(up(image))])
        case "functional":
            return keras.Model(image, norm(conv(up(image))))
        case "an operation that is no layer":
            return keras.Model(image, keras.ops.tanh(norm(image)))
        case "called with options":
            fixed = keras.Sequential([keras.Input((4, 4, 3)), up, conv, norm])
            return keras.Model(image, fixed(image, training=True))
        case "called twice":
            return keras.Model(image, norms(norms(image)))
        case "a call of its own":
            return Halved([image, up, conv, norm])
        case "a call of its own inside":
            return keras.Model(image, Halved([image, up, conv, norm])(image))
        case "nested":
            return keras.Sequential([keras.Input((4, 4, 3)), other_model("branches"), norm])


@pytest.mark.parametrize(
    "kind",
    [
        "branches",
        "two inputs",
        "two outputs",
        "functional",
        "an operation that is no layer",
        "called with options",
        "called twice",
        "a call of its own",
        "a call of its own inside",
        "nested",
    ],
)
def test_fuse_does_not_change_what_other_models_compute(kind):
    model = other_model(kind)
    rng = np.random.default_rng(0)
    x = [tf.constant(rng.normal(5, 2, (2, 4, 4, 3)), tf.float32) for _ in model.inputs]
    x = x if len(x) > 1 else x[0]
    start, fused = model.get_weights(), art_gan.fuse(model)
    results = []
    for forward in (model, fused):
        model.set_weights(start)
        results.append([forward(x), forward(x, training=True), model.get_weights()])
    for one, other in zip(*map(tf.nest.flatten, results), strict=True):
        # The fused moving variance is n / (n - 1) times the plain one, with n = 32 at the least
        np.testing.assert_allclose(one, other, rtol=0.04, atol=1e-3)


def test_a_model_with_branches_is_used_as_it_is():
    model = other_model("branches")
    assert art_gan.fuse(model) is model


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"beta_1": 0}, {"clipnorm": 0.1}])
def test_one_operation_of_adam_is_adam(options):
    rng = np.random.default_rng(0)
    results = []
    start = rng.normal(size=(5, 4)).astype(np.float32)
    gradients = rng.normal(size=(6, 5, 4)).astype(np.float32)
    for kind in (keras.optimizers.Adam, art_gan.FusedAdam):
        variable, adam = keras.Variable(start), kind(0.1, **options)
        for gradient in gradients:
            adam.apply([tf.constant(gradient)], [variable])
        results.append([variable.numpy(), *(v.numpy() for v in adam.variables)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_frozen_batch_normalization_stays_frozen():
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.BatchNormalization()])
    model.layers[0].trainable = False
    x = np.random.default_rng(0).normal(5, 2, (8, 4, 4, 3)).astype(np.float32)
    fused = art_gan.fuse(model)
    np.testing.assert_allclose(fused(x, training=True), model(x, training=False), rtol=1e-5)
    assert not model.layers[0].moving_mean.numpy().any()


def as_on_a_gpu(convolution):
    """A convolution that adds up in float32 and rounds the sum; a CPU rounds on the way."""

    def convolve(x, kernel, *arguments, **options):
        exact = (tf.cast(tensor, tf.float32) for tensor in (x, kernel))
        return tf.cast(convolution(*exact, *arguments, **options), x.dtype)

    return convolve


@pytest.mark.parametrize("name", [*FORMS, "discriminator"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_fused_is_as_exact_as_plain_in_half_precision(precision, training, name, monkeypatch):
    """The generator with each form of the upsampled convolution, and the discriminator."""
    monkeypatch.setattr(art_gan, "upsampled_conv2d", FORMS.get(name))
    monkeypatch.setattr(tf.nn, "conv2d_transpose", as_on_a_gpu(tf.nn.conv2d_transpose))
    network = int(name == "discriminator")
    twin = without_dropout(build()[network])
    keras.config.set_dtype_policy(precision)
    model = without_dropout(build()[network])
    fused = art_gan.fuse(model)
    assert {v.dtype for v in fused.trainable_variables} == {"float32"}
    start, x = model.get_weights(), batch(count=2)[1 - network]
    results = []
    for forward, owner in ((twin, twin), (model, model), (fused, model)):
        owner.set_weights(start)
        output, gradients = forward_and_back(forward, owner, tf.constant(x), training)
        assert output.dtype == tf.float32  # the last activation is not computed in half precision
        results.append((output, *gradients, *owner.get_weights()))
    exact, plain, fast = results
    off_plain, off_fast = (np.array(list(map(distance, exact, other))) for other in (plain, fast))
    size = np.array([np.linalg.norm(tensor) for tensor in exact])
    # A bias before a batch normalization has no effect: its gradient is nothing but rounding.
    factor = np.where(size < 0.01 * off_plain, 3, 1.5)
    assert (off_fast <= factor * off_plain + 0.02 * size + 1e-6).all()
