// ---- reviews: suspects, proposed classes, and batches

async function reviewSuspects() {
  try {
    const { images } = await call("/api/suspects");
    if (!images.length) return say(t("nothing_here"));
    setTask({ name: "suspects", cards: images, position: 0, finished: askQuestions });
  } catch (error) {
    report(error);
  }
}

async function reviewGroup() {
  try {
    const { groups } = await call("/api/groups");
    if (!groups.length) return say(t("nothing_here"));
    openGrid("group", t("group_title", { n: groups[0].length }), groups[0], true);
    $("name").focus();
  } catch (error) {
    report(error);
  }
}

// The unlabelled images that the classifier is sure of: a sample is verified before the rest is accepted.
async function reviewBatch() {
  const atLeast = Number($("sure").value);
  try {
    const batch = await call(`/api/batch?at_least=${atLeast}`);
    if (!batch.n) return say(t("batch_none", { p: percent(atLeast) }));
    drawBatch(batch, atLeast);
  } catch (error) {
    report(error);
  }
}

async function verifyBatch(batch, atLeast) {
  try {
    const cards = await Promise.all(batch.sample.map(async ({ image, label }) => ({ ...(await call(`/api/card/${image}`)), label })));
    const finished = async () => {
      const replies = await Promise.all(app.history.filter(({ task }) => task.batch === batch.batch).map(({ reply }) => reply));
      const last = replies.filter((reply) => reply?.batch).map((reply) => reply.batch).sort((a, b) => b.verified - a.verified)[0];
      if (last) drawBatch({ ...batch, ...last }, atLeast);
      else askQuestions();
    };
    setTask({ name: "batch", batch: batch.batch, cards, position: 0, finished });
  } catch (error) {
    report(error);
  }
}

// Before the verification: what is proposed. After it: what was found, and the button that accepts.
function drawBatch(batch, atLeast) {
  const { n, sample, verified, wrong } = batch;
  const size = sample.length;
  const expected = batch.expected_errors < 0.95 ? batch.expected_errors.toFixed(1) : String(Math.round(batch.expected_errors));
  setTask({ name: "accept", cards: [], position: 0 });
  $("nothing").hidden = true;
  $("panel").hidden = false;
  $("panel-title").textContent = t("batch_title", { n, p: percent(atLeast) });
  const lines = [t("batch_expected", { expected })];
  if (!size) {
    const [low, high] = batch.errors_ci95;
    lines.push(t("batch_found", { verified, wrong, low: Math.floor(low), high: Math.ceil(high) }));
  } else {
    lines.push(t("batch_sample", { n: size }));
  }
  $("panel-text").replaceChildren(...lines.map((line) => element("p", {}, line)));
  const go = element("button", { type: "button", class: "primary", onclick: () => (size ? verifyBatch(batch, atLeast) : acceptBatch(batch)) },
    element("kbd", { class: "sign", "aria-hidden": "true" }, "⏎"), " ", size ? t("batch_verify", { n: size }) : t("batch_accept", { n: n - verified }));
  $("panel-buttons").replaceChildren(go, element("button", { type: "button", onclick: askQuestions }, t("not_now")));
  go.focus();
}

async function acceptBatch({ batch }) {
  try {
    const { record, n } = await call("/api/batch", { number: batch });
    app.history.push({ entry: null, reply: Promise.resolve({ record }), cards: [], task: app.task });
    say(t("batch_done", { n }));
    soon();
    askQuestions();
  } catch (error) {
    report(error);
  }
}
