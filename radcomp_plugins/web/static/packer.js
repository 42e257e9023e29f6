// The near side of pack.worker.js: one promise per submodel, with progress, that can be given up.

import { ViewerError } from "./errors.js";

export class Packer {
  constructor() {
    this.worker = new Worker(new URL("./pack.worker.js", import.meta.url), { type: "module" });
    this.jobs = new Map();
    this.next = 0;
    this.bytes = 0; // fetched in all, as they came
    this.worker.onmessage = ({ data }) => this.receive(data);
    this.worker.onerror = (event) => {
      event.preventDefault();
      const error = new ViewerError(`the viewer's own files are not complete: ${event.message || "no pack.worker.js"}`);
      for (const job of this.jobs.values()) job.reject(error);
      this.jobs.clear();
    };
  }

  receive({ id, fetched, packed, error }) {
    const job = this.jobs.get(id);
    if (fetched) {
      this.bytes += fetched;
      job?.progress(fetched);
    }
    if (!job || (!packed && error === undefined)) return;
    this.jobs.delete(id);
    if (packed) job.resolve(packed);
    else job.reject(new ViewerError(error));
  }

  // The packed arrays of a submodel, and a function that gives the job up.
  pack(folder, layout, atlas, progress = () => {}) {
    const id = this.next++;
    const promise = new Promise((resolve, reject) => this.jobs.set(id, { resolve, reject, progress }));
    this.worker.postMessage({ id, folder, layout, atlas });
    const cancel = () => {
      const job = this.jobs.get(id);
      if (!job) return;
      this.jobs.delete(id);
      this.worker.postMessage({ id, cancel: true });
      job.reject(Object.assign(new Error("given up"), { name: "AbortError" }));
    };
    return { promise, cancel };
  }
}
