"""The README's SkyPilot task, given to SkyPilot (pip install skypilot) to read."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_skypilot_reads_the_task_in_the_readme(tmp_path, monkeypatch):
    sky = pytest.importorskip("sky")
    tasks = re.findall(r"^```yaml\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(tasks) == 1
    monkeypatch.chdir(tmp_path)
    Path("task.yaml").write_text(tasks[0])
    Path("cubism_data.npy").touch()
    task = sky.Task.from_yaml("task.yaml")
    assert all(resources.use_spot for resources in task.resources)
    assert {name for r in task.resources for name in r.accelerators} == {"A100", "L4", "T4", "V100"}
    data, output = re.search(r"--data (\S+) --output (\S+)", task.run).groups()
    assert task.file_mounts == {data: "./cubism_data.npy"}
    assert any(output.startswith(f"{mount}/") for mount in task.storage_mounts)
