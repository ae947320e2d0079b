// Token runs of steps as a picture: from left to right along the context, a row for each leaf; what is shared is there once.
import { html } from "./ui.js";
import { useData } from "./api.js";
import { setQuery } from "./router.js";
import { scaleOf } from "./scales.js";
import { count, number } from "./format.js";
import { Empty, Failed, Loading } from "./states.js";

const COLOURS = { reward: "reward", branch: "branch", sampled: "sampled or given" };
const LISTED = 300;

// Run → colour class, for what the picture is coloured by.
export function colourOf(runs, by) {
  if (by === "sampled") return (run) => (run.sampled ? "k2" : "k7");
  if (by === "branch") return (run) => (run.trajectories > 1 ? "k7" : `k${run.top % 7}`);
  const scale = scaleOf({ scale: "sequential", values: runs.map((r) => r.reward) });
  return (run) => scale.of(run.reward) || "unknown";
}

const saved = (whole, kept) => (whole ? `${count(whole - kept)} of ${count(whole)} (${Math.round((100 * (whole - kept)) / whole)} %)` : "–");

export function Forest({ address, query, onChoose }) {
  const { data, error, reload } = useData(address);
  if (error) return html`<${Failed} error=${error} retry=${reload} />`;
  if (!data) return html`<${Loading} />`;
  if (!data.runs.length) return html`<${Empty}>No step with tokens is stored.</${Empty}>`;
  const known = data.runs.some((r) => r.reward !== null);
  const by = COLOURS[query.get("colour")] ? query.get("colour") : known && data.trajectories > 1 ? "reward" : "sampled";
  const colour = colourOf(data.runs, by);
  const row = Math.max(3, Math.min(26, 460 / data.leaves));
  const wide = (tokens) => `${(100 * tokens) / data.longest}%`;
  const ends = by === "reward" ? scaleOf({ scale: "sequential", values: data.runs.map((r) => r.reward) }).ends : [];
  return html`<div class="forest-mode">
    <header class="bar"><label>Colour by <select value=${by} onChange=${(e) => setQuery({ colour: e.target.value })}>${Object.entries(COLOURS).map(([name, title]) => html`<option value=${name} selected=${name === by}>${title}</option>`)}</select></label>
      <span class="legend">${by === "reward" ? known ? ends.map((e) => html`<span><i class=${`swatch ${e.class}`}></i>${number(e.value, 3)}</span>`) : "no reward is known" : by === "branch" ? html`<span><i class="swatch k7"></i>shared</span>` : html`<span><i class="swatch k2"></i>sampled</span><span><i class="swatch k7"></i>given</span>`}</span></header>
    <dl class="figures">${[
      ["tokens, shared ones once", count(data.tokens)], ["saved against steps with their whole prompts", saved(data.step_tokens, data.tokens)],
      ["saved between trajectories", data.trajectories > 1 ? saved(data.apart_tokens, data.tokens) : null], ["steps", count(data.steps)], ["branches", count(data.leaves)],
      ["steps without their parent, left out", data.lost || null],
    ].filter(([, v]) => v !== null).map(([k, v]) => html`<div><dt>${k}</dt><dd>${v}</dd></div>`)}</dl>
    <svg class="forest" width="100%" height=${data.leaves * row + 20} role="img" aria-label=${`${data.runs_in_all} runs of tokens in ${data.leaves} branches, the longest of ${data.longest} tokens; the table below has the same`}>
      ${data.runs.map((r) => html`<rect key=${r.id} class=${colour(r)} x=${wide(r.start)} width=${wide(r.tokens)} y=${r.top * row} height=${Math.max(1, r.rows * row - 1)} onClick=${() => onChoose(r)}><title>${describe(r)}</title></rect>`)}
      ${[0, 0.5, 1].map((part) => html`<text x=${`${100 * part}%`} y=${data.leaves * row + 15} text-anchor=${["start", "middle", "end"][part * 2]}>${count(Math.round(part * data.longest))}</text>`)}
    </svg>
    <p class="dim">Along the context, in tokens, from left to right; a row for each branch.${data.runs_in_all > data.runs.length ? ` The first ${count(data.runs.length)} of ${count(data.runs_in_all)} runs are drawn.` : ""}</p>
    <details><summary>As a table</summary><div class="scroll" tabindex="0" role="region" aria-label="Runs"><table class="rows"><caption class="hidden">Runs, depth first</caption>
      <thead><tr>${["from token", "tokens", "kind", "trajectories", "reward", "step"].map((t) => html`<th scope="col">${t}</th>`)}</tr></thead>
      <tbody>${data.runs.slice(0, LISTED).map((r) => html`<tr key=${r.id}><td>${count(r.start)}</td><td>${count(r.tokens)}</td><td>${r.sampled ? "sampled" : "given"}</td><td>${count(r.trajectories)}</td><td>${number(r.reward)}</td>
        <td>${r.step ? html`<button class="cell" onClick=${() => onChoose(r)}>${r.step}</button>` : ""}</td></tr>`)}</tbody></table></div></details>
  </div>`;
}

const describe = (r) => `${r.sampled ? "sampled" : "given"}: ${r.tokens} tokens from ${r.start} on, ${r.trajectories > 1 ? `${r.trajectories} trajectories` : r.trajectory}, reward ${number(r.reward)}`;
