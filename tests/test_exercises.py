"""Every exercise of the workbook says whether it is solved: by a cell that checks it, or by an answer to unfold."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "nbs").glob("[0-9]*.ipynb"))
ITEM = re.compile(r"(?m)^(?=## |\d\. |\*\*\d\. |### )")


def exercises(cells) -> dict[str, bool]:
    "The first words of each exercise, and whether a reader can tell that it is solved."
    found, inside, last = {}, False, None
    for kind, source in cells:
        if kind == "code":
            if inside and last and not source.startswith("#| hide\n"):
                found[last] = True
            continue
        for part in ITEM.split(source):
            if part.startswith("## "):
                inside, last = part.startswith("## Exercise"), None
                if not inside or part.startswith("## Exercises"):
                    continue  # their items follow; a single exercise stands behind its own heading
            if inside and (match := re.match(r"(?:## Exercise\s+)?(?:\d\. )?\**([^\n]{8,60})", part)):
                last = match[1]
                found[last] = "<details>" in part
    return found


def cells_of(path: Path):
    return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exercises_can_be_judged(path):
    found = exercises(cells_of(path))
    assert all(found.values()), [words for words, judged in found.items() if not judged]


def test_one_that_nobody_judges_is_found():
    text = "## Exercises\n\n1. **One.** A question.\n2. **Two, the second.** Another.\n\n   <details>\n\n   It.\n\n   </details>\n"
    assert list(exercises([("markdown", text)]).values()) == [False, True]
    assert list(exercises([("markdown", text), ("code", "#| hide\nx = 1")]).values()) == [False, True]
    assert list(exercises([("markdown", "## Exercise\n\nWrite it, please."), ("code", "def f(): ...")]).values()) == [True]
    assert exercises([("markdown", "## Next\n\n1. **No exercise.** At all.")]) == {}
