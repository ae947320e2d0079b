// `?` lists the keys in force.
import { html, signal } from "./ui.js";
import { Dialog } from "./dialog.js";
import { keysInForce } from "./keys.js";

export const helpOpen = signal(false);

export function Help() {
  const close = () => { helpOpen.value = false; };
  return html`<${Dialog} label="Keys" onClose=${close}>
    <div class="palette help" onKeyDown=${(e) => e.key === "?" && close()}>
      <header><h2>Keys</h2><button class="quiet" onClick=${close}>Close</button></header>
      ${keysInForce.value.filter((set) => set.keys.some((k) => k.does)).map((set) => html`<section><h3>${set.of}</h3><dl class="keys">
        ${set.keys.filter((k) => k.does).map((k) => html`<div><dt><kbd>${k.key}</kbd></dt><dd>${k.does}</dd></div>`)}
      </dl></section>`)}
    </div>
  </${Dialog}>`;
}
