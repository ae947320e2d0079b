// Data come from here: the JSON twin of a page, with errors that say what to do and a deadline.
import { signal, useEffect, useLayoutEffect, useRef, useState } from "./ui.js";

const DEADLINE = 20000;
const AGAIN = 2000; // milliseconds until what was away is asked again
export const needsKey = signal(null);
export const made = { of: null }; // the version of the files that this page is made of

export class ApiError extends Error {
  constructor(status, { code = "", message = "", position = null } = {}) {
    super(message || `the console answered ${status}`);
    Object.assign(this, { status, code, position });
  }
}

export async function get(address, { signal: stop, deadline = DEADLINE } = {}) {
  try {
    const answer = await fetch(address, { signal: stop ? AbortSignal.any([stop, AbortSignal.timeout(deadline)]) : AbortSignal.timeout(deadline) });
    const runs = answer.headers.get("x-console-pages");
    if (runs && made.of && runs !== made.of) throw new ApiError(409, { code: "another_version", message: "Another version of the console runs since this page was opened." });
    return await readAnswer(answer);
  } catch (error) {
    throw stop?.aborted ? error : faultOf(error, deadline);
  }
}

// What changes something: JSON from our own page, which is all that the server takes. Whatever version answers, it is done.
export async function post(address, body, { deadline = DEADLINE } = {}) {
  try {
    return await readAnswer(await fetch(address, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal: AbortSignal.timeout(deadline),
    }));
  } catch (error) {
    throw faultOf(error, deadline);
  }
}

// An answer that breaks off is none, whatever its head said.
async function readAnswer(answer) {
  if (answer.ok) return answer.json();
  const error = (await answer.json().catch(() => null))?.error;
  if (answer.status === 401) needsKey.value = error?.message ?? "This console needs a key.";
  throw new ApiError(answer.status, error ?? undefined);
}

function faultOf(error, deadline) {
  if (error instanceof ApiError) return error;
  return new ApiError(0, { code: "away", message: error.name === "TimeoutError" ? `Nothing came within ${deadline / 1000} s.` : "The console does not answer: is `claw up` running?" });
}

// Has what is away asked for again, and the error say so: the timer, or null where waiting helps nothing.
export function askAgain(error, ask) {
  error.again = error.status === 0 || error.status === 503;
  return error.again ? setTimeout(ask, AGAIN) : null;
}

// {data, error, loading, of, reload} of an address; null asks nothing. Old data stay until new ones come: `of` is their address.
// With `keep`, what was read last is not read again when its address comes back.
export function useData(address, { keep = false } = {}) {
  const [state, setState] = useState({ data: null, error: null, loading: true, of: null });
  const [turn, setTurn] = useState(0);
  const had = useRef(null); // of what the data are: address and turn
  const asked = `${turn} ${address}`;
  useLayoutEffect(() => { // it is asked for with the drawing, not a frame later
    if (address === null || (keep && had.current === asked)) return undefined;
    const stop = new AbortController();
    let retry = null;
    had.current = null;
    setState((old) => (old.loading && !old.error ? old : { ...old, loading: true, error: old.of === address ? old.error : null }));
    get(address, { signal: stop.signal }).then(
      (data) => {
        if (stop.signal.aborted) return;
        had.current = asked;
        setState({ data, error: null, loading: false, of: address });
      },
      (error) => {
        if (stop.signal.aborted) return;
        retry = askAgain(error, () => setTurn((t) => t + 1));
        setState((old) => ({ data: old.of === address ? old.data : null, error, loading: false, of: address }));
      },
    );
    return () => { stop.abort(); clearTimeout(retry); };
  }, [address, turn]);
  return { ...state, reload: () => setTurn((t) => t + 1) };
}

// {data, error, again} of a question that is sent with a body: nothing until it is answered, also where another was before it.
export function useAnswer(address, body, deadline = DEADLINE) {
  const [state, setState] = useState({ data: null, error: null });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    let gone = false;
    setState({ data: null, error: null });
    post(address, body, { deadline }).then((data) => { if (!gone) setState({ data, error: null }); }, (error) => { if (!gone) setState({ data: null, error }); });
    return () => { gone = true; };
  }, [address, JSON.stringify(body), turn]);
  return { ...state, again: () => setTurn((t) => t + 1) };
}
