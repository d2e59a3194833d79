// Draws the panels of the page with uPlot, in the colours of the page, as wide as there is room.
"use strict";
(() => {
  const panels = JSON.parse(document.getElementById("curves").textContent);
  const place = document.getElementById("panels");
  const over = document.getElementById("over");
  const DASHES = [[], [6, 4], [2, 3], [8, 3, 2, 3]];
  const COLOURS = 8;
  const HEIGHT = 240;
  let plots = [];

  // At most six significant digits; uPlot's own would show a learning rate as 0.
  const shown = (value) => {
    if (value == null) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(2);
    return Number(value.toPrecision(6)).toLocaleString("en", { maximumSignificantDigits: 6 });
  };
  const onAxis = (value) => {
    const size = Math.abs(value ?? 0);
    if (value == null) return "";
    if (size >= 1e9) return `${Number((value / 1e9).toPrecision(4))}B`;
    if (size >= 1e6) return `${Number((value / 1e6).toPrecision(4))}M`;
    if (size >= 1e4) return `${Number((value / 1e3).toPrecision(4))}k`;
    if (size !== 0 && size < 1e-4) return Number(value.toPrecision(4)).toExponential();
    return String(Number(value.toPrecision(6)));
  };

  function draw() {
    for (const plot of plots) plot.destroy();
    plots = [];
    place.textContent = "";
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const font = "12px system-ui, sans-serif";
    for (const panel of panels) {
      // Several curves of one run are told apart by number; one of each run, by the run.
      const numbers = panel.curves.map((curve, n) => (panels.some((p) => p.curves.some((c) => c.run)) ? curve.run : n));
      const x = (curve) => curve[over.value];
      const usable = panel.curves.map((curve, n) => [curve, numbers[n]]).filter(([c]) => x(c).every((v) => v !== null));
      if (!usable.length) continue;
      const figure = place.appendChild(document.createElement("figure"));
      const caption = figure.appendChild(document.createElement("figcaption"));
      caption.textContent = panel.title;
      figure.setAttribute("role", "group");
      figure.setAttribute("aria-label", usable.map(([c]) =>
        `${panel.title}, ${c.label}: from ${shown(c.values[0])} to ${shown(c.values.at(-1))}`).join("; "));
      const data = uPlot.join(usable.map(([c]) => [x(c), c.values]));
      const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, font };
      plots.push(new uPlot({
        width: figure.clientWidth,
        height: HEIGHT,
        cursor: { sync: { key: "x", setSeries: false }, points: { size: 7 } },
        scales: { x: { time: false } },
        axes: [
          { ...axis, values: (_, values) => values.map(onAxis), size: 30 },
          { ...axis, values: (_, values) => values.map(onAxis), size: 56 },
        ],
        series: [
          { label: over.value === "steps" ? "step" : "tokens", value: (_, value) => shown(value) },
          ...usable.map(([c, n]) => ({
            label: c.label,
            stroke: colour(`--curve-${n % COLOURS}`),
            dash: DASHES[Math.floor(n / COLOURS) % DASHES.length],
            width: c.points ? 2 : 1.5,
            points: { show: c.points || c.values.length === 1, size: 6, fill: colour(`--curve-${n % COLOURS}`) },
            spanGaps: true,
            value: (_, value) => shown(value),
          })),
        ],
      }, data, figure));
    }
    resize();
  }

  // Also when all figures are there: the first ones then have to share the width.
  function resize() {
    for (const plot of plots) {
      const width = plot.root.parentElement.clientWidth;
      if (width !== plot.width) plot.setSize({ width, height: HEIGHT });
    }
  }

  draw();
  new ResizeObserver(resize).observe(place);
  over.addEventListener("change", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
