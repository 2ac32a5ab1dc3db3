// How one answer looks. All text comes in as text: nothing that a server or a file says is ever markup.
import { percent, t } from "./i18n.js";

const THUMB = 448; // pixels of a side: twice what is shown, for fine screens

// make("p", {class: "small"}, "text", child, …)
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((each) => each != null));
  return element;
}

// A thumbnail, made when it comes into view, and small: the photograph itself does not stay in memory.
const seen = "IntersectionObserver" in window && new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    entry.target.load();
  }
}, { rootMargin: "400px" });

export function thumbnail(file) {
  const canvas = make("canvas", { role: "img", width: 1, height: 1 });
  canvas.load = async () => {
    try {
      const whole = await createImageBitmap(file);
      const scale = Math.min(1, THUMB / Math.min(whole.width, whole.height));
      const size = [whole.width, whole.height].map((side) => Math.max(1, Math.min(4 * THUMB, Math.round(side * scale))));
      [canvas.width, canvas.height] = size;
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(whole, 0, 0, ...size);
      canvas.classList.toggle("tiny", Math.max(whole.width, whole.height) < 96);
      whole.close();
    } catch {
      canvas.classList.add("blank"); // of a kind that the browser does not show
    }
  };
  if (seen) seen.observe(canvas); else canvas.load();
  return canvas;
}

// Fill an item's <li> anew. item: {path, state, answer, why, heat, element, thumb}; acts: {heat, retry, remove}.
export function draw(item, acts) {
  const { element, thumb, answer } = item;
  thumb.setAttribute("aria-label", t("picture_alt", { path: item.path }));
  const shown = item.heat && answer.heat_map
    ? make("img", { src: answer.heat_map, alt: t("heat_alt", { path: item.path, name: answer.explained.name }) })
    : thumb;
  const focused = element.contains(document.activeElement) && document.activeElement.dataset.act;
  element.className = `answer ${item.state}`;
  element.replaceChildren(
    make("div", { class: "image" }, shown),
    make("div", { class: "says" },
      make("p", { class: "path small" }, make("span", {}, item.path),
        make("button", { type: "button", class: "plain remove", "data-act": "remove", "aria-label": t("remove", { path: item.path }), onclick: acts.remove }, "×")),
      ...says(item, acts)),
  );
  if (focused) element.querySelector(`[data-act="${focused}"]`)?.focus();
}

function says(item, acts) {
  if (item.state === "waiting" || item.state === "asking") {
    return [make("p", { class: "muted" }, t(item.state))];
  }
  if (item.state === "failed") {
    return [make("p", { class: "wrong-word" }, item.why()),
      item.curable ? make("p", { class: "buttons" }, make("button", { type: "button", "data-act": "retry", onclick: acts.retry }, t("retry"))) : null];
  }
  const { top, unsure } = item.answer;
  const headline = unsure
    ? [make("b", {}, t("unsure")), make("span", { class: "muted" }, t("unsure_of", { name: top[0].name }))]
    : [make("b", {}, top[0].name), make("span", { class: "number muted" }, percent(top[0].probability))];
  return [
    make("p", { class: "headline" }, headline[0], " ", headline[1]),
    make("ol", { class: "bars" }, ...top.map(bar)),
    acts.explains ? make("p", { class: "buttons" }, make("button", {
      type: "button", "data-act": "heat", "aria-pressed": String(item.heat), "aria-busy": String(item.explaining),
      onclick: acts.heat,
    }, t("heat"))) : null,
    item.heat && item.answer.explained ? make("p", { class: "small" }, t("heat_note", { name: item.answer.explained.name })) : null,
    item.heat && item.answer.like ? alike(item.answer.like) : null,
  ];
}

function bar({ name, probability }) {
  const fill = make("i");
  fill.style.width = `${100 * probability}%`;
  return make("li", {}, make("span", { class: "name" }, name), make("span", { class: "number" }, percent(probability)),
    make("span", { class: "track", "aria-hidden": "true" }, fill));
}

function alike(like) {
  return make("div", { class: "alike" }, make("p", { class: "small" }, t("like")),
    make("ul", {}, ...like.map(({ name, path, picture, similarity }) =>
      make("li", { title: `${path} (${similarity.toFixed(3)})` },
        make("img", { src: picture, alt: t("like_alt", { name, path }), loading: "lazy" }),
        make("span", { class: "small" }, name)))));
}
