"""Runs every case on a GPU and writes hashes of its results to recorded.json, which tests/test_ptx.py replays.

python tests/ptx/record.py"""

import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from ptx.cases import CASES, digest  # noqa: E402, found through the line above


def environment() -> dict:
    ask = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    name, driver = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    return {"gpu": name, "driver": driver, "torch": torch.__version__, "date": date.today().isoformat()}


def run(name: str) -> tuple[list[str], bool]:
    "The hashes of a case's results, and whether they are what the oracle says."
    pairs = CASES[name]("cuda")
    return digest(pairs), all(torch.equal(got, want.to(got.dtype)) for got, want in pairs)


def main():
    # Several processes: most of the time goes into compiling. The cases that compile most begin first.
    names = sorted(CASES, key=lambda name: not name.startswith("wgmma_every_n"))
    with ProcessPoolExecutor(min(12, os.cpu_count()), mp_context=get_context("spawn")) as pool:
        results = dict(zip(names, pool.map(run, names), strict=True))
    digests = {name: results[name][0] for name in CASES}
    wrong = [name for name in CASES if not results[name][1]]
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(CASES)} cases are not what the oracle says; nothing recorded:\n" + "\n".join(wrong))
    (FOLDER / "recorded.json").write_text(json.dumps({"env": environment(), "digests": digests}, indent=1) + "\n")
    print(f"{len(digests)} cases recorded")


if __name__ == "__main__":
    main()
