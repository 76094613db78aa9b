// A measured pattern, its model and their difference; the pattern is picked by its scan position.

function patternName(entry) {
  const kind = { worst: "worst fit of all: ", median: "median fit: " }[entry.name] || "";
  return `${kind}tilt ${entry.tilt}, position ${entry.index}`;
}

viewers.patterns = (place) => {
  const { entries, maps, sampling } = data.patterns;
  if (!entries.length) return;
  const tilts = [...new Set(entries.map((entry) => entry.tilt))].sort((a, b) => a - b);
  const kept = entries.findIndex((entry) => entry.name === (state.pattern || "worst"));
  let current = Math.max(kept, 0);
  const panels = el("div", { class: "patterns" });
  const map = el("div", { class: "map" });
  const said = el("p", { class: "said", "aria-live": "polite" });
  const pick = (number) => {
    current = number;
    state.pattern = entries[number].name;
    draw();
  };
  const named = ["worst", "median"].map((name) => [name, entries.findIndex((entry) => entry.name === name)]).filter(([, i]) => i >= 0);
  const shortcuts = named.map(([name, i]) => el("button", { type: "button", "data-key": `pattern ${name}`, onclick: () => pick(i) }, name));
  const tilt = slider("Tilt", {
    min: 0, max: tilts.length - 1, step: 1, value: 0, key: "pattern tilt", say: (i) => String(tilts[i]),
    change: (i) => pick(entries.findIndex((entry) => entry.tilt === tilts[i])),
  });
  const draw = async () => {
    const entry = entries[current];
    tilt.set(tilts.indexOf(entry.tilt));
    map.replaceChildren(scanMap(entries, maps[entry.tilt] || [], entry, pick));
    const [measured, model] = entry.electrons.map((n) => short(n));
    said.textContent = `${patternName(entry)}; loss ${short(entry.loss)}; ${measured} electrons measured, ${model} in the model.`;
    entry.levels = entry.levels || (await unpack(entry.roots));
    if (entry !== entries[current]) return; // another was picked meanwhile
    panels.replaceChildren(...patternPanels(entry, sampling));
    panels.dataset.shows = entry.name;
  };
  const choice = el("div", { class: "controls" }, tilts.length > 1 ? tilt.whole : null, el("div", { class: "buttons" }, ...shortcuts));
  const hint = "Each ringed dot is a pattern kept in this page: click one, or focus the map and use the arrow keys.";
  place.append(choice, said, el("div", { class: "picker" }, el("div", {}, map, el("p", { class: "caption" }, hint)), panels));
  draw();
};

function scanMap(entries, dots, chosen, pick) {
  const mine = entries.map((entry, number) => ({ ...entry, number })).filter((e) => e.tilt === chosen.tilt && e.xy);
  const all = dots.concat(mine.map((e) => e.xy));
  if (!all.length) return el("p", { class: "caption" }, "positions.h5 is not there: no map.");
  const [xs, ys] = [0, 1].map((axis) => all.map((p) => p[axis]));
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const scale = 208 / Math.max(right - left, high - low, 1e-6);
  const wide = (right - left) * scale + 32;
  const tall = (high - low) * scale + 58;
  const spot = (p) => ({ cx: (16 + (p[0] - left) * scale).toFixed(1), cy: (16 + (high - p[1]) * scale).toFixed(1) });
  const picture = vector("svg", {
    viewBox: `0 0 ${wide} ${tall}`, tabindex: 0, role: "group", "data-key": "pattern map",
    "aria-label": `Scan positions of tilt ${chosen.tilt}; arrow keys go to the next pattern`,
  });
  for (const p of dots) picture.append(vector("circle", { ...spot(p), r: 1.2, class: "dot" }));
  for (const e of mine) {
    const ring = vector("circle", { ...spot(e.xy), r: 6, class: e.name === chosen.name ? "ring chosen" : "ring" });
    ring.append(vector("title", {}, patternName(e)));
    ring.addEventListener("click", () => pick(e.number));
    picture.append(ring);
  }
  const bar = barLength(Math.max(right - left, 1e-6));
  picture.append(vector("line", { x1: 16, x2: 16 + bar * scale, y1: tall - 24, y2: tall - 24, class: "length" }));
  picture.append(vector("text", { x: 16, y: tall - 8 }, `${short(bar)} Å`));
  picture.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!way || !chosen.xy) return;
    event.preventDefault();
    const next = nearestAlong(mine, chosen, way);
    if (!next) return;
    pick(next.number);
    document.querySelector('[data-key="pattern map"]').focus();
  });
  return picture;
}

// The nearest pattern in a direction, within 60 degrees of it.
function nearestAlong(mine, chosen, [wx, wy]) {
  let [best, next] = [Infinity, null];
  for (const e of mine) {
    const [dx, dy] = [e.xy[0] - chosen.xy[0], e.xy[1] - chosen.xy[1]];
    const [away, ahead] = [Math.hypot(dx, dy), dx * wx + dy * wy];
    if (e.name !== chosen.name && ahead > 0.5 * away && away < best) [best, next] = [away, e];
  }
  return next;
}

function patternPanels(entry, sampling) {
  const [, height, width] = entry.roots.shape;
  const size = width * height;
  const root = (i) => entry.levels[i] * entry.step;
  let top = 0;
  for (let i = 0; i < 2 * size; i++) top = Math.max(top, root(i));
  const electrons = (offset) => (i) => `${short(root(i + offset) ** 2, 3)} e`;
  const widths = (i) => 2 * (root(i) - root(i + size));
  const ends = ["0", `${short(top * top, 3)}`];
  const kinds = [
    ["measured", root, 0, top, MAPS.viridis, electrons(0), ends, "e (√ scale)"],
    ["model", (i) => root(i + size), 0, top, MAPS.viridis, electrons(size), ends, "e (√ scale)"],
    ["measured − model", widths, -4, 4, MAPS.difference, (i) => `${fixed(widths(i))} σ`, ["\u22124", "4"], "σ of the noise"],
  ];
  return kinds.map(([title, value, low, high, table, say, [from, to], unit]) => {
    const pixels = paint(width, height, value, low, high, table);
    const canvas = el("canvas", { role: "img", "aria-label": `Pattern, ${title}` });
    const said = el("p", { class: "said" }, "\u00a0");
    const aspect = sampling ? (height * sampling[0]) / (width * sampling[1]) : height / width;
    const draw = () => {
      const shown = fit(canvas, aspect);
      shown.context.imageSmoothingEnabled = false;
      shown.context.drawImage(pixels, 0, 0, shown.width, shown.height);
      if (!sampling) return;
      const bar = barLength(width * sampling[1]);
      drawScaleBar(shown.context, shown.height, (bar / (width * sampling[1])) * shown.width, bar, "1/Å");
    };
    canvas.addEventListener("pointermove", (event) => {
      const column = clamp(Math.floor((event.offsetX / canvas.clientWidth) * width), 0, width - 1);
      const row = clamp(height - 1 - Math.floor((event.offsetY / canvas.clientHeight) * height), 0, height - 1);
      said.textContent = `ky ${row - (height >> 1)}, kx ${column - (width >> 1)}: ${say(row * width + column)}`.replace(/-/g, "\u2212");
    });
    canvas.addEventListener("pointerleave", () => (said.textContent = "\u00a0"));
    const figure = el("figure", { class: "pattern" }, el("h3", {}, title), canvas, colourBar(table, from, to, unit), said);
    onResize(canvas, draw);
    return figure;
  });
}
