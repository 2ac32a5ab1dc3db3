// ---- start, the state of the server, and the end

const POLL = 1000; // ms
const POLL_HIDDEN = 5000; // ms, while the page is in the background
const SOON = 150; // ms after an answer: the head is usually solved by then
const NOTE_SECONDS = 8;

let timer = 0;
let noteTimer = 0;

async function poll() {
  clearTimeout(timer);
  try {
    const before = app.state;
    app.state = await call("/api/state");
    setOnline(true);
    if (!before) restoreOutbox();
    // A class whose first answer is on its way has its button already.
    for (const { body } of outbox.entries) {
      if (body.label && !app.state.classes.some(({ name }) => name === body.label)) app.state.classes.push({ name: body.label, n: 0, held_out: null });
    }
    drawFigures();
    drawClasses();
    if (app.task.name === "question" && !current()) { drawNothing(); fill(); }
    if (!before && !app.state.classes.length && matchMedia("(pointer: fine)").matches) $("name").focus();
  } catch (error) {
    report(error);
  }
  timer = setTimeout(poll, document.hidden ? POLL_HIDDEN : POLL);
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(poll, SOON);
}

// A message that goes away by itself.
function say(text) {
  clearTimeout(noteTimer);
  $("note-text").textContent = text;
  $("note").hidden = false;
  noteTimer = setTimeout(() => { $("note").hidden = true; }, 1000 * NOTE_SECONDS);
}

// ---- Finish: a model from the labels

async function finish() {
  try {
    await call("/api/finish", {});
    await poll();
  } catch (error) {
    if (!error.refused) return report(error);
    $("finish-error").textContent = error.refused;
  }
}

function drawFinish({ running, run, error, lines, commands }) {
  const { accuracy, provenance, csv, images, labelled } = app.state;
  const few = accuracy || labelled === images ? "" : t("finish_few", { n: labelled, of: images });
  $("finish-text").textContent = t("finish_text", { n: labelled, accepted: provenance.accepted ?? 0, csv }) + few;
  $("train").disabled = running;
  $("train").textContent = t(running ? "training" : run ? "train_again" : "train");
  if (running || commands.length) $("finish-error").textContent = "";
  else if (error) $("finish-error").textContent = error;
  $("finish-lines").hidden = !lines.length;
  const text = lines.join("\n");
  if ($("finish-lines").textContent !== text) $("finish-lines").textContent = text;
  $("finish-done").hidden = !commands.length;
  if (!commands.length || $("finish-commands").dataset.text === commands.join("\n")) return;
  $("finish-commands").dataset.text = commands.join("\n");
  $("finish-run").textContent = t("finished", { run });
  $("finish-commands").replaceChildren(...commands.map((command) =>
    element("li", {}, element("code", {}, command), element("button", { type: "button", onclick: (event) => copy(command, event.currentTarget) }, t("copy")))));
  announce(t("finished", { run }));
}

// navigator.clipboard exists on this machine and with https; elsewhere the command is selected for Ctrl-C.
async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = t("copied");
  } catch {
    getSelection().selectAllChildren(button.previousElementSibling);
  }
}

// ---- start

const CLICKS = {
  undo, skip, zoom: () => zoom(current()), similar: showAlike, unknown: () => answer(UNKNOWN), remove: () => answer(null), back: askQuestions,
  keep: () => answer(proposal()), image: () => zoom(current()), "select-all": () => selectAll(true), "select-none": () => selectAll(false),
  "duplicates-yes": acceptDuplicates, "duplicates-no": () => offerDuplicates([], null), "show-skipped": showSkipped,
  "go-suspects": reviewSuspects, "go-group": reviewGroup, "go-batch": reviewBatch, train: finish,
  "open-finish": () => $("finish").showModal(), "open-help": () => $("help").showModal(), "note-close": () => { $("note").hidden = true; },
  language: () => { setLanguage(language === "zh" ? "en" : "zh"); if (app.state) { drawFigures(); } drawTask(); showConnection(); },
};

async function start() {
  const saved = stored((storage) => storage.getItem(LANGUAGE_KEY));
  if (saved in translations) language = saved;
  translatePage();
  for (const [id, action] of Object.entries(CLICKS)) {
    $(id).addEventListener("click", (event) => { release(event); action(); });
  }
  $("naming").addEventListener("submit", sendName);
  $("token-form").addEventListener("submit", sendToken);
  $("token-dialog").addEventListener("cancel", (event) => event.preventDefault());
  $("zoomed-frame").addEventListener("click", zoomIn);
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", closeOutside);
    for (const button of dialog.querySelectorAll(".close")) button.addEventListener("click", () => dialog.close());
  }
  $("keys").checked = stored((storage) => storage.getItem(KEYS_KEY)) !== "off";
  $("keys").addEventListener("change", () => stored((storage) => storage.setItem(KEYS_KEY, $("keys").checked ? "on" : "off")));
  $("sure").addEventListener("change", () => drawProposals(app.state));
  $("image").addEventListener("load", () => $("single").classList.remove("pending"));
  $("image").addEventListener("error", () => { $("single").className = "broken"; });
  document.addEventListener("keydown", onKey);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    await login(token);
    history.replaceState(null, "", location.pathname); // so that the token is not on the screen, nor in a screenshot
  }
  drawTask();
  await poll();
  await fill();
}

document.addEventListener("DOMContentLoaded", start);
