// Translations of the page, and number formats.
const translations = JSON.parse(document.getElementById("translations").textContent);
const tags = { en: "en", zh: "zh-CN" };
const STORAGE_KEY = "linnaeus-language";

// A server has chosen the language of the page; a page without one asks the browser.
const preferred = document.documentElement.dataset.language === "browser" ? navigator.language : document.documentElement.lang;
let language = preferred.startsWith("zh") ? "zh" : "en";
try {
  const saved = localStorage.getItem(STORAGE_KEY);
  if (saved in translations) language = saved;
} catch { /* storage can be blocked; the browser's language is used instead */ }

export const otherLanguage = () => (language === "zh" ? "en" : "zh");

export function t(key, values = {}) {
  return translations[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export function setLanguage(next) {
  language = next;
  try { localStorage.setItem(STORAGE_KEY, next); } catch { /* as above */ }
  translatePage();
}

// Fill in every element that has a data-t key.
export function translatePage() {
  document.documentElement.lang = tags[language];
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  const button = document.getElementById("language");
  button.textContent = t("language");
  button.lang = tags[otherLanguage()];
}

// As text.py writes them: rounding must not show 0.0 % for something possible, nor 100.0 % for something uncertain.
// A threshold is exact: it has as many digits as that takes.
export function percent(p, exact = false) {
  const low = (digits) => p > 0 && p < 0.005 * 10 ** -digits, high = (digits) => p < 1 && p >= 1 - 0.005 * 10 ** -digits;
  let digits = 1;
  while (exact && digits < 10 && (low(digits) || high(digits))) digits += 1;
  const format = new Intl.NumberFormat(tags[language], { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const step = 10 ** -digits;
  const text = low(digits) ? `<${format.format(step)}` : high(digits) ? `>${format.format(100 - step)}` : format.format(100 * p);
  return language === "zh" ? `${text}%` : `${text}\u202f%`;
}
// As text.py: the probability of a class is 0 or 1 only by rounding.
export const probabilityPercent = (p) => percent(Math.min(Math.max(p, 1e-9), 1 - 1e-9));
export const formatCount = (n) => new Intl.NumberFormat(tags[language]).format(n);
export const formatBytes = (n) =>
  n < 1 << 20 ? `${formatCount(Math.ceil(n / 1024))} KiB` : `${formatCount(Math.round((10 * n) / (1 << 20)) / 10)} MiB`;
