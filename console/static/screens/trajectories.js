// Trajectories: any number of rows in keyset pages, narrowed by a filter in the address, followed live, read with j k Esc.
import { html, useEffect, useMemo, useRef, useState } from "../lib/ui.js";
import { useData } from "../lib/api.js";
import { useRows } from "../lib/rows.js";
import { go, place, setQuery, stepData, trajectoryData, trajectoryPath, withWords } from "../lib/router.js";
import { useKeys } from "../lib/keys.js";
import { useCommands } from "../lib/palette.js";
import { FilterBox, withTerm } from "../lib/filter.js";
import { AsSql, Table } from "../lib/table.js";
import { load, save } from "../lib/prefs.js";
import { ago, between, count, many, moment, number, quoted, span, time, words } from "../lib/format.js";
import { Badge, Empty, Failed, Loading } from "../lib/states.js";
import { Messages } from "../lib/messages.js";
import { DecisionForm, useDecided } from "../lib/decide.js";
import { ExportForm } from "../lib/export.js";
import { Saved } from "../lib/saved.js";

const MOST_PICKED = 500; // of those that are named one by one

const COLUMNS = [
  { name: "at", title: "ended", hint: "when the pool's log got its end", cell: (r) => html`<span title=${moment(r.at)}>${time(r.at)}</span>` },
  { name: "id", title: "trajectory", cell: (r) => html`<a class="id" href=${trajectoryPath(r.id)} tabindex="-1">${r.id}</a>` },
  { name: "state", title: "state", cell: (r) => html`<${Badge} kind=${r.state}>${r.state}</${Badge}>`, term: (r) => `state:${r.state}` },
  { name: "reward", title: "reward", number: true, cell: (r) => html`<${Reward} value=${r.reward} />`, term: (r) => (r.reward === null ? null : `reward:${r.reward}`) },
  { name: "steps", title: "steps", number: true, cell: (r) => count(r.steps), term: (r) => `steps:${r.steps}` },
  { name: "tokens", title: "tokens", hint: "of the longest step with its prompt", number: true, cell: (r) => count(r.tokens) },
  { name: "policy", title: "policy", number: true, cell: (r) => between(r.policy_oldest, r.policy), term: (r) => (r.policy === null ? null : `policy:${r.policy}`) },
  { name: "status", title: "status", cell: (r) => html`${r.status}${r.complete ? "" : html` <${Badge} kind="discarded">incomplete</${Badge}>`}`, term: (r) => `status:${r.status}` },
  { name: "reason", title: "reason", cell: (r) => r.reasons.map(words).join(", "), term: (r) => (r.reasons.length ? `reason:${r.reasons[0]}` : null) },
  { name: "env", title: "env", cell: (r) => r.env ?? "", term: (r) => (r.env ? `env:${quoted(r.env)}` : null) },
  { name: "task", title: "task", cell: (r) => r.task ?? "", term: (r) => (r.task ? `task:${quoted(r.task)}` : null) },
  { name: "group", title: "group", cell: (r) => r.group, term: (r) => `group:${quoted(r.group)}` },
  { name: "run", title: "run", cell: (r) => r.run, term: (r) => `run:${quoted(r.run)}` },
  { name: "channel", title: "channel", cell: (r) => r.channel ?? "", term: (r) => (r.channel ? `channel:${quoted(r.channel)}` : null) },
  { name: "model", title: "model", cell: (r) => r.model ?? "", term: (r) => (r.model ? `model:${quoted(r.model)}` : null) },
  { name: "batch", title: "batch", number: true, cell: (r) => r.batches.map((b) => b.sequence).join(", ") },
  { name: "tags", title: "tags", cell: (r) => r.tags.map((t) => html`<${Badge} kind="tag">${t}</${Badge}> `), term: (r) => (r.tags.length ? `tag:${quoted(r.tags[0])}` : null) },
  { name: "seconds", title: "took", number: true, cell: (r) => span(r.seconds) },
  { name: "sampled", title: "sampled", number: true, cell: (r) => count(r.sampled) },
];
const SHOWN = ["at", "id", "state", "reward", "steps", "tokens", "policy", "reason", "env", "task", "batch", "tags"];

function Reward({ value }) {
  if (value === null) return "–";
  const share = Math.max(0, Math.min(1, value));
  return html`${number(value)}<svg class="spark" viewBox="0 0 30 8" preserveAspectRatio="none" aria-hidden="true"><rect class="rest" width="30" height="8" /><rect width=${30 * share} height="8" /></svg>`;
}

export default function Trajectories({ query }) {
  const filter = query.get("q") ?? "";
  const chosen = query.get("peek");
  const now = () => place.value.query.get("peek"); // keys may come faster than the page is drawn
  const live = query.get("live") !== "off";
  const columns = (query.get("columns")?.split(",") ?? load("columns", SHOWN)).map((name) => COLUMNS.find((c) => c.name === name)).filter(Boolean);
  const list = useRows("trajectories", filter, live);
  const picks = usePicks(list.rows, filter);
  const [deciding, setDeciding] = useState(false);
  const [exporting, setExporting] = useState(false);
  useDecided(list.reload);
  const box = useRef(null);
  const setFilter = (q) => setQuery({ q, peek: null }, { replace: false });
  const addTerm = (term) => setFilter(withTerm(filter, term));
  const move = (by) => {
    if (!list.rows.length) return;
    const at = list.rows.findIndex((r) => r.id === now());
    const to = at < 0 ? 0 : Math.max(0, Math.min(list.rows.length - 1, at + by));
    if (to >= list.rows.length - 5 && list.next) list.more();
    setQuery({ peek: list.rows[to].id });
  };
  useKeys([
    { key: "/", does: "to the filter", run: () => box.current.focus() },
    { key: "j", does: "next: peek", run: () => move(1) },
    { key: "k", does: "previous", run: () => move(-1) },
    { key: "Enter", does: "open", run: () => (now() ? go(trajectoryPath(now())) : false) },
    { key: "Escape", does: "close the peek", run: () => (now() ? setQuery({ peek: null }) : false) },
    { key: "p", does: "pause or follow", run: () => setQuery({ live: live ? "off" : null }) },
    { key: "x", does: "pick the row", run: () => (now() ? picks.pick(now(), false) : false) },
    { key: "X", does: "pick up to the row", run: () => (now() ? picks.pick(now(), true) : false) },
    { key: "d", does: "decide on what is picked", run: () => (picks.some ? setDeciding(true) : false) },
    { key: "e", does: "export what is picked", run: () => (picks.some ? setExporting(true) : false) },
    { key: "n", does: "show what is new", run: () => list.show() },
  ], "Trajectories");
  useCommands(useMemo(() => [{ title: "Pause or follow the list", hint: "p", run: () => setQuery({ live: place.value.query.get("live") === "off" ? null : "off" }) }], []));
  const wrong = list.error?.status === 400 ? list.error : null;
  return html`<div class=${`page list-page ${chosen ? "peeking" : ""}`}>
    <header class="bar"><h1>Trajectories</h1>
      <${FilterBox} value=${filter} onChange=${setFilter} error=${wrong} box=${box} />
      <${Total} filter=${filter} when=${!wrong && !list.loading} />
      ${list.waiting ? html`<button class="new" onClick=${list.show}>${count(list.waiting)} new</button>` : null}
      <button aria-pressed=${!live} onClick=${() => setQuery({ live: live ? "off" : null })}>${live ? "Pause" : "Follow"}</button>
      <${Chooser} shown=${columns} /><${Saved} kind="views" title="Views" />
      <${AsSql} of="trajectories" q=${filter} />
    </header>
    <${Picked} picks=${picks} filter=${filter} onDecide=${() => setDeciding(true)} onExport=${() => setExporting(true)} />
    ${exporting ? html`<${ExportForm} wanted=${{ q: filter, ids: picks.all ? null : [...picks.set] }} of=${picks.all ? "all that fit" : `${count(picks.set.size)} picked`} onClose=${() => setExporting(false)} />` : null}
    ${deciding ? html`<${DecisionForm} wanted=${{ q: filter, ids: picks.all ? null : [...picks.set] }} of=${picks.all ? "all that fit" : `${count(picks.set.size)} picked`}
      onClose=${(done) => { setDeciding(false); if (done) picks.clear(); }} />` : null}
    ${list.fault ? html`<p class="warn" role="alert">No news: ${list.fault}</p>` : null}
    ${list.error && !wrong ? html`<${Failed} error=${list.error} retry=${list.reload} />` : null}
    <div class="split"><div class="list">
      ${wrong ? html`<${Empty}>The list stays as it was until the filter can be read.</${Empty}>` : null}
      ${list.rows.length ? html`<${Table} label="Trajectories" columns=${columns} rows=${list.rows} chosen=${chosen} fresh=${list.fresh} onTerm=${addTerm} picked=${picks.set} onPick=${picks.pick}
        onChoose=${(id) => setQuery({ peek: id === chosen ? null : id })} />
        ${list.next ? html`<button class="more" onClick=${list.more}>More (${count(list.rows.length)} shown)</button>` : html`<p class="dim end">These are all ${count(list.rows.length)}.</p>`}`
      : list.loading ? html`<${Loading} />` : wrong || list.error ? null : html`<${Empty}>${filter ? html`No trajectory fits. <button onClick=${() => setFilter("")}>Show all</button>` : html`No trajectory has ended yet. <a href="/trajectories?q=state:running">Those that run now</a>, or <a href="/flow">point an agent at the gateway</a>.`}</${Empty}>`}
    </div>
    ${chosen ? html`<${Peek} uid=${chosen} row=${list.rows.find((r) => r.id === chosen)} />` : null}</div>
  </div>`;
}

// The rows that are picked, by id; with Shift all up to the one picked before.
function usePicks(rows, filter) {
  const [set, setSet] = useState(new Set());
  const [all, setAll] = useState(false);
  const last = useRef(null);
  const clear = () => { setSet(new Set()); setAll(false); last.current = null; };
  useEffect(clear, [filter]);
  const pick = (id, range) => {
    const next = new Set(set);
    const [from, to] = [rows.findIndex((r) => r.id === last.current), rows.findIndex((r) => r.id === id)];
    if (range && from >= 0) for (const row of rows.slice(Math.min(from, to), Math.max(from, to) + 1)) next.add(row.id);
    else if (next.has(id)) next.delete(id);
    else next.add(id);
    last.current = id;
    setAll(false);
    setSet(new Set([...next].slice(0, MOST_PICKED)));
  };
  return { set, all, some: all || set.size > 0, pick, clear, takeAll: () => setAll(true) };
}

function Picked({ picks, filter, onDecide, onExport }) {
  if (!picks.some) return null;
  return html`<div class="note picked-bar" role="status"><b>${picks.all ? `All that fit${filter ? "" : " (the whole pool)"}` : `${count(picks.set.size)} picked${picks.set.size === MOST_PICKED ? ", the most at once" : ""}`}</b>
    <button onClick=${onDecide}>Decide … <kbd>d</kbd></button><button onClick=${onExport}>Export … <kbd>e</kbd></button>
    ${picks.all ? null : html`<button onClick=${picks.takeAll}>Take all that fit</button>`}
    <button class="quiet" onClick=${picks.clear}>None</button></div>`;
}

// The whole pool is counted behind the rows, which are what somebody waits for.
function Total({ filter, when }) {
  const address = withWords("/trajectories/count.json", { q: filter });
  const { data, of } = useData(when ? address : null);
  return html`<span class="dim total" role="status">${data && of === address ? `${count(data.count)} ${filter ? "fit" : "in the pool"}` : ""}</span>`;
}

function Chooser({ shown }) {
  const names = shown.map((c) => c.name);
  const toggle = (name) => {
    const wanted = COLUMNS.map((c) => c.name).filter((n) => (n === name ? !names.includes(n) : names.includes(n)));
    save("columns", wanted);
    setQuery({ columns: wanted.join(",") });
  };
  return html`<details class="chooser"><summary>Columns</summary><div>${COLUMNS.map((c) => html`<label><input type="checkbox" checked=${names.includes(c.name)} onChange=${() => toggle(c.name)} /> ${c.title}</label>`)}</div></details>`;
}

function Peek({ uid, row }) {
  const { data: read, error, reload } = useData(trajectoryData(uid));
  const data = read?.id === uid ? read : null; // until the new ones come, the data are of another trajectory
  const step = useData(stepData(uid));
  const last = step.of === stepData(uid) ? step.data : null;
  return html`<aside class="peek" aria-label="Peek">
    <header><h2><a href=${trajectoryPath(uid)}>${uid}</a></h2><button class="quiet" aria-label="Close the peek" onClick=${() => setQuery({ peek: null })}>✕</button></header>
    ${row ? html`<p><${Badge} kind=${row.state}>${row.state}</${Badge}> reward <b>${number(row.reward)}</b> · ${many(row.steps, "step")} · ${ago(row.at)}</p>` : null}
    ${error ? html`<${Failed} error=${error} retry=${reload} />` : null}
    ${data?.waits_for ? html`<p class="note">Waits for ${data.waits_for}.</p>` : null}
    ${last?.id ? html`<${Messages} messages=${last.messages} />` : last ? html`<p class="dim">No step of it is stored.</p>` : error ? null : step.error ? html`<${Failed} error=${step.error} retry=${step.reload} />` : html`<${Loading} />`}
  </aside>`;
}
