// Turning, zooming and its controls: mouse, touch, wheel and keys.

function steer(canvas, model, redraw, pick, setMoving) {
  const fingers = new Map();
  let dragged = 0;
  const rotate = (across, up) => {
    model.matrix = times(times(rotation(1, across), rotation(0, up)), model.matrix);
    redraw();
  };
  const zoom = (factor) => {
    model.zoom = clamp(model.zoom * factor, 0.3, 12);
    redraw();
  };
  const apart = () => {
    const [a, b] = [...fingers.values()];
    return Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    dragged = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const was = fingers.size === 2 ? apart() : 0;
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    const [dx, dy] = [event.clientX - before[0], event.clientY - before[1]];
    dragged += Math.abs(dx) + Math.abs(dy);
    if (dragged > 3) setMoving(true);
    if (was) zoom(apart() / was);
    else rotate(dx * 0.008, dy * 0.008);
  });
  const lift = (event) => {
    if (!fingers.delete(event.pointerId)) return;
    if (event.type === "pointerup" && dragged <= 3) pick(event);
    if (!fingers.size) setMoving(false);
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode === 0 ? 0.0015 : 0.05)));
  }, { passive: false });
  const step = Math.PI / 36;
  const keys = {
    ArrowLeft: () => rotate(-step, 0), ArrowRight: () => rotate(step, 0),
    ArrowUp: () => rotate(0, -step), ArrowDown: () => rotate(0, step),
    "+": () => zoom(1.15), "=": () => zoom(1.15), "-": () => zoom(1 / 1.15),
    0: () => {
      [model.matrix, model.zoom] = [START_VIEW, 1];
      redraw();
    },
  };
  canvas.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
}

function spaceControls(model, redraw) {
  const set = (name) => (value) => {
    model.choose(name, value);
    redraw();
  };
  const see = (name, matrix) => el("button", { type: "button", "data-key": `view ${name}`, onclick: () => set("matrix")(matrix) }, name);
  const views = el("div", { class: "buttons" }, ...Object.entries(VIEWS).map(([name, m]) => see(name, m)), see("oblique", START_VIEW));
  const most = model.low + model.step * (model.levels.BYTES_PER_ELEMENT === 1 ? 255 : 4095);
  const level = slider("Surface at", {
    min: model.low, max: Math.min(most, 2 * model.window[1]), step: (most - model.low) / 2000 || 1, value: model.surface,
    key: "surface", say: (v) => `${short(v, 3)} ${model.unit}`, change: set("surface"),
  });
  const planes = ticked("outline the slices", model.planes, "planes", set("planes"));
  if (!model.atoms) return el("div", { class: "controls side" }, views, level.whole, planes);
  const shows = chooser("Show", ["atoms", "surface", "both"], model.shows, "shows", set("shows"));
  const size = slider("Atom size", {
    min: 0.3, max: 2.5, step: 0.1, value: model.size, key: "size", say: (v) => `× ${fixed(v, 1)}`, change: set("size"),
  });
  return el("div", { class: "controls side" }, views, shows, level.whole, size.whole, planes);
}
