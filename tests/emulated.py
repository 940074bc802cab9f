"""What the emulator's tests share: building the micro-kernels of tests/emulator/ with each compiler."""

import os
import re
import shutil
from pathlib import Path

import pytest

from flashmoe_nb import cuda, emulator

FOLDER = Path(__file__).parent / "emulator"


@pytest.fixture(params=["g++", "clang++"])
def compiler(request, monkeypatch):
    "Builds inside the test use this compiler."
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    monkeypatch.setenv("CXX", request.param)
    return request.param


def source(file: str) -> cuda.Source:
    return cuda.Source(f"tests/{file}", (FOLDER / file).read_text())


def build(file: str, name: str, check=()) -> emulator.Built:
    return emulator.build(source(file), name, check=check)


def line(file: str, mark: str) -> str:
    "Where the line marked `here: name` (or `there: name`) stands, as messages say it."
    lines = (FOLDER / file).read_text().splitlines()
    (number,) = (i for i, text in enumerate(lines, 1) if re.search(rf"\b{mark}$", text))
    return f"kernels/tests/{file}:{number}"


def cores() -> int:
    return len(os.sched_getaffinity(0))
