// ---- a grid of images that are answered at once

async function fetchGrid(name, title, address, preselect) {
  try {
    const { images } = await call(address);
    // The guess of a random question stays hidden: its answer measures the classifier.
    for (const card of images) if (questions.some(({ image, reason }) => image === card.image && reason === "random")) delete card.guesses;
    if (images.length) openGrid(name, title, images, preselect);
    else say(t("nothing_here"));
  } catch (error) {
    report(error);
  }
}

function openGrid(name, title, cards, preselect) {
  const chosen = preselect ? cards.filter(({ same }) => same !== false) : []; // not what is too unlike for one kind
  setTask({ name, title, cards, selected: new Set(chosen.map(({ image }) => image)) });
  $("grid").querySelector("button")?.focus();
}

function showAlike() {
  const card = current();
  if (card) fetchGrid("alike", () => t("alike"), `/api/alike/${card.image}?n=${ALIKE - 1}`, true);
}

const showLabelled = (name) =>
  fetchGrid("labelled", () => t("labelled_title", { name: name || t("unknown") }), `/api/labelled?label=${encodeURIComponent(name)}&n=60`, false);

const showSkipped = () => fetchGrid("skipped", () => t("skipped_title"), "/api/skipped", false);

function drawGrid() {
  const { cards } = app.task;
  $("grid").replaceChildren(...cards.map((card) => tile(card)));
  drawSelection();
}

function tile(card) {
  const guess = card.label == null ? card.guesses?.[0] : null;
  const caption = card.label != null ? card.label || t("unknown") : guess ? t("guess", { name: guess[0], p: probability(guess[1]) }) : "";
  return element("li", { class: "tile" },
    element("button", { type: "button", class: "pick", "data-image": card.image, onclick: () => toggle(card) },
      element("img", { src: imageUrl(card, 160), srcset: `${imageUrl(card, 160)} 1x, ${imageUrl(card, 640)} 2x`, alt: card.path, loading: "lazy" }),
      element("span", { class: "check", "aria-hidden": "true" })),
    element("button", { type: "button", class: "enlarge", "aria-label": t("zoom_of", { path: card.path }), onclick: () => zoom(card) }, "⤢"),
    element("span", { class: "caption small" }, caption));
}

function toggle(card) {
  const { selected } = app.task;
  if (!selected.delete(card.image)) selected.add(card.image);
  drawSelection();
}

function selectAll(all) {
  app.task.selected = new Set(all ? app.task.cards.map(({ image }) => image) : []);
  drawSelection();
}

function drawSelection() {
  for (const button of $("grid").querySelectorAll(".pick")) {
    button.setAttribute("aria-pressed", String(app.task.selected.has(Number(button.dataset.image))));
  }
  $("selected").textContent = t("selected", { n: app.task.selected.size, of: app.task.cards.length });
}

// Arrow keys move between the images of the grid.
function moveInGrid(key) {
  const buttons = [...$("grid").querySelectorAll(".pick")];
  const at = buttons.indexOf(document.activeElement);
  const columns = buttons.filter((button) => button.offsetTop === buttons[0].offsetTop).length || 1;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[key];
  buttons[Math.max(0, Math.min(buttons.length - 1, at < 0 ? 0 : at + step))]?.focus();
}
