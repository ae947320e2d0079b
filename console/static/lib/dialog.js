// What stands before the page until it is closed. The browser keeps the focus in it, gives it back, and closes it with Escape; of
// the page's keys none is in force (lib/keys.js).
import { html, useLayoutEffect, useRef } from "./ui.js";

export function Dialog({ label, onClose, children }) {
  const box = useRef(null);
  useLayoutEffect(() => {
    const dialog = box.current;
    dialog.showModal();
    return () => dialog.close();
  }, []);
  // A press beside it, not a click: who marks a text may let go of it there.
  return html`<dialog ref=${box} class="veil" aria-label=${label} onCancel=${(e) => { e.preventDefault(); onClose(); }}
    onMouseDown=${(e) => { if (e.target === box.current) onClose(); }}>${children}</dialog>`;
}
