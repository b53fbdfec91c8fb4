"""The tests run on the CPU: there, float32 is exact (a GPU multiplies in TF32) and repeatable."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: starts processes or computes large networks")
