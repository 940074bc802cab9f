"""The site: built from the notebooks without a complaint, whole, linked, and showing what it should."""

import importlib
import json
import re
import sys
from functools import cache
from html import unescape
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from browser.support import ROOT, site, site_build  # noqa: F401 - fixtures

sys.path.insert(0, str(ROOT / "docs" / "_ext"))
import measurements  # noqa: E402
import pages  # noqa: E402
import workbook_reader as reader  # noqa: E402

NOTEBOOKS = [page.path.stem for page in pages.notebooks()]


class Page(HTMLParser):
    """The parts of an HTML page that the tests ask about."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.assets, self.rels, self.classes, self._text = set(), [], [], {}, [], []
        self._silent = 0
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.add(given.get("id"))
        self.classes.append((tag, (given.get("class") or "").split()))
        self._silent += tag in ("script", "style")
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and "href" in given:
            self.rels[given.get("rel")] = given["href"]
            if given.get("rel") not in ("next", "prev", "index", "search", "canonical"):
                self.assets.append(given["href"])
        self.assets += [given[name] for name in ("src", "data", "poster", "srcset") if given.get(name)]

    def handle_endtag(self, tag):
        self._silent -= tag in ("script", "style")

    def handle_data(self, data):
        if not self._silent:
            self._text.append(data)

    @property
    def text(self):
        return "".join(self._text)

    def has(self, tag, name):
        return any(t == tag and name in names for t, names in self.classes)


@cache
def read(path):
    return Page(path)


@pytest.fixture(scope="session")
def html(site):  # noqa: F811
    """Every page of the site by its path."""
    found = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    return {str(path.relative_to(site)): read(path) for path in found}


@pytest.fixture(scope="session")
def sample(html):
    return html["nbs/98_sample.html"]


# ---- The whole site -------------------------------------------------------------------------------------------------


def test_the_build_has_nothing_to_complain_about(site_build):  # noqa: F811
    assert site_build[1].strip() == ""


def test_every_notebook_and_module_has_a_page(html):
    assert {f"nbs/{name}.html" for name in NOTEBOOKS} <= set(html)
    assert {f"api/{module}.html" for module in pages.modules()} <= set(html)
    assert {"index.html", "report.html", "benchmarks.html", "contributing.html", "search.html"} <= set(html)


def test_internal_links_lead_somewhere(site, html):  # noqa: F811
    broken = []
    for name, page in html.items():
        here = site / name
        for link in page.links + list(page.rels.values()):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (here.parent / unquote(parts.path)).resolve() if parts.path else here
            if not target.is_file():
                broken.append(f"{name}: {link}")
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in read(target).ids:
                broken.append(f"{name}: {link} (no such place on the page)")
    assert not broken


def test_no_page_needs_another_host(site, html):  # noqa: F811
    foreign = [f"{name}: {asset}" for name, page in html.items() for asset in page.assets if "//" in asset]
    sheets = [path for path in site.rglob("*.css")]
    foreign += [f"{p.name}: {u}" for p in sheets for u in re.findall(r"(?:url\(|@import)\s*['\"]?(https?:[^)'\"]*)",
                                                                     p.read_text(encoding="utf-8"))]  # fmt: skip
    assert not foreign


def test_assets_exist(site, html):  # noqa: F811
    missing = {asset for name, page in html.items() for asset in page.assets if not asset.startswith("data:")
               and not ((site / name).parent / unquote(urlsplit(asset).path)).is_file()}  # fmt: skip
    assert not missing


def test_search_index_holds_the_words_of_the_notebooks(site):  # noqa: F811
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(index.removeprefix("Search.setIndex(").rstrip().removesuffix(")"))
    found = [index[part].get("kernel", []) for part in ("terms", "titleterms")]
    numbers = {number for entry in found for number in ([entry] if isinstance(entry, int) else entry)}
    assert {"nbs/00_cuda", "report"} <= {index["docnames"][number] for number in numbers}


def test_pages_follow_each_other_by_number(html):
    order = [f"{name}.html" for name in NOTEBOOKS] + ["98_sample.html"]
    order.sort()
    assert [html[f"nbs/{name}"].rels.get("next") for name in order[:-1]] == order[1:]
    assert html["nbs/index.html"].rels["next"] == order[0]


def test_sidebar_groups_notebooks_by_stage(html):
    text = html["nbs/98_sample.html"].text
    places = [text.index(stage) for stage in pages.by_stage(pages.notebooks())]
    assert places == sorted(places) and "Ground" in pages.by_stage(pages.notebooks())


# ---- A notebook's page ----------------------------------------------------------------------------------------------


def test_hidden_cells_and_directives_do_not_show(sample):
    assert "hidden_name" not in sample.html
    assert "#|" not in sample.text
    assert "shown without its source" in sample.text and "print(" not in sample.text


def test_cuda_cells_have_the_cuda_lexer(sample):
    assert '<span class="kr">__global__</span>' in sample.html
    assert '<span class="cp">%%cuda scratch/sample.cu -c' in sample.html
    assert sample.has("div", "tag_cuda")


def test_figures_are_data_for_the_vendored_script(site, sample):  # noqa: F811
    boxes = re.findall(r'<div class="plotly-figure"[^>]*><script type="application/json">(.*?)</script>', sample.html)
    assert [json.loads(box)["data"][0]["type"] for box in boxes] == ["bar"]
    assert (site / "_static/vendor/plotly/plotly.min.js").stat().st_size > 1_000_000


def test_diagrams_keep_their_text(sample):
    assert '<pre class="mermaid">\nflowchart LR' in sample.html
    assert "cubin &amp; launch" in sample.html


def test_html_outputs_and_tables_show(sample):
    assert sample.has("div", "html-output") and "static shared bytes" in sample.text
    assert sample.has("div", "pst-scrollable-table-container")


def test_tracebacks_show_without_escape_codes(sample):
    assert "invalid literal for int() with base 10: 'seven'" in sample.text
    assert "\x1b" not in sample.html and "[0;31m" not in sample.html


def test_formulas_are_left_to_the_vendored_script(sample):
    assert re.search(r'<span class="together"><span class="math[^>]*>\\\(\\ell\\\)</span>,</span> its', sample.html)
    assert r"\(m_j = \max(m_{j-1}, \max_k s_{jk})\)" in sample.text
    assert any("vendor/mathjax/tex-svg.js" in asset for asset in sample.assets)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_can_be_downloaded_and_edited(site, html, name):  # noqa: F811
    page = html[f"nbs/{name}.html"]
    assert f"{name}.ipynb" in page.links
    source = site.parent.parent / "nbs" / f"{name}.ipynb"
    assert (site / "nbs" / f"{name}.ipynb").read_bytes() == source.read_bytes()
    assert any(link.endswith(f"/edit/main/nbs/{name}.ipynb") for link in page.links)


def test_pages_have_their_summary_for_searches(html):
    for page in pages.notebooks():
        words = re.search(r'<meta name="description" content="([^"]+)"', html[f"nbs/{page.path.stem}.html"].html)[1]
        assert unescape(words) == re.sub("[`*]", "", page.summary)
    assert '<meta name="description" content="FlashAttention and' in html["index.html"].html


def test_other_pages_are_edited_at_their_source(html):
    edits = {name: [link for link in page.links if "/edit/main/" in link] for name, page in html.items()}
    assert [e.rpartition("/main/")[2] for e in edits["report.html"]] == ["docs/report.md"]
    assert [e.rpartition("/main/")[2] for e in edits["api/flashmoe_nb.cuda.html"]] == ["nbs/00_cuda.ipynb"]
    assert edits["api/index.html"] == edits["search.html"] == []


# ---- The other pages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", sorted(pages.modules()))
def test_api_page_holds_the_public_names(html, module):
    public = importlib.import_module(module)
    names = [n for n in public.__all__ if callable(getattr(public, n)) and getattr(public, n).__module__ == module]
    missing = [n for n in names if f"{module}.{n}" not in html[f"api/{module}.html"].ids]
    assert not missing, "these have no docstring"


def test_landing_page_comes_from_the_index_notebook(html):
    title, summary = reader.heading(nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4))
    landing = html["index.html"]
    assert title in landing.text and summary in landing.text
    assert landing.has("svg", "tile-walk") and "make run" in landing.text and "make test" in landing.text
    assert all(page.title.partition(" · ")[2] in landing.text for page in measurements.attention_steps().values())


def test_every_step_is_on_the_ladder(html):
    steps = measurements.steps_of("attention") | measurements.steps_of("moe")
    assert {f"nbs/{page.path.stem}.html" for page in steps.values()} <= set(html["index.html"].links)


def test_first_use_in_the_readme_works():
    code = re.search(r"^```python\n(import torch\n.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S | re.M)[1]
    names = {}
    exec(code.replace('"cuda" if torch.cuda.is_available() else "cpu"', '"cpu"').replace("2048", "64"), names)
    assert names["out"].shape == names["tokens"].shape and names["out"].isfinite().all()


def test_pages_say_what_was_measured_or_that_nothing_was(html):
    for page, name in (("benchmarks.html", "attention_forward"), ("report.html", "attention_forward")):
        result = measurements.load(name)
        expected = "Not measured yet" if result is None else result["env"]["gpu"]
        assert expected in html[page].text


# ---- The reader -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "directives", "rest"),
    [
        ("x = 1", [], "x = 1"),
        ("#| export\nx = 1", [("export", "")], "x = 1"),
        ("#|export\n#| echo: false\n\nx = 1", [("export", ""), ("echo", "false")], "x = 1"),
        ("%%cuda a.cu -a\n#| hide\nint x;", [("hide", "")], "%%cuda a.cu -a\nint x;"),
        ("x = 1\n#| export", [], "x = 1\n#| export"),
        ("#| default_exp attention.tiling", [("default_exp", "attention.tiling")], ""),
        ("", [], ""),
    ],
)
def test_split_directives(source, directives, rest):
    assert reader.split_directives(source) == (directives, rest)


def test_mermaid_block_survives_markdown():
    text = reader.mermaid_blocks("before\n\n```mermaid\nflowchart LR\n\n  a --> b<br>c\n```\n\n```sh\nx\n```")
    assert text == 'before\n\n<pre class="mermaid">\nflowchart LR\n  a --&gt; b&lt;br&gt;c\n</pre>\n\n```sh\nx\n```'


def test_figure_cannot_end_its_script_element():
    html = reader.plotly_figure({"data": [], "layout": {"title": {"text": "</script><b>"}}})
    assert html.count("</script>") == 1 and "<\\/script>" in html


def test_pictures_are_inlined(tmp_path):
    (tmp_path / "a.svg").write_text('<?xml version="1.0"?>\n<svg>\n\n<g/></svg>\n')
    text = reader.inline_pictures('![A "walk"](a.svg)\n\n![remote](https://x.org/a.svg)', tmp_path)
    assert text.startswith('<figure class="picture" role="img" aria-label="A &quot;walk&quot;">\n<svg>\n<g/></svg>')
    assert text.endswith("![remote](https://x.org/a.svg)")


def test_reader_leaves_its_argument_alone():
    notebook = nbformat.read(ROOT / "tests" / "browser" / "98_sample.ipynb", as_version=4)
    before = nbformat.writes(notebook)
    reader.for_site(notebook, ROOT / "nbs")
    assert nbformat.writes(notebook) == before


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        ("As in step 22, and in step 22 again.", "As in [step 22](22_b.ipynb), and in step 22 again."),
        ("Predecessor: 10. Notebook 99 is not here.", "Predecessor: [10](10_a.ipynb). Notebook 99 is not here."),
        ("`step 22` and [step 22](x) and $step 22$", "`step 22` and [step 22](x) and $step 22$"),
        ("## What changed since step 22\n\nMuch.", "## What changed since step 22\n\nMuch."),
        ("```sh\nstep 22\n```\nNotebook 10", "```sh\nstep 22\n```\n[Notebook 10](10_a.ipynb)"),
    ],
)
def test_mentions_become_links_once_and_only_in_prose(text, linked):
    assert reader.link_mentions(text, {"10": "10_a.ipynb", "22": "22_b.ipynb"}) == linked


def test_a_page_does_not_link_to_itself(html):
    assert '<a class="reference internal" href="10_tiling.html">' in html["nbs/20_online_softmax.html"].html
    assert '<a class="reference internal" href="20_online_softmax.html">' not in html["nbs/20_online_softmax.html"].html


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        ({"layout": {"title": {"text": "A <b>title</b>"}}, "data": [{"name": "x"}, {"name": "x"}, {}]}, "A  title ; x"),
        ({"layout": {"xaxis": {"title": {"text": "tokens"}}, "yaxis": {"title": {"text": "ms"}}}, "data": []}, "ms over tokens"),
        ({"data": [{"name": str(i)} for i in range(40)]}, "40 series"),
        ({"data": []}, "a plot"),
    ],
)
def test_figures_are_described_in_words(figure, words):
    assert reader.described(figure) == f"Figure: {words}"
    assert f'aria-label="Figure: {words}"' in reader.plotly_figure(figure)


# ---- Pages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "stage"),
    [(0, "Ground"), (9, "Ground"), (10, "1 · Basic tiling"), (22, "2 · Online softmax"),
     (48, "4 · Async pipelines"), (72, "5 · MoE dispatch"), (74, "The host"), (78, "Use"), (99, "Use")],  # fmt: skip
)
def test_stage_of_a_number(tmp_path, number, stage):
    page = pages.Page(tmp_path / f"{number:02}_name.ipynb", "Title", "", None, None)
    assert page.stage == stage


@pytest.mark.parametrize("title", ["Title", "07 · Title", "07: Title", "07 – Title"])
def test_label_has_the_number_once(tmp_path, title):
    assert pages.Page(tmp_path / "07_x.ipynb", title, "", None, None).label == "07 · Title"


def test_staging_drops_what_is_gone_and_keeps_what_is_unchanged(tmp_path):
    found = pages.notebooks()[:2]
    pages.stage_workbook(found, tmp_path)
    first = tmp_path / found[0].path.name
    before = first.stat().st_mtime_ns
    pages.stage_workbook(found[:1], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [found[0].path.name, "index.md"]
    assert first.stat().st_mtime_ns == before


def test_docstrings_are_prose_with_code():
    lines = ["max |x| * 2, `a_ | *b*`s, the q_ of C_x", "and a ` alone."]
    pages.escape_docstring(None, "function", "f", None, None, lines)
    assert lines == [r"max \|x\| \* 2, \ ``a_ | *b*``\ s, the q\_ of C_x", r"and a \` alone."]


# ---- Measurements ---------------------------------------------------------------------------------------------------

ENV = {"gpu": "NVIDIA X", "driver": "1", "cuda": "13", "torch": "2", "commit": "0123456789", "dirty": False,
       "date": "2026-11-20T10:00"}  # fmt: skip


def row(impl, tflops, length=1024, causal=False):
    return {"impl": impl, "dtype": "bf16", "batch": 2, "num_heads": 4, "num_heads_k": 4, "seqlen_q": length,
            "seqlen_k": length, "head_dim": 64, "causal": causal, "median_ms": 1.0, "min_ms": 0.9, "max_ms": 1.1,
            "samples": 5, "tflops": tflops}  # fmt: skip


@pytest.fixture
def steps(tmp_path):
    make = lambda name, title: pages.Page(tmp_path / name, title, f"About {title}.", None, None)
    return {"tiling": make("10_tiling.ipynb", "10 · Tiling"), "online": make("20_online.ipynb", "20 · Online")}


def test_ladder_lists_steps_then_peers_at_the_shape_most_have(steps):
    rows = [row("flashmoe_nb", 2.5), row("online", 2.5), row("tiling", 1.25), row("sdpa_flash", 250.0), row("sdpa_default", 500.0),
            row("sdpa_default", 700.0, length=9999)]  # fmt: skip
    lines = measurements.ladder({"env": ENV, "rows": rows}, steps).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert [c[0] for c in cells] == ["[10 · Tiling](nbs/10_tiling.ipynb)", "[20 · Online](nbs/20_online.ipynb)",
                                     "torch SDPA, flash", "torch SDPA, default"]  # fmt: skip
    assert [c[2] for c in cells] == ["1.25", "2.5", "250", "500"]
    assert "--share: 1.0000" in cells[3][3] and "--share: 0.0025" in cells[0][3]
    assert "NVIDIA X" in lines[-1] and "2026-11-20" in lines[-1] and "`0123456`" in lines[-1]


def test_ladder_without_measurements_says_so(steps):
    text = measurements.ladder(None, steps)
    assert "Not measured yet" in text and text.count("| – |") == 2


def test_ladder_marks_a_step_that_was_not_measured(steps):
    text = measurements.ladder({"env": ENV, "rows": [row("online", 2.5)]}, steps)
    assert "| – |" in text.splitlines()[2] and "| 2.5 |" in text.splitlines()[3]


def test_speed_tables_have_one_row_for_an_implementation(steps):
    rows = [row("sdpa_flash", 100.0, 512), row("sdpa_flash", 100.0, 2048), row("tiling", 1.5, 2048)]
    rows += [row("tiling", 3.0, 512, causal=True)]
    text = measurements.speed({"env": ENV, "ceilings": {"cublas_bf16_tflops": 790.4}, "rows": rows}, steps)
    assert "| [10 · Tiling](nbs/10_tiling.ipynb) | – | 1.5 |" in text
    assert "| torch SDPA, flash | 100 | 100 |" in text
    assert text.count("**head_dim 64,") == 2 and "790 TFLOP/s" in text and "plotly-figure" in text


def test_lines_of_a_plot_are_told_apart(steps):
    rows = [row(i, 100.0, n) for i in ("sdpa_flash", "tiling", "online", "flashmoe_nb") for n in (512, 2048)]
    figure = measurements.tell_apart(measurements.plot_speed(rows), steps)
    looks = {trace.name: (trace.line.color, trace.line.dash) for trace in figure.data}
    assert set(looks) == {"10 · Tiling", "20 · Online", "public operation", "torch SDPA, flash"}
    assert len(set(looks.values())) == 4 and [name for name, (_, dash) in looks.items() if dash != "solid"] == ["torch SDPA, flash"]


def test_the_expert_layer_stands_beside_its_best_peer():
    rows = [{"impl": impl, "model": "m", "num_tokens": 1024, "median_us": us, "mode": "graph"}
            for impl, us in (("flashmoe_nb", 50.0), ("triton", 100.0), ("torch_grouped_mm", 80.0), ("dense", 40.0))]  # fmt: skip
    rows.append({**rows[1], "median_us": 1.0, "mode": "eager"})
    text = measurements.layer_table({"env": ENV, "rows": rows})
    assert text.endswith("| m, 1,024 | 50 | 80 | torch, grouped_mm | 1.60 | 0.80 |\n")
    assert measurements.layer_table(None) == "Not measured yet.\n"


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(512, 512, 4), (2048, 2048, 4)], ("batch 4", ["512", "2,048"])),
        ([(512, 512, 32), (16384, 16384, 1)], ("16,384 tokens", ["512", "16,384"])),
        ([(1, 4096, 8), (64, 64, 2)], ("batch × length", ["8 × 1 × 4,096", "2 × 64"])),
    ],
)
def test_batches_are_said_once_where_they_can_be(shapes, expected):
    assert measurements.batches(shapes) == expected


def test_rows_show_the_columns_asked_for():
    result = {"env": ENV, "rows": [{"impl": "sdpa_flash", "n": 3, "FMA pipe": 2.0, "median_us": 19.123}]}
    text = measurements.rows_of(result, ["impl", "median_us", "n"], {})
    assert text.endswith("| impl | median (µs) | n |\n| :-- | --: | --: |\n| torch SDPA, flash | 19.1 | 3 |\n")
    assert measurements.rows_of(None, ["op"], {}) == "Not measured yet.\n"
    other = {"env": ENV, "rows": [*result["rows"], {"kernel": "down", "median_us": 3.0}]}
    assert measurements.rows_of(other, ["impl", "median_us", "n"], {}) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1,234"), (100.4, "100"), (99.96, "100"), (2.504, "2.5"), (0.01234, "0.0123"), (0, "0")],
)
def test_significant(value, text):
    assert measurements.significant(value) == text


