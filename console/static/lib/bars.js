// Shares as small pictures: inline SVG whose numbers are attributes.
import { html } from "./ui.js";

// A row of bars, the newest at the right.
export function Bars({ values, label }) {
  const most = Math.max(1, ...values);
  const step = 100 / Math.max(1, values.length);
  return html`<svg class="bars" viewBox="0 0 100 24" preserveAspectRatio="none" role="img" aria-label=${label}>
    ${values.map((v, i) => (v ? html`<rect x=${i * step} y=${24 - (24 * v) / most} width=${step * 0.7} height=${(24 * v) / most} />` : null))}
  </svg>`;
}

export function Share({ part, whole, label }) {
  const share = whole > 0 ? Math.min(1, part / whole) : 0;
  return html`<svg class="share" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label=${label}>
    <rect class="rest" width="100" height="6" rx="1" /><rect width=${100 * share} height="6" rx="1" />
  </svg>`;
}
