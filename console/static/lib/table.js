// A list of rows: one row chosen, rows picked, cells that narrow the list, a head that stays. Rows are keyed by their id.
import { html, useEffect, useInView, useRef, useState } from "./ui.js";
import { sqlPath } from "./router.js";

const AT_ONCE = 50; // rows that fill a window; the others are drawn in the next frame

export const AsSql = ({ of, ...words }) => html`<a class="button" href=${sqlPath(of, words)} title="this table as a statement, to change and to run">As SQL</a>`;

// columns: [{name, title, cell(row), term(row), number}]; `term` is the filter that a click on the cell adds. With onPick(id,
// range), rows have a box; `picked` is the set of ids.
export function Table({ label, columns, rows, chosen, onChoose, onTerm, fresh, picked, onPick }) {
  const body = useRef(null);
  const [whole, setWhole] = useState(false);
  useEffect(() => setWhole(true), []);
  useInView(body, chosen, whole);
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${label}><table class="rows">
    <caption class="hidden">${label}</caption>
    <thead><tr>${onPick ? html`<th scope="col"><span class="hidden">picked</span></th>` : null}${columns.map((c) => html`<th scope="col" class=${c.number ? "number" : ""} title=${c.hint}>${c.title}</th>`)}</tr></thead>
    <tbody ref=${body}>${(whole ? rows : rows.slice(0, AT_ONCE)).map((row) => html`<tr key=${row.id + row.group} data-id=${row.id} class=${`${fresh?.has(row.id) ? "fresh" : ""} ${picked?.has(row.id) ? "picked" : ""}`} aria-selected=${row.id === chosen} onClick=${() => onChoose(row.id)}>
      ${onPick ? html`<td class="pick" onClick=${(e) => { e.stopPropagation(); onPick(row.id, e.shiftKey); }}><input type="checkbox" tabindex="-1" aria-label=${`Pick ${row.id}`} checked=${picked.has(row.id)} /></td>` : null}
      ${columns.map((c) => html`<${Cell} column=${c} row=${row} onTerm=${onTerm} />`)}
    </tr>`)}</tbody>
  </table></div>`;
}

function Cell({ column, row, onTerm }) {
  const term = column.term?.(row) ?? null;
  const shown = column.cell(row);
  if (term === null) return html`<td class=${column.number ? "number" : ""}>${shown}</td>`;
  return html`<td class=${column.number ? "number" : ""}><button class="cell" tabindex="-1" title=${`only ${term} (Shift: not)`}
    onClick=${(e) => { e.stopPropagation(); onTerm(e.shiftKey ? `-${term}` : term); }}>${shown}</button></td>`;
}
