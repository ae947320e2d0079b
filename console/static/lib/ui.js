// What every module draws with: Preact through htm (no build step), signals, hooks. Text is escaped by Preact; nothing here
// takes HTML from data.
import { h, render, Component, Fragment } from "../vendor/preact.js";
import htm from "../vendor/htm.js";
export { useEffect, useLayoutEffect, useMemo, useRef, useState, useCallback } from "../vendor/hooks.js";
export { signal, computed, effect, batch, useSignal, useComputed, useSignalEffect } from "../vendor/signals.js";
export const html = htm.bind(h);
export { render, Component, Fragment };
