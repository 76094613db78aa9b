// Points on the surface where the potential crosses a level, each with its outward normal.

const MOST_POINTS = 160000;

function surfacePoints(model, volts) {
  const { levels, count, stride, start, voxel } = model;
  const level = (volts - model.low) / model.step;
  const [nx, ny, nz] = count;
  const found = []; // voxel, axis and fraction along the edge, three numbers a point
  for (let z = 0; z < nz; z++)
    for (let y = 0; y < ny; y++) {
      let place = (z * ny + y) * nx;
      for (let x = 0; x < nx; x++, place++) {
        const here = levels[place];
        const inside = here >= level;
        if (x + 1 < nx && inside !== levels[place + 1] >= level) found.push(place, 0, (level - here) / (levels[place + 1] - here));
        if (y + 1 < ny && inside !== levels[place + nx] >= level) found.push(place, 1, (level - here) / (levels[place + nx] - here));
        if (z + 1 < nz && inside !== levels[place + nx * ny] >= level) found.push(place, 2, (level - here) / (levels[place + nx * ny] - here));
      }
    }
  const skip = Math.max(1, Math.ceil(found.length / 3 / MOST_POINTS));
  const total = Math.floor(found.length / 3 / skip);
  const points = new Float32Array(3 * total);
  const normals = new Float32Array(3 * total);
  const slope = (place, index, axis) => {
    const before = index > 0 ? levels[place - stride[axis]] : levels[place];
    const after = index + 1 < count[axis] ? levels[place + stride[axis]] : levels[place];
    return (after - before) / voxel[axis];
  };
  for (let i = 0; i < total; i++) {
    const [place, along, part] = found.slice(3 * i * skip, 3 * i * skip + 3);
    const index = [place % nx, Math.floor(place / nx) % ny, Math.floor(place / (nx * ny))];
    const next = [...index];
    next[along] += 1;
    let length = 0;
    for (let axis = 0; axis < 3; axis++) {
      points[3 * i + axis] = start[axis] + voxel[axis] * (index[axis] + (axis === along ? part : 0));
      const there = slope(place + stride[along], next[axis], axis);
      const n = -((1 - part) * slope(place, index[axis], axis) + part * there);
      normals[3 * i + axis] = n;
      length += n * n;
    }
    length = Math.sqrt(length) || 1;
    for (let axis = 0; axis < 3; axis++) normals[3 * i + axis] /= length;
  }
  return { points, normals, size: Math.max(...voxel) * Math.cbrt(skip) };
}
