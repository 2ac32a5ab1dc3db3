// All answers as a table, to look at, to copy, and to download.
import { make } from "./answers.js";
import { percent, t } from "./i18n.js";

const TOP = 5;

export function fill(body, items) {
  body.replaceChildren(...items.map((item) => {
    if (item.state === "failed") {
      return make("tr", {}, make("th", { scope: "row" }, item.path), make("td", { colspan: 3, class: "wrong-word" }, item.why()));
    }
    const [first, second] = item.answer.top;
    return make("tr", {}, make("th", { scope: "row" }, item.path),
      make("td", {}, item.answer.unsure ? `${t("unsure")} (${first.name})` : first.name),
      make("td", { class: "number" }, percent(first.probability)),
      make("td", { class: "muted" }, second ? `${second.name} ${percent(second.probability)}` : ""));
  }));
}

// The columns of `linnaeus predict --format csv`.
function cells(items) {
  const most = Math.max(1, ...items.map((item) => item.answer?.top.length ?? 0));
  const head = ["path", "unsure", "error"];
  for (let k = 1; k <= Math.min(most, TOP); k += 1) head.push(`class_${k}`, `name_${k}`, `probability_${k}`);
  const rows = items.map((item) => {
    const failed = item.state === "failed";
    const row = [item.path, failed ? "" : String(Number(item.answer.unsure)), failed ? item.why() : ""];
    for (const each of failed ? [] : item.answer.top) row.push(each.class, each.name, each.probability.toFixed(6));
    return [...row, ...Array(head.length - row.length).fill("")];
  });
  return [head, ...rows];
}

// A spreadsheet would run a cell that begins like a formula: an apostrophe makes it text.
const harmless = (cell) => (/^[\s]*[=+\-@\t\r]/.test(cell) ? `'${cell}` : cell);
const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);

// With a mark that it is UTF-8, which spreadsheets need to be told.
export const csv = (items) =>
  "\uFEFF" + cells(items).map((row) => row.map((cell) => quoted(harmless(cell))).join(",")).join("\r\n") + "\r\n";

export const tsv = (items) =>
  cells(items).map((row) => row.map((cell) => harmless(cell.replace(/[\t\r\n]+/g, " "))).join("\t")).join("\n") + "\n";

export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = make("textarea", { class: "hidden" }); // without https there is no navigator.clipboard
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("copy");
}

export function download(text, name) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
