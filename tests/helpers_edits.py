"""Copies of art_gan.py, edited as its users edit it."""

import importlib.util
import itertools
import json
import re
import shutil
import sys

import numpy as np
from conftest import ART_GAN, checkpoints

# Small networks with the layers of the article's, which compile in a second.
DISCRIMINATOR = """\
def build_discriminator(image_shape):
    model = keras.Sequential([keras.Input(image_shape)], name="discriminator")
    model.add(layers.Conv2D(8, kernel_size=3, strides=4, padding="same"))
    model.add(layers.BatchNormalization(momentum=0.8))
    model.add(layers.LeakyReLU(0.2))
    model.add(layers.Dropout(0.25))
    model.add(layers.Flatten())
    model.add(layers.Dense(1, activation="sigmoid", dtype="float32"))
    return model
"""
GENERATOR = """\
def build_generator(noise_size, image_shape):
    model = keras.Sequential([keras.Input((noise_size,))], name="generator")
    height, width, channels = image_shape
    model.add(layers.Dense(height // 8 * (width // 8) * 8, activation="relu"))
    model.add(layers.Reshape((height // 8, width // 8, 8)))
    model.add(layers.UpSampling2D(4))
    model.add(layers.UpSampling2D())
    model.add(layers.Conv2D(8, kernel_size=3, padding="same"))
    model.add(layers.BatchNormalization(momentum=0.8))
    model.add(layers.Activation("relu"))
    model.add(layers.Conv2D(channels, kernel_size=3, padding="same"))
    model.add(layers.Activation("tanh", dtype="float32"))
    return model
"""
# Lines of art_gan.py that are edited
LABELS = "Y_REAL, Y_FAKE = 1.0, 0.0"
LABEL = "\n    y_real, y_fake = Y_REAL, Y_FAKE\n"
OPTIMIZER = "optimizer = FusedAdam(1.5e-4, beta_1=0.5)"
RETURN = "return iteration, optimizer"
FAKES = "        x_fake = fast_generator(noise, training=False)\n"
COMBINED = "    combined = build_combined("
LAST = "    return model\n"

numbers = itertools.count()


def changed(text, *changes):
    """A text after changes: (old, new) for words, or new code for a whole function."""
    for change in changes:
        if isinstance(change, str):  # what stands before the function is put before it
            name = re.search(r"^def (build_\w+|binary_crossentropy)\(", change, re.MULTILINE)[1]
            function = rf"^def {name}\(.*?(?=^(?![ )\n]))"
            text, count = re.subn(
                function, lambda _, code=change: f"{code}\n\n", text, flags=re.DOTALL | re.MULTILINE
            )
            assert count == 1, name
        else:
            assert change[0] in text, change[0]
            text = text.replace(*change)
    return text


def write_edited(folder, *changes, small=True):
    """Write an edited art_gan.py beside image_resizer.py; returns its path."""
    folder.mkdir(exist_ok=True)
    shutil.copy(ART_GAN.with_name("image_resizer.py"), folder)
    path = folder / "art_gan.py"
    networks = (DISCRIMINATOR, GENERATOR) if small else ()
    path.write_text(changed(ART_GAN.read_text(), *networks, *changes))
    return path


def edited(folder, *changes, small=True):
    """An edited art_gan.py as a module."""
    name = f"art_gan_edited_{next(numbers)}"
    path = write_edited(folder / name, *changes, small=small)
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_discriminator(*changes):
    """The small discriminator, changed."""
    return changed(DISCRIMINATOR, *changes)


def in_generator(*changes):
    """The small generator, changed."""
    return changed(GENERATOR, *changes)


def in_iteration(code):
    """Lines put into the iteration, where its labels are known."""
    lines = "".join(f"        {line}\n" for line in code.splitlines())
    return (FAKES, f"        y_real, y_fake = Y_REAL, Y_FAKE\n{lines}{FAKES}")


def state(output, number=-1):
    """The variables of a checkpoint by their paths, and its settings."""
    with np.load(checkpoints(output)[number]) as file:
        settings = json.loads(str(file["settings"]))
        values = [file[f"arr_{i}"] for i in range(len(file.files) - 2)]
    return dict(zip(settings["variables"], values, strict=True)), settings


def change_settings(output, change):
    """Change the settings that are saved in each checkpoint."""
    for path in checkpoints(output):
        with np.load(path) as file:
            content = {name: file[name] for name in file.files}
        content["settings"] = json.dumps(change(json.loads(str(content["settings"]))))
        with open(path, "wb") as file:
            np.savez(file, **content)
