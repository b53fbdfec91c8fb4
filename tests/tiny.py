"""art_gan.py with networks that compile at once, for tests that are not about the networks.

All other lines are those of art_gan.py. It can be imported, and run as a script.
"""

from pathlib import Path

ART_GAN = Path(__file__).parents[1] / "art_gan.py"
NETWORKS = """
def build_discriminator(image_shape):
    model = keras.Sequential([keras.Input(image_shape)], name="discriminator")
    model.add(layers.AveragePooling2D(8))
    model.add(layers.Flatten())
    model.add(layers.Dropout(0.25))
    model.add(layers.Dense(1, activation="sigmoid", dtype="float32"))
    return model


def build_generator(noise_size, image_shape):
    model = keras.Sequential([keras.Input((noise_size,))], name="generator")
    height, width, channels = image_shape
    model.add(layers.Dense(height // 8 * (width // 8) * channels, activation="tanh"))
    model.add(layers.Reshape((height // 8, width // 8, channels)))
    sides = (0, height - height // 8), (0, width - width // 8)
    model.add(layers.ZeroPadding2D(sides, dtype="float32"))
    return model


"""


def edited(source):
    """The text of art_gan.py with the small networks."""
    before, rest = source.split("def build_discriminator(", 1)
    _, after = rest.split("def save_images(", 1)
    return f"{before}{NETWORKS}def save_images({after}"


exec(compile(edited(ART_GAN.read_text()), __file__, "exec"))
