"""Tangling and exporting: the text rules, who owns a file, and that no disagreement goes unnoticed."""

import json
import re
import shutil
from configparser import ConfigParser
from pathlib import Path

import pytest

from flashmoe_nb import cuda, workbook
from flashmoe_nb.workbook import TangleError, check_export, export, tangle, tangle_all

ROOT = Path(__file__).resolve().parent.parent


def write_notebook(path, *sources, markdown=()):
    "A notebook file with markdown cells first, then code cells."
    def cell(kind, number, source):
        code = {"outputs": [], "execution_count": None} if kind == "code" else {}
        return {"cell_type": kind, "id": f"{kind}{number}", "metadata": {}, "source": source.splitlines(True)} | code
    cells = [cell(kind, i, source) for kind, texts in (("markdown", markdown), ("code", sources))
             for i, source in enumerate(texts)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


MODULE = ["#| default_exp attention.first", "#| export\ndef f(x):\n    return x + 1"]
KERNEL = ["%%cuda attention/10_first.cu --arch sm_80\nint a;",
          "%%cuda attention/10_first.cu -a -c\n#| echo: false\nint b;",
          "%%cuda scratch/never.cu\nint c;"]
MARK = "// Generated from nbs/05_old.ipynb: edit the notebook, not this file.\n"


@pytest.fixture
def root(tmp_path):
    "A small checkout: a module and a kernel, a second kernel, an index, a hand-written emulator header."
    shutil.copy(ROOT / "settings.ini", tmp_path)
    write_notebook(tmp_path / "nbs" / "10_first.ipynb", *MODULE, *KERNEL, markdown=["# First\n\n> A first step."])
    write_notebook(tmp_path / "nbs" / "20_second.ipynb", "%%cuda common/20_second.cuh\n#pragma once\nint d;")
    write_notebook(tmp_path / "nbs" / "index.ipynb", "#| hide\n1", markdown=["# Title\n\n[first](10_first.ipynb)"])
    (tmp_path / "flashmoe_nb").mkdir()
    (tmp_path / "flashmoe_nb" / "__init__.py").write_text('"""Kept."""\n\n__version__ = "0.0.0"\nx = 1\n')
    (tmp_path / "kernels" / "emulator").mkdir(parents=True)
    (tmp_path / "kernels" / "emulator" / "runtime.h").write_text("// by hand\n")
    return tmp_path


class TestTangle:
    def test_the_text_of_a_file(self, root):
        assert tangle(root / "nbs" / "10_first.ipynb") == {"attention/10_first.cu": (
            "// Generated from nbs/10_first.ipynb: edit the notebook, not this file.\n// Architectures: sm_80\n\n"
            "int a;\n\nint b;\n")}

    def test_the_default_architectures_are_the_settings(self, root):
        settings = ConfigParser(delimiters=["="])
        settings.read(ROOT / "settings.ini")
        text = tangle(root / "nbs" / "20_second.ipynb")["common/20_second.cuh"]
        assert f"// Architectures: {settings['DEFAULT']['kernel_architectures']}\n" in text
        assert cuda.Source("x.cu", text).architectures == tuple(settings["DEFAULT"]["kernel_architectures"].split())

    def test_scratch_is_never_tangled_and_may_start_again(self, tmp_path):
        cells = ["%%cuda scratch/x.cu\nint a;", "%%cuda scratch/x.cu\nint b;", "%%cuda scratch/x.cu -a\nint c;"]
        assert tangle(write_notebook(tmp_path / "1.ipynb", *cells)) == {}

    @pytest.mark.parametrize(("sources", "says"), [
        (["%%cuda a.cu -a\nint a;"], "cell 1: a.cu is appended to before"),
        (["x", "%%cuda a.cu\nint a;", "%%cuda a.cu\nint b;"], "cell 3: a.cu is started a second time"),
        (["x", "%%cuda ../a.cu\nint a;"], "30_x.ipynb, cell 2: ../a.cu"),
    ])
    def test_errors_name_notebook_and_cell(self, tmp_path, sources, says):
        with pytest.raises(TangleError, match=re.escape(says)):
            tangle(write_notebook(tmp_path / "30_x.ipynb", *sources))

    def test_two_owners_are_an_error(self, root):
        write_notebook(root / "nbs" / "30_thief.ipynb", "%%cuda attention/10_first.cu\nint mine;")
        says = "attention/10_first.cu is owned by two notebooks: 10_first.ipynb and 30_thief.ipynb"
        with pytest.raises(TangleError, match=says):
            tangle_all(root)

    def test_notebooks_come_in_order_and_hidden_ones_are_left_out(self, root):
        for name in "_draft.ipynb", ".hidden.ipynb", "00_zero.ipynb":
            write_notebook(root / "nbs" / name, "%%cuda a.cu -a\nwrong")
        names = [p.stem for p in workbook.notebooks(root)]
        assert names == ["00_zero", "10_first", "20_second", "index"]


class TestReadme:
    def readme(self, root, *cells):
        (root / "nbs").mkdir(exist_ok=True)
        (root / "nbs" / "index.ipynb").write_text(json.dumps({"cells": list(cells)}))
        return workbook.readme(root)

    def code(self, source, *outputs): return {"cell_type": "code", "source": source, "outputs": list(outputs)}

    def test_links_are_seen_from_the_top(self, tmp_path):
        source = ("[a](10_x.ipynb) [b](https://a.b/c) [c](#top) [d](../LICENSE) ![e](images/e.svg)\n"
                  '<img src="images/f.svg">')
        text = self.readme(tmp_path, {"cell_type": "markdown", "source": source.splitlines(True)})
        assert "[a](nbs/10_x.ipynb) [b](https://a.b/c) [c](#top) [d](LICENSE) ![e](nbs/images/e.svg)" in text
        assert '<img src="nbs/images/f.svg">' in text

    def test_code_and_text_outputs(self, tmp_path):
        markdown = {"output_type": "display_data", "data": {"text/markdown": ["| a |\n", "|---|"], "text/plain": "x"}}
        stream = {"output_type": "stream", "name": "stdout", "text": ["printed\n"]}
        warning = {"output_type": "stream", "name": "stderr", "text": "warned"}
        figure = {"output_type": "display_data", "data": {"text/plain": "Figure", "text/html": "<b>"}}
        value = {"output_type": "execute_result", "data": {"text/plain": "42"}}
        text = self.readme(tmp_path, self.code("f(1)", markdown, stream, warning, figure, value))
        assert text.split("\n\n", 1)[1] == (
            "```python\nf(1)\n```\n\n| a |\n|---|\n\n```\nprinted\n```\n\n```\n42\n```\n")

    def test_the_ladder_lists_the_steps(self, tmp_path):
        write_notebook(tmp_path / "nbs" / "09_x.ipynb", "#| default_exp attention.x", markdown=["# Before\n\n> Not a step."])
        write_notebook(tmp_path / "nbs" / "10_y.ipynb", "#| default_exp attention.y", markdown=["# 10 · A step\n\n> What it is."])
        write_notebook(tmp_path / "nbs" / "78_z.ipynb", "#| default_exp z", markdown=["# Operations\n\n> Not a step."])
        text = self.readme(tmp_path, {"cell_type": "markdown", "source": "# T\n\n<!-- ladder -->\n\nend"})
        assert text.endswith("# T\n\n| step | what it is |\n|:--|:--|\n| [10 · A step](nbs/10_y.ipynb) | What it is. |\n\nend\n")

    def test_directives(self, tmp_path):
        output = {"output_type": "stream", "name": "stdout", "text": "shown"}
        text = self.readme(tmp_path, self.code("#| hide\nsecret", output), self.code("#| echo: false\nquiet", output),
                           self.code("#| default_exp x"), {"cell_type": "raw", "source": "raw"})
        assert text.split("\n\n", 1)[1] == "```\nshown\n```\n"


@pytest.mark.timeout(120)
class TestExport:
    def test_writes_everything_once(self, root):
        wrote = export(root)
        assert set(wrote) == {
            "flashmoe_nb/attention/first.py", "flashmoe_nb/attention/__init__.py", "flashmoe_nb/_modidx.py",
            "flashmoe_nb/__init__.py", "README.md", "kernels/attention/10_first.cu", "kernels/common/20_second.cuh"}
        assert '"""Kept."""' in (root / "flashmoe_nb" / "__init__.py").read_text()
        assert "[first](nbs/10_first.ipynb)" in (root / "README.md").read_text()
        assert "attention.first.f" in (root / "flashmoe_nb" / "_modidx.py").read_text()
        before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
        assert export(root) == [] and check_export(root) == []
        assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before, "what did not change is not written"

    def test_every_disagreement_is_found_and_repaired(self, root):
        export(root)
        def change(name, old, new):
            text = (root / name).read_text()
            assert old in text
            (root / name).write_text(text.replace(old, new))
        change("flashmoe_nb/attention/first.py", "return x + 1", "return x + 2")
        change("flashmoe_nb/_modidx.py", "first.f", "first.g")
        change("flashmoe_nb/__init__.py", "__version__ =", "__version__  =")
        change("kernels/attention/10_first.cu", "int b;", "int b; ")
        change("README.md", "# Title", "# Other")
        (root / "kernels" / "common" / "20_second.cuh").unlink()
        (root / "flashmoe_nb" / "old.py").write_text("# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/x.ipynb.\n")
        (root / "kernels" / "05_old.cu").write_text(MARK)
        (root / "flashmoe_nb" / "mine.py").write_text("x = 1\n")
        (root / "kernels" / "mine.cuh").write_text("int x;\n")
        found = check_export(root)
        assert {line.split(":")[0] for line in found} == {
            "flashmoe_nb/attention/first.py", "flashmoe_nb/_modidx.py", "flashmoe_nb/__init__.py", "README.md",
            "kernels/attention/10_first.cu", "kernels/common/20_second.cuh", "flashmoe_nb/old.py", "kernels/05_old.cu",
            "flashmoe_nb/mine.py", "kernels/mine.cuh"}
        assert "kernels/attention/10_first.cu: differs from its notebook, first at line 6" in found
        assert "kernels/common/20_second.cuh: missing" in found
        export(root)
        assert not (root / "flashmoe_nb" / "old.py").exists() and not (root / "kernels" / "05_old.cu").exists()
        left = ["flashmoe_nb/mine.py: no notebook writes it", "kernels/mine.cuh: no notebook writes it"]
        assert check_export(root) == left, "files without the generator's mark are left to their author"
        assert (root / "kernels" / "emulator" / "runtime.h").read_text() == "// by hand\n"

    def test_a_changed_cell_is_noticed(self, root):
        export(root)
        write_notebook(root / "nbs" / "10_first.ipynb", *MODULE, KERNEL[0].replace("int a", "int z"), *KERNEL[1:],
                       markdown=["# First\n\n> A first step."])
        assert check_export(root) == ["kernels/attention/10_first.cu: differs from its notebook, first at line 4"]

    def test_a_notebook_that_nbdev_cannot_export(self, root):
        write_notebook(root / "nbs" / "30_bad.ipynb", "#| default_exp bad", "#| export\ndef f(:")
        with pytest.raises(workbook.ExportError, match="SyntaxError"):
            export(root)
        assert not (root / "kernels" / "attention").exists(), "nothing is written when one part fails"


def test_checkout_is_found_from_below_and_missed_elsewhere(root, tmp_path_factory):
    (root / "nbs" / "results").mkdir()
    assert workbook.checkout(root / "nbs" / "results") == root
    with pytest.raises(workbook.NoCheckout, match="settings.ini and nbs/"):
        workbook.checkout(tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.timeout(120)
def test_this_repository_agrees_with_its_notebooks():
    "If this fails: `make export`, and look at what changed. The notebooks are what is edited."
    assert check_export(ROOT) == []
