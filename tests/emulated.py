"""What the emulator's tests share: building the micro-kernels of tests/emulator/ with each compiler."""

import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from flashmoe_nb import cuda, emulator

FOLDER = Path(__file__).parent / "emulator"


COMPILERS = {"g++": "g++", "clang++": "clang++"}
if importlib.util.find_spec("ziglang"):  # an extra of the package; where it is installed, it is tested too
    COMPILERS["zig"] = shlex.join([sys.executable, "-m", "ziglang", "c++"])


@pytest.fixture(params=COMPILERS)
def compiler(request, monkeypatch):
    "Builds inside the test use this compiler."
    if request.param != "zig" and shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    monkeypatch.setenv("CXX", COMPILERS[request.param])
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
