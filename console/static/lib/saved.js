// What somebody keeps under a name in this browser: views of a list, statements. Each is an address, so it is a link.
import { html, useState } from "./ui.js";
import { place } from "./router.js";
import { load, save } from "./prefs.js";

export function Saved({ kind, title }) {
  const [kept, setKept] = useState(load(kind, []));
  const [name, setName] = useState("");
  const put = (list) => { save(kind, list); setKept(list); };
  const keep = (event) => {
    event.preventDefault();
    const query = place.value.query.toString();
    if (!name.trim()) return;
    put([...load(kind, []).filter((one) => one.name !== name.trim()), { name: name.trim(), address: place.value.path + (query ? `?${query}` : "") }]);
    setName("");
  };
  return html`<details class="chooser saved"><summary>${title}</summary><div>
    ${kept.length ? html`<ul>${kept.map((one) => html`<li><a href=${one.address}>${one.name}</a><button class="quiet" aria-label=${`Forget ${one.name}`} onClick=${() => put(load(kind, []).filter((o) => o.name !== one.name))}>✕</button></li>`)}</ul>` : html`<p class="dim">None is kept in this browser yet.</p>`}
    <form onSubmit=${keep}><input value=${name} aria-label="Name" placeholder="Keep this as …" maxlength="80" onInput=${(e) => setName(e.target.value)} /><button>Keep</button></form>
  </div></details>`;
}
