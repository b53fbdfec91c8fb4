"""What the tests of the networks share."""

from functools import partial

import numpy as np
import tensorflow as tf
from keras import layers

import art_gan

loss_and_gradients = partial(art_gan.loss_and_gradients, scale_loss=tf.identity)
FORMS = {
    "9 products": art_gan.upsampled_conv2d_9,  # for a CPU
    "transposed": art_gan.upsampled_conv2d_transposed,  # for a GPU
}


def build(height=32, width=None, channels=3):
    """The article's generator and discriminator."""
    shape = (height, width or height, channels)
    return art_gan.build_generator(art_gan.NOISE_SIZE, shape), art_gan.build_discriminator(shape)


def without_dropout(model):
    for layer in model.layers:
        if isinstance(layer, layers.Dropout):
            layer.rate = 0
    return model


def batch(height=32, count=8, seed=0, width=None, channels=3):
    rng = np.random.default_rng(seed)
    shape = (count, height, width or height, channels)
    pictures = rng.uniform(-1, 1, shape).astype(np.float32)
    return pictures, art_gan.random_noise(count, seed, 0)
