// ---- answers on their way to the server
// An answer is in the browser's storage until the server has it on its disk. Nothing is lost when the page is closed or
// the server is gone. Entries name the labels file: another folder may be served at the same address later.

const OUTBOX_KEY = "linnaeus-label:";
const RETRY = 1500; // ms

const outbox = { entries: [], sending: null, timer: 0, problem: "" }; // problem: why the server could not keep the first entry

// Send an answer or a skip. Resolves to the server's reply; null where it was taken back before it was sent, or refused.
function send(path, body) {
  const entry = { id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, csv: app.state.csv, path, body };
  keep(entry);
  outbox.entries.push(entry);
  const reply = new Promise((resolve) => { entry.resolve = resolve; });
  flush();
  return { entry, reply };
}

function keep(entry) {
  const { id, csv, path, body } = entry;
  stored((storage) => storage.setItem(OUTBOX_KEY + id, JSON.stringify({ id, csv, path, body })));
}

function forget(entry, reply) {
  stored((storage) => storage.removeItem(OUTBOX_KEY + entry.id));
  outbox.entries = outbox.entries.filter((other) => other !== entry);
  entry.resolve?.(reply);
}

// Take back an entry that has not been sent. Returns whether that was possible.
function withdraw(entry) {
  if (!outbox.entries.includes(entry) || outbox.sending === entry) return false;
  forget(entry, null);
  return true;
}

// Answers of an earlier visit that the server never got.
function restoreOutbox() {
  const texts = stored((storage) => Object.keys(storage).filter((key) => key.startsWith(OUTBOX_KEY)).sort().map((key) => storage.getItem(key))) ?? [];
  for (const text of texts) {
    const entry = JSON.parse(text);
    if (entry.csv === app.state.csv && !outbox.entries.some(({ id }) => id === entry.id)) outbox.entries.push(entry);
  }
  flush();
}

async function flush() {
  if (outbox.sending) return;
  clearTimeout(outbox.timer);
  while (outbox.entries.length) {
    const entry = outbox.entries[0];
    outbox.sending = entry;
    try {
      forget(entry, await call(entry.path, entry.body));
      outbox.problem = "";
      setOnline(true);
    } catch (error) {
      if (error.refused) {
        forget(entry, null);
        say(t("refused", { reason: error.refused }));
        continue;
      }
      outbox.timer = setTimeout(flush, RETRY);
      outbox.problem = error.full || "";
      if (!error.full) report(error);
      break;
    } finally {
      outbox.sending = null;
    }
  }
  showConnection();
}

// Whether the server answers. While it does not, or has no room for answers, the page says so, and how many it keeps.
function setOnline(online) {
  const returned = online && !app.online;
  app.online = online;
  showConnection();
  if (returned) {
    announce(t("back"));
    flush();
    recover();
  }
}

function showConnection() {
  const n = outbox.entries.length;
  const problem = n && app.online ? outbox.problem : "";
  $("offline").hidden = app.online && !problem;
  if ($("offline").hidden) return;
  const text = problem ? t("not_kept", { n, problem }) : n ? t("offline", { n }) : t("gone_plain");
  if ($("offline").textContent !== text) $("offline").textContent = text;
}
