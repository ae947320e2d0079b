// A value becomes a colour class here. Scales are safe for colour-blind eyes (viridis-like, orange to blue, Okabe-Ito), have
// twelve steps, and are classes of console.css, since the content policy allows no style in markup. A number stays readable
// beside every colour.
export const STEPS = 12;

export function rangeOf(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value === null) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 0];
}

// (value) → class name, for a signal {scale, values}; null values have none.
export function scaleOf(signal) {
  const [low, high] = rangeOf(signal.values);
  if (signal.scale === "category") {
    const known = [...new Set(signal.values.filter((v) => v !== null))].sort((a, b) => a - b);
    const places = new Map(known.map((value, i) => [value, i]));
    return { of: (value) => (value === null ? "" : `k${places.get(value) % 8}`), ends: known.map((v, i) => ({ value: v, class: `k${i % 8}` })).slice(0, 8) };
  }
  if (signal.scale === "diverging") {
    const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
    const step = (value) => Math.min(STEPS - 1, Math.floor(((value / most + 1) / 2) * STEPS));
    return { of: (value) => (value === null ? "" : `d${step(value)}`), ends: [{ value: -most, class: "d0" }, { value: 0, class: "d6" }, { value: most, class: `d${STEPS - 1}` }] };
  }
  const width = high - low || 1;
  const step = (value) => Math.min(STEPS - 1, Math.floor(((value - low) / width) * STEPS));
  return { of: (value) => (value === null ? "" : `s${step(value)}`), ends: [{ value: low, class: "s0" }, { value: high, class: `s${STEPS - 1}` }] };
}
