// One group: its rollouts beside each other, what they share once, its tokens as a forest, any two as a difference.
import { html } from "../lib/ui.js";
import { useData } from "../lib/api.js";
import { go, groupPath, groupsPath, place, setQuery, trajectoryPath, withWords } from "../lib/router.js";
import { useKeys } from "../lib/keys.js";
import { Messages } from "../lib/messages.js";
import { Diff, diffPath } from "../lib/diff.js";
import { Forest } from "../lib/forest.js";
import { RewardBars } from "../lib/rewards.js";
import { AsSql } from "../lib/table.js";
import { count, many, number, words } from "../lib/format.js";
import { Badge, Empty, Failed, Loading } from "../lib/states.js";

const MODES = [
  { name: "compare", title: "Side by side", key: "1", draw: Compare },
  { name: "prefixes", title: "Prefixes", key: "2", draw: Prefixes },
  { name: "diff", title: "Diff", key: "3", draw: DiffOfTwo },
];

export default function Group({ run, group, query }) {
  const filter = query.get("q");
  const { data, error, reload } = useData(withWords(`${groupPath(run, group)}.json`, { q: filter }));
  const mode = MODES.find((m) => m.name === query.get("mode")) ?? MODES[0];
  const to = (other) => {
    if (!other) return false;
    const kept = new URLSearchParams(place.value.query);
    for (const name of ["left", "right"]) kept.delete(name);
    return go(groupPath(other.run, other.group) + (kept.size ? `?${kept}` : ""));
  };
  useKeys([
    { key: "[", does: "previous group", run: () => to(data?.previous) },
    { key: "]", does: "next group", run: () => to(data?.next) },
    ...MODES.map((m) => ({ key: m.key, does: m.title, run: () => setQuery({ mode: m.name }) })),
    { key: "u", does: "up to the list", run: () => go(groupsPath(filter)) },
  ], "Group");
  if (error && !data) return html`<${Failed} error=${error} retry=${reload} />`;
  if (!data) return html`<${Loading} />`;
  const rewards = data.members.map((m) => ({ id: m.id, reward: m.reward }));
  return html`<div class="page group-page">
    <header class="bar"><h1>${data.group}</h1>${data.flat ? html`<${Badge} kind="waiting" title="all rewards are alike: no advantage">no deviation</${Badge}>` : null}
      ${data.outcomes.map((o) => html`<${Badge} kind=${o.outcome === "discarded" ? "discarded" : o.outcome === "held" ? "held" : "ready"}>${o.recipe ? `${o.recipe}: ` : ""}${o.outcome}, ${words(o.reason)}</${Badge}>`)}
      <div class="tabs" role="group" aria-label="Mode">${MODES.map((m) => html`<button aria-pressed=${m === mode} onClick=${() => setQuery({ mode: m.name })}>${m.title} <kbd>${m.key}</kbd></button>`)}</div><${AsSql} of="members" run=${data.run} group=${data.group} /></header>
    <section class="summary" aria-label="Rewards"><${RewardBars} rewards=${rewards} tall=${44} />
      <dl class="figures">${[["rollouts", `${count(data.members.length)}${data.more ? " of more" : ""}`], ["mean", number(data.mean)], ["deviation", number(data.deviation)], ["task", data.task], ["run", data.run], ["channel", data.channel],
        ["trained tokens", data.ready.length ? count(data.ready.at(-1).trained_tokens) : null], ["batches", data.batches.map((b) => `${b.recipe} ${b.sequence}${b.trained ? "" : " (untrained)"}`).join(", ")],
      ].filter(([, v]) => v).map(([k, v]) => html`<div><dt>${k}</dt><dd>${v}</dd></div>`)}</dl>
      <span class="beside"><button disabled=${!data.previous} onClick=${() => to(data.previous)}>Previous <kbd>[</kbd></button> <button disabled=${!data.next} onClick=${() => to(data.next)}>Next <kbd>]</kbd></button></span></section>
    <${mode.draw} data=${data} query=${query} />
    <footer class="dim">The same as data: <a href=${`${groupPath(run, group)}.json`}>JSON</a></footer>
  </div>`;
}

function Compare({ data }) {
  if (!data.members.length) return html`<${Empty}>None of its rollouts has ended.</${Empty}>`;
  return html`${data.shared.length ? html`<section><details><summary>${many(data.shared.length, "message")} that all begin with</summary><${Messages} messages=${data.shared} /></details></section>` : null}
    <div class="rollouts" tabindex="0" role="region" aria-label="Rollouts">${data.members.map((m) => html`<article key=${m.id}>
      <header><h2><a href=${trajectoryPath(m.id)}>${m.id}</a></h2><p><b>${m.reward === null ? "no reward" : number(m.reward)}</b> · ${m.status}${m.complete ? "" : ", incomplete"} · ${many(m.steps, "step")}${m.tokens === null ? "" : ` · ${many(m.tokens, "token")}`}${m.policy === null ? "" : ` · policy ${m.policy}`}</p>
        ${Object.keys(m.rewards).length > 1 ? html`<p class="dim">${Object.entries(m.rewards).map(([k, v]) => `${k} ${number(v)}`).join(" · ")}</p>` : null}
        ${m.outcomes.filter((o) => o.outcome !== "emitted").map((o) => html`<${Badge} kind="discarded">${words(o.reason)}</${Badge}> `)}</header>
      ${m.messages === null ? html`<p class="dim">${m.characters ? "The conversation is too long to stand beside others." : "The messages are not known: it was sent as tokens."}</p>`
        : m.messages.length ? html`<${Messages} messages=${m.messages} from=${data.shared.length} />` : html`<p class="dim">It says nothing that the others do not.</p>`}
    </article>`)}</div>`;
}

function Prefixes({ data, query }) {
  return html`<section><${Forest} address=${`${groupPath(data.run, data.group)}/forest.json`} query=${query}
    onChoose=${(r) => go(trajectoryPath(r.trajectory) + (r.step ? `?step=${encodeURIComponent(r.step)}` : ""))} /></section>`;
}

function DiffOfTwo({ data, query }) {
  const known = data.members.filter((m) => m.last_step);
  const left = known.find((m) => m.id === query.get("left")) ?? known[0];
  const right = known.find((m) => m.id === query.get("right")) ?? known.find((m) => m !== left);
  if (!left || !right) return html`<${Empty}>Two rollouts with steps are needed.</${Empty}>`;
  const choose = (name, chosen) => html`<label>${name} <select onChange=${(e) => setQuery({ [name]: e.target.value })}>${known.map((m) => html`<option value=${m.id} selected=${m === chosen}>${m.id} (${number(m.reward)})</option>`)}</select></label>`;
  return html`<section><${Diff} query=${query} address=${diffPath({ id: left.id, step: left.last_step }, { id: right.id, step: right.last_step })}>${choose("left", left)}${choose("right", right)}</${Diff}></section>`;
}
