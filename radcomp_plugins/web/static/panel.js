// The small panel: what is being loaded, what a frame takes, what was fetched and what is held.

const MIB = 2 ** 20;

export class Panel {
  constructor(actions) {
    this.root = document.getElementById("panel");
    this.rows = {};
    for (const element of this.root.querySelectorAll("[data-row]")) this.rows[element.dataset.row] = element;
    this.progress = document.getElementById("progress");
    this.times = [];
    for (const button of document.querySelectorAll("[data-action]")) {
      button.addEventListener("click", () => {
        actions[button.dataset.action]();
        button.blur();
      });
    }
    window.addEventListener("keydown", (event) => {
      const action = { KeyP: "panel", KeyM: "mode", KeyN: "next", KeyB: "back", KeyR: "reset", KeyH: "help" }[event.code];
      if (action && !event.ctrlKey && !event.metaKey && !event.altKey) actions[action]();
    });
  }

  toggle() {
    this.root.hidden = !this.root.hidden;
  }

  frame(milliseconds) {
    this.times.push(milliseconds);
    if (this.times.length > 30) this.times.shift();
  }

  frameTime() {
    const sorted = [...this.times].sort((a, b) => a - b);
    return sorted.length ? sorted[Math.floor(sorted.length / 2)] : null;
  }

  show({ submodels, layout, quality, size, bytes, mode, fresh }) {
    const time = this.frameTime();
    const [width, height] = size.map((side) => Math.round(side * quality.scale));
    const held = submodels.describe().filter((entry) => entry.state === "ready");
    const cell = submodels.current >= 0 ? layout.alive[submodels.current] : "none";
    const next = submodels.loading.submodel;
    this.rows.frame.textContent = time === null ? "resting" : `${time.toFixed(1)} ms, ${(1000 / time).toFixed(0)} a second`;
    this.rows.size.textContent = `${width} x ${height}${quality.step > 1 ? `, steps x ${quality.step.toFixed(1)}` : ""}`;
    this.rows.submodel.textContent = `${cell}, ${layout.alive.length} in all`;
    this.rows.fetched.textContent = `${(bytes / MIB).toFixed(1)} MiB`;
    this.rows.memory.textContent = `${(submodels.bytes / MIB).toFixed(0)} of ${(submodels.memory / MIB).toFixed(0)} MiB, ${held.length} held`;
    this.rows.mode.textContent = mode;
    this.progress.hidden = next < 0;
    if (next >= 0) {
      const what = layout.alive.length > 1 ? `submodel ${layout.alive[next]}` : "scene";
      const mib = (submodels.loading.bytes / MIB).toFixed(1);
      this.progress.textContent = `${fresh ? "Loading" : "Fetching"} ${what}: ${mib} MiB`;
    }
  }
}
