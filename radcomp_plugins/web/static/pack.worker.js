// Fetches one submodel's files and packs them for the graphics card, away from the thread that draws.
//
// The exporter's eight channels of a texel lie in three files; here they become two textures of four, so that a sample
// is two look-ups and not three, and what decides about opacity comes with the first.

import { fetchArray } from "./loader.js";

// Every channel that a packed texture takes: [byte of its texel, file, channel of that file's texels].
const PLANES = {
  files: { density: 1, rgb: 3, features: 4 },
  a: [["density", 0], ["rgb", 0], ["rgb", 1], ["rgb", 2]],
  b: [["features", 0], ["features", 1], ["features", 2], ["features", 3]],
};
const BLOCKS = {
  files: { density: 2, rgb: 3, features: 3 },
  a: [["density", 0], ["density", 1], ["rgb", 0], ["rgb", 1]],
  b: [["rgb", 2], ["features", 0], ["features", 1], ["features", 2]],
};

function packTexels(target, start, count, sources, channels) {
  channels.forEach(([file, channel], byte) => {
    const { bytes, stride } = sources[file];
    for (let i = 0, to = 4 * start + byte, from = channel; i < count; i++, to += 4, from += stride) {
      target[to] = bytes[from];
    }
  });
}

async function packSlices(folder, prefix, kind, slices, texels, options) {
  const a = new Uint8Array(4 * slices * texels);
  const b = new Uint8Array(4 * slices * texels);
  const names = Object.keys(kind.files);
  const one = async (slice) => {
    const suffix = prefix === "plane" ? String(slice) : String(slice).padStart(3, "0");
    const sources = {};
    await Promise.all(
      names.map(async (name) => {
        const stride = kind.files[name];
        const bytes = await fetchArray(folder, `${prefix}_${name}_${suffix}.raw`, texels * stride, options);
        sources[name] = { bytes, stride };
      }),
    );
    packTexels(a, slice * texels, texels, sources, kind.a);
    packTexels(b, slice * texels, texels, sources, kind.b);
  };
  // A few at a time: browsers queue the rest anyway, and what waits holds memory.
  const waiting = Array.from({ length: slices }, (_, index) => index);
  const lane = async () => {
    while (waiting.length) await one(waiting.shift());
  };
  await Promise.all([lane(), lane(), lane()]);
  return [a, b];
}

// Distance and occupancy side by side, 2 bytes a cell.
async function packCells(folder, layout, options) {
  const channels = layout.gridChannels;
  const cells = new Uint8Array(2 * layout.cells ** 3);
  await Promise.all(
    ["distance_grid_8", "occupancy_grid_8"].map(async (name, byte) => {
      let to = byte;
      for (const [file, layers] of layout.gridLayers.entries()) {
        const suffix = String(file).padStart(3, "0");
        const count = layers * layout.cells ** 2;
        const bytes = await fetchArray(folder, `${name}_${suffix}.raw`, count * channels, options);
        // Grids padded to four channels repeat the value in each.
        for (let i = 0; i < count; i++, to += 2) cells[to] = bytes[i * channels];
      }
    }),
  );
  return cells;
}

// Places in the atlas, 4 bytes a block; those outside of it are refused, for a sampler would read what lies elsewhere.
async function packIndices(folder, layout, atlas, options) {
  const count = layout.blocks ** 3;
  const bytes = await fetchArray(folder, "sparse_grid_block_indices.raw", 3 * count, options);
  const sides = atlas.size.map((size) => size / (layout.block + 1));
  const indices = new Uint8Array(4 * count);
  for (let i = 0; i < count; i++) {
    const place = [bytes[3 * i], bytes[3 * i + 1], bytes[3 * i + 2]];
    if (place[0] !== 255 && place.some((at, axis) => at >= sides[axis])) {
      const error = `sparse_grid_block_indices.raw: block ${i} lies at ${place.join(", ")}, outside of the atlas of`;
      throw Object.assign(new Error(`${error} ${sides.join(" x ")} blocks: the file is damaged`), { told: true });
    }
    indices.set(place, 4 * i);
  }
  return indices;
}

async function pack({ folder, layout, atlas }, signal, progress) {
  const options = { signal, progress, preferGzip: layout.preferGzip };
  const texels = (atlas.size[0] * atlas.size[1] * atlas.size[2]) / atlas.slices;
  const [cells, indices, planes, blocks] = await Promise.all([
    packCells(folder, layout, options),
    packIndices(folder, layout, atlas, options),
    packSlices(folder, "plane", PLANES, 3, layout.triplane ** 2, options),
    packSlices(folder, "sparse_grid", BLOCKS, atlas.slices, texels, options),
  ]);
  return { cells, indices, planesA: planes[0], planesB: planes[1], blocksA: blocks[0], blocksB: blocks[1] };
}

const running = new Map();

self.onmessage = async ({ data }) => {
  if (data.cancel) {
    running.get(data.id)?.abort();
    return;
  }
  const controller = new AbortController();
  running.set(data.id, controller);
  try {
    let fetched = 0;
    const progress = (bytes) => {
      fetched += bytes;
      if (fetched > 1 << 18) {
        self.postMessage({ id: data.id, fetched });
        fetched = 0;
      }
    };
    const packed = await pack(data, controller.signal, progress);
    self.postMessage({ id: data.id, fetched, packed }, Object.values(packed).map((array) => array.buffer));
  } catch (error) {
    controller.abort(); // the files still on their way are of no use any more
    const told = error.name === "ViewerError" || error.told;
    const memory = error instanceof RangeError ? "there is not enough memory for this submodel" : null;
    self.postMessage({ id: data.id, error: told ? error.message : (memory ?? `${error.name}: ${error.message}`) });
  } finally {
    running.delete(data.id);
  }
};
