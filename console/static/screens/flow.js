// Flow: gateway → steps → trajectories → groups → batches, with rates and what waits; every number opens its list.
import { html, useEffect, useMemo, useRef, useState } from "../lib/ui.js";
import { useData } from "../lib/api.js";
import { follow } from "../lib/live.js";
import { go, groupsPath, listPath, place, withQuery } from "../lib/router.js";
import { Bars, Share } from "../lib/bars.js";
import { Chart } from "../lib/chart.js";
import { AsSql } from "../lib/table.js";
import { ago, count, many, moment, number, quoted, rate, short, span, words } from "../lib/format.js";
import { Empty, Failed, Loading } from "../lib/states.js";

const WHY = { away: "ClickHouse is away.", unmade: "The pool has no tables.", refused: "ClickHouse refuses." };
const REASONS = 10;

export default function Flow() {
  const first = useData("/flow.json");
  const [newest, setNewest] = useState(null);
  useEffect(() => follow({ status: true }, { status: setNewest }), []);
  const status = newest ?? first.data;
  if (!status) return first.error ? html`<${Failed} error=${first.error} retry=${first.reload} />` : html`<${Loading} />`;
  const numbers = status.numbers;
  return html`<div class="page flow-page">
    <h1 class="hidden">Flow</h1>
    <${Banner} status=${status} />
    <${Strip} status=${status} />
    <div class="columns wide"><${Curves} recipes=${numbers?.recipes ?? []} /><div class="stack"><${Processes} status=${status} /><${LeftOut} numbers=${numbers} /></div></div>
    <div class="columns even"><${Recipes} recipes=${numbers?.recipes ?? []} /><${Policies} numbers=${numbers} /></div>
    ${!numbers || Object.values(numbers.totals).every((n) => !n) ? html`<${Begin} status=${status} />` : null}
    <footer class="dim">The same as data: <a href="/flow.json">/flow.json</a> · this process: <a href="/metrics">/metrics</a></footer>
  </div>`;
}

function Banner({ status: { pool, numbers } }) {
  if (pool.state === "ok") return null;
  return html`<p class="warn" role="alert"><b>${WHY[pool.state]}</b> ${pool.detail}${numbers ? ` The numbers are those of ${moment(numbers.at)}.` : ""}</p>`;
}

// ---------------------------------------------------------------------------------------------------------------- strip

function Strip({ status }) {
  const numbers = status.numbers;
  const stages = Object.fromEntries((numbers?.stages ?? []).map((s) => [s.name, s]));
  const lag = Object.fromEntries(status.lags.map((l) => [l.name, l.records]));
  const recipes = numbers?.recipes ?? [];
  const ready = recipes.reduce((sum, r) => sum + r.ready, 0);
  const oldest = recipes.map((r) => r.oldest_ready).filter((t) => t !== null);
  const groups = numbers?.fates.group ?? {};
  const handed = numbers ? Math.max(0, (numbers.totals.cuts ?? 0) - (numbers.totals.trained ?? 0)) : null;
  const tokens = numbers ? html`${short(numbers.sampled_tokens)} tokens sampled` : null;
  return html`<section class=${`strip ${status.pool.state === "ok" ? "" : "stale"}`} aria-label="Flow">
    <${Stage} title="Gateway" what="calls" stage=${stages.calls} href=${listPath("state:running")} notes=${[
      status.calls_in_flight !== null && html`<a href=${listPath("state:running")}>${count(status.calls_in_flight)} in flight</a>`,
      numbers?.lost_calls ? html`<a class="bad-text" href=${listPath("complete:no")}>${count(numbers.lost_calls)} without a step</a>` : null]} />
    <${Stage} title="Steps" what="stored" stage=${stages.steps} href=${listPath("")} notes=${[
      numbers?.faulty_steps ? html`<a class="bad-text" href=${listPath("fault:*")}>${count(numbers.faulty_steps)} faulty</a>` : tokens,
      numbers?.broken_steps ? html`${count(numbers.broken_steps)} broken off` : null,
      status.dead_letters ? html`<span class="bad-text" title="claw dlq list shows them">${many(status.dead_letters, "dead letter")}</span>` : null,
      lag.sinks ? html`${count(lag.sinks)} not stored yet` : null]} />
    <${Stage} title="Trajectories" what="ended" stage=${stages.trajectories} href=${listPath("")} notes=${[
      status.open_groups !== null && html`<a href=${listPath("state:running")}>${count(status.open_groups)} groups open</a>`,
      html`<a href=${listPath("state:waiting")}>waiting</a>`, lag.streams ? html`${count(lag.streams)} not joined yet` : null]} />
    <${Stage} title="Groups" what="ready" stage=${stages.groups} href=${groupsPath("outcome:emitted")} notes=${[
      html`<a href=${listPath("state:ready")}>${count(ready)} waiting${ready && oldest.length ? `, ${ago(Math.min(...oldest))}` : ""}</a>`,
      html`<a href=${groupsPath("outcome:discarded")}>${count(groups.discarded ?? 0)} discarded</a>`,
      groups.held ? html`<a href=${groupsPath("outcome:held")}>${count(groups.held)} held</a>` : null]} />
    <${Stage} title="Batches" what="trained" stage=${stages.trained} href=${listPath("state:trained")} notes=${[
      handed !== null && html`<a href=${listPath("state:batched")}>${count(handed)} handed out</a>`]} />
  </section>`;
}

function Stage({ title, what, stage, href, notes }) {
  return html`<article>
    <h2>${title}${stage ? html`<span class=${`rate ${stage.per_second ? "" : "still"}`}>${rate(stage.per_second)}</span>` : null}</h2>
    <p class="big"><a href=${href}>${count(stage?.count)}</a><small>${what}</small></p>
    ${stage ? html`<${Bars} values=${stage.recent} label=${`${title}: rows of the last two minutes`} />` : null}
    <p class="dim notes">${notes.filter(Boolean).map((note, i) => html`${i ? " · " : ""}${note}`)}</p>
  </article>`;
}

// --------------------------------------------------------------------------------------------------------------- curves

function Curves({ recipes }) {
  const known = recipes.filter((r) => r.batches.length);
  const wanted = place.value.query.get("recipe");
  const by = place.value.query.get("x") ?? "batch";
  const chosen = known.find((r) => r.name === wanted) ?? known[0];
  const drawn = useMemo(() => (chosen ? curvesOf(chosen, by) : null), [chosen && JSON.stringify(chosen.batches.at(-1)), chosen?.batches.length, chosen?.name, by]);
  const tokens = useTokenCurves(chosen);
  const more = useMemo(() => (tokens ? tokenCurvesOf(chosen, by, tokens) : []), [drawn, tokens]); // the same until there is more: a chart that is zoomed stays so
  const missing = tokens ? Object.entries(tokens.missing) : [];
  return html`<section class="curves"><header><h2>Over batches</h2>
      ${known.length > 1 ? html`<label>recipe <select onChange=${(e) => go(withQuery({ recipe: e.target.value }), { replace: true })}>${known.map((r) => html`<option selected=${r.name === chosen.name}>${r.name}</option>`)}</select></label>` : html`<b>${chosen?.name}</b>`}
      <label>by <select onChange=${(e) => go(withQuery({ x: e.target.value }), { replace: true })}>${["batch", "policy", "time"].map((x) => html`<option selected=${x === by}>${x}</option>`)}</select></label>
    </header>
    ${drawn ? html`<div class="charts">${[...drawn, ...more].map((c) => html`<${Chart} key=${c.title + by} ...${c} />`)}</div>
      ${missing.map(([name, why]) => html`<p class="dim">${NAMES[name]}: not recorded, ${why}.</p>`)}` : html`<${Empty}>No batch yet. The curves begin with the first one that a trainer takes.</${Empty}>`}
  </section>`;
}

const NAMES = { entropy: "Entropy", mismatch: "Trainer − engine log-prob" };

// Curves of trained tokens are read anew with each new batch, not with each look at the page.
function useTokenCurves(recipe) {
  const address = recipe ? `/flow/curves.json?recipe=${encodeURIComponent(recipe.name)}` : null;
  const { data, of, reload } = useData(address);
  const newest = recipe?.batches.at(-1);
  const told = useRef({ address: null, now: null });
  const now = `${newest?.sequence} ${newest?.policy_version}`;
  useEffect(() => {
    if (told.current.address === address && told.current.now !== now) reload();
    told.current = { address, now };
  }, [address, now]);
  return of === address ? data : null; // else they are of another recipe
}

function tokenCurvesOf(recipe, by, { points }) {
  const known = new Map(points.map((p) => [p.sequence, p]));
  const of = (name) => axisOf(recipe, by).points.map((b) => known.get(b.sequence)?.[name] ?? null);
  const { x } = axisOf(recipe, by);
  const common = { x, time: by === "time", xName: by, unit: " nats" };
  return [
    { ...common, title: "Entropy of trained tokens", series: [{ name: "mean", values: of("entropy") }] },
    { ...common, title: "Drift: trainer − engine log-prob", series: [{ name: "mean", values: of("mismatch") }, { name: "mean of sizes", values: of("mismatch_abs") }] },
  ].filter((chart) => chart.series[0].values.some((v) => v !== null));
}

function axisOf(recipe, by) {
  const points = recipe.batches.filter((b) => by !== "policy" || b.policy_version !== null);
  return { points, x: points.map((b) => (by === "time" ? b.at : by === "policy" ? b.policy_version : b.sequence)) };
}

const smooth = (values, width = 5) => values.map((_, i) => {
  const seen = values.slice(Math.max(0, i - width + 1), i + 1).filter((v) => v !== null);
  return seen.length ? seen.reduce((a, b) => a + b, 0) / seen.length : null;
});

function curvesOf(recipe, by) {
  const { points, x } = axisOf(recipe, by);
  const of = (name) => points.map((b) => b[name]);
  const common = { x, time: by === "time", xName: by };
  const some = (values) => values.some((v) => v !== null);
  return [
    { ...common, title: "Reward", series: [{ name: "mean of 5", values: smooth(of("reward")), width: 2.5 }, { name: "batch", values: of("reward"), width: 1 }] },
    { ...common, title: "Deviation of rewards in a group", series: [{ name: "mean", values: of("reward_std") }] },
    { ...common, title: "Length of a sample", unit: " tokens", series: [{ name: "mean", values: of("length") }] },
    { ...common, title: "Staleness: versions behind at the cut", series: [{ name: "oldest token", values: of("stalest") }] },
    { ...common, title: "Prompts that do not go on exactly", unit: " %", series: [{ name: "drift and boundary", values: of("drift").map((v) => (v === null ? null : 100 * v)) }] },
  ].filter((chart) => some(chart.series[0].values));
}

// ------------------------------------------------------------------------------------------------------ lists of the side

function Processes({ status }) {
  const lag = Object.fromEntries(status.lags.map((l) => [l.name, l.records]));
  const behind = (p) => (p.state !== "ready" || lag[p.name] === undefined || lag[p.name] === null ? p.state : lag[p.name] === 0 ? "up to date" : `${count(lag[p.name])} behind`);
  return html`<section><h2>Processes</h2><ul class="processes">${status.processes.map((p) => html`<li>
    <i class=${`dot ${p.state}`} title=${p.state}></i><b>${p.name}</b><span class=${`rate ${lag[p.name] ? "" : "still"}`}>${behind(p)}</span><code class="dim">${p.detail || p.url}</code></li>`)}</ul>
    ${status.partly_asked.map((s) => html`<p class="dim">${s.stage}: ${count(s.asked)} of ${count(s.known)} asked; what waits, what is open and what is in flight is of those alone.</p>`)}
    ${status.engines.length ? html`<h2>Engines</h2><ul class="processes">${status.engines.map((e) => html`<li>
      <i class=${`dot ${e.up ? "ready" : e.up === null ? "" : "down"}`}></i><b>${e.name}</b><span class="rate still">${e.up ? "answers" : e.up === null ? "not known" : "does not answer"}</span>
      <code class="dim">${count(e.in_flight)} in flight${e.versions.length ? `, policy ${e.versions.join(", ")}` : ""}</code></li>`)}</ul>` : null}</section>`;
}

function LeftOut({ numbers }) {
  const reasons = [...(numbers?.left_out ?? [])].sort((a, b) => (a.about !== "group") - (b.about !== "group") || b.count - a.count).slice(0, REASONS);
  const most = Math.max(1, ...reasons.map((r) => r.count));
  const emitted = numbers?.fates.trajectory?.emitted ?? 0;
  return html`<section><header><h2>What became of trajectories</h2><${AsSql} of="funnel" /></header>
    <p class="funnel"><a href=${listPath("state:ready,batched,trained")}><b>${count(emitted)}</b> went into groups</a></p>
    ${reasons.length ? html`<table class="reasons"><tbody>${reasons.map((r) => html`<tr><td><a href=${(r.about === "group" ? groupsPath : listPath)(`reason:${quoted(r.reason)}`)}>${words(r.reason)}</a><small>${r.about} ${r.outcome}</small></td><td><${Share} part=${r.count} whole=${most} label=${String(r.count)} /></td><td class="number">${count(r.count)}</td></tr>`)}</tbody></table>` : html`<p class="dim">Nothing was left out.</p>`}
  </section>`;
}

function Recipes({ recipes }) {
  return html`<section><h2>Recipes</h2>${recipes.length ? recipes.map((r) => html`<article class="recipe">
    <h3>${r.name}<small>${r.version === null ? "" : `v${r.version}`}</small><a class="rate" href=${listPath(`recipe:${quoted(r.name)} state:ready`)}>${r.in_force ? `${count(r.ready)} groups ready${r.batch_groups ? ` of ${count(r.batch_groups)} for the next batch` : ""}` : "ended"}</a></h3>
    ${r.batch_groups ? html`<${Share} part=${r.ready} whole=${r.batch_groups} label=${`${r.ready} of ${r.batch_groups}`} />` : null}
    <dl>${[["run", r.run_id], ["channel", r.channel], ["algorithm", r.algorithm], ["group", r.group_size && `${r.group_size} trajectories`], ["batch", r.batch_groups ? `${r.batch_groups} groups` : r.batch_tokens && `${count(r.batch_tokens)} tokens`], ["last batch", r.batches.at(-1)?.sequence], ["oldest ready group", r.oldest_ready && ago(r.oldest_ready)]].filter(([, v]) => v).map(([k, v]) => html`<div><dt>${k}</dt><dd>${v}</dd></div>`)}</dl>
  </article>`) : html`<${Empty}>No recipe yet. <code>claw recipes apply FILE</code> puts one in force.</${Empty}>`}</section>`;
}

function Policies({ numbers }) {
  const lines = numbers?.policies ?? [];
  return html`<section><header><h2>Policies</h2><${AsSql} of="policies" /></header>${lines.length ? html`<table class="reasons"><tbody>${lines.slice(0, 8).map((p) => html`<tr>
    <td>${p.run_id}<small>${p.engine ?? "trained"}</small></td><td><a href=${listPath(`run:${quoted(p.run_id)} policy:${p.version}`)}>version ${p.version}</a></td><td class="number dim" title=${moment(p.at)}>${ago(p.at)}</td></tr>`)}</tbody></table>`
    : html`<${Empty}>No weights were named yet: a trainer names them with <code>batch.commit(policy_version=…)</code>.</${Empty}>`}</section>`;
}

function Begin({ status }) {
  return html`<section><h2>Point an agent at the gateway</h2><p>The pool is empty. Calls of an agent with this base URL show here:</p>
    <pre tabindex="0"><code>${`from openai import OpenAI\n\nclient = OpenAI(base_url="${status.urls.gateway}/TRAJECTORY/PROMPT/v1", api_key="none")\nclient.chat.completions.create(model="MODEL", messages=[{"role": "user", "content": "Hello"}])`}</code></pre></section>`;
}
