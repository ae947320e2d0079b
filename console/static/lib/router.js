// The whole state of a page is in its address: `place` holds it, `go` changes it, links are shared as they stand.
import { signal } from "./ui.js";

const left = new Map(); // of each path its newest address
const read = () => {
  left.set(location.pathname, location.pathname + location.search);
  return { path: location.pathname, query: new URLSearchParams(location.search) };
};
export const place = signal(read());

export function go(address, { replace = false } = {}) {
  if (address === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", address);
  place.value = read();
}

// A path as it was left, with its filter and what was chosen.
export const asLeft = (path) => left.get(path) ?? path;

// The present address with other values in its query; null takes one out.
export function withQuery(changes) {
  const query = new URLSearchParams(place.value.query);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === undefined || value === "") query.delete(name);
    else query.set(name, value);
  }
  const text = query.toString();
  return place.value.path + (text ? `?${text}` : "");
}

export function setQuery(changes, { replace = true } = {}) {
  go(withQuery(changes), { replace });
}

export const trajectoryPath = (uid) => `/trajectories/${encodeURIComponent(uid)}`;
export const trajectoryData = (uid) => `${trajectoryPath(uid)}.json`;
// The messages of a step of it, or its tokens; or of the last one: so who does not know its id asks for both beside each other.
export const stepData = (uid, step = "last", part = "messages") => `${trajectoryPath(uid)}/steps/${encodeURIComponent(step)}/${part}.json`;
export const groupPath = (run, group) => `/groups/${encodeURIComponent(run)}/${encodeURIComponent(group)}`;
export const groupsPath = (filter) => `/groups${filter ? `?q=${encodeURIComponent(filter)}` : ""}`;
export const listPath = (filter) => `/trajectories${filter ? `?q=${encodeURIComponent(filter)}` : ""}`;
// An address with the words that are said; what the server puts into a page's head is written the same (console/opening.py).
export function withWords(path, words) {
  const said = Object.entries(words).filter(([, v]) => v !== undefined && v !== null && v !== "");
  return said.length ? `${path}?${new URLSearchParams(said)}` : path;
}
// A table of a screen as a statement; words say of what it is, as the screen's address does.
export const sqlPath = (table, words = {}) => withWords("/sql", { from: table, ...words });

addEventListener("popstate", () => { place.value = read(); });
// Links stay links (open in a tab, copy); a plain click is answered without reading the page anew.
addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const url = new URL(link.href);
  if (url.origin !== location.origin || link.target || link.hasAttribute("download") || url.pathname.endsWith(".json") || url.pathname === "/metrics") return;
  event.preventDefault();
  go(url.pathname + url.search);
});
