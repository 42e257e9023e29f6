// A submodel's textures on the graphics card.

import { ViewerError } from "./errors.js";

const UNITS = ["planesA", "planesB", "blocksA", "blocksB", "cells", "indices"];
const UPLOAD_BYTES = 4 * 2 ** 20; // handed over at once; more would hold up a frame

function formats(gl, layout, atlas) {
  const T = layout.triplane;
  const plane = [gl.TEXTURE_2D_ARRAY, gl.RGBA8, gl.RGBA, gl.LINEAR, [T, T, 3], 4];
  const block = [gl.TEXTURE_3D, gl.RGBA8, gl.RGBA, gl.LINEAR, atlas.size, 4];
  const cube = (side) => [side, side, side];
  return {
    planesA: plane,
    planesB: plane,
    blocksA: block,
    blocksB: block,
    cells: [gl.TEXTURE_3D, gl.RG8UI, gl.RG_INTEGER, gl.NEAREST, cube(layout.cells), 2],
    indices: [gl.TEXTURE_3D, gl.RGBA8UI, gl.RGBA_INTEGER, gl.NEAREST, cube(layout.blocks), 4],
  };
}

// Bytes that a submodel takes on the graphics card, known before anything is fetched.
export function textureBytes(layout, atlas) {
  const texels = atlas.size[0] * atlas.size[1] * atlas.size[2];
  return 24 * layout.triplane ** 2 + 8 * texels + 2 * layout.cells ** 3 + 4 * layout.blocks ** 3;
}

// What this machine cannot hold is refused before it is fetched.
export function checkLimits(gl, layout, atlas) {
  const volume = Math.max(...atlas.size, layout.cells, layout.blocks);
  const limits = [
    [layout.triplane, gl.getParameter(gl.MAX_TEXTURE_SIZE), "planes"],
    [volume, gl.getParameter(gl.MAX_3D_TEXTURE_SIZE), "blocks"],
  ];
  for (const [side, limit, what] of limits) {
    if (side > limit) {
      throw new ViewerError(`the ${what} of this scene are ${side} texels wide, this machine's graphics hold ${limit}`);
    }
  }
}

// Uploads a submodel in pieces; `pause` is awaited between them. The result is drawn with by Renderer.
export async function createTextures(gl, layout, atlas, packed, pause = async () => {}) {
  const textures = { atlas, bytes: textureBytes(layout, atlas), units: [] };
  const table = formats(gl, layout, atlas);
  for (const name of UNITS) {
    const [target, internal, format, filter, size, channels] = table[name];
    const texture = gl.createTexture();
    textures.units.push({ name, target, texture });
    gl.bindTexture(target, texture);
    gl.texStorage3D(target, 1, internal, ...size);
    gl.texParameteri(target, gl.TEXTURE_MIN_FILTER, filter);
    gl.texParameteri(target, gl.TEXTURE_MAG_FILTER, filter);
    for (const wrap of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T, gl.TEXTURE_WRAP_R]) {
      gl.texParameteri(target, wrap, gl.CLAMP_TO_EDGE);
    }
    const error = gl.getError();
    if (error !== gl.NO_ERROR && error !== gl.CONTEXT_LOST_WEBGL) {
      deleteTextures(gl, textures);
      const wants = Math.round(textures.bytes / 2 ** 20);
      throw new ViewerError(`the graphics card has no room for this submodel of ${wants} MiB: close other pages`);
    }
    const row = size[0] * channels;
    const rows = Math.max(1, Math.floor(UPLOAD_BYTES / row));
    for (let layer = 0; layer < size[2]; layer++) {
      for (let y = 0; y < size[1]; y += rows) {
        const count = Math.min(rows, size[1] - y);
        gl.bindTexture(target, texture);
        gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
        const from = (layer * size[1] + y) * row;
        gl.texSubImage3D(target, 0, 0, y, layer, size[0], count, 1, format, gl.UNSIGNED_BYTE, packed[name], from);
        await pause(count * row);
      }
    }
  }
  return textures;
}

export function bindTextures(gl, textures) {
  textures.units.forEach(({ target, texture }, unit) => {
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(target, texture);
  });
}

export function samplerUnits() {
  return UNITS.map((name, unit) => [`u${name[0].toUpperCase()}${name.slice(1)}`, unit]);
}

export function deleteTextures(gl, textures) {
  for (const { texture } of textures.units) gl.deleteTexture(texture);
  textures.units = [];
}
