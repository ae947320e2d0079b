// The rows of a filter: pages behind each other, news before them, or counted while paused. One for every list that is followed.
import { useEffect, useLayoutEffect, useRef, useState } from "./ui.js";
import { get } from "./api.js";
import { follow } from "./live.js";
import { withWords } from "./router.js";

const KEPT = 5000; // rows in the page; older ones come again with "more"
const KEPT_BY_SERVER = 1200; // milliseconds for which the console may give the same answer again, and some
const keyOf = (row) => row.id + row.group;

// of: "trajectories" or "groups", which is the list's address too.
export function useRows(of, filter, live) {
  const [state, setState] = useState({ rows: [], next: null, error: null, loading: true, of: null });
  const [waiting, setWaiting] = useState([]);
  const [fault, setFault] = useState(null);
  const [turn, setTurn] = useState(0);
  const paused = useRef(!live);
  const fresh = useRef(new Set());
  paused.current = !live;
  const address = (after) => withWords(`/${of}.json`, { q: filter, after });
  useLayoutEffect(() => {
    const stop = new AbortController();
    setState((old) => (old.loading ? old : { ...old, loading: true }));
    setWaiting((old) => (old.length ? [] : old));
    get(address(), { signal: stop.signal }).then(
      (data) => setState({ rows: data.rows, next: data.next, error: null, loading: false, of: filter }),
      (error) => { if (!stop.signal.aborted) setState((old) => ({ ...old, error, loading: false, of: filter })); },
    );
    return () => stop.abort();
  }, [filter, turn]);
  // A row that is there already comes again with what is so now.
  const put = (news) => setState((old) => {
    const known = new Set(old.rows.map(keyOf));
    const newest = new Map(news.map((r) => [keyOf(r), r]));
    const added = [...newest.values()].filter((r) => !known.has(keyOf(r))).reverse();
    fresh.current = new Set(added.map((r) => r.id));
    return { ...old, rows: [...added, ...old.rows.map((r) => newest.get(keyOf(r)) ?? r)].slice(0, KEPT) };
  });
  useEffect(() => {
    if (state.of !== filter || state.error?.status === 400) return undefined; // news wait for the rows before them
    const stop = new AbortController();
    let later = null;
    // The list was read before the news began: what came between is in neither, so it is read once more.
    const again = () => get(address(), { signal: stop.signal }).then((data) => { if (!paused.current) put([...data.rows].reverse()); }, () => {});
    const unfollow = follow({ q: filter, of }, {
      begin: () => { later = setTimeout(again, KEPT_BY_SERVER); },
      rows: (news) => { if (paused.current) setWaiting((old) => [...old, ...news].slice(-KEPT)); else put(news); },
      gap: () => setTurn((t) => t + 1),
      fault: ({ message }) => { setFault(message); if (!message) again(); },
    });
    return () => { unfollow(); stop.abort(); clearTimeout(later); };
  }, [filter, state.of === filter, state.error?.status === 400]);
  const show = () => { put(waiting); setWaiting([]); };
  useEffect(() => { if (live && waiting.length) show(); }, [live]);
  const more = async () => {
    try {
      const data = await get(address(state.next));
      setState((old) => ({ ...old, rows: [...old.rows, ...data.rows], next: data.next }));
    } catch (error) { setState((old) => ({ ...old, error })); }
  };
  return { ...state, waiting: waiting.length, fault, fresh: fresh.current, show, more, reload: () => setTurn((t) => t + 1) };
}
