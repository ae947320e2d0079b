// Curate: one trajectory after the other of a queue, judged with a key each. A queue is a filter, and so is its address.
import { html, useEffect, useLayoutEffect, useRef, useState } from "../lib/ui.js";
import { get, useData } from "../lib/api.js";
import { listPath, setQuery, stepData, trajectoryPath, withWords } from "../lib/router.js";
import { useKeys } from "../lib/keys.js";
import { FilterBox } from "../lib/filter.js";
import { Messages } from "../lib/messages.js";
import { AuthorField, DecisionForm, author, decide, lastDone, undo } from "../lib/decide.js";
import { ago, count, many, number, quoted } from "../lib/format.js";
import { Badge, Empty, Failed, Loading } from "../lib/states.js";

export default function Curate({ query }) {
  const { data, error, reload } = useData("/curate.json");
  const [shown, setShown] = useState(false); // what waits is read first, what else could be read after it
  const recipes = useData(shown ? "/recipes.json" : null);
  const filter = query.get("q") ?? data?.queues[0].q;
  if (error && !data) return html`<${Failed} error=${error} retry=${reload} />`;
  if (filter === undefined) return html`<${Loading} />`;
  const held = (recipes.data?.recipes ?? []).filter((r) => r.in_force).map((r) => ({ name: r.name, title: r.name, q: `recipe:${quoted(r.name)} state:held,ready decided:no`, meaning: "Of this recipe, before a batch has them" }));
  const link = (queue) => html`<li><a href=${`/curate?q=${encodeURIComponent(queue.q)}`} aria-current=${queue.q === filter ? "page" : null}>${queue.title}</a><small>${queue.meaning}</small></li>`;
  return html`<div class="page list-page"><header class="bar"><h1>Curate</h1>
      <${FilterBox} value=${filter} onChange=${(q) => setQuery({ q, at: null }, { replace: false })} error=${null} />
      <a class="button" href=${listPath(filter)}>As a list</a></header>
    <div class="queue-page">
      <nav class="queues" aria-label="Queues"><h2>Queues</h2><ul>${(data?.queues ?? []).map(link)}</ul>${held.length ? html`<h2>By recipe</h2><ul>${held.map(link)}</ul>` : null}
        <p class="dim">Any filter is a queue: <code>tag:hack decided:no</code>, <code>author:ada</code>.</p></nav>
      <${Queue} key=${filter} filter=${filter} at=${query.get("at")} onShown=${() => setShown(true)} />
    </div></div>`;
}

// The rows of a queue, read on when they run out; those that were judged here leave it.
function useQueue(filter) {
  const [state, setState] = useState({ rows: [], next: null, error: null, loading: true });
  const asked = useRef(null); // behind which row it is being read
  const read = async (after) => {
    if (asked.current === after) return; // keys come faster than answers
    asked.current = after;
    try {
      const data = await get(withWords("/trajectories.json", { q: filter, after }));
      if (asked.current === after) setState((old) => ({ rows: after ? [...old.rows, ...data.rows] : data.rows, next: data.next, error: null, loading: false }));
    } catch (error) { if (asked.current === after) setState((old) => ({ ...old, error, loading: false })); }
    if (asked.current === after) asked.current = null;
  };
  const reload = () => { setState((old) => ({ ...old, error: null, loading: true })); read(""); };
  useLayoutEffect(() => { read(""); }, [filter]);
  return { ...state, more: () => { if (state.next) read(state.next); }, reload };
}

function Queue({ filter, at, onShown }) {
  const queue = useQueue(filter);
  useEffect(() => { if (!queue.loading) onShown(); }, [queue.loading]);
  const [judged, setJudged] = useState(new Map());
  const [form, setForm] = useState(null);
  const [fault, setFault] = useState(null);
  const busy = useRef(false);
  const rows = queue.rows;
  const place = Math.max(0, rows.findIndex((r) => r.id === at));
  const row = rows[place];
  const step = (by) => {
    const to = rows[place + by];
    if (place + by >= rows.length - 3) queue.more();
    if (to) setQuery({ at: to.id });
  };
  // The row itself, also where a word on it has taken it out of the filter. A group that is held goes on with a word on the group.
  const meant = (action) => ({ q: row.state === "running" ? "state:running" : "", ids: [row.id], about: action === "keep" && row.state === "held" ? "group" : "trajectory" });
  const say = async (action) => {
    if (!row || busy.current) return;
    if (!author.value) { setForm(action); return; }
    busy.current = true;
    setFault(null);
    try {
      await decide({ ...meant(action), action });
      setJudged(new Map(judged).set(row.id, action));
      step(1);
    } catch (error) { setFault(error); }
    busy.current = false;
  };
  const back = async () => {
    if (!lastDone.value) return;
    const gone = new Set(lastDone.value.decisions.map((d) => d.trajectory));
    const groups = new Set(lastDone.value.decisions.filter((d) => !d.trajectory).map((d) => d.prompt));
    if (await undo(lastDone.value.decisions)) setJudged(new Map([...judged].filter(([id]) => !gone.has(id) && !groups.has(rows.find((r) => r.id === id)?.prompt))));
  };
  useKeys([
    { key: "y", does: "keep", run: () => { say("keep"); } },
    { key: "n", does: "veto", run: () => { say("veto"); } },
    { key: "s", does: "skip", run: () => step(1) },
    { key: "k", does: "back", run: () => step(-1) },
    { key: "r", does: "another reward", run: () => row && setForm("override_reward") },
    { key: "t", does: "tag", run: () => row && setForm("tag") },
    { key: "m", does: "note", run: () => row && setForm("note") },
    { key: "z", does: "undo", run: () => { back(); } },
  ], "Curate");
  if (queue.error && !row) return html`<section class="queue"><${Failed} error=${queue.error} retry=${queue.reload} /></section>`;
  if (queue.loading) return html`<section class="queue"><${Loading} /></section>`;
  if (!row) return html`<section class="queue"><${Empty}>Nothing waits in this queue. <button onClick=${queue.reload}>Look again</button></${Empty}></section>`;
  const word = judged.get(row.id);
  return html`<section class="queue" aria-label="Under review">
    <header class="bar"><h2>${count(place + 1)} of ${count(rows.length)}${queue.next ? "+" : ""}</h2><a class="id" href=${trajectoryPath(row.id)}>${row.id}</a>
      <${Badge} kind=${row.state}>${row.state}</${Badge}>${word ? html`<${Badge} kind="tag">${word}</${Badge}>` : null}
      <span class="dim">reward <b>${number(row.reward)}</b>${Object.keys(row.rewards).length > 1 ? ` (${Object.entries(row.rewards).map(([k, v]) => `${k} ${number(v)}`).join(", ")})` : ""} · ${many(row.steps, "step")} · ${row.task ?? row.env ?? row.group} · ${ago(row.at)}</span></header>
    ${author.value ? null : html`<p class="note"><${AuthorField} /></p>`}
    <div class="verdicts" role="group" aria-label="Judge">
      <button onClick=${() => say("keep")}>Keep <kbd>y</kbd></button><button onClick=${() => say("veto")}>Veto <kbd>n</kbd></button><button onClick=${() => step(1)}>Skip <kbd>s</kbd></button>
      <button onClick=${() => setForm("override_reward")}>Reward <kbd>r</kbd></button><button onClick=${() => setForm("tag")}>Tag <kbd>t</kbd></button><button onClick=${() => setForm("note")}>Note <kbd>m</kbd></button>
    </div>
    ${fault ? html`<p class="warn" role="alert">${fault.message}</p>` : null}
    ${queue.error ? html`<${Failed} error=${queue.error} retry=${queue.more} />` : null}
    ${form ? html`<${DecisionForm} wanted=${meant(form)} of=${row.id} action=${form} onClose=${() => setForm(null)} />` : null}
    <${Last} uid=${row.id} />
  </section>`;
}

function Last({ uid }) {
  const { data, error, of, reload } = useData(stepData(uid));
  if (error) return html`<${Failed} error=${error} retry=${reload} />`;
  if (of !== stepData(uid)) return html`<div class="scroll conversation"><${Loading} /></div>`;
  if (!data.id) return html`<${Empty}>No step of it is stored.</${Empty}>`;
  return html`<div class="scroll conversation" tabindex="0" role="region" aria-label="Conversation"><${Messages} messages=${data.messages} /></div>`;
}
