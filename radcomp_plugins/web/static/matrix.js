// Small column-major 4x4 matrices and 3-vectors, as WebGL and test_frames.json have them.

export function multiply(a, b) {
  const out = new Float64Array(16);
  for (let column = 0; column < 4; column++) {
    for (let row = 0; row < 4; row++) {
      let sum = 0;
      for (let k = 0; k < 4; k++) sum += a[4 * k + row] * b[4 * column + k];
      out[4 * column + row] = sum;
    }
  }
  return out;
}

// By Gauss-Jordan elimination with pivoting; null where there is no inverse.
export function invert(matrix) {
  const rows = [0, 1, 2, 3].map((row) => [
    ...[0, 1, 2, 3].map((column) => matrix[4 * column + row]),
    ...[0, 1, 2, 3].map((column) => (column === row ? 1 : 0)),
  ]);
  for (let column = 0; column < 4; column++) {
    let pivot = column;
    for (let row = column + 1; row < 4; row++) {
      if (Math.abs(rows[row][column]) > Math.abs(rows[pivot][column])) pivot = row;
    }
    if (!(Math.abs(rows[pivot][column]) > 1e-300)) return null;
    [rows[column], rows[pivot]] = [rows[pivot], rows[column]];
    const scale = 1 / rows[column][column];
    rows[column] = rows[column].map((value) => value * scale);
    for (let row = 0; row < 4; row++) {
      if (row === column) continue;
      const factor = rows[row][column];
      rows[row] = rows[row].map((value, k) => value - factor * rows[column][k]);
    }
  }
  const out = new Float64Array(16);
  for (let row = 0; row < 4; row++) {
    for (let column = 0; column < 4; column++) out[4 * column + row] = rows[row][4 + column];
  }
  return out;
}

// Vertical field of view in radians; the far plane changes no ray.
export function perspective(fieldOfView, aspect, near, far = 100) {
  const focal = 1 / Math.tan(fieldOfView / 2);
  const depth = near - far;
  return new Float64Array([
    focal / aspect, 0, 0, 0, 0, focal, 0, 0, 0, 0, (near + far) / depth, -1, 0, 0, (2 * near * far) / depth, 0,
  ]);
}

export const add = (a, b) => [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
export const subtract = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
export const scaled = (a, s) => [a[0] * s, a[1] * s, a[2] * s];
export const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
export const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
export const length = (a) => Math.hypot(a[0], a[1], a[2]);

export function normalized(a) {
  const size = length(a);
  return size > 0 ? scaled(a, 1 / size) : [0, 0, -1];
}

// Rotation [16] of a camera that looks along `forward` with `up` as near to its y axis as can be.
export function lookRotation(forward, up) {
  const back = scaled(normalized(forward), -1);
  let right = cross(up, back);
  if (length(right) < 1e-6) right = cross(Math.abs(back[2]) < 0.9 ? [0, 0, 1] : [1, 0, 0], back);
  right = normalized(right);
  const top = cross(back, right);
  return new Float64Array([...right, 0, ...top, 0, ...back, 0, 0, 0, 0, 1]);
}
