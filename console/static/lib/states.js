// The states of a part without data: empty and failed. Each says what to do.
import { html } from "./ui.js";

export const Empty = ({ children }) => html`<div class="empty">${children}</div>`;
const HEADS = { 400: "Wrong question.", 403: "Refused.", 404: "Not found.", 409: "Outdated." };
export const Failed = ({ error, retry }) => html`<div class="warn" role="alert">
  ${error.status === undefined ? null : html`<b>${HEADS[error.status] ?? "No answer."}</b>`} ${error.message}${error.again ? " The page tries again by itself." : ""}
  ${error.code === "another_version" ? html` <button type="button" class="quiet" onClick=${() => location.reload()}>Read the page anew</button>`
    : retry ? html` <button type="button" class="quiet" onClick=${retry}>Try again</button>` : null}
</div>`;
export const Loading = () => html`<p class="empty" role="status">Reading …</p>`;
export const Badge = ({ kind, children, title }) => html`<span class=${`badge ${kind}`} title=${title}>${children}</span>`;
