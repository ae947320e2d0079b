// What a person says of trajectories: first what it will change, then written, then taken back. Who decides is asked once.
import { html, signal, useEffect, useRef, useState } from "./ui.js";
import { post } from "./api.js";
import { load, save } from "./prefs.js";
import { count, words } from "./format.js";

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
const lastFault = signal(null); // of what was being written when its form was closed
export const decided = signal(0); // counts up when what was decided may be read

const later = () => { for (const wait of [SEEN_AFTER, 3 * SEEN_AFTER]) setTimeout(() => { decided.value += 1; }, wait); };

// word: {action, value, reason, q, ids, about, expect}.
export async function decide(word) {
  const said = await post("/decisions.json", { ...word, author: author.value });
  lastDone.value = { ...said, action: word.action };
  lastFault.value = null;
  later();
  return said;
}

export async function undo(places) {
  const said = await post("/decisions/undo.json", { of: places, author: author.value });
  lastDone.value = { ...said, action: "undo", words: [] };
  later();
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
  const [seen, setSeen] = useState(null);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const box = useRef(null);
  const meant = { ...wanted, about };
  useEffect(() => {
    let gone = false;
    setError(null);
    post(`/decisions/preview.json?action=${action.name}`, meant).then((s) => { if (!gone) setSeen(s); }, (e) => { if (!gone) setError(e); });
    return () => { gone = true; };
  }, [action.name, about, JSON.stringify(wanted)]);
  useEffect(() => {
    const before = document.activeElement;
    box.current.querySelector(action.value ? "[name=value]" : author.value ? "[name=action]" : "input")?.focus();
    return () => before?.focus?.();
  }, []);
  const shut = useRef(false);
  useEffect(() => () => { shut.current = true; }, []);
  const write = async (event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    try {
      await decide({ ...meant, action: action.name, value: action.value ? value || null : null, reason: reason || null, expect: seen?.count ?? null });
      if (!shut.current) onClose(true);
    } catch (fault) {
      if (shut.current) lastFault.value = `${words(action.name)}: not written. ${fault.message}`;
      setError(fault);
      setBusy(false);
    }
  };
  return html`<div class="veil" onClick=${(e) => e.target === e.currentTarget && onClose(false)} onKeyDown=${(e) => { if (e.key === "Escape") { e.stopPropagation(); onClose(false); } }}>
    <form class="palette decision" role="dialog" aria-modal="true" aria-label="Decide" ref=${box} onSubmit=${write}>
      <header><h2>Decide on ${of}</h2><button type="button" class="quiet" onClick=${() => onClose(false)}>Close</button></header>
      ${author.value ? null : html`<${AuthorField} />`}
      <label>Decision <select name="action" onChange=${(e) => setAction(ACTIONS.find((a) => a.name === e.target.value))}>${ACTIONS.map((a) => html`<option value=${a.name} selected=${a === action}>${a.title}</option>`)}</select></label>
      ${action.value ? html`<label>Value <input name="value" value=${value} inputmode=${action.value === "number" ? "decimal" : "text"} placeholder=${action.empty ?? ""} required=${!action.empty} onInput=${(e) => setValue(e.target.value)} /></label>` : null}
      <label>Reason <input name="reason" value=${reason} maxlength="2000" onInput=${(e) => setReason(e.target.value)} /></label>
      <label>About <select onChange=${(e) => setAbout(e.target.value)}><option value="trajectory" selected=${about === "trajectory"}>each trajectory</option><option value="group" selected=${about === "group"}>their whole groups</option></select></label>
      <div class="effect" role="status">${error ? html`<p class="bad-text" role="alert">${error.message}</p>` : !seen ? "Reading what it would change …" : html`<p><b>${count(seen.count)}</b> ${about === "group" ? "groups" : seen.count === 1 ? "trajectory" : "trajectories"}${seen.count > seen.most ? ` — one call takes ${count(seen.most)} at most: narrow the filter` : ""}</p><ul>${seen.words.map((w) => html`<li>${w}</li>`)}</ul>`}</div>
      <button class="primary" aria-disabled=${busy} disabled=${!seen?.count || seen.count > seen.most}>${action.title} ${seen ? count(seen.count) : ""}</button>
    </form></div>`;
}

// Says what was written, and takes it back.
export function Done() {
  const said = lastDone.value;
  const [error, setError] = useState(null);
  if (lastFault.value) return html`<aside class="done" role="alert" aria-label="Not written"><span class="bad-text">${lastFault.value}</span><button class="quiet" aria-label="Close" onClick=${() => { lastFault.value = null; }}>✕</button></aside>`;
  if (!said) return null;
  const back = () => undo(said.decisions).then(() => setError(null), setError);
  return html`<aside class="done" role="status" aria-label="Written">
    <span><b>${words(said.action)}</b>: ${count(said.written)} written${said.words?.length ? html`<small>${said.words.join(" · ")}</small>` : null}${error ? html`<small class="bad-text">${error.message}</small>` : null}</span>
    <button onClick=${back}>Undo</button><button class="quiet" aria-label="Close" onClick=${() => { lastDone.value = null; setError(null); }}>✕</button>
  </aside>`;
}
