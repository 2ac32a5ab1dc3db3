// Requests to the server: a few at a time, retried while the server is busy or unreachable. Knows nothing of the display.
const CONCURRENCY = 4;
const TIMEOUT = 120_000; // ms
const RETRY_DELAYS = [1, 2, 4, 8, 15]; // seconds; the last one repeats

const queue = [];
let active = 0;
let timer = 0;
let retries = 0;
let paused = false; // until the user has entered the token

export const handlers = { trouble() {}, tokenRequired() {} };

// Run job() when a slot is free; it returns the server's response. Jobs with `first` overtake the others.
export function enqueue(job, first = false) {
  queue[first ? "unshift" : "push"](job);
  runQueue();
}

export function resume() {
  paused = false;
  retryNow();
}

export function retryNow() {
  clearInterval(timer);
  timer = 0;
  runQueue();
}

function runQueue() {
  while (!paused && !timer && active < CONCURRENCY && queue.length) {
    const job = queue.shift();
    active += 1;
    job().then(() => { if (retries) { retries = 0; handlers.trouble(null); } }, (error) => retryLater(job, error)).finally(() => {
      active -= 1;
      runQueue();
    });
    if (retries) return; // after a failure, a single job tests the server; the others wait for its result
  }
}

// Put a job back after an error that can go away by itself, and count down to the next try.
function retryLater(job, error) {
  queue.unshift(job);
  if (error.token) {
    if (!paused) { paused = true; handlers.tokenRequired(); }
    return;
  }
  if (timer) return;
  let seconds = error.after ?? RETRY_DELAYS[Math.min(retries, RETRY_DELAYS.length - 1)];
  retries += 1;
  handlers.trouble(error.kind, seconds);
  timer = setInterval(() => {
    seconds -= 1;
    if (seconds <= 0) retryNow();
    else handlers.trouble(error.kind, seconds);
  }, 1000);
}

// fetch that throws temporary errors as {kind, after}, and a missing token as {token}.
export async function request(url, options = {}) {
  let response, body;
  try {
    response = await fetch(url, { ...options, credentials: "same-origin", signal: AbortSignal.timeout(TIMEOUT) });
    body = await response.json().catch((error) => { if (error instanceof SyntaxError) return {}; throw error; });
  } catch {
    throw { kind: "gone" };
  }
  if (response.status === 401) throw { token: true };
  if (response.status === 503) throw { kind: "busy", after: Number(response.headers.get("Retry-After")) || 1 };
  return { status: response.status, body };
}

export async function predict(file, explain) {
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  return request(`/predict?top=5${explain ? "&explain=1" : ""}`, { method: "POST", body: file, headers: { "Content-Type": type } });
}

// Whether the browser can read the file: fetch reports an unreadable file like an unreachable server.
export async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}
