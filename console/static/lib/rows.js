// The rows of a filter: pages behind each other, news before them, or counted while paused. One for every list that is followed.
import { useEffect, useLayoutEffect, useRef, useState } from "./ui.js";
import { askAgain, get } from "./api.js";
import { follow } from "./live.js";
import { withWords } from "./router.js";

const KEPT = 5000; // rows in the page, or as many as were asked for; older ones come again with "more"
const PAGE = 100; // rows that come unasked, and at most at once
const MOST = 500;
const KEPT_BY_SERVER = 1200; // milliseconds for which the console may give the same answer again, and some
const keyOf = (row) => row.id + row.group;
// Where news put the oldest rows out, the list goes on behind the last one that is kept.
const bounded = (rows, next, most) => (rows.length > most ? { rows: rows.slice(0, most), next: rows[most - 1].cursor } : { rows, next });

// of: "trajectories" or "groups", which is the list's address too.
export function useRows(of, filter, live) {
  const [state, setState] = useState({ rows: [], next: null, error: null, loading: true, of: null, read: false });
  const [waiting, setWaiting] = useState([]);
  const [fault, setFault] = useState(null);
  const [turn, setTurn] = useState(0);
  const paused = useRef(!live);
  const fresh = useRef(new Set());
  const asked = useRef(null); // behind which row more are being read
  paused.current = !live;
  const address = (words) => withWords(`/${of}.json`, { q: filter, ...words });
  useLayoutEffect(() => {
    const stop = new AbortController();
    let later = null;
    setState((old) => (old.loading && !old.error ? old : { ...old, loading: true, error: old.of === filter ? old.error : null }));
    setWaiting((old) => (old.length ? [] : old));
    const shown = state.of === filter ? state.rows.length : 0; // of a list that is read anew as many come again
    get(address({ limit: shown > PAGE ? Math.min(shown, MOST) : null }), { signal: stop.signal }).then(
      (data) => {
        if (stop.signal.aborted) return;
        setState({ rows: data.rows, next: data.next, error: null, loading: false, of: filter, read: true });
        if (known) later = setTimeout(() => again(stop.signal), KEPT_BY_SERVER); // news may have come while it was read anew
      },
      (error) => {
        if (stop.signal.aborted) return;
        later = askAgain(error, () => setTurn((t) => t + 1));
        setState((old) => ({ ...(old.of === filter ? old : { rows: [], next: null, read: false }), error, loading: false, of: filter }));
      },
    );
    return () => { stop.abort(); clearTimeout(later); };
  }, [filter, turn]);
  // A row that is there already comes again with what is so now.
  const put = (news) => setState((old) => {
    const had = new Set(old.rows.map(keyOf));
    const newest = new Map(news.map((r) => [keyOf(r), r]));
    const added = [...newest.values()].filter((r) => !had.has(keyOf(r))).reverse();
    fresh.current = new Set(added.map((r) => r.id));
    return { ...old, ...bounded([...added, ...old.rows.map((r) => newest.get(keyOf(r)) ?? r)], old.next, Math.max(KEPT, old.rows.length)) };
  });
  // The list was read before its news began: what came between is in neither, so its head is read once more.
  const again = (signal) => get(address(), { signal }).then((data) => { if (!signal.aborted && !paused.current) put([...data.rows].reverse()); }, () => {});
  const known = state.of === filter && state.read; // news wait for the rows before them
  useEffect(() => {
    if (!known) return undefined;
    const stop = new AbortController();
    let later = null;
    const unfollow = follow({ q: filter, of }, {
      open: () => setFault(null), // one that stands is told anew
      begin: () => { later = setTimeout(() => again(stop.signal), KEPT_BY_SERVER); },
      rows: (news) => { if (paused.current) setWaiting((old) => [...old, ...news].slice(-KEPT)); else put(news); },
      gap: () => setTurn((t) => t + 1),
      fault: ({ message }) => { setFault(message); if (!message) again(stop.signal); },
    });
    return () => { unfollow(); stop.abort(); clearTimeout(later); };
  }, [filter, known]);
  const show = () => { put(waiting); setWaiting([]); };
  useEffect(() => { if (live && waiting.length) show(); }, [live]);
  const more = async () => {
    const after = state.next;
    if (asked.current === after) return; // keys come faster than answers
    asked.current = after;
    const fits = (old) => old.of === filter && old.next === after; // else the list is another by now
    try {
      const data = await get(address({ after }));
      setState((old) => (fits(old) ? { ...old, rows: [...old.rows, ...data.rows], next: data.next, error: null } : old));
    } catch (error) { setState((old) => (fits(old) ? { ...old, error } : old)); }
    if (asked.current === after) asked.current = null;
  };
  return { ...state, waiting: waiting.length, fault, fresh: fresh.current, show, more, reload: () => setTurn((t) => t + 1) };
}
