// Keys: a screen says which it has with useKeys, `?` lists them, and none is taken while somebody types.
import { signal, useLayoutEffect } from "./ui.js";

const bound = signal([]);
export const keysInForce = bound;

const pressed = (target) => target.closest?.("a[href], button, summary"); // by Enter, where it has the focus
const typing = (target) => target.closest?.("input, textarea, select, [contenteditable]");

// In force with the drawing itself, not a frame later: who types fast means what is on the page.
// keys: [{key, does, run}], `key` as KeyboardEvent says it, "Ctrl+k" for one with Ctrl or Cmd, "g f" for two in a row.
export function useKeys(keys, of = "Everywhere") {
  useLayoutEffect(() => {
    const mine = { of, keys };
    bound.value = [...bound.value, mine];
    return () => { bound.value = bound.value.filter((one) => one !== mine); };
  });
}

let first = null;
addEventListener("keydown", (event) => {
  if (event.altKey || event.isComposing) return;
  const control = event.ctrlKey || event.metaKey;
  const name = control ? `Ctrl+${event.key.toLowerCase()}` : event.key;
  if (document.querySelector("dialog[open]")) { // what stands before the page has keys of its own
    if (name === "Ctrl+k") event.preventDefault();
    return;
  }
  if (typing(event.target) && !control && event.key !== "Escape") return;
  if (name === "Enter" && pressed(event.target)) return;
  const pair = first && performance.now() - first.at < 1200 ? `${first.key} ${name}` : null;
  first = { key: name, at: performance.now() };
  // Two in a row mean what they say together, also where a screen has a key for the second alone.
  for (const key of pair ? [pair, name] : [name]) {
    for (const { keys } of [...bound.value].reverse()) {
      const found = keys.find((one) => one.key === key);
      if (!found || found.run(event) === false) continue;
      event.preventDefault();
      first = null;
      return;
    }
  }
});
