// Rewards of a group as bars from zero: inline SVG whose numbers are attributes. Unknown ones are hollow.
import { html } from "./ui.js";
import { number } from "./format.js";

export function RewardBars({ rewards, tall = 22 }) {
  const known = rewards.map((r) => r.reward).filter((r) => r !== null);
  const low = Math.min(0, ...known);
  const high = Math.max(0, ...known, low === 0 && !known.some(Boolean) ? 1 : 0);
  const y = (value) => tall - 1 - ((tall - 2) * (value - low)) / (high - low || 1);
  const width = 9;
  return html`<svg class="rewards" width=${Math.max(1, rewards.length) * width} height=${tall} role="img" aria-label=${`rewards ${rewards.map((r) => number(r.reward)).join(", ") || "unknown"}`}>
    <line x1="0" x2=${rewards.length * width} y1=${y(0)} y2=${y(0)} />
    ${rewards.map((r, i) => (r.reward === null ? html`<rect class="none" x=${i * width + 1.5} y="2" width=${width - 3} height=${tall - 4} />`
      : html`<rect class=${r.reward < 0 ? "minus" : ""} x=${i * width + 1} y=${Math.min(y(r.reward), y(0)) - (r.reward === 0 ? 1 : 0)} width=${width - 2} height=${Math.max(2, Math.abs(y(r.reward) - y(0)))} />`))}
  </svg>`;
}
