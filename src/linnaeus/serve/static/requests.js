// Asking the server: a few pictures at a time, patiently. Knows nothing of how answers look.
const AT_ONCE = 4;
const LONGEST = 120_000; // ms that an answer may take
const PAUSES = [1, 2, 4, 8, 15]; // seconds between tries, the last one for ever

const waiting = [];
let asked = 0;
let timer = 0;
let tries = 0;
let held = false; // until the token is known

export const on = { trouble() {}, token() {} };

// Run job() in its turn: it returns the server's answer. Jobs with `soon` go first.
export function enqueue(job, soon = false) {
  waiting[soon ? "unshift" : "push"](job);
  pump();
}

export function release() {
  held = false;
  now();
}

// Do not wait for the next try.
export function now() {
  clearInterval(timer);
  timer = 0;
  pump();
}

function pump() {
  while (!held && !timer && asked < AT_ONCE && waiting.length) {
    const job = waiting.shift();
    asked += 1;
    job().then(() => { if (tries) { tries = 0; on.trouble(null); } }, (error) => later(job, error)).finally(() => {
      asked -= 1;
      pump();
    });
    if (tries) return; // one knocks, and the others wait for what it finds
  }
}

// Something that trying again may cure: put the job back, and say when.
function later(job, error) {
  waiting.unshift(job);
  if (error.token) {
    if (!held) { held = true; on.token(); }
    return;
  }
  if (timer) return;
  let left = error.after ?? PAUSES[Math.min(tries, PAUSES.length - 1)];
  tries += 1;
  on.trouble(error.kind, left);
  timer = setInterval(() => {
    left -= 1;
    if (left <= 0) now();
    else on.trouble(error.kind, left);
  }, 1000);
}

// fetch, with what can be cured by waiting thrown as {kind, after} or {token}.
export async function ask(address, options = {}) {
  let answer, body;
  try {
    answer = await fetch(address, { ...options, credentials: "same-origin", signal: AbortSignal.timeout(LONGEST) });
    body = await answer.json().catch((error) => { if (error instanceof SyntaxError) return {}; throw error; });
  } catch {
    throw { kind: "gone" };
  }
  if (answer.status === 401) throw { token: true };
  if (answer.status === 503) throw { kind: "busy", after: Number(answer.headers.get("Retry-After")) || 1 };
  return { status: answer.status, body };
}

export async function predict(file, explain) {
  const kind = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  return ask(`/predict?top=5${explain ? "&explain=1" : ""}`, { method: "POST", body: file, headers: { "Content-Type": kind } });
}

// Whether the browser can read the file at all: a fetch that fails for that looks like a server that is gone.
export async function legible(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}
