// The turnable view: spheres, surface points and lines drawn into a depth buffer, parallel projection.

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
    const fog = clamp(0.5 - (0.5 * z) / this.reach, 0, 1) * 0.6;
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

  // Small squares; ``sheer`` leaves out every other pixel, so that what is behind shows through.
  cloud({ points, normals, size }, colour, sheer) {
    const [[a, b, c], [d, e, f], [g, h, k]] = this.matrix;
    const [cx, cy, cz] = this.centre;
    const reach = Math.max(1, Math.round(0.62 * size * this.scale));
    const half = reach >> 1;
    for (let i = 0; i < points.length; i += 3) {
      const [p, q, r] = [normals[i], normals[i + 1], normals[i + 2]];
      const facing = g * p + h * q + k * r;
      if (facing < -0.15) continue; // turned away
      const lit = (a * p + b * q + c * r) * LIGHT[0] + (d * p + e * q + f * r) * LIGHT[1] + facing * LIGHT[2];
      const light = 0.4 + 0.65 * Math.max(0, lit);
      const [x, y, z] = [points[i] - cx, points[i + 1] - cy, points[i + 2] - cz];
      const left = Math.round(this.width / 2 + this.scale * (a * x + b * y + c * z)) - half;
      const top = Math.round(this.height / 2 - this.scale * (d * x + e * y + f * z)) - half;
      const near = g * x + h * y + k * z;
      for (let v = Math.max(0, top); v < Math.min(this.height, top + reach); v++)
        for (let u = Math.max(0, left); u < Math.min(this.width, left + reach); u++) {
          const place = v * this.width + u;
          if (near > this.depth[place] && !(sheer && (u + v) & 1)) this.put(place, near, colour, light);
        }
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
