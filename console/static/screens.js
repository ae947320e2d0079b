// The table of screens: address, title, key, module. A line here and a file in screens/ make a screen (docs/console.md).
// `path` has as many parts as the address; `:name` is a part that the screen gets by that name. `reads` are the data that the
// screen asks for first: the server puts them into the page's head (console/opening.py), so that they come beside the modules.
export const SCREENS = [
  { name: "flow", path: "/flow", title: "Flow", key: "f", reads: ["/flow.json"], load: () => import("./screens/flow.js") },
  { name: "trajectories", path: "/trajectories", title: "Trajectories", key: "t", reads: ["/trajectories.json?q"], load: () => import("./screens/trajectories.js") },
  { name: "trajectory", path: "/trajectories/:uid", title: "Trajectory", reads: ["/trajectories/:uid.json", "/trajectories/:uid/steps/:step|last/:mode=tokens|messages.json"], load: () => import("./screens/trajectory.js") },
  { name: "groups", path: "/groups", title: "Groups", key: "g", reads: ["/groups.json?q"], load: () => import("./screens/groups.js") },
  { name: "group", path: "/groups/:run/:group", title: "Group", reads: ["/groups/:run/:group.json?q"], load: () => import("./screens/group.js") },
  { name: "curate", path: "/curate", title: "Curate", key: "c", reads: ["/curate.json", "/trajectories.json?q!"], load: () => import("./screens/curate.js") },
  { name: "recipes", path: "/recipes", title: "Recipes", key: "r", reads: ["/recipes.json"], load: () => import("./screens/recipes.js") },
  { name: "draft", path: "/recipes/:draft", title: "Recipe", reads: ["/recipes/form.json", "/recipes.json"], load: () => import("./screens/draft.js") },
  { name: "batches", path: "/batches", title: "Batches", key: "b", reads: ["/batches.json?recipe"], load: () => import("./screens/batches.js") },
  { name: "compare", path: "/batches/:compare", title: "Compare batches", reads: ["/batches/compare.json?a!&b!"], load: () => import("./screens/compare.js") },
  { name: "batch", path: "/batches/:recipe/:sequence", title: "Batch", reads: ["/batches/:recipe/:sequence.json"], load: () => import("./screens/batch.js") },
  { name: "sql", path: "/sql", title: "SQL", key: "s", reads: ["/sql.json"], load: () => import("./screens/sql.js") },
];

// A part of an address as text; what is no code of a sign stays as it is written, for the server too.
function decoded(part) {
  try { return decodeURIComponent(part); } catch { return part; }
}

// The screen of an address and its parts: {screen, parts}, or null.
export function find(path) {
  const asked = path.split("/").filter(Boolean).map(decoded);
  for (const screen of SCREENS) {
    const wanted = screen.path.split("/").filter(Boolean);
    if (wanted.length !== asked.length) continue;
    const parts = {};
    const fits = wanted.every((word, i) => (word[0] === ":" ? ((parts[word.slice(1)] = asked[i]), true) : word === asked[i]));
    if (fits) return { screen, parts };
  }
  return null;
}
