// Numbers and times become words here, in the viewer's own language and time zone.
const whole = new Intl.NumberFormat();
const compact = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

export const NONE = "–";
export const count = (n) => (n === null || n === undefined ? NONE : whole.format(n));
// A count with its noun: "1 token", "2 tokens".
export const some = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
export const short = (n) => (n === null || n === undefined ? NONE : compact.format(n));
export const number = (n, digits = 3) => (n === null || n === undefined ? NONE : Number(n).toFixed(digits).replace(/\.?0+$/, "") || "0");
export const time = (seconds) => (seconds === null || seconds === undefined ? NONE : clock.format(seconds * 1000));
export const moment = (seconds) => (seconds === null || seconds === undefined ? NONE : full.format(seconds * 1000));
export function span(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d`;
}
export const ago = (seconds, now = Date.now() / 1000) => (seconds === null || seconds === undefined ? NONE : `${span(Math.max(0, now - seconds))} ago`);
export const rate = (n) => (n >= 100 ? `${whole.format(Math.round(n))}/s` : `${n.toFixed(1)}/s`);
export const words = (code) => (code ?? "").replaceAll("_", " ");
export const many = (n, one) => `${count(n)} ${n === 1 ? one : one.endsWith("ch") ? `${one}es` : `${one}s`}`;
// From a to b; one number where they are the same, nothing where neither is known.
export const between = (a, b) => (a === null && b === null ? NONE : a === b ? count(a) : `${count(a)}–${count(b)}`);
// A value as a filter takes it.
export const quoted = (value) => (/[\s,"]/.test(value) ? `"${String(value).replaceAll('"', "")}"` : String(value));
