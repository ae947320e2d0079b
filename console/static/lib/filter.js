// The filter box: text in the address, completed by the fields that the server names, with the fault shown where it is.
import { html, useEffect, useInView, useRef, useState } from "./ui.js";
import { get } from "./api.js";

const known = {};
export const readFields = (address = "/trajectories/fields.json") => (known[address] ??= get(address).then((a) => a.fields, () => { delete known[address]; return []; }));

// What may stand at the place of the last word: [{text, hint}].
export function complete(fields, word) {
  const bare = word.replace(/^-/, "");
  const sign = word.slice(0, word.length - bare.length);
  const field = fields.find((f) => bare.startsWith(`${f.name}:`));
  if (field) {
    const begun = bare.slice(field.name.length + 1);
    return field.choices.filter((c) => c.startsWith(begun) && c !== begun).map((c) => ({ text: `${sign}${field.name}:${c} `, label: c, hint: "" }));
  }
  if (/[<>=:]/.test(bare)) return [];
  return fields.filter((f) => f.name.startsWith(bare) && f.name !== bare).map((f) => ({
    text: sign + f.name + (f.name.endsWith(".") ? "" : f.kind === "number" ? "<" : ":"), label: f.name, hint: f.meaning,
  }));
}

// The filter with one more term; the same term is not added twice.
export const withTerm = (filter, term) => (` ${filter} `.includes(` ${term} `) ? filter : `${filter} ${term}`.trim());

export function FilterBox({ value, onChange, error, box, fieldsAt, example = "reward<0.2 env:swe policy>=40 state:waiting -tag:hack" }) {
  const [text, setText] = useState(value);
  const [fields, setFields] = useState([]);
  const [open, setOpen] = useState(false);
  const [chosen, setChosen] = useState(-1);
  const own = useRef(null);
  const input = box ?? own;
  const list = useRef(null);
  useInView(list, chosen);
  useEffect(() => { readFields(fieldsAt).then(setFields); }, []);
  useEffect(() => { setText(value); }, [value]);
  const word = text.slice(0, input.current?.selectionStart ?? text.length).split(/\s/).at(-1);
  const offers = open ? complete(fields, word).slice(0, 12) : [];
  const take = (offer) => {
    const field = input.current, at = field.selectionStart ?? text.length;
    field.focus();
    field.setRangeText(offer.text, at - word.length, at, "end"); // at once: the next key may be down already
    setText(field.value);
    setChosen(-1);
  };
  const send = (said) => { setOpen(false); setChosen(-1); onChange(said.trim()); };
  const press = (event) => {
    if (event.key === "ArrowDown" && offers.length) setChosen((chosen + 1) % offers.length);
    else if (event.key === "ArrowUp" && offers.length) setChosen(chosen <= 0 ? offers.length - 1 : chosen - 1);
    else if ((event.key === "Tab" || event.key === "Enter") && offers.length && chosen >= 0) take(offers[chosen]);
    else if (event.key === "Enter") send(text);
    else if (event.key === "Escape") { if (offers.length) setOpen(false); else input.current.blur(); }
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  return html`<div class="filter">
    <input ref=${input} type="search" spellcheck="false" autocomplete="off" value=${text} aria-label="Filter"
      placeholder=${example} role="combobox" aria-autocomplete="list"
      aria-expanded=${offers.length > 0} aria-controls="filter-offers" aria-invalid=${Boolean(error)} aria-describedby=${error ? "filter-fault" : null}
      aria-activedescendant=${chosen >= 0 ? `offer-${chosen}` : null}
      onInput=${(e) => { setText(e.target.value); setOpen(true); setChosen(-1); }} onFocus=${() => setOpen(true)} onBlur=${() => setTimeout(() => setOpen(false), 150)} onKeyDown=${press} />
    <ul ref=${list} id="filter-offers" role="listbox" aria-label="Fields" hidden=${offers.length === 0}>${offers.map((offer, i) => html`<li id=${`offer-${i}`} role="option" aria-selected=${i === chosen} onMouseDown=${(e) => { e.preventDefault(); take(offer); }}><b>${offer.label}</b> <small>${offer.hint}</small></li>`)}</ul>
    ${error ? html`<p id="filter-fault" class="fault" role="alert">${error.position !== null ? html`<${At} text=${value} position=${error.position} /> ` : null}${error.message}</p>` : null}
  </div>`;
}

// A text with the place of its fault, which is counted in signs: one that is not in the first plane is two units here.
function At({ text, position }) {
  const signs = [...text];
  return html`<code>${signs.slice(0, position).join("")}<mark>${signs.slice(position).join("") || " "}</mark></code>`;
}
