// Draws the workbook's figures and diagrams with the vendored scripts, in the page's colour mode, and again when the
// reader changes it. The scripts are large, so that a page loads only what it needs.
(() => {
  "use strict";

  const vendor = new URL("vendor/", document.currentScript.src);
  const root = document.documentElement;

  // A colour of the stylesheet, in the current mode.
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const isDark = () => root.dataset.theme === "dark";

  function load(path) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = new URL(path, vendor);
      script.onload = resolve;
      script.onerror = () => reject(new Error(`cannot load ${script.src}`));
      document.head.append(script);
    });
  }

  // ---- Plotly -------------------------------------------------------------------------------------------------

  // What a figure takes from the page. Axes are named in the figure's own layout: xaxis, xaxis2, yaxis, …
  function pageLayout(layout) {
    const text = colour("--pst-color-text-base");
    const grid = colour("--wb-grid");
    const hover = { bgcolor: colour("--pst-color-surface"), bordercolor: grid, font: { color: text } };
    const update = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      "font.color": text,
      "font.family": colour("--pst-font-family-base"),
      hoverlabel: hover,
    };
    const axes = Object.keys(layout).filter((key) => /^[xyz]axis\d*$/.test(key));
    for (const axis of new Set([...axes, "xaxis", "yaxis"])) {
      for (const line of ["gridcolor", "zerolinecolor", "linecolor"]) update[`${axis}.${line}`] = grid;
    }
    const controls = { updatemenus: "font.color", sliders: "currentvalue.font.color" };
    for (const [kind, font] of Object.entries(controls)) {
      (layout[kind] || []).forEach((_, i) => {
        update[`${kind}[${i}].bgcolor`] = colour("--pst-color-surface");
        update[`${kind}[${i}].bordercolor`] = grid;
        update[`${kind}[${i}].${font}`] = text;
      });
    }
    return update;
  }

  // Break a title at spaces, so that no line is longer than `most` characters.
  function broken(text, most) {
    const lines = [""];
    for (const word of text.split(" ")) {
      if (lines.at(-1) && lines.at(-1).length + word.length >= most) lines.push("");
      lines[lines.length - 1] += (lines.at(-1) ? " " : "") + word;
    }
    return lines.join("<br>");
  }

  // Plotly draws for wide pages. On a phone a title takes several lines, a legend more room, a slider's text less.
  function fitNarrow(layout, data, width) {
    if (width > 560) return;
    for (const part of [layout.title, ...Object.keys(layout).filter((key) => /^xaxis/.test(key)).map((key) => layout[key].title)]) {
      if (part && part.text && !part.text.includes("<")) part.text = broken(part.text, Math.floor(width / 8));
    }
    if (layout.title && layout.title.text) {
      const more = layout.title.text.split("<br>").length - 1;
      // Plotly lets the lines above the last one grow upwards.
      const top = { yref: "container", y: 1, yanchor: "top", pad: { t: 8 + 16 * more } };
      layout.title = { ...layout.title, xref: "container", x: 0.02, xanchor: "left", ...top };
      if (more) layout.margin = { ...layout.margin, t: 40 + 20 * more };
    }
    const shown = new Set(data.filter((trace) => trace.showlegend !== false && trace.visible !== false).map((trace) => trace.name));
    if (layout.showlegend !== false && shown.size > 4) {
      layout.legend = { ...layout.legend, maxheight: 0.9 };
      layout.height = (layout.height || 450) + 14 * shown.size;
    }
    for (const slider of layout.sliders || []) slider.currentvalue = { ...slider.currentvalue, font: { size: 11 } };
  }

  // Arrow keys do what a pointer does with a figure's slider (left, right) or its menu (up, down).
  const KEYS = { ArrowLeft: ["sliders", -1], ArrowRight: ["sliders", 1], ArrowUp: ["updatemenus", -1], ArrowDown: ["updatemenus", 1] };

  async function onKey(event, target) {
    const [kind, by] = KEYS[event.key] || [];
    const control = kind && (target.layout[kind] || [])[0];
    if (!control) return;
    event.preventDefault();
    const entries = control.steps || control.buttons;
    const next = Math.min(Math.max((control.active || 0) + by, 0), entries.length - 1);
    await Plotly.relayout(target, { [`${kind}[0].active`]: next });
    await Plotly[entries[next].method](target, ...entries[next].args);
  }

  function addKeys(box, target) {
    const { sliders, updatemenus } = target.layout;
    if (!sliders && !updatemenus) return;
    box.tabIndex = 0;
    box.title = [sliders && "← → move the slider", updatemenus && "↑ ↓ choose from the menu"].filter(Boolean).join(", ");
    box.addEventListener("keydown", (event) => onKey(event, target));
  }

  // Panels side by side need a width of their own, in a box that scrolls.
  const hasColumns = (layout) => Object.keys(layout).some((key) => /^xaxis/.test(key) && ((layout[key].domain || [0])[0] > 0.2));

  async function drawFigure(box) {
    const figure = JSON.parse(box.querySelector("script").textContent);
    const layout = { ...figure.layout, autosize: true };
    delete layout.width;
    const target = document.createElement("div");
    if (hasColumns(layout)) {
      box.style.overflowX = "auto";
      target.style.minWidth = "36rem";
    }
    fitNarrow(layout, figure.data, hasColumns(layout) ? Math.max(box.clientWidth, 576) : box.clientWidth);
    box.append(target);
    const config = { displaylogo: false, displayModeBar: box.clientWidth > 560 && "hover", ...figure.config, responsive: true };
    await Plotly.newPlot(target, { ...figure, layout, config });
    await Plotly.relayout(target, pageLayout(layout));
    addKeys(box, target);
    box.target = target;
    box.dataset.drawn = root.dataset.theme;
  }

  async function recolourFigure(box) {
    if (!box.target) return;
    await Plotly.relayout(box.target, pageLayout(box.target.layout));
    box.dataset.drawn = root.dataset.theme;
  }

  // ---- Mermaid ------------------------------------------------------------------------------------------------

  function mermaidTheme() {
    return {
      startOnLoad: false,
      theme: "base",
      fontFamily: colour("--pst-font-family-base"),
      gantt: { barHeight: 26, barGap: 6, fontSize: 14, sectionFontSize: 14, leftPadding: 150, rightPadding: 20, topPadding: 30, useWidth: 760 },
      themeVariables: {
        darkMode: isDark(),
        background: colour("--pst-color-background"),
        primaryColor: colour("--pst-color-surface"),
        primaryTextColor: colour("--pst-color-text-base"),
        primaryBorderColor: colour("--pst-color-primary"),
        secondaryColor: colour("--pst-color-surface"),
        tertiaryColor: colour("--pst-color-background"),
        lineColor: colour("--pst-color-text-muted"),
        textColor: colour("--pst-color-text-base"),
        edgeLabelBackground: colour("--pst-color-background"),
        sectionBkgColor: "transparent",
        sectionBkgColor2: "transparent",
        altSectionBkgColor: "transparent",
        gridColor: colour("--wb-grid"),
        taskBkgColor: colour("--pst-color-secondary-bg"),
        taskBorderColor: colour("--pst-color-secondary"),
        taskTextColor: colour("--pst-color-text-base"),
        taskTextDarkColor: colour("--pst-color-text-base"),
        taskTextOutsideColor: colour("--pst-color-text-base"),
        critBkgColor: colour("--pst-color-primary-bg"),
        critBorderColor: colour("--pst-color-primary"),
        fontSize: "15px",
      },
    };
  }

  async function drawDiagrams(blocks) {
    mermaid.initialize(mermaidTheme());
    for (const [i, block] of blocks.entries()) {
      block.source ??= block.textContent;
      const { svg } = await mermaid.render(`diagram-${i}`, block.source);
      block.innerHTML = svg;
      block.dataset.drawn = root.dataset.theme;
    }
  }

  // ---- Code ---------------------------------------------------------------------------------------------------

  function addCopyButton(block) {
    const button = document.createElement("button");
    button.className = "copy-code";
    button.type = "button";
    button.title = "Copy";
    button.setAttribute("aria-label", "Copy this code");
    button.innerHTML = '<i class="fa-regular fa-copy" aria-hidden="true"></i>';
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(block.querySelector("pre").textContent.replace(/\n$/, ""));
      button.classList.add("copied");
      setTimeout(() => button.classList.remove("copied"), 1200);
    });
    block.append(button);
  }

  // Wide tables scroll inside a box of their own; the page never does. The theme does this for its own tables only.
  function boxTable(table) {
    if (table.closest(".pst-scrollable-table-container, .scroll-x, .plotly-figure")) return;
    const box = document.createElement("div");
    box.className = "scroll-x";
    box.tabIndex = 0;
    table.replaceWith(box);
    box.append(table);
  }

  async function main() {
    // The clipboard exists on https and on loopback only.
    if (navigator.clipboard) document.querySelectorAll("div.highlight").forEach(addCopyButton);
    document.querySelectorAll(".bd-article table").forEach(boxTable);

    const figures = [...document.querySelectorAll(".plotly-figure")];
    const diagrams = [...document.querySelectorAll("pre.mermaid")];
    if (figures.length) {
      await load("plotly/plotly.min.js");
      for (const figure of figures) await drawFigure(figure);
    }
    if (diagrams.length) {
      await load("mermaid/mermaid.tiny.js");
      await drawDiagrams(diagrams);
    }
    new MutationObserver(async () => {
      for (const figure of figures) await recolourFigure(figure);
      if (diagrams.length) await drawDiagrams(diagrams);
    }).observe(root, { attributes: true, attributeFilter: ["data-theme"] });
  }

  main();
})();
