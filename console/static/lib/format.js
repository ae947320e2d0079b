// Numbers and times become words here, in the viewer's own language and time zone.
const whole = new Intl.NumberFormat();
const compact = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const dated = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

export const NONE = "–";
const NOISE = 1e-9; // what is left of a sum that is 0
export const count = (n) => (n === null || n === undefined ? NONE : whole.format(n));
export const short = (n) => (n === null || n === undefined ? NONE : compact.format(n));
// With at most so many digits behind the point; what these do not show has its first two digits, for it is not 0.
export function number(n, digits = 3) {
  if (n === null || n === undefined) return NONE;
  const shown = Number(n).toFixed(digits);
  if (!Number(shown)) return Math.abs(n) < NOISE ? "0" : String(Number(Number(n).toPrecision(2)));
  return shown.includes("e") ? shown : shown.replace(/\.?0+$/, "");
}
// The clock's time; of another day than today with its date.
export function time(seconds, now = Date.now()) {
  if (seconds === null || seconds === undefined) return NONE;
  const at = new Date(seconds * 1000);
  return (at.toDateString() === new Date(now).toDateString() ? clock : dated).format(at);
}
export const moment = (seconds) => (seconds === null || seconds === undefined ? NONE : full.format(seconds * 1000));
export function span(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds); // rounded before it is divided: never 60 s of a minute
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 1440 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.floor(minutes / 1440)} d`;
}
export const ago = (seconds, now = Date.now() / 1000) => (seconds === null || seconds === undefined ? NONE : `${span(Math.max(0, now - seconds))} ago`);
export const rate = (n) => (n >= 100 ? `${whole.format(Math.round(n))}/s` : `${n.toFixed(1)}/s`);
export const words = (code) => (code ?? "").replaceAll("_", " ");
// A count with its noun: "1 token", "2 batches", "3 trajectories".
export const many = (n, one) => `${count(n)} ${n === 1 ? one : `${one.replace(/y$/, "ie")}${one.endsWith("ch") ? "es" : "s"}`}`;
// From a to b; one number where they are the same, nothing where neither is known.
export const between = (a, b) => (a === null && b === null ? NONE : a === b ? count(a) : `${count(a)}–${count(b)}`);
// A value as a filter takes it: in quotes where it has signs that end a value; what has a quote too is found by the rest of it.
export function quoted(value) {
  const text = String(value);
  if (!/[\s,]|^"/.test(text)) return text;
  return text.includes('"') ? text.replace(/[\s,]+|^"/g, "*") : `"${text}"`;
}
