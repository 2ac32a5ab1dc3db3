"use strict";
// The scripts of this folder are joined in the order of their names, and share one scope; `start` in page.js begins.

// ---- requests to the server

const TIMEOUT = 30_000; // ms

// The JSON of an answer. Throws {gone} where the server cannot be reached or is overloaded, {login} where it wants its
// token, {full: reason} where its disk does not take the answer, and {refused: reason} where it does not accept the request.
async function call(path, body) {
  const options = { credentials: "same-origin", signal: AbortSignal.timeout(TIMEOUT) };
  if (body) Object.assign(options, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  let response, answer;
  try {
    response = await fetch(path, options);
    answer = await response.json();
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw { gone: true };
    answer = {};
  }
  if (response.status === 401) throw { login: true };
  if (response.status === 507) throw { full: answer.error };
  if (response.status >= 500 || response.status === 408 || response.status === 429) throw { gone: true };
  if (!response.ok) throw { refused: answer.error || `HTTP ${response.status}` };
  return answer;
}

// The path of an image as the server compares it: bytes that are not UTF-8, which JSON cannot carry, are written as \udcxx.
function pathOf(card) {
  return card.path.replace(/[\ud800-\udfff]/gu, (byte) => `\\u${byte.charCodeAt(0).toString(16)}`);
}

// The address of an image. The path is there for the browser's cache: after a restart of the server a number can be
// that of another image.
function imageUrl(card, side) {
  return `/image/${card.image}?side=${side}&path=${encodeURIComponent(pathOf(card))}`;
}

async function login(token) {
  const response = await fetch("/login", { method: "POST", headers: { Authorization: `Bearer ${token}` } }).catch(() => null);
  return response?.ok ?? null;
}

// Ask for the token until the server accepts it.
function askForToken() {
  if (!$("token-dialog").open) $("token-dialog").showModal();
}

async function sendToken(event) {
  event.preventDefault();
  const accepted = await login($("token").value);
  if (accepted) {
    $("token").value = "";
    $("token-dialog").close();
    await poll();
  } else {
    $("token-error").textContent = t(accepted === null ? "gone_plain" : "token_invalid");
  }
}

// What a failed request means for the page.
function report(error) {
  if (error.login) askForToken();
  else if (error.gone) setOnline(false);
  else if (error.refused || error.full) say(error.refused || error.full);
  else throw error;
}
