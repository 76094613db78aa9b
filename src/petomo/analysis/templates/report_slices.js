// One slice through the volume: a slab's mean with crosshair, atoms and scale bar; click, wheel and keys move.

const AXES = ["x", "y", "z"];
const PLANES = { z: [0, 1, 2], y: [0, 2, 1], x: [1, 2, 0] }; // across, up, cut
const SHAPES = ["circle", "square", "triangle", "diamond", "cross"];

// The mean over a slab around the crosshair, in volts; first row at the bottom.
function slab(model, [across, up, cut]) {
  const { levels, count, stride, low, step } = model;
  const half = Math.max(0, Math.floor((model.slab - 1) / 2));
  const first = clamp(model.cross[cut] - half, 0, count[cut] - 1);
  const last = clamp(model.cross[cut] - half + model.slab - 1, first, count[cut] - 1);
  const out = new Float32Array(count[across] * count[up]);
  for (let k = first; k <= last; k++)
    for (let v = 0; v < count[up]; v++) {
      let place = k * stride[cut] + v * stride[up];
      for (let u = 0; u < count[across]; u++, place += stride[across]) out[v * count[across] + u] += levels[place];
    }
  const share = step / (last - first + 1);
  for (let i = 0; i < out.length; i++) out[i] = low + share * out[i];
  return out;
}

// Path of an element's marker around a point: the shape tells elements apart where colour does not.
function marker(context, shape, x, y, r) {
  context.beginPath();
  if (shape === "circle") context.arc(x, y, r, 0, 2 * Math.PI);
  else if (shape === "square") context.rect(x - 0.85 * r, y - 0.85 * r, 1.7 * r, 1.7 * r);
  else if (shape === "triangle") polygon(context, x, y, 1.2 * r, 3);
  else if (shape === "diamond") polygon(context, x, y, 1.2 * r, 4);
  else {
    context.moveTo(x - r, y - r);
    context.lineTo(x + r, y + r);
    context.moveTo(x - r, y + r);
    context.lineTo(x + r, y - r);
  }
}

function polygon(context, x, y, r, corners) {
  for (let i = 0; i < corners; i++) {
    const turn = -Math.PI / 2 + (2 * Math.PI * i) / corners;
    context[i ? "lineTo" : "moveTo"](x + r * Math.cos(turn), y + r * Math.sin(turn));
  }
  context.closePath();
}

function sliceView(model, name) {
  const plane = PLANES[name];
  const [across, up, cut] = plane;
  const { count, voxel } = model;
  const title = el("h3", {});
  const canvas = el("canvas", {
    tabindex: 0, role: "group", "data-key": `slice ${name}`,
    "aria-label": `Slice across ${name}. Arrow keys move the crosshair, page up and page down step through the slices.`,
  });
  const say = (index) => `${fixed(model.place(cut, index))} Å`;
  const through = slider(name, {
    min: 0, max: count[cut] - 1, step: 1, value: model.cross[cut], key: `through ${name}`, say,
    change: (index) => model.go(cut, index),
  });
  const aspect = (count[up] * voxel[up]) / (count[across] * voxel[across]);
  let size = { width: 1, height: 1 };
  const spot = (u, v) => [((u + 0.5) / count[across]) * size.width, (1 - (v + 0.5) / count[up]) * size.height];

  const draw = () => {
    size = fit(canvas, aspect);
    const { context, width, height } = size;
    const values = slab(model, plane);
    const [low, high] = model.window;
    const pixels = paint(count[across], count[up], (i) => values[i], low, high, MAPS[model.map]);
    context.imageSmoothingEnabled = model.smooth;
    context.imageSmoothingQuality = "high";
    context.drawImage(pixels, 0, 0, width, height);
    drawAtoms(context);
    drawCross(context, width, height);
    const extent = count[across] * voxel[across];
    const bar = barLength(extent);
    drawScaleBar(context, height, (bar / extent) * width, bar, "Å");
    title.textContent = `${name} = ${say(model.cross[cut])}`;
    title.append(el("small", {}, ` ${AXES[across]} to the right, ${AXES[up]} up`));
    through.set(model.cross[cut]);
  };

  const drawCross = (context, width, height) => {
    const [x, y] = spot(model.cross[across], model.cross[up]);
    for (const [colour, wide] of [["rgba(0, 0, 0, 0.4)", 3], ["rgba(240, 228, 66, 0.75)", 1]]) {
      context.strokeStyle = colour;
      context.lineWidth = wide;
      context.beginPath();
      for (const [a, b, c, d] of [[0, y, x - 10, y], [x + 10, y, width, y], [x, 0, x, y - 10], [x, y + 10, x, height]]) {
        context.moveTo(a, b);
        context.lineTo(c, d);
      }
      context.stroke();
    }
  };

  // Atoms near the slice, each with its place in the picture; the farther from the slice the fainter.
  const near = () => {
    if (!model.atoms || !model.overlay) return [];
    const here = model.place(cut, model.cross[cut]);
    const scale = size.width / (count[across] * voxel[across]);
    return model.atoms.xyz.flatMap((xyz, i) => {
      const away = Math.abs(xyz[cut] - here);
      if (away > model.depth || !model.elements[model.atoms.element[i]]) return [];
      const [x, y] = spot(...[across, up].map((axis) => (xyz[axis] - model.start[axis]) / voxel[axis]));
      return [{ i, x, y, faint: 1 - (0.6 * away) / model.depth, r: clamp(0.45 * scale, 3, 9) }];
    });
  };

  const drawAtoms = (context) => {
    for (const { i, x, y, faint, r } of near()) {
      const kind = model.atoms.element[i];
      marker(context, SHAPES[kind % SHAPES.length], x, y, r);
      context.globalAlpha = faint;
      context.strokeStyle = "#000";
      context.lineWidth = 3.6;
      context.stroke();
      context.strokeStyle = model.atoms.elements[kind].colour;
      context.lineWidth = 2;
      context.stroke();
      context.globalAlpha = 1;
    }
  };

  const point = (event, snap) => {
    const [px, py] = [event.offsetX, event.offsetY];
    const atom = snap && near().find(({ x, y, r }) => Math.hypot(x - px, y - py) < r + 2);
    if (atom) return model.goTo(model.atoms.xyz[atom.i]);
    model.go(across, Math.floor((px / size.width) * count[across]));
    model.go(up, Math.floor((1 - py / size.height) * count[up]));
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse") canvas.setPointerCapture(event.pointerId);
    point(event, true);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse" && event.buttons === 1 && Math.hypot(event.movementX, event.movementY) > 1) point(event, false);
  });
  let rolled = 0;
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas || event.ctrlKey) return; // the page scrolls until a slice is chosen
    event.preventDefault();
    rolled += event.deltaMode === 0 ? event.deltaY / 40 : event.deltaY;
    const steps = Math.trunc(rolled);
    rolled -= steps;
    if (steps) model.go(cut, model.cross[cut] - steps);
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const move = {
      ArrowLeft: [across, -1], ArrowRight: [across, 1], ArrowDown: [up, -1], ArrowUp: [up, 1],
      PageUp: [cut, 1], PageDown: [cut, -1],
    }[event.key];
    if (!move) return;
    event.preventDefault();
    model.go(move[0], model.cross[move[0]] + move[1]);
  });
  onResize(canvas, draw);
  return { whole: el("div", { class: "slice" }, title, canvas, through.whole), draw, extent: count[across] * voxel[across] };
}
