// ---- drawing of the task: prompt, image or grid, and the buttons of the classes

const KEYS = [..."123456789qwertyuiopsdfhjklxcvbm"]; // of the classes in their order; 0, a, g, n and z do something else
const keyOf = (index) => KEYS[index] ?? null;

function drawTask() {
  const { task } = app;
  const card = current();
  $("task").dataset.name = task.name;
  $("task").dataset.image = String(card?.image);
  $("single").hidden = isGrid() || !card;
  $("grid").hidden = !isGrid();
  $("grid-tools").hidden = !isGrid();
  $("nothing").hidden = isGrid() || Boolean(card || task.panel);
  $("panel").hidden = !task.panel;
  $("back").hidden = task.name === "question";
  if (card) drawSingle(card);
  else if (isGrid()) drawGrid();
  else if (task.panel) task.panel();
  else drawNothing();
  drawPrompt();
  drawClasses();
  drawActions();
}

function drawSingle(card) {
  const image = $("image");
  const source = imageUrl(card, 640);
  if (image.getAttribute("src") !== source) {
    $("single").classList.remove("broken");
    image.src = source;
    $("single").classList.toggle("pending", !image.complete);
  }
  image.alt = card.path;
  $("path").textContent = card.path;
}

function drawNothing() {
  const { state } = app;
  const waiting = state && state.labelled + state.skipped + state.features.unreadable < state.images;
  $("nothing-text").textContent = !state ? t("loading") : !app.empty ? t("waiting") : t(waiting ? "nothing_yet" : "all_done");
  $("show-skipped").hidden = !state?.skipped;
}

function drawPrompt() {
  const { task } = app;
  const card = current();
  const [title, hint] = isGrid() ? [task.title(), t(`hint_${task.name}`)] : card ? promptOf(card) : ["", ""];
  $("prompt").textContent = title;
  $("hint").textContent = hint;
}

// [question, why this image] of a single image.
function promptOf(card) {
  const { task } = app;
  const values = { name: card.label || t("unknown"), suggested: card.suggested ?? "", p: probability(card.probability ?? 0) };
  if (task.name === "suspects") return [t("suspect", values), t("suspect_hint", { ...values, k: task.position + 1, of: task.cards.length })];
  if (task.name === "batch") return [t("verify", values), t("verify_hint", { ...values, k: task.position + 1, of: task.cards.length })];
  const [first, second] = card.guesses ?? [];
  if (proposal() !== undefined) return [t("verify", { name: first[0] }), t("why_answer", { p: probability(first[1]) })];
  if (card.reason === "margin" && second) {
    return [t("which"), t("why_margin", { a: first[0], p: probability(first[1]), b: second[0], q: probability(second[1]) })];
  }
  const reason = card.reason === "diverse" && !app.state?.labelled ? "nothing" : card.reason;
  const known = `why_${reason}` in translations.en ? reason : "file";
  return [t("which"), t(`why_${known}`, { name: first?.[0] ?? "", p: probability(first?.[1] ?? 0) })];
}

// The buttons are kept while the classes stay the same, so that the keyboard focus stays too.
function drawClasses() {
  const { classes } = app.state ?? { classes: [] };
  const list = $("classes");
  const names = classes.map(({ name }) => name);
  const drawn = [...list.querySelectorAll(".class")].map((button) => button.dataset.name);
  if (names.join("\n") !== drawn.join("\n")) {
    for (const old of list.querySelectorAll(".class")) old.remove();
    $("naming").before(...classes.map(({ name }, k) => classButton(name, keyOf(k))));
    $("names").replaceChildren(...names.map((name) => element("option", { value: name })));
  }
  const guesses = new Map(app.task.name === "question" ? current()?.guesses ?? [] : []);
  const proposed = app.task.name === "suspects" ? current()?.suggested : proposal();
  for (const [k, button] of [...list.querySelectorAll(".class")].entries()) {
    button.querySelector(".n").textContent = count(classes[k].n);
    button.querySelector(".guess").style.width = `${Math.round(100 * (guesses.get(classes[k].name) ?? 0))}%`;
    button.classList.toggle("proposed", classes[k].name === proposed);
  }
  drawSuggestions();
}

function classButton(name, key) {
  const button = element("button", { type: "button", class: `class ${room(name)}`, "data-name": name, "aria-keyshortcuts": key, onclick: (event) => { release(event); answer(name); } },
    element("span", { class: "guess", "aria-hidden": "true" }), key && element("kbd", { "aria-hidden": "true" }, key.toUpperCase()),
    element("span", { class: "name" }, ...breakable(name)), element("span", { class: "n number", "aria-hidden": "true" }));
  button.title = name;
  return button;
}

const BREAKABLE = /(?<=[_./])(?=[^_./])/u; // a line of a name may end here, besides at spaces
const WORD = { wide: 92, full: 230 }; // pixels of a word for which a button of one or two columns is too narrow

// The parts of a name, with places between them where a line may end.
const breakable = (name) => name.split(BREAKABLE).flatMap((part, k) => (k ? [element("wbr"), part] : [part]));

// How much room a name needs so that no word of it is cut: one column (""), two ("wide"), or a line ("full").
function room(name) {
  const context = document.createElement("canvas").getContext("2d");
  const { fontSize, fontFamily } = getComputedStyle($("classes"));
  context.font = `${fontSize} ${fontFamily}`;
  const words = name.split(BREAKABLE).flatMap((part) => part.split(/\s+|(?<=-)|(?<=\p{Script=Han})/u));
  const width = Math.max(...words.map((word) => context.measureText(word).width));
  const lines = context.measureText(name).width / (0.85 * WORD.wide); // two are shown
  return width > WORD.full ? "full" : width > WORD.wide || lines > 2 ? "wide" : "";
}

// Names of subfolders, while they are not classes.
function drawSuggestions() {
  const plain = (name) => name.toLowerCase().replaceAll("_", " ");
  const known = new Set((app.state?.classes ?? []).map(({ name }) => plain(name)));
  const names = (app.state?.suggested_classes ?? []).filter((name) => !known.has(plain(name)));
  $("suggestions").hidden = !names.length || app.task.name !== "question";
  if ($("suggestions").dataset.names === names.join("\n")) return;
  $("suggestions").dataset.names = names.join("\n");
  $("suggested").replaceChildren(...names.slice(0, 12).map((name) =>
    element("button", { type: "button", class: "small", onclick: () => addClass(name) }, `+ ${name}`)));
}

async function addClass(name) {
  try {
    await call("/api/class", { name });
    await poll();
  } catch (error) {
    report(error);
  }
}

function drawActions() {
  const { name } = app.task;
  const card = current();
  $("undo").disabled = !app.history.length;
  $("skip").hidden = isGrid() && name !== "alike";
  $("skip").disabled = !card && !isGrid();
  const proposed = proposal();
  $("keep").hidden = proposed === undefined;
  $("keep-text").textContent = t(name === "suspects" ? "keep" : "yes", { name: proposed || t("unknown") });
  $("similar").hidden = name !== "question";
  $("similar").disabled = $("zoom").disabled = !card;
  $("zoom").hidden = isGrid();
  $("remove").hidden = name !== "labelled";
}

// A button that was clicked with the mouse gives the focus back: otherwise the space bar would press it again.
function release(event) {
  if (event.detail) event.currentTarget.blur();
}
