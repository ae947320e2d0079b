// What a person says of trajectories: first what it will change, then written, then taken back. Who decides is asked once.
import { html, signal, useEffect, useLayoutEffect, useRef, useState } from "./ui.js";
import { post, useAnswer } from "./api.js";
import { Dialog } from "./dialog.js";
import { load, save } from "./prefs.js";
import { count, many, words } from "./format.js";

export const ACTIONS = [
  { name: "veto", title: "Veto", value: null },
  { name: "keep", title: "Keep", value: null },
  { name: "tag", title: "Tag", value: "text" },
  { name: "relabel", title: "Label", value: "text" },
  { name: "quality", title: "Quality", value: "number" },
  { name: "override_reward", title: "Reward", value: "number", empty: "empty: no reward" },
  { name: "note", title: "Note", value: "text" },
];
const SEEN_AFTER = 1500; // ms until the pool shows what was written

export const author = signal(load("author", ""));
export const lastDone = signal(null);
const lastFault = signal(null); // why an undo was not written, or what was being written when its form was closed
const decided = signal(0); // counts up when what was decided may be read

// Reads anew what a decision may have changed.
export function useDecided(reload) {
  const seen = useRef(decided.value);
  useEffect(() => {
    if (decided.value === seen.current) return;
    seen.current = decided.value;
    reload();
  }, [decided.value]);
}

const later = () => { for (const wait of [SEEN_AFTER, 3 * SEEN_AFTER]) setTimeout(() => { decided.value += 1; }, wait); };

// word: {action, value, reason, q, ids, about, expect}.
export async function decide(word) {
  const said = await post("/decisions.json", { ...word, author: author.value });
  lastDone.value = { ...said, action: word.action };
  lastFault.value = null;
  later();
  return said;
}

// Whether it was written; a failure is said where what was written is.
export async function undo(places) {
  lastFault.value = author.value ? null : "undo: not written. Say who takes it back, then undo again.";
  if (!author.value) return false;
  try {
    const said = await post("/decisions/undo.json", { of: places, author: author.value });
    lastDone.value = { ...said, action: "undo", words: [] };
    later();
    return true;
  } catch (fault) {
    lastFault.value = `undo: not written. ${fault.message}`;
    return false;
  }
}

export function setAuthor(name) {
  author.value = name;
  save("author", name);
}

export function AuthorField() {
  return html`<label>Your name <input value=${author.value} maxlength="100" placeholder="shown beside your decisions" onChange=${(e) => setAuthor(e.target.value.trim())} required /></label>`;
}

// wanted: {q, ids, about}; the form says what will change before it is done.
export function DecisionForm({ wanted, of, action: first = "veto", onClose }) {
  const [action, setAction] = useState(ACTIONS.find((a) => a.name === first) ?? ACTIONS[0]);
  const [value, setValue] = useState("");
  const [reason, setReason] = useState("");
  const [about, setAbout] = useState(wanted.about ?? "trajectory");
  const [fault, setFault] = useState(null);
  const [busy, setBusy] = useState(false);
  const box = useRef(null);
  const meant = { ...wanted, about };
  const { data: seen, error, again } = useAnswer(`/decisions/preview.json?action=${action.name}`, meant);
  const fits = seen !== null && seen.count > 0 && seen.count <= seen.most;
  useEffect(() => setFault(null), [action.name, about]);
  useLayoutEffect(() => box.current.querySelector(action.value ? "[name=value]" : author.value ? "[name=action]" : "input").focus(), []);
  const shut = useRef(false);
  useEffect(() => () => { shut.current = true; }, []);
  const write = async (event) => {
    event.preventDefault();
    if (busy || !fits) return;
    setBusy(true);
    try {
      await decide({ ...meant, action: action.name, value: action.value ? value || null : null, reason: reason || null, expect: seen.count });
      if (!shut.current) onClose(true);
    } catch (error) {
      if (shut.current) lastFault.value = `${words(action.name)}: not written. ${error.message}`;
      setFault(error);
      setBusy(false);
      again(); // others may be meant by now
    }
  };
  return html`<${Dialog} label="Decide" onClose=${() => onClose(false)}>
    <form class="palette decision" ref=${box} onSubmit=${write}>
      <header><h2>Decide on ${of}</h2><button type="button" class="quiet" onClick=${() => onClose(false)}>Close</button></header>
      ${author.value ? null : html`<${AuthorField} />`}
      <label>Decision <select name="action" onChange=${(e) => setAction(ACTIONS.find((a) => a.name === e.target.value))}>${ACTIONS.map((a) => html`<option value=${a.name} selected=${a === action}>${a.title}</option>`)}</select></label>
      ${action.value ? html`<label>Value <input name="value" value=${value} inputmode=${action.value === "number" ? "decimal" : "text"} placeholder=${action.empty ?? ""} required=${!action.empty} onInput=${(e) => setValue(e.target.value)} /></label>` : null}
      <label>Reason <input name="reason" value=${reason} maxlength="2000" onInput=${(e) => setReason(e.target.value)} /></label>
      <label>About <select onChange=${(e) => setAbout(e.target.value)}><option value="trajectory" selected=${about === "trajectory"}>each trajectory</option><option value="group" selected=${about === "group"}>their whole groups</option></select></label>
      <div class="effect" role="status">${fault ? html`<p class="bad-text" role="alert">${fault.message}</p>` : null}${error ? html`<p class="bad-text" role="alert">${error.message} <button type="button" class="quiet" onClick=${again}>Try again</button></p>` : !seen ? "Reading what it would change …" : html`<p><b>${many(seen.count, about)}</b>${seen.count > seen.most ? ` — one call takes ${count(seen.most)} at most: narrow the filter` : ""}</p><ul>${seen.words.map((w) => html`<li>${w}</li>`)}</ul>`}</div>
      <button class="primary" aria-disabled=${busy || !fits}>${action.title} ${seen ? count(seen.count) : ""}</button>
    </form></${Dialog}>`;
}

// Says what was written, and takes it back.
export function Done() {
  const said = lastDone.value;
  if (lastFault.value) return html`<aside class="done" role="alert" aria-label="Not written"><span class="bad-text">${lastFault.value}</span>${author.value ? null : html`<${AuthorField} />`}<button class="quiet" aria-label="Close" onClick=${() => { lastFault.value = null; }}>✕</button></aside>`;
  if (!said) return null;
  return html`<aside class="done" role="status" aria-label="Written">
    <span><b>${words(said.action)}</b>: ${count(said.written)} written${said.words?.length ? html`<small>${said.words.join(" · ")}</small>` : null}</span>
    <button onClick=${() => undo(said.decisions)}>Undo</button><button class="quiet" aria-label="Close" onClick=${() => { lastDone.value = null; }}>✕</button>
  </aside>`;
}
