// A queue of requests: a few at a time, retried after failures that can go away by themselves. Knows nothing of the display.
const CONCURRENCY = 4;
const RETRY_DELAYS = [1, 2, 4, 8, 15]; // seconds; the last one repeats

const queue = [];
let active = 0;
let timer = 0;
let retries = 0;
let paused = false; // until the user has done something, such as entering the token

export const handlers = { trouble() {}, loading() {} };

// Run job() when a slot is free. Jobs with `first` overtake the others. A job fails with
// {kind, after, reason}: it is repeated `after` seconds later, and `kind` and `reason` say why; or with
// {wait}: the queue stops, and wait(resume) calls resume() when it may go on.
export function enqueue(job, first = false) {
  queue[first ? "unshift" : "push"](job);
  runQueue();
}

function resume() {
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
  if (error.wait) {
    if (!paused) { paused = true; error.wait(resume); }
    return;
  }
  if (timer) return;
  let seconds = error.after ?? RETRY_DELAYS[Math.min(retries, RETRY_DELAYS.length - 1)];
  retries += 1;
  handlers.trouble(error.kind, seconds, error.reason);
  timer = setInterval(() => {
    seconds -= 1;
    if (seconds <= 0) retryNow();
    else handlers.trouble(error.kind, seconds, error.reason);
  }, 1000);
}
