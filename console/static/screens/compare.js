// Two batches: trajectories that only one has, and what differs of those that both have.
import { html } from "../lib/ui.js";
import { useData } from "../lib/api.js";
import { trajectoryPath, withWords } from "../lib/router.js";
import { count, number } from "../lib/format.js";
import { AsSql } from "../lib/table.js";
import { batchPath, nameOf } from "./batches.js";
import { Empty, Failed, Loading } from "../lib/states.js";

export default function Compare({ query }) {
  const [a, b] = [query.get("a"), query.get("b")];
  const { data, error, reload } = useData(a && b ? withWords("/batches/compare.json", { a, b }) : null);
  if (!a || !b) return html`<${Empty}>Pick two in <a href="/batches">Batches</a>.</${Empty}>`;
  if (!data) return error ? html`<${Failed} error=${error} retry=${reload} />` : html`<${Loading} />`;
  const only = (name, head) => html`<section><header><h2>${count(data[`${name}_total`])} only in <a href=${batchPath(head)}>${nameOf(head)}</a></h2><${AsSql} of="batch-trajectories" recipe=${head.recipe} sequence=${head.sequence} /></header><ul>${data[name].map((r) => html`<li><a href=${trajectoryPath(r.trajectory_uid)}>${r.trajectory_uid}</a><small> ${r.group_id}, reward ${number(r.reward)}, ${count(r.trained_tokens)} tokens</small></li>`)}</ul></section>`;
  return html`<div class="page"><header class="bar"><h1>${nameOf(data.a)} and ${nameOf(data.b)}</h1><span class="dim">${count(data.same)} trajectories are the same in both</span></header>
    <div class="columns even">${only("only_a", data.a)}${only("only_b", data.b)}</div>
    <section class="differ"><h2>${count(data.differ_total)} differ</h2>${data.differ.length ? html`<ul>${data.differ.map((r) => html`<li><a href=${trajectoryPath(r.trajectory_uid)}>${r.trajectory_uid}</a><small>${Object.entries(r.differs).map(([k, [x, y]]) => ` ${k}: ${JSON.stringify(x)} → ${JSON.stringify(y)}`).join(";")}</small></li>`)}</ul>` : html`<p class="dim">Of none that both have.</p>`}</section>
    <p class="dim">Masks and rewards are those of the emission; decisions that a cut applied are compared by name.</p>
  </div>`;
}
