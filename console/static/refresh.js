// The page renews itself in place: the server draws it anew, and only what differs is changed, so that nothing flickers
// and a selection stays. `/status.json` has the same as data.
"use strict";

const PERIOD = 1000;
const DEADLINE = 15000;

function morph(from, to) {
  if (from.nodeType !== to.nodeType || from.nodeName !== to.nodeName) {
    from.replaceWith(document.importNode(to, true));
    return;
  }
  if (from.nodeType === Node.TEXT_NODE) {
    if (from.data !== to.data) from.data = to.data;
    return;
  }
  for (const { name } of [...from.attributes]) if (!to.hasAttribute(name)) from.removeAttribute(name);
  for (const { name, value } of [...to.attributes]) if (from.getAttribute(name) !== value) from.setAttribute(name, value);
  const have = [...from.childNodes];
  const want = [...to.childNodes];
  for (let i = 0; i < want.length; i++) {
    if (i < have.length) morph(have[i], want[i]);
    else from.append(document.importNode(want[i], true));
  }
  for (const extra of have.slice(want.length)) extra.remove();
}

async function refresh() {
  const answer = await fetch("/", { signal: AbortSignal.timeout(DEADLINE) });
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  morph(document.querySelector("main"), page.querySelector("main"));
}

async function keepFresh() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, PERIOD));
    if (document.hidden) continue;
    try {
      await refresh();
      document.body.classList.remove("lost");
    } catch {
      document.body.classList.add("lost");
    }
  }
}

keepFresh();
