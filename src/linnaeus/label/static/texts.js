// ---- texts in the language of the page, numbers, and elements

const translations = JSON.parse(document.getElementById("translations").textContent);
const tags = { en: "en", zh: "zh-CN" };
const LANGUAGE_KEY = "linnaeus-language";
let language = document.documentElement.lang.startsWith("zh") ? "zh" : "en";

const $ = (id) => document.getElementById(id);

// Storage can be blocked or full. The page works without it, but then it cannot keep answers for later.
function stored(action) {
  try { return action(window.localStorage); } catch { return null; }
}

// The text of a key. A key with the suffix `_1` is used where values.n is 1.
function t(key, values = {}) {
  const texts = translations[language];
  const chosen = values.n === 1 && `${key}_1` in texts ? texts[`${key}_1`] : texts[key];
  return chosen.replace(/\{(\w+)\}/g, (_, name) => (typeof values[name] === "number" ? count(values[name]) : values[name]));
}

function setLanguage(next) {
  language = next;
  stored((storage) => storage.setItem(LANGUAGE_KEY, next));
  translatePage();
}

// Fill in every element that has data-t (text), data-t-label (its name for screen readers) or data-t-placeholder.
function translatePage() {
  document.documentElement.lang = tags[language];
  document.title = t("title");
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll("[data-t-label]")) element.setAttribute("aria-label", t(element.dataset.tLabel));
  for (const element of document.querySelectorAll("[data-t-placeholder]")) element.placeholder = t(element.dataset.tPlaceholder);
  $("language").textContent = t("language");
  $("language").lang = language === "zh" ? "en" : "zh-CN";
}

function count(n) {
  return new Intl.NumberFormat(tags[language]).format(n);
}

// A share of n images: a decimal only where n is large enough for it to mean anything. Never 100 % for something uncertain.
function percent(p, n = 0) {
  const digits = n >= 1000 ? 1 : 0;
  const numbers = new Intl.NumberFormat(tags[language], { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const format = (share) => `${numbers.format(100 * share)}${language === "zh" ? "" : "\u202f"}%`;
  const step = 10 ** -(digits + 2);
  if (p < 1 && p > 1 - step / 2) return n ? format(1 - step) : `>${format(1 - step)}`;
  return p > 0 && p < step / 2 ? `<${format(step)}` : format(p);
}

// The probability of a class, which is 0 or 1 only by rounding.
function probability(p) {
  return percent(Math.min(Math.max(p, 1e-9), 1 - 1e-9));
}

function duration(seconds) {
  if (seconds < 60) return t("seconds", { n: Math.max(1, Math.round(seconds)) });
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? t("minutes", { n: minutes }) : t("hours", { n: Math.round(minutes / 60) });
}

// element("p", { class: "small", onclick: f }, "text", child, …). Text is inserted as text, never parsed as HTML.
function element(tag, attributes = {}, ...children) {
  const created = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) created.addEventListener(name.slice(2), value);
    else if (value === true) created.setAttribute(name, "");
    else if (value !== false && value != null) created.setAttribute(name, value);
  }
  created.append(...children.filter((child) => child != null));
  return created;
}

// Say something to screen readers.
function announce(text) {
  $("live").textContent = text;
}
