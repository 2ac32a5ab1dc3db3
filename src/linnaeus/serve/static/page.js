// The page: pictures in, answers out.
import { ask, enqueue, legible, now, on, predict, release } from "./requests.js";
import { draw, make, thumbnail } from "./answers.js";
import { copy, csv, download, fill, tsv } from "./table.js";
import { apply, bytes, count, other, percent, speak, t } from "./i18n.js";

const $ = (id) => document.getElementById(id);
const items = []; // newest first, in the order in which they are shown
let card = null;
let pasted = 0;
let trouble = null;

// ---- pictures in

function add(files) {
  const some = files.map((file) => ({
    file, path: file.path ?? file.name, state: "waiting", answer: null, heat: false, explaining: false,
    element: make("li"), thumb: thumbnail(file),
  }));
  items.unshift(...some);
  $("list").prepend(...some.map((item) => item.element));
  for (const item of some) { redraw(item); start(item); }
  summary();
}

async function start(item) {
  const most = card?.limits.request_bytes ?? Infinity;
  if (item.file.size > most) return fail(item, () => t("too_large", { size: bytes(item.file.size), most: bytes(most) }));
  if (!(await legible(item.file))) return fail(item, () => t("unreadable_file"));
  enqueue(() => question(item));
}

async function question(item) {
  if (!items.includes(item)) return;
  set(item, "asking");
  let found;
  try {
    found = await predict(item.file, false);
  } catch (error) {
    set(item, "waiting");
    throw error;
  }
  const answer = found.body.predictions?.[0];
  if (answer && answer.error === null) {
    item.answer = answer;
    set(item, answer.unsure ? "unsure" : "answered");
    const { name, probability } = answer.top[0];
    tell(t(answer.unsure ? "said_unsure" : "said", { path: item.path, name, probability: percent(probability) }));
  } else {
    const why = answer?.error ?? found.body.error ?? String(found.status);
    item.curable = found.status >= 500 || found.status === 408;
    fail(item, () => (answer ? why : t("failed", { why })));
  }
}

function fail(item, why) {
  item.why = why;
  set(item, "failed");
  tell(t("said_failed", { path: item.path, why: why() }));
}

function set(item, state) {
  item.state = state;
  redraw(item);
  summary();
}

function redraw(item) {
  draw(item, {
    explains: card?.explains || card?.neighbors,
    heat: () => toggle(item),
    retry: () => { set(item, "waiting"); start(item); },
    remove: () => remove(item),
  });
}

function remove(item) {
  const at = items.indexOf(item);
  items.splice(at, 1);
  item.element.remove();
  (items[at] ?? items[at - 1])?.element.querySelector("button")?.focus();
  summary();
}

function toggle(item) {
  item.heat = !item.heat;
  if (item.heat && !item.answer.explained && !item.explaining) {
    item.explaining = true;
    enqueue(async () => {
      const found = await predict(item.file, true);
      item.explaining = false;
      const answer = found.body.predictions?.[0];
      if (answer?.error === null) item.answer = answer; else item.heat = false;
      redraw(item);
    }, true);
  }
  redraw(item);
}

// Said once for all that came since the last time: a hundred pictures are not a hundred sentences.
let sayings = [];
let saying = 0;
function tell(line) {
  sayings.push(line);
  clearTimeout(saying);
  saying = setTimeout(() => {
    $("live").textContent = sayings.length <= 3 ? sayings.join("; ") : progress();
    sayings = [];
  }, 400);
}

// ---- around the answers

const done = () => items.filter((item) => item.answer || item.state === "failed");

function progress() {
  const failed = items.filter((item) => item.state === "failed").length;
  const answered = items.filter((item) => item.answer).length;
  return t(failed ? "progress_failed" : "progress", { done: count(answered), all: count(items.length), failed: count(failed) });
}

let drawing = 0;
function summary() {
  $("answers").hidden = !items.length;
  document.body.classList.toggle("some", items.length > 0);
  $("progress").textContent = progress();
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(() => {
    const finished = done();
    $("all").hidden = !finished.length;
    fill($("rows"), finished);
  });
}

on.trouble = (kind, seconds) => {
  if (kind === null && trouble) tell(t("back"));
  trouble = kind && { kind, seconds };
  $("trouble").hidden = !trouble;
  $("trouble-text").textContent = trouble ? t(kind, { seconds: count(seconds) }) : "";
};

on.token = () => { if (!$("ask-token").open) $("ask-token").showModal(); };

async function login(event) {
  event.preventDefault();
  $("token-wrong").textContent = "";
  const answer = await fetch("/login", { method: "POST", headers: { Authorization: `Bearer ${$("token").value}` } }).catch(() => null);
  if (answer?.ok) {
    $("token").value = "";
    $("ask-token").close();
    release();
  } else {
    $("token-wrong").textContent = t(answer ? "token_wrong" : "gone", { seconds: 0 });
  }
}

// ---- the model

async function introduce() {
  const { body } = await ask("/model");
  card = body;
  describe();
  items.forEach(redraw);
}

function describe() {
  if (!card) return;
  $("name").textContent = document.title = card.name;
  const figures = Object.entries(card.metrics).filter(([, found]) => found?.n && found.accuracy_ci95);
  const [split, best] = figures.at(-1) ?? [];
  const classes = count(card.classes.length);
  $("lead").textContent = best
    ? t("lead", { classes, accuracy: percent(best.accuracy), n: count(best.n), split: t(split), low: percent(best.accuracy_ci95[0]), high: percent(best.accuracy_ci95[1]) })
    : t("lead_plain", { classes });
  $("figures").hidden = !figures.length;
  $("figures").tBodies[0].replaceChildren(...figures.map(([name, found]) => figure(name, found)));
  const counts = Object.entries(card.data.counts ?? {});
  const facts = [
    ["f_network", card.network],
    ["f_data", counts.map(([name, n]) => `${count(n)} ${t(name)}`).join(" · ")],
    ["f_size", t("f_size_value", { size: card.preprocessing.size })],
    ["f_threshold", card.threshold ? percent(card.threshold) : t("f_never")],
    ["f_neighbors", card.neighbors ? t("f_pictures", { n: count(card.neighbors) }) : ""],
    ["f_limits", t("f_limits_value", { size: bytes(card.limits.request_bytes) })],
    ["f_version", card.versions.linnaeus ?? ""],
  ];
  $("facts").replaceChildren(...facts.filter(([, value]) => value).map(([label, value]) =>
    make("div", {}, make("dt", {}, t(label)), make("dd", {}, value))));
  $("classes-h").textContent = t("classes_list", { n: classes });
  $("classes").replaceChildren(...card.classes.map((each) => make("li", {}, each.name, each.class === each.name ? null : make("span", { class: "small" }, ` ${each.class}`))));
  $("report").hidden = !card.report;
  $("model").hidden = false;
}

function figure(name, found) {
  const [low, high] = found.accuracy_ci95;
  const band = make("i");
  band.style.left = `${100 * low}%`;
  band.style.width = `${100 * (high - low)}%`;
  const dot = make("b");
  dot.style.left = `${100 * found.accuracy}%`;
  return make("tr", {}, make("th", { scope: "row" }, t(name)),
    make("td", { class: "number" }, `${count(found.correct)} / ${count(found.n)}`),
    make("td", { class: "number strong" }, percent(found.accuracy)),
    make("td", {}, make("span", { class: "number muted" }, `${percent(low)} – ${percent(high)}`), make("span", { class: "range", "aria-hidden": "true" }, band, dot)));
}

// ---- wiring

// All files of what was dropped: folders too, level by level.
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const files = [];
  while (entries.length) {
    const entry = entries.shift();
    if (entry.isFile) {
      const file = await new Promise((found, lost) => entry.file(found, lost)).catch(() => null);
      if (file && !file.name.startsWith(".")) files.push(Object.assign(file, { path: entry.fullPath.slice(1) }));
    } else {
      const reader = entry.createReader();
      for (let some; (some = await new Promise((found, lost) => reader.readEntries(found, lost))).length;) entries.push(...some);
    }
  }
  return files;
}

for (const [button, input] of [["choose", "files"], ["photograph", "camera"]]) {
  $(button).addEventListener("click", () => $(input).click());
  $(input).addEventListener("change", () => { add([...$(input).files]); $(input).value = ""; });
}
let depth = 0;
const over = (event, change) => {
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  depth = change === 0 ? 0 : depth + change;
  document.body.classList.toggle("over", depth > 0);
};
addEventListener("dragenter", (event) => over(event, 1));
addEventListener("dragleave", (event) => over(event, -1));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", async (event) => { over(event, 0); add(await dropped(event.dataTransfer)); });
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length) return;
  event.preventDefault();
  // The clipboard calls every picture image.png.
  add(files.map((file) => Object.assign(file, { path: file.name === "image.png" ? `clipboard-${(pasted += 1)}.png` : file.name })));
});

$("now").addEventListener("click", now);
$("clear").addEventListener("click", () => { items.splice(0); $("list").replaceChildren(); summary(); $("choose").focus(); });
$("copy").addEventListener("click", async () => {
  await copy(tsv(done()));
  $("copy").textContent = t("copied");
  tell(t("copied"));
  setTimeout(() => { $("copy").replaceChildren(make("span", { "data-t": "copy" }, t("copy"))); }, 1500);
});
$("csv").addEventListener("click", () => download(csv(done()), "predictions.csv"));
$("language").addEventListener("click", () => {
  speak(other());
  describe();
  items.forEach(redraw);
  summary();
  if (trouble) on.trouble(trouble.kind, trouble.seconds);
});
$("ask-token").querySelector("form").addEventListener("submit", login);
$("ask-token").addEventListener("cancel", (event) => event.preventDefault());
$("photograph").hidden = !matchMedia("(pointer: coarse)").matches;

apply();
enqueue(introduce, true);
