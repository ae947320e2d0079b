// What the streams have for a recipe in force now: ready groups as the next cut would take them, and open ones. Each number
// opens its list.
import { html, useState } from "./ui.js";
import { get } from "./api.js";
import { groupPath, listPath } from "./router.js";
import { count, many, number, quoted, short, span, words } from "./format.js";
import { Failed } from "./states.js";

export const Figure = ({ value, name, shown, onShow, title }) => html`<button class="cell figure" aria-pressed=${shown === name} title=${title} onClick=${() => onShow(shown === name ? null : name)}>${count(value)}</button>`;

// name: the recipe; run: its run.
export function Stream({ name, run }) {
  const [state, setState] = useState({ busy: false, data: null, error: null });
  const [shown, setShown] = useState(null);
  const look = () => {
    if (state.busy) return; // not disabled: a button that is loses the focus, and keys with it
    setState((old) => ({ ...old, busy: true, error: null }));
    get(`/recipes/${encodeURIComponent(name)}/next.json`, { deadline: 75000 }).then((data) => setState({ busy: false, data, error: null }), (error) => setState({ busy: false, data: null, error }));
  };
  const { data } = state;
  return html`<section class="stream" aria-label=${`What waits for ${name}`}><header><h3>What the streams have now</h3><button aria-disabled=${state.busy} onClick=${look}>${state.busy ? "Looking …" : data ? "Look again" : `Look at the next batch`}</button></header>
    ${state.error ? html`<${Failed} error=${state.error} retry=${look} />` : null}
    ${data ? html`<${Next} next=${data.next} why=${data.why} shown=${shown} onShow=${setShown} /><${Open} open=${data.open} shown=${shown} onShow=${setShown} /><${List} data=${data} run=${run} shown=${shown} />` : null}</section>`;
}

function Next({ next, why, shown, onShow }) {
  if (!next) return html`<p class="dim">The next batch is not known: ${why}.</p>`;
  const figure = (value, name, title) => html`<${Figure} value=${value} name=${name} shown=${shown} onShow=${onShow} title=${title} />`;
  const needs = next.needed !== null ? ` of ${many(next.needed, "group")}` : next.needed_tokens !== null ? `, at most ${short(next.needed_tokens)} tokens` : "";
  return html`<p class="sentence">Batch ${next.sequence} ${next.is_full ? "would be cut now" : "is not full"}: ${figure(next.members.count, "members", "the next batch's groups")}${needs} (${short(next.tokens)} tokens, ${short(next.members.trained_tokens)} of them trained)${next.left_out.map((r) => html`, ${figure(r.count, `out/${r.reason}`, `left out: ${words(r.reason)}`)} ${words(r.reason)} (${short(r.tokens)} tokens)`)}</p>
    <p class="dim">${next.holder ? `${next.holder} trains it` : "No trainer holds it"}${next.policy === null ? "" : `, policy version ${next.policy}`}${next.untrained.length ? `; batches ${next.untrained.join(", ")} are cut and come again first` : ""}${next.is_full ? "" : `. ${next.waits_for}`}</p>`;
}

function Open({ open, shown, onShow }) {
  const figure = (value, name) => html`<${Figure} value=${value} name=${name} shown=${shown} onShow=${onShow} title=${`open groups: ${name.slice(5)}`} />`;
  const parts = [
    open.unfinished ? html`${figure(open.unfinished, "open/unfinished")} with trajectories to come or to end` : null,
    ...open.short_of.map((s) => html`${figure(s.count, `open/short of ${s.name}`)} short of ${s.name}`),
    open.held ? html`${figure(open.held, "open/held")} held for review` : null,
  ].filter(Boolean);
  return html`<p class="sentence">${figure(open.groups, "open/all")} ${open.groups === 1 ? "group is" : "groups are"} open${open.oldest === null ? "" : `, the oldest since ${span(open.oldest)}`}${parts.length ? ": " : ""}${parts.map((part, i) => html`${i ? ", " : ""}${part}`)}</p>`;
}

function List({ data, run, shown }) {
  if (!shown) return null;
  const [kind, ...rest] = shown.split("/");
  const of = rest.join("/");
  if (kind === "open") {
    const fits = { all: () => true, unfinished: (g) => g.unfinished, held: (g) => g.held }[of] ?? ((g) => g.short_of.includes(of.replace("short of ", "")));
    const rows = data.open.list.filter(fits);
    return html`<div class="behind"><p class="dim">Open groups: ${of}, the oldest first${data.open.list.length === data.open.most ? `, of the first ${count(data.open.most)}` : ""}</p>
      <ul>${rows.map((g) => html`<li><a href=${listPath(`${g.unfinished ? "state:running " : ""}group:${quoted(g.group)}`)}>${g.group}</a> <small>${[g.unfinished && "not ended", g.held && "held", ...g.short_of.map((s) => `lacks ${s}`)].filter(Boolean).join(", ")}</small></li>`)}</ul></div>`;
  }
  const part = kind === "members" ? data.next?.members : data.next?.left_out.find((r) => r.reason === of);
  if (!part) return null;
  return html`<div class="behind"><p class="dim">${kind === "members" ? "Groups of the next batch" : `Left out: ${words(of)}`}, in their order${part.count > part.list.length ? `, the first ${count(part.list.length)}` : ""}</p>
    <ul>${part.list.map((g) => html`<li><a href=${groupPath(g.run ?? run, g.group)}>${g.group}</a> <small>${count(g.tokens)} tokens, reward ${number(g.reward)}${g.staleness === null ? "" : `, ${g.staleness} behind`}</small></li>`)}</ul></div>`;
}
