// Loss curves: one panel a stage, a line a tilt, the noise floor dashed; hover or arrow keys read points.

const CHART = { width: 320, height: 220, left: 56, right: 10, top: 20, bottom: 34 };

function linearTicks(low, high, count = 4) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((s) => s * power >= raw) * power;
  const out = [];
  for (let t = Math.ceil(low / step) * step; t <= high + 1e-9 * step; t += step) out.push(Number(t.toPrecision(12)));
  return out;
}

function logTicks(low, high) {
  const out = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++)
    for (const s of [1, 2, 5]) {
      const t = Number(`${s}e${p}`);
      if (t >= low * 0.999 && t <= high * 1.001) out.push(t);
    }
  if (out.length < 2) return linearTicks(low, high);
  return out.length > 7 ? out.filter((t) => /^1/.test(t.toExponential())) : out;
}

function axes(stage) {
  const losses = stage.curves.flatMap((c) => c.loss).concat(stage.floor == null ? [] : [stage.floor]);
  const steps = stage.curves.flatMap((c) => c.iteration);
  let [low, high] = [Math.min(...losses), Math.max(...losses)];
  const log = low > 0 && high / low > 1.5;
  const room = log ? (high / low) ** 0.06 : (high - low || Math.abs(high) || 1) * 0.06;
  [low, high] = log ? [low / room, high * room] : [low - room, high + room];
  let [first, last] = [Math.min(...steps), Math.max(...steps)];
  if (first === last) [first, last] = [first - 0.5, last + 0.5];
  const value = log ? Math.log : (v) => v;
  const tall = CHART.height - CHART.top - CHART.bottom;
  const wide = CHART.width - CHART.left - CHART.right;
  return {
    x: (i) => CHART.left + ((i - first) / (last - first)) * wide,
    y: (v) => CHART.top + tall - ((value(v) - value(low)) / (value(high) - value(low))) * tall,
    across: linearTicks(first, last, 5).filter(Number.isInteger),
    up: log ? logTicks(low, high) : linearTicks(low, high),
  };
}

function frame(picture, scale, along) {
  const [bottom, right] = [CHART.height - CHART.bottom, CHART.width - CHART.right];
  for (const t of scale.up) {
    picture.append(vector("line", { x1: CHART.left, x2: right, y1: scale.y(t), y2: scale.y(t), class: "grid" }));
    const at = { x: CHART.left - 6, y: scale.y(t) + 4, "text-anchor": "end" };
    picture.append(vector("text", at, short(t, 3)));
  }
  for (const t of scale.across) {
    const at = { x: scale.x(t), y: bottom + 15, "text-anchor": "middle" };
    picture.append(vector("text", at, String(t)));
  }
  picture.append(vector("text", { x: CHART.left - 6, y: 9, "text-anchor": "end" }, "loss"));
  picture.append(vector("line", { x1: CHART.left, x2: right, y1: bottom, y2: bottom, class: "axis" }));
  const middle = { x: (CHART.left + right) / 2, y: CHART.height - 4, "text-anchor": "middle" };
  picture.append(vector("text", middle, along));
}

function chart(stage) {
  const scale = axes(stage);
  const many = stage.curves.length > 1;
  const name = stage.stage.replace(/_/g, " ");
  const hint = "arrow keys read single points";
  const picture = vector("svg", {
    viewBox: `0 0 ${CHART.width} ${CHART.height}`, role: "img", tabindex: 0,
    "aria-label": `Loss of ${name} by ${stage.along}; ${hint}`, "data-key": `loss ${stage.stage}`,
  });
  frame(picture, scale, stage.along);
  for (const curve of stage.curves) {
    const points = curve.iteration.map((i, k) => `${scale.x(i).toFixed(1)},${scale.y(curve.loss[k]).toFixed(1)}`);
    if (points.length < 3 || stage.along === "tilt")
      for (const point of points) {
        const [cx, cy] = point.split(",");
        picture.append(vector("circle", { cx, cy, r: 2.6, class: "point" }));
      }
    if (points.length > 1 && stage.along !== "tilt") picture.append(vector("polyline", { points: points.join(" "), class: many ? "curve many" : "curve" }));
  }
  if (stage.floor != null) {
    const y = scale.y(stage.floor);
    picture.append(vector("line", { x1: CHART.left, x2: CHART.width - CHART.right, y1: y, y2: y, class: "floor" }));
  }
  const mark = vector("circle", { r: 4, class: "mark", visibility: "hidden" });
  picture.append(mark);
  const idle = stage.floor == null ? "" : `noise floor ${short(stage.floor)} (dashed)`;
  const said = el("p", { class: "said", "aria-live": "polite" }, idle);
  read(picture, stage, scale, mark, said, idle);
  const heading = el("h3", {}, name, many ? el("small", {}, ` ${stage.curves.length} tilts`) : null);
  return el("div", { class: "chart" }, heading, picture, said);
}

// Pointer and arrow keys: left and right along a curve, up and down between curves.
function read(picture, stage, scale, mark, said, idle) {
  let [which, step] = [0, -1];
  const show = () => {
    const curve = stage.curves[which];
    mark.setAttribute("visibility", "visible");
    mark.setAttribute("cx", scale.x(curve.iteration[step]));
    mark.setAttribute("cy", scale.y(curve.loss[step]));
    const tilt = curve.tilt == null ? "" : `tilt ${curve.tilt}, `;
    said.textContent = `${tilt}${stage.along} ${curve.iteration[step]}: ${short(curve.loss[step], 5)}`;
  };
  const hide = () => {
    mark.setAttribute("visibility", "hidden");
    said.textContent = idle;
  };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const px = ((event.clientX - box.left) / box.width) * CHART.width;
    const py = ((event.clientY - box.top) / box.height) * CHART.height;
    let best = Infinity;
    stage.curves.forEach((curve, c) => curve.iteration.forEach((i, k) => {
      const away = Math.hypot(scale.x(i) - px, scale.y(curve.loss[k]) - py);
      if (away < best) [best, which, step] = [away, c, k];
    }));
    show();
  });
  picture.addEventListener("pointerleave", hide);
  picture.addEventListener("blur", hide);
  picture.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    which = clamp(which + move[0], 0, stage.curves.length - 1);
    step = clamp(step + move[1], 0, stage.curves[which].iteration.length - 1);
    show();
  });
}

viewers.loss = (place) => {
  place.append(el("div", { class: "charts" }, ...data.loss.map(chart)));
  const note = "The dashed line is the loss that the noise alone would leave with a perfect model.";
  if (data.loss.some((stage) => stage.floor != null)) place.append(el("p", { class: "caption" }, note));
};
