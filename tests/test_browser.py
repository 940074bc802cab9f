"""The site and JupyterLab in headless Chromium: what a person sees works, and nothing fails behind it.

A `Visit` fails its test for any failed request, error in the console, or request to another host.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from browser.support import ROOT, SAMPLE, Visit, chromium, serve, site, site_build  # noqa: F401 - fixtures

pytestmark = pytest.mark.browser

DESKTOP = {"viewport": {"width": 1440, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
LOOKS = {
    "light": {**DESKTOP, "color_scheme": "light"},
    "dark": {**DESKTOP, "color_scheme": "dark"},
    "phone": {**PHONE, "color_scheme": "light"},
}
PAGES = ["index.html", "nbs/index.html", "nbs/20_online_softmax.html", "nbs/98_sample.html", "benchmarks.html",
         "report.html", "api/flashmoe_nb.cuda.html", "contributing.html"]  # fmt: skip


@pytest.fixture(scope="session")
def url(site):  # noqa: F811
    with serve(site) as url:
        yield url


@pytest.fixture(params=LOOKS)
def look(request):
    return LOOKS[request.param]


# ---- The site -------------------------------------------------------------------------------------------------------


def test_pages_open(chromium, url, look):  # noqa: F811
    with Visit(chromium, url, **look) as visit:
        for path in PAGES:
            page = visit.open(path)
            assert page.locator("article h1").count() == 1, path
            assert page.evaluate("document.documentElement.dataset.theme") == look["color_scheme"], path
            # Only boxes inside the article may scroll sideways; not the page, nor the box the theme puts the article in.
            assert page.evaluate("document.documentElement.scrollWidth") <= look["viewport"]["width"], path
            overflow = "box => box.scrollWidth - box.clientWidth"
            assert page.locator(".bd-article-container").evaluate(overflow) <= 0, path


def test_figure_diagram_and_formula_are_drawn(chromium, url, look):  # noqa: F811
    with Visit(chromium, url, **look) as visit:
        page = visit.open("nbs/98_sample.html")
        page.wait_for_selector(".plotly-figure .main-svg .bars .point", state="attached")
        page.wait_for_selector("pre.mermaid svg")
        assert page.locator("mjx-container svg").count() == 3
        width = page.locator(".plotly-figure .main-svg").first.bounding_box()["width"]
        assert 300 < width <= page.locator("article").bounding_box()["width"]


def colours(page):
    """Colours of the page, a figure's text, and a diagram's box and text."""
    return page.evaluate("""() => ['body', '.plotly-figure .gtitle', 'pre.mermaid .node rect', 'pre.mermaid .nodeLabel p']
        .map(s => document.querySelector(s)).map(e => getComputedStyle(e)[e.tagName == 'BODY' ? 'backgroundColor' :
        e instanceof SVGElement ? 'fill' : 'color'])""")


def brightness(colour):
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


def test_colour_mode_reaches_figures_and_diagrams(chromium, url):  # noqa: F811
    with Visit(chromium, url, **LOOKS["light"]) as visit:
        page = visit.open("nbs/98_sample.html")
        page.wait_for_selector("pre.mermaid[data-drawn=light] svg")
        page.wait_for_selector(".plotly-figure[data-drawn=light]")
        paper, title, box, label = map(brightness, colours(page))
        assert paper > 230 and title < 80 and box > 200 and label < 80

        page.locator("button.theme-switch-button:visible").click()
        page.locator("button.theme-change-button[data-mode=dark]:visible").click()
        page.wait_for_selector("pre.mermaid[data-drawn=dark] svg")
        page.wait_for_selector(".plotly-figure[data-drawn=dark]")
        paper, title, box, label = map(brightness, colours(page))
        assert paper < 40 and title > 180 and box < 80 and label > 180
        # The theme inverts diagrams in dark mode; ours are drawn dark already.
        assert page.evaluate("getComputedStyle(document.querySelector('pre.mermaid svg')).filter") == "none"


def test_arrow_keys_move_a_slider(chromium, url):  # noqa: F811
    with Visit(chromium, url, **LOOKS["phone"]) as visit:
        page = visit.open("nbs/20_online_softmax.html")
        figure = page.locator(".plotly-figure[data-drawn]").first
        figure.focus()
        assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Figure: ")
        shown = "n => document.querySelector('.plotly-figure').target.layout.sliders[0].active === n"
        page.wait_for_function(shown, arg=1)
        page.keyboard.press("ArrowRight")
        page.wait_for_function(shown, arg=2)
        visible = "document.querySelector('.plotly-figure').target.data.map(trace => trace.visible)"
        before = page.evaluate(visible)
        page.keyboard.press("ArrowLeft")
        page.wait_for_function(shown, arg=1)
        assert page.evaluate(visible) != before


def test_search_finds_a_word(chromium, url):  # noqa: F811
    with Visit(chromium, url, **DESKTOP) as visit:
        page = visit.open("search.html?q=cubin")
        page.wait_for_selector("#search-results ul.search li a")
        found = page.locator("#search-results ul.search li a").evaluate_all("links => links.map(link => link.href)")
        assert any("nbs/00_cuda.html" in link for link in found)


def test_search_dialog_leads_to_results(chromium, url):  # noqa: F811
    with Visit(chromium, url, **DESKTOP) as visit:
        page = visit.open("index.html")
        page.keyboard.press("Control+k")
        page.locator("#pst-search-dialog input[type=search]").press_sequentially("tangle", delay=50)
        page.locator("#pst-search-dialog a", has_text="The workbook").first.click()
        page.wait_for_url("**/nbs/01_workbook.html**")


def test_notebook_downloads(chromium, url):  # noqa: F811
    with Visit(chromium, url, **DESKTOP) as visit:
        page = visit.open("nbs/98_sample.html")
        with page.expect_download() as download:
            page.get_by_role("link", name="Notebook", exact=True).click()
        assert download.value.suggested_filename == "98_sample.ipynb"


def test_wide_tables_scroll_in_their_own_box(chromium, url):  # noqa: F811
    with Visit(chromium, url, **PHONE) as visit:
        page = visit.open("nbs/98_sample.html")
        boxes = page.locator(".pst-scrollable-table-container, .scroll-x").evaluate_all(
            "boxes => boxes.map(box => [box.scrollWidth > box.clientWidth, getComputedStyle(box).overflowX])"
        )
        assert [True, "auto"] in boxes and all(overflow == "auto" for _, overflow in boxes)


def test_menu_covers_the_page_on_a_phone(chromium, url):  # noqa: F811
    with Visit(chromium, url, **PHONE) as visit:
        page = visit.open("nbs/98_sample.html")
        page.locator("button.primary-toggle").click()
        menu = page.locator("#pst-primary-sidebar-modal[open]")
        menu.get_by_role("link", name="98 · Every kind of cell").wait_for()
        assert brightness(menu.evaluate("menu => getComputedStyle(menu).backgroundColor")) > 230
        menu.get_by_role("link", name="Technical report").click()
        page.wait_for_url("**/report.html")


def test_pages_work_without_a_server(chromium, site):  # noqa: F811
    with Visit(chromium, site.as_uri() + "/", **DESKTOP) as visit:
        page = visit.open("nbs/98_sample.html")
        page.wait_for_selector(".plotly-figure .main-svg")
        page.wait_for_selector("pre.mermaid svg")


# ---- JupyterLab -----------------------------------------------------------------------------------------------------

TOKEN = "for-this-test"
STEP = "20_online_softmax.ipynb"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab with the workbook's configuration, serving copies of two notebooks: (URL, their folder)."""
    tmp_path = tmp_path_factory.mktemp("lab")
    folder = tmp_path / "nbs"
    folder.mkdir()
    for notebook in (SAMPLE, ROOT / "nbs" / STEP):
        shutil.copy(notebook, folder)
    port = free_port()
    home = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    command = [sys.executable, "-m", "jupyterlab", f"--config={ROOT / '.jupyter' / 'jupyter_lab_config.py'}",
               "--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0",
               f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **home}, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}/"
            wait_until_up(server, url, tmp_path / "log")
            yield url, folder
        finally:
            server.terminate()
            server.wait(timeout=30)


def wait_until_up(server, url, log, seconds=60):
    """Wait until the server answers; fail with its log if it ends or takes too long."""
    for _ in range(10 * seconds):
        try:
            with urllib.request.urlopen(f"{url}api?token={TOKEN}", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
        assert server.poll() is None, log.read_text()
    pytest.fail(f"JupyterLab did not come up in {seconds} s:\n{log.read_text()}")


def stored_outputs(notebook):
    """cell id → stored outputs, of the code cells in a notebook file."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: cell["outputs"] for cell in cells if cell["cell_type"] == "code"}


def open_in_lab(visit, name):
    """Open a notebook, alone in a workspace and without its stored outputs, ready to run; returns the page."""
    page = visit.page
    page.goto(f"{visit.base}lab/workspaces/{name[:2]}/tree/{name}?token={TOKEN}")
    page.get_by_text("| Idle").wait_for()
    choose(page, "Edit", "Clear Outputs of All Cells")
    return page


def choose(page, menu, item):
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.get_by_role("menuitem", name=item, exact=True).click()


def cell_with(page, text):
    return page.locator(".jp-CodeCell", has_text=text).first


def test_jupyterlab_runs_a_step(chromium, lab):  # noqa: F811
    with Visit(chromium, lab[0], viewport={"width": 1440, "height": 12_000}) as visit:
        page = open_in_lab(visit, STEP)
        kernel = cell_with(page, "__global__ void __launch_bounds__(THREADS, C::MIN_BLOCKS) attention_online_kernel")
        kernel.locator(".cm-content[data-language=cpp]").wait_for()
        choose(page, "Run", "Run All Cells")
        cell_with(page, "running_softmax(row)").locator(".js-plotly-plot .slider-container").wait_for()
        cell_with(page, "multiply_sv<C>(r_out, smem);").locator("td", has_text="sm_90a").wait_for()
        # The rest of the notebook is the business of other tests.
        choose(page, "Kernel", re.compile("^Interrupt Kernel"))


def test_jupyterlab_runs_every_kind_of_cell_and_saves_none_of_it(chromium, lab):  # noqa: F811
    notebook = lab[1] / SAMPLE.name
    before = stored_outputs(notebook)
    with Visit(chromium, lab[0], viewport={"width": 1440, "height": 1000}) as visit:
        page = open_in_lab(visit, notebook.name)
        cuda, python = cell_with(page, "__global__"), cell_with(page, "plot_bars")
        cuda.locator(".cm-content[data-language=cpp]").wait_for()
        python.locator(".cm-content[data-language=python]").wait_for()
        assert cuda.locator("table").count() == 0
        choose(page, "Run", "Run All Cells")
        cuda.locator("td", has_text="sm_90a").wait_for()
        python.locator(".js-plotly-plot .main-svg .bars .point").first.wait_for(state="attached")
        page.locator(".jp-RenderedMermaid svg, .jp-RenderedMermaid img").first.wait_for()
        # The kernel has told its language by now, and CUDA is still CUDA.
        assert cuda.locator(".cm-content").get_attribute("data-language") == "cpp"

        python.locator(".jp-InputPrompt").click()
        page.keyboard.press("b")
        page.keyboard.press("Enter")
        page.keyboard.type("1 + 1")
        page.keyboard.press("Control+Enter")
        page.locator(".jp-OutputArea-output", has_text=re.compile("^2$")).wait_for()
        page.keyboard.press("Control+s")
        page.wait_for_function("!document.querySelector('.lm-TabBar-tab.jp-mod-current.jp-mod-dirty')")
    after = stored_outputs(notebook)
    assert len(after) == len(before) + 1 and {i: after[i] for i in before} == before
    assert all(outputs == [] for i, outputs in after.items() if i not in before)
