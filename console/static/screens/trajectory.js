// One trajectory: its steps as a tree at the left, a step's messages or tokens in the centre, the facts at the right.
// A mode is a line in MODES: {name, title, key, draw({uid, step, data, trajectory, query})}.
import { html, useEffect, useMemo, useRef, useState } from "../lib/ui.js";
import { useData } from "../lib/api.js";
import { asLeft, go, groupPath, listPath, setQuery, stepData, trajectoryData, trajectoryPath } from "../lib/router.js";
import { useKeys } from "../lib/keys.js";
import { useCommands } from "../lib/palette.js";
import { Legend, Tokens } from "../lib/tokens.js";
import { Messages } from "../lib/messages.js";
import { Diff, diffPath } from "../lib/diff.js";
import { Forest } from "../lib/forest.js";
import { Timeline } from "../lib/timeline.js";
import { AsSql } from "../lib/table.js";
import { count, many, moment, number, quoted, span, time, words } from "../lib/format.js";
import { Badge, Empty, Failed, Loading } from "../lib/states.js";
import { DecisionForm, undo, useDecided } from "../lib/decide.js";

const MODES = [
  { name: "messages", title: "Messages", key: "1", draw: MessagesMode },
  { name: "tokens", title: "Tokens", key: "2", draw: TokensMode },
  { name: "timeline", title: "Timeline", key: "3", draw: TimelineMode },
  { name: "diff", title: "Diff", key: "4", draw: DiffMode },
  { name: "prefixes", title: "Prefixes", key: "5", draw: PrefixesMode },
];

export default function Trajectory({ uid, query }) {
  const { data: read, error, reload } = useData(trajectoryData(uid));
  const data = read?.id === uid ? read : null; // until the new ones come, the data are of another trajectory
  const steps = data?.steps ?? [];
  const mode = MODES.find((m) => m.name === query.get("mode")) ?? MODES[0];
  const [newest, setNewest] = useState(null); // of the steps that were read, where the last one came after them
  const wanted = query.get("step") ?? newest;
  const part = mode.name === "tokens" ? "tokens" : "messages";
  const address = stepData(uid, wanted ?? undefined, part);
  // What was read of the step stays, so that a mode that was shown is shown at once.
  const messages = useData(part === "messages" ? address : null, { keep: true });
  const tokens = useData(part === "tokens" ? address : null, { keep: true });
  const content = part === "tokens" ? tokens : messages;
  const shown = content.of === address ? content.data : null;
  const before = useRef(null); // the step stays chosen while another mode reads what it shows of it
  const step = steps.find((s) => s.id === (wanted ?? shown?.id ?? before.current)) ?? null;
  before.current = step?.id ?? null;
  useEffect(() => { if (data && !wanted && shown && !step && steps.length) setNewest(steps.at(-1).id); }, [data, shown]);
  const move = (by) => {
    const to = step ? steps[steps.indexOf(step) + by] : null;
    if (to) setQuery({ step: to.id });
  };
  const [deciding, setDeciding] = useState(false);
  useDecided(reload);
  const sibling = (by) => {
    const all = (data?.siblings ?? []).map((s) => s.id);
    const to = all[all.indexOf(uid) + by];
    if (to) go(`${trajectoryPath(to)}${mode === MODES[0] ? "" : `?mode=${mode.name}`}`);
  };
  useKeys([
    { key: "j", does: "next step", run: () => move(1) },
    { key: "k", does: "previous step", run: () => move(-1) },
    { key: "]", does: "next of the group", run: () => sibling(1) },
    { key: "[", does: "previous of the group", run: () => sibling(-1) },
    ...MODES.map((m) => ({ key: m.key, does: m.title, run: () => setQuery({ mode: m.name }) })),
    { key: "d", does: "decide", run: () => setDeciding(true) },
    { key: "u", does: "up to the list", run: () => go(asLeft("/trajectories")) },
  ], "Trajectory");
  useCommands(useMemo(() => MODES.map((m) => ({ title: `Mode ${m.title}`, hint: m.key, run: () => setQuery({ mode: m.name }) })), []));
  if (error && !data) return html`<${Failed} error=${error} retry=${reload} />`;
  if (!data) return html`<${Loading} />`;
  return html`<div class="page one-page">
    <header class="bar"><h1>${uid}</h1><${Badge} kind=${data.state}>${data.state}</${Badge}>
      ${data.waits_for ? html`<span class="dim">waits for ${data.waits_for}</span>` : null}
      <button onClick=${() => setDeciding(true)}>Decide … <kbd>d</kbd></button>
      <div class="tabs" role="group" aria-label="Mode">${MODES.map((m) => html`<button aria-pressed=${m === mode} onClick=${() => setQuery({ mode: m.name })}>${m.title} <kbd>${m.key}</kbd></button>`)}</div>
      <${AsSql} of="steps" uid=${uid} />
    </header>
    ${deciding ? html`<${DecisionForm} wanted=${{ q: data.state === "running" ? "state:running" : "", ids: [uid] }} of=${uid} onClose=${() => setDeciding(false)} />` : null}
    <div class="three">
      <${Tree} steps=${steps} lost=${data.lost} chosen=${step} rewards=${data.rewards} />
      <section class="centre" tabindex="0" aria-label=${mode.title}>${!steps.length ? html`<${Empty}>No step is stored yet. ${data.lost.length ? `${count(data.lost.length)} calls are under way or lost.` : ""}</${Empty}>`
        : content.error ? html`<${Failed} error=${content.error} retry=${content.reload} />`
        : !step || shown?.id !== step.id ? html`<${Loading} />`
        : html`<${mode.draw} uid=${uid} step=${step} data=${shown} trajectory=${data} query=${query} />`}</section>
      <${Facts} data=${data} step=${step} />
    </div>
  </div>`;
}

// ---------------------------------------------------------------------------------------------------------------- steps

function Tree({ steps, lost, chosen, rewards }) {
  const rewarded = Object.fromEntries(rewards.filter((r) => r.step && r.in_force).map((r) => [r.step, r.value]));
  return html`<nav class="tree" aria-label="Steps"><h2>${many(steps.length, "step")}</h2><ol>${steps.map((s) => html`<li key=${s.id} class=${`lane${Math.min(s.lane, 6)}`}>
      ${s.begins && s.index ? html`<small class="begins">${s.begins === "fork" ? "branches off" : s.orphan ? "its parent is not in the pool" : "a new conversation"}</small>` : null}
      <button aria-current=${s === chosen ? "step" : null} onClick=${() => setQuery({ step: s.id })} title=${s.id}>
        <b>${s.index + 1}</b><span>${s.role === "frozen" ? "frozen " : ""}${s.finish_reason ? words(s.finish_reason) : s.status}</span>
        <small>${count(s.prompt_tokens)} + ${count(s.response_tokens)}</small>
        ${s.status !== "complete" ? html`<${Badge} kind="held">${s.status}</${Badge}>` : null}
        ${s.capture_ok ? null : html`<${Badge} kind="discarded" title=${s.capture_reasons.join(", ")}>fault</${Badge}>`}
        ${s.retry_of || s.repeats ? html`<${Badge} kind="waiting">retry</${Badge}>` : null}
        ${rewarded[s.id] !== undefined ? html`<${Badge} kind="tag">${number(rewarded[s.id])}</${Badge}>` : null}
      </button></li>`)}
    ${lost.map((c) => html`<li><span class="bad-text">no step: ${c.id}</span></li>`)}</ol></nav>`;
}

// ---------------------------------------------------------------------------------------------------------------- modes

function MessagesMode({ data }) {
  if (!data.messages.length) return html`<${Empty}>The messages of this step are not in the pool: it was sent as tokens. Its <button onClick=${() => setQuery({ mode: "tokens" })}>tokens</button> are.</${Empty}>`;
  return html`<${Messages} messages=${data.messages} />`;
}

function TokensMode({ data, query }) {
  const texts = query.get("as") === "ids" ? null : data.texts.texts;
  const turn = () => setQuery({ as: query.get("as") === "ids" ? null : "ids" });
  useKeys(data.texts.texts ? [{ key: "i", does: "texts or ids of tokens", run: turn }] : [], "Tokens");
  const wanted = query.get("signal") ?? "log_prob";
  const chosen = data.signals.find((s) => s.name === wanted) ?? data.signals[0];
  useEffect(() => { document.querySelector(".centre")?.scrollTo(0, 0); }, [data.id]);
  return html`<div class="tokens-mode">
    <header class="bar"><label>Colour by <select value=${chosen.name} onChange=${(e) => setQuery({ signal: e.target.value })}>
      ${data.signals.map((s) => html`<option value=${s.name} selected=${s.name === chosen.name}>${s.title}${s.values ? "" : " (not recorded)"}</option>`)}</select></label>
      <${Legend} signal=${chosen} />
      <span class="dim">${count(data.prompt_tokens)} prompt + ${count(data.ids.length - data.prompt_tokens)} response tokens${data.sample ? html` · sample ${data.sample.id.slice(0, 12)} of ${data.sample.recipe}` : ""}</span></header>
    ${chosen.missing ? html`<p class="note">Not recorded: ${chosen.missing}.</p>` : null}
    <p class="dim">${data.texts.texts ? html`<button aria-pressed=${!texts} onClick=${turn}>Ids <kbd>i</kbd></button> ${texts ? "The texts are the tokenizer's; " : ""}` : `Token ids: ${data.texts.missing}. `}the pool keeps ids, as the engine gave them. The prompt is pale.</p>
    <${Tokens} key=${data.id} ids=${data.ids} prompt=${data.prompt_tokens} signals=${data.signals} signal=${chosen.name} texts=${texts} known=${data.texts} />
  </div>`;
}

function TimelineMode({ trajectory, step }) {
  return html`<${Timeline} line=${trajectory.timeline} chosen=${step.id} onChoose=${(id) => setQuery({ step: id })} />`;
}

// The chosen step against the one that it goes on from, else the one before it, or any other.
function DiffMode({ uid, step, trajectory, query }) {
  const others = trajectory.steps.filter((s) => s.id !== step.id);
  const usual = others.find((s) => s.id === step.parent) ?? others.filter((s) => s.index < step.index).at(-1) ?? others[0];
  const other = others.find((s) => s.id === query.get("against")) ?? usual;
  if (!other) return html`<${Empty}>There is one step, and nothing to hold against it.</${Empty}>`;
  return html`<${Diff} address=${diffPath({ id: uid, step: other.id }, { id: uid, step: step.id })} query=${query}>
    <label>Step ${step.index + 1} against <select value=${other.id} onChange=${(e) => setQuery({ against: e.target.value })}>
      ${others.map((s) => html`<option value=${s.id} selected=${s === other}>${s.index + 1}${s === usual ? s.id === step.parent ? " (goes on from it)" : " (before it)" : ""}</option>`)}</select></label>
  </${Diff}>`;
}

function PrefixesMode({ uid, query }) {
  return html`<${Forest} address=${`${trajectoryPath(uid)}/forest.json`} query=${query}
    onChoose=${(run) => { if (run.step) setQuery({ step: run.step }); }} />`;
}

// ---------------------------------------------------------------------------------------------------------------- facts

const List = ({ pairs }) => html`<dl>${pairs.filter(([, v]) => v !== null && v !== undefined && v !== "").map(([k, v]) => html`<div><dt>${k}</dt><dd>${v}</dd></div>`)}</dl>`;

function Facts({ data, step }) {
  const rewards = [...data.rewards].reverse();
  return html`<aside class="facts" aria-label="Facts">
    <section><h2>Rewards</h2>${rewards.length ? html`<ul>${rewards.map((r) => html`<li class=${r.in_force ? "" : "void"}><b>${r.value === null ? "withdrawn" : number(r.value)}</b> ${r.source}<small> of the ${r.about}, revision ${r.revision}, ${time(r.at)}${r.self_reported ? ", by the agent itself" : ""}</small>
      ${Object.keys(r.components).length ? html`<small>${Object.entries(r.components).map(([k, v]) => `${k} ${number(v)}`).join(" · ")}</small>` : null}</li>`)}</ul>` : html`<p class="dim">None yet. A missing reward is not 0.</p>`}</section>
    <section><h2>Batches</h2>${data.batches.length ? html`<ul>${data.batches.map((b) => html`<li><a href=${`/batches/${encodeURIComponent(b.recipe)}/${b.sequence}`}><b>${b.recipe} ${b.sequence}</b></a> ${b.trained ? html`trained policy ${b.policy_version}` : "handed out, not yet trained"}<small> ${many(b.trained_tokens, "token")}, ${many(b.samples, "sample")}</small></li>`)}</ul>` : html`<p class="dim">No batch has it.</p>`}</section>
    <section><h2>Outcomes</h2>${data.outcomes.length ? html`<ul>${data.outcomes.map((o) => html`<li><b>${o.outcome}</b> <a href=${listPath(`reason:${quoted(o.reason)}`)}>${words(o.reason)}</a><small> ${o.about}${o.recipe ? `, ${o.recipe} v${o.recipe_version}` : ""}, ${time(o.at)}${o.batch ? `, batch ${o.batch}` : ""}</small></li>`)}</ul>` : html`<p class="dim">None yet.</p>`}</section>
    <section><h2>Decisions</h2>${data.decisions.length ? html`<ul>${data.decisions.map((d) => html`<li class=${d.void ? "void" : ""}><b>${words(d.action)}</b> ${d.value ?? (d.undoes ? `${d.undoes.slice(0, 8)}…` : "")}<small> of the ${d.about}, by ${d.author}, ${time(d.at)}${d.reason ? `: ${d.reason}` : ""}</small>${d.effect ? html`<small class="told">${d.effect}</small>` : null}
      ${d.void ? null : html`<button class="quiet" onClick=${() => undo([{ id: d.id, run: data.run, prompt: data.prompt, trajectory: d.about === "group" ? null : data.id, step: d.step }])}>Undo</button>`}</li>`)}</ul>` : html`<p class="dim">None.</p>`}</section>
    ${step ? html`<section><h2>Step ${step.index + 1}</h2><${List} pairs=${[
      ["id", html`<code>${step.id}</code>`], ["parent step", step.parent && html`<code>${step.parent}</code>`], ["shared prefix", `${count(step.shared_tokens)} tokens`],
      ["policy", step.policy_version ?? (step.versions.length ? step.versions.map(([v, a, b]) => `${v ?? "unknown"} [${a}, ${b})`).join(", ") : "unknown")],
      ["engine", step.engine], ["model", step.model], ["API", step.dialect],
      ["ended by", words(step.finish_reason)], ["sampling", Object.entries(step.sampling).map(([k, v]) => `${k} ${v}`).join(", ")],
      ["log-probs", step.has_log_probs ? "recorded" : "not recorded"], ["received", step.received && moment(step.received)],
      ["first byte", step.received && step.first_byte ? span(step.first_byte - step.received) : null], ["whole", step.received && step.done ? span(step.done - step.received) : null],
      ["capture", step.capture_ok ? "whole" : step.capture_reasons.map(words).join(", ")], ["pictures", step.pictures || null], ["retry of", step.retry_of]]} /></section>` : null}
    <section><h2>Trajectory</h2><${List} pairs=${[
      ["run", html`<a href=${listPath(`run:${quoted(data.run ?? "")}`)}>${data.run}</a>`], ["group", html`<a href=${groupPath(data.run ?? "", data.group ?? "")}>${data.group}</a>`], ["channel", data.channel], ["task", data.task],
      ["status", `${data.status}${data.complete === false ? ", incomplete" : ""}`], ["ended", data.ended_at && moment(data.ended_at)],
      ["of its group", html`${data.siblings.map((s) => html`<a class=${`sibling ${s.id === data.id ? "here" : ""}`} href=${trajectoryPath(s.id)} title=${s.id}>${number(s.reward, 2)}</a> `)}`],
      ["metadata", Object.keys(data.metadata).length ? html`<code>${JSON.stringify(data.metadata)}</code>` : null]]} />
      <p class="dim">The same as data: <a href=${trajectoryData(data.id)}>JSON</a></p></section>
  </aside>`;
}
