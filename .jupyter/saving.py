"""What JupyterLab writes when it saves a notebook of the workbook.

Outputs stored in nbs/ come from one place, a run on a GPU (`make gpu-notebooks`), so that every number a reader sees
was measured on the machine the notebook names. What you compute while editing is yours to see, and is not saved. A
stored output stays as long as its cell does: same id, same source.
"""

import json
from pathlib import Path

from nbdev.clean import clean_nb


def source_of(cell):
    """A cell's source as one string; files hold a list of lines."""
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def clean(notebook, stored=None):
    """Clean `notebook` in place as nbdev_clean does, and give its cells the outputs that `stored` has for them.

    Both are notebooks as dicts, format 4; `stored` is what is on disk, or None for a new file. A code cell of which
    `stored` has none with the same id and source ends up without outputs.
    """
    clean_nb(notebook)
    known = {(cell.get("id"), source_of(cell)): cell for cell in (stored or {}).get("cells", [])}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            twin = known.get((cell["id"], source_of(cell)), {})
            cell["outputs"] = twin.get("outputs", [])
            cell["execution_count"] = twin.get("execution_count")


def pre_save_hook(model, path, contents_manager, **_):
    """Jupyter calls this before it writes `model` to `path`, which is relative to the server's root."""
    if model["type"] != "notebook" or model["content"]["nbformat"] != 4:
        return
    file = Path(contents_manager.root_dir) / path.strip("/")
    clean(model["content"], json.loads(file.read_text(encoding="utf-8")) if file.exists() else None)
