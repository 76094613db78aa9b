"""What all tests share: seeds, one thread, the data folder, and which markers run when."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from helpers import SHARED
from petomo.cli import main

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported

settings.register_profile("petomo", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("petomo")


def pytest_collection_modifyitems(config, items):
    """Slow tests run only when the -m expression is given, GPU tests only where there is a GPU."""
    slow = pytest.mark.skip(reason="slow: run with -m slow")
    gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "slow" in item.keywords and not config.getoption("-m"):
            item.add_marker(slow)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(gpu)


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (third-party code may use the global generator)
    torch.set_num_threads(1)


@pytest.fixture
def petomo(monkeypatch, capsys):
    """The command line in this process: exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["petomo", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def shared_data() -> Path:
    """Folder of external reference data beside the checkout; the test is skipped where there is none."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}")
    return folder
