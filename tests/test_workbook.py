"""The `%%cuda` magic: reading cells, which part a cell replaces, what it shows, in a shell and in a real kernel."""

import json
import re

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from flashmoe_nb import cuda, workbook
from flashmoe_nb.host import compiler, sources
from flashmoe_nb.workbook import CellError, parse_cell, read_cell

START, APPEND = "%%cuda scratch/a.cu", "%%cuda scratch/a.cu -a"


def text(path="scratch/a.cu"):
    "The parts of a registered file without its two header lines."
    return cuda.read_source(path).text.split("\n\n", 1)[1]


@pytest.fixture
def shell(tmp_path, monkeypatch):
    "A fresh IPython shell with the magic loaded, and an empty overlay."
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(colors="nocolor")
    shell.history_manager.enabled = False
    cuda.unregister()
    shell.run_cell("%load_ext flashmoe_nb.workbook").raise_error()
    yield shell
    cuda.unregister()
    InteractiveShell.clear_instance()


def run(shell, source, cell_id=None):
    "Run a cell as a front end does; returns the exception and what was shown."
    with capture_output() as shown:
        result = shell.run_cell(source, store_history=True, cell_id=cell_id)
    outputs = "".join(output.data["text/plain"] for output in shown.outputs)
    return result.error_in_exec, shown.stdout + shown.stderr + outputs


class TestCell:
    def test_reads_every_option(self):
        cell = parse_cell('attention/x.cu --arch sm_80,sm_90a -c "f<int, 2>" g', "int x;\n")
        assert (cell.path, cell.architectures, cell.instances, cell.append) == (
            "attention/x.cu", ("sm_80", "sm_90a"), ("f<int, 2>", "g"), False)

    def test_compiles_only_when_asked(self):
        assert parse_cell("a.cu", "int x;").instances is None
        assert parse_cell("a.cu -a -c", "int x;").instances == ()

    @pytest.mark.parametrize("path", [
        "../a.cu", "/a.cu", "attention/../../a.cu", "a//b.cu", "./a.cu", ".hidden/a.cu", "a.cpp", "a", "a b.cu",
        "attention\\x.cu", "emulator/runtime.h", "kernels/a.cu", "~/a.cu", "a.cu/", "a.cu\n",
    ])
    def test_refuses_paths_that_lead_elsewhere(self, path):
        with pytest.raises(CellError):
            workbook.check_path(path)

    @pytest.mark.parametrize("path", ["a.cu", "attention/10_tiling.cu", "common/ptx/mma.cuh", "scratch/x-1.h"])
    def test_accepts_paths_inside_kernels(self, path):
        assert workbook.check_path(path) == path

    @pytest.mark.parametrize(("line", "body", "says"), [
        ("", "int x;", "required: path"),
        ("a.cu --bogus", "int x;", "--bogus"),
        ("a.cu -a --arch sm_80", "int x;", "--arch belongs to the cell that starts"),
        ("a.cu --arch sm80", "int x;", "sm_80"),
        ("a.cu --arch ''", "int x;", "sm_80"),
        ("a.cu 'unclosed", "int x;", "quotation"),
        ("a.cu", "\n\n", "no CUDA text"),
        ("a.cu", "#| echo: false\n", "no CUDA text"),
        ("a.cu", "#| echo: false", "no CUDA text"),
    ])
    def test_says_what_is_wrong(self, line, body, says):
        with pytest.raises(CellError, match=says):
            parse_cell(line, body)

    def test_strips_directives_and_keeps_cpp_comments(self):
        cell = read_cell("%%cuda a.cu\n#| echo: false\n\n#| label: x\n//| kept\nint x; // #| kept\n#define Y 1\n\n")
        assert cell.text == "//| kept\nint x; // #| kept\n#define Y 1"
        assert cell.first_line == 5

    def test_a_directive_below_code_is_not_one(self):
        assert read_cell("%%cuda a.cu\nint x;\n#| not a directive").text == "int x;\n#| not a directive"

    def test_blank_lines_above_the_magic_count(self):
        assert read_cell("\n\n%%cuda a.cu\nint x;").first_line == 4

    @pytest.mark.parametrize("source", ["x = 1", "%%cudagraph a.cu\nx", "%%time\n%%cuda a.cu\nx", "", "\n"])
    def test_other_cells_are_not_read(self, source):
        assert read_cell(source) is None


class TestKernelNames:
    @pytest.mark.parametrize(("code", "expected"), [
        ("__global__ void k(float* x) {}", {"k": False}),
        ("extern \"C\" __global__ void __launch_bounds__(32 * (1 + 3), 2) k(int n) {}", {"k": False}),
        ("__launch_bounds__(128) __global__ void k() {}", {"k": False}),
        ("template <class Config>\n__global__ void k(float* x) {}", {"k": True}),
        ("template <int N> struct S { int x; };\n__global__ void k() {}", {"k": False}),
        ("__global__ void k();\n__global__ void k() {}", {"k": False}),
        ("// __global__ void a();\n/* __global__\nvoid b(); */ const char* s = \"__global__ void c()\";", {}),
        ("template <class T> __global__ void a(T*);\n__global__ void b();", {"a": True, "b": False}),
    ])
    def test_finds(self, code, expected):
        assert workbook.kernel_names(code) == expected


class TestParts:
    def test_parts_are_joined_by_one_blank_line(self, shell):
        run(shell, f"{START}\n\nint a;\n\n\n", "1")
        run(shell, f"{APPEND}\nint b;", "2")
        assert text() == "int a;\n\nint b;\n"

    def test_running_an_appended_cell_again_replaces_its_part_in_place(self, shell):
        for cell_id, source in [("1", f"{START}\nint a;"), ("2", f"{APPEND}\nint b;"), ("3", f"{APPEND}\nint c;")]:
            run(shell, source, cell_id)
        run(shell, f"{APPEND}\nint changed;", "2")
        assert text() == "int a;\n\nint changed;\n\nint c;\n"

    def test_running_the_starting_cell_again_keeps_the_others(self, shell):
        run(shell, f"{START}\nint a;", "1")
        run(shell, f"{APPEND}\nint b;", "2")
        run(shell, f"{START} --arch sm_80\nint changed;", "1")
        assert text() == "int changed;\n\nint b;\n"
        assert cuda.read_source("scratch/a.cu").architectures == ("sm_80",)

    def test_starting_from_another_cell_begins_anew(self, shell):
        run(shell, f"{START}\nint a;", "1")
        run(shell, f"{APPEND}\nint b;", "2")
        run(shell, f"{START}\nint anew;", "3")
        assert text() == "int anew;\n"

    def test_without_ids_a_start_begins_anew_and_a_repeated_part_stays(self, shell):
        for source in f"{START}\nint a;", f"{APPEND}\nint b;", f"{APPEND}\nint c;", f"{APPEND}\nint b;":
            run(shell, source)
        assert text() == "int a;\n\nint b;\n\nint c;\n"
        run(shell, f"{START}\nint a;")
        assert text() == "int a;\n"

    def test_the_same_text_may_be_appended_to_two_files(self, shell):
        for path in "scratch/a.cu", "scratch/b.cu":
            run(shell, f"%%cuda {path}\nint a;")
            run(shell, f"%%cuda {path} -a\nint b;")
        assert text("scratch/a.cu") == text("scratch/b.cu") == "int a;\n\nint b;\n"

    def test_a_cell_whose_path_changes_takes_its_part_along(self, shell):
        run(shell, f"{START}\nint a;", "1")
        run(shell, "%%cuda scratch/b.cu\nint other;", "2")
        run(shell, "%%cuda scratch/b.cu -a\nint b;", "3")
        run(shell, f"{APPEND}\nint b;", "3")
        assert (text("scratch/a.cu"), text("scratch/b.cu")) == ("int a;\n\nint b;\n", "int other;\n")
        run(shell, "%%cuda scratch/c.cu\nint a;", "1")
        with pytest.raises(FileNotFoundError):
            text("scratch/a.cu")

    def test_appending_to_nothing_is_an_error(self, shell):
        error, shown = run(shell, f"{APPEND}\nint b;", "1")
        assert error is not None and "no cell has started" in shown

    def test_variables_of_the_notebook_are_not_filled_in(self, shell):
        "Export sees the text of the cell alone, so the magic must not see more."
        shell.user_ns["name"] = "a"
        error, shown = run(shell, "%%cuda scratch/{name}.cu\nint a;", "1")
        assert error is not None and "scratch/{name}.cu: a path is" in shown

    def test_nothing_on_disk_changes_and_nothing_compiles(self, shell, monkeypatch):
        monkeypatch.setattr(compiler, "resources", lambda *_: pytest.fail("compiled without -c"))
        before = {p: p.stat().st_mtime_ns for p in cuda.KERNELS.rglob("*")}
        assert run(shell, "%%cuda attention/nothing.cu\n__global__ void k() {}", "1") == (None, "")
        assert {p: p.stat().st_mtime_ns for p in cuda.KERNELS.rglob("*")} == before


class TestShown:
    def test_c_shows_every_plain_kernel_for_every_architecture(self, shell):
        run(shell, f"{START} --arch sm_80,sm_90a\ntemplate <int N> __global__ void t(float* x) {{ x[0] = N; }}", "1")
        error, shown = run(shell, f"{APPEND} -c\n__global__ void k(float* x) {{ x[threadIdx.x] *= 2; }}", "2")
        assert error is None
        rows = [line.split()[:2] for line in shown.splitlines()[1:]]
        assert rows == [["k", "sm_80"], ["k", "sm_90a"]]

    def test_c_compiles_named_instances(self, shell):
        error, shown = run(shell, f'{START} --arch sm_80 -c "t<3>" "t<4>"\n'
                                  "template <int N> __global__ void t(float* x) { x[0] = N; }", "1")
        assert error is None and "t<3>" in shown and "t<4>" in shown

    @pytest.mark.parametrize(("body", "says"), [
        ("int x;", "no __global__ function yet"),
        ("template <int N> __global__ void t() {}", 't is a template, so name an instance: -c "t<...>"'),
    ])
    def test_c_with_nothing_to_compile(self, shell, body, says):
        error, shown = run(shell, f"{START} -c\n{body}", "1")
        assert error is not None and shown.startswith("UsageError") and says in shown

    def test_a_wrong_line_is_one_line(self, shell):
        error, shown = run(shell, "%%cuda kernels/a.cu\nint x;", "1")
        assert error is not None
        assert shown.strip() == "UsageError: kernels/a.cu: paths start inside kernels/, so write a.cu"

    def test_a_compile_error_names_cell_line_and_source(self, shell):
        run(shell, f"{START} --arch sm_80\n#| echo: false\n__device__ int good;", "1")
        number = shell.execution_count      # of the cell that runs next
        error, shown = run(shell, f"{APPEND} -c\n#| echo: false\n__global__ void k() {{\n    good = vlaue;\n}}", "2")
        assert isinstance(error, cuda.CompileError)
        assert f"cell In[{number}], line 4" in shown and "good = vlaue;" in shown and "vlaue" in shown
        assert len(shown.strip().splitlines()) <= 6 and "Traceback" not in shown

    def test_an_error_in_an_earlier_part_names_that_cell(self, shell):
        number = shell.execution_count
        run(shell, f"{START} --arch sm_80\n\n__device__ int bad = missing;", "1")
        _, shown = run(shell, f"{APPEND} -c\n__global__ void k() {{ }}", "2")
        assert f"cell In[{number}], line 3" in shown

    def test_a_later_python_cell_shows_it_the_same_way(self, shell):
        run(shell, f"{START} --arch sm_80\n__global__ void k() {{ nothing; }}", "1")
        _, shown = run(shell, "from flashmoe_nb import cuda; cuda.resources('scratch/a.cu', ['k'])")
        assert "cell In[" in shown and len(shown.strip().splitlines()) <= 6

    def test_the_table_marks_spills_and_problems(self):
        row = compiler.Resources("k<1>", "sm_90a", 255, 8, 16, 32, 1024, 3, ("ptxas info: (C7510) wgmma serialized",))
        table = workbook.ResourceTable([row])
        assert table.rows() == [("k<1>", "sm_90a", 255, 24, 32, 1024, 3)]
        assert "<strong>24</strong>" in table._repr_html_() and "k&lt;1&gt;" in table._repr_html_()
        assert "sm_90a: ptxas info: (C7510)" in repr(table) and "(C7510)" in table._repr_html_()
        fine = row._replace(spill_stores=0, spill_loads=0, problems=())
        assert "<strong>" not in workbook.ResourceTable([fine])._repr_html_()


class TestExtension:
    def test_loading_twice_registers_once(self, shell):
        shell.run_cell("%load_ext flashmoe_nb.workbook").raise_error()
        run(shell, f"{START}\nint a;", "1")
        run(shell, f"{APPEND}\nint b;", "2")
        assert text() == "int a;\n\nint b;\n"

    def test_unloading_takes_the_magic_away(self, shell):
        shell.run_cell("%unload_ext flashmoe_nb.workbook").raise_error()
        error, shown = run(shell, f"{START}\nint a;", "1")
        assert error is not None and "not found" in shown

    def test_help_explains_the_options(self, shell):
        assert "-c compiles what has accumulated" in shell.find_cell_magic("cuda").__doc__


class TestNotebookName:
    def test_the_session_says_it(self, shell, monkeypatch):
        monkeypatch.setenv("JPY_SESSION_NAME", "some/folder/42_mine.ipynb")
        run(shell, f"{START}\nint a;", "1")
        assert cuda.read_source("scratch/a.cu").text.startswith("// Generated from nbs/42_mine.ipynb:")

    def test_else_the_file_on_disk(self, shell, monkeypatch, tmp_path):
        monkeypatch.setattr(sources, "KERNELS", tmp_path)
        (tmp_path / "x.cu").write_text(cuda.compose(["int a;"], ["sm_80"], "77_owner.ipynb"))
        assert workbook.notebook_of("x.cu") == "77_owner.ipynb"
        assert workbook.notebook_of("y.cu") is None

    def test_a_console_is_no_notebook(self, monkeypatch):
        monkeypatch.setenv("JPY_SESSION_NAME", "console-1-abc")
        assert workbook.notebook_of("scratch/none.cu") is None


def test_what_the_magic_registers_is_what_export_writes(shell, monkeypatch, tmp_path):
    sources = ["%%cuda attention/z.cu --arch sm_80\n#| echo: false\n\nint a;\n\n", "x = 1",
               "%%cuda attention/z.cu -a\n  int b;  \n\n", "%%cuda scratch/a.cu\nint c;"]
    notebook = tmp_path / "30_z.ipynb"
    notebook.write_text(json.dumps({"cells": [{"cell_type": "code", "source": s.splitlines(True)} for s in sources]}))
    monkeypatch.setenv("JPY_SESSION_NAME", notebook.name)
    for number, source in enumerate(sources):
        run(shell, source, str(number))
    assert workbook.tangle(notebook) == {"attention/z.cu": cuda.read_source("attention/z.cu").text}


@pytest.fixture(scope="module")
def kernel():
    "A Jupyter kernel; `execute(source, cell_id)` sends what JupyterLab sends and returns what was printed."
    from jupyter_client.manager import start_new_kernel
    manager, client = start_new_kernel(kernel_name="python3", extra_arguments=["--IPKernelApp.log_level=40"])

    def execute(source, cell_id=None):
        content = dict(code=source, silent=False, store_history=True, user_expressions={}, allow_stdin=False)
        message = client.session.msg("execute_request", content, metadata={"cellId": cell_id} if cell_id else {})
        client.shell_channel.send(message)
        printed = []
        while True:
            reply = client.get_iopub_msg(timeout=120)
            if reply["parent_header"].get("msg_id") != message["header"]["msg_id"]: continue
            if reply["msg_type"] == "stream": printed.append(reply["content"]["text"])
            if reply["msg_type"] == "error": printed += reply["content"]["traceback"]
            if reply["content"].get("execution_state") == "idle": return "".join(printed)

    execute("%load_ext flashmoe_nb.workbook\nfrom flashmoe_nb import cuda")
    yield execute
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_a_real_kernel_recognises_cells_by_the_id_the_front_end_sends(kernel, path="scratch/ids.cu"):
    kernel(f"%%cuda {path}\nint a;", "start")
    kernel(f"%%cuda {path} -a\nint b;", "second")
    kernel(f"%%cuda {path} -a\nint changed;", "second")
    kernel(f"%%cuda {path}\nint again;", "start")
    shown = kernel(f"print(cuda.read_source({path!r}).text)")
    assert shown.rstrip().split("\n\n")[1:] == ["int again;", "int changed;"]


def test_a_real_kernel_reloads_the_extension(kernel, path="scratch/reload.cu"):
    kernel(f"%%cuda {path}\nint a;", "start")
    assert kernel("%reload_ext flashmoe_nb.workbook") == ""
    kernel(f"%%cuda {path} -a\nint b;", "second")
    kernel(f"%%cuda {path} -a\nint changed;", "second")
    assert kernel(f"print(cuda.read_source({path!r}).text)").rstrip().split("\n\n")[1:] == ["int a;", "int changed;"]


def test_a_real_kernel_shows_a_compile_error_in_a_few_lines(kernel):
    shown = kernel("%%cuda scratch/wrong.cu --arch sm_80 -c\n__global__ void k() {\n    nothing;\n}", "wrong")
    assert re.search(r"cell In\[\d+\], line 3: ", shown) and "nothing;" in shown and shown.count("\n") <= 6


def test_nbclient_runs_cells_without_ids_in_order(tmp_path):
    import nbformat
    from nbclient import NotebookClient
    cells = ["%load_ext flashmoe_nb.workbook\nfrom flashmoe_nb.host.sources import read_source",
             f"{START} --arch sm_80\n__device__ int a;", f"{APPEND} -c\n__global__ void k() {{}}",
             "print(read_source('scratch/a.cu').text)"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(book, kernel_name="python3", timeout=120, resources={"metadata": {"path": str(tmp_path)}},
                   extra_arguments=["--IPKernelApp.log_level=40"]).execute()
    assert "__device__ int a;\n\n__global__ void k() {}\n" in book.cells[-1].outputs[0].text
    assert {"text/plain", "text/html"} <= set(book.cells[2].outputs[0].data)
