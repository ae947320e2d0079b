// Data come from here: the JSON twin of a page, with errors that say what to do and a deadline.
import { signal, useLayoutEffect, useRef, useState } from "./ui.js";

const DEADLINE = 20000;
export const needsKey = signal(null);
export const made = { of: null }; // the version of the files that this page is made of

export class ApiError extends Error {
  constructor(status, { code = "", message = "", position = null } = {}) {
    super(message || `the console answered ${status}`);
    Object.assign(this, { status, code, position });
  }
}

export async function get(address, { signal: stop, deadline = DEADLINE } = {}) {
  let answer;
  try {
    answer = await fetch(address, { signal: stop ? AbortSignal.any([stop, AbortSignal.timeout(deadline)]) : AbortSignal.timeout(deadline) });
  } catch (error) {
    if (stop?.aborted) throw error;
    throw new ApiError(0, { code: "away", message: "The console does not answer: is `claw up` running? The page tries again by itself." });
  }
  const runs = answer.headers.get("x-console-pages");
  if (runs && made.of && runs !== made.of) throw new ApiError(409, { code: "another_version", message: "Another version of the console runs since this page was opened: read the page anew." });
  return readAnswer(answer);
}

// What changes something: JSON from our own page, which is all that the server takes. Whatever version answers, it is done.
export async function post(address, body, { deadline = DEADLINE } = {}) {
  let answer;
  try {
    answer = await fetch(address, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal: AbortSignal.timeout(deadline),
    });
  } catch (error) {
    throw new ApiError(0, { code: "away", message: error.name === "TimeoutError" ? `No answer within ${deadline / 1000} s.` : "The console does not answer: is `claw up` running?" });
  }
  return readAnswer(answer);
}

async function readAnswer(answer) {
  const body = await answer.json().catch(() => ({}));
  if (answer.ok) return body;
  if (answer.status === 401) needsKey.value = body.error?.message ?? "This console needs a key.";
  throw new ApiError(answer.status, body.error);
}

// {data, error, loading, of, reload} of an address; null asks nothing. Old data stay until new ones come: `of` is their address.
export function useData(address) {
  const [state, setState] = useState({ data: null, error: null, loading: true, of: null });
  const [turn, setTurn] = useState(0);
  const retry = useRef(null);
  useLayoutEffect(() => { // it is asked for with the drawing, not a frame later
    if (address === null) return undefined;
    const stop = new AbortController();
    setState((old) => (old.loading ? old : { ...old, loading: true }));
    get(address, { signal: stop.signal }).then(
      (data) => setState({ data, error: null, loading: false, of: address }),
      (error) => {
        if (stop.signal.aborted) return;
        setState((old) => ({ data: old.of === address ? old.data : null, error, loading: false, of: address }));
        if (error.status === 0 || error.status === 503) retry.current = setTimeout(() => setTurn((t) => t + 1), 2000);
      },
    );
    return () => { stop.abort(); clearTimeout(retry.current); };
  }, [address, turn]);
  return { ...state, reload: () => setTurn((t) => t + 1) };
}
