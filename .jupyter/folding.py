"""How JupyterLab opens a notebook of the workbook: cells that hold an exercise's solution and its check are folded.

The site hides cells that begin with `#| hide`, and a reader of JupyterLab should not find the answer under the
question either. One click unfolds such a cell. Files know nothing of it: saving drops the mark (saving.py).
"""

from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from saving import source_of


def fold(notebook):
    """Mark the code cells of `notebook` (a dict, format 4) whose first line is `#| hide` as folded, in place."""
    for cell in notebook["cells"]:
        first = source_of(cell).lstrip().partition("\n")[0]
        if cell["cell_type"] == "code" and first.replace(" ", "") == "#|hide":
            cell["metadata"] = {**cell["metadata"], "jupyter": {"source_hidden": True}}


class WorkbookContents(AsyncLargeFileManager):
    """The files below the root folder; notebooks come with the cells folded that `fold` chooses."""

    async def get(self, path, *arguments, **options):
        model = await super().get(path, *arguments, **options)
        if model["type"] == "notebook" and model["content"] and model["content"]["nbformat"] == 4:
            fold(model["content"])
        return model
