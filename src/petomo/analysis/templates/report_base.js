// What all viewers share: elements, numbers in words, packed arrays, colour maps, scale bars.

const state = {}; // what the reader chose; outlives a refreshed section
const data = {}; // what the page carries, by name

// An element; attributes by name, "on..." as listeners, children appended as text or nodes.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

function vector(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const minus = (text) => text.replace(/-/g, "\u2212");
const fixed = (value, digits = 2) => minus(value.toFixed(digits)).replace(/^\u2212(0\.?0*)$/, "$1");
const short = (value, digits = 4) => minus(String(Number(value.toPrecision(digits))));

// Round length (1, 2 or 5 times a power of ten) of about a quarter of a width.
function barLength(width) {
  const power = 10 ** Math.floor(Math.log10(width / 4));
  return [5, 2, 1].find((step) => step * power <= (width / 4) * (1 + 1e-9)) * power;
}

// Array from {type, shape, data}: base64 of gzipped little-endian numbers.
async function unpack(packed) {
  const text = atob(packed.data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  return packed.type === "uint8" ? new Uint8Array(buffer) : new Uint16Array(buffer);
}

// Colour maps: 256 x RGB from a few colours; all keep their order in grey and for every colour vision.
function ramp(colours) {
  const table = new Uint8Array(768);
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (colours.length - 1);
    const left = Math.min(Math.floor(place), colours.length - 2);
    for (let c = 0; c < 3; c++) {
      const [a, b] = [colours[left], colours[left + 1]].map((h) => parseInt(h.slice(2 * c, 2 * c + 2), 16));
      table[3 * i + c] = a + (b - a) * (place - left);
    }
  }
  return table;
}
const MAPS = {
  grey: ramp(["000000", "ffffff"]),
  "grey, inverted": ramp(["ffffff", "000000"]),
  viridis: ramp(["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"]),
  cividis: ramp(["00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "e1cc55", "fee838"]),
  difference: ramp(["053061", "2166ac", "4393c3", "92c5de", "d1e5f0", "f7f7f7", "fddbc7", "f4a582", "d6604d", "b2182b", "67001f"]),
};

// A canvas of numbers: value(i) at index i, first row at the bottom.
function paint(width, height, value, low, high, table) {
  const canvas = el("canvas", { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const scale = 255 / (high - low || 1);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const level = 3 * Math.round(clamp((value(row * width + column) - low) * scale, 0, 255));
      const place = 4 * ((height - 1 - row) * width + column);
      image.data[place] = table[level];
      image.data[place + 1] = table[level + 1];
      image.data[place + 2] = table[level + 2];
      image.data[place + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Sharp on any screen: sets the bitmap's size from the shown width; returns context and both sizes.
function fit(canvas, aspect) {
  const width = Math.max(40, canvas.clientWidth);
  const height = Math.round(width * aspect);
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height };
}

function drawScaleBar(context, height, pixels, length, unit) {
  const text = `${short(length)} ${unit}`;
  const [x, y] = [12, height - 14];
  context.font = "12px system-ui, sans-serif";
  const wide = Math.max(pixels, context.measureText(text).width) + 12;
  context.fillStyle = "rgba(0, 0, 0, 0.55)";
  context.fillRect(x - 6, y - 20, wide, 28);
  context.fillStyle = "#fff";
  context.fillRect(x, y, pixels, 3);
  context.textBaseline = "alphabetic";
  context.textAlign = "left";
  context.fillText(text, x, y - 5);
}

// A colour bar with its ends in words.
function colourBar(table, low, high, unit) {
  const strip = paint(256, 1, (i) => i, 0, 255, table);
  strip.setAttribute("aria-hidden", "true");
  return el("div", { class: "bar" }, el("span", {}, low), strip, el("span", {}, `${high} ${unit}`));
}

let names = 0;
// A labelled control; returns [whole, input].
function control(label, input) {
  input.id = input.id || `control-${names++}`;
  return [el("div", { class: "control" }, el("label", { for: input.id }, label), input), input];
}

function slider(label, { min, max, step, value, key, say, change }) {
  const shown = el("output", {}, say(value));
  const [whole, input] = control(
    label,
    el("input", { type: "range", min, max, step, value, "data-key": key, "aria-valuetext": say(value) }),
  );
  const told = (text) => {
    shown.textContent = text;
    input.setAttribute("aria-valuetext", text);
  };
  input.addEventListener("input", () => {
    told(say(Number(input.value)));
    change(Number(input.value));
  });
  whole.append(shown);
  return {
    whole,
    input,
    set(next) {
      input.value = next;
      told(say(next));
    },
  };
}

function chooser(label, options, value, key, change) {
  const [whole, input] = control(
    label,
    el("select", { "data-key": key }, ...options.map((o) => el("option", { value: o, selected: o === value }, o))),
  );
  input.addEventListener("change", () => change(input.value));
  return whole;
}

function ticked(label, value, key, change, mark = null) {
  const input = el("input", { type: "checkbox", checked: value, "data-key": key });
  input.addEventListener("change", () => change(input.checked));
  return el("label", { class: "tick" }, input, mark, label);
}

// Redraw at most once a frame.
function perFrame(draw) {
  let due = false;
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      draw();
    });
  };
}

// Call when an element's width changes, for as long as it is in the page.
function onResize(node, draw) {
  let before = 0;
  new ResizeObserver(() => {
    if (node.clientWidth === before || !node.isConnected) return;
    before = node.clientWidth;
    draw();
  }).observe(node);
}

const viewers = {}; // name -> function (place): fills the place
