// The volume's viewer: three linked slices, the turnable view, and their controls.

const START_VIEW = times(rotation(0, -0.42), rotation(1, 0.5));
const VIEWS = {
  "along z": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
  "along y": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
  "along x": [[0, 1, 0], [0, 0, 1], [1, 0, 0]],
};

// The volume and what the reader chose, with functions to move; all in x, y, z order.
function makeModel(volume, levels, atoms) {
  const [nz, ny, nx] = volume.levels.shape;
  const count = [nx, ny, nz];
  const [start, voxel] = [[...volume.start].reverse(), [...volume.voxel].reverse()];
  const kept = state.volume || {};
  const chosen = kept.chosen || new Set();
  const choice = (name, usual) => (chosen.has(name) ? kept[name] : usual); // defaults may change with the volume
  const model = {
    levels, count, start, voxel, atoms, chosen, unit: volume.unit, low: volume.low, step: volume.step, stride: [1, nx, nx * ny],
    cross: count.map((n, axis) => clamp((kept.cross || [])[axis] ?? Math.round(-start[axis] / voxel[axis]), 0, n - 1)),
    window: choice("window", [...volume.window]), slab: choice("slab", Math.max(1, Math.round(1 / voxel[2]))),
    map: choice("map", "grey"), smooth: choice("smooth", true), overlay: choice("overlay", true),
    depth: choice("depth", 0.8), elements: atoms ? atoms.elements.map((_, i) => (kept.elements || [])[i] ?? true) : [],
    matrix: kept.matrix || START_VIEW, zoom: kept.zoom || 1, shows: choice("shows", atoms ? "atoms" : "surface"),
    surface: choice("surface", volume.surface), size: choice("size", 1), planes: choice("planes", true),
    choose(name, value) {
      model[name] = value;
      chosen.add(name);
    },
    place: (axis, index) => start[axis] + voxel[axis] * index,
    value: () => volume.low + volume.step * levels[(model.cross[2] * ny + model.cross[1]) * nx + model.cross[0]],
    go(axis, index) {
      model.cross[axis] = clamp(index, 0, count[axis] - 1);
      model.changed();
    },
    goTo(xyz) {
      xyz.forEach((r, axis) => (model.cross[axis] = clamp(Math.round((r - start[axis]) / voxel[axis]), 0, count[axis] - 1)));
      model.changed();
    },
  };
  return model;
}

viewers.slices = async (place) => {
  const levels = await unpack(data.volume.levels);
  const model = makeModel(data.volume, levels, data.atoms || null);
  state.volume = model;
  const views = ["z", "y", "x"].map((name) => sliceView(model, name));
  const space = spaceView(model);
  const said = el("p", { class: "said", "aria-live": "polite" });
  model.changed = perFrame(() => {
    views.forEach((view) => view.draw());
    space.draw();
    said.textContent = whereabouts(model);
  });
  const row = el("div", { class: "slices" }, ...views.map((view) => view.whole));
  row.style.setProperty("--columns", views.map((view) => `minmax(0, ${view.extent.toFixed(2)}fr)`).join(" "));
  const hint = "Click a slice to move the other two; then the wheel or page up and down step through it, arrow keys move the crosshair.";
  place.append(sliceControls(model), row, said, el("p", { class: "caption" }, hint), space.whole);
  model.changed();
};

function whereabouts(model) {
  const at = AXES.map((name, axis) => `${name} ${fixed(model.place(axis, model.cross[axis]))}`).join(", ");
  const words = `${at} Å: ${short(model.value(), 3)} ${model.unit}`;
  if (!model.atoms) return words;
  let [best, atom] = [Infinity, -1];
  model.atoms.xyz.forEach((xyz, i) => {
    const away = Math.hypot(...xyz.map((r, axis) => r - model.place(axis, model.cross[axis])));
    if (away < best) [best, atom] = [away, i];
  });
  if (best > 1) return `${words}; no atom within 1 Å.`;
  const units = { intensity: " V Å³", height: " V", sigma: " Å", sigma_z: " Å" };
  const numbers = Object.entries(model.atoms.numbers)
    .map(([name, values]) => `${name.replace(/_/g, " ")} ${values[atom] == null ? "unknown" : short(values[atom], 3)}${units[name] || ""}`);
  const symbol = model.atoms.elements[model.atoms.element[atom]].symbol;
  return `${words}; ${symbol}, atom ${atom}, ${fixed(best)} Å away${numbers.length ? `: ${numbers.join(", ")}` : ""}.`;
}

function elementTicks(model) {
  return model.atoms.elements.map((element, i) => {
    const mark = el("canvas", { width: 36, height: 36, class: "swatch", "aria-hidden": "true" });
    const context = mark.getContext("2d");
    marker(context, SHAPES[i % SHAPES.length], 18, 18, 11);
    context.strokeStyle = element.colour;
    context.lineWidth = 5;
    context.stroke();
    const change = (on) => {
      model.elements[i] = on;
      model.changed();
    };
    return ticked(`${element.symbol} (${element.count})`, model.elements[i], `element ${element.symbol}`, change, mark);
  });
}

function sliceControls(model) {
  const set = (name) => (value) => {
    model.choose(name, value);
    model.changed();
  };
  const [low, high] = [model.low, model.low + model.step * (model.levels.BYTES_PER_ELEMENT === 1 ? 255 : 4095)];
  const bar = el("div", {});
  const volts = (value) => `${short(value, 3)} ${model.unit}`;
  const showBar = () => bar.replaceChildren(colourBar(MAPS[model.map], short(model.window[0], 3), short(model.window[1], 3), model.unit));
  const edge = (which) => (value) => {
    model.choose("window", model.window.with(which, value));
    showBar();
    model.changed();
  };
  const range = { min: low, max: high, step: (high - low) / 1000 || 1, say: volts };
  const dark = slider("Black at", { ...range, value: model.window[0], key: "window low", change: edge(0) });
  const bright = slider("White at", { ...range, value: model.window[1], key: "window high", change: edge(1) });
  const thick = slider("Slab", {
    min: 1, max: Math.max(2, Math.round(4 / model.voxel[2])), step: 1, value: model.slab, key: "slab",
    say: (n) => `${short(n * model.voxel[2], 3)} Å`, change: set("slab"),
  });
  const map = chooser("Colours", Object.keys(MAPS).slice(0, 4), model.map, "map", (name) => {
    set("map")(name);
    showBar();
  });
  showBar();
  const picture = [bar, dark.whole, bright.whole, thick.whole, map, ticked("smooth", model.smooth, "smooth", set("smooth"))];
  const controls = el("div", { class: "controls" }, ...picture);
  if (!model.atoms) return controls;
  const depth = slider("within", {
    min: 0.2, max: 5, step: 0.1, value: model.depth, key: "depth", say: (d) => `±${fixed(d, 1)} Å`, change: set("depth"),
  });
  const over = ticked("atoms over the slices", model.overlay, "overlay", set("overlay"));
  return el("div", {}, controls, el("div", { class: "controls" }, over, depth.whole, ...elementTicks(model)));
}

function spaceView(model) {
  const canvas = el("canvas", {
    tabindex: 0, role: "group", "data-key": "space",
    "aria-label": "The specimen in three dimensions. Arrow keys turn it, plus and minus zoom, 0 goes back to the start.",
  });
  const middle = [0, 1, 2].map((axis) => model.place(axis, (model.count[axis] - 1) / 2));
  const half = [0, 1, 2].map((axis) => (model.count[axis] * model.voxel[axis]) / 2);
  const reach = Math.hypot(...half);
  const wide = model.atoms?.xyz.length // what zoom 1 shows: the specimen where atoms tell its size
    ? clamp(1.25 * Math.max(...model.atoms.xyz.map((p) => Math.hypot(...p.map((r, i) => r - middle[i])))), 0.2 * reach, reach)
    : 0.86 * reach;
  let [mesh, level, shown, moving] = [null, null, null, false];

  const draw = () => {
    const size = fit(canvas, canvas.clientWidth < 560 ? 1 : 0.7);
    const style = getComputedStyle(document.documentElement);
    const [ground, ink, rule] = ["--sunk", "--ink", "--soft"].map((name) => style.getPropertyValue(name).trim());
    const ratio = moving ? 1 : canvas.width / size.width;
    const [width, height] = [Math.round(size.width * ratio), Math.round(size.height * ratio)];
    const scale = (model.zoom * Math.min(width, height)) / (2.05 * wide);
    shown = new Space(width, height, scale, model.matrix, middle, reach, channels(ground));
    const [low, high] = [middle.map((c, i) => c - half[i]), middle.map((c, i) => c + half[i])];
    if (model.shows !== "surface" && model.atoms)
      model.atoms.xyz.forEach((xyz, i) => {
        const kind = model.atoms.element[i];
        const radius = ((model.shows === "both" ? 0.4 : 0.9) * model.size) / Math.sqrt(1 + 0.8 * kind);
        if (model.elements[kind]) shown.sphere(xyz, radius, channels(model.atoms.elements[kind].colour), i + 1);
      });
    if (model.shows !== "atoms") {
      if (level !== model.surface) mesh = surfaceMesh(model, (level = model.surface));
      shown.mesh(mesh, [150, 178, 205], model.shows === "both");
    }
    shown.box(low, high, channels(rule));
    if (model.planes)
      for (let axis = 0; axis < 3; axis++) {
        const [a, b] = [[...low], [...high]];
        a[axis] = b[axis] = model.place(axis, model.cross[axis]);
        shown.box(a, b, [201, 142, 0]);
      }
    const still = el("canvas", { width, height });
    still.getContext("2d").putImageData(shown.image, 0, 0);
    size.context.drawImage(still, 0, 0, size.width, size.height);
    drawAxes(size.context, model.matrix, size.width - 48, size.height - 48, ink);
    const bar = barLength((size.width / scale) * ratio);
    drawScaleBar(size.context, size.height, (bar * scale) / ratio, bar, "Å");
    if (model.shows === "atoms" || !mesh.cut) return;
    size.context.fillStyle = ink;
    size.context.fillText("Too rough at this level to be drawn whole: raise it.", 12, 22);
  };
  const pick = (event) => {
    const [u, v] = [event.offsetX / canvas.clientWidth, event.offsetY / canvas.clientHeight];
    const owner = shown.owner[Math.floor(v * shown.height) * shown.width + Math.floor(u * shown.width)];
    if (owner) model.goTo(model.atoms.xyz[owner - 1]);
  };
  const redraw = perFrame(draw);
  steer(canvas, model, redraw, pick, (now) => {
    moving = now;
    redraw();
  });
  onResize(canvas, draw);
  const jump = model.atoms ? "; click an atom to take the slices there" : "";
  const hint = `Drag to turn; pinch, or the wheel after a click, to zoom; arrow keys, plus, minus and 0 do the same${jump}.`;
  const picture = el("div", {}, canvas, el("p", { class: "caption" }, hint));
  return { whole: el("div", { class: "space" }, picture, spaceControls(model, redraw)), draw };
}
