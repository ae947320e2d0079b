// A form made of a JSON schema: a field for each property, empty where the recipe says nothing, with what would be used as the
// placeholder. Values are a sparse object: {group: {size: 4}}.
import { html, useState } from "./ui.js";

const REF = "#/$defs/";
export function settle(schema, root) {
  if (schema?.$ref) return { ...root.$defs[schema.$ref.slice(REF.length)], ...Object.fromEntries(Object.entries(schema).filter(([k]) => k !== "$ref")) };
  if (schema?.anyOf) {
    const some = schema.anyOf.filter((s) => s.type !== "null");
    if (some.length === 1) return { ...settle(some[0], root), description: schema.description ?? some[0].description };
  }
  return schema;
}

export const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
export const at = (value, path) => path.reduce((inside, name) => (inside === null || inside === undefined ? undefined : inside[name]), value);

// The object with a value at a path; undefined takes it out, and with it what is empty then.
export function put(value, [name, ...rest], wanted) {
  const next = { ...value };
  if (rest.length) next[name] = put(next[name] ?? {}, rest, wanted);
  else next[name] = wanted;
  if (next[name] === undefined || (rest.length && !Object.keys(next[name]).length)) delete next[name];
  return next;
}

const faultAt = (faults, name) => faults.find((f) => f.path === name || f.path.startsWith(`${name}.`));
const first = (text) => (text ?? "").split("\n\n")[0].replaceAll("`", "");
const spoken = (value) => (value === null || value === undefined ? "" : Array.isArray(value) ? value.join(", ") : typeof value === "object" ? Object.entries(value).map(([k, v]) => `${k}: ${v}`).join("\n") : String(value));
const isNumber = (text) => text.trim() !== "" && Number.isFinite(Number(text));

export function SchemaForm({ root, value, used, faults, onChange }) {
  const field = (path, schema) => html`<${Field} key=${path.join(".")} path=${path} schema=${settle(schema, root)} root=${root} value=${value} used=${used} faults=${faults} onChange=${onChange} />`;
  const entries = Object.entries(root.properties).filter(([name]) => name !== "filters");
  const plain = entries.filter(([, s]) => !settle(s, root).properties);
  const parts = entries.filter(([, s]) => settle(s, root).properties);
  return html`<div class="schema-form"><fieldset><legend>Recipe</legend>${plain.map(([name, schema]) => field([name], schema))}</fieldset>
    ${parts.map(([name, schema]) => { const inner = settle(schema, root); return html`<fieldset key=${name}><legend>${name}</legend><p class="dim">${first(inner.description)}</p>${Object.entries(inner.properties).map(([part, s]) => field([name, part], s))}</fieldset>`; })}</div>`;
}

function Field({ path, schema, root, value, used, faults, onChange }) {
  const name = path.join(".");
  const here = at(value, path);
  const fault = faultAt(faults, name);
  const set = (wanted) => onChange(put(value, path, wanted));
  const items = settle(schema.items, root);
  return html`<div class="field"><label><span>${path.at(-1).replaceAll("_", " ")}</span>${
    schema.enum ? html`<select aria-invalid=${Boolean(fault)} onChange=${(e) => set(e.target.value || undefined)}><option value="" selected=${here === undefined}>${spoken(at(used, path)) || "–"} (default)</option>${schema.enum.map((v) => html`<option value=${v} selected=${v === here}>${v}</option>`)}</select>`
    : schema.additionalProperties ? html`<${Text} long value=${here} used=${at(used, path)} fault=${fault} read=${readMap} onSet=${set} hint="name: value, a line each" />`
    : schema.type === "array" ? html`<${Text} value=${here} used=${at(used, path)} fault=${fault} read=${(t) => t.split(",").map((w) => w.trim()).filter(Boolean)} onSet=${set} hint=${items?.enum ? items.enum.join(", ") : "with commas between"} />`
    : html`<${Text} value=${here} used=${at(used, path)} fault=${fault} read=${(t) => (["number", "integer"].includes(schema.type) && isNumber(t) ? Number(t) : t)} onSet=${set} />`}</label>
    ${fault ? html`<p class="fault" role="alert">${fault.message}</p>` : html`<small>${first(schema.description)}</small>`}</div>`;
}

// An empty text says nothing, so the default is used; an empty list is written as "none".
function Text({ long, value, used, fault, read, onSet, hint = "" }) {
  const [text, setText] = useState(null);
  const shown = text ?? (Array.isArray(value) && !value.length ? "none" : spoken(value));
  const done = () => {
    if (text === null) return;
    onSet(text.trim() === "" ? undefined : text.trim() === "none" ? read("") : read(text));
    setText(null);
  };
  const common = { value: shown, placeholder: spoken(used) || hint, title: hint, "aria-invalid": Boolean(fault), onInput: (e) => setText(e.target.value), onBlur: done, onKeyDown: (e) => { if (e.key === "Enter" && !long) done(); } };
  return long ? html`<textarea rows="2" ...${common}></textarea>` : html`<input ...${common} />`;
}

function readMap(text) {
  return Object.fromEntries(text.split("\n").map((line) => line.split(":")).filter(([name, v]) => name.trim() && v !== undefined).map(([name, v]) => [name.trim(), isNumber(v) ? Number(v) : v.trim()]));
}

// Conditions: [{field, op, value}], each a line of three boxes. What is none of these is left to the check, which says so.
export function Conditions({ conditions, value, faults, onChange }) {
  const list = Array.isArray(value.filters) ? value.filters.map((one) => ({ field: "", op: "", ...one })) : undefined;
  const knownOf = (field) => conditions.find((c) => c.name === field) ?? conditions.find((c) => c.name.endsWith(".*") && String(field).startsWith(c.name.slice(0, -1)));
  const named = (i, field) => { const ops = knownOf(field)?.ops; return change(i, { field, op: !ops || ops.includes(list[i].op) ? list[i].op : ops[0] }); }; // one of those that the field has
  const set = (next) => onChange(put(value, ["filters"], next.length ? next : undefined));
  const change = (i, part) => set(list.map((one, k) => (k === i ? { ...one, ...part } : one)));
  return html`<fieldset class="conditions"><legend>filters</legend>${list === undefined ? html`<p class="dim">Those of the preset. </p>` : null}
    ${(list ?? []).map((one, i) => {
      const known = knownOf(one.field);
      const fault = faultAt(faults, `filters.${i}`);
      return html`<div class="condition"><input list="condition-fields" aria-label=${`Field ${i + 1}`} value=${one.field} onChange=${(e) => named(i, e.target.value.trim())} />
        <select aria-label=${`Operator ${i + 1}`} onChange=${(e) => change(i, { op: e.target.value })}>${(known?.ops ?? [one.op]).map((op) => html`<option selected=${op === one.op}>${op}</option>`)}</select>
        <input aria-label=${`Value ${i + 1}`} value=${JSON.stringify(one.value ?? true)} onChange=${(e) => change(i, { value: readJson(e.target.value) })} />
        <button type="button" class="quiet" aria-label=${`Take filter ${i + 1} out`} onClick=${() => set(list.filter((_, k) => k !== i))}>✕</button>
        ${fault ? html`<p class="fault" role="alert">${fault.message}</p>` : html`<small>${known?.meaning ?? ""}${known && !known.in_pool ? " (a dry run cannot tell it)" : ""}</small>`}</div>`;
    })}
    <datalist id="condition-fields">${conditions.map((c) => html`<option value=${c.name}>${c.meaning}</option>`)}</datalist>
    <button type="button" onClick=${() => set([...(list ?? []), { field: "reward", op: "gt", value: 0 }])}>Add a filter</button></fieldset>`;
}

function readJson(text) {
  try { return JSON.parse(text); } catch { return text; }
}
