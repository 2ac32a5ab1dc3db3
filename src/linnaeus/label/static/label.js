"use strict";
const texts = JSON.parse(document.getElementById("translations").textContent)[document.documentElement.lang.slice(0, 2)];
const [image, name, figures] = ["image", "name", "figures"].map((id) => document.getElementById(id));
let current = null;

async function call(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await (await fetch(path, options)).json();
  if (answer.error) figures.textContent = answer.error;
  return answer;
}

async function show() {
  const state = await call("/api/state");
  const accuracy = state.accuracy && `${Math.round(100 * state.accuracy.accuracy)} %`;
  figures.textContent = `${state.labelled} / ${state.images} · ${accuracy || texts.few}`;
  current = (await call("/api/next?n=1")).questions[0] || null;
  image.src = current ? `/image/${current.image}?side=640` : "";
  image.alt = current ? current.path : "";
}

document.getElementById("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!current || !name.value.trim()) return;
  const answer = await call("/api/answer", { images: [current.image], label: name.value });
  if (!answer.error) await show();
});

(async () => {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) await fetch("/login", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
  await show();
})();
