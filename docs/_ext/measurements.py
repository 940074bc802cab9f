"""Directives that show measured numbers, read from `nbs/results/*.json` when the site is built.

Each is a function from results to Markdown, and a directive that parses what the function returns. A number that has
not been measured is said to be missing, never filled in.
"""

import json
from collections import Counter, defaultdict

import pages
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

RESULTS = pages.ROOT / "nbs" / "results"
NOT_MEASURED = "Not measured yet: `nbs/results/{name}.json` does not exist.\n"
PEERS = {"sdpa_math": "torch SDPA, math", "sdpa_efficient": "torch SDPA, memory-efficient",
         "sdpa_flash": "torch SDPA, flash", "sdpa_cudnn": "torch SDPA, cuDNN",
         "sdpa_default": "torch SDPA, default"}  # fmt: skip
SHAPE = ("dtype", "batch", "num_heads", "num_heads_k", "seqlen_q", "seqlen_k", "head_dim", "causal")


def load(name):
    """The contents of `nbs/results/<name>.json`, or None where nothing was measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def implementation(name, steps, prefix=""):
    """The label of an `impl`: a step becomes a link to its notebook, a peer its full name."""
    page = steps.get(name)
    return f"[{page.title}]({prefix}{page.path.name})" if page else PEERS.get(name, f"`{name}`")


def attention_steps():
    """`impl` → page, for the notebooks that export an attention step."""
    found = [p for p in pages.notebooks() if (p.module or "").startswith("attention.")]
    return {p.module.rpartition(".")[2]: p for p in found}


def provenance(result):
    """One line: which GPU, which software, which commit, when."""
    env = result["env"]
    parts = [f"**{env['gpu']}**", f"driver {env['driver']}", f"CUDA {env['cuda']}", f"torch {env['torch']}"]
    parts += [f"commit `{str(env['commit'])[:7]}`" + (" with local changes" if env["dirty"] else "")]
    return ", ".join(parts) + f"; {str(env['date'])[:10]}."


def common_shape(rows):
    """The shape that the most implementations were measured at; among equals, the one with the most work."""
    counts = Counter(tuple(row[key] for key in SHAPE) for row in rows)
    return max(counts, key=lambda s: (counts[s], s[1] * s[2] * s[4] * s[5] * s[6], not s[7]))


def describe(shape):
    """A shape in words."""
    s = dict(zip(SHAPE, shape, strict=True))
    mask = "causal" if s["causal"] else "no mask"
    return (
        f"{s['dtype']}, batch {s['batch']}, {s['num_heads']} heads, {s['seqlen_q']:,} queries and "
        f"{s['seqlen_k']:,} keys of head_dim {s['head_dim']}, {mask}"
    )


def significant(value, digits=3):
    """A number to a few significant digits, without an exponent: 1234.5 → 1,234; 0.01234 → 0.0123."""
    if value >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{float(f'{value:.{digits}g}'):g}"


def bar(share):
    """A bar of `share` (0 to 1) of its column's width."""
    return f'<span class="bar" style="--share: {share:.4f}"></span>'


def ladder(result, steps, prefix="nbs/"):
    """The attention steps in order, then the peers of the same run, at the shape common to most of them."""
    speed, caption = {}, NOT_MEASURED.format(name="attention_forward")
    if result is not None:
        shape = common_shape(result["rows"])
        rows = [row for row in result["rows"] if tuple(row[key] for key in SHAPE) == shape]
        speed = {row["impl"]: row["tflops"] for row in rows}
        caption = f"TFLOP/s forward: {describe(shape)}. {provenance(result)}\n"
    top = max(speed.values(), default=1.0)
    lines = ["| step | what it buys | TFLOP/s | |", "|:--|:--|--:|:--|"]
    for name in [*steps, *sorted(set(speed) - set(steps), key=speed.get)]:
        what = steps[name].summary if name in steps else "peer, same run"
        number = significant(speed[name]) if name in speed else "–"
        lines.append(f"| {implementation(name, steps, prefix)} | {what} | {number} | {bar(speed.get(name, 0) / top)} |")
    return "\n".join(lines) + f"\n\n{caption}"


def speed_tables(result, steps, prefix="nbs/"):
    """For each head_dim, mask and dtype: implementation × sequence length → TFLOP/s."""
    groups = defaultdict(dict)
    for row in result["rows"]:
        length = row["seqlen_q"] if row["seqlen_q"] == row["seqlen_k"] else f"{row['seqlen_q']}×{row['seqlen_k']}"
        key = (row["head_dim"], row["causal"], row["dtype"], row["batch"] * row["num_heads"])
        groups[key].setdefault(row["impl"], {})[length] = row["tflops"]
    parts = []
    for (head_dim, causal, dtype, heads), table in sorted(groups.items()):
        lengths = list(dict.fromkeys(length for speeds in table.values() for length in speeds))
        parts.append(f"**head_dim {head_dim}, {'causal' if causal else 'no mask'}, {dtype}, {heads} heads in all**\n")
        parts.append("| TFLOP/s at sequence length | " + " | ".join(f"{n:,}" for n in lengths) + " |")
        parts.append("|:--" + "|--:" * len(lengths) + "|")
        for name in [*[s for s in steps if s in table], *[n for n in table if n not in steps]]:
            cells = [significant(table[name][n]) if n in table[name] else "–" for n in lengths]
            parts.append(f"| {implementation(name, steps, prefix)} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def plain_table(result, columns):
    """The named columns of every row, as they are."""
    parts = ["| " + " | ".join(c.replace("_", " ") for c in columns) + " |", "|:--" * len(columns) + "|"]
    for row in result["rows"]:
        cells = [significant(row[c]) if isinstance(row[c], float) else str(row[c]) for c in columns]
        parts.append("| " + " | ".join(cells) + " |")
    return "\n".join(parts) + "\n"


class Measured(SphinxDirective):
    """Base of the directives: `markdown()` gives the text, and a build knows which file it came from."""

    option_spec = {"prefix": directives.unchanged}
    file = "attention_forward"

    def run(self):
        self.env.note_dependency(str(RESULTS / f"{self.file}.json"))
        box = nodes.container(classes=["measured", type(self).__name__.lower()])
        box += self.parse_text_to_nodes(self.markdown())
        return [box]

    @property
    def prefix(self):
        return self.options.get("prefix", "nbs/")


class Ladder(Measured):
    """`{ladder}`: the steps and their speed, for the landing page and the report."""

    def markdown(self):
        return ladder(load(self.file), attention_steps(), self.prefix)


def setup(app):
    app.add_directive("ladder", Ladder)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
