"""Mutants of the kernels: how they are made, what the stored table says of them, and some of them again."""

import subprocess
import sys
from pathlib import Path

import pytest

from flashmoe_nb import bench, cuda
from flashmoe_nb.mutations import blank, group_of, mutants, plot_mutations, siblings

TESTS = Path(__file__).parent
KERNEL = """
#define TWICE(x) __syncthreads(); x
// __syncthreads(); in a comment, and "__syncwarp();" in quotes
__global__ void a_kernel(int* x, Barrier* full, int phase) {
    const char* text = "ptx::mbar_wait(";
    if (threadIdx.x == 0) ptx::mbar_arrive(&full[0]);
    for (int i = 0; i < 3; ++i) {
        while (!ptx::mbar_try_wait(&full[i], phase)) {}
        x[i] = 1;
        __syncthreads();
        const int y = x[i];
        x[i] = ptx::bar_red_or(1, f(2, 3), y > 0) ? ptx::ld_acquire(x + i) : y;
    }
    ptx::wgmma_wait<0>(a, b);
}
"""


def made(text: str) -> dict[str, str]:
    return {f"{m.call} {m.how}": m.text for m in mutants("a.cu", text)}


def test_every_call_of_the_code_and_none_elsewhere():
    found = [(m.line, m.call, m.how) for m in mutants("a.cu", KERNEL)]
    assert found == [
        (6, "mbar_arrive", "dropped"),
        (8, "mbar_try_wait", "dropped"),
        (10, "__syncthreads", "dropped"),
        (10, "__syncthreads", "moved down"),
        (12, "bar_red_or", "dropped"),
        (12, "ld_acquire", "dropped"),
        (14, "wgmma_wait", "dropped"),
    ]


@pytest.mark.parametrize(
    "mutant, before, after",
    [
        ("mbar_arrive dropped", "if (threadIdx.x == 0) ptx::mbar_arrive(&full[0]);", "if (threadIdx.x == 0) ;"),
        ("mbar_try_wait dropped", "!ptx::mbar_try_wait(&full[i], phase)", "!true"),
        ("bar_red_or dropped", "ptx::bar_red_or(1, f(2, 3), y > 0)", "(y > 0)"),
        ("ld_acquire dropped", "ptx::ld_acquire(x + i)", "*(x + i)"),
        ("wgmma_wait dropped", "ptx::wgmma_wait<0>(a, b);", ";"),
    ],
)
def test_dropping(mutant, before, after):
    assert made(KERNEL)[mutant] == KERNEL.replace(before, after)


def test_moving_passes_declarations_and_one_statement():
    after = "x[i] = ptx::bar_red_or(1, f(2, 3), y > 0) ? ptx::ld_acquire(x + i) : y;"
    moved = KERNEL.replace("        __syncthreads();", "        ").replace(after, after + " __syncthreads();")
    assert made(KERNEL)["__syncthreads moved down"] == moved


def test_what_publishes_moves_up():
    text = "void f() { const int i = 0; x[i] = 1; ptx::wgmma_fence(r); if (lane == 0) ptx::mbar_arrive(b); }"
    moved = "void f() { const int i = 0; if (lane == 0) ptx::mbar_arrive(b); x[i] = 1; ptx::wgmma_fence(r);  }"
    assert made(text)["mbar_arrive moved up"] == moved


def test_nothing_passes_a_return_or_leaves_its_block():
    for text in ("void f() { __syncthreads(); return; }", "void f() { x = 1; { __syncthreads(); } y = 2; }"):
        assert list(made(text)) == ["__syncthreads dropped"]


def test_statements():
    text = "{ if (a) b; else if (c) { d; } else e; do { f; } while (g); for (;;) h({1, 2}, [] { return 3; }); }"
    parts = [text[begin:end] for begin, end in siblings(blank(text), 3)]
    assert parts == [
        "if (a) b; else if (c) { d; } else e;",
        "do { f; } while (g);",
        "for (;;) h({1, 2}, [] { return 3; });",
    ]


def test_every_kernel_with_a_barrier_has_mutants():
    for file in [f for folder in ("attention", "moe") for f in (cuda.KERNELS / folder).glob("*.cu")]:
        text = file.read_text()
        code = blank(text)
        for name in ("__syncthreads()", "ptx::mbar_wait(", "ptx::wgmma_commit()", "ptx::cp_async_commit()"):
            calls = [m for m in mutants(file.name, text) if m.call == name.strip("()").removeprefix("ptx::")]
            assert sum(m.how == "dropped" for m in calls) == code.count(name)


def rows():
    return bench.read_results("mutations")["rows"]


def test_the_stored_table():
    "At least 150 mutants, 95% of them found, and a reason for every one that is not."
    found = [row for row in rows() if row["caught_by"]]
    assert len(rows()) >= 150 and len(found) >= 0.95 * len(rows())
    assert [row for row in rows() if not row["caught_by"] and not row["why"]] == []
    assert {group_of(row) for row in rows()} >= {"always on", "wrong output", "race", "nobody"}
    assert len(plot_mutations(rows()).data) >= 4


@pytest.mark.parametrize("part", range(4))
def test_replay(part):
    "Forty of those that the table says are found, in processes of their own."
    done = subprocess.run([sys.executable, TESTS / "mutations.py", "replay", str(part), "4"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("\n") == 10, done.stdout + done.stderr


def test_the_stored_sample_under_the_sanitizer():
    "Rows of mutants that the table has, each with what the plain run and the tools said."
    stored = bench.read_results("mutations_sanitized")
    known = {(row["kernel"], row["mutation"], row["source"]) for row in rows()}
    sample = [row for row in stored["rows"] if (row["kernel"], row["mutation"], row["source"]) in known]
    assert len(stored["rows"]) >= 60 and len(sample) >= 50 and "H200" in stored["env"]["gpu"]
    for row in sample:
        assert row["run"] == "does not end" or {"racecheck", "synccheck"} <= row.keys()
        assert not any(f"{tool}: " in row["caught_by"] for tool in row["objects_to_the_right_kernel"])
