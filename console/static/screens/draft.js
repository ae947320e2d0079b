// A recipe being written: a form of its schema with presets, tried on the pool, published. The draft is in the address.
import { html, useEffect, useMemo, useState } from "../lib/ui.js";
import { post, useAnswer, useData } from "../lib/api.js";
import { listPath, setQuery, trajectoryPath } from "../lib/router.js";
import { useKeys } from "../lib/keys.js";
import { Conditions, SchemaForm, isObject, put } from "../lib/form.js";
import { count, quoted, short, words } from "../lib/format.js";
import { Figure, Stream } from "../lib/stream.js";
import { AsSql } from "../lib/table.js";
import { Failed, Loading } from "../lib/states.js";

const SLOW = 65000; // milliseconds that the pool and the stream workers may take
const BEGIN = { name: "new-recipe", algorithm: "grpo" };

export default function Draft({ query }) {
  const form = useData("/recipes/form.json");
  const known = useData("/recipes.json");
  const written = query.get("draft");
  const base = query.get("base");
  const value = useMemo(() => {
    if (written) {
      try { const said = JSON.parse(written); return isObject(said) ? said : BEGIN; } catch { return BEGIN; }
    }
    if (!base) return BEGIN;
    return known.data?.recipes.find((r) => r.name === base)?.recipe ?? null;
  }, [written, base, known.data]);
  const text = JSON.stringify(value);
  const [seen, setSeen] = useState({ recipe: null, faults: [], untold: [], of: null });
  const [error, setError] = useState(null);
  useEffect(() => {
    if (!value) return undefined;
    let gone = false;
    post("/recipes/check.json", { fields: value }).then((s) => { if (!gone) { setSeen((old) => ({ ...s, recipe: s.recipe ?? old.recipe, of: text })); setError(null); } }, (e) => { if (!gone) setError(e); });
    return () => { gone = true; };
  }, [text]);
  useKeys([{ key: "t", does: "try it on the pool", run: () => setQuery({ try: "1" }) }], "Recipe");
  if (form.error) return html`<${Failed} error=${form.error} retry=${form.reload} />`;
  if (known.data && !value) return html`<${Failed} error=${{ status: 404, message: `There is no recipe ${base} that is in force. ` }} />`;
  if (!form.data || !value) return html`<${Loading} />`;
  const change = (next) => setQuery({ draft: JSON.stringify(next), base: null, try: null, show: null });
  const preset = form.data.presets.find((p) => p.name === (value.algorithm ?? "grpo"));
  const ready = seen.of === text && !seen.faults.length && seen.recipe;
  return html`<div class="page"><header class="bar"><h1>${value.name}</h1>
      <label>Preset <select onChange=${(e) => change(put(value, ["algorithm"], e.target.value))}>${form.data.presets.map((p) => html`<option selected=${p === preset} value=${p.name}>${p.name}</option>`)}</select></label>
      <button onClick=${() => setQuery({ try: "1" })} disabled=${!ready}>Try on the pool <kbd>t</kbd></button><${Publish} fields=${value} ready=${ready} /></header>
    ${preset ? html`<p class="note">${preset.does} <a href=${preset.url} rel="noreferrer" target="_blank">${preset.paper}</a></p>` : null}
    ${error ? html`<${Failed} error=${error} />` : null}
    ${seen.faults.length ? html`<ul class="warn" role="alert">${seen.faults.map((f) => html`<li><b>${f.path || "recipe"}</b>: ${f.message}</li>`)}</ul>` : null}
    ${query.get("try") && ready ? html`<${Tried} fields=${value} untold=${seen.untold} show=${query.get("show")} recipe=${seen.recipe} inForce=${known.data?.recipes.some((r) => r.in_force && r.name === seen.recipe.name)} />` : null}
    <section><${SchemaForm} root=${form.data.schema} value=${value} used=${seen.recipe} faults=${seen.faults} onChange=${change} />
      <${Conditions} conditions=${form.data.conditions} value=${value} faults=${seen.faults} onChange=${change} />
      <${AsText} value=${value} onChange=${change} /></section>
  </div>`;
}

function AsText({ value, onChange }) {
  const [error, setError] = useState(null);
  const read = (event) => {
    try {
      const said = JSON.parse(event.target.value);
      if (!isObject(said)) throw new TypeError('A recipe is an object: {"name": …}.');
      onChange(said);
      setError(null);
    } catch (fault) { setError(fault.message); }
  };
  return html`<details><summary>As JSON</summary><textarea class="code" rows="12" spellcheck="false" aria-label="The recipe as JSON" value=${JSON.stringify(value, null, 1)} onChange=${read}></textarea>${error ? html`<p class="fault" role="alert">${error}</p>` : null}<p class="dim">What is not said here is the preset's or the default. <code>claw recipes apply FILE</code> takes the same.</p></details>`;
}

// ------------------------------------------------------------------------------------------------------------- dry run

function Tried({ fields, untold, show, recipe, inForce }) {
  const { data, error, again } = useAnswer("/recipes/dry-run.json", { fields }, SLOW);
  if (untold.length) return html`<p class="warn" role="alert">The pool does not tell ${untold.join(", ")}: leave these filters out to try the others.</p>`;
  if (error) return html`<${Failed} error=${error} retry=${again} />`;
  if (!data) return html`<p class="note" role="status">Judging what the pool has …</p>`;
  const of = (about) => data.counts.filter((c) => c.about === about);
  const sum = (rows) => rows.reduce((total, row) => total + row.number, 0);
  const groups = of("group");
  const left = groups.filter((g) => g.outcome !== "emitted");
  const emitted = of("trajectory").filter((t) => t.outcome === "emitted");
  const total = (name) => emitted.reduce((all, row) => all + row[name], 0);
  const batches = Math.floor(recipe.batch.tokens ? total("tokens") / recipe.batch.tokens : sum(groups.filter((g) => g.outcome === "emitted")) / recipe.batch.groups);
  return html`<section class="tried" aria-label="Dry run"><header><h2>What would become of what has ended in run ${recipe.run_id}, channel ${recipe.channel}</h2><button class="quiet" onClick=${again}>Again</button><${AsSql} of="dry-run" draft=${JSON.stringify(fields)} /></header>
    ${groups.length ? html`<p class="sentence"><b>${count(sum(groups))}</b> groups${left.length ? ": " : ""}${left.map((g, i) => html`${i ? ", " : ""}<${Number} row=${g} show=${show} /> ${words(g.reason)}`)} → <${Number} row=${groups.find((g) => g.outcome === "emitted") ?? { about: "group", outcome: "emitted", reason: "complete", number: 0 }} show=${show} /> to train, ${count(batches)} batches${emitted.length ? html`; <b>${short(total("tokens"))} tokens</b>, ${short(total("sampled"))} of them sampled` : ""}</p>
      <p class="sentence dim">${count(sum(of("trajectory")))} trajectories: ${of("trajectory").map((t, i) => html`${i ? ", " : ""}<${Number} row=${t} show=${show} /> ${t.outcome === "emitted" ? "trained" : words(t.reason)}${t.tokens ? html` <small>${short(t.tokens)} tokens</small>` : ""}`)}</p>`
      : html`<p>The pool has no ended trajectory of this run and channel.</p>`}
    ${show ? html`<${Behind} fields=${fields} show=${show} />` : null}
    ${inForce ? html`<${Stream} key=${recipe.name} name=${recipe.name} run=${recipe.run_id} />` : html`<p class="dim">No recipe ${recipe.name} is in force: the streams have judged nothing for it. What has not ended yet is not counted.</p>`}</section>`;
}

const nameOf = (row) => [row.about, row.outcome, row.reason].join("/");
const Number = ({ row, show }) => html`<${Figure} value=${row.number} name=${nameOf(row)} shown=${show} onShow=${(name) => setQuery({ show: name })} title=${`${row.about} ${row.outcome}: ${words(row.reason)}`} />`;

function Behind({ fields, show }) {
  const [about, outcome, ...reason] = show.split("/");
  const { data, error, again } = useAnswer("/recipes/dry-run/list.json", { fields, about, outcome, reason: reason.join("/") }, SLOW);
  if (error) return html`<${Failed} error=${error} retry=${again} />`;
  if (!data) return html`<p role="status" class="dim">Reading …</p>`;
  return html`<div class="behind"><p class="dim">${about} ${outcome}: ${words(reason.join("/"))}${data.rows.length === data.most ? `, the first ${count(data.most)}` : ""}</p>
    <ul>${data.rows.map((r) => html`<li><a href=${r.trajectory_uid ? trajectoryPath(r.trajectory_uid) : listPath(`group:${quoted(r.group_id)}`)}>${r.trajectory_uid || r.group_id}</a></li>`)}</ul></div>`;
}

// ------------------------------------------------------------------------------------------------------------- publish

function Publish({ fields, ready }) {
  const [state, setState] = useState({ sure: false, busy: false, said: null, error: null });
  useEffect(() => setState({ sure: false, busy: false, said: null, error: null }), [JSON.stringify(fields)]);
  const publish = async () => {
    if (state.busy) return;
    setState({ ...state, busy: true });
    try { setState({ sure: false, busy: false, error: null, said: await post("/recipes.json", { fields }, { deadline: SLOW }) }); } catch (error) { setState({ sure: false, busy: false, said: null, error }); }
  };
  if (state.said) return html`<span class="note" role="status">Version ${state.said.version} of <a href="/recipes">${state.said.name}</a> is in force: it judges the groups that begin from now on.${state.said.warnings.map((w) => html`<p class="bad-text">Warning: ${w}</p>`)}</span>`;
  return html`${state.error ? html`<span class="bad-text" role="alert">${state.error.message}</span>` : null}
    ${state.sure ? html`<button class="primary" aria-disabled=${state.busy} onClick=${publish}>Yes, ${fields.name} judges what begins from now on</button>` : html`<button disabled=${!ready} onClick=${() => setState({ ...state, sure: true })}>Publish …</button>`}`;
}
