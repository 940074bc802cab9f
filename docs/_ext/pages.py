"""Bring the workbook's pages into Sphinx's source folder and its files into the built site.

Before a build, `nbs/*.ipynb` become `docs/nbs/`, the exported modules become `docs/api/`, and `nbs/index.ipynb`
becomes the landing page; these folders are written by the build and ignored by git. A file is only rewritten when it
changes, so that Sphinx rebuilds no more than it must.
"""

import html
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import nbformat
import plotly
import workbook_reader as reader
from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

DOCS = Path(__file__).resolve().parent.parent
ROOT = DOCS.parent

# The first number of each stage. A notebook belongs to the last stage that starts at or below its own number.
STAGES = {0: "Ground", 10: "1 · Basic tiling", 20: "2 · Online softmax", 30: "3 · Warp specialization",
          40: "4 · Async pipelines", 50: "Training and serving", 60: "5 · MoE dispatch", 74: "The host", 78: "Use"}  # fmt: skip

_ladder_marker = re.compile(r"<!--\s*ladder\s*-->")
_sibling_link = re.compile(r"\]\((\d\d_\w+\.ipynb)")


@dataclass
class Page:
    """One notebook of the workbook."""

    path: Path
    title: str
    summary: str
    module: str | None
    notebook: nbformat.NotebookNode

    @property
    def number(self):
        return int(self.path.stem.partition("_")[0])

    @property
    def label(self):
        """Number and title, whether or not the H1 begins with the number."""
        title = re.sub(r"^\d\d\s*[·:.–-]\s*", "", self.title)
        return f"{self.number:02} · {title}"

    @property
    def stage(self):
        return STAGES[max(first for first in STAGES if first <= self.number)]


def notebooks(folder=ROOT / "nbs"):
    """The numbered notebooks in `folder`, in order."""
    pages = []
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        title, summary = reader.heading(notebook)
        pages.append(Page(path, title or path.stem, summary, reader.exported_module(notebook), notebook))
    return pages


def by_stage(pages):
    """Stage title → its pages, both in order."""
    stages = {}
    for page in pages:
        stages.setdefault(page.stage, []).append(page)
    return stages


def write(path, text):
    """Write `text` unless the file already holds it."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path


def remove_others(folder, kept):
    """Delete what an earlier build left in a generated folder, such as the page of a notebook that was renamed."""
    for path in folder.iterdir():
        if path not in kept:
            path.unlink()


def workbook_index(pages):
    """The page that lists the notebooks by stage; its tables of contents give the sidebar its groups."""
    parts = ["# Notebooks\n", "Every step is a notebook: the idea, the kernel, its checks and its measurements.\n"]
    for stage, members in by_stage(pages).items():
        parts.append(f"## {stage}\n\n::::{{container}} steps\n")
        parts += [f"[{p.label}]({p.path.name})\n: {p.summary or p.path.stem}\n" for p in members]
        parts.append("::::\n")
        names = "\n".join(f"{p.label} <{p.path.stem}>" for p in members)
        parts.append(f"```{{toctree}}\n:hidden:\n:caption: {stage}\n\n{names}\n```\n")
    return "\n".join(parts)


def stage_workbook(pages, folder):
    """Write the notebooks' pages and their index to `folder`."""
    kept = [write(folder / "index.md", workbook_index(pages))]
    for page in pages:
        text = nbformat.writes(reader.for_site(page.notebook, page.path.parent))
        kept.append(write(folder / page.path.name, text))
    remove_others(folder, kept)


def modules(package=ROOT / "flashmoe_nb"):
    """(module name, the notebook that exports it) for each module nbdev wrote."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        head = path.read_text(encoding="utf-8")[:1000]
        if match := re.search(r"File to edit: \S*?([\w.-]+\.ipynb)", head):
            name = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
            found[name] = match[1]
    return found


def api_page(module, notebook):
    """The page of one module, from its docstrings: what is defined there, not what it hands on from another module."""
    return (
        f"# {module}\n\nWritten in [{notebook.removesuffix('.ipynb')}](../nbs/{notebook}).\n\n"
        f"```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```\n"
    )


def api_index(owners, summaries):
    """The page that lists the modules in the order of their notebooks."""
    rows = [f"[`{m}`]({m}.md)\n: {summaries.get(nb, '')}\n" for m, nb in owners]
    names = "\n".join(f"{m} <{m}>" for m, _ in owners)
    return (
        "# API\n\nOne page for each module, from the docstrings of what its notebook exports.\n\n"
        "::::{container} steps\n\n" + "\n".join(rows) + "\n::::\n\n"
        f"```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    )


def stage_api(pages, folder):
    """Write the modules' pages and their index to `folder`."""
    owners = sorted(modules().items(), key=lambda item: item[1])
    summaries = {page.path.name: page.summary for page in pages}
    kept = [write(folder / "index.md", api_index(owners, summaries))]
    kept += [write(folder / f"{module}.md", api_page(module, notebook)) for module, notebook in owners]
    remove_others(folder, kept)


def landing(notebook, folder):
    """`nbs/index.ipynb` as the landing page: what stands before its first H2 is the hero, the picture beside it."""
    notebook = reader.for_site(notebook, folder)
    cells = [cell for cell in notebook.cells if cell.cell_type == "markdown" or cell.source]
    first = next((i for i, c in enumerate(cells) if c.source.startswith("## ")), len(cells))
    hero = "\n\n".join(c.source for c in cells[:first])
    title, _, body = hero.partition("\n")
    picture = re.search(r"<figure.*?</figure>", body, re.S)
    text = body.replace(picture[0], "") if picture else body
    parts = [title, '<div class="hero-text">', text.strip(), "</div>"]
    if picture:
        parts += ['<div class="hero-picture">', picture[0], "</div>"]
    contents = "```{toctree}\n:hidden:\n\nnbs/index\nbenchmarks\nreport\napi/index\ncontributing\n```"
    notebook.cells = [nbformat.v4.new_markdown_cell("\n\n".join(parts), id="hero"), *cells[first:]]
    notebook.cells.append(nbformat.v4.new_markdown_cell(contents, id="contents"))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _ladder_marker.sub("```{ladder}\n```", _sibling_link.sub(r"](nbs/\1", cell.source))
    return notebook


def stage(app, config):
    """Write every generated source."""
    pages = notebooks()
    stage_workbook(pages, DOCS / "nbs")
    stage_api(pages, DOCS / "api")
    index = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    app.summaries = {"index": reader.heading(index)[1]} | {f"nbs/{page.path.stem}": page.summary for page in pages}
    write(DOCS / "index.ipynb", nbformat.writes(landing(index, ROOT / "nbs")))


def copy_files(app, exception):
    """Put the notebooks, as they are in the repository, and Plotly's script beside the built pages."""
    if exception is not None or app.builder.format != "html":
        return
    for path in (ROOT / "nbs").glob("*.ipynb"):
        shutil.copyfile(path, Path(app.outdir) / "nbs" / path.name)
    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    target = Path(app.outdir) / "_static" / "vendor" / "plotly"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(script, target / "plotly.min.js")


def source_of(pagename, suffix, owners):
    """The file in the repository that a person would edit to change a page."""
    folder, _, name = pagename.rpartition("/")
    if pagename == "index" or (folder == "nbs" and name != "index"):
        return f"nbs/{name}.ipynb"
    if folder == "api":
        return f"nbs/{owners[name]}" if name in owners else None
    return None if folder else f"docs/{name}{suffix}"


def add_links(app, pagename, templatename, context, doctree):
    """Give the templates the page's edit link and, on a notebook's page, its download and its summary for searches."""
    source = source_of(pagename, context.get("page_source_suffix", ""), modules()) if doctree is not None else None
    context["edit_url"] = f"{app.config.html_context['repository']}/edit/main/{source}" if source else None
    is_notebook = pagename.startswith("nbs/") and pagename != "nbs/index"
    if summary := app.summaries.get(pagename):
        text = html.escape(re.sub(r"[`*]", "", summary))
        context["metatags"] = context.get("metatags", "") + f'<meta name="description" content="{text}">\n'
    context["download_name"] = pagename.rpartition("/")[2] + ".ipynb" if is_notebook else None


def escape_docstring(app, what, name, obj, options, lines):
    """Read docstrings as they are written here: prose in which only `code` is marked; |x| and 2 * x are text."""
    parts = re.split(r"`([^`\n]+)`", "\n".join(lines))
    parts[::2] = [re.sub(r"([\\*|`]|_\b)", r"\\\1", part) for part in parts[::2]]
    # An escaped space is no space: it lets `code`s stand inside a word.
    parts[1::2] = [rf"\ ``{part}``\ " for part in parts[1::2]]
    lines[:] = "".join(parts).split("\n")


def skip_member(app, what, name, obj, skip, options):
    """Leave out the fields of named tuples, whose docstrings only count them, for the signature lists them; and what a
    module hands on from another one, for it has its place there.
    """
    field = (getattr(obj, "__doc__", None) or "").startswith("Alias for field number")
    module = getattr(obj, "__module__", None) or ""
    elsewhere = what == "module" and module.startswith("flashmoe_nb") and module != app.env.temp_data.get("autodoc:module")
    return True if field or elsewhere else None


def keep_outputs_inside(app):
    """Send what myst-nb extracts from notebooks (images) below the doctrees; its default lies beside the output folder,
    which for docs/_site is our source folder.
    """
    folder = Path(app.doctreedir) / "outputs"
    app.env.mystnb_config = app.env.mystnb_config.copy(output_folder=str(folder))


class KeepPunctuation(SphinxPostTransform):
    """Keep a formula and the comma after it on one line: a browser may break a line behind any formula it draws."""

    default_priority = 700
    formats = ("html",)

    def run(self, **_):
        for formula in list(self.document.findall(nodes.math)):
            follower = formula.next_node(descend=False, siblings=True)
            mark = re.match(r"[,.;:!?)]+", follower) if isinstance(follower, nodes.Text) else None
            if mark:
                parent, place = formula.parent, formula.parent.index(formula)
                together = nodes.inline("", "", formula.deepcopy(), nodes.Text(mark[0]), classes=["together"])
                parent[place : place + 2] = [together, nodes.Text(follower[mark.end() :])]


def setup(app):
    app.add_post_transform(KeepPunctuation)
    app.add_lexer("workbook", reader.WorkbookLexer)
    app.connect("config-inited", stage)
    app.connect("builder-inited", keep_outputs_inside, priority=900)
    app.connect("autodoc-process-docstring", escape_docstring)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("html-page-context", add_links)
    app.connect("build-finished", copy_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
