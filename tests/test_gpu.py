"""Finding an NVIDIA GPU, and what is said where none is found.

No GPU is needed: NVIDIA's packages are asked for their libraries alone, or are played by empty
folders. TensorFlow sees no GPU in these tests, and where one is there, it is hidden.
"""

import importlib.util
import os
import shutil
from pathlib import Path

import numpy.random
import pytest
from conftest import ART_GAN, environment, python, script, training

pytestmark = pytest.mark.slow
CUSOLVER = "cusolver/lib/libcusolver.so.*"
PACKAGES = ("cuda_nvcc/bin", "cudnn/lib", "cusolver/lib")  # some of tensorflow[and-cuda]'s folders

# Ask TensorFlow whether it finds all libraries that a GPU needs; 1 is the only good answer.
ASK_THE_LOADER = """
import ctypes, pathlib
import art_gan

library = pathlib.Path(art_gan.tf.__file__).with_name("libtensorflow_framework.so.2")
ask = ctypes.CDLL(library)._ZN3tsl8internal9DsoLoader26MaybeTryDlopenGPULibrariesEv
ask.argtypes, ask.restype = [ctypes.c_void_p], ctypes.c_void_p
status = ctypes.c_uint64()  # an absl::Status, which C++ returns through a hidden pointer
ask(ctypes.byref(status))
print("found" if status.value == 1 else "not found")
"""


def installed():
    nvidia = importlib.util.find_spec("nvidia")
    folders = nvidia.submodule_search_locations if nvidia else []
    return any(list(Path(folder).glob(CUSOLVER)) for folder in folders)


@pytest.mark.skipif(not installed(), reason='needs pip install "tensorflow[and-cuda]"')
def test_tensorflow_finds_every_library_of_nvidias_packages():
    answer = python("-c", ASK_THE_LOADER)
    assert answer.stdout.splitlines()[-1:] == ["found"], answer.stderr


@pytest.fixture
def machine(tmp_path):
    """Give the environment of a machine without a visible GPU, whose `nvidia` holds `packages`."""

    def prepare(*packages, **variables):
        nvidia = tmp_path / "site-packages" / "nvidia"
        for folder in packages:
            (nvidia / folder).mkdir(parents=True)
        nvidia.mkdir(parents=True, exist_ok=True)
        (nvidia / "__init__.py").touch()  # found before the real one, if that is installed
        variables = {"CUDA_VISIBLE_DEVICES": "99"} | variables  # there, but not that many
        env = environment(**variables)
        env["PYTHONPATH"] = f"{nvidia.parent}{os.pathsep}{env['PYTHONPATH']}"
        if "TF_CPP_MIN_LOG_LEVEL" not in variables:  # this process has set it itself
            env.pop("TF_CPP_MIN_LOG_LEVEL", None)
        return env

    return prepare


def ours(result):
    """The lines on stderr that are not TensorFlow's."""
    lines = result.stderr.splitlines()
    return [line for line in lines if line.startswith(("art_gan.py: ", "warning: ", "Traceback"))]


def test_cusolver_is_loaded_and_a_damaged_one_is_no_obstacle(machine, tmp_path):
    env = machine(*PACKAGES)
    library = tmp_path / "site-packages" / "nvidia" / "cusolver" / "lib" / "libcusolver.so.11"
    shutil.copy(numpy.random.bit_generator.__file__, library)  # any library will do
    library.with_name("libcusolver.so.10").write_text("damaged")
    code = "import art_gan; print(open('/proc/self/maps').read())"
    result = python("-c", code, env=env)
    assert result.returncode == 0, result.stderr
    assert f" {library}\n" in result.stdout


def test_with_nvidias_packages_and_no_gpu_nothing_trains_by_accident(
    machine, data, generator, output, tmp_path
):
    env = machine(*PACKAGES)
    new = tmp_path / "new"
    options = training(data, new, "--epochs", 1)
    refused = script(*options, env=env)
    assert refused.returncode == 1
    (line,) = ours(refused)
    assert refused.stderr.splitlines()[-1] == line
    assert line.startswith("art_gan.py: error: ") and "no NVIDIA GPU" in line
    assert "TF_CPP_MIN_LOG_LEVEL=0" in line and "CUDA_VISIBLE_DEVICES=-1" in line
    assert not list(new.glob("*.*"))

    explained = script(*options, env=env | {"TF_CPP_MIN_LOG_LEVEL": "0"})
    assert explained.returncode == 1
    assert ours(explained) == [line]
    assert explained.stderr.count("failed call to cuInit") == 1

    meant = script(*options, env=env | {"CUDA_VISIBLE_DEVICES": "-1"})
    assert meant.returncode == 0
    assert "Training on the CPU" in meant.stdout
    assert not meant.stderr

    painted = script("--generate", 1, "--output", output, env=env)
    assert painted.returncode == 0
    (line,) = ours(painted)
    assert line.startswith("warning: ") and "no NVIDIA GPU" in line


def test_without_nvidias_packages_a_gpu_is_named_and_the_cpu_trains(
    machine, data, output, tmp_path
):
    (tmp_path / "nvidia-smi").touch(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    env = machine("cudnn/lib", PATH=path)  # PyTorch brings that one to all machines
    result = script(*training(data, output, "--epochs", 1), env=env)
    assert result.returncode == 0, result.stderr
    assert "Training on the CPU" in result.stdout
    (line,) = ours(result)
    assert line.startswith("warning: ") and 'pip install "tensorflow[and-cuda]' in line


def test_the_readmes_commands_print_nothing_of_tensorflows_own(machine, data, output):
    env = machine(CUDA_VISIBLE_DEVICES="-1")
    paint = ("--generate", 1, "--output", output)
    for options in (training(data, output, "--epochs", 1), paint):
        result = python(ART_GAN, *options, env=env)
        assert (result.returncode, result.stderr) == (0, "")
