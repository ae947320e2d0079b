// Recipes: what each trainer asks for, what waits for it, what it left out; a new one begins as a draft.
import { html, useState } from "../lib/ui.js";
import { post, useData } from "../lib/api.js";
import { go, listPath } from "../lib/router.js";
import { useKeys } from "../lib/keys.js";
import { Share } from "../lib/bars.js";
import { Stream } from "../lib/stream.js";
import { AsSql } from "../lib/table.js";
import { ago, count, many, quoted, words } from "../lib/format.js";
import { Badge, Empty, Failed, Loading } from "../lib/states.js";

export default function Recipes() {
  const { data, error, reload } = useData("/recipes.json");
  useKeys([{ key: "e", does: "write a new one", run: () => go("/recipes/draft") }], "Recipes");
  if (!data) return error ? html`<${Failed} error=${error} retry=${reload} />` : html`<${Loading} />`;
  return html`<div class="page"><header class="bar"><h1>Recipes</h1><a class="button" href="/recipes/draft">New recipe <kbd>e</kbd></a><${AsSql} of="fates" /></header>
    ${data.recipes.length ? html`<div class="stack">${data.recipes.map((r) => html`<${One} key=${r.name} recipe=${r} reload=${reload} />`)}</div>`
      : html`<${Empty}>No recipe yet. <a href="/recipes/draft">Write one</a>, or <code>claw recipes apply FILE</code>.</${Empty}>`}
  </div>`;
}

function One({ recipe, reload }) {
  const full = recipe.recipe;
  const tokens = full?.batch.tokens ?? null;
  const groups = tokens === null ? full?.batch.groups : null;
  const of = (about) => recipe.fates.filter((f) => f.about === about);
  const list = (f) => listPath(`recipe:${quoted(recipe.name)} ${f.outcome === "emitted" ? "state:ready,batched,trained" : `reason:${quoted(f.reason)}`}`);
  return html`<section class="recipe-card"><header><h3>${recipe.name}<small>version ${recipe.version}</small></h3>
      <${Badge} kind=${recipe.in_force ? "ready" : "discarded"}>${recipe.in_force ? "in force" : "ended"}</${Badge}>
      <span class="dim">run ${recipe.run}${full ? `, channel ${full.channel}, ${full.algorithm}, groups of ${full.group.size}, ${tokens === null ? many(groups, "group") : many(tokens, "token")} a batch${full.review === "required" ? ", reviewed" : ""}` : ""}</span>
      ${recipe.in_force ? html`<a href=${`/recipes/draft?base=${encodeURIComponent(recipe.name)}`}>Change</a>` : null}
      ${recipe.in_force ? html`<${End} name=${recipe.name} reload=${reload} />` : null}</header>
    <div class="columns even"><div>
      <p><a href=${listPath(`recipe:${quoted(recipe.name)} state:ready`)}><b>${many(recipe.ready, "group")}</b> ready</a>${recipe.batches_ready !== null ? `: enough for ${many(recipe.batches_ready, "batch")}` : ""}${recipe.oldest_ready ? `, the oldest since ${ago(recipe.oldest_ready)}` : ""}</p>
      ${groups ? html`<${Share} part=${Math.min(recipe.ready, groups)} whole=${groups} label=${`${recipe.ready} groups ready, a batch takes ${groups}`} />` : null}
      <p><a href=${`/batches?recipe=${encodeURIComponent(recipe.name)}`}>${many(recipe.batches, "batch")}</a>${recipe.last_batch !== null ? html`, the last is <a href=${`/batches/${encodeURIComponent(recipe.name)}/${recipe.last_batch}`}>${recipe.last_batch}</a>, ${ago(recipe.last_at)}` : ""}</p>
      ${full?.filters.length ? html`<p class="dim">Filters: ${full.filters.map((f) => `${f.field} ${f.op} ${JSON.stringify(f.value)}`).join(", ")}</p>` : null}
    </div><div>${recipe.fates.length ? html`<table class="reasons"><tbody>${[...of("group"), ...of("trajectory")].slice(0, 10).map((f) => html`<tr><td><a href=${list(f)}>${words(f.reason)}</a><small>${f.about} ${f.outcome}</small></td><td class="number">${count(f.count)}</td></tr>`)}</tbody></table>` : html`<p class="dim">It has judged nothing yet.</p>`}</div></div>
    ${recipe.in_force ? html`<${Stream} name=${recipe.name} run=${recipe.run} />` : null}
  </section>`;
}

function End({ name, reload }) {
  const [state, setState] = useState({ sure: false, busy: false, done: false, error: null });
  const end = async () => {
    if (state.busy) return;
    setState({ ...state, busy: true, error: null });
    try { await post(`/recipes/${encodeURIComponent(name)}/delete.json`, {}); reload(); setState({ ...state, done: true }); } catch (error) { setState({ ...state, error }); }
  };
  if (state.done) return html`<span class="dim" role="status">Ended; the pool shows it a moment later.</span>`;
  return html`${state.error ? html`<span class="bad-text" role="alert">${state.error.message}</span>` : null}
    ${state.sure ? html`<button aria-disabled=${state.busy} onClick=${end}>${state.busy ? "Ending …" : `Yes, end ${name}: groups that begin later are not judged by it`}</button>` : html`<button class="quiet" onClick=${() => setState({ ...state, sure: true })}>End …</button>`}`;
}
