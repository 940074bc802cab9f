"""Runs every case on a GPU and writes hashes of its results to recorded.json, which tests/test_ptx.py replays.

python tests/ptx/record.py"""

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from ptx.cases import CASES, digest  # noqa: E402, found through the line above


def environment() -> dict:
    ask = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    name, driver = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    return {"gpu": name, "driver": driver, "torch": torch.__version__, "date": date.today().isoformat()}


def main():
    digests, wrong = {}, []
    for name, case in CASES.items():
        pairs = case("cuda")
        digests[name] = digest(pairs)
        if not all(torch.equal(got, want.to(got.dtype)) for got, want in pairs):
            wrong.append(name)
    if wrong:
        raise SystemExit(
            f"{len(wrong)} of {len(CASES)} cases are not what the oracle says; nothing recorded:\n" + "\n".join(wrong)
        )
    (FOLDER / "recorded.json").write_text(json.dumps({"env": environment(), "digests": digests}, indent=1) + "\n")
    print(f"{len(digests)} cases recorded")


if __name__ == "__main__":
    main()
