// Lines over something: uPlot in a box that keeps its width. Numbers in, no markup. The library is read when the first chart is
// drawn: most screens have none, and what a screen says comes before its curves.
import { html, useEffect, useRef, useState } from "./ui.js";

let library = null;
// (done, failed): what draws, now if it was read before.
function withLibrary(done, failed) {
  if (library) done(library);
  else import("../vendor/uplot.js").then((read) => { library = read.default; done(library); }, failed);
}

// A colour of the sheet as a canvas takes it: the pair of light and dark is settled by a real element.
const probe = document.createElement("i");
probe.hidden = true;
document.body.append(probe);
const token = (name) => {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
};
const WHOLE = [1, 2, 5].flatMap((n) => [n, n * 10, n * 100, n * 1000, n * 10000]).sort((a, b) => a - b);
const LINES = ["--accent", "--second", "--third"];

// series: [{name, values, width}], x: [numbers], time: whether x is seconds since the epoch; else x is whole numbers.
export function Chart({ title, x, series, time = false, height = 130, xName = "", unit = "" }) {
  const box = useRef(null);
  const plot = useRef(null);
  const [uPlot, setPlot] = useState(() => library);
  const [fault, setFault] = useState(null);
  const shape = JSON.stringify([title, time, height, series.map((s) => s.name)]);
  useEffect(() => withLibrary((read) => setPlot(() => read), setFault), []);
  useEffect(() => {
    if (!uPlot) return undefined;
    const axis = () => ({ stroke: () => token("--dim"), grid: { stroke: () => token("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" });
    plot.current = new uPlot({
      width: box.current.clientWidth || 300,
      height,
      scales: { x: { time } },
      cursor: { points: { size: 6 }, drag: { x: true, y: false } },
      legend: { show: true, live: true },
      padding: [8, 8, 0, 0],
      axes: [{ ...axis(), size: 24, gap: 4, ...(time ? {} : { incrs: WHOLE }) }, { ...axis(), size: 46 }],
      series: [
        { label: xName || (time ? "time" : "x") },
        ...series.map((one, i) => ({
          label: one.name, width: one.width ?? 1.75, spanGaps: true, points: { show: one.values.length < 3 },
          stroke: () => token(LINES[i % LINES.length]),
          value: (_, v) => (v === null || v === undefined ? "–" : `${Math.round(v * 1000) / 1000}${unit}`),
        })),
      ],
    }, [x, ...series.map((s) => s.values)], box.current);
    const size = new ResizeObserver(() => plot.current?.setSize({ width: box.current.clientWidth, height }));
    size.observe(box.current);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    const redraw = () => plot.current?.redraw(false);
    scheme.addEventListener("change", redraw);
    return () => { scheme.removeEventListener("change", redraw); size.disconnect(); plot.current.destroy(); plot.current = null; };
  }, [shape, uPlot]);
  useEffect(() => { plot.current?.setData([x, ...series.map((s) => s.values)]); }, [x, series]);
  return html`<figure class="chart"><figcaption>${title}</figcaption><div ref=${box} role="img" aria-label=${say(title, series)}></div>
    ${fault ? html`<p class="dim">Not drawn: ${fault.message}</p>` : null}</figure>`;
}

function say(title, series) {
  const last = series.map((s) => `${s.name} ${s.values.findLast?.((v) => v !== null) ?? "unknown"}`);
  return `${title}: now ${last.join(", ")}`;
}
