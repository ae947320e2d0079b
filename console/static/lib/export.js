// Trajectories as a file of a dataset: the console makes it, says what is in it and what is not, and then it is taken.
import { html, useEffect, useLayoutEffect, useRef, useState } from "./ui.js";
import { post, useData } from "./api.js";
import { Dialog } from "./dialog.js";
import { count, many, short, words } from "./format.js";
import { Failed } from "./states.js";

// wanted: {q, ids}; of: how the page names them.
export function ExportForm({ wanted, of, onClose }) {
  const bounds = useData("/exports.json");
  const [form, setForm] = useState("sft");
  const [state, setState] = useState({ busy: false, made: null, error: null });
  const box = useRef(null);
  useLayoutEffect(() => box.current.querySelector("select").focus(), []);
  useEffect(() => setState({ busy: false, made: null, error: null }), [form, JSON.stringify(wanted)]);
  const make = async (event) => {
    event.preventDefault();
    if (state.busy || !bounds.data) return; // the button stays in reach of keys: one that is disabled loses the focus
    setState({ busy: true, made: null, error: null });
    try { setState({ busy: false, made: await post("/exports.json", { ...wanted, form }, { deadline: 130000 }), error: null }); } catch (error) { setState({ busy: false, made: null, error }); }
  };
  const { made } = state;
  useEffect(() => { if (made) box.current.querySelector("[download]").focus(); }, [made]);
  return html`<${Dialog} label="Export" onClose=${onClose}>
    <form class="palette decision" ref=${box} onSubmit=${make}>
      <header><h2>Export ${of}</h2><button type="button" class="quiet" onClick=${onClose}>Close</button></header>
      ${bounds.error ? html`<${Failed} error=${bounds.error} retry=${bounds.reload} />` : null}
      <label>Rows <select disabled=${state.busy} onChange=${(e) => setForm(e.target.value)}>${(bounds.data?.forms ?? []).map((f) => html`<option value=${f.name} selected=${f.name === form}>${f.name}: ${f.meaning}</option>`)}</select></label>
      <p class="dim">JSON lines. ${bounds.data ? `At most ${count(bounds.data.most)} trajectories and ${count(bounds.data.most_bytes / 2 ** 20)} MiB at once; ` : ""}those that have not ended are not in it. <code>claw export</code> has no bound, and writes parquet too.</p>
      <div class="effect" role="status">${state.error ? html`<p class="bad-text" role="alert">${state.error.message}</p>` : state.busy ? "Making the file …"
        : made ? html`<p><b>${many(made.rows, "row")}</b> of ${many(made.trajectories, "trajectory")}, ${short(made.bytes)}B</p>
          <ul>${made.meant > made.trajectories ? html`<li>${count(made.meant - made.trajectories)} not ended, or forgotten</li>` : null}${Object.entries(made.left_out).map(([reason, n]) => html`<li>${count(n)} left out: ${words(reason)}</li>`)}</ul>` : "The file is made first, and what it holds is said here."}</div>
      ${made ? html`<a class="button" download href=${made.file}>Take the file</a>` : html`<button class="primary" aria-disabled=${state.busy || !bounds.data}>Make the file</button>`}
    </form></${Dialog}>`;
}
