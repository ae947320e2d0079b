// What a viewer chose for this browser (columns, a mode) is kept here; what a link must say is in the address instead.
export function load(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`claw.${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}
export function save(name, value) {
  try {
    localStorage.setItem(`claw.${name}`, JSON.stringify(value));
  } catch { /* a browser that keeps nothing still shows everything */ }
}
