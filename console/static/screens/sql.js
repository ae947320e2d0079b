// SQL: a statement of an analyst, who may read and nothing else; its answer as a table, a chart, a file. It is in the address.
import { html, useEffect, useInView, useMemo, useRef, useState } from "../lib/ui.js";
import { get, post, useData } from "../lib/api.js";
import { setQuery } from "../lib/router.js";
import { useKeys } from "../lib/keys.js";
import { Chart } from "../lib/chart.js";
import { Saved } from "../lib/saved.js";
import { count, many, span } from "../lib/format.js";
import { Empty, Failed, Loading } from "../lib/states.js";

const WORDS = "SELECT FROM FINAL WHERE GROUP BY ORDER LIMIT AND OR NOT IN LIKE AS WITH JOIN INNER LEFT ON HAVING DISTINCT DESC count avg sum min max quantile countIf avgIf uniq arraySum arrayMap toDate toStartOfMinute toStartOfHour round".split(" ");
const BEGIN = "SELECT status, count() AS trajectories, avg(length(step_ids)) AS steps\nFROM trajectories FINAL\nGROUP BY status";

export default function Sql({ query }) {
  const schema = useData("/sql.json");
  const asked = query.get("sql");
  const [text, setText] = useState(asked ?? "");
  const [answer, setAnswer] = useState({ data: null, error: null, busy: false, of: null });
  const box = useRef(null);
  const from = query.get("from"); // a table of a screen, with the words that say of what
  const words = from === null ? "" : String(new URLSearchParams([...query].filter(([name]) => name !== "from")));
  useEffect(() => {
    if (from === null) return undefined;
    let gone = false;
    const without = Object.fromEntries([...query.keys()].map((name) => [name, null]));
    get(`/sql/${encodeURIComponent(from)}.json?${words}`).then((s) => { if (!gone) setQuery({ ...without, sql: s.sql }); }, (error) => { if (!gone) setAnswer({ data: null, error, busy: false }); });
    return () => { gone = true; };
  }, [from, words]);
  useEffect(() => {
    if (asked === null) { setAnswer({ data: null, error: null, busy: false, of: null }); return undefined; }
    let gone = false;
    setText(asked);
    setAnswer((old) => ({ ...old, busy: true, error: null }));
    post("/sql.json", { sql: asked }, { deadline: 65000 }).then((data) => { if (!gone) setAnswer({ data, error: null, busy: false, of: asked }); }, (error) => { if (!gone) setAnswer({ data: null, error, busy: false, of: asked }); });
    return () => { gone = true; };
  }, [asked, query.get("run")]);
  const run = () => { if (text.trim()) setQuery({ sql: text, run: text === asked ? String(Number(query.get("run") ?? 0) + 1) : null }, { replace: false }); };
  useKeys([{ key: "/", does: "to the statement", run: () => box.current.focus() }, { key: "Ctrl+Enter", does: "ask", run }], "SQL");
  const put = (word) => {
    const field = box.current;
    field.focus();
    field.setRangeText(word, field.selectionStart, field.selectionEnd, "end");
    setText(field.value);
  };
  return html`<div class="page sql-page"><header class="bar"><h1>SQL</h1><button class="primary" onClick=${() => { if (!answer.busy) run(); }} aria-disabled=${answer.busy}>${answer.busy ? "Asking …" : html`Ask <kbd>Ctrl ⏎</kbd>`}</button>
      <${Saved} kind="statements" title="Kept" />${asked ? html`<a class="button" download href=${`/sql.csv?sql=${encodeURIComponent(asked)}`}>csv</a><a class="button" download href=${`/sql.parquet?sql=${encodeURIComponent(asked)}`}>parquet</a>` : null}
      <${Limits} limits=${schema.data?.limits} /></header>
    <div class="sql-columns"><${Schema} schema=${schema} put=${put} />
      <div class="stack"><${Editor} text=${text} setText=${setText} box=${box} run=${run} tables=${schema.data?.tables ?? []} />
        ${answer.error ? answer.error.status === 400 ? html`<div class="warn refused" role="alert"><b>Refused.</b> ${answer.error.message}</div>` : html`<${Failed} error=${answer.error} retry=${asked === null ? null : run} />` : answer.data ? html`<${Answer} data=${answer.data} query=${query} />` : answer.busy ? html`<${Loading} />` : html`<${Empty}>Write a statement, or <button onClick=${() => setText(BEGIN)}>begin with one</button>. Tables are read with FINAL, as the pool keeps rows of retries until it merges them.</${Empty}>`}
      </div></div></div>`;
}

const Limits = ({ limits }) => (limits ? html`<span class="dim">reads only · ${count(limits.seconds)} s · ${count(limits.memory / 2 ** 30)} GiB · ${count(limits.shown)} rows shown, ${count(limits.in_a_file)} in a file</span>` : null);

// -------------------------------------------------------------------------------------------------------------- editor

function Editor({ text, setText, box, run, tables }) {
  const [offers, setOffers] = useState([]);
  const [chosen, setChosen] = useState(0);
  const list = useRef(null);
  useInView(list, chosen);
  const wordAt = () => /[\w.]*$/.exec(box.current.value.slice(0, box.current.selectionStart))[0];
  const known = useMemo(() => [...new Set([...WORDS, ...tables.map((t) => t.name), ...tables.flatMap((t) => t.columns.map((c) => c.name))])], [tables]);
  const type = (event) => {
    setText(event.target.value);
    const word = wordAt();
    const near = tables.filter((t) => new RegExp(`\\b${t.name}\\b`).test(event.target.value)).flatMap((t) => t.columns.map((c) => c.name));
    const fits = (w) => w.toLowerCase().startsWith(word.toLowerCase()) && w !== word;
    setOffers(word.length < 2 ? [] : [...new Set([...near.filter(fits), ...known.filter(fits)])].slice(0, 8));
    setChosen(0);
  };
  const take = (offer) => {
    const field = box.current, at = field.selectionStart;
    field.focus();
    field.setRangeText(offer, at - wordAt().length, at, "end"); // at once: the next key may be down already
    setText(field.value);
    setOffers([]);
  };
  const press = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { setOffers([]); run(); }
    else if (offers.length && event.key === "ArrowDown") setChosen((chosen + 1) % offers.length);
    else if (offers.length && event.key === "ArrowUp") setChosen((chosen + offers.length - 1) % offers.length);
    else if (offers.length && event.key === "Tab" && !event.shiftKey) take(offers[chosen]);
    else if (event.key === "Escape") { if (offers.length) setOffers([]); else box.current.blur(); }
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  return html`<div class="filter editor"><textarea ref=${box} class="code" rows="8" spellcheck="false" autocomplete="off" aria-label="Statement" aria-autocomplete="list" aria-controls="sql-offers" aria-activedescendant=${offers.length ? `sql-offer-${chosen}` : null}
      placeholder=${BEGIN} value=${text} onInput=${type} onKeyDown=${press} onBlur=${() => setTimeout(() => setOffers([]), 150)}></textarea>
    <ul ref=${list} id="sql-offers" role="listbox" aria-label="Words" hidden=${!offers.length}>${offers.map((o, i) => html`<li id=${`sql-offer-${i}`} role="option" aria-selected=${i === chosen} onMouseDown=${(e) => { e.preventDefault(); take(o); }}><code>${o}</code></li>`)}</ul></div>`;
}

function Schema({ schema, put }) {
  const [text, setText] = useState("");
  if (schema.error) return html`<nav class="queues"><${Failed} error=${schema.error} retry=${schema.reload} /></nav>`;
  const wanted = text.trim().toLowerCase();
  const fits = (t) => !wanted || t.name.includes(wanted) || t.columns.some((c) => c.name.includes(wanted));
  return html`<nav class="queues schema" aria-label="Tables"><input type="search" aria-label="Find a table or a column" placeholder="Find a table or a column" value=${text} onInput=${(e) => setText(e.target.value)} />
    ${(schema.data?.tables ?? []).filter(fits).map((t) => html`<details key=${t.name} open=${Boolean(wanted) && t.columns.length < 80}><summary title=${t.meaning}>${t.name}${t.view ? html` <small>view</small>` : null}</summary>
      <p class="dim">${t.meaning} <button class="quiet" onClick=${() => put(t.parameter ? `${t.name}(${t.parameter} = '')` : t.name)}>insert</button></p>
      <ul>${t.columns.filter((c) => !wanted || t.name.includes(wanted) || c.name.includes(wanted)).map((c) => html`<li><button class="cell" title=${c.type} onClick=${() => put(c.name)}>${c.name}</button><small>${c.meaning || c.type}</small></li>`)}</ul></details>`)}</nav>`;
}

// -------------------------------------------------------------------------------------------------------------- answer

const NUMBER = /^(Nullable\()?(LowCardinality\()?(U?Int|Float|Decimal|Bool)/;
const TIME = /^(Nullable\()?Date/;
const WIDEST = 400; // signs of a cell
const plain = (v) => {
  const text = v === null ? "NULL" : typeof v === "object" ? JSON.stringify(v) : String(v);
  return text.length > WIDEST ? `${text.slice(0, WIDEST)}…` : text;
};

function Answer({ data, query }) {
  const numeric = data.columns.map((c) => NUMBER.test(c.type));
  const x = query.get("x");
  const chosen = query.get("y")?.split(",").filter(Boolean) ?? [];
  const drawn = useMemo(() => (chosen.length ? chartOf(data, x, chosen) : null), [data, x, chosen.join()]);
  const toggle = (name) => setQuery({ y: (chosen.includes(name) ? chosen.filter((n) => n !== name) : [...chosen, name].slice(-3)).join(",") || null });
  const drawable = data.columns.filter((c) => NUMBER.test(c.type));
  return html`<section class="answer" aria-label="Answer"><header><h2>${many(data.rows.length, "row")}${data.more ? ", and more in a file" : ""}</h2><span class="dim">${span(data.seconds)}</span>
      ${drawable.length ? html`<span class="axes">chart ${drawable.map((c) => html`<label><input type="checkbox" checked=${chosen.includes(c.name)} onChange=${() => toggle(c.name)} /> ${c.name}</label>`)}
        ${chosen.length ? html`<label>over <select onChange=${(e) => setQuery({ x: e.target.value || null })}><option value="">the row</option>${data.columns.filter((c) => NUMBER.test(c.type) || TIME.test(c.type)).map((c) => html`<option selected=${c.name === x}>${c.name}</option>`)}</select></label>` : null}</span>` : null}</header>
    ${drawn ? html`<${Chart} key=${JSON.stringify([x, chosen])} ...${drawn} height=${240} />` : null}
    <div class="scroll" tabindex="0" role="region" aria-label="Rows"><table class="rows"><caption class="hidden">Rows</caption><thead><tr>${data.columns.map((c, i) => html`<th scope="col" class=${numeric[i] ? "number" : ""} title=${c.type}>${c.name}</th>`)}</tr></thead>
      <tbody>${data.rows.map((row) => html`<tr>${row.map((v, i) => html`<td class=${numeric[i] ? "number" : ""}>${plain(v)}</td>`)}</tr>`)}</tbody></table></div></section>`;
}

function chartOf(data, x, names) {
  const of = (name) => { const at = data.columns.findIndex((c) => c.name === name); return data.rows.map((row) => row[at]); };
  const finite = (v) => (v !== null && Number.isFinite(Number(v)) ? Number(v) : null);
  const column = data.columns.find((c) => c.name === x);
  const time = Boolean(column && TIME.test(column.type));
  const xs = column ? of(x).map((v) => finite(time ? Date.parse(`${String(v).replace(" ", "T")}${String(v).includes(" ") ? "Z" : ""}`) / 1000 : v)) : data.rows.map((_, i) => i);
  const order = xs.map((_, i) => i).filter((i) => xs[i] !== null).sort((a, b) => xs[a] - xs[b]);
  const series = names.filter((n) => data.columns.some((c) => c.name === n)).map((name) => { const values = of(name); return { name, values: order.map((i) => finite(values[i])) }; });
  return series.length ? { title: names.join(", "), x: order.map((i) => xs[i]), time, xName: x ?? "row", series } : null;
}
