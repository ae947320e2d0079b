// Tokens are drawn as blocks of text, 512 tokens a block, which the browser lays out only when they come into view: a
// component for each token would take seconds. The text is escaped here, once; colours are classes, put anew without
// drawing the text again.
import { html, useEffect, useLayoutEffect, useRef, useState } from "./ui.js";
import { scaleOf } from "./scales.js";
import { number } from "./format.js";

export const BLOCK = 512;
const SIGNS = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
export const escape = (text) => String(text).replace(/[&<>"']/g, (sign) => SIGNS[sign]);

// What stands for a token: its text with line feeds and tabs to be seen, or its id where no text is known. `texts` null: ids.
export function wordOf(texts) {
  if (!texts) return (id) => String(id);
  return (id) => (texts[id] ? texts[id].replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t") : `⟨${id}⟩`);
}

// Tokens as one text; ids stand apart.
export const joined = (ids, texts) => ids.map(wordOf(texts)).join(texts ? "" : " ");

// The markup of tokens [from, to): a span each.
export function blockMarkup(ids, from, to, prompt, colour, texts) {
  const word = wordOf(texts);
  const apart = texts ? "" : " ";
  let text = "";
  for (let i = from; i < to; i++) text += `<i class="${i < prompt ? "p " : ""}${colour(i)}">${escape(word(ids[i]))}</i>${apart}`;
  return text;
}

export function Tokens({ ids, prompt, signals, signal, texts = null, known = { texts: null, missing: "" } }) {
  const box = useRef(null);
  const [over, setOver] = useState(null);
  const chosen = signals.find((s) => s.name === signal && s.values);
  const drawn = useRef(null); // the signal that the colours are of
  useLayoutEffect(() => {
    drawn.current = signal;
    const scale = chosen ? scaleOf(chosen) : null;
    const colour = (i) => (scale ? scale.of(chosen.values[i]) : "");
    const blocks = [];
    for (let from = 0; from < ids.length; from += BLOCK) {
      const to = Math.min(ids.length, from + BLOCK);
      blocks.push(`<div class="block" data-from="${from}">${blockMarkup(ids, from, to, prompt, colour, texts)}</div>`);
    }
    box.current.innerHTML = blocks.join("");
  }, [ids, texts]);
  useEffect(() => {
    if (drawn.current === signal) return;
    drawn.current = signal;
    const scale = chosen ? scaleOf(chosen) : null;
    for (const block of box.current.children) {
      const from = Number(block.dataset.from);
      [...block.children].forEach((token, i) => {
        const at = from + i;
        token.className = (at < prompt ? "p " : "") + (scale ? scale.of(chosen.values[at]) : "");
      });
    }
  }, [signal]);
  const point = (event) => {
    const token = event.target.closest("i");
    if (!token || !box.current.contains(token)) return setOver(null);
    const block = token.parentElement;
    const at = Number(block.dataset.from) + [...block.children].indexOf(token);
    return setOver({ at, x: token.offsetLeft, y: token.offsetTop + token.offsetHeight });
  };
  return html`<div class="tokens-part">
    <div ref=${box} class=${texts ? "tokens worded" : "tokens"} tabindex="0" role="region" aria-label=${`${ids.length} tokens; the prompt has ${prompt}`} onMouseOver=${point} onClick=${point} onMouseLeave=${() => setOver(null)}></div>
    ${over ? html`<${Facts} at=${over.at} ids=${ids} prompt=${prompt} signals=${signals} known=${known} x=${over.x} y=${over.y} />` : null}
  </div>`;
}

function Facts({ at, ids, prompt, signals, known, x, y }) {
  const card = useRef(null);
  useLayoutEffect(() => {
    const space = card.current.offsetParent.clientWidth - card.current.offsetWidth;
    card.current.style.left = `${Math.max(0, Math.min(x, space))}px`;
    card.current.style.top = `${y + 4}px`;
  }, [x, y]);
  return html`<div class="facts-card" ref=${card} role="tooltip">
    <b>id ${ids[at]}</b> <small>${at < prompt ? `prompt, token ${at}` : `response, token ${at - prompt}`}</small>
    <p class="dim">text: ${known.texts ? (known.texts[ids[at]] === undefined ? "the tokenizer has no such id" : html`<code>${JSON.stringify(known.texts[ids[at]])}</code>`) : `not known, ${known.missing}`}</p>
    <dl>${signals.map((s) => html`<div><dt>${s.title}</dt><dd>${s.values ? (s.values[at] === null ? "not of this token" : `${number(s.values[at], 5)}${s.unit ? ` ${s.unit}` : ""}`) : "not recorded"}</dd></div>`)}</dl>
  </div>`;
}

export function Legend({ signal }) {
  if (!signal?.values) return null;
  const { ends } = scaleOf(signal);
  return html`<span class="legend">${ends.map((end) => html`<span><i class=${`swatch ${end.class}`}></i>${number(end.value, 3)}</span>`)}<small>${signal.unit}</small></span>`;
}
