// Keys: a screen says which it has with useKeys, `?` lists them, and none is taken while somebody types.
import { signal, useLayoutEffect } from "./ui.js";

const bound = signal([]);
export const keysInForce = bound;

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
  if (typing(event.target) && !control && event.key !== "Escape") return;
  const pair = first && performance.now() - first.at < 1200 ? `${first.key} ${name}` : null;
  first = { key: name, at: performance.now() };
  for (const { keys } of [...bound.value].reverse()) {
    const found = keys.find((one) => one.key === pair) ?? keys.find((one) => one.key === name);
    if (!found) continue;
    if (found.run(event) === false) continue;
    event.preventDefault();
    first = null;
    return;
  }
});
