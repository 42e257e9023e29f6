// Holds a frame rate: resolution first, then longer steps; and a full picture as soon as the camera rests.

const REFERENCE = { scale: 1, step: 1, hurry: false };
const SMALLEST_SCALE = 0.2;
const LONGEST_STEP = 2;
const REST_MS = 200; // without motion before a full picture is drawn
const LONGEST_STILL_MS = 500; // a full picture that would take longer is drawn at a lower resolution

export class Quality {
  constructor(framesPerSecond, adaptive = true) {
    this.target = 1000 / framesPerSecond;
    this.adaptive = adaptive;
    this.scale = 1;
    this.step = 1;
    this.frame = this.target; // ms, smoothed
    this.calm = 0; // frames since the last change
    this.patience = 20; // frames to wait before more is tried; doubles each time that this was too much
    this.raised = false;
  }

  // What a frame took that was drawn while moving.
  measured(milliseconds) {
    if (!this.adaptive) return;
    const ms = Math.min(milliseconds, 20 * this.target);
    this.frame += 0.25 * (ms - this.frame);
    this.calm++;
    if (this.frame > 1.15 * this.target && this.calm >= 3) {
      this.patience = this.raised ? Math.min(600, 2 * this.patience) : this.patience;
      this.change(Math.max(0.5, Math.sqrt(this.target / this.frame)));
      this.raised = false;
    } else if (this.frame < 1.05 * this.target && this.calm >= this.patience && (this.scale < 1 || this.step > 1)) {
      this.change(Math.min(1.25, Math.max(1.08, Math.sqrt(this.target / this.frame))));
      this.raised = true;
    } else if (this.raised && this.calm > 4 * this.patience) {
      this.raised = false;
      this.patience = 20;
    }
  }

  change(factor) {
    if (factor > 1 && this.step > 1) {
      this.step = Math.max(1, this.step / (factor * factor));
    } else {
      const scale = this.scale * factor;
      this.scale = Math.min(1, Math.max(SMALLEST_SCALE, scale));
      if (scale < SMALLEST_SCALE) this.step = Math.min(LONGEST_STEP, (this.step * SMALLEST_SCALE) / scale);
    }
    // What the next frames will take, so that this change is not made again before it shows.
    this.frame = Math.min(this.frame, this.target);
    this.calm = 0;
  }

  // For a frame while moving.
  moving() {
    if (!this.adaptive) return REFERENCE;
    return { scale: this.scale, step: this.step, hurry: this.scale < 1 };
  }

  // For the picture of a camera that rests.
  still() {
    if (!this.adaptive) return REFERENCE;
    const whole = (this.frame * this.step) / (this.scale * this.scale);
    const scale = Math.min(1, Math.max(this.scale, Math.sqrt(LONGEST_STILL_MS / whole)));
    return { ...REFERENCE, scale };
  }

  rested(milliseconds) {
    return milliseconds > REST_MS;
  }
}

export { REFERENCE };
