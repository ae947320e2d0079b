// The states of a part without data: empty and failed. Each says what to do.
import { html } from "./ui.js";

export const Empty = ({ children }) => html`<div class="empty">${children}</div>`;
export const Failed = ({ error, retry }) => html`<div class="warn" role="alert">
  <b>${error.status === 404 ? "Not found." : error.status === 400 ? "Wrong question." : "No answer."}</b> ${error.message}
  ${retry ? html` <button class="quiet" onClick=${retry}>Try again</button>` : null}
</div>`;
export const Loading = () => html`<p class="empty" role="status">Reading …</p>`;
export const Badge = ({ kind, children, title }) => html`<span class=${`badge ${kind}`} title=${title}>${children}</span>`;
