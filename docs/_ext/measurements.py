"""Directives that show measured numbers, read from `nbs/results/*.json` when the site is built.

Each is a function from results to Markdown, and a directive that parses what the function returns. What has not been
measured is said to be missing, never filled in.
"""

import json
from collections import Counter, defaultdict

import pages
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective
from workbook_reader import plotly_figure

from flashmoe_nb.plots import AMBER, plot_speed
from flashmoe_nb.scoreboard import best_of, layer_times
from flashmoe_nb.workbook import PEERS

RESULTS = pages.ROOT / "nbs" / "results"
PUBLIC = "flashmoe_nb"  # the public operation, which runs the fastest step
NAMES = {PUBLIC: "public operation", **PEERS, "sdpa_default": "torch SDPA, default", "dense": "dense products",
         "torch_grouped_mm": "torch, grouped_mm", "triton": "a Triton kernel", "naive_loop": "a loop over experts",
         "transformers_grouped_mm": "transformers, grouped_mm", "transformers_batched_mm": "transformers, batched_mm",
         "transformers_eager": "transformers, eager"}  # fmt: skip
SHAPE = ("dtype", "batch", "num_heads", "num_heads_k", "seqlen_q", "seqlen_k", "head_dim", "causal")
CASE = ("head_dim", "num_heads", "causal", "dtype")  # rows that agree in these differ in length and batch


def load(name):
    """The contents of `nbs/results/<name>.json`, or None where nothing was measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def steps_of(kind):
    """Module name → page, for the notebooks that export a step of `attention` or `moe`; the first stage prepares them."""
    ground = next(iter(pages.STAGES.values()))
    steps = [p for p in pages.notebooks() if (p.module or "").startswith(f"{kind}.") and p.stage != ground]
    return {page.module.rpartition(".")[2]: page for page in steps}


def attention_steps():
    """`impl` → page, for the attention steps."""
    return steps_of("attention")


def label(impl, steps, folder="nbs/"):
    """How a table calls an `impl`: a step links to its notebook, the others have a full name."""
    page = steps.get(impl)
    return f"[{page.label}]({folder}{page.path.name})" if page else NAMES.get(impl, f"`{impl}`")


def in_order(impls, steps):
    """The steps in the order of the workbook, then the others in the order of the file."""
    impls = list(dict.fromkeys(impls))
    return [s for s in steps if s in impls] + [i for i in impls if i not in steps]


def significant(value, digits=3):
    """A number to a few significant digits, never with an exponent: 1234.5 → 1,234 and 0.01234 → 0.0123."""
    if value >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{float(f'{value:.{digits}g}'):g}"


def table(head, rows, align):
    """A Markdown table; `align` has one of `<` and `>` for each column."""
    rule = ["--:" if side == ">" else ":--" for side in align]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [head, rule, *rows])


# ---- What the tables say --------------------------------------------------------------------------------------------


def provenance(result):
    """One sentence: which GPU, when, which software, which commit."""
    env = result["env"]
    names = {"driver": "driver", "cuda": "CUDA", "nvrtc": "NVRTC", "torch": "torch"}
    software = ", ".join(f"{name} {env[key]}" for key, name in names.items() if env.get(key))
    commit = f"commit `{str(env['commit'])[:7]}`" + (" with local changes" if env.get("dirty") else "")
    return f"Measured on one **{env['gpu']}** on {str(env['date'])[:10]} with {software}, at {commit}.\n"


def describe(shape):
    """A shape in words; `shape` holds the values of `SHAPE`."""
    row = dict(zip(SHAPE, shape, strict=True))
    length = f"{row['seqlen_q']:,}" + ("" if row["seqlen_q"] == row["seqlen_k"] else f" × {row['seqlen_k']:,}")
    heads = f"batch {row['batch']}, {row['num_heads']} heads"
    return f"{row['dtype']}, {heads}, length {length}, head_dim {row['head_dim']}, {mask(row)}"


def mask(row):
    return "causal" if row["causal"] else "no mask"


def common_shape(rows):
    """The shape that most implementations were measured at; of several, the one with the most work, head_dim 128."""
    counts = Counter(tuple(row[key] for key in SHAPE) for row in rows)

    def rank(shape):
        row = dict(zip(SHAPE, shape, strict=True))
        work = row["batch"] * row["num_heads"] * row["seqlen_q"] * row["seqlen_k"] * row["head_dim"]
        return counts[shape], work, not row["causal"], row["head_dim"] == 128

    return max(counts, key=rank)


def ladder(result, steps, folder="nbs/"):
    """The steps in order, then the peers of the same run, at the shape common to most of them."""
    speed, caption = {}, "Not measured yet.\n"
    if result is not None:
        shape = common_shape(result["rows"])
        speed = {r["impl"]: r["tflops"] for r in result["rows"] if tuple(r[key] for key in SHAPE) == shape}
        caption = f"Forward pass, {describe(shape)}. {provenance(result)}"
    top = max(speed.values(), default=1.0)
    peers = sorted(set(speed) - set(steps) - {PUBLIC}, key=speed.get)
    rows = []
    for impl in [*steps, *peers]:
        summary = steps[impl].summary if impl in steps else "peer, same run"
        number = significant(speed[impl]) if impl in speed else "–"
        bar = f'<span class="bar" style="--share: {speed.get(impl, 0) / top:.4f}"></span>'
        rows.append([label(impl, steps, folder), summary, number, bar])
    return table(["step", "what it is", "TFLOP/s", " "], rows, "<<><") + "\n" + caption


def layer_ladder(steps, folder="nbs/"):
    """The steps of the expert layer: links, and what they are."""
    return table(["step", "what it is"], [[label(name, steps, folder), page.summary] for name, page in steps.items()], "<<")


def layer_table(result):
    """The expert layer at given routing: µs by model and tokens, ours beside the best peer of the same run, and which."""
    if result is None:
        return "Not measured yet.\n"
    times = {r["impl"]: layer_times(result["rows"], r["impl"]) for r in result["rows"]}
    ours, dense = times.pop(PUBLIC), times.pop("dense")
    best, rows = best_of(times), []
    for (model, tokens), peer in best.items():
        name = next(n for n, found in times.items() if found.get((model, tokens)) == peer)
        own, both = ours[model, tokens], dense.get((model, tokens))
        rows.append([f"{model}, {tokens:,}", significant(own, 4), significant(peer, 4), NAMES.get(name, name), f"{peer / own:.2f}",
                     f"{both / own:.2f}" if both else "–"])  # fmt: skip
    head = ["model, tokens", "ours (µs)", "best peer (µs)", "which", "peer / ours", "dense / ours"]
    return provenance(result) + "\n" + table(head, rows, "<>><>>")


def speed_tables(rows, steps, folder="nbs/"):
    """For each head_dim, number of heads, mask and dtype: implementation × sequence length → TFLOP/s."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in CASE)].append(row)
    return "\n".join(speed_table(group, steps, folder) for _, group in sorted(groups.items()))


def speed_table(rows, steps, folder):
    """One table of `speed_tables`: rows that differ in implementation, batch and length alone."""
    like, shape = rows[0], lambda row: (row["seqlen_q"], row["seqlen_k"], row["batch"])
    shapes = sorted({shape(row) for row in rows})
    batch, header = batches(shapes)
    cells = {(row["impl"], shape(row)): significant(row["tflops"]) for row in rows}
    body = [[label(impl, steps, folder), *(cells.get((impl, s), "–") for s in shapes)]
            for impl in in_order([row["impl"] for row in rows], steps)]  # fmt: skip
    caption = f"**head_dim {like['head_dim']}, {mask(like)}**, {like['dtype']}, {like['num_heads']} heads, {batch}"
    return f"{caption}: TFLOP/s at sequence length\n\n" + table(["", *header], body, "<" + ">" * len(shapes))


def batches(shapes):
    """(what a caption says of the batch sizes, column heads) for `(seqlen_q, seqlen_k, batch)` triples."""
    lengths = [f"{q:,}" if q == k else f"{q:,} × {k:,}" for q, k, _ in shapes]
    if len({batch for *_, batch in shapes}) == 1:
        return f"batch {shapes[0][2]}", lengths
    if len({q * batch for q, _, batch in shapes}) == 1:
        return f"{shapes[0][0] * shapes[0][2]:,} tokens", lengths
    return "batch × length", [f"{batch} × {n}" for (*_, batch), n in zip(shapes, lengths, strict=True)]


def speed(result, steps, folder="nbs/"):
    """A plot and tables of a results file with `tflops`."""
    if result is None:
        return "Not measured yet.\n"
    rows, ceiling = result["rows"], result.get("ceilings", {}).get("cublas_bf16_tflops")
    note = f"cuBLAS on large bf16 matrices, in the same run: {significant(ceiling)} TFLOP/s.\n" if ceiling else ""
    figure = plot_speed(rows, ceiling=ceiling, menu=CASE)
    slowest, *_, fastest = sorted(row["tflops"] for row in rows)
    if fastest > 20 * slowest:  # the first steps beside a library: on a linear axis they would all lie on zero
        figure.update_yaxes(type="log", rangemode="normal", tickvals=[n * 10**e for e in range(-2, 4) for n in (1, 2, 5)])
    html = plotly_figure(json.loads(tell_apart(figure, steps).to_json()))
    return "\n".join([provenance(result), note, html, "", speed_tables(rows, steps, folder)])


def tell_apart(figure, steps):
    """Colours for many lines: steps run through the hues in their order, peers are grey and dotted, ours stands out."""
    peers = [name for name in dict.fromkeys(t.name for t in figure.data) if name not in steps and name != PUBLIC]
    for trace in figure.data:
        impl = trace.name
        if impl in steps:
            rank = 1 + list(steps).index(impl)
            hue = 200 + 250 * rank / len(steps)
            line = dict(color=f"hsl({hue % 360:.0f}, 48%, 54%)", width=1.6, dash="solid")
            trace.update(name=steps[impl].label, legendrank=rank, line=line)
        elif impl == PUBLIC:
            trace.update(name=NAMES[impl], legendrank=900, line=dict(color=AMBER, width=3.5, dash="solid"))
        else:
            symbol = ("square", "diamond", "cross", "x", "triangle-up")[peers.index(impl) % 5]
            trace.update(name=NAMES.get(impl, impl), marker_symbol=symbol, line=dict(color="#8a8f98", width=1.4, dash="dot"))
    return figure


def rows_of(result, columns, steps, folder="nbs/"):
    """The named columns of every row that has them all, as a table."""
    rows = [row for row in (result or {"rows": []})["rows"] if all(column in row for column in columns)]
    if not rows:
        return "Not measured yet.\n"
    named = next((column for column in columns if column in ("impl", "op")), None)
    order = in_order([row[named] for row in rows], steps) if named else []
    rows = sorted(rows, key=lambda row: order.index(row[named])) if named else rows
    body = [[cell(column, row[column], steps, folder) for column in columns] for row in rows]
    align = ["<" if isinstance(rows[0][column], str) else ">" for column in columns]
    return provenance(result) + "\n" + table([heading(c) for c in columns], body, align)


def cell(column, value, steps, folder):
    """One value as a table shows it."""
    if column == "impl" or (column == "op" and (value in steps or value in NAMES)):
        return label(value, steps, folder)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return significant(value) if isinstance(value, float) else str(value)


def heading(column):
    """A column's name in words: median_us → median (µs)."""
    words, _, unit = column.rpartition("_")
    name = f"{words} ({unit.replace('us', 'µs')})" if unit in ("us", "ms") else column
    return name.replace("_", " ")


# ---- Directives -----------------------------------------------------------------------------------------------------


class Measured(SphinxDirective):
    """Parse the Markdown of a subclass's `markdown`. The argument names the file in `nbs/results/`."""

    optional_arguments = 1
    option_spec = {"columns": directives.unchanged}

    def run(self):
        name = self.arguments[0] if self.arguments else "attention_forward"
        self.env.note_dependency(str(RESULTS / f"{name}.json"))
        box = nodes.container(classes=["measured", self.name])
        folder = "../nbs/" if "/" in self.env.docname else "nbs/"
        box += self.parse_text_to_nodes(self.markdown(load(name), folder))
        return [box]


class Ladder(Measured):
    """`{ladder}`: the steps and their speed at one shape."""

    def markdown(self, result, folder):
        return ladder(result, attention_steps(), folder) + "\n" + layer_ladder(steps_of("moe"), folder)


class Layer(Measured):
    """`{layer} moe_forward`: the expert layer beside its peers."""

    def markdown(self, result, folder):
        return layer_table(result)


class Speed(Measured):
    """`{speed} attention_forward`: every shape, as a plot and as tables."""

    def markdown(self, result, folder):
        return speed(result, attention_steps(), folder)


class Rows(Measured):
    """`{rows} host_overhead` with `:columns: op, median_us`: a file as a table."""

    def markdown(self, result, folder):
        columns = [name.strip() for name in self.options["columns"].split(",")]
        return rows_of(result, columns, attention_steps(), folder)


def setup(app):
    for directive in (Ladder, Layer, Speed, Rows):
        app.add_directive(directive.__name__.lower(), directive)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
