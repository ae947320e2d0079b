// `?` lists the keys in force.
import { html, signal, useEffect, useRef } from "./ui.js";
import { keysInForce } from "./keys.js";

export const helpOpen = signal(false);

export function Help() {
  const button = useRef(null);
  useEffect(() => { const before = document.activeElement; button.current.focus(); return () => before?.focus?.(); }, []);
  const close = () => { helpOpen.value = false; };
  return html`<div class="veil" onClick=${(e) => e.target === e.currentTarget && close()}>
    <div class="palette help" role="dialog" aria-modal="true" aria-label="Keys">
      <header><h2>Keys</h2><button ref=${button} class="quiet" onClick=${close}>Close</button></header>
      ${keysInForce.value.filter((set) => set.keys.some((k) => k.does)).map((set) => html`<section><h3>${set.of}</h3><dl class="keys">
        ${set.keys.filter((k) => k.does).map((k) => html`<div><dt><kbd>${k.key}</kbd></dt><dd>${k.does}</dd></div>`)}
      </dl></section>`)}
    </div>
  </div>`;
}
