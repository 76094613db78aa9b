// The turnable view: spheres, a surface and lines drawn into a depth buffer, parallel projection.

const LIGHT = [0.35, 0.5, 0.79];

// product of two 3 x 3 matrices, rows first
const times = (a, b) => a.map((row) => [0, 1, 2].map((j) => row[0] * b[0][j] + row[1] * b[1][j] + row[2] * b[2][j]));
const turn = (m, p) => m.map((row) => row[0] * p[0] + row[1] * p[1] + row[2] * p[2]);

// Right-handed rotation about x (0), y (1) or z (2).
function rotation(axis, angle) {
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  const [i, j] = [(axis + 1) % 3, (axis + 2) % 3];
  const out = [[1, 0, 0], [0, 1, 0], [0, 0, 1]];
  [out[i][i], out[i][j], out[j][i], out[j][j]] = [c, -s, s, c];
  return out;
}

const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

// A picture with depth; scale in pixels an angstrom, the centre in the middle.
class Space {
  constructor(width, height, scale, matrix, centre, reach, background) {
    Object.assign(this, { width, height, scale, matrix, centre, reach, background });
    this.depth = new Float32Array(width * height).fill(-Infinity);
    this.owner = new Int32Array(width * height);
    this.image = new ImageData(width, height);
    const pixels = new Uint32Array(this.image.data.buffer);
    pixels.fill((255 << 24) | (background[2] << 16) | (background[1] << 8) | background[0]);
  }

  // column, row and depth of a point of the sample
  project(p) {
    const [x, y, z] = turn(this.matrix, [p[0] - this.centre[0], p[1] - this.centre[1], p[2] - this.centre[2]]);
    return [this.width / 2 + this.scale * x, this.height / 2 - this.scale * y, z];
  }

  // What lies deeper fades into the background.
  put(place, z, colour, light, shine = 0) {
    const fog = clamp(0.5 - (0.5 * z) / this.reach, 0, 1) * 0.5;
    for (let c = 0; c < 3; c++) {
      const lit = Math.min(255, colour[c] * light + shine);
      this.image.data[4 * place + c] = lit + (this.background[c] - lit) * fog;
    }
    this.depth[place] = z;
  }

  sphere(p, radius, colour, owner) {
    const [cx, cy, cz] = this.project(p);
    const r = radius * this.scale;
    for (let row = Math.max(0, Math.ceil(cy - r)); row <= Math.min(this.height - 1, cy + r); row++)
      for (let column = Math.max(0, Math.ceil(cx - r)); column <= Math.min(this.width - 1, cx + r); column++) {
        const [x, y] = [(column - cx) / r, (cy - row) / r];
        const rest = 1 - x * x - y * y;
        if (rest < 0) continue;
        const n = Math.sqrt(rest);
        const z = cz + n * radius;
        const place = row * this.width + column;
        if (z <= this.depth[place]) continue;
        const facing = Math.max(0, x * LIGHT[0] + y * LIGHT[1] + n * LIGHT[2]);
        const rim = n < 0.32 ? 0.35 + 2 * n : 1; // a dark edge parts overlapping atoms
        this.put(place, z, colour, (0.42 + 0.62 * facing) * rim, 90 * facing ** 24);
        this.owner[place] = owner;
      }
  }

  // Shaded quads; ``sheer`` leaves out every other pixel, so that what is behind shows through.
  mesh({ points, normals, quads }, colour, sheer) {
    const [[a, b, c], [d, e, f], [g, h, k]] = this.matrix;
    const seen = new Float32Array((4 * points.length) / 3); // column, row, depth, light
    for (let i = 0, o = 0; i < points.length; i += 3, o += 4) {
      const [x, y, z] = [points[i] - this.centre[0], points[i + 1] - this.centre[1], points[i + 2] - this.centre[2]];
      seen[o] = this.width / 2 + this.scale * (a * x + b * y + c * z);
      seen[o + 1] = this.height / 2 - this.scale * (d * x + e * y + f * z);
      seen[o + 2] = g * x + h * y + k * z;
      const [p, q, r] = [normals[i], normals[i + 1], normals[i + 2]];
      const [across, up, facing] = [a * p + b * q + c * r, d * p + e * q + f * r, g * p + h * q + k * r];
      const lit = across * LIGHT[0] + up * LIGHT[1] + facing * LIGHT[2];
      seen[o + 3] = (0.46 + 0.66 * Math.max(0, lit)) * Math.sign(facing + 0.2); // negative: turned away
    }
    for (let i = 0; i < quads.length; i += 4) {
      this.triangle(seen, 4 * quads[i], 4 * quads[i + 1], 4 * quads[i + 2], colour, sheer);
      this.triangle(seen, 4 * quads[i], 4 * quads[i + 2], 4 * quads[i + 3], colour, sheer);
    }
  }

  triangle(seen, p, q, r, colour, sheer) {
    if (seen[p + 3] < 0 && seen[q + 3] < 0 && seen[r + 3] < 0) return;
    const [x0, y0, x1, y1, x2, y2] = [seen[p], seen[p + 1], seen[q], seen[q + 1], seen[r], seen[r + 1]];
    const area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0);
    if (area === 0) return;
    const [left, right] = [Math.max(0, Math.ceil(Math.min(x0, x1, x2))), Math.min(this.width - 1, Math.max(x0, x1, x2))];
    const [top, bottom] = [Math.max(0, Math.ceil(Math.min(y0, y1, y2))), Math.min(this.height - 1, Math.max(y0, y1, y2))];
    for (let v = top; v <= bottom; v++)
      for (let u = left; u <= right; u++) {
        const second = ((u - x0) * (y2 - y0) - (x2 - x0) * (v - y0)) / area;
        const third = ((x1 - x0) * (v - y0) - (u - x0) * (y1 - y0)) / area;
        const first = 1 - second - third;
        if (first < -1e-3 || second < -1e-3 || third < -1e-3 || (sheer && (u + v) & 1)) continue;
        const z = first * seen[p + 2] + second * seen[q + 2] + third * seen[r + 2];
        const place = v * this.width + u;
        if (z <= this.depth[place]) continue;
        const light = first * Math.abs(seen[p + 3]) + second * Math.abs(seen[q + 3]) + third * Math.abs(seen[r + 3]);
        this.put(place, z, colour, light);
        this.owner[place] = 0;
      }
  }

  line(p, q, colour) {
    const [a, b] = [this.project(p), this.project(q)];
    const steps = Math.ceil(Math.max(Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1]))) || 1;
    for (let i = 0; i <= steps; i++) {
      const [column, row, z] = [0, 1, 2].map((c) => a[c] + ((b[c] - a[c]) * i) / steps);
      const [u, v] = [Math.round(column), Math.round(row)];
      if (u < 0 || v < 0 || u >= this.width || v >= this.height) continue;
      const place = v * this.width + u;
      if (z > this.depth[place]) this.put(place, z, colour, 1);
    }
  }

  // The edges of a box, or of a plane where low and high agree on an axis.
  box(low, high, colour) {
    const ends = [low, high];
    for (let axis = 0; axis < 3; axis++)
      for (const i of [0, 1])
        for (const j of [0, 1]) {
          const p = [0, 0, 0];
          p[(axis + 1) % 3] = ends[i][(axis + 1) % 3];
          p[(axis + 2) % 3] = ends[j][(axis + 2) % 3];
          const q = [...p];
          [p[axis], q[axis]] = [low[axis], high[axis]];
          this.line(p, q, colour);
        }
  }
}

// The three axes in a corner, the one that points away first.
function drawAxes(context, matrix, x, y, ink) {
  const arrows = [0, 1, 2].map((axis) => ({ axis, tip: matrix.map((row) => row[axis]) }));
  context.font = "12px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.strokeStyle = context.fillStyle = ink;
  context.lineWidth = 1.5;
  for (const { axis, tip } of arrows.sort((a, b) => a.tip[2] - b.tip[2])) {
    context.globalAlpha = tip[2] < -0.2 ? 0.55 : 1;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + 24 * tip[0], y - 24 * tip[1]);
    context.stroke();
    context.fillText(AXES[axis], x + 34 * tip[0], y - 34 * tip[1]);
  }
  context.globalAlpha = 1;
}
