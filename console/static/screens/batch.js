// One batch: what it got, what it left out and why, how stale its tokens were, and whether it can be made again.
import { html, useState } from "../lib/ui.js";
import { post, useData } from "../lib/api.js";
import { listPath, trajectoryPath } from "../lib/router.js";
import { Share } from "../lib/bars.js";
import { AsSql } from "../lib/table.js";
import { between, count, many, moment, number, quoted, time, words } from "../lib/format.js";
import { Badge, Empty, Failed, Loading } from "../lib/states.js";

const BORE = { cut: "applied by the cut", emission: "in force when the group was emitted", late: "too late", null: "not in the cut" };

export default function Batch({ recipe, sequence }) {
  const { data, error, reload } = useData(`/batches/${encodeURIComponent(recipe)}/${encodeURIComponent(sequence)}.json`);
  if (!data) return error ? html`<${Failed} error=${error} retry=${reload} />` : html`<${Loading} />`;
  const name = `${data.recipe}/${data.sequence}`;
  const taken = data.members.filter((m) => m.taken);
  const most = Math.max(1, ...data.staleness.map((s) => s.tokens));
  const facts = [["run", data.run_id], ["recipe version", data.recipe_version], ["cut", moment(data.cut_time)], ["by", data.holder], ["samples", count(data.samples)], ["tokens", `${count(data.trained_tokens)} of ${count(data.tokens)} trained`],
    ["policy at the cut", count(data.policy_version)], ["sampled by", between(data.oldest_version, data.newest_version)], ["trained", data.trained_time ? `${moment(data.trained_time)}, version ${data.trained_policy_version}${data.trainer_step !== null ? `, step ${data.trainer_step}` : ""}` : "not yet acknowledged"], ["digest", data.digest && html`<code>${data.digest.slice(0, 24)}</code>`]];
  return html`<div class="page"><header class="bar"><h1>${name}</h1><${Badge} kind=${data.state === "trained" ? "trained" : "batched"}>${data.state === "trained" ? "trained" : "handed out"}</${Badge}>
      <a class="button" href=${listPath(`batch:${quoted(name)}`)}>Its trajectories</a>${data.sequence > 0 ? html`<a class="button" href=${`/batches/compare?a=${encodeURIComponent(`${data.recipe}/${data.sequence - 1}`)}&b=${encodeURIComponent(name)}`}>Compare with the one before</a>` : null}
      <${Rebuild} recipe=${data.recipe} sequence=${data.sequence} /></header>
    <div class="columns wide"><section><header><h2>${many(taken.length, "group")}</h2><${AsSql} of="batch" recipe=${data.recipe} sequence=${data.sequence} /></header>${taken.length ? html`<table class="reasons members"><thead><tr><th scope="col">group</th><th scope="col">trajectories by reward</th><th scope="col" class="number">mean</th><th scope="col" class="number">std</th><th scope="col" class="number">versions</th></tr></thead><tbody>${taken.map((m) => html`<${Member} member=${m} />`)}</tbody></table>` : html`<${Empty}>The batch is empty.</${Empty}>`}
        ${data.members_total > data.members.length ? html`<p class="dim">The first ${count(data.members.length)} of ${count(data.members_total)}.</p>` : null}</section>
      <div class="stack"><section><h2>Facts</h2><dl class="pairs">${facts.filter(([, v]) => v !== null && v !== "").map(([k, v]) => html`<div><dt>${k}</dt><dd>${v}</dd></div>`)}</dl></section>
        <section><header><h2>Staleness: versions behind at the cut</h2><${AsSql} of="staleness" recipe=${data.recipe} sequence=${data.sequence} /></header>${data.staleness.length ? html`<table class="reasons"><tbody>${data.staleness.map((s) => html`<tr><td>${s.behind === null ? "unknown" : s.behind}</td><td><${Share} part=${s.tokens} whole=${most} label=${`${s.tokens} tokens`} /></td><td class="number">${count(s.tokens)}</td></tr>`)}</tbody></table><p class="dim">Trained tokens, as they were emitted.</p>` : html`<p class="dim">No version of its tokens is known.</p>`}</section>
        <section><h2>Left out</h2>${data.left_out.length ? html`<table class="reasons"><tbody>${data.left_out.map((r) => html`<tr><td>${words(r.reason)}</td><td class="number">${count(r.count)}</td></tr>`)}</tbody></table><ul class="left">${data.members.filter((m) => !m.taken).map((m) => html`<li><a href=${listPath(`group:${quoted(m.group_id)}`)}>${m.group_id}</a> <small>${words(m.reason)}</small></li>`)}</ul>` : html`<p class="dim">No ready group was left out.</p>`}</section>
        <section><h2>Decisions</h2>${data.decisions.length ? html`<ul>${data.decisions.map((d) => html`<li><b>${words(d.action)}</b> ${d.value ?? ""} ${d.trajectory_uid ? html`<a href=${trajectoryPath(d.trajectory_uid)}>${d.trajectory_uid}</a>` : d.prompt_uid}<small> by ${d.author}, ${time(d.append_time)}: ${BORE[d.bore]}${d.late_reason ? ` (${words(d.late_reason)})` : ""}</small></li>`)}</ul>` : html`<p class="dim">None on its groups.</p>`}</section></div></div>
    <footer class="dim">The same as data: <a href=${`/batches/${encodeURIComponent(recipe)}/${encodeURIComponent(sequence)}.json`}>JSON</a></footer>
  </div>`;
}

const Member = ({ member: m }) => html`<tr><td><a href=${listPath(`group:${quoted(m.group_id)}`)}>${m.group_id}</a><small>${m.task_id ?? ""}${m.left_out.length ? ` ${count(m.left_out.length)} samples taken out by decisions` : ""}</small></td>
  <td>${m.trajectories.map((t) => html`<a class=${`sibling ${t.outcome === "emitted" ? "" : "void"}`} href=${trajectoryPath(t.id)} title=${`${t.id}: ${t.outcome} (${words(t.reason)})`}>${number(t.reward, 2)}</a> `)}</td>
  <td class="number">${number(m.reward_mean)}</td><td class="number">${number(m.reward_std)}</td><td class="number">${between(m.oldest_version, m.newest_version)}</td></tr>`;

function Rebuild({ recipe, sequence }) {
  const [state, setState] = useState({ busy: false, said: null, error: null });
  const path = `${encodeURIComponent(recipe)}/${sequence}`;
  const check = async () => {
    if (state.busy) return;
    setState({ busy: true, said: null, error: null });
    try { setState({ busy: false, said: await post(`/batches/${path}/rebuild.json`, {}, { deadline: 130000 }), error: null }); } catch (error) { setState({ busy: false, said: null, error }); }
  };
  return html`<button onClick=${check} aria-disabled=${state.busy}>${state.busy ? "Making it again …" : "Make it again"}</button><a class="button" download href=${`/exports/${path}.npz`}>Export .npz</a>
    ${state.said ? html`<span class="note" role="status">The same in every byte: ${count(state.said.samples)} samples, ${count(state.said.tokens)} tokens</span>` : null}${state.error ? html`<span class="bad-text" role="alert">${state.error.message}</span>` : null}`;
}
