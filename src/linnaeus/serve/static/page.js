// The page: collects images, requests predictions, and shows them with a description of the model.
import { answerText, createElement, createThumbnail, drawItem } from "./answers.js";
import { droppedFiles, exampleFiles, isReadable } from "./files.js";
import { formatBytes, formatCount, otherLanguage, percent, probabilityPercent, setLanguage, t, translatePage } from "./i18n.js";
import { enqueue, handlers, retryNow } from "./queue.js";
import { fetchModel, predict } from "./requests.js";
import { copyText, download, fillTable, toCsv, toTsv } from "./table.js";

const ANNOUNCE_DELAY = 400; // ms in which announcements for screen readers are collected
const ANNOUNCE_MAX = 3; // answers announced one by one; more are summarized
const COPIED_DELAY = 1500; // ms that the copy button shows its success

const $ = (id) => document.getElementById(id);
const items = []; // newest first, as displayed
let model = null; // the response of /model
let pasted = 0;
let trouble = null;

// ---- images

function add(files) {
  const added = files.map((file) => ({
    file, path: file.path ?? file.name, state: "waiting", answer: null, showHeat: false, explaining: false,
    element: createElement("li"), thumbnail: createThumbnail(file),
  }));
  items.unshift(...added);
  $("list").prepend(...added.map((item) => item.element));
  for (const item of added) { redraw(item); submit(item); }
  updateSummary();
}

async function submit(item) {
  const limit = model?.limits?.request_bytes ?? Infinity;
  if (item.file.size > limit) return fail(item, () => t("too_large", { size: formatBytes(item.file.size), limit: formatBytes(limit) }));
  if (!(await isReadable(item.file))) return fail(item, () => t("unreadable_file"));
  enqueue(() => requestAnswer(item));
}

async function requestAnswer(item) {
  if (!items.includes(item)) return; // removed while it waited
  setState(item, "processing");
  let response;
  try {
    response = await predict(item.file, false);
  } catch (error) {
    setState(item, "waiting");
    throw error;
  }
  const answer = response.body.predictions?.[0];
  if (answer && answer.error === null) {
    item.answer = answer;
    setState(item, answer.unknown || answer.unsure ? "unsure" : "answered");
    const [{ name, probability }] = answer.top;
    if (answer.labels) announce(t("announce_labels", { path: item.path, labels: answerText(answer) }));
    else announce(t(answer.unknown ? "announce_unknown" : answer.unsure ? "announce_unsure" : "announce", { path: item.path, name, probability: probabilityPercent(probability) }));
  } else {
    const reason = answer?.error ?? response.body.error ?? String(response.status);
    item.retryable = response.status >= 500 || response.status === 408;
    fail(item, () => (answer?.error_key ? t(answer.error_key) : answer ? t("unreadable", { reason }) : t("failed", { reason })));
  }
}

// `reason` is a function, because the language can change later.
function fail(item, reason) {
  item.reason = reason;
  setState(item, "failed");
  announce(t("announce_failed", { path: item.path, reason: reason() }));
}

function setState(item, state) {
  item.state = state;
  redraw(item);
  updateSummary();
}

function redraw(item) {
  drawItem(item, {
    explains: model?.explains || model?.neighbors,
    heat: () => toggleHeat(item),
    retry: () => { setState(item, "waiting"); submit(item); },
    remove: () => remove(item),
  });
}

function remove(item) {
  const index = items.indexOf(item);
  items.splice(index, 1);
  item.element.remove();
  (items[index] ?? items[index - 1])?.element.querySelector("button")?.focus();
  updateSummary();
}

// Heat maps are requested on demand, before waiting images: the user is looking at this one.
function toggleHeat(item) {
  item.showHeat = !item.showHeat;
  if (item.showHeat && !item.answer.explained && !item.explaining) {
    item.explaining = true;
    enqueue(async () => {
      const response = await predict(item.file, true);
      item.explaining = false;
      const answer = response.body.predictions?.[0];
      if (answer?.error === null) item.answer = answer; else item.showHeat = false;
      redraw(item);
    }, true);
  }
  redraw(item);
}

// Screen readers get one announcement for all answers of a short time: a hundred images must not become a hundred sentences.
let announcements = [];
let announceTimer = 0;
function announce(line) {
  announcements.push(line);
  clearTimeout(announceTimer);
  announceTimer = setTimeout(() => {
    $("live").textContent = announcements.length <= ANNOUNCE_MAX ? announcements.join("; ") : progress();
    announcements = [];
  }, ANNOUNCE_DELAY);
}

// ---- progress, table, errors

const finished = () => items.filter((item) => item.answer || item.state === "failed");

function progress() {
  const failed = items.filter((item) => item.state === "failed").length;
  const answered = items.filter((item) => item.answer).length;
  return t(failed ? "progress_failed" : "progress", { done: formatCount(answered), all: formatCount(items.length), failed: formatCount(failed) });
}

let frame = 0;
function updateSummary() {
  $("answers").hidden = !items.length;
  document.body.classList.toggle("has-items", items.length > 0);
  $("progress").textContent = progress();
  cancelAnimationFrame(frame); // many answers in one frame fill the table once
  frame = requestAnimationFrame(() => {
    const rows = finished();
    $("all").hidden = !rows.length;
    fillTable($("rows"), rows);
  });
}

handlers.trouble = (kind, seconds, reason = "") => {
  if (kind === null && trouble) announce(t("back"));
  trouble = kind && { kind, seconds, reason };
  $("trouble").hidden = !trouble;
  $("trouble-text").textContent = trouble ? t(kind, { seconds: formatCount(seconds), reason }) : "";
};

// Only a page without a server loads anything: the model.
handlers.loading = (done, all) => {
  $("loading").hidden = done >= all;
  $("loading").textContent = t("loading", { done: formatBytes(done), all: formatBytes(all) });
};

// ---- the model

async function loadModel() {
  model = await fetchModel();
  describeModel();
  items.forEach(redraw);
  if (model.examples) showExamples().catch(() => {}); // the page works without them
}

async function showExamples() {
  const files = await exampleFiles();
  $("example-list").replaceChildren(...files.map((file) =>
    createElement("button", { type: "button", title: file.name, "aria-label": file.name, onclick: () => add([file]) }, createThumbnail(file))));
  $("examples").hidden = false;
}

function describeModel() {
  if (!model) return;
  $("name").textContent = document.title = model.name;
  const several = model.task === "multi-label";
  const splits = Object.entries(model.metrics).filter(([, metrics]) => metrics?.n && (several ? "map" in metrics : metrics.accuracy_ci95));
  const [split, last] = splits.at(-1) ?? []; // test comes after validation
  const classes = formatCount(model.classes.length);
  $("lead").textContent = last && several
    ? t("lead_labels", { classes, map: percent(last.map), f1: percent(last.macro_f1), n: formatCount(last.n), split: t(split) })
    : several ? t("lead_plain_labels", { classes }) : last
    ? t("lead", { classes, accuracy: percent(last.accuracy), n: formatCount(last.n), split: t(split), low: percent(last.accuracy_ci95[0]), high: percent(last.accuracy_ci95[1]) })
    : t("lead_plain", { classes });
  if (last && model.no_better?.includes(split)) $("lead").textContent += ` ${t("no_better", { share: percent(last.most_frequent / last.n) })}`;
  if (model.unfinished) $("lead").textContent += ` ${t("unfinished")}`;
  $("figures").hidden = !splits.length || several; // the lead has those of several labels, which have no interval
  if (!several) $("figures").tBodies[0].replaceChildren(...splits.map(([name, metrics]) => metricsRow(name, metrics)));
  $("col-probability").firstElementChild.dataset.t = several ? "col_lowest" : "col_probability";
  $("col-next").firstElementChild.dataset.t = several ? "col_next_label" : "col_next";
  $("col-answer").firstElementChild.dataset.t = several ? "col_labels" : "col_answer";
  translatePage();
  const counts = Object.entries(model.data.counts ?? {});
  const breakable = (text) => text.split("/").flatMap((part, i) => (i ? ["/", createElement("wbr"), part] : [part]));
  const facts = [
    ["f_network", model.network],
    ["f_file", model.agreement
      ? t("f_agreement", { file: model.file, share: percent(model.agreement.share), n: formatCount(model.agreement.n) }) : model.file],
    ["f_data", counts.map(([name, n]) => `${formatCount(n)} ${t(name)}`).join("\u00a0· ")],
    ["f_size", t("f_size_value", { size: model.preprocessing.size })],
    ["f_threshold", several ? "" : !model.calibrated ? t("f_uncalibrated") : model.threshold > 1 ? t("f_always") : model.threshold ? percent(model.threshold, true) : t("f_never")],
    ["f_neighbors", model.neighbors ? t("f_images", { n: formatCount(model.neighbors) }) : ""],
    ["f_limits", model.limits ? t("f_limits_value", { size: formatBytes(model.limits.request_bytes) }) : ""],
    ["f_version", model.versions.linnaeus ?? ""],
  ];
  $("facts").replaceChildren(...facts.filter(([, value]) => value).map(([label, value]) =>
    createElement("div", {}, createElement("dt", {}, t(label)), createElement("dd", {}, ...breakable(value)))));
  $("classes-h").textContent = t(several ? "labels_list" : "classes_list", { n: classes });
  $("classes").replaceChildren(...model.classes.map((entry, k) =>
    createElement("li", {}, entry.name, entry.class === entry.name ? null : createElement("span", { class: "small" }, ` ${entry.class}`),
      several ? createElement("span", { class: "small" }, ` ${model.thresholds[k] == null ? t("label_never") : t("label_from", { threshold: percent(model.thresholds[k], true) })}`) : null)));
  if (model.report) $("report").hidden = false;
  $("model").hidden = false;
}

function metricsRow(name, metrics) {
  const [low, high] = metrics.accuracy_ci95;
  const interval = createElement("i");
  interval.style.left = `${100 * low}%`;
  interval.style.width = `${100 * (high - low)}%`;
  const point = createElement("b");
  point.style.left = `${100 * metrics.accuracy}%`;
  return createElement("tr", {}, createElement("th", { scope: "row" }, t(name)),
    createElement("td", { class: "number" }, `${formatCount(metrics.correct)} / ${formatCount(metrics.n)}`),
    createElement("td", { class: "number strong" }, percent(metrics.accuracy)),
    createElement("td", {}, createElement("span", { class: "number muted" }, `${percent(low)} – ${percent(high)}`), createElement("span", { class: "range", "aria-hidden": "true" }, interval, point)));
}

// ---- event handlers

for (const [button, input] of [["choose", "files"], ["photograph", "camera"]]) {
  $(button).addEventListener("click", () => $(input).click());
  $(input).addEventListener("change", () => { add([...$(input).files]); $(input).value = ""; });
}

// dragenter and dragleave fire for every element on the way: only their balance tells whether the page is left.
let dragDepth = 0;
const updateDrag = (event, change) => {
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  dragDepth = change === 0 ? 0 : dragDepth + change;
  document.body.classList.toggle("dragging", dragDepth > 0);
};
addEventListener("dragenter", (event) => updateDrag(event, 1));
addEventListener("dragleave", (event) => updateDrag(event, -1));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", async (event) => { updateDrag(event, 0); add(await droppedFiles(event.dataTransfer)); });
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length) return;
  event.preventDefault();
  // Browsers name every pasted image image.png.
  add(files.map((file) => Object.assign(file, { path: file.name === "image.png" ? `clipboard-${(pasted += 1)}.png` : file.name })));
});

$("retry").addEventListener("click", retryNow);
$("clear").addEventListener("click", () => { items.splice(0); $("list").replaceChildren(); updateSummary(); $("choose").focus(); });
$("copy").addEventListener("click", async () => {
  await copyText(toTsv(finished()));
  $("copy").textContent = t("copied");
  announce(t("copied"));
  setTimeout(() => { $("copy").replaceChildren(createElement("span", { "data-t": "copy" }, t("copy"))); }, COPIED_DELAY);
});
$("csv").addEventListener("click", () => download(toCsv(finished()), "predictions.csv"));
$("language").addEventListener("click", () => {
  setLanguage(otherLanguage());
  describeModel();
  items.forEach(redraw);
  updateSummary();
  if (trouble) handlers.trouble(trouble.kind, trouble.seconds, trouble.reason);
});
const touch = matchMedia("(pointer: coarse)").matches;
$("photograph").hidden = !touch;
$("paste").hidden = touch;
if (touch) $("drop-h").firstElementChild.dataset.t = "drop_touch"; // nothing can be dropped on a touch screen

translatePage();
enqueue(loadModel, true);
