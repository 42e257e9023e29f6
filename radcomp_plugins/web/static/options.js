// What the URL asks for.

import { ViewerError } from "./errors.js";

function number(query, key, low, high, missing) {
  const text = query.get(key);
  if (text === null || text === "") return missing;
  const value = Number(text);
  if (!(value >= low && value <= high)) {
    throw new ViewerError(`the address says ${key}=${text}, expected a number from ${low} to ${high}`);
  }
  return value;
}

function choice(query, key, choices, missing) {
  const text = query.get(key);
  if (text === null || text === "") return missing;
  if (!choices.includes(text)) {
    throw new ViewerError(`the address says ${key}=${text}, expected ${choices.join(" or ")}`);
  }
  return text;
}

export function readOptions(location) {
  const query = new URLSearchParams(location.search);
  const asset = query.get("asset");
  if (!asset) {
    throw new ViewerError("Which asset? Give its folder's address as ...?asset=/path/to/asset, or run `radcomp serve`");
  }
  let folder;
  try {
    folder = new URL(asset.endsWith("/") ? asset : `${asset}/`, location.href);
  } catch {
    throw new ViewerError(`the address says asset=${asset}, which is no address`);
  }
  if (!["http:", "https:"].includes(folder.protocol)) {
    throw new ViewerError(
      `an asset has to come from a web server, not from ${folder.protocol} - run \`radcomp serve\` on its folder`,
    );
  }
  folder.search = folder.hash = "";
  // The file itself may be named, too: then nothing else is asked for to find it.
  const direct = folder.pathname.endsWith("/scene_params.json/");
  if (direct) folder.pathname = folder.pathname.replace(/scene_params\.json\/$/, "");
  const size = query.get("size")?.match(/^(\d{1,4})[,x](\d{1,4})$/);
  if (query.get("size") && !size) throw new ViewerError(`the address says size=${query.get("size")}, expected 640x360`);
  const background = query.get("background");
  if (background && !/^[0-9a-f]{6}$/i.test(background)) {
    throw new ViewerError(`the address says background=${background}, expected six hexadecimal digits like 808080`);
  }
  return {
    asset: folder.href,
    direct: direct || /\/sm_\d{3}\/$/.test(folder.pathname),
    size: size ? [Number(size[1]), Number(size[2])] : null,
    frame: Math.floor(number(query, "pose", 0, 1e6, 0)),
    mode: choice(query, "mode", ["orbit", "fly"], null),
    adaptive: choice(query, "quality", ["adaptive", "reference"], "adaptive") === "adaptive",
    framesPerSecond: number(query, "fps", 1, 240, 30),
    memory: number(query, "memory", 0.01, 65536, 1024) * 2 ** 20,
    fadeMs: number(query, "fade", 0, 10000, 500),
    near: number(query, "near", 1e-4, 10, null),
    fieldOfView: number(query, "fov", 1, 170, null),
    panel: choice(query, "panel", ["on", "off"], "on") === "on",
    loop: choice(query, "loop", ["on", "off"], "on") === "on",
    background: background ? [0, 2, 4].map((at) => parseInt(background.slice(at, at + 2), 16) / 255) : null,
  };
}
