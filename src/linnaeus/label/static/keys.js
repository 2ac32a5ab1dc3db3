// ---- the keyboard, and the enlarged image

const KEYS_KEY = "linnaeus-label-keys";
const ARROWS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];

// What a key does outside of text fields. Single characters can be switched off (WCAG 2.2, 2.1.4).
function commandOf(key) {
  const index = KEYS.indexOf(key);
  if (index >= 0 && index < app.state.classes.length) return () => answer(app.state.classes[index].name);
  return {
    0: () => answer(UNKNOWN), g: () => !isGrid() && showAlike(), n: () => $("name").focus(), "/": () => $("name").focus(),
    z: () => { const card = current(); if (card) zoom(card); }, "?": () => $("help").showModal(),
    a: () => isGrid() && selectAll(app.task.selected.size < app.task.cards.length),
  }[key];
}

function onKey(event) {
  if (event.isComposing || event.altKey || event.repeat && !ARROWS.includes(event.key)) return;
  const typing = event.target.matches("input:not([type=checkbox]), select, textarea");
  const open = document.querySelector("dialog[open]");
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !typing && !open) return handled(event, undo);
  if (event.ctrlKey || event.metaKey || !app.state) return;
  if (event.key === "Escape" && typing) return event.target.blur();
  if (typing || (open && open !== $("zoomed"))) return;
  if (open && ["z", " ", "Enter"].includes(event.key)) return handled(event, () => open.close());
  if (event.key === "Escape" && !open && app.task.name !== "question") return handled(event, askQuestions);
  const pressed = event.target.closest("button, a, summary"); // Enter and the space bar press it
  const command = {
    Backspace: undo, Delete: () => app.task.name === "labelled" && answer(null), " ": !pressed && skip, Enter: !pressed && confirmShown,
  }[event.key];
  if (command) return handled(event, command);
  if (isGrid() && ARROWS.includes(event.key)) return handled(event, () => moveInGrid(event.key));
  if (stored((storage) => storage.getItem(KEYS_KEY)) === "off") return;
  // Input methods and non-Latin keyboards name the character that they would write; the code names the key.
  const found = commandOf(event.key.toLowerCase()) ?? commandOf(event.code.replace(/^(Key|Digit|Numpad)(?=.$)/, "").toLowerCase());
  if (!found) return;
  if (open) open.close();
  handled(event, found);
}

function handled(event, command) {
  event.preventDefault();
  command();
}

// Enter: yes to what the page proposes.
function confirmShown() {
  const proposed = proposal();
  if (app.duplicates && app.task.name === "question") acceptDuplicates();
  else if (proposed !== undefined) answer(proposed);
  else $("name").focus();
}

// The text field: a class that exists is chosen whatever its case; another name is a new class.
function sendName(event) {
  event.preventDefault();
  const name = $("name").value.trim().replace(/\s+/g, " ");
  if (!name) return;
  const same = app.state.classes.find((known) => known.name.toLowerCase() === name.toLowerCase());
  $("name").value = "";
  $("name").blur();
  answer(same?.name ?? name);
}

// ---- zoom: the whole image, and twice that at the point that was clicked

function zoom(card) {
  const image = $("zoomed-image");
  $("zoomed").classList.remove("close-up");
  image.src = imageUrl(card, 1600);
  image.alt = card.path;
  $("zoomed").showModal();
}

function zoomIn(event) {
  const box = $("zoomed-image").getBoundingClientRect();
  const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  const near = $("zoomed").classList.toggle("close-up");
  if (!near) return;
  const frame = $("zoomed-frame");
  frame.scrollTo(x * frame.scrollWidth - frame.clientWidth / 2, y * frame.scrollHeight - frame.clientHeight / 2);
}

// Clicking outside of a dialog closes it.
function closeOutside(event) {
  if (event.target === event.currentTarget && event.currentTarget !== $("token-dialog")) event.currentTarget.close();
}
