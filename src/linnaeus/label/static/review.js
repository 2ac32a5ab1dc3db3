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
    openGrid("group", () => t("group_title", { n: groups[0].length }), groups[0], true);
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
    showBatch(batch, atLeast);
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
      if (last) showBatch({ ...batch, ...last }, atLeast);
      else askQuestions();
    };
    setTask({ name: "batch", batch: batch.batch, cards, position: 0, finished });
  } catch (error) {
    report(error);
  }
}

// How many of the images that nobody has verified are probably wrong, and before the verification what says so.
function errorsIn(batch) {
  const { seen, seen_wrong: wrong, verified, most_errors: most } = batch;
  const n = batch.n - verified;
  if (!n) return [];
  if (!seen && !verified) return [t("batch_nothing_seen")];
  const expected = Math.round(batch.expected_errors);
  const key = expected ? "batch_errors" : most ? "batch_errors_few" : "batch_errors_none";
  const which = t(verified ? "batch_others" : "batch_these", { n });
  return [t(key, { n, which, expected, most }), ...(verified ? [] : [t(wrong ? "batch_basis" : "batch_basis_right", { n: seen, wrong })])];
}

function showBatch(batch, atLeast) {
  setTask({ name: "accept", cards: [], position: 0, panel: () => drawBatch(batch, atLeast) });
  $("panel-buttons").firstChild.focus();
}

// Before the verification: what is proposed. After it: what was found, and the button that accepts.
function drawBatch(batch, atLeast) {
  const { n, sample, verified, wrong } = batch;
  const size = sample.length;
  const rest = n - verified;
  $("panel-title").textContent = t("batch_title", { n, p: percent(atLeast) });
  const lines = size
    ? [...errorsIn(batch), t("batch_sample", { n: size })]
    : [t(wrong ? "batch_found" : "batch_found_none", { n: verified, wrong }), ...errorsIn(batch)];
  $("panel-text").replaceChildren(...lines.map((line) => element("p", {}, line)));
  const [text, act] = size ? [t("batch_verify", { n: size }), () => verifyBatch(batch, atLeast)]
    : rest ? [t("batch_accept", { n: rest }), () => acceptBatch(batch)] : [t("back_to_questions"), askQuestions];
  const go = element("button", { type: "button", class: "primary", onclick: act }, element("kbd", { class: "sign", "aria-hidden": "true" }, "⏎"), " ", text);
  $("panel-buttons").replaceChildren(go, ...(rest ? [element("button", { type: "button", onclick: askQuestions }, t("not_now"))] : []));
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
