"""How JupyterLab opens a notebook of the workbook: cells that hold an exercise's solution and its check are folded.

The site hides cells that begin with `#| hide`, and a reader of JupyterLab should not find the answer under the
question either. One click unfolds such a cell. The kernel is described as JupyterLab would describe it. Files know
nothing of either: saving drops both (saving.py).
"""

import platform

from ipykernel.kernelspec import get_kernel_dict
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from saving import source_of


def fold(notebook):
    """Mark the code cells of `notebook` (a dict, format 4) whose first line is `#| hide` as folded, in place."""
    for cell in notebook["cells"]:
        first = source_of(cell).lstrip().partition("\n")[0]
        if cell["cell_type"] == "code" and first.replace(" ", "") == "#|hide":
            cell["metadata"] = {**cell["metadata"], "jupyter": {"source_hidden": True}}


def describe_kernel(notebook):
    """Say of the kernel what JupyterLab would write into `notebook` itself, which then counted as changed once opened."""
    if notebook["metadata"].get("kernelspec", {}).get("name", "python3") != "python3":
        return
    mode = {"name": "ipython", "version": 3}
    shown = get_kernel_dict()["display_name"]
    notebook["metadata"]["kernelspec"] = {"display_name": shown, "language": "python", "name": "python3"}
    notebook["metadata"]["language_info"] = {
        "codemirror_mode": mode, "file_extension": ".py", "mimetype": "text/x-python", "name": "python",
        "nbconvert_exporter": "python", "pygments_lexer": "ipython3", "version": platform.python_version(),
    }  # fmt: skip


class WorkbookContents(AsyncLargeFileManager):
    """The files below the root folder; notebooks come with the cells folded that `fold` chooses."""

    async def get(self, path, *arguments, **options):
        model = await super().get(path, *arguments, **options)
        if model["type"] == "notebook" and model["content"] and model["content"]["nbformat"] == 4:
            fold(model["content"])
            describe_kernel(model["content"])
        return model
