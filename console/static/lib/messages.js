// A conversation as its senders wrote it: text, reasoning, tool calls and their answers. All of it is text: nothing is run.
import { html } from "./ui.js";

const LONG = 4000;

// The parts of a message's content: [{kind, text}].
export function partsOf(message) {
  const parts = [];
  const thought = message.reasoning_content ?? message.reasoning;
  if (typeof thought === "string" && thought) parts.push({ kind: "reasoning", text: thought });
  const content = Array.isArray(message.content) ? message.content : message.content === null || message.content === undefined ? [] : [message.content];
  for (const part of content) {
    if (typeof part === "string") parts.push({ kind: "text", text: part });
    else if (typeof part?.text === "string") parts.push({ kind: part.type === "thinking" ? "reasoning" : "text", text: part.text });
    else if (typeof part?.thinking === "string") parts.push({ kind: "reasoning", text: part.thinking });
    else if (part?.type === "tool_use") parts.push({ kind: "call", name: part.name, text: JSON.stringify(part.input ?? {}, null, 2) });
    else parts.push({ kind: part?.type ?? "part", text: JSON.stringify(part, null, 2) });
  }
  for (const call of [message.tool_calls ?? []].flat()) { // an agent may have sent anything
    parts.push({ kind: "call", name: call?.function?.name ?? call?.name ?? call?.type, text: pretty(call?.function?.arguments ?? call?.arguments ?? call) });
  }
  return parts;
}

function pretty(value) {
  if (typeof value !== "string") return JSON.stringify(value, null, 2);
  try { return JSON.stringify(JSON.parse(value), null, 1).replace(/\n\s*/g, " "); } catch { return value; }
}

export function Messages({ messages, from = 0 }) {
  return html`<ol class="messages" start=${from + 1}>${messages.map((message, i) => html`<li class=${`message ${["system", "user", "assistant", "tool"].includes(message.role) ? message.role : "other"}`} key=${i}>
    <header>${message.role}${message.name ? html` <small>${message.name}</small>` : null}<small class="place">${from + i + 1}</small></header>
    ${partsOf(message).map((part) => html`<${Part} ...${part} />`)}
  </li>`)}</ol>`;
}

function Part({ kind, name, text }) {
  const body = text.length > LONG
    ? html`<details><summary>${text.slice(0, 300)} … ${text.length.toLocaleString()} characters</summary><pre>${text}</pre></details>`
    : html`<pre>${text}</pre>`;
  if (kind === "text") return body;
  return html`<div class=${`part ${kind === "call" ? "call" : kind === "reasoning" ? "reasoning" : ""}`}><small>${kind === "call" ? html`calls <b>${name}</b>` : kind}</small>${body}</div>`;
}
