"""JupyterLab's configuration: what saving keeps and drops, and which kernels start with the magic."""

import asyncio
import copy
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import nbformat
import pytest
from browser.support import ROOT, SAMPLE
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

sys.path.insert(0, str(ROOT / ".jupyter"))
import folding  # noqa: E402
import saving  # noqa: E402
import specs  # noqa: E402

PLOT = {"output_type": "display_data", "data": {"text/plain": "a plot"}, "metadata": {}}
LOCAL = {"output_type": "stream", "name": "stdout", "text": "computed here"}


def code(id, source, outputs=(), count=None):
    return {"cell_type": "code", "id": id, "source": source, "metadata": {}, "outputs": list(outputs),
            "execution_count": count}  # fmt: skip


def notebook(*cells, **metadata):
    return {"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def cleaned(edited, stored=None):
    saving.clean(edited, stored)
    return edited["cells"]


def test_a_stored_output_stays_while_its_cell_does():
    stored = notebook(code("a", "plot()", [PLOT], 3))
    (cell,) = cleaned(notebook(code("a", "plot()", [LOCAL], 17)), stored)
    assert cell["outputs"] == [PLOT] and cell["execution_count"] == 3


@pytest.mark.parametrize("edited", [code("a", "plot(2)", [PLOT, LOCAL]), code("b", "plot()", [PLOT])])
def test_an_output_goes_with_a_changed_source_or_id(edited):
    (cell,) = cleaned(notebook(edited), notebook(code("a", "plot()", [PLOT])))
    assert cell["outputs"] == [] and cell["execution_count"] is None


def test_outputs_computed_here_are_not_saved():
    assert cleaned(notebook(code("a", "1 + 1", [LOCAL], 1)))[0]["outputs"] == []
    assert cleaned(notebook(code("a", "1 + 1", [LOCAL], 1)), notebook(code("a", "1 + 1")))[0]["outputs"] == []


def test_a_cell_is_found_again_wherever_it_moved_and_however_its_source_is_written():
    stored = notebook(code("a", ["x = 1\n", "x"], [PLOT]), code("b", "y"))
    cells = cleaned(notebook(code("b", "y"), code("a", "x = 1\nx")), stored)
    assert [cell["outputs"] for cell in cells] == [[], [PLOT]]


def test_volatile_metadata_goes():
    cell = code("a", "x") | {"metadata": {"collapsed": True, "execution": {"iopub.status.busy": "now"}}}
    text = {"cell_type": "markdown", "id": "m", "source": "text", "metadata": {"editable": True}}
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    edited = notebook(cell, text, kernelspec=kernel, language_info={"version": "3.11.7"})
    saving.clean(edited)
    assert [cell["metadata"] for cell in edited["cells"]] == [{}, {}]
    assert edited["metadata"] == {"kernelspec": {**kernel, "display_name": "python3"}}


def test_saving_an_unchanged_notebook_changes_nothing():
    stored = json.loads(SAMPLE.read_text(encoding="utf-8"))
    edited = copy.deepcopy(stored)
    saving.clean(edited, stored)
    assert edited == stored


def done(coroutine):
    "Its result, in a thread: a browser's test may have left an event loop running in this one."
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


@pytest.mark.filterwarnings("ignore:Overriding existing pre_save_hook")
def test_solutions_open_folded_and_are_saved_as_they_were(tmp_path):
    cells = [code("a", "x = 1"), code("b", "#| hide\nanswer()"), code("c", "#| hide_input\nplot()"), code("d", "#|hide\n1")]
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    book = notebook(*cells, {"cell_type": "markdown", "id": "m", "source": "#| hide", "metadata": {}}, kernelspec=kernel)
    (file := tmp_path / "a.ipynb").write_text(json.dumps(book))
    manager = folding.WorkbookContents(root_dir=str(tmp_path), pre_save_hook=saving.pre_save_hook)
    model = done(manager.get("a.ipynb"))
    folded = [cell["id"] for cell in model["content"]["cells"] if cell["metadata"].get("jupyter", {}).get("source_hidden")]
    assert folded == ["b", "d"] and "source_hidden" not in file.read_text()
    described = model["content"]["metadata"]
    assert described["kernelspec"]["display_name"].endswith("(ipykernel)") and described["language_info"]["name"] == "python"
    done(manager.save({"type": "notebook", "content": copy.deepcopy(model["content"])}, "a.ipynb"))
    assert nbformat.read(file, 4) == nbformat.from_dict(book), "as it was"
    assert done(manager.get("", content=True))["type"] == "directory"
    assert done(manager.get("a.ipynb", content=False))["content"] is None


def test_the_hook_reads_the_file_that_is_about_to_be_replaced(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.ipynb").write_text(json.dumps(notebook(code("a", "x", [PLOT]))))
    model = {"type": "notebook", "content": notebook(code("a", "x", [LOCAL]), code("b", "y", [LOCAL]))}
    saving.pre_save_hook(model=model, path="/sub/a.ipynb", contents_manager=SimpleNamespace(root_dir=str(tmp_path)))
    assert [cell["outputs"] for cell in model["content"]["cells"]] == [[PLOT], []]


def test_the_hook_leaves_other_files_alone(tmp_path):
    manager = SimpleNamespace(root_dir=str(tmp_path))
    for model in ({"type": "file", "content": "text"}, {"type": "notebook", "content": {"nbformat": 3}}):
        before = copy.deepcopy(model)
        saving.pre_save_hook(model=model, path="a", contents_manager=manager)
        assert model == before


@pytest.mark.parametrize(
    ("argv", "extended"),
    [(["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"], True), (["ir", "{connection_file}"], False)],
)
def test_python_kernels_start_with_the_magic(monkeypatch, argv, extended):
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda self, name: KernelSpec(argv=list(argv)))
    found = specs.WorkbookKernelSpecs().get_kernel_spec("any").argv
    assert found == argv + ["--ext=flashmoe_nb.workbook"] * extended
