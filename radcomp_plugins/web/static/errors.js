// What can go wrong outside of this code, told to the user in one line on the page.

export class ViewerError extends Error {
  constructor(message) {
    super(message);
    this.name = "ViewerError";
  }
}

// An error that ends the viewer covers the page; a lesser one is a line at its foot that goes away.
export function showError(error) {
  const box = document.getElementById("error");
  box.textContent = error instanceof Error ? error.message : String(error);
  box.hidden = false;
}

export function hideError() {
  document.getElementById("error").hidden = true;
}

export function showNotice(text, seconds = 8) {
  const box = document.getElementById("notice");
  box.textContent = text;
  box.hidden = false;
  clearTimeout(showNotice.timer);
  if (seconds > 0) showNotice.timer = setTimeout(() => (box.hidden = true), 1000 * seconds);
}

export function hideNotice() {
  document.getElementById("notice").hidden = true;
}
