// Groups: what became of each, with the rewards of its rollouts, narrowed by a filter in the address, followed live.
import { html, useRef } from "../lib/ui.js";
import { useRows } from "../lib/rows.js";
import { go, groupPath, place, setQuery } from "../lib/router.js";
import { useKeys } from "../lib/keys.js";
import { FilterBox, withTerm } from "../lib/filter.js";
import { AsSql, Table } from "../lib/table.js";
import { RewardBars } from "../lib/rewards.js";
import { Saved } from "../lib/saved.js";
import { count, moment, number, quoted, time, words } from "../lib/format.js";
import { Badge, Empty, Failed, Loading } from "../lib/states.js";

const KINDS = { emitted: "ready", discarded: "discarded", held: "held" };

const columnsOf = (filter) => [
  { name: "at", title: "decided", cell: (r) => html`<span title=${moment(r.at)}>${time(r.at)}</span>` },
  { name: "group", title: "group", cell: (r) => html`<a class="id" href=${address(r, filter)} tabindex="-1">${r.group}</a>` },
  { name: "rewards", title: "rewards", cell: (r) => html`<${RewardBars} rewards=${r.rewards} />` },
  { name: "mean", title: "mean", number: true, cell: (r) => number(r.mean) },
  { name: "deviation", title: "deviation", number: true, cell: (r) => html`${r.flat ? html`<${Badge} kind="waiting" title="all rewards are alike: no advantage">flat</${Badge}> ` : null}${number(r.deviation)}`, term: (r) => (r.flat ? "flat:yes" : null) },
  { name: "size", title: "rollouts", number: true, cell: (r) => count(r.size), term: (r) => `size:${r.size}` },
  { name: "outcome", title: "outcome", cell: (r) => html`<${Badge} kind=${KINDS[r.outcome] ?? ""}>${r.outcome}</${Badge}>`, term: (r) => `outcome:${r.outcome}` },
  { name: "reason", title: "reason", cell: (r) => words(r.reason), term: (r) => `reason:${quoted(r.reason)}` },
  { name: "recipe", title: "recipe", cell: (r) => r.recipe ?? "", term: (r) => (r.recipe ? `recipe:${quoted(r.recipe)}` : null) },
  { name: "batch", title: "batch", number: true, cell: (r) => r.batches.filter((b) => b.recipe === r.recipe).map((b) => `${b.sequence}${b.trained ? "" : " (untrained)"}`).join(", ") },
  { name: "task", title: "task", cell: (r) => r.task ?? "", term: (r) => (r.task ? `task:${quoted(r.task)}` : null) },
  { name: "run", title: "run", cell: (r) => r.run, term: (r) => `run:${quoted(r.run)}` },
];

const address = (row, filter) => groupPath(row.run, row.group) + (filter ? `?q=${encodeURIComponent(filter)}` : "");

export default function Groups({ query }) {
  const filter = query.get("q") ?? "";
  const chosen = query.get("at");
  const live = query.get("live") !== "off";
  const list = useRows("groups", filter, live);
  const now = () => list.rows.find((r) => r.id === place.value.query.get("at")); // keys may come faster than the page is drawn
  const box = useRef(null);
  const setFilter = (q) => setQuery({ q, at: null }, { replace: false });
  const move = (by) => {
    if (!list.rows.length) return;
    const at = list.rows.indexOf(now());
    const to = at < 0 ? 0 : Math.max(0, Math.min(list.rows.length - 1, at + by));
    if (to >= list.rows.length - 5 && list.next) list.more();
    setQuery({ at: list.rows[to].id });
  };
  useKeys([
    { key: "/", does: "to the filter", run: () => box.current.focus() },
    { key: "j", does: "next", run: () => move(1) },
    { key: "k", does: "previous", run: () => move(-1) },
    { key: "Enter", does: "open", run: () => (now() ? go(address(now(), filter)) : false) },
    { key: "p", does: "pause or follow", run: () => setQuery({ live: live ? "off" : null }) },
    { key: "n", does: "show what is new", run: () => list.show() },
  ], "Groups");
  const wrong = list.error?.status === 400 ? list.error : null;
  return html`<div class="page list-page">
    <header class="bar"><h1>Groups</h1>
      <${FilterBox} value=${filter} onChange=${setFilter} error=${wrong} box=${box} fieldsAt="/groups/fields.json" example="reward<0.5 flat:yes outcome:discarded recipe:demo" />
      ${list.waiting ? html`<button class="new" onClick=${list.show}>${count(list.waiting)} new</button>` : null}
      <button aria-pressed=${!live} onClick=${() => setQuery({ live: live ? "off" : null })}>${live ? "Pause" : "Follow"}</button>
      <${Saved} kind="group-views" title="Views" /><${AsSql} of="groups" q=${filter} />
    </header>
    ${list.fault ? html`<p class="warn" role="alert">No news: ${list.fault}</p>` : null}
    ${list.error && !wrong ? html`<${Failed} error=${list.error} retry=${list.reload} />` : null}
    <div class="split"><div class="list">
      ${list.rows.length ? html`<${Table} label="Groups" columns=${columnsOf(filter)} rows=${list.rows} chosen=${chosen} fresh=${list.fresh} onTerm=${(term) => setFilter(withTerm(filter, term))}
        onChoose=${(id) => go(address(list.rows.find((r) => r.id === id), filter))} />
        ${list.next ? html`<button class="more" onClick=${list.more}>More (${count(list.rows.length)} shown)</button>` : html`<p class="dim end">These are all ${count(list.rows.length)}.</p>`}`
      : list.loading ? html`<${Loading} />` : list.error ? null : html`<${Empty}>${filter ? html`No group fits. <button onClick=${() => setFilter("")}>Show all</button>` : html`No recipe has judged a group yet. <a href="/trajectories?q=state:waiting">Trajectories that wait</a>.`}</${Empty}>`}
    </div></div>
  </div>`;
}
