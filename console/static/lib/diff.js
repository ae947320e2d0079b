// Two contexts beside each other: the shared prefix folded, the first token that differs marked, what differs below.
// Tokens are joined to texts here and drawn by Preact, which escapes them.
import { html, useState } from "./ui.js";
import { useData } from "./api.js";
import { setQuery } from "./router.js";
import { useKeys } from "./keys.js";
import { joined, wordOf } from "./tokens.js";
import { count, many } from "./format.js";
import { Badge, Failed, Loading } from "./states.js";

const TAIL = 24; // tokens of a folded part that are shown
const BADGES = { exact: "trained", boundary: "waiting", drift: "discarded", root: "tag" };

export const diffPath = (left, right) => `/diff.json?${new URLSearchParams({ left: left.id, left_step: left.step, right: right.id, right_step: right.step })}`;

// children: what chooses the sides.
export function Diff({ address, query, children }) {
  const { data, error, reload, loading } = useData(address);
  const ids = query.get("as") === "ids";
  const turn = () => setQuery({ as: ids ? null : "ids" });
  useKeys(data?.texts.texts ? [{ key: "i", does: "texts or ids of tokens", run: turn }] : [], "Diff");
  if (error) return html`<header class="bar">${children}</header><${Failed} error=${error} retry=${reload} />`;
  if (!data || loading) return html`<header class="bar">${children}</header><${Loading} />`;
  const texts = ids ? null : data.texts.texts;
  const differs = data.hunks.find((h) => h.kind === "differs");
  return html`<div class="diff-mode">
    <header class="bar">${children}
      ${data.link ? html`<${Badge} kind=${BADGES[data.link.kind] ?? ""} title=${data.link.means}>${data.link.kind}</${Badge}>` : null}
      ${data.texts.texts ? html`<button aria-pressed=${ids} onClick=${turn}>Ids <kbd>i</kbd></button>` : null}</header>
    <p>${many(data.shared, "shared token")} of ${count(data.left.tokens)} and ${count(data.right.tokens)}. ${differs || data.shared < Math.max(data.left.tokens, data.right.tokens) ? html`The first that differs is token <b>${count(data.shared)}</b>.` : "They are the same."}</p>
    ${data.link ? html`<p class="dim">${data.link.kind}: ${data.link.means}; ${data.link.by === "merge" ? "as the merge recorded it" : "judged by these two steps, since no sample has the link"}${data.link.differs_at === null ? "" : `, from token ${count(data.link.differs_at)} on`}.</p>` : null}
    ${data.texts.missing ? html`<p class="dim">Token ids: ${data.texts.missing}.</p>` : null}
    <div class=${texts ? "diff worded" : "diff"} tabindex="0" role="region" aria-label="Difference">
      <${Same} key=${address} ids=${data.right_ids.slice(0, data.shared)} texts=${texts} />
      ${data.hunks.map((h, i) => html`<${Hunk} key=${address + i} hunk=${h} data=${data} texts=${texts} first=${i === 0} />`)}
    </div></div>`;
}

function Hunk({ hunk, data, texts, first }) {
  const left = data.left_ids.slice(hunk.left[0] - data.shared, hunk.left[1] - data.shared);
  const right = data.right_ids.slice(...hunk.right);
  if (hunk.kind === "same") return html`<${Same} ids=${right} texts=${texts} />`;
  return html`${left.length ? html`<${Side} tag="del" ids=${left} texts=${texts} first=${first} />` : null}${right.length ? html`<${Side} tag="ins" ids=${right} texts=${texts} first=${first} />` : null}`;
}

function Side({ tag, ids, texts, first }) {
  const rest = first ? ids.slice(1) : ids;
  const words = html`${first ? html`<mark title=${`id ${ids[0]}`}>${wordOf(texts)(ids[0])}</mark>${texts ? "" : " "}` : null}${joined(rest, texts)}`;
  const label = `${tag === "del" ? "only left" : "only right"}, ${many(ids.length, "token")}`;
  return html`<div class=${`side ${tag}`}><small>${label}</small>${tag === "del" ? html`<del>${words}</del>` : html`<ins>${words}</ins>`}</div>`;
}

function Same({ ids, texts }) {
  const [open, setOpen] = useState(false);
  if (!ids.length) return null;
  const folded = !open && ids.length > TAIL * 2;
  return html`<div class="side">${ids.length > TAIL * 2 ? html`<button class="quiet" aria-expanded=${open} onClick=${() => setOpen(!open)}>${open ? "Fold" : "Unfold"} ${count(ids.length)} shared tokens</button> ` : null}<span>${folded ? `… ${joined(ids.slice(-TAIL), texts)}` : joined(ids, texts)}</span></div>`;
}
