// All answers as a table: displayed, copied, or downloaded.
import { answerText, createElement } from "./answers.js";
import { probabilityPercent, t } from "./i18n.js";

const TOP = 5;

// What needs a look comes first: what failed, what is none of the classes, and what is unsure.
const rank = ({ state, answer }) => (state === "failed" ? 0 : answer.unknown ? 1 : answer.unsure ? 2 : 3);

export function fillTable(body, items) {
  body.replaceChildren(...[...items].sort((a, b) => rank(a) - rank(b)).map((item) => {
    if (item.state === "failed") {
      return createElement("tr", {}, createElement("th", { scope: "row" }, item.path), createElement("td", { colspan: 3, class: "error" }, item.reason()));
    }
    if (item.answer.labels) return labelsRow(item);
    // The probability of a class is none of the answer that it is none of them.
    const [first, second] = item.answer.unknown ? [null, ...item.answer.top] : item.answer.top;
    return createElement("tr", {}, createElement("th", { scope: "row" }, item.path),
      createElement("td", {}, item.answer.unknown ? t("unknown") : item.answer.unsure ? `${t("unsure")} (${first.name})` : first.name),
      createElement("td", { class: "number" }, first ? probabilityPercent(first.probability) : ""),
      createElement("td", { class: "second muted" }, second ? `${second.name} ${probabilityPercent(second.probability)}` : ""));
  }));
}

// With several labels: those that the image is given, the lowest of their probabilities, and the most probable other one.
function labelsRow({ path, answer: { top, labels, ...more } }) {
  const last = top.filter((entry) => labels.includes(entry.class)).at(-1);
  const next = top.find((entry) => !labels.includes(entry.class));
  return createElement("tr", {}, createElement("th", { scope: "row" }, path), createElement("td", {}, answerText({ top, labels, ...more })),
    createElement("td", { class: "number" }, last ? probabilityPercent(last.probability) : ""),
    createElement("td", { class: "second muted" }, next ? `${next.name} ${probabilityPercent(next.probability)}` : ""));
}

// Header and rows with the columns of `linnaeus predict --format csv`.
function cells(items) {
  const longest = Math.max(1, ...items.map((item) => item.answer?.top.length ?? 0));
  const several = items.some((item) => item.answer?.labels);
  const head = ["path", "unsure", "error"];
  for (let k = 1; k <= (several ? longest : Math.min(longest, TOP)); k += 1) head.push(`class_${k}`, `name_${k}`, `probability_${k}`);
  const known = head.length;
  head.push("unknown", "distance", ...(several ? ["labels"] : []));
  const rows = items.map((item) => {
    const failed = item.state === "failed";
    const row = [item.path, failed ? "" : String(Number(item.answer.unsure)), failed ? item.reason() : ""];
    for (const entry of failed ? [] : item.answer.top) row.push(entry.class, entry.name, entry.probability.toFixed(6));
    const { unknown, distance } = failed ? {} : item.answer;
    const scores = [unknown == null ? "" : String(Number(unknown)), distance == null ? "" : distance.toFixed(6)];
    const labels = several ? [failed ? "" : item.answer.labels.join("|")] : [];
    return [...row, ...Array(known - row.length).fill(""), ...scores, ...labels];
  });
  return [head, ...rows];
}

// Spreadsheets execute cells that look like formulas; a leading apostrophe makes them text.
const escapeFormula = (cell) => (/^[\s]*[=+\-@\t\r]/.test(cell) ? `'${cell}` : cell);
const quote = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);

// The byte order mark tells spreadsheets that the file is UTF-8.
export const toCsv = (items) =>
  "\uFEFF" + cells(items).map((row) => row.map((cell) => quote(escapeFormula(cell))).join(",")).join("\r\n") + "\r\n";

export const toTsv = (items) =>
  cells(items).map((row) => row.map((cell) => escapeFormula(cell.replace(/[\t\r\n]+/g, " "))).join("\t")).join("\n") + "\n";

export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // navigator.clipboard exists with https only; this older way works without it.
  const area = createElement("textarea", { class: "hidden" });
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("copy");
}

export function download(text, name) {
  const link = createElement("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
