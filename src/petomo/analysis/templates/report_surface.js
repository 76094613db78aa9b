// The surface where the potential crosses a level, as a mesh (surface nets: one vertex in every voxel cube it cuts).

const CORNERS = [0, 1, 2, 3, 4, 5, 6, 7].map((i) => [i & 1, (i >> 1) & 1, i >> 2]);
const EDGES = CORNERS.flatMap((_, i) => [1, 2, 4].filter((bit) => !(i & bit)).map((bit) => [i, i | bit]));

const MOST_QUADS = 500000; // noise near zero has millions: the rest of such a surface is left out

// Growing typed array.
class List {
  constructor(kind) {
    [this.array, this.length] = [new kind(1 << 14), 0];
  }

  push(...values) {
    if (this.length + values.length > this.array.length) {
      const wider = new this.array.constructor(2 * this.array.length);
      wider.set(this.array);
      this.array = wider;
    }
    for (const value of values) this.array[this.length++] = value;
  }

  get values() {
    return this.array.subarray(0, this.length);
  }
}

function surfaceMesh(model, volts) {
  const { levels, count, stride } = model;
  const level = (volts - model.low) / model.step;
  const [nx, ny, nz] = count;
  const offsets = CORNERS.map((c) => c[0] + c[1] * stride[1] + c[2] * stride[2]);
  const vertex = new Int32Array(levels.length).fill(-1); // of the cube whose first corner is this voxel
  const [points, normals, quads] = [new List(Float32Array), new List(Float32Array), new List(Int32Array)];
  for (let z = 0; z + 1 < nz && quads.length < 4 * MOST_QUADS; z++)
    for (let y = 0; y + 1 < ny; y++)
      for (let x = 0, place = z * stride[2] + y * stride[1]; x + 1 < nx; x++, place++) {
        let mask = 0;
        for (let i = 0; i < 8; i++) if (levels[place + offsets[i]] >= level) mask |= 1 << i;
        if (mask === 0 || mask === 255) continue;
        vertex[place] = points.length / 3;
        addVertex(model, level, place, offsets, mask, [x, y, z], points, normals);
        // edges from the first corner: the four cubes around each have their vertices by now
        for (let axis = 0; axis < 3; axis++) {
          const [i, j] = [(axis + 1) % 3, (axis + 2) % 3];
          if ((mask & 1) === ((mask >> (1 << axis)) & 1) || [x, y, z][i] === 0 || [x, y, z][j] === 0) continue;
          quads.push(vertex[place], vertex[place - stride[i]], vertex[place - stride[i] - stride[j]], vertex[place - stride[j]]);
        }
      }
  const cut = quads.length >= 4 * MOST_QUADS;
  return { points: points.values, normals: normals.values, quads: quads.values, cut };
}

// The mean of the crossings on the cube's edges; the normal points to lower potential.
function addVertex({ levels, start, voxel }, level, place, offsets, mask, cube, points, normals) {
  const [middle, slope] = [[0, 0, 0], [0, 0, 0]];
  let crossings = 0;
  for (const [a, b] of EDGES) {
    if (((mask >> a) & 1) === ((mask >> b) & 1)) continue;
    const [va, vb] = [levels[place + offsets[a]], levels[place + offsets[b]]];
    const part = (level - va) / (vb - va);
    for (let axis = 0; axis < 3; axis++) middle[axis] += CORNERS[a][axis] + part * (CORNERS[b][axis] - CORNERS[a][axis]);
    crossings++;
  }
  for (let i = 0; i < 8; i++)
    for (let axis = 0; axis < 3; axis++) slope[axis] += (CORNERS[i][axis] ? -1 : 1) * levels[place + offsets[i]] / voxel[axis];
  const length = Math.hypot(...slope) || 1;
  for (let axis = 0; axis < 3; axis++) {
    points.push(start[axis] + voxel[axis] * (cube[axis] + middle[axis] / crossings));
    normals.push(slope[axis] / length);
  }
}
