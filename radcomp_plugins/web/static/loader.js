// Fetches an asset's files from any static host: as they are, or as the .gz beside them, and checks their sizes.
//
// An asset has X.raw.gz on disk. A server that knows (radcomp serve) answers X.raw with that file and a header that
// makes the browser decompress it; a plain one has X.raw.gz only, which is decompressed here. Some hosts decompress
// .gz files unasked, so what came is judged by its bytes and not by its name.

import { ViewerError } from "./errors.js";

const RETRIES = 4;

const fileName = (url) => new URL(url).pathname.split("/").slice(-2).join("/");
const isGzip = (bytes) => bytes.length >= 18 && bytes[0] === 0x1f && bytes[1] === 0x8b;

async function request(url, signal) {
  for (let attempt = 0; ; attempt++) {
    let answer;
    try {
      answer = await fetch(url, { signal, credentials: "same-origin" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ViewerError(`${fileName(url)} could not be fetched: the server does not answer or refuses this page`);
    }
    // Busy hosts say so; asking again a little later is what they want.
    if ((answer.status === 429 || answer.status === 503) && attempt < RETRIES) {
      await new Promise((resolve) => setTimeout(resolve, 250 * 2 ** attempt));
      continue;
    }
    return answer;
  }
}

// All bytes of an answer; `progress` is told of each piece, and an answer longer than `limit` is cut off.
async function readBody(answer, url, limit, progress) {
  const reader = answer.body.getReader();
  const pieces = [];
  let total = 0;
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ViewerError(`${fileName(url)} broke off after ${total} bytes: the connection was lost, reload the page`);
    }
    if (piece.done) break;
    total += piece.value.length;
    progress?.(piece.value.length);
    if (total > limit) {
      await reader.cancel();
      const told = `${fileName(url)} has more than the ${limit} bytes expected: the file is damaged`;
      throw Object.assign(new ViewerError(told), { tooLong: true });
    }
    pieces.push(piece.value);
  }
  const bytes = new Uint8Array(total);
  let offset = 0;
  for (const piece of pieces) {
    bytes.set(piece, offset);
    offset += piece.length;
  }
  return bytes;
}

// What gzip bytes hold; null where they are none, in spite of how they begin.
async function gunzip(bytes, url, limit) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  try {
    return await readBody(new Response(stream), url, limit);
  } catch (error) {
    if (error instanceof ViewerError && error.tooLong) throw error;
    return null;
  }
}

// Files may come compressed or not. Textures that are not may begin as gzip does, if hardly ever.
async function unpack(bytes, url, limit, size) {
  if (!isGzip(bytes)) return bytes;
  const held = await gunzip(bytes, url, limit);
  if (held && (size < 0 || held.length === size || bytes.length !== size)) return held;
  if (bytes.length === size) return bytes;
  throw new ViewerError(`${fileName(url)} is damaged: it does not decompress; export or copy the asset again`);
}

// The bytes of the first of `urls` that exists, decompressed where they are gzip and `size` does not say otherwise.
async function fetchFirst(urls, limit, size, { signal, progress } = {}) {
  const refused = [];
  for (const url of urls) {
    const answer = await request(url, signal);
    if (!answer.ok) {
      refused.push(`${answer.status}`);
      continue;
    }
    // Compressed bytes are never much longer than what they hold.
    const bytes = await readBody(answer, url, limit + 4096 + limit / 512, progress);
    return await unpack(bytes, url, limit, size);
  }
  throw new ViewerError(`${fileName(urls[0])} is missing (HTTP ${refused.join(", ")}): the asset is not complete`);
}

// A file of exactly `size` bytes. `name` has no .gz; `preferGzip` says which of the two names to try first.
export async function fetchArray(folder, name, size, options = {}) {
  const url = new URL(name, folder).href;
  const urls = options.preferGzip === false ? [url, `${url}.gz`] : [`${url}.gz`, url];
  const bytes = await fetchFirst(urls, size, size, options);
  if (bytes.length !== size) {
    throw new ViewerError(
      `${fileName(url)} has ${bytes.length} bytes, scene_params.json makes it ${size}: ` +
        "one of the two is damaged; export or copy the asset again",
    );
  }
  return bytes;
}

// A JSON file; `name` is tried first and then with .gz, or the other way round for large ones.
export async function fetchJson(folder, name, options = {}) {
  const limit = options.limit ?? 64 * 2 ** 20;
  const url = new URL(name, folder).href;
  const urls = options.preferGzip ? [`${url}.gz`, url] : [url, ...(options.plainOnly ? [] : [`${url}.gz`])];
  const bytes = await fetchFirst(urls, limit, -1, options);
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    throw new ViewerError(`${fileName(url)} is not JSON: the file is damaged, or the address is not an asset's`);
  }
}
