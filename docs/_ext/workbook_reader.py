"""Turn a notebook of the workbook into one that myst-nb can render.

myst-nb knows nothing of nbdev's `#|` directives, of `%%cuda` cells, of Plotly's mime type or of pictures that follow
the colour mode. Each has one function here; `for_site` applies them to a copy of a notebook.
"""

import copy
import html
import json
import re
from pathlib import Path

from IPython.lib.lexers import IPython3Lexer
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment

PLOTLY = "application/vnd.plotly.v1+json"
RECORDS = "application/vnd.flashmoe."

# nbdev's and Quarto's directives that decide what a reader sees, as the cell tags myst-nb understands.
HIDDEN_CELL = {"hide", "default_exp", "exporti"}
TAGS = {("echo", "false"): "remove-input", ("hide_input", ""): "remove-input", ("output", "false"): "remove-output",
        ("hide_output", ""): "remove-output", ("code-fold", "true"): "hide-input"}  # fmt: skip

_directive_line = re.compile(r"^\s*#\|\s*([\w-]+)\s*:?\s*(.*?)\s*$")
_mermaid_fence = re.compile(r"^```mermaid[ \t]*\n(.*?)^```[ \t]*$", re.S | re.M)
_svg_picture = re.compile(r"^!\[([^\]]*)\]\(([\w./-]+\.svg)\)[ \t]*$", re.M)
_mention = re.compile(r"\b([Nn]otebook|[Ss]tep|Predecessor:) (\d\d)\b")
# Where a mention stays as it is: code, formulas, links, headings, HTML.
_untouched = re.compile(r"(^```.*?^```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$|!?\[[^\]]*\]\([^)]*\)|^#+ .*?$|<[^<>]+>)", re.S | re.M)
_magic = re.compile(r"\A\s*%%cuda\b[^\n]*\n?")


class WorkbookLexer(Lexer):
    """IPython, except that the body of a `%%cuda` cell is CUDA."""

    name = "Workbook"
    aliases = ["workbook"]

    def get_tokens_unprocessed(self, text):
        magic = _magic.match(text)
        if magic is None:
            yield from IPython3Lexer().get_tokens_unprocessed(text)
            return
        yield 0, Comment.Preproc, magic[0]
        for index, token, value in get_lexer_by_name("cuda").get_tokens_unprocessed(text[magic.end() :]):
            yield magic.end() + index, token, value


def split_directives(source):
    """Return (directives, the source without them); a `%%` line above them stays where it is.

    A directive is a `(name, value)` pair: `#| echo: false` gives `("echo", "false")`.
    """
    lines = source.splitlines()
    head = [lines.pop(0)] if lines and lines[0].startswith("%%") else []
    directives = []
    while lines and (match := _directive_line.match(lines[0])):
        directives.append(match.groups())
        lines.pop(0)
    return directives, "\n".join(head + lines).strip("\n")


def mark_code_cell(cell):
    """Replace a code cell's directives by tags: what is hidden, what is folded, what is CUDA."""
    directives, cell.source = split_directives(cell.source)
    tags = [TAGS[d] for d in directives if d in TAGS]
    if HIDDEN_CELL & {name for name, _ in directives} or not cell.source:
        tags.append("remove-cell")
    if _magic.match(cell.source):
        tags.append("cuda")
    cell.metadata["tags"] = tags


def described(figure):
    """What a figure is, in words: its title, or what it has on its axes, and the names of what it shows."""
    layout = figure.get("layout", {})

    def title(part):
        text = (part or {}).get("title", "")
        return re.sub(r"<[^>]*>", " ", text.get("text") or "" if isinstance(text, dict) else text)

    axes = " over ".join(filter(None, (title(layout.get("yaxis")), title(layout.get("xaxis")))))
    names = list(dict.fromkeys(trace["name"] for trace in figure.get("data", []) if trace.get("name")))
    parts = [title(layout), axes, ", ".join(names) if len(names) < 20 else f"{len(names)} series"]
    return "Figure: " + ("; ".join(filter(None, parts)) or "a plot")


def plotly_figure(figure):
    """HTML for one Plotly figure, a dict of data, layout and perhaps frames; workbook.js draws it."""
    # "</" would end the script element early.
    text = json.dumps(figure, separators=(",", ":")).replace("</", "<\\/")
    height = figure.get("layout", {}).get("height", 450)
    return (
        f'<div class="plotly-figure" role="group" aria-label="{html.escape(described(figure))}" '
        f'style="min-height: {int(height)}px">'
        f'<script type="application/json">{text}</script></div>'
    )


def render_outputs(cell):
    """Give every output one form the site can show: Plotly becomes a div, HTML wins over its plain-text twin."""
    for output in cell.get("outputs", []):
        data = output.get("data")
        if data is None:
            continue
        if PLOTLY in data:
            keep = {"text/html": plotly_figure(data[PLOTLY])}
        elif "text/html" in data:
            keep = {"text/html": f'<div class="html-output">{_joined(data["text/html"])}</div>'}
        else:
            keep = {mime: value for mime, value in data.items() if not mime.startswith(RECORDS)}
        output["data"] = keep


def _joined(text):
    return text if isinstance(text, str) else "".join(text)


def mermaid_blocks(text):
    """Replace mermaid fences by elements that workbook.js draws.

    The blank lines of a diagram would end the HTML block, so they go.
    """

    def block(match):
        body = "\n".join(line for line in match[1].splitlines() if line.strip())
        return f'<pre class="mermaid">\n{html.escape(body, quote=False)}\n</pre>'

    return _mermaid_fence.sub(block, text)


def inline_pictures(text, folder):
    """Replace references to SVG files under `folder` by the pictures, so that their colours follow the page's."""

    def picture(match):
        svg = re.sub(r"\A<\?xml[^>]*>\s*", "", (Path(folder) / match[2]).read_text(encoding="utf-8"))
        svg = "\n".join(line for line in svg.splitlines() if line.strip())
        return f'<figure class="picture" role="img" aria-label="{html.escape(match[1])}">\n{svg}\n</figure>'

    return _svg_picture.sub(picture, text)


def link_mentions(text, pages):
    """Make "step 22" a link to its page, the first time a text says it; `pages` has the file of each number."""
    linked = set()

    def link(match):
        name = pages.get(match[2])
        if name is None or match[2] in linked:
            return match[0]
        linked.add(match[2])
        return f"{match[1]} [{match[2]}]({name})" if match[1].endswith(":") else f"[{match[0]}]({name})"

    parts = _untouched.split(text)
    parts[::2] = [_mention.sub(link, part) for part in parts[::2]]
    return "".join(parts)


def for_site(notebook, folder):
    """A copy of `notebook` (nbformat 4) that myst-nb renders as we want it; `folder` is where its pictures lie."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "workbook"}
    title, _ = heading(notebook)
    pages = {p.name[:2]: p.name for p in Path(folder).glob("[0-9][0-9]_*.ipynb") if not title.startswith(p.name[:2])}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            mark_code_cell(cell)
            render_outputs(cell)
        elif cell.cell_type == "markdown":
            cell.source = inline_pictures(mermaid_blocks(link_mentions(cell.source, pages)), folder)
    return notebook


def heading(notebook):
    """(title, summary) of a notebook: its H1, and the `>` lines below it as one paragraph."""
    text = next((c.source for c in notebook.cells if c.cell_type == "markdown" and c.source.startswith("# ")), "")
    title, _, rest = text.partition("\n")
    quote = re.match(r"\s*((?:>.*\n?)+)", rest)
    summary = " ".join(line.lstrip("> ").strip() for line in quote[1].splitlines()) if quote else ""
    return title.removeprefix("# ").strip(), summary


def exported_module(notebook):
    """The module a notebook exports, such as `attention.tiling`, or None."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for name, value in split_directives(cell.source)[0]:
                if name == "default_exp":
                    return value
    return None
