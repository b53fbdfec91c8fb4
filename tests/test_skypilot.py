"""The README's SkyPilot task, given to SkyPilot (pip install skypilot) to read."""

import os
import re
import subprocess
from pathlib import Path

import pytest

import art_gan

README = Path(__file__).parent.parent / "README.md"


def run_with_stubs(script: str, folder: Path, envs: dict[str, str]) -> list[str]:
    """Run a task's shell commands; its programs only print their arguments, one per line."""
    for name in ("pip", "uv", ".venv/bin/python"):
        program = folder / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
        program.chmod(0o755)
    envs = {**os.environ, **envs, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", "-e", "-c", script]
    done = subprocess.run(command, cwd=folder, env=envs, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(("overrides", "seed"), [([], 0), ([("SEED", "5")], 5)])
def test_skypilot_reads_the_task_in_the_readme(overrides, seed, tmp_path, monkeypatch):
    sky, yaml = pytest.importorskip("sky"), pytest.importorskip("yaml")
    tasks = re.findall(r"^```yaml\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(tasks) == 1
    monkeypatch.chdir(tmp_path)
    Path("cubism_data.npy").touch()
    # This is how `sky jobs launch --env SEED=5 task.yaml` reads a task.
    task = sky.Task.from_yaml_config(yaml.safe_load(tasks[0]), env_overrides=overrides)
    assert all(resources.use_spot for resources in task.resources)
    gpus = {name for resources in task.resources for name in resources.accelerators}
    assert gpus == {"A100", "L4", "T4", "V100"}
    # Newer versions of cuDNN do not run on a V100.
    assert "nvidia-cudnn-cu12<9.11" in run_with_stubs(task.setup, tmp_path, task.envs)

    # SkyPilot appends commands that wait for the last uploads; an `exec` would skip them.
    script = f"{task.run}\necho then the uploads\n"
    program, *arguments, last = run_with_stubs(script, tmp_path, task.envs)
    assert (program, last) == ("art_gan.py", "then the uploads")
    args = art_gan.parse_args(arguments)
    assert args.seed == seed
    assert args.output == f"/output/seed-{seed}"
    assert not args.fresh  # a job that is restarted would start over each time
    assert args.precision != "mixed_bfloat16"  # the T4 and the V100 do not have it
    assert task.file_mounts == {args.data: "./cubism_data.npy"}
    assert task.storage_mounts["/output"].mode == sky.StorageMode.MOUNT_CACHED
