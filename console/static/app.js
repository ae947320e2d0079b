// The shell: head, navigation, the screen of the present address, keys, palette. Screens are made when they are first opened.
import { html, render, useErrorBoundary, useLayoutEffect, useState } from "./lib/ui.js";
import { made, needsKey, post } from "./lib/api.js";
import { connection } from "./lib/live.js";
import { go, place } from "./lib/router.js";
import { useKeys } from "./lib/keys.js";
import { Palette, paletteOpen } from "./lib/palette.js";
import { Help, helpOpen } from "./lib/help.js";
import { Done } from "./lib/decide.js";
import { Empty, Failed, Loading } from "./lib/states.js";
import { SCREENS, find } from "./screens.js";

const ICON = new URL("./icon.svg", import.meta.url).pathname; // beside this file, whose address has a hash
made.of = ICON.split("/").at(-2);
const LIVE = { on: ["ready", "live"], lost: ["down", "the console does not answer: trying again"], off: ["", "not live"] };

function Head({ current }) {
  const [state, words] = LIVE[connection.value];
  return html`<header class="head">
    <a class="brand" href="/flow"><img src=${ICON} alt="" width="20" height="20" />Claw-R1</a>
    <nav aria-label="Screens">${SCREENS.filter((s) => !s.path.includes(":")).map((s) => html`<a href=${s.path} aria-current=${current?.screen.path.startsWith(s.path) ? "page" : null}>${s.title}</a>`)}</nav>
    <span class="live" role="status"><i class=${`dot ${state}`}></i><span>${words}</span></span>
    <button class="quiet" onClick=${() => { paletteOpen.value = true; }}>Go to <kbd>Ctrl K</kbd></button>
    <button class="quiet" aria-label="Keys" onClick=${() => { helpOpen.value = true; }}>?</button>
  </header>`;
}

function Screen({ found }) {
  const [module, setModule] = useState(null);
  const [error, setError] = useState(null);
  const [fault, drawAnew] = useErrorBoundary((e) => reportError(e)); // a fault of a screen leaves the others, and is said
  const name = found.screen.name;
  useLayoutEffect(drawAnew, [place.value]);
  useLayoutEffect(() => { // with the drawing, not a frame later
    let gone = false;
    document.title = `${Object.values(found.parts).join(" ") || found.screen.title} · Claw-R1`;
    setError(null);
    found.screen.load().then((m) => { if (!gone) setModule({ name, draw: m.default }); }, (e) => { if (!gone) setError(e); });
    return () => { gone = true; };
  }, [name, JSON.stringify(found.parts)]);
  if (error ?? fault) return html`<${Failed} error=${{ message: `The screen cannot be drawn: ${(error ?? fault).message}` }} retry=${() => location.reload()} />`;
  if (module?.name !== name) return html`<${Loading} />`;
  return html`<${module.draw} key=${name + JSON.stringify(found.parts)} ...${found.parts} query=${place.value.query} />`;
}

function Login() {
  const [key, setKey] = useState("");
  const [said, setSaid] = useState(needsKey.value);
  const open = async (event) => {
    event.preventDefault();
    try {
      await post("/session", { key: key.trim() });
      location.reload();
    } catch (error) { setSaid(error.message); }
  };
  return html`<form class="login" onSubmit=${open}><h1>Claw-R1</h1><p role="alert">${said}</p>
    <label>Key <input type="password" autocomplete="off" value=${key} onInput=${(e) => setKey(e.target.value)} /></label>
    <button>Open</button></form>`;
}

function App() {
  useKeys([
    { key: "Ctrl+k", does: "go to a screen, a filter or a trajectory", run: () => { paletteOpen.value = !paletteOpen.value; } },
    { key: "?", does: "list the keys", run: () => { helpOpen.value = !helpOpen.value; } },
    ...SCREENS.filter((s) => s.key).map((s) => ({ key: `g ${s.key}`, does: s.title, run: () => go(s.path) })),
  ]);
  if (needsKey.value) return html`<${Login} />`;
  const found = find(place.value.path);
  return html`<a class="skip" href="#main" onClick=${(e) => { e.preventDefault(); document.getElementById("main").focus(); }}>To the content</a>
    <${Head} current=${found} />
    <main id="main" tabindex="-1">${found ? html`<${Screen} found=${found} />` : html`<${Empty}>There is no page ${place.value.path}. <a href="/flow">Flow</a> is the first.</${Empty}>`}</main>
    <${Done} />
    ${paletteOpen.value ? html`<${Palette} />` : null}${helpOpen.value ? html`<${Help} />` : null}`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
