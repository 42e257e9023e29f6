// The deferred appearance network: read, interpolated for a camera, and written out as shader code.
//
// Its parameters lie on a P^3 grid in the submodel's cell and are interpolated at the camera's position. All rays of a
// picture share that position, so this is done here once per picture and not per pixel.

import { ViewerError } from "./errors.js";

const DIRECTIONS = 27; // the direction itself, and sines and cosines of 1, 2, 4 and 8 times its components

const pad4 = (count) => 4 * Math.ceil(count / 4);

export function inputCount(layout) {
  return (layout.concat ? 14 : 7) + DIRECTIONS;
}

function tensor(file, key, rank) {
  const entry = file[key];
  const shape = entry?.shape;
  if (!Array.isArray(shape) || shape.length !== rank || !shape.every((n) => Number.isInteger(n) && n > 0)) {
    throw new ViewerError(`deferred_mlp.json: ${key} is missing or has no shape of ${rank} numbers`);
  }
  const count = shape.reduce((a, b) => a * b, 1);
  if (!Array.isArray(entry.data) || entry.data.length !== count) {
    throw new ViewerError(`deferred_mlp.json: ${key} has ${entry.data?.length} values, its shape makes it ${count}`);
  }
  const data = Float32Array.from(entry.data);
  if (!data.every(Number.isFinite)) throw new ViewerError(`deferred_mlp.json: ${key} holds what is not a number`);
  return { shape, data };
}

// Layers of {inputs, outputs, kernel, bias}, the arrays over all submodels and grid points.
export function parseNetwork(file, layout) {
  if (file === null || typeof file !== "object") throw new ViewerError("deferred_mlp.json does not hold an object");
  const gridded = "ResampleDense_0/kernel" in file;
  const name = gridded ? "ResampleDense" : "Dense";
  const lead = gridded ? 4 : 0;
  let inputs = inputCount(layout);
  const layers = [];
  for (let i = 0; i < 3; i++) {
    const kernel = tensor(file, `${name}_${i}/kernel`, lead + 2);
    const bias = tensor(file, `${name}_${i}/bias`, lead + 1);
    const outputs = kernel.shape[lead + 1];
    if (kernel.shape[lead] !== inputs || bias.shape[lead] !== outputs || outputs > 64) {
      throw new ViewerError(
        `deferred_mlp.json: layer ${i} is ${kernel.shape[lead]} to ${outputs}, expected ${inputs} inputs`,
      );
    }
    layers.push({ inputs, outputs, kernel: kernel.data, bias: bias.data });
    inputs = outputs;
  }
  if (inputs !== 3) throw new ViewerError(`deferred_mlp.json: the last layer has ${inputs} outputs, expected 3`);
  let grid = 1;
  if (gridded) {
    const shape = file["ResampleDense_0/kernel"].shape;
    grid = shape[1];
    if (shape[2] !== grid || shape[3] !== grid || shape[0] < layout.alive.length) {
      throw new ViewerError(
        `deferred_mlp.json: a grid of ${shape.slice(1, 4).join(" x ")} for ${shape[0]} submodels, ` +
          `expected a cube for ${layout.alive.length}`,
      );
    }
    for (let i = 1; i < 3; i++) {
      const other = file[`ResampleDense_${i}/kernel`].shape;
      if (other.slice(0, 4).join() !== shape.slice(0, 4).join()) {
        throw new ViewerError(`deferred_mlp.json: the layers lie on different grids`);
      }
    }
  }
  return { grid, gridded, layers };
}

// Grid points and weights for a position in the cell, [-1, 1]^3 in WebGL axes. The grid is stored [z, y, x] in the
// exporter's axes, in which x runs the other way and y and z are swapped. Beyond the outermost points it is constant.
function corners(grid, position) {
  const along = position.map((value) => {
    const at = ((value + 1) / 2) * grid - 0.5;
    const low = Math.floor(at);
    const clamp = (i) => Math.min(Math.max(i, 0), grid - 1);
    return { index: [clamp(low), clamp(low + 1)], weight: [1 - (at - low), at - low] };
  });
  const result = new Map();
  for (let corner = 0; corner < 8; corner++) {
    const bits = [corner & 1, (corner >> 1) & 1, corner >> 2];
    const [x, y, z] = bits.map((bit, axis) => along[axis].index[bit]);
    const weight = bits.reduce((product, bit, axis) => product * along[axis].weight[bit], 1);
    const index = (y * grid + z) * grid + (grid - 1 - x);
    if (weight > 0) result.set(index, (result.get(index) ?? 0) + weight);
  }
  return result;
}

// vec4s in the order that networkSource() reads them: per layer the biases, then the weights of each input in turn.
export function uniformCount(network) {
  return network.layers.reduce((sum, layer) => sum + ((layer.inputs + 1) * pad4(layer.outputs)) / 4, 0);
}

export function interpolate(network, submodel, position) {
  const points = network.gridded ? corners(network.grid, position) : new Map([[0, 1]]);
  const offset = network.gridded ? submodel * network.grid ** 3 : 0;
  const out = new Float32Array(4 * uniformCount(network));
  let start = 0;
  for (const { inputs, outputs, kernel, bias } of network.layers) {
    const width = pad4(outputs);
    for (const [index, weight] of points) {
      const biasAt = (offset + index) * outputs;
      const kernelAt = (offset + index) * inputs * outputs;
      for (let o = 0; o < outputs; o++) out[start + o] += weight * bias[biasAt + o];
      for (let i = 0; i < inputs; i++) {
        const row = start + (i + 1) * width;
        for (let o = 0; o < outputs; o++) out[row + o] += weight * kernel[kernelAt + i * outputs + o];
      }
    }
    start += (inputs + 1) * width;
  }
  return out;
}

// GLSL of `vec3 appearance(...)`, unrolled: with constant indices every lane reads the same weights at once.
export function networkSource(network, layout) {
  const lines = [];
  let next = 0;
  const block = () => `uParameters[${next++}]`;
  const color = ["color.x", "color.y", "color.z", "features.x", "features.y", "features.z", "features.w"];
  const coarse = color.map((name) => name.replace("color", "coarseColor").replace("features", "coarseFeatures"));
  let inputs = layout.concat ? [...color, ...coarse] : color;
  if (layout.exposure) inputs = inputs.map((name) => `exposed(${name})`);
  inputs = inputs.concat(["d.x", "d.y", "d.z"]);
  lines.push("vec3 s1 = sin(d), c1 = cos(d);");
  // Double angles: three multiplications where a sine costs a score of them.
  for (const [half, whole] of [[1, 2], [2, 4], [4, 8]]) {
    lines.push(`vec3 s${whole} = 2.0 * s${half} * c${half}, c${whole} = 1.0 - 2.0 * s${half} * s${half};`);
  }
  for (const kind of ["s", "c"]) {
    for (const frequency of [1, 2, 4, 8]) {
      for (const axis of ["x", "y", "z"]) inputs.push(`${kind}${frequency}.${axis}`);
    }
  }
  network.layers.forEach((layer, index) => {
    const count = pad4(layer.outputs) / 4;
    for (let o = 0; o < count; o++) lines.push(`vec4 h${index}_${o} = ${block()};`);
    for (const input of inputs) {
      for (let o = 0; o < count; o++) lines.push(`h${index}_${o} += ${block()} * ${input};`);
    }
    inputs = [];
    for (let o = 0; o < count; o++) {
      if (index < 2) lines.push(`h${index}_${o} = activate(h${index}_${o});`);
      for (const axis of ["x", "y", "z", "w"]) {
        if (inputs.length < layer.outputs) inputs.push(`h${index}_${o}.${axis}`);
      }
    }
  });
  const activate = layout.activation === "elu" ? "mix(x, exp(min(x, 0.0)) - 1.0, lessThan(x, vec4(0.0)))" : "max(x, 0.0)";
  return `
layout(std140) uniform Parameters { vec4 uParameters[${uniformCount(network)}]; };
vec4 activate(vec4 x) { return ${activate}; }
${layout.exposure ? `float exposed(float y) {
  y = clamp(y, 1e-7, 1.0 - 1e-7);
  return log(y) - log(1.0 - y) + ${Math.log(layout.exposure).toFixed(8)};
}` : ""}
vec3 appearance(vec3 color, vec4 features, vec3 coarseColor, vec4 coarseFeatures, vec3 d) {
  ${lines.join("\n  ")}
  return 1.0 / (1.0 + exp(-h2_0.xyz));
}
`;
}
