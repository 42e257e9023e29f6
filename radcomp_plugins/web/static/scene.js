// What scene_params.json says, checked before any memory is taken by it, and where the submodels are.
//
// Positions here are in the axes of WebGL, as in test_frames.json: (x, y, z) of the exporter are (-x, z, y) here.

import { ViewerError } from "./errors.js";

const NETWORK_MODES = ["snerg", "vfr"];

function integer(params, key, low, high) {
  const value = params[key];
  if (!Number.isInteger(value) || value < low || value > high) {
    throw new ViewerError(
      `scene_params.json: ${key} is ${JSON.stringify(value)}, expected a whole number from ${low} to ${high}`,
    );
  }
  return value;
}

function number(params, key, low, high) {
  const value = params[key];
  if (typeof value !== "number" || !(value >= low && value <= high)) {
    throw new ViewerError(
      `scene_params.json: ${key} is ${JSON.stringify(value)}, expected a number from ${low} to ${high}`,
    );
  }
  return value;
}

function range(params, key) {
  const value = params[key];
  const good = Array.isArray(value) && value.length === 2 && value.every((v) => typeof v === "number");
  if (!good || !(value[0] < value[1]) || Math.max(...value.map(Math.abs)) > 1e4) {
    throw new ViewerError(`scene_params.json: ${key} is ${JSON.stringify(value)}, expected [least, largest]`);
  }
  return value;
}

function oneOf(params, key, choices, missing) {
  const value = params[key] ?? missing;
  if (!choices.includes(value)) {
    throw new ViewerError(
      `scene_params.json: ${key} is ${JSON.stringify(value)}, expected ${choices.join(" or ")}`,
    );
  }
  return value;
}

function consistent(params, key, got, expected) {
  if (!(Math.abs(got - expected) <= 1e-4 * Math.abs(expected))) {
    throw new ViewerError(`scene_params.json: ${key} is ${got}, which does not fit the others: expected ${expected}`);
  }
}

function indexList(params, key, length, low, high) {
  const value = params[key];
  const good = Array.isArray(value) && value.length === length;
  if (!good || !value.every((v) => Number.isInteger(v) && v >= low && v <= high)) {
    throw new ViewerError(`scene_params.json: ${key} has to be ${length} whole numbers from ${low} to ${high}`);
  }
  return value;
}

// The background that our exporter notes; other files mean the middle grey.
function grey(value) {
  return Array(3).fill(typeof value === "number" && value >= 0 && value <= 1 ? value : 0.5);
}

// What all submodels of a scene share, from the scene_params.json of any of them.
export function parseLayout(params) {
  if (params === null || typeof params !== "object" || Array.isArray(params)) {
    throw new ViewerError("scene_params.json does not hold an object: the address is not an asset's");
  }
  const triplane = integer(params, "triplane_resolution", 16, 4096);
  const sparse = integer(params, "sparse_grid_resolution", 4, 2048);
  const block = integer(params, "data_block_size", 1, 64);
  if (triplane % 8) throw new ViewerError(`scene_params.json: triplane_resolution is ${triplane}, not a multiple of 8`);
  if (sparse % block) {
    throw new ViewerError(`scene_params.json: sparse_grid_resolution is ${sparse}, not a multiple of ${block}`);
  }
  consistent(params, "triplane_voxel_size", number(params, "triplane_voxel_size", 0, 4), 4 / triplane);
  consistent(params, "sparse_grid_voxel_size", number(params, "sparse_grid_voxel_size", 0, 4), 4 / sparse);
  for (const key of ["export_store_rgb_and_density_separately", "export_store_deferred_mlp_separately"]) {
    if (params[key] !== true) {
      throw new ViewerError(`scene_params.json: ${key} is not true: assets of that older kind are not read here`);
    }
  }
  const format = oneOf(params, "export_array_format", ["raw.gz", "raw"], "raw.gz");
  const local = integer({ num_local_submodels: 1, ...params }, "num_local_submodels", 1, 64 ** 3);
  const cells = integer({ num_submodels: 1, ...params }, "num_submodels", 1, 64 ** 3);
  const perAxis = Math.round(Math.cbrt(cells));
  if (perAxis ** 3 !== cells) {
    throw new ViewerError(`scene_params.json: num_submodels is ${cells}, expected a cube of a whole number`);
  }
  // The only submodel of many cells is listed twice: with one entry the official viewer would centre it in the scene.
  const alive = [...new Set(indexList(params, "params_to_sm", local, 0, cells - 1))];
  const exposure = params.default_exposure ? Number(params.default_exposure) : null;
  if (exposure !== null && !(exposure > 0)) {
    throw new ViewerError(`scene_params.json: default_exposure is ${params.default_exposure}, expected above 0`);
  }
  return {
    triplane,
    sparse,
    block,
    blocks: sparse / block,
    cells: triplane / 8,
    scale: number(params, "submodel_scale", 1e-6, 1e6),
    perAxis,
    alive,
    single: local <= 1,
    gridLayers: gridLayers(triplane / 8, params.export_slice_occupancy_and_distance_grids ?? true),
    gridChannels: (params.export_pad_occupancy_and_distance_grids ?? true) ? 4 : 1,
    rangeFeatures: range(params, "range_features"),
    rangeDensity: range(params, "range_density"),
    concat: params.merge_features_combine_op === "coarse_sum",
    gating: params.feature_gating ?? true,
    background: grey(params.radcomp?.background),
    activation: oneOf(params, "activation", ["elu", "relu"], "elu"),
    mode: oneOf(params, "deferred_rendering_mode", NETWORK_MODES, "snerg"),
    exposure,
    preferGzip: format === "raw.gz",
  };
}

// Layers of cells in each of the files that the distance and the occupancy grid lie in: of more than 256 cells a side
// they are cut into eight, the last of which has what is left.
function gridLayers(cells, sliced) {
  const files = sliced && cells > 256 ? 8 : 1;
  const deep = Math.ceil(cells / files);
  return Array.from({ length: files }, (_, file) => Math.min(deep, cells - file * deep));
}

// What differs between submodels: the atlas of their blocks.
export function parseAtlas(params, layout) {
  const shared = parseLayout(params);
  for (const key of ["triplane", "sparse", "block", "scale", "perAxis", "concat", "gating", "gridChannels"]) {
    if (shared[key] !== layout[key]) {
      throw new ViewerError(`scene_params.json of one submodel says ${key} ${shared[key]}, another ${layout[key]}`);
    }
  }
  const cell = layout.block + 1;
  const atlas = ["atlas_width", "atlas_height", "atlas_depth"].map((key) => integer(params, key, cell, 2048));
  if (atlas.some((size) => size % cell)) {
    throw new ViewerError(`scene_params.json: an atlas of ${atlas.join(" x ")} is not made of blocks of ${cell}`);
  }
  const slices = integer(params, "num_slices", 1, atlas[2]);
  if (atlas[2] % slices) {
    throw new ViewerError(`scene_params.json: num_slices is ${slices}, which does not divide atlas_depth ${atlas[2]}`);
  }
  return { size: atlas, slices };
}

// Centre of a submodel's cell, for its position in `alive`.
export function centre(layout, position) {
  if (layout.single) return [0, 0, 0];
  const k = layout.perAxis;
  const cell = layout.alive[position];
  const along = [Math.floor(cell / (k * k)), Math.floor(cell / k) % k, cell % k].map((i) => (2 * i + 1) / k - 1);
  return [-along[0], along[2], along[1]];
}

// Distance of a point to a submodel's centre, in the largest norm.
export function distanceTo(layout, position, point) {
  const c = centre(layout, position);
  return Math.max(Math.abs(point[0] - c[0]), Math.abs(point[1] - c[1]), Math.abs(point[2] - c[2]));
}

// Position in `alive` of the submodel that draws from a point. `current` is left only when another one is nearer by
// `margin`, so that a camera that trembles on a border does not switch back and forth.
export function nearest(layout, point, current = -1, margin = 0) {
  let best = 0;
  for (let i = 1; i < layout.alive.length; i++) {
    if (distanceTo(layout, i, point) < distanceTo(layout, best, point)) best = i;
  }
  if (current < 0 || best === current) return best;
  return distanceTo(layout, best, point) < distanceTo(layout, current, point) - margin ? best : current;
}

export function folderName(cell) {
  return `sm_${String(cell).padStart(3, "0")}/`;
}

// Poses of test_frames.json, in whose absence there are none.
export function parseFrames(file) {
  const frames = file?.test_frames;
  if (!Array.isArray(frames)) throw new ViewerError("test_frames.json has no list of test_frames");
  const numbers = (value, count) => Array.isArray(value) && value.length === count && value.every(Number.isFinite);
  return frames.map((frame, index) => {
    if (!numbers(frame.position, 3) || !numbers(frame.rotation, 16) || !numbers(frame.projection, 16)) {
      throw new ViewerError(`test_frames.json: frame ${index} has no position [3], rotation [16] and projection [16]`);
    }
    return { position: frame.position, rotation: frame.rotation, projection: frame.projection };
  });
}
