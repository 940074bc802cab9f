"""What all tests share: GPU tests are skipped where there is no GPU, and say so."""

import os
from pathlib import Path

import another_nvrtc
import pytest
import torch

torch.set_num_threads(1)  # the emulator and parallel test processes use the cores

if folder := os.environ.get("NVRTC_FOLDER"):
    another_nvrtc.use(Path(folder).resolve())


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; `make gpu-test` runs it on one"))
