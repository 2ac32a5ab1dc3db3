// Display of one answer. All text is inserted as text: nothing from a server or a file is ever parsed as HTML.
import { probabilityPercent, t } from "./i18n.js";

const THUMBNAIL = 448; // pixels of the short side: twice the displayed size, for high-density screens
const SHOWN = 5; // classes of an answer
const TINY = 96; // pixels; smaller images are enlarged without smoothing

// createElement("p", {class: "small"}, "text", child, …)
export function createElement(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

// Thumbnails are drawn when they come into view. Only the small version stays in memory, not the photograph.
const observer = "IntersectionObserver" in window && new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    observer.unobserve(entry.target);
    entry.target.load();
  }
}, { rootMargin: "400px" });

export function createThumbnail(file) {
  const canvas = createElement("canvas", { role: "img", width: 1, height: 1 });
  canvas.load = async () => {
    try {
      const bitmap = await createImageBitmap(file);
      const scale = Math.min(1, THUMBNAIL / Math.min(bitmap.width, bitmap.height));
      const size = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.min(4 * THUMBNAIL, Math.round(side * scale))));
      [canvas.width, canvas.height] = size;
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(bitmap, 0, 0, ...size);
      canvas.classList.toggle("tiny", Math.max(bitmap.width, bitmap.height) < TINY);
      bitmap.close();
    } catch {
      canvas.classList.add("blank"); // a format that the browser cannot display, although the server may read it
    }
  };
  if (observer) observer.observe(canvas); else canvas.load();
  return canvas;
}

// Redraw the <li> of an item: {path, state, answer, reason, showHeat, element, thumbnail}. actions: {explains, heat, retry, remove}.
export function drawItem(item, actions) {
  const { element, thumbnail, answer } = item;
  thumbnail.setAttribute("aria-label", t("image_alt", { path: item.path }));
  const image = item.showHeat && answer.heat_map && !answer.labels
    ? createElement("img", { src: answer.heat_map, alt: t("heat_alt", { path: item.path, name: answer.explained.name }) })
    : thumbnail;
  // Redrawing replaces the buttons: the keyboard focus must move to the new one.
  const focused = element.contains(document.activeElement) && document.activeElement.dataset.action;
  element.className = `answer ${item.state}`;
  element.replaceChildren(
    createElement("div", { class: "image" }, image),
    createElement("div", { class: "content" },
      createElement("p", { class: "path small" }, createElement("span", {}, item.path),
        createElement("button", { type: "button", class: "plain remove", "data-action": "remove", "aria-label": t("remove", { path: item.path }), onclick: actions.remove }, "×")),
      ...content(item, actions)),
  );
  if (focused) element.querySelector(`[data-action="${focused}"]`)?.focus();
}

function content(item, actions) {
  if (item.state === "waiting" || item.state === "processing") {
    return [createElement("p", { class: "muted" }, t(item.state))];
  }
  if (item.state === "failed") {
    return [createElement("p", { class: "error" }, item.reason()),
      item.retryable ? createElement("p", { class: "buttons" }, createElement("button", { type: "button", "data-action": "retry", onclick: actions.retry }, t("retry"))) : null];
  }
  const { top, unsure, unknown, labels } = item.answer;
  const headline = labels
    ? [createElement("b", {}, answerText(item.answer)), null]
    : unsure || unknown
    ? [createElement("b", {}, t(unknown ? "unknown" : "unsure")), createElement("span", { class: "muted" }, t("unsure_of", { name: top[0].name }))]
    : [createElement("b", {}, top[0].name), createElement("span", { class: "number muted" }, probabilityPercent(top[0].probability))];
  return [
    createElement("p", { class: "headline" }, headline[0], " ", headline[1]),
    unknown && !labels ? createElement("p", { class: "small" }, t("unknown_note")) : null,
    createElement("ol", { class: labels ? "bars labels" : unknown ? "bars unlike" : "bars" }, ...shownClasses(item.answer).map((entry) => bar(entry, labels?.includes(entry.class)))),
    actions.explains ? createElement("p", { class: "buttons" }, createElement("button", {
      type: "button", "data-action": "heat", "aria-pressed": String(item.showHeat), "aria-busy": String(item.explaining),
      onclick: actions.heat,
    }, t("heat"))) : null,
    item.showHeat && item.answer.explained && !labels ? createElement("p", { class: "small" }, t(item.answer.empty ? "heat_empty" : "heat_note", { name: item.answer.explained.name })) : null,
    item.showHeat && item.answer.maps?.length ? labelMaps(item) : null,
    item.showHeat && item.answer.like ? similarImages(item.answer.like) : null,
  ];
}

// The classes of an answer as text: one, or with several labels all that the image is given.
export function answerText({ top, labels }) {
  if (!labels) return top[0].name;
  return top.filter((entry) => labels.includes(entry.class)).map((entry) => entry.name).join(", ") || t("no_label");
}

// Five classes, or with several labels those that are given and the next ones. `top` begins with the most probable.
function shownClasses({ top, labels }) {
  if (!labels) return top;
  const given = top.filter((entry) => labels.includes(entry.class));
  const others = top.filter((entry) => !labels.includes(entry.class));
  return [...given, ...others.slice(0, Math.max(SHOWN - given.length, 2))];
}

// A heat map for each label that the image is given.
function labelMaps({ path, answer }) {
  return createElement("div", { class: "similar maps" }, createElement("p", { class: "small" }, t("heat_note_labels")),
    createElement("ul", {}, ...answer.maps.map(({ explained: { name }, heat_map, empty }) =>
      createElement("li", {}, createElement("img", { src: heat_map, alt: t("heat_alt", { path, name }) }), createElement("span", { class: "small" }, empty ? t("heat_empty", { name }) : name)))));
}

function bar({ name, probability }, given = false) {
  const fill = createElement("i");
  fill.style.width = `${100 * probability}%`;
  return createElement("li", { class: given ? "given" : null }, createElement("span", { class: "name" }, name), createElement("span", { class: "number" }, probabilityPercent(probability)),
    createElement("span", { class: "track", "aria-hidden": "true" }, fill));
}

function similarImages(images) {
  return createElement("div", { class: "similar" }, createElement("p", { class: "small" }, t("like")),
    createElement("ul", {}, ...images.map(({ name, path, thumbnail, similarity }) =>
      createElement("li", { title: `${path} (${similarity.toFixed(3)})` },
        createElement("img", { src: thumbnail, alt: t("like_alt", { name, path }), loading: "lazy" }),
        createElement("span", { class: "small" }, name)))));
}
