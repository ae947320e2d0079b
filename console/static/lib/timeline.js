// Calls on an axis of time: a bar each, pale until the first byte; time without a call is hatched. Numbers are attributes.
import { html } from "./ui.js";
import { count, number, span } from "./format.js";
import { Empty } from "./states.js";

const ROW = 26;
const LISTED = 300;

// Round seconds for about five marks on an axis.
export function marks(seconds) {
  const rough = seconds / 5;
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) ?? power;
  return Array.from({ length: Math.floor(seconds / step) + 1 }, (_, i) => i * step);
}

export function Timeline({ line, chosen, onChoose }) {
  if (!line.bars.length) return html`<${Empty}>No step has times: they came from a sender that does not say when it was asked and answered.</${Empty}>`;
  const whole = line.seconds || 1e-3;
  const at = (seconds) => `${(100 * seconds) / whole}%`;
  const height = line.rows * ROW + 24;
  return html`<div class="timeline-mode">
    <dl class="figures">${[
      ["from the first call to the last byte", span(line.seconds)], ["a call ran", share(line.model_seconds, whole)], ["until first bytes, all calls", span(line.first_byte_seconds)],
      ["tools", share(line.tools_seconds, whole)], ["the agent, or idle", share(line.agent_seconds, whole)], ["steps without times", line.untimed || null],
    ].filter(([, v]) => v !== null).map(([k, v]) => html`<div><dt>${k}</dt><dd>${v}</dd></div>`)}</dl>
    <svg class="timeline" width="100%" height=${height} role="img" aria-label=${`${line.bars.length} calls in ${line.rows} rows over ${span(line.seconds)}; the table below has the same`}>
      ${marks(whole).map((s) => html`<line class="mark" x1=${at(s)} x2=${at(s)} y1="0" y2=${height - 18} /><text class="mark" x=${at(s)} y=${height - 5} text-anchor=${s ? s / whole > 0.95 ? "end" : "middle" : "start"}>${number(s, 3)} s</text>`)}
      ${line.gaps.map((g) => html`<rect class=${`gap ${g.kind}`} x=${at(g.from)} width=${at(g.to - g.from)} y="2" height=${line.rows * ROW - 4}><title>${`${g.kind === "tools" ? "tools" : "the agent, or idle"}: ${span(g.to - g.from)}`}</title></rect>`)}
      ${line.bars.map((b) => html`<${Bar} key=${b.step} bar=${b} at=${at} chosen=${b.step === chosen} onChoose=${onChoose} />`)}
    </svg>
    <p class="legend"><span><i class="swatch wait"></i>until the first byte</span><span><i class="swatch answer"></i>answering</span><span><i class="swatch tools"></i>tools</span><span><i class="swatch agent"></i>the agent, or idle</span></p>
    <div class="scroll" tabindex="0" role="region" aria-label="Calls"><table class="rows"><caption class="hidden">Calls in the order of their beginning</caption>
      <thead><tr>${["step", "began", "first byte", "took", "policy", "then"].map((t, i) => html`<th scope="col" class=${i === 5 ? "" : "number"}>${t}</th>`)}</tr></thead>
      <tbody>${line.bars.slice(0, LISTED).map((b) => { const gap = line.gaps.find((g) => g.after === b.step); return html`<tr key=${b.step} aria-selected=${b.step === chosen}>
        <td class="number"><button class="cell" onClick=${() => onChoose(b.step)}>${b.index + 1}</button></td><td class="number">${span(b.received)}</td>
        <td class="number">${b.first_byte === null ? "unknown" : span(b.first_byte - b.received)}</td><td class="number">${span(b.done - b.received)}</td>
        <td class="number">${count(b.policy_version)}${b.new_version ? " (new)" : ""}</td><td>${gap ? `${span(gap.to - gap.from)} ${gap.kind === "tools" ? "tools" : "agent, or idle"}` : ""}</td></tr>`; })}</tbody></table></div>
    ${line.bars.length > LISTED ? html`<p class="dim">The table has the first ${count(LISTED)} of ${count(line.bars.length)} calls; the picture has all.</p>` : null}
  </div>`;
}

const share = (seconds, whole) => `${span(seconds)} (${Math.round((100 * seconds) / whole)} %)`;

function Bar({ bar, at, chosen, onChoose }) {
  const first = bar.first_byte ?? bar.received;
  const y = bar.row * ROW + 4;
  return html`<g class=${chosen ? "call chosen" : "call"} onClick=${() => onChoose(bar.step)}>
    <rect class="wait" x=${at(bar.received)} width=${at(Math.max(first - bar.received, 0))} y=${y} height=${ROW - 8} />
    <rect class="answer" x=${at(first)} width=${at(Math.max(bar.done - first, 0))} y=${y} height=${ROW - 8} />
    <rect class="edge" x=${at(bar.received)} width=${at(Math.max(bar.done - bar.received, 0))} y=${y} height=${ROW - 8}><title>${`step ${bar.index + 1}: ${span(bar.done - bar.received)}`}</title></rect>
    ${bar.new_version ? html`<line class="version" x1=${at(bar.received)} x2=${at(bar.received)} y1=${y - 4} y2=${y + ROW - 4} /><text class="version" x=${at(bar.received)} y=${y + 9} dx="3">v${bar.policy_version}</text>` : null}
  </g>`;
}
