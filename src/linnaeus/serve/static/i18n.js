// The page's words in all its languages, and how numbers are said.
const all = JSON.parse(document.getElementById("words").textContent);
const tags = { en: "en", zh: "zh-CN" };

let language = document.documentElement.lang.startsWith("zh") ? "zh" : "en";
try {
  const kept = localStorage.getItem("linnaeus-language");
  if (kept in all) language = kept;
} catch { /* storage may be forbidden: then the browser's language counts each time */ }

export const other = () => (language === "zh" ? "en" : "zh");

export function t(key, values = {}) {
  return all[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export function speak(next) {
  language = next;
  try { localStorage.setItem("linnaeus-language", next); } catch { /* as above */ }
  apply();
}

// Put the language's words wherever the page has them by name.
export function apply() {
  document.documentElement.lang = tags[language];
  for (const each of document.querySelectorAll("[data-t]")) each.textContent = t(each.dataset.t);
  const button = document.getElementById("language");
  button.textContent = t("language");
  button.lang = tags[other()];
}

// 0.0 % would say that something is impossible, and 100.0 % that it is certain.
export function percent(p) {
  const form = new Intl.NumberFormat(tags[language], { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
  if (p > 0 && p < 0.0005) return `< ${form.format(0.001)}`;
  return p < 1 && p >= 0.9995 ? `> ${form.format(0.999)}` : form.format(p);
}
export const count = (n) => new Intl.NumberFormat(tags[language]).format(n);
export const bytes = (n) =>
  n < 1 << 20 ? `${count(Math.ceil(n / 1024))} KiB` : `${count(Math.round((10 * n) / (1 << 20)) / 10)} MiB`;
