// Ctrl-K: one box that goes anywhere: screens, what the present screen offers, or a trajectory by its id.
import { html, signal, useEffect, useInView, useRef, useState } from "./ui.js";
import { SCREENS } from "../screens.js";
import { Dialog } from "./dialog.js";
import { go, listPath, trajectoryPath } from "./router.js";

export const paletteOpen = signal(false);
const offered = signal([]);

// A screen offers commands: [{title, hint, run}].
export function useCommands(commands) {
  useEffect(() => {
    offered.value = [...offered.value, commands];
    return () => { offered.value = offered.value.filter((one) => one !== commands); };
  });
}

function commandsFor(text) {
  const fixed = [
    ...offered.value.flat(),
    ...SCREENS.filter((s) => !s.path.includes(":")).map((s) => ({ title: s.title, hint: `g ${s.key}`, run: () => go(s.path) })),
  ];
  const wanted = text.trim().toLowerCase();
  const found = fixed.filter((one) => one.title.toLowerCase().includes(wanted));
  if (!wanted) return found;
  return [
    ...found,
    { title: `Trajectories: ${text.trim()}`, hint: "filter", run: () => go(listPath(text.trim())) },
    { title: `Trajectory ${text.trim()}`, hint: "by id", run: () => go(trajectoryPath(text.trim())) },
  ];
}

export function Palette() {
  const [text, setText] = useState("");
  const [chosen, setChosen] = useState(0);
  const places = useRef(null);
  useInView(places, chosen);
  const commands = commandsFor(text);
  const close = () => { paletteOpen.value = false; };
  const run = (command) => { close(); command.run(); };
  const press = (event) => {
    if (event.key === "ArrowDown") setChosen((chosen + 1) % commands.length);
    else if (event.key === "ArrowUp") setChosen((chosen + commands.length - 1) % commands.length);
    else if (event.key === "Enter" && commands[chosen]) run(commands[chosen]);
    else if (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey)) close();
    else return;
    event.preventDefault();
  };
  return html`<${Dialog} label="Go to" onClose=${close}>
    <div class="palette">
      <input value=${text} placeholder="A screen, a filter, or a trajectory's id" aria-label="Go to"
        role="combobox" aria-expanded="true" aria-controls="palette-list" aria-activedescendant=${`palette-${chosen}`}
        onInput=${(e) => { setText(e.target.value); setChosen(0); }} onKeyDown=${press} />
      <ul ref=${places} id="palette-list" role="listbox" aria-label="Places">
        ${commands.map((command, i) => html`<li id=${`palette-${i}`} role="option" aria-selected=${i === chosen} onMouseMove=${() => setChosen(i)} onClick=${() => run(command)}>
          ${command.title}<kbd>${command.hint}</kbd></li>`)}
      </ul>
    </div>
  </${Dialog}>`;
}
