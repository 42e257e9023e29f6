// Cameras that a hand moves: around a point (orbit) or through the scene (fly), by mouse, keys or touch.
//
// World axes are those of test_frames.json: y up, a camera looks along its -z.

import { add, cross, dot, length, lookRotation, normalized, perspective, scaled, subtract } from "./matrix.js";

const UP = [0, 1, 0];
const STEEPEST = 0.995; // cosine to the vertical at which looking up or down ends
const KEYS = {
  KeyW: [0, 0, 1], KeyS: [0, 0, -1], KeyA: [-1, 0, 0], KeyD: [1, 0, 0], KeyE: [0, 1, 0], KeyQ: [0, -1, 0],
  ArrowUp: [0, 0, 1], ArrowDown: [0, 0, -1], ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0],
  PageUp: [0, 1, 0], PageDown: [0, -1, 0],
};

export class Camera {
  constructor(mode = "orbit") {
    this.mode = mode;
    this.position = [0, 0, 0];
    this.forward = [0, 0, -1];
    this.target = [0, 0, -1];
    this.fieldOfView = (40 * Math.PI) / 180;
    this.near = 0.2;
    this.speed = 0.5; // unit lengths a second
    this.keys = new Set();
    this.pointers = new Map();
    this.changed = true;
  }

  // Start from a pose; its own proportions give way to those of the canvas.
  start(pose) {
    const r = pose.rotation;
    this.position = [...pose.position];
    this.forward = normalized([-r[8], -r[9], -r[10]]);
    if (Math.abs(dot(this.forward, UP)) > STEEPEST) this.forward = normalized(add(this.forward, [0, 0, -0.2]));
    this.fieldOfView = 2 * Math.atan(1 / pose.projection[5]);
    this.near = pose.projection[14] / (pose.projection[10] - 1);
    // Turn around what is nearest to the scene's middle along the line of sight.
    const along = Math.max(0.3, -dot(this.position, this.forward));
    this.target = add(this.position, scaled(this.forward, along));
    this.changed = true;
  }

  pose(aspect) {
    return {
      position: [...this.position],
      rotation: lookRotation(this.forward, UP),
      projection: perspective(this.fieldOfView, aspect, this.near),
    };
  }

  setMode(mode) {
    if (mode === "orbit" && this.mode !== "orbit") {
      const along = Math.max(0.3, Math.min(2, length(subtract(this.target, this.position))));
      this.target = add(this.position, scaled(this.forward, along));
    }
    this.mode = mode;
  }

  // Turn by angles in radians: the gaze when flying, the camera around its target when orbiting.
  turn(right, up) {
    const [x, y, z] = this.forward;
    const pitch = Math.asin(Math.min(STEEPEST, Math.max(-STEEPEST, y))) + up;
    const yaw = Math.atan2(x, -z) + right;
    const limit = Math.asin(STEEPEST);
    const level = Math.cos(Math.min(limit, Math.max(-limit, pitch)));
    const height = Math.sin(Math.min(limit, Math.max(-limit, pitch)));
    const distance = length(subtract(this.target, this.position));
    this.forward = [Math.sin(yaw) * level, height, -Math.cos(yaw) * level];
    if (this.mode === "orbit") this.position = subtract(this.target, scaled(this.forward, distance));
    this.changed = true;
  }

  // Move by [right, up, forward] in unit lengths, in the camera's own directions.
  move([right, up, forward]) {
    const side = normalized(cross(this.forward, UP));
    const top = cross(side, this.forward);
    const by = add(add(scaled(side, right), scaled(top, up)), scaled(this.forward, forward));
    this.position = add(this.position, by);
    this.target = add(this.target, by);
    this.changed = true;
  }

  zoom(factor) {
    if (this.mode === "orbit") {
      const away = subtract(this.position, this.target);
      const distance = Math.min(20, Math.max(0.02, length(away) * factor));
      this.position = add(this.target, scaled(normalized(away), distance));
    } else {
      this.speed = Math.min(20, Math.max(0.01, this.speed / factor));
    }
    this.changed = true;
  }

  // Keys that are held; called once per frame.
  advance(seconds) {
    let by = [0, 0, 0];
    for (const key of this.keys) by = add(by, KEYS[key]);
    if (length(by) > 0) this.move(scaled(normalized(by), this.speed * (this.hasty ? 4 : 1) * seconds));
  }

  attach(canvas) {
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
      canvas.focus();
    });
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    }
    canvas.addEventListener("pointermove", (event) => this.drag(event, canvas.clientHeight));
    const wheel = (event) => {
      event.preventDefault();
      this.zoom(Math.exp(Math.max(-100, Math.min(100, event.deltaY)) * 0.002));
    };
    canvas.addEventListener("wheel", wheel, { passive: false });
    window.addEventListener("keydown", (event) => {
      this.hasty = event.shiftKey;
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.code in KEYS)) return;
      if (event.target.closest?.("input, select, button")) return;
      this.keys.add(event.code);
      event.preventDefault();
    });
    window.addEventListener("keyup", (event) => {
      this.hasty = event.shiftKey;
      this.keys.delete(event.code);
    });
    window.addEventListener("blur", () => this.keys.clear());
  }

  // One finger or the left button turns; two fingers, the right button or Shift move; two fingers apart zoom.
  drag(event, height) {
    const last = this.pointers.get(event.pointerId);
    if (!last) return;
    const now = [event.clientX, event.clientY];
    const by = [now[0] - last[0], now[1] - last[1]];
    const reach = this.mode === "orbit" ? length(subtract(this.target, this.position)) : 1;
    const perPixel = (2 * Math.tan(this.fieldOfView / 2) * reach) / height;
    if (this.pointers.size === 1) {
      if (event.buttons & 2 || event.buttons & 4 || event.shiftKey) {
        this.move([-by[0] * perPixel, by[1] * perPixel, 0]);
      } else {
        const angle = ((this.mode === "orbit" ? 2.5 : -1) * this.fieldOfView) / height;
        this.turn(this.mode === "orbit" ? -by[0] * angle : by[0] * angle, this.mode === "orbit" ? -by[1] * angle : -by[1] * angle);
      }
    } else if (this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const before = Math.hypot(last[0] - other[0], last[1] - other[1]);
      const after = Math.hypot(now[0] - other[0], now[1] - other[1]);
      this.move([(-by[0] * perPixel) / 2, (by[1] * perPixel) / 2, 0]);
      if (before > 0 && after > 0) {
        if (this.mode === "orbit") this.zoom(before / after);
        else this.move([0, 0, ((after - before) / height) * 2 * this.speed]);
      }
    }
    this.pointers.set(event.pointerId, now);
  }
}
