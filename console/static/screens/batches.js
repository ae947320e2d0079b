// Batches: those that were cut last; two of them side by side.
import { html, useState } from "../lib/ui.js";
import { useData } from "../lib/api.js";
import { go, setQuery, withWords } from "../lib/router.js";
import { AsSql } from "../lib/table.js";
import { ago, count, moment } from "../lib/format.js";
import { Badge, Empty, Failed, Loading } from "../lib/states.js";

export const batchPath = (b) => `/batches/${encodeURIComponent(b.recipe)}/${b.sequence}`;
export const nameOf = (b) => `${b.recipe}/${b.sequence}`;

export default function Batches({ query }) {
  const recipe = query.get("recipe") ?? "";
  const { data, error, reload } = useData(withWords("/batches.json", { recipe }));
  const [two, setTwo] = useState([]);
  if (!data) return error ? html`<${Failed} error=${error} retry=${reload} />` : html`<${Loading} />`;
  const toggle = (name) => setTwo(two.includes(name) ? two.filter((n) => n !== name) : [...two.slice(-1), name]);
  return html`<div class="page list-page"><header class="bar"><h1>Batches</h1>
      ${recipe ? html`<span>of <b>${recipe}</b> <button class="quiet" onClick=${() => setQuery({ recipe: null })}>all</button></span>` : null}
      <button disabled=${two.length < 2} onClick=${() => go(`/batches/compare?a=${encodeURIComponent(two[0])}&b=${encodeURIComponent(two[1])}`)}>${two.length < 2 ? "Compare: pick two" : `Compare ${two.join(" and ")}`}</button><${AsSql} of="batches" recipe=${recipe} /></header>
    ${data.batches.length ? html`<div class="scroll" tabindex="0" role="region" aria-label="Batches"><table class="rows"><caption class="hidden">Batches</caption>
      <thead><tr><th scope="col"><span class="hidden">picked</span></th><th scope="col">batch</th><th scope="col">state</th><th scope="col">cut</th><th scope="col" class="number">groups</th><th scope="col" class="number">left out</th><th scope="col" class="number">samples</th><th scope="col" class="number">trained tokens</th><th scope="col" class="number" title="versions behind at the cut, of the oldest token">stale</th><th scope="col" class="number">policy</th><th scope="col">run</th></tr></thead>
      <tbody>${data.batches.map((b) => html`<tr key=${b.batch_id} onClick=${() => go(batchPath(b))}><td class="pick" onClick=${(e) => { e.stopPropagation(); toggle(nameOf(b)); }}><input type="checkbox" aria-label=${`Pick ${nameOf(b)}`} checked=${two.includes(nameOf(b))} /></td>
        <td><a href=${batchPath(b)}>${nameOf(b)}</a></td><td><${Badge} kind=${b.state === "trained" ? "trained" : "batched"}>${b.state === "trained" ? "trained" : "handed out"}</${Badge}></td><td title=${moment(b.cut_time)}>${ago(b.cut_time)}</td>
        <td class="number">${count(b.groups)}</td><td class="number">${count(b.excluded)}</td><td class="number">${count(b.samples)}</td><td class="number">${count(b.trained_tokens)}</td><td class="number">${count(b.staleness)}</td><td class="number">${count(b.trained_policy_version)}</td><td>${b.run_id}</td></tr>`)}</tbody></table></div>
      ${data.batches.length === data.most ? html`<p class="dim end">The newest ${count(data.most)}; <code>claw batches list --limit</code> goes further back.</p>` : null}`
      : html`<${Empty}>No batch was cut yet. A trainer takes one with <code>pool.next_batch()</code>; <a href="/recipes">recipes</a> show how many groups wait.</${Empty}>`}
  </div>`;
}
