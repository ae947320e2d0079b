// News come from here: one stream of server-sent events a page, closed while nobody sees the page, and resumed behind the last
// id, so that nothing is missed and a hidden tab costs nothing.
import { signal } from "./ui.js";

export const connection = signal("off"); // off, on, lost
const AGAIN = 5000; // milliseconds

// follow({q, of, status}, {open, begin, rows, status, gap, fault}) → stop().
export function follow(topics, handlers) {
  let source = null;
  let last = null;
  let later = null;
  const open = () => {
    const query = new URLSearchParams();
    if (topics.q !== undefined) query.set("q", topics.q);
    if (topics.of) query.set("of", topics.of);
    if (topics.status) query.set("status", "true");
    if (last) query.set("after", last);
    source = new EventSource(`/events?${query}`);
    source.onopen = () => { connection.value = "on"; handlers.open?.(); };
    source.onerror = () => {
      connection.value = "lost";
      if (source.readyState === EventSource.CLOSED) later = setTimeout(() => { source = null; seen(); }, AGAIN); // a browser asks again unless it was refused
    };
    for (const name of ["begin", "rows", "status", "gap", "fault"]) {
      source.addEventListener(name, (event) => {
        if (event.lastEventId) last = event.lastEventId;
        handlers[name]?.(JSON.parse(event.data));
      });
    }
  };
  const close = () => { clearTimeout(later); source?.close(); source = null; connection.value = "off"; };
  const seen = () => { if (document.hidden) close(); else if (!source) open(); };
  document.addEventListener("visibilitychange", seen);
  seen();
  return () => { document.removeEventListener("visibilitychange", seen); close(); };
}
