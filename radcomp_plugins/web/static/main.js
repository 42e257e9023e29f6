// Puts the viewer together: opens the asset that the URL names, draws, and answers to the hand.

import { Camera } from "./camera.js";
import { hideError, hideNotice, showError, showNotice, ViewerError } from "./errors.js";
import { fetchJson } from "./loader.js";
import { perspective, lookRotation, scaled, subtract } from "./matrix.js";
import { parseNetwork } from "./network.js";
import { Packer } from "./packer.js";
import { Panel } from "./panel.js";
import { Quality, REFERENCE } from "./quality.js";
import { createContext, Renderer } from "./renderer.js";
import { folderName, parseFrames, parseLayout } from "./scene.js";
import { Submodels } from "./submodels.js";
import { readOptions } from "./options.js";

// Folder and content of the scene_params.json to begin with: the address is that of a scene or of one submodel.
async function findScene(folder, direct) {
  const params = (url) => fetchJson(url, "scene_params.json", { plainOnly: true });
  if (direct) return { folder, params: await params(folder) };
  // Our exports list their files; other hosts' folders are tried for what they usually hold.
  const missing = (error) => {
    if (!(error instanceof ViewerError) || !error.message.includes("is missing")) throw error;
    return null;
  };
  const manifest = await fetchJson(folder, "manifest.json", { plainOnly: true }).catch(missing);
  const names = Object.keys(manifest?.files ?? {}).filter((name) => /^(sm_\d{3}\/)?scene_params\.json$/.test(name));
  const inside = names.length ? [names.sort()[0].replace("scene_params.json", "")] : ["", folderName(0)];
  for (const name of inside) {
    const url = new URL(name, folder).href;
    const found = await params(url).catch(missing);
    if (found) return { folder: url, params: found };
  }
  throw new ViewerError(`There is no SMERF asset at ${folder}: no scene_params.json in it, nor in sm_000 below it`);
}

class Viewer {
  constructor(options) {
    this.options = options;
    this.canvas = document.getElementById("view");
    this.camera = new Camera("orbit");
    this.quality = new Quality(options.framesPerSecond, options.adaptive);
    this.packer = new Packer();
    this.frames = [];
    this.frame = 0;
    this.fixedPose = null;
    this.running = options.loop;
    this.drawn = { quality: REFERENCE, frames: 0 };
    this.waiting = [];
    this.jsonBytes = 0;
    const toggle = (id) => (document.getElementById(id).hidden = !document.getElementById(id).hidden);
    this.panel = new Panel({
      panel: () => this.panel.toggle(),
      help: () => toggle("help"),
      mode: () => this.camera.setMode(this.camera.mode === "orbit" ? "fly" : "orbit"),
      next: () => this.goTo(this.frame + 1),
      back: () => this.goTo(this.frame - 1),
      reset: () => this.goTo(this.options.frame),
    });
    this.panel.root.hidden = !options.panel;
    document.getElementById("show-panel").hidden = !options.panel;
  }

  async open() {
    this.gl = createContext(this.canvas);
    this.resize();
    this.canvas.addEventListener("webglcontextlost", (event) => this.lost(event));
    this.canvas.addEventListener("webglcontextrestored", () => this.restored());
    const progress = (bytes) => (this.jsonBytes += bytes);
    const { folder, params } = await findScene(this.options.asset, this.options.direct);
    this.layout = parseLayout(params);
    const [network, frames] = await Promise.all([
      fetchJson(folder, "deferred_mlp.json", { preferGzip: this.layout.preferGzip, limit: 2 ** 30, progress }),
      // An asset may come without poses; then the camera starts in the middle of a submodel.
      fetchJson(folder, "test_frames.json", { plainOnly: true, progress }).then(parseFrames, (error) => {
        if (!(error instanceof ViewerError) || !error.message.includes("is missing")) throw error;
        return [];
      }),
    ]);
    this.frames = frames;
    this.network = parseNetwork(network, this.layout);
    this.makeRenderer();
    this.submodels = new Submodels({
      layout: this.layout,
      firstFolder: folder,
      packer: this.packer,
      memory: this.options.memory,
      fadeMs: this.options.fadeMs,
      pause: (bytes) => this.pauseUpload(bytes),
      told: (message) => (this.submodels.current >= 0 ? showNotice(message) : this.fail(new ViewerError(message))),
    });
    this.camera.setMode(this.options.mode ?? (this.layout.alive.length > 1 ? "fly" : "orbit"));
    this.camera.attach(this.canvas);
    this.goTo(this.options.frame);
    window.addEventListener("resize", () => this.resize());
    this.last = performance.now();
    requestAnimationFrame((now) => this.tick(now));
    await this.settled();
  }

  makeRenderer() {
    this.renderer = new Renderer(this.gl, this.layout, this.network, this.options.background ?? this.layout.background);
  }

  resize() {
    const fixed = this.options.size;
    if (fixed) {
      this.canvas.style.width = `${fixed[0]}px`;
      this.canvas.style.height = `${fixed[1]}px`;
    }
    const ratio = window.devicePixelRatio || 1;
    const size = fixed ?? [this.canvas.clientWidth * ratio, this.canvas.clientHeight * ratio];
    [this.canvas.width, this.canvas.height] = size.map((side) => Math.max(1, Math.round(side)));
    this.camera.changed = true;
  }

  // A camera of test_frames.json, or the middle of a submodel where there are none.
  goTo(index) {
    const count = this.frames.length;
    this.fixedPose = null;
    if (count) {
      this.frame = ((index % count) + count) % count;
      this.camera.start(this.frames[this.frame]);
    } else {
      this.camera.start({
        position: this.submodels.centreOfFirst(),
        rotation: lookRotation([0, 0, -1], [0, 1, 0]),
        projection: perspective((40 * Math.PI) / 180, 1, this.options.near ?? 0.2),
      });
    }
    if (this.options.near) this.camera.near = this.options.near;
    if (this.options.fieldOfView) this.camera.fieldOfView = (this.options.fieldOfView * Math.PI) / 180;
  }

  pose() {
    return this.fixedPose ?? this.camera.pose(this.canvas.width / this.canvas.height);
  }

  tick(now) {
    requestAnimationFrame((next) => this.tick(next));
    if (this.gl.isContextLost() || this.failed) return;
    try {
      this.advance(now);
    } catch (error) {
      this.fail(error);
    }
  }

  advance(now) {
    const seconds = Math.min(0.2, Math.max(1e-3, (now - this.last) / 1000));
    const elapsed = now - this.last;
    this.last = now;
    const before = this.camera.position;
    this.camera.advance(seconds);
    const pose = this.pose();
    const moved = this.camera.changed;
    this.camera.changed = false;
    const step = subtract(pose.position, this.lastPosition ?? pose.position);
    this.lastPosition = pose.position;
    // Smoothed over about a third of a second: a hand does not move evenly.
    const velocity = scaled(step, 1 / seconds);
    const share = Math.min(1, 3 * seconds);
    this.velocity = (this.velocity ?? [0, 0, 0]).map((value, axis) => value + share * (velocity[axis] - value));
    const margin = this.fixedPose || before === null ? 0 : undefined;
    this.submodels.update(this.gl, pose.position, this.velocity, now, margin);
    this.settle();
    if (this.running) this.drawIfNeeded(now, elapsed, pose, moved);
    if (now - (this.shown ?? 0) > 100) {
      this.shown = now;
      this.showPanel();
    }
  }

  drawIfNeeded(now, elapsed, pose, moved) {
    const layers = this.submodels.layers(now);
    if (!layers.length) return;
    const switched = this.drawn.submodel !== this.submodels.current;
    const active = moved || this.submodels.fading || switched;
    if (active) {
      if (this.active) {
        this.quality.measured(elapsed);
        this.panel.frame(elapsed);
      }
      this.restingSince = now;
      this.sharp = false;
      this.drawFrame(pose, layers, this.quality.moving());
    } else if (!this.sharp && this.quality.rested(now - this.restingSince)) {
      this.drawFrame(pose, layers, this.quality.still());
      this.sharp = true;
    }
    this.active = active;
  }

  drawFrame(pose, layers, quality) {
    this.renderer.draw(pose, layers, quality);
    this.opacity = layers.at(-1).opacity;
    this.drawn = { quality, frames: this.drawn.frames + 1, submodel: this.submodels.current };
    if (this.drawn.frames === 1) this.firstPicture = { ms: performance.now(), bytes: this.bytes };
  }

  get bytes() {
    return this.packer.bytes + this.jsonBytes;
  }

  showPanel() {
    this.panel.show({
      submodels: this.submodels,
      layout: this.layout,
      quality: this.drawn.quality,
      size: [this.canvas.width, this.canvas.height],
      bytes: this.bytes,
      mode: this.camera.mode,
      fresh: this.submodels.current < 0,
    });
  }

  // Between pieces of an upload frames go on; before the first picture there is nothing to hold up.
  async pauseUpload(bytes) {
    this.uploaded = (this.uploaded ?? 0) + bytes;
    const piece = this.submodels.current >= 0 ? 2 ** 20 : 2 ** 25;
    if (this.uploaded < piece) return;
    this.uploaded = 0;
    await new Promise((resolve) => setTimeout(resolve, 0));
  }

  // Resolves when the submodel of the present pose is there and nothing fades any more.
  settled() {
    return new Promise((resolve, reject) => this.waiting.push({ resolve, reject }));
  }

  settle() {
    if (!this.submodels.ready() || this.submodels.fading) return;
    for (const { resolve } of this.waiting.splice(0)) resolve();
  }

  fail(error) {
    this.failed = true;
    document.getElementById("progress").hidden = true;
    showError(error);
    for (const { reject } of this.waiting.splice(0)) reject(error);
    if (!(error instanceof ViewerError)) throw error;
  }

  lost(event) {
    event.preventDefault(); // or it would never be restored
    this.submodels?.forget();
    showNotice("The graphics context was lost: the driver was reset or is short of memory. Waiting for it to return.", 0);
  }

  restored() {
    hideNotice();
    if (this.failed || !this.submodels) return;
    try {
      this.makeRenderer();
    } catch (error) {
      this.fail(error);
      return;
    }
    this.camera.changed = true;
    this.drawn.submodel = undefined;
  }

  // One picture at full resolution and with plain steps, now.
  renderOnce() {
    const layers = this.submodels.layers(performance.now(), false);
    if (!layers.length) throw new ViewerError("nothing is loaded yet: await radcomp.settled() first");
    this.drawFrame(this.pose(), layers, REFERENCE);
  }

  // As renderOnce() in the middle of a switch, with the submodel before the present one shining through.
  renderMixed(opacity) {
    const [present] = this.submodels.layers(performance.now(), false);
    const before = this.submodels.layersOf(this.submodels.last)[0];
    this.drawFrame(this.pose(), [before, { ...present, opacity }], REFERENCE);
  }

  // RGBA bytes of what renderOnce() drew, bottom row first; in the same task, before the browser takes the picture.
  readPixels() {
    const { gl, canvas } = this;
    const pixels = new Uint8Array(4 * canvas.width * canvas.height);
    gl.readPixels(0, 0, canvas.width, canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    return pixels;
  }

  stats() {
    return {
      submodel: this.submodels?.current >= 0 ? this.layout.alive[this.submodels.current] : null,
      previous: this.submodels?.previous >= 0 ? this.layout.alive[this.submodels.previous] : null,
      submodels: this.submodels?.describe() ?? [],
      switches: this.submodels?.switches ?? 0,
      evictions: this.submodels?.evictions ?? 0,
      fading: this.submodels?.fading ?? false,
      opacity: this.opacity ?? null,
      textureBytes: this.submodels?.bytes ?? 0,
      fetchedBytes: this.bytes,
      frames: this.drawn.frames,
      firstPicture: this.firstPicture ?? null,
      frameMs: this.panel.frameTime(),
      quality: this.drawn.quality,
      size: [this.canvas.width, this.canvas.height],
      heapBytes: performance.memory?.usedJSHeapSize ?? null,
    };
  }
}

function start() {
  let viewer = null;
  let ready;
  try {
    viewer = new Viewer(readOptions(window.location));
    ready = viewer.open();
  } catch (error) {
    ready = Promise.reject(error);
  }
  // For tests, and for pages that hold the viewer in a frame.
  window.radcomp = {
    ready,
    settled: () => viewer.settled(),
    frames: () => viewer.frames,
    setPose: (pose) => {
      viewer.fixedPose = typeof pose === "number" ? viewer.frames[pose] : pose;
      viewer.camera.changed = true;
    },
    clearPose: () => (viewer.fixedPose = null),
    setLoop: (running) => (viewer.running = running),
    renderOnce: () => viewer.renderOnce(),
    renderMixed: (opacity) => viewer.renderMixed(opacity),
    readPixels: () => viewer.readPixels(),
    stats: () => viewer.stats(),
  };
  ready.then(hideError, (error) => {
    if (!viewer?.failed) {
      document.getElementById("progress").hidden = true;
      if (viewer) viewer.failed = true;
      showError(error);
    }
    if (!(error instanceof ViewerError)) console.error(error);
  });
}

start();
