// ---- what the page asks: one image, or a grid of images
// A task is {name, cards, position} (one image at a time) or {name, title, cards, selected} (a grid, answered at once).
// Names: question; suspects, batch (one at a time); accept, whose `panel` draws a text in place of an image; alike, group, labelled, skipped (grids).

const UNKNOWN = ""; // the label of an image of no class
const AHEAD = 2; // questions that are fetched ahead, so that the next image is there at once
const ALIKE = 12; // images of a grid of alike images
const UNDOABLE = 200;

// Questions, the first of them on the page. They stay while another task is done.
const questions = [];

const app = {
  state: null, online: true, task: { name: "question", cards: questions, position: 0 }, history: [], filling: false, empty: false, duplicates: null,
};

const isGrid = () => "selected" in app.task;
const current = () => (isGrid() ? null : app.task.cards[app.task.position] ?? null);
const targets = () => (isGrid() ? app.task.cards.filter((card) => app.task.selected.has(card.image)) : [current()].filter(Boolean));

// What Enter confirms: the label in question, or in a review of a finished model its answer, but for random questions.
function proposal() {
  const card = current();
  if (!card) return undefined;
  if (["suspects", "batch"].includes(app.task.name)) return card.label;
  return app.task.name === "question" && app.state?.reviews ? card.guesses?.[0]?.[0] : undefined;
}

function setTask(task) {
  app.task = task;
  drawTask();
  if ($("task").getBoundingClientRect().top < 0) $("task").scrollIntoView(); // on a phone, proposals are far below
}

function askQuestions() {
  setTask({ name: "question", cards: questions, position: 0 });
  fill();
}

// Fetch questions. Images that are on the page, or whose answers are on their way, are not asked again.
async function fill() {
  if (app.filling || questions.length > AHEAD) return;
  app.filling = true;
  try {
    const pending = outbox.entries.flatMap(({ body }) => body.images);
    const known = new Set([...pending, ...questions.map(({ image }) => image)]);
    const n = AHEAD + 1 - questions.length;
    const answer = await call(`/api/next?n=${n}&shown=${[...known].join(",")}`);
    const arrived = answer.questions.filter((card) => !questions.some(({ image }) => image === card.image) && !isPending(card));
    questions.push(...arrived);
    for (const card of arrived) new Image().src = imageUrl(card, 640);
    app.empty = !questions.length;
    if (app.task.name === "question" && $("task").dataset.image !== String(current()?.image)) drawTask();
  } catch (error) {
    report(error);
  } finally {
    app.filling = false;
  }
}

const isPending = (card) => outbox.entries.some(({ body }) => body.paths.includes(pathOf(card)));

// After the server was gone: its numbers may be new, and others may have answered. The image on the page stays.
async function recover() {
  questions.splice(1);
  const shown = questions[0];
  if (shown) {
    try {
      const fresh = await call(`/api/card/${shown.image}?path=${encodeURIComponent(pathOf(shown))}`);
      shown.image = fresh.image;
    } catch (error) {
      if (error.refused) questions.splice(0, 1);
      else return;
    }
  }
  if (app.task.name !== "question") askQuestions();
  else { drawTask(); fill(); }
}

// ---- answers

// Label the image, or the selected images: with a class, UNKNOWN, or null to take the label away.
function answer(label) {
  const cards = targets();
  if (!cards.length) return say(t(isGrid() ? "none_selected" : "nothing_to_answer"));
  if (!isGrid() && !$("image").complete) return; // a key that was meant for the image before
  if (label && !app.state.classes.some(({ name }) => name === label)) app.state.classes.push({ name: label, n: 0, held_out: null });
  const body = { images: cards.map(({ image }) => image), paths: cards.map(pathOf), label };
  if (label === UNKNOWN) Object.assign(body, { label: null, unknown: true });
  if (app.task.name === "batch") body.batch = app.task.batch;
  act("/api/answer", body, cards).then((reply) => {
    if (reply) offerDuplicates(reply.duplicates ?? [], label);
  });
  const name = label === null ? t("no_label") : label || t("unknown");
  announce(cards.length > 1 ? t("announce_many", { n: cards.length, name }) : t("announce", { path: cards[0].path, name }));
  proceed(cards);
}

function skip() {
  const cards = targets();
  if (!cards.length || !["question", "alike"].includes(app.task.name)) return app.task.cards.length ? proceed(cards) : undefined;
  act("/api/skip", { images: cards.map(({ image }) => image), paths: cards.map(pathOf) }, cards);
  announce(t("announce_skipped", { path: cards[0].path }));
  proceed(cards);
}

async function act(path, body, cards) {
  const { entry, reply } = send(path, body);
  const done = { entry, reply, cards, task: app.task };
  app.history = [...app.history.slice(-UNDOABLE), done];
  $("undo").disabled = false;
  const answered = await reply;
  if (!answered) app.history = app.history.filter((other) => other !== done);
  soon();
  fill();
  return answered;
}

// Show what comes after `cards`.
function proceed(cards) {
  const done = new Set(cards.map(({ image }) => image));
  const { task } = app;
  for (let k = questions.length - 1; k >= 0; k -= 1) if (done.has(questions[k].image)) questions.splice(k, 1);
  if (isGrid()) {
    task.cards = task.cards.filter(({ image }) => !done.has(image));
    task.selected = new Set();
    const stays = task.name === "labelled" || task.name === "skipped";
    if (stays && task.cards.length) drawTask();
    else askQuestions();
  } else if (task.name === "question") {
    drawTask();
    fill();
  } else {
    task.position += 1;
    if (task.position < task.cards.length) drawTask();
    else task.finished();
  }
}

// Take back the last action of this page.
async function undo() {
  const done = app.history.pop();
  if (!done) return;
  $("undo").disabled = !app.history.length;
  if (!withdraw(done.entry)) {
    const reply = await done.reply;
    try {
      const number = reply?.record;
      const { images } = number == null ? { images: done.cards } : await call("/api/undo", { number });
      if (!images.length) return say(t("undo_late"));
    } catch (error) {
      app.history.push(done);
      $("undo").disabled = false;
      return report(error);
    }
  }
  offerDuplicates([], null);
  announce(t("announce_undone", { n: done.cards.length }));
  showAgain(done);
  soon();
}

function showAgain({ cards, task }) {
  if (task === app.task && "position" in task && task.name !== "question") {
    task.position = Math.max(0, task.position - 1);
    drawTask();
  } else if (cards.length === 1) {
    questions.unshift({ ...cards[0], reason: cards[0].reason === "random" ? "random" : "undone" });
    askQuestions();
  } else {
    openGrid("alike", () => t("undone_many", { n: cards.length }), cards, true);
  }
}

// ---- near duplicates of the image that was answered last

function offerDuplicates(cards, label) {
  app.duplicates = cards.length ? { cards, label } : null;
  $("duplicates").hidden = !cards.length;
  if (!cards.length) return;
  $("duplicates-text").textContent = t("duplicates", { n: cards.length, name: label || t("unknown") });
  $("duplicates-images").replaceChildren(...cards.slice(0, 5).map((card) => element("img", { src: imageUrl(card, 160), alt: card.path })));
  announce($("duplicates-text").textContent);
}

function acceptDuplicates() {
  const { cards, label } = app.duplicates;
  offerDuplicates([], null);
  const body = { images: cards.map(({ image }) => image), paths: cards.map(pathOf), label };
  if (label === UNKNOWN) Object.assign(body, { label: null, unknown: true });
  act("/api/answer", body, cards);
  announce(t("announce_many", { n: cards.length, name: label || t("unknown") }));
  const done = new Set(body.images);
  const shown = current()?.image;
  for (let k = questions.length - 1; k >= 0; k -= 1) if (done.has(questions[k].image)) questions.splice(k, 1);
  if (done.has(shown) && app.task.name === "question") drawTask();
}
