// Sort tables by a click on a column heading, or Enter or Space. Without scripts, tables keep their order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.v;
      const order = column === 0
        ? (a, b) => value(a).localeCompare(value(b), undefined, { numeric: true })
        : (a, b) => value(a) - value(b);
      body.append(...[...body.rows].sort((a, b) => sign * order(a, b)));
    });
  });
}
// Open all details before printing.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => (details.open = true)));
