"""Training on with something else (--init), and the networks that a run leaves for others."""

import re
import shutil

import keras
import numpy as np
import pytest
from conftest import checkpoints, contents, pictures, python, refusal, training
from helpers_edits import (
    LAST,
    OPTIMIZER,
    RETURN,
    change_settings,
    edited,
    in_discriminator,
    state,
)
from test_edits import AVERAGE, old_settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def programs(folder):
    """The script with the small networks, and edited."""
    return {
        "as it is": edited(folder),
        "another learning rate": edited(folder, (OPTIMIZER, "optimizer = FusedAdam(1e-2, 0.5)")),
        "another optimizer": edited(
            folder, (OPTIMIZER, "optimizer = keras.optimizers.RMSprop(1e-4)")
        ),
        "another slope": edited(folder, in_discriminator(("LeakyReLU(0.2)", "LeakyReLU(0.3)"))),
        "another dropout": edited(
            folder, in_discriminator((LAST, f"    model.add(layers.Dropout(0.1))\n{LAST}"))
        ),
        "more filters": edited(folder, in_discriminator(("Conv2D(8", "Conv2D(16"))),
    }


@pytest.fixture(scope="module")
def first(folder, data, programs):
    """A run of 3 iterations, in float32."""
    output = folder / "first"
    command = training(data, output, "--epochs", 3)
    assert programs["as it is"].main(list(map(str, command))) == 0
    return output


def weights(values):
    return {path: value for path, value in values.items() if "adam" not in path}


def moments(values):
    """The optimizer's variables but for the learning rate, and but for its own name."""
    return {
        path.split("/", 1)[1]: value
        for path, value in values.items()
        if "adam" in path and "learning_rate" not in path
    }


@pytest.fixture(scope="module")
def other_data(folder):
    np.save(folder / "more.npy", pictures(count=70))
    np.save(folder / "other.npy", pictures(seed=9))
    return {name: folder / f"{name}.npy" for name in ("more", "other")}


def test_init_tells_networks_apart_whose_weights_have_the_same_names(data, tmp_path, main):
    """An average of the generator, cloned, has its names, too."""
    program = edited(tmp_path, *AVERAGE, (RETURN, f"{RETURN}, average"))
    old, new = tmp_path / "old", tmp_path / "new"
    assert main(*training(data, old, "--epochs", 2), program=program).returncode == 0
    command = training(data, new, "--epochs", 1, "--init", old, "--checkpoint-seconds", 0)
    assert main(*command, program=edited(tmp_path)).returncode == 0
    values, _ = state(new, 0)
    for weight in keras.models.load_model(old / "generator.keras").weights:
        (found,) = [value for path, value in values.items() if path == f"generator/{weight.path}"]
        np.testing.assert_array_equal(found, weight.numpy(), err_msg=weight.path)


CHANGES = {
    "batch size, pictures, rate": (
        "another learning rate",
        ["--batch-size", 8, "--data", "more", "--seed", 5, "--save-freq", 3],
    ),
    "mixed_bfloat16, other pictures, slope": (
        "another slope",
        ["--precision", "mixed_bfloat16", "--data", "other"],
    ),
    "mixed_float16": ("as it is", ["--precision", "mixed_float16"]),
    "optimizer": ("another optimizer", []),
    "dropout": ("another dropout", []),
}


@pytest.mark.parametrize(("program", "options"), CHANGES.values(), ids=CHANGES)
def test_init_begins_with_the_networks_and_moments_of_another_run(
    program, options, first, data, other_data, output, programs, main
):
    before, expected = contents(first), state(first)[0]
    options = [other_data.get(each, each) for each in options]
    command = training(data, output, "--epochs", 2, *options)
    result = main(*command, "--init", first, program=programs[program])
    assert result.returncode == 0, result.stderr
    line = f"Starting with the networks of {first} after 3 iterations"
    assert result.stdout.splitlines()[0] == line
    assert contents(first) == before
    values, settings = state(output, 0)
    assert settings["--init"] == {"run": str(first), "iteration": 3}
    for path, value in weights(expected).items():
        np.testing.assert_array_equal(values[path], value, err_msg=path)
    if program != "another optimizer":
        kept = moments(values)
        for path, value in moments(expected).items():
            np.testing.assert_array_equal(kept[path], value, err_msg=path)
    (rate,) = (values[p] for p in values if re.fullmatch("(fused_adam|rm_sprop)/learning_rate", p))
    rates = {"another learning rate": 1e-2, "another optimizer": 1e-4}
    assert rate == np.float32(rates.get(program, 1.5e-4))
    trained = state(output)[0]
    assert not all(np.array_equal(trained[path], values[path]) for path in weights(expected))


def test_a_run_resumes_when_the_one_that_it_began_with_has_gone_on_or_is_gone(
    first, data, output, tmp_path, programs, main
):
    program, copy = programs["as it is"], tmp_path / "copy"
    shutil.copytree(first, copy)
    command = *training(data, output, "--batch-size", 8), "--init", copy
    assert main(*command, "--epochs", 1, program=program).returncode == 0
    more = training(data, copy, "--epochs", 4)
    assert main(*more, program=program).returncode == 0
    assert "Resuming from iteration 1" in main(*command, "--epochs", 2, program=program).stdout
    shutil.rmtree(copy)
    assert "Resuming from iteration 2" in main(*command, "--epochs", 3, program=program).stdout
    command = training(data, output, "--batch-size", 8, "--epochs", 4)
    line = refusal(main(*command, "--init", first, program=program))
    assert f"(--init run was {copy}"[:60] in line
    assert "Resuming from iteration 3" in main(*command, program=program).stdout  # without it
    assert state(output)[1]["--init"] == {"run": str(copy), "iteration": 3}
    # A run of its own does not take it up later
    own = training(data, tmp_path / "own", "--epochs", 1)
    assert main(*own, program=program).returncode == 0
    line = refusal(main(*own, "--init", first, program=program))
    assert "(--init run was None, is " in line


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_moments_come_back_from_half_precision(precision, data, tmp_path, programs, main):
    program, half = programs["as it is"], tmp_path / "half"
    command = training(data, half, "--epochs", 2, "--precision", precision)
    assert main(*command, program=program).returncode == 0
    command = training(data, tmp_path / "float32", "--epochs", 1, "--init", half)
    assert main(*command, program=program).returncode == 0
    expected, values = state(half)[0], state(tmp_path / "float32", 0)[0]
    for path, value in weights(expected).items():
        if path in values:  # a loss scale has no place there
            np.testing.assert_array_equal(values[path], value, err_msg=path)
    there, here = moments(expected), moments(values)
    assert len(here) > 15
    for path, value in here.items():
        np.testing.assert_array_equal(value, there[path], err_msg=path)


def test_init_from_a_state_without_a_record(first, data, tmp_path, output, programs, main):
    """An older version saved no names of variables."""
    copy = tmp_path / "older"
    shutil.copytree(first, copy)
    change_settings(copy, old_settings)
    expected = weights(state(first)[0])
    for number, precision in enumerate(("float32", "mixed_float16")):
        where = tmp_path / precision
        command = training(data, where, "--epochs", 1, "--precision", precision, "--init", copy)
        assert main(*command, program=programs["as it is"]).returncode == 0, number
        values = state(where, 0)[0]
        for path, value in expected.items():
            np.testing.assert_array_equal(values[path], value, err_msg=path)
        for path, value in moments(values).items():
            wanted = moments(state(first)[0]).get(path)
            known = wanted is not None and np.array_equal(value, wanted)
            assert known or not value.any() or "scale" in path or "step" in path, path


def test_init_is_refused_in_one_line(first, data, folder, output, tmp_path, programs, main):
    program = programs["as it is"]
    np.save(tmp_path / "large.npy", pictures(count=8, size=64))
    (tmp_path / "empty").mkdir()
    before = contents(first)
    for options, words in (
        ([data, output, "--init", tmp_path / "missing"], "holds no checkpoint"),
        ([data, output, "--init", tmp_path / "empty"], "holds no checkpoint"),
        ([data, first, "--fresh", "--init", first], "another run"),
        ([data, first, "--fresh", "--init", first.parent / "." / "first"], "another run"),
        ([tmp_path / "large.npy", output, "--init", first], "same networks and size"),
    ):
        line = refusal(main(*training(*options, "--epochs", 1), program=program))
        assert words in line and "--init" in line and len(line) < 300
        assert not checkpoints(output)
    command = training(data, output, "--epochs", 1, "--init", first)
    line = refusal(main(*command, program=programs["more filters"]))
    assert "conv2d/kernel" in line and "16" in line and "8" in line
    for job in ("--generate", "--interpolate"):
        with pytest.raises(SystemExit) as exit:
            main("--init", first, job, 4, program=program)
        assert exit.value.code == 2
    assert contents(first) == before


OPEN = """\
import sys, numpy as np
from tensorflow import keras
model = keras.models.load_model(sys.argv[1])
assert "art_gan" not in sys.modules
assert {w.dtype for w in model.weights if "seed" not in w.path} == {"float32"}
assert model.dtype_policy.name == "float32"
pictures = np.load(sys.argv[2])[:5]
out = model.predict(pictures, verbose=0)
assert out.shape == (5, 1) and out.dtype == np.float32 and (0 < out).all() and (out < 1).all()
print(model.name, len(model.layers))
"""


def test_the_discriminator_opens_without_this_project(data, output, tmp_path, programs, main):
    """In float32, with the weights of the newest state, whatever the precision of the run was."""
    command = training(data, output, "--epochs", 2, "--precision", "mixed_bfloat16")
    assert main(*command, program=programs["as it is"]).returncode == 0
    result = python("-c", OPEN, output / "discriminator.keras", data, cwd=tmp_path)
    assert result.stdout == "discriminator-2 6\n", result.stderr
    saved = keras.models.load_model(output / "discriminator.keras")
    names = [weight.path for weight in saved.weights]
    assert len(names) == 8
    for path, weight in zip(names, saved.get_weights(), strict=True):
        trained = state(output)[0]
        np.testing.assert_array_equal(weight, trained[f"discriminator/{path}"], err_msg=path)
