// Which submodel is drawn, which ones are on the graphics card, and which one comes next.
//
// The submodel whose centre is nearest to the camera draws. Until it is there the one before goes on drawing; then the
// one fades into the other. When nothing else is to be fetched, the one that the camera moves towards is. Those used
// longest ago are dropped when all together take more than a given memory.

import { ViewerError } from "./errors.js";
import { centre, folderName, nearest, parseAtlas } from "./scene.js";
import { fetchJson } from "./loader.js";
import { checkLimits, createTextures, deleteTextures, textureBytes } from "./textures.js";

const LOOK_AHEAD_SECONDS = [1, 3, 8, 20]; // what is needed sooner is fetched sooner; a room's submodel takes seconds
const MARGIN = 0.04; // of a cell: how much nearer another submodel has to be
const RETRY_MS = 20000;

export class Submodels {
  // `firstFolder`: the folder that scene_params.json was read from; the others lie beside it. `pause(bytes)` is awaited
  // between pieces of an upload. `told(message)` hears of submodels that cannot be had.
  constructor({ layout, firstFolder, packer, memory, fadeMs, pause, told }) {
    Object.assign(this, { layout, firstFolder, packer, memory, fadeMs, pause, told });
    this.entries = new Map(); // position in layout.alive -> {state, textures, used, cancel, ...}
    this.current = -1;
    this.previous = -1;
    this.target = -1;
    this.fadeStart = 0;
    this.switches = 0;
    this.evictions = 0;
    this.loading = { bytes: 0, submodel: -1 };
    this.generation = 0;
  }

  folder(position) {
    if (this.layout.single) return this.firstFolder;
    return new URL(`../${folderName(this.layout.alive[position])}`, this.firstFolder).href;
  }

  // To be called before each frame, and whenever a load ended. `velocity` in unit lengths a second.
  update(gl, position, velocity, now, margin = MARGIN) {
    const cell = 2 / this.layout.perAxis;
    const wanted = nearest(this.layout, position, this.target, margin * cell);
    this.target = wanted;
    const entry = this.entries.get(wanted);
    if (entry?.state === "ready") {
      entry.used = now;
      if (this.current !== wanted) this.switchTo(wanted, now);
    } else if (!entry || (entry.state === "failed" && now - entry.used > RETRY_MS)) {
      // What is on its way is not what is needed now.
      for (const other of this.entries.values()) if (other.state === "loading") other.cancel();
      this.load(gl, wanted, now);
    } else if (entry.state === "failed" && this.current < 0) {
      throw new ViewerError(entry.message);
    }
    if (this.previous >= 0 && now - this.fadeStart >= this.fadeMs) this.previous = -1;
    if (![...this.entries.values()].some((other) => other.state === "loading")) this.prefetch(gl, position, velocity, now);
    this.evict(gl);
  }

  switchTo(wanted, now) {
    this.previous = this.last = this.entries.get(this.current)?.state === "ready" ? this.current : -1;
    this.current = wanted;
    this.fadeStart = now;
    this.switches++;
  }

  prefetch(gl, position, velocity, now) {
    // One more that does not fit would be dropped again, and fetched again, and so on.
    const current = this.entries.get(this.current)?.bytes ?? 0;
    if (this.bytes + current > this.memory) return;
    for (const seconds of LOOK_AHEAD_SECONDS) {
      const ahead = position.map((value, axis) => value + seconds * velocity[axis]);
      const next = nearest(this.layout, ahead);
      if (next === this.target || this.entries.has(next)) continue;
      this.load(gl, next, now);
      return;
    }
  }

  // Submodels to draw, the first one opaque.
  layers(now, fade = true) {
    const layers = this.layersOf(this.current);
    const below = this.layersOf(this.previous);
    if (!fade || !layers.length || !below.length || this.fadeMs <= 0) return layers;
    const t = Math.min(1, Math.max(0, (now - this.fadeStart) / this.fadeMs));
    return [...below, { ...layers[0], opacity: t * t * (3 - 2 * t) }];
  }

  layersOf(index) {
    const entry = this.entries.get(index);
    return entry?.state === "ready" ? [{ submodel: index, textures: entry.textures, opacity: 1 }] : [];
  }

  get fading() {
    return this.previous >= 0;
  }

  get bytes() {
    let sum = 0;
    for (const entry of this.entries.values()) sum += entry.bytes ?? 0;
    return sum;
  }

  async load(gl, index, now) {
    const entry = { state: "loading", used: now, bytes: 0, cancel: () => {} };
    const generation = this.generation;
    this.entries.set(index, entry);
    this.loading = { bytes: 0, submodel: index };
    const over = () => entry.cancelled || generation !== this.generation || gl.isContextLost();
    entry.cancel = () => {
      entry.cancelled = true;
      entry.give_up?.();
      if (this.entries.get(index) === entry) this.entries.delete(index);
    };
    try {
      const folder = this.folder(index);
      const params = await fetchJson(folder, "scene_params.json", { plainOnly: true });
      const atlas = parseAtlas(params, this.layout);
      checkLimits(gl, this.layout, atlas);
      if (over()) return;
      const progress = (bytes) => (this.loading.bytes += bytes);
      const job = this.packer.pack(folder, this.layout, atlas, progress);
      entry.give_up = job.cancel;
      const packed = await job.promise;
      if (over()) return;
      // Counted, and room made for, before it is taken.
      entry.bytes = textureBytes(this.layout, atlas);
      this.evict(gl);
      const textures = await createTextures(gl, this.layout, atlas, packed, this.pause);
      if (over()) {
        deleteTextures(gl, textures);
        return;
      }
      Object.assign(entry, { state: "ready", textures });
    } catch (error) {
      if (error.name === "AbortError" || over()) return;
      if (!(error instanceof ViewerError)) throw error;
      const cell = this.layout.single ? "" : `submodel ${this.layout.alive[index]}: `;
      Object.assign(entry, { state: "failed", bytes: 0, message: `${cell}${error.message}`, used: performance.now() });
      this.told(entry.message);
    } finally {
      if (this.loading.submodel === index) this.loading = { bytes: 0, submodel: -1 };
    }
  }

  evict(gl) {
    const kept = [this.current, this.previous, this.target];
    const idle = [...this.entries].filter(([index, entry]) => entry.state === "ready" && !kept.includes(index));
    idle.sort((a, b) => a[1].used - b[1].used);
    while (this.bytes > this.memory && idle.length) {
      const [index, entry] = idle.shift();
      deleteTextures(gl, entry.textures);
      this.entries.delete(index);
      this.evictions++;
    }
  }

  // After a lost context nothing is on the graphics card any more.
  forget() {
    this.generation++;
    for (const entry of this.entries.values()) if (entry.state === "loading") entry.cancel();
    this.entries.clear();
    this.current = this.previous = this.target = -1;
  }

  ready() {
    return this.current >= 0 && this.current === this.target && this.entries.get(this.current)?.state === "ready";
  }

  describe() {
    return [...this.entries].map(([index, entry]) => ({ cell: this.layout.alive[index], state: entry.state }));
  }

  centreOfFirst() {
    return centre(this.layout, 0);
  }
}
