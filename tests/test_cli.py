"""The runner, storing, and the command line, on small checkouts made for the purpose."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from flashmoe_nb import cli, cuda, runner
from flashmoe_nb.runner import CHECK, MEASUREMENT, PLOTLY, PNG, Failure, Result, StoreError

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("run", "store", "export", "docs", "doctor", "bench", "tune")


def write_notebook(path, *sources):
    book = v4.new_notebook(cells=[v4.new_markdown_cell("# Title"), *map(v4.new_code_cell, sources)])
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


def store_an_output_in_each_cell(path):
    book = nbformat.read(path, 4)
    old = {MEASUREMENT: dict(name="old", backend="cuda", text="9 TB/s")}
    for cell in book.cells[1:]: cell.outputs = [v4.new_output("display_data", old)]
    nbformat.write(book, path)


def show(record, mime): return f"from IPython.display import display\ndisplay({ {mime: record} }, raw=True)"


@pytest.fixture
def root(tmp_path):
    "A checkout with one notebook that runs through, and a file that it reads."
    (tmp_path / "settings.ini").write_text("[DEFAULT]\n")
    write_notebook(tmp_path / "nbs" / "10_good.ipynb",
                   show(dict(name="a", backend="cpu", shapes="S=1", error=1e-4, tolerance=1e-3, passed=True), CHECK),
                   show(dict(name="b", backend="cpu", shapes="S=2", error=9e-4, tolerance=1e-3, passed=True), CHECK),
                   show(dict(name="c", backend="cpu", shapes="S=3", error=None, tolerance=1e-3, passed=False), CHECK),
                   show(dict(name="copy", backend="cpu", text="3.1 TB/s"), MEASUREMENT),
                   "import os\nassert os.environ['PLOTLY_RENDERER'] == 'plotly_mimetype'\n"
                   "assert os.environ['JPY_SESSION_NAME'] == 'nbs/10_good.ipynb'\n"
                   "assert open('results/numbers.json').read() == '{}'",
                   "#| gpu\nraise SystemError", "#| eval: false\nraise SystemError")
    (tmp_path / "nbs" / "results").mkdir()
    (tmp_path / "nbs" / "results" / "numbers.json").write_text("{}")
    return tmp_path


def flashmoe(root, *arguments, **environment):
    "Run the command line in a process of its own, from the source tree."
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-m", "flashmoe_nb.cli", *arguments], cwd=root, env=env, capture_output=True,
                          text=True, timeout=120, check=False)


def start(root, *arguments):
    "The same, left running."
    return subprocess.Popen([sys.executable, "-m", "flashmoe_nb.cli", *arguments], cwd=root, text=True,
                            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def contents(folder): return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class TestRun:
    def test_every_way_a_notebook_can_end(self, root):
        write_notebook(root / "nbs" / "20_fails.ipynb", "def f():\n    raise ValueError('wrong shape')", "x = 1\nf()  # here",
                       "never()")
        write_notebook(root / "nbs" / "30_loops.ipynb", "while True: pass")
        write_notebook(root / "nbs" / "40_dies.ipynb", "1", "import os; os._exit(1)")
        write_notebook(root / "nbs" / "50_syntax.ipynb", "x = 1\ndef f(:\n    pass")
        write_notebook(root / "nbs" / "60_last.ipynb", "1 + 1", "#| gpu\nraise SystemError", "#| eval: false\nraise SystemError")
        for name in "20_fails", "60_last": store_an_output_in_each_cell(root / "nbs" / f"{name}.ipynb")
        before = contents(root / "nbs")
        done = flashmoe(root, "run", "--timeout", "4")
        assert done.returncode == 1, done.stderr
        assert "nbs/20_fails.ipynb, cell In[2], line 2\n    f()  # here\n    ValueError: wrong shape" in done.stdout
        assert "nbs/30_loops.ipynb, cell In[1]\n    while True: pass\n    still running after 4 s" in done.stdout
        assert "nbs/40_dies.ipynb, cell In[2]\n    import os; os._exit(1)\n    Kernel died" in done.stdout
        assert "nbs/50_syntax.ipynb, cell In[1], line 2\n    def f(:\n    SyntaxError" in done.stdout
        assert re.search(r"10_good\s+ok", done.stdout) and re.search(r"60_last\s+ok", done.stdout), "the run went on"
        row = next(line for line in done.stdout.splitlines() if "10_good" in line and "│" in line)
        cells = [cell.strip() for cell in row.split("│")]
        assert cells[2:6] == ["cpu", "S=2", "9.0e-04 of 1.0e-03, 2/3 checks", "copy 3.1 TB/s"]
        assert "4 notebooks failed" in done.stdout and "make lab" in done.stdout and "make docs" in done.stdout
        assert contents(root / "nbs") == before, "a run never writes nbs/"
        last, failed = ([cell.outputs for cell in nbformat.read(root / ".run" / f"{name}.ipynb", 4).cells[1:]]
                        for name in ("60_last", "20_fails"))
        assert last[0][0].data["text/plain"] == "2" and last[1] == [] and len(last[2]) == 1
        assert failed[0] == failed[2] == [] and failed[1][0].output_type == "error", "the copy shows how far it came"
        assert "9 TB/s" not in done.stdout, "what an earlier run stored is no result of this one"

    def test_success_and_selection(self, root):
        write_notebook(root / "nbs" / "20_fails.ipynb", "1/0")
        done = flashmoe(root / "nbs", "run", "10")
        assert done.returncode == 0 and "20_fails" not in done.stdout and "1 notebook," in done.stdout

    @pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_interrupting_ends_the_notebook_too(self, root, how, code):
        write_notebook(root / "nbs" / "20_long.ipynb", "import os, time\nopen('pid', 'w').write(str(os.getpid()))\n"
                       "os.rename('pid', 'ready')\ntime.sleep(600)")
        process = start(root, "run", "20")
        ready = root / ".run" / "ready"
        while not ready.exists() and process.poll() is None: time.sleep(0.05)
        kernel = int(ready.read_text())
        process.send_signal(how)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == code, output + errors
        assert not Path(f"/proc/{kernel}").exists(), "the kernel has ended"

    def test_the_path_goes_to_the_checkout(self, root, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", "/elsewhere")
        assert runner.kernel_environment(root, "x.ipynb")["PYTHONPATH"].split(os.pathsep) == [str(root), "/elsewhere"]

    def test_select(self, root):
        for name in "20_second", "index": write_notebook(root / "nbs" / f"{name}.ipynb", "1")
        def names(*asked): return [p.stem for p in runner.select(root, asked)]
        assert names() == ["10_good", "20_second", "index"]
        assert names("nbs/20_second.ipynb", "10") == names("20_second", "10_good") == ["10_good", "20_second"]
        with pytest.raises(FileNotFoundError, match="no notebook '99'; there are 10_good, 20_second, index"):
            names("99")

    def test_a_bar_for_each_notebook_on_a_terminal(self, root):
        import io

        from rich.console import Console
        console = Console(file=io.StringIO(), force_terminal=True, width=100)
        results = runner.run(root, runner.notebooks(root), "emulator", console)
        shown = console.file.getvalue()
        assert results[0].failure is None and results[0].cells == 8
        assert "10_good" in shown and "8/8" in shown and "━" in shown

    def test_side_by_side_on_the_emulator_only(self, root, monkeypatch):
        import asyncio

        from rich.console import Console
        for name in "20_second", "30_third": write_notebook(root / "nbs" / f"{name}.ipynb", "1")
        here, most = set(), {}
        async def execute(root, notebook, backend, **options):
            here.add(notebook.stem)
            await asyncio.sleep(0.01)
            most[backend] = max(most.get(backend, 0), len(here))
            here.remove(notebook.stem)
            return Result(notebook.stem)
        monkeypatch.setattr(runner, "execute", execute)
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        for backend in "emulator", "cuda":
            results = runner.run(root, runner.notebooks(root), backend, Console(quiet=True))
            assert [result.name for result in results] == ["10_good", "20_second", "30_third"]
        assert most == {"emulator": 2, "cuda": 1}


class TestSummary:
    def test_of_a_failure(self):
        row = runner.summary(Result("10_x", 1.23, failure=Failure("place", "error")))
        assert row == ("10_x", "", "", "FAILED", "", "1.2")

    def test_zero_tolerance_does_not_divide(self):
        check = dict(backend="cpu", shapes="S=1", error=0, tolerance=0, passed=True)
        row = runner.summary(Result("10_x", checks=[check]))
        assert row[3] == "0.0e+00 of 0.0e+00, 1/1 checks"

    def test_long_errors_are_cut(self):
        text = runner.excerpt("\x1b[31mred\x1b[0m\n" + "line\n" * 50)
        assert text.startswith("red\nline") and text.endswith("...") and len(text.splitlines()) == 13


def executed(root, **changes):
    "The good notebook as a GPU machine would return it, with one output, as the text of an archive's member."
    book = nbformat.read(root / "nbs" / "10_good.ipynb", 4)
    data = changes.pop("data", {"text/plain": "42"})
    book.cells[1].outputs = [v4.new_output("execute_result", data, execution_count=7)]
    book.cells[1].execution_count = 7
    book.cells[1].metadata["execution"] = {"iopub.status.busy": "2026-01-01"}
    book.metadata["language_info"] = {"name": "python"}
    for name, value in changes.items(): setattr(book.cells[1], name, value)
    return {"nbs/10_good.ipynb": nbformat.writes(book)}


class TestStore:
    def test_outputs_are_stored_clean(self, root):
        before = nbformat.read(root / "nbs" / "10_good.ipynb", 4)
        runner.store(root, executed(root), images=False)
        after = nbformat.read(root / "nbs" / "10_good.ipynb", 4)
        assert after.cells[1].outputs[0].data["text/plain"] == "42"
        assert after.cells[1].outputs[0].execution_count is None and after.cells[1].execution_count is None
        for cell in after.cells[1:]: cell.outputs = []
        assert after == before, "nothing but outputs changed"

    @pytest.mark.parametrize("changes", [dict(source="1 + 1"), dict(cell_type="markdown")])
    def test_changed_sources_are_refused(self, root, changes):
        before = contents(root)
        with pytest.raises(StoreError, match="nbs/10_good.ipynb, cell 2: what was executed is not what the checkout"):
            runner.store(root, executed(root, **changes), images=False)
        assert contents(root) == before

    def test_another_number_of_cells_is_refused(self, root):
        book = nbformat.read(root / "nbs" / "10_good.ipynb", 4)
        book.cells.pop()
        with pytest.raises(StoreError, match="7 cells were executed, the checkout has 8"):
            runner.store(root, {"nbs/10_good.ipynb": nbformat.writes(book)}, images=False)

    def test_a_notebook_that_is_not_there_is_refused(self, root):
        with pytest.raises(StoreError, match="no such notebook"):
            runner.store(root, {"nbs/99_x.ipynb": "{}"}, images=False)

    @pytest.mark.parametrize("data", [
        {"text/plain": "/usr/lib/python3/x.py:3: UserWarning"},
        {"text/html": "<p>see (/home/someone/notes.txt)</p>"},
        {"text/plain": "x", PLOTLY: {"data": [{"name": "from '/tmp/a/b'"}], "layout": {}}},
        {"text/plain": "Looking in indexes: https://pypi.org/simple"},
    ])
    def test_outputs_that_tell_about_the_machine_are_refused(self, root, data):
        before = contents(root)
        with pytest.raises(StoreError, match="nbs/10_good.ipynb, cell 2: an output holds"):
            runner.store(root, executed(root, data=data), images=False)
        assert contents(root) == before

    def test_all_or_nothing(self, root):
        write_notebook(root / "nbs" / "20_second.ipynb", "1")
        second = {"nbs/20_second.ipynb": nbformat.writes(v4.new_notebook())}
        before = contents(root)
        with pytest.raises(StoreError):
            runner.store(root, executed(root) | second, images=False)
        assert contents(root) == before

    def test_results_are_looked_at_too(self, root):
        runner.store(root, {"nbs/results/a.json": '{"gpu": "NVIDIA H200"}'}, images=False)
        assert json.loads((root / "nbs" / "results" / "a.json").read_text()) == {"gpu": "NVIDIA H200"}
        with pytest.raises(StoreError, match="nbs/results/b.json holds '/opt/cuda/bin'"):
            runner.store(root, {"nbs/results/b.json": '{"nvcc": "/opt/cuda/bin"}'}, images=False)

    @pytest.mark.parametrize("text", [
        "/", "1/2", "TFLOP/s", "a/b/c", "kernels/attention/x.cu:37", "<b>x</b></td></tr>", "https://example.org/a/b",
        "~/.cache/x", "application/vnd.plotly.v1+json", "bf16/fp16", "x / y / z", "//|", "C:/x/y", "<path d='M0 0'/>",
    ])
    def test_ordinary_text_passes(self, text):
        assert runner.private(text) is None

    def test_configured_indexes_are_known(self, monkeypatch):
        monkeypatch.setenv("PIP_INDEX_URL", "https://user:secret@packages.example.net:8080/simple")
        runner.index_hosts.cache_clear()
        assert runner.private("from packages.example.net") == "packages.example.net"
        runner.index_hosts.cache_clear()

    def test_packed_arrays_and_images_are_not_text(self, root):
        packed = {"bdata": "/tmp/abc/AAA=", "dtype": "f8"}
        data = {PNG: "/abc/def/", "text/plain": "x", PLOTLY: {"data": [{"y": packed}]}}
        assert runner.store(root, executed(root, data=data), images=False) == ["nbs/10_good.ipynb"]


class TestArchive:
    def test_round_trip(self, root, capsys, monkeypatch):
        file = root / "a.tar.gz"
        runner.write_archive(file, executed(root) | {"nbs/results/a.json": '"µs"'})
        monkeypatch.chdir(root)
        monkeypatch.setattr(cli, "find_chromium", lambda: None)
        assert cli.main(["store", "a.tar.gz"]) == 0
        assert "stored nbs/10_good.ipynb" in capsys.readouterr().out
        assert (root / "nbs" / "results" / "a.json").read_text() == '"µs"'

    @pytest.mark.parametrize("name", ["../evil.ipynb", "/nbs/x.ipynb", "nbs/../x.ipynb", "nbs/x.py", "nbs/results/x.ipynb",
                                      "nbs/results/\u00e9.json"])
    def test_other_members_are_refused(self, tmp_path, name):
        runner.write_archive(tmp_path / "a.tar.gz", {name: "{}"})
        with pytest.raises(StoreError, match="is no notebook and no results file"):
            runner.read_archive(tmp_path / "a.tar.gz")

    def test_links_are_refused(self, tmp_path):
        link = tarfile.TarInfo("nbs/x.ipynb")
        link.type, link.linkname = tarfile.SYMTYPE, "settings.ini"
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive: archive.addfile(link)
        with pytest.raises(StoreError):
            runner.read_archive(tmp_path / "a.tar.gz")

    @pytest.mark.parametrize("share", [0, 0.2, 0.6, "hello"])
    def test_what_is_no_archive_or_half_of_one_is_refused(self, root, capsys, monkeypatch, share):
        file = root / "a.tar.gz"
        runner.write_archive(file, executed(root))
        whole = file.read_bytes()
        file.write_bytes(b"hello" if share == "hello" else whole[:int(share * len(whole))])
        before = contents(root / "nbs")
        monkeypatch.chdir(root)
        assert cli.main(["store", str(file)]) == 2
        assert "a.tar.gz is no archive of a run, or not all of one" in capsys.readouterr().err
        assert contents(root / "nbs") == before

    def test_a_folder_that_is_missing_is_said_before_the_run(self, root, capsys, monkeypatch):
        monkeypatch.chdir(root)
        monkeypatch.setattr(cuda, "available_backend", lambda: "cuda")
        assert cli.main(["run", "--archive", "nowhere/a.tar.gz"]) == 2
        assert "nowhere/a.tar.gz cannot be written: there is no folder" in capsys.readouterr().err
        assert not (root / ".run").exists()

    def test_a_cache_that_cannot_be_made_names_the_setting(self, root, monkeypatch):
        (root / "file").touch()
        monkeypatch.setenv("FLASHMOE_CACHE", str(root / "file" / "cache"))
        with pytest.raises(OSError, match="Not a directory.*set FLASHMOE_CACHE to a folder"): cuda.cache_dir()

    def test_results_that_cannot_be_written_are_not_measured(self, root, capsys):
        (root / "file").touch()
        assert cli.main(["bench", "--quick", "--output", str(root / "file" / "results"), "emulator"]) == 2
        assert "results cannot be written: [Errno 20] Not a directory" in capsys.readouterr().err

    @pytest.mark.parametrize("option", [["--store"], ["--archive", "a.tar.gz"]])
    def test_only_a_gpu_run_is_stored(self, root, monkeypatch, capsys, option):
        monkeypatch.chdir(root)
        monkeypatch.setattr(cuda, "available_backend", lambda: "emulator")
        before = contents(root)
        assert cli.main(["run", *option]) == 2
        assert "there is no CUDA device here" in capsys.readouterr().err
        assert contents(root) == before

    def test_run_archive_and_store(self, root, monkeypatch, capsys):
        write_notebook(root / "nbs" / "10_good.ipynb", "6 * 7")
        monkeypatch.chdir(root)
        monkeypatch.setattr(cuda, "available_backend", lambda: "cuda")
        monkeypatch.setattr(cli, "find_chromium", lambda: None)
        assert cli.main(["run", "--archive", "a.tar.gz"]) == 0
        assert nbformat.read(root / "nbs" / "10_good.ipynb", 4).cells[1].outputs == []
        members = runner.read_archive(root / "a.tar.gz")
        assert list(members) == ["nbs/10_good.ipynb", "nbs/results/numbers.json"]
        assert cli.main(["run", "--store"]) == 0
        assert nbformat.read(root / "nbs" / "10_good.ipynb", 4).cells[1].outputs[0].data["text/plain"] == "42"

    def test_a_failing_run_stores_nothing(self, root, monkeypatch):
        write_notebook(root / "nbs" / "20_fails.ipynb", "1/0")
        monkeypatch.chdir(root)
        monkeypatch.setattr(cuda, "available_backend", lambda: "cuda")
        before = contents(root / "nbs")
        assert cli.main(["run", "--store", "20"]) == 1
        assert contents(root / "nbs") == before


class TestImages:
    FIGURE = {"data": [{"type": "scatter", "x": [1, 2], "y": [1, 4]}], "layout": {"title": {"text": "squares"}}}

    def test_every_figure_gets_one(self, root, monkeypatch):
        monkeypatch.setattr(runner, "draw", lambda figure: b"png of " + figure["layout"]["title"]["text"].encode())
        runner.store(root, executed(root, data={PLOTLY: self.FIGURE, "text/plain": "x"}), images=True)
        data = nbformat.read(root / "nbs" / "10_good.ipynb", 4).cells[1].outputs[0].data
        assert data[PNG].strip() == "cG5nIG9mIHNxdWFyZXM=" and data[PLOTLY] == self.FIGURE

    @pytest.mark.browser
    @pytest.mark.skipif(runner.find_chromium() is None, reason="drawing figures needs Chromium")
    def test_chromium_draws_a_small_png(self):
        image = runner.draw(self.FIGURE)
        assert image.startswith(b"\x89PNG") and 1000 < len(image) <= runner.PNG_BYTES

    def test_a_figure_is_made_smaller_until_it_fits(self, monkeypatch):
        import plotly.graph_objects
        scales = []
        def to_image(self, *, scale, **_):
            scales.append(scale)
            return b"x" * int(100_000 * scale)
        monkeypatch.setattr(plotly.graph_objects.Figure, "to_image", to_image)
        monkeypatch.setattr(runner, "find_chromium", lambda: "chromium")
        monkeypatch.setenv("BROWSER_PATH", "chromium")
        assert len(runner.draw(self.FIGURE)) == 60_000 and scales == [1.0, 0.8, 0.6]


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself(self, command, capsys):
        with pytest.raises(SystemExit) as ended: cli.main([command, "--help"])
        shown = capsys.readouterr().out
        assert ended.value.code == 0
        assert "examples:" in shown and f"  flashmoe-nb {command}" in shown

    def test_the_list_is_complete(self, capsys):
        with pytest.raises(SystemExit): cli.main(["--help"])
        shown = capsys.readouterr().out
        assert all(re.search(rf"^    {command}\b", shown, re.M) for command in COMMANDS)

    def test_help_imports_nothing_heavy(self):
        code = ("import sys; from flashmoe_nb.cli import command_line; command_line().format_help();"
                "print(*{'torch', 'cupy', 'nbclient', 'rich', 'plotly', 'nbdev', 'sphinx', 'numpy'} & set(sys.modules))")
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == ""

    @pytest.mark.parametrize("arguments", [["run"], ["export"], ["docs"], ["store", "a.tar.gz"]])
    def test_commands_that_need_a_checkout_say_so(self, tmp_path, monkeypatch, capsys, arguments):
        monkeypatch.chdir(tmp_path)
        assert cli.main(arguments) == 2
        assert "is not inside a checkout of the workbook" in capsys.readouterr().err

    def test_an_unknown_notebook(self, root, monkeypatch, capsys):
        monkeypatch.chdir(root)
        assert cli.main(["run", "77"]) == 2
        assert capsys.readouterr().err == "flashmoe-nb: no notebook '77'; there are 10_good\n"

    def test_bench_passes_its_options_on(self, monkeypatch, capsys):
        from flashmoe_nb import bench
        called = []
        monkeypatch.setattr(bench, "run_bench", lambda *args, **options: called.append((args, options)))
        assert cli.main(["bench"]) == 0 and cli.main(["bench", "host", "--quick", "--output", "x"]) == 0
        assert called == [((None,), dict(output=None, quick=False)), ((["host"],), dict(output="x", quick=True))]
        assert cli.main(["bench", "nothing"]) == 2
        assert "no suite 'nothing'; there are attention" in capsys.readouterr().err

    def test_a_missing_package_is_named(self, root, monkeypatch, capsys):
        monkeypatch.chdir(root)
        monkeypatch.setitem(sys.modules, "nbclient", None)
        monkeypatch.setattr(cuda, "available_backend", lambda: "emulator")
        assert cli.main(["run"]) == 2
        assert "pip install 'flashmoe_nb[workbook]'" in capsys.readouterr().err


class TestDoctor:
    def test_where_everything_is_missing(self, tmp_path):
        blocker = ("import sys, runpy\n"
                   "class Block:\n"
                   "    def find_spec(self, name, *_):\n"
                   "        if name.split('.')[0] in ('torch', 'cupy'): raise ImportError(name)\n"
                   "sys.meta_path.insert(0, Block())\n"
                   "from importlib import metadata\n"
                   "def version(name): raise metadata.PackageNotFoundError(name)\n"
                   "metadata.version = version\n"
                   "sys.argv = ['flashmoe-nb', 'doctor']\n"
                   "runpy.run_module('flashmoe_nb.cli', run_name='__main__')")
        env = {"PATH": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", blocker], env=env, cwd=tmp_path, capture_output=True, text=True,
                              check=False)
        assert done.returncode == 1 and not done.stderr, done.stderr
        for part in cli.PARTS:
            assert re.search(rf"^{re.escape(part.name)} +missing$", done.stdout, re.M), part.name
            assert f"{part.name} would enable: {part.enables}." in done.stdout and part.get in done.stdout
        assert "0 files, 0.0 MB" in done.stdout and "Kernels run on nothing" in done.stdout

    def test_what_is_there_is_shown_with_its_version(self):
        found = cli.diagnose()
        import torch
        assert found["torch"].startswith(torch.__version__) and re.fullmatch(r"\d+\.\d+", found["NVRTC"])
        assert found["nbclient"].startswith("nbclient ")

    def test_the_cache_is_counted(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FLASHMOE_CACHE", str(tmp_path))
        (tmp_path / "cubin").mkdir()
        (tmp_path / "cubin" / "a").write_bytes(b"x" * 2_000_000)
        assert cli.cache_size().startswith(f"{tmp_path}, 1 files, 2.0 MB; it may be deleted")
        assert str(cuda.cache_dir()) == str(tmp_path)

    @pytest.mark.parametrize(("has", "backend"), [
        (("GPU", "CuPy", "NVRTC", "C++ compiler"), "the GPU"), (("GPU", "C++ compiler"), "the emulator"), ((), "nothing")])
    def test_the_last_line_says_where_kernels_run(self, has, backend):
        report = cli.doctor_report({part.name: "yes" if part.name in has else None for part in cli.PARTS})
        assert report.splitlines()[-1].startswith(f"Kernels run on {backend}")

    def test_a_driver_without_devices(self, monkeypatch):
        class Driver:
            def cuInit(self, _): return 100      # CUDA_ERROR_NO_DEVICE
            def cuDriverGetVersion(self, version): version._obj.value = 12080
        monkeypatch.setattr(cli.ctypes, "CDLL", lambda _: Driver())
        assert cli.look_for_gpu() is None and cli.look_for_driver().endswith("supports CUDA 12.8")

    def test_a_driver_with_one_device(self, monkeypatch):
        class Driver:
            def cuInit(self, _): return 0
            def cuDeviceGetCount(self, count): count._obj.value = 1
            def cuDeviceGetName(self, name, size, device): name.value = b"NVIDIA H200"
            def cuDeviceGetAttribute(self, value, attribute, device): value._obj.value = {75: 9, 76: 0}[attribute]
        monkeypatch.setattr(cli.ctypes, "CDLL", lambda _: Driver())
        assert cli.look_for_gpu() == "NVIDIA H200 (compute capability 9.0)"


@pytest.fixture
def site(root):
    "The checkout with the smallest Sphinx site."
    (root / "docs").mkdir()
    (root / "docs" / "conf.py").write_text("project = 'x'\n")
    (root / "docs" / "index.rst").write_text("Front page\n==========\n")
    return root


class TestDocs:
    def test_builds_and_serves_on_this_machine_only(self, site):
        process = start(site, "docs", "--port", "0")
        try:
            line = next(line for line in process.stdout if "Serving" in line)
            address = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
            with urllib.request.urlopen(address, timeout=30) as page: assert b"Front page" in page.read()
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
        assert process.returncode == 130

    def test_a_broken_site_is_not_served(self, site):
        (site / "docs" / "conf.py").write_text("raise ValueError\n")
        assert flashmoe(site, "docs", "--no-serve").returncode not in (0, 130)

    @pytest.mark.parametrize("port", ("taken", "99999"))
    def test_a_port_that_cannot_be_had_is_said_before_the_build(self, site, monkeypatch, capsys, port):
        monkeypatch.chdir(site)
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = str(other.getsockname()[1]) if port == "taken" else port
            assert cli.main(["docs", "--port", port]) == 2
        assert f"cannot serve on port {port}" in (said := capsys.readouterr().err) and "--port 0" in said
        assert not (site / "docs" / "_site").exists()

    def test_without_sphinx_it_says_what_to_install(self, site, monkeypatch, capsys):
        monkeypatch.chdir(site)
        monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
        assert cli.main(["docs"]) == 2
        assert "needs Sphinx: pip install" in capsys.readouterr().err


class TestExportCommand:
    @pytest.fixture
    def checkout(self, tmp_path, monkeypatch):
        shutil.copy(ROOT / "settings.ini", tmp_path)
        write_notebook(tmp_path / "nbs" / "10_x.ipynb", "%%cuda attention/10_x.cu\nint a;")
        (tmp_path / "flashmoe_nb").mkdir()
        monkeypatch.chdir(tmp_path)

    def test_check_says_what_export_would_do(self, checkout, capsys):
        assert cli.main(["export", "--check"]) == 1
        assert "kernels/attention/10_x.cu: missing" in capsys.readouterr().out
        assert cli.main(["export"]) == 0
        assert "wrote kernels/attention/10_x.cu" in capsys.readouterr().out
        assert cli.main(["export", "--check"]) == 0
        assert capsys.readouterr().out == ""


class TestGpuScript:
    "`.ci/gpu-notebooks`, as far as a machine without a GPU can tell."

    def test_it_is_valid_bash_and_explains_itself(self):
        subprocess.run(["bash", "-n", str(ROOT / ".ci" / "gpu-notebooks")], check=True)
        done = subprocess.run([str(ROOT / ".ci" / "gpu-notebooks"), "help"], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stderr.startswith("usage: .ci/gpu-notebooks")

    def test_without_jupyter_and_wheels_it_says_what_to_do(self, tmp_path):
        (tmp_path / ".ci").mkdir()
        shutil.copy(ROOT / ".ci" / "gpu-notebooks", tmp_path / ".ci")
        (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "python").chmod(0o755)
        done = subprocess.run([str(tmp_path / ".ci" / "gpu-notebooks"), "execute", "a.tar.gz"], check=False,
                              env=os.environ | {"PYTHON": str(tmp_path / "python")}, capture_output=True, text=True)
        assert done.returncode == 2 and ".ci/gpu-notebooks wheels" in done.stderr
