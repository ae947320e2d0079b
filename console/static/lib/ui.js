// What every module draws with: Preact through htm (no build step), signals, hooks. Text is escaped by Preact; nothing here
// takes HTML from data.
import { h, render } from "../vendor/preact.js";
import { useEffect } from "../vendor/hooks.js";
import htm from "../vendor/htm.js";
export { useEffect, useLayoutEffect, useMemo, useRef, useState, useErrorBoundary } from "../vendor/hooks.js";
export { signal } from "../vendor/signals.js";
export const html = htm.bind(h);
export { render };

// Keeps in view what is chosen inside of a box, whenever one of these changes.
export function useInView(box, ...when) {
  useEffect(() => { box.current?.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" }); }, when);
}
