// ---- figures: held-out accuracy and its course, classes, proposals, progress

const SVG = "http://www.w3.org/2000/svg";
let announced = 0; // labels for which the accuracy was announced
const ANNOUNCE_EVERY = 10; // labels

function drawFigures() {
  const { state } = app;
  drawProgress(state);
  drawAccuracy(state);
  drawCourse(state.course);
  drawTable(state);
  drawProposals(state);
  drawFinish(state.finish);
}

function drawProgress({ images, labelled, provenance, features, folder, milliseconds, csv, problem }) {
  $("folder").textContent = folder;
  $("labelled").textContent = t("labelled", { n: labelled, of: images });
  const accepted = provenance.accepted ?? 0;
  $("bar-human").style.width = `${(100 * (labelled - accepted)) / images}%`;
  $("bar-accepted").style.width = `${(100 * accepted) / images}%`;
  $("bar").setAttribute("aria-valuenow", labelled);
  $("bar").setAttribute("aria-valuemax", images);
  const left = images - features.done - features.unreadable;
  $("features").hidden = left <= 0 && !features.failure;
  $("features-bar").value = features.done + features.unreadable;
  $("features-bar").max = images;
  const remaining = features.seconds_left == null ? "" : t("time_left", { time: duration(features.seconds_left) });
  $("features-text").textContent = features.failure || t("features", { done: features.done, of: images }) + remaining;
  const facts = [t("backbone", { name: features.backbone }), ...features.notes];
  if (milliseconds) facts.push(t("update", { ms: Math.max(1, Math.round(milliseconds)) }));
  if (features.unreadable) facts.push(t("unreadable", { n: features.unreadable }));
  if (accepted) facts.push(t("provenance", { human: labelled - accepted, accepted }));
  $("csv").textContent = problem ? t("csv_behind", { problem }) : t("csv", { csv });
  const list = $("facts");
  if (list.dataset.facts !== facts.join("\n")) {
    list.dataset.facts = facts.join("\n");
    list.replaceChildren(...facts.map((fact) => element("li", {}, fact)));
  }
}

function drawAccuracy({ accuracy, sample, labelled, reviews }) {
  $("accuracy-h").textContent = t(reviews ? "accuracy_model" : "accuracy");
  $("accuracy").hidden = !accuracy;
  $("too-few").hidden = Boolean(accuracy);
  $("compact").textContent = "";
  if (!accuracy) {
    const few = sample.possible ? "too_few" : "too_small";
    $("too-few-text").textContent = sample.n < sample.enough ? t(few, { n: sample.n, enough: sample.enough }) : t("computing");
    $("too-few-bar").max = sample.enough;
    $("too-few-bar").value = Math.min(sample.n, sample.enough);
    return;
  }
  const { n, correct, ci95: [low, high] } = accuracy;
  $("accuracy-value").textContent = percent(accuracy.accuracy, n);
  $("accuracy-interval").textContent = t("interval", { low: percent(low, n), high: percent(high, n) });
  $("accuracy-n").textContent = t(reviews ? "accuracy_n_model" : "accuracy_n", { correct, n })
    + (accuracy.no_better ? ` ${t("no_better", { share: percent(accuracy.most_frequent / n, n) })}` : "");
  $("compact").textContent = t("compact", { p: percent(accuracy.accuracy, n), low: percent(low, n), high: percent(high, n) });
  if (Math.floor(labelled / ANNOUNCE_EVERY) !== Math.floor(announced / ANNOUNCE_EVERY) && announced) {
    announce(t("announce_accuracy", { n: labelled, p: percent(accuracy.accuracy, n), low: percent(low, n), high: percent(high, n) }));
  }
  announced = labelled;
}

// The course: accuracy over the number of labels, with its interval as a band.
function drawCourse(course) {
  $("course").hidden = course.length < 2;
  if (course.length < 2) return;
  const [width, height, left, bottom, top, right] = [320, 132, 38, 20, 8, 8];
  const last = course[course.length - 1];
  const floor = Math.max(0, Math.floor(5 * Math.min(...course.map(({ low }) => low))) / 5); // so that the middle is a round number
  const first = course[0].labels;
  const x = (n) => left + ((width - left - right) * (n - first)) / Math.max(1, last.labels - first);
  const y = (p) => top + ((height - top - bottom) * (1 - p)) / Math.max(0.1, 1 - floor);
  const point = (p) => (row) => `${x(row.labels).toFixed(1)},${y(row[p]).toFixed(1)}`;
  const middle = Math.round((floor + 1) * 10) / 20;
  const parts = [1, middle, floor].flatMap((p) => [
    shape("line", { x1: left, x2: width - right, y1: y(p), y2: y(p), class: "rule" }),
    shape("text", { x: left - 6, y: y(p) + 4, class: "end" }, percent(p))]);
  parts.push(shape("polygon", { class: "band", points: [...course.map(point("low")), ...course.map(point("high")).reverse()].join(" ") }));
  parts.push(shape("polyline", { class: "curve", points: course.map(point("accuracy")).join(" ") }));
  parts.push(shape("circle", { class: "last", r: 3.5, cx: x(last.labels), cy: y(last.accuracy) }));
  parts.push(shape("text", { x: left, y: height - 4 }, count(first)), shape("text", { x: width - right, y: height - 4, class: "end" }, t("labels", { n: last.labels })));
  $("chart").setAttribute("viewBox", `0 0 ${width} ${height}`);
  $("chart").setAttribute("aria-label", t("course_alt", {
    first: percent(course[0].accuracy), a: first, last: percent(last.accuracy), b: last.labels }));
  $("chart").replaceChildren(...parts);
}

function shape(tag, attributes, text) {
  const created = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) created.setAttribute(name, value);
  if (text) created.textContent = text;
  return created;
}

// Per class: images, and how many of its held-out images were right. The weakest class has the lowest share of these.
function drawTable({ classes, unknown }) {
  const heldOut = classes.filter(({ held_out: h }) => h && h[1] >= 3);
  const weakest = heldOut.length > 1 ? heldOut.reduce((a, b) => (b.held_out[0] / b.held_out[1] < a.held_out[0] / a.held_out[1] ? b : a)) : null;
  const weak = weakest && weakest.held_out[0] < weakest.held_out[1] ? weakest.name : null;
  const rows = classes.map(({ name, n, held_out: h }) => ({ name, n, heldOut: h?.[1] ? t("of", { n: h[0], of: h[1] }) : "–", weak: name === weak }));
  if (unknown) rows.push({ name: UNKNOWN, n: unknown, heldOut: "", weak: false });
  const text = JSON.stringify([rows, language]);
  $("per-class").hidden = !rows.length;
  $("weakest").textContent = weak ? t("weakest", { name: weak, n: weakest.held_out[0], of: weakest.held_out[1] }) : "";
  if ($("rows").dataset.rows === text) return;
  $("rows").dataset.rows = text;
  const focused = document.activeElement?.dataset?.row;
  $("rows").replaceChildren(...rows.map(tableRow));
  if (focused != null) [...$("rows").querySelectorAll("button")].find((button) => button.dataset.row === focused)?.focus();
}

function tableRow({ name, n, heldOut, weak }) {
  return element("tr", { class: weak ? "weak" : null },
    element("th", { scope: "row" }, element("button", { type: "button", class: `plain ${room(name)}`, "data-row": name, disabled: !n, onclick: () => showLabelled(name) }, ...breakable(name || t("unknown")))),
    element("td", { class: "number" }, count(n)), element("td", { class: "number muted" }, heldOut));
}

function drawProposals({ suspects, groups, accuracy, sure_at: sure }) {
  $("review-suspects").hidden = !suspects;
  $("suspects-text").textContent = t("suspects", { n: suspects });
  $("review-group").hidden = !groups.length;
  $("group-text").textContent = groups.length ? t("group", { n: groups[0] }) : "";
  $("review-batch").hidden = !accuracy || !Object.values(sure).some(Boolean);
  const n = sure[$("sure").value];
  $("batch-text").textContent = t("batch_n", { n });
  $("go-batch").disabled = !n;
  $("proposals").hidden = $("review-suspects").hidden && $("review-group").hidden && $("review-batch").hidden;
}
