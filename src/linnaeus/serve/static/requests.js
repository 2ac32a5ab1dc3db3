// Requests to the server, for the queue. `export --to web` has another file of this name, which predicts in the browser.
import { setUpSharing } from "./share.js";
import { askForToken, redeemInvitation } from "./token.js";

const TIMEOUT = 120_000; // ms
const redeemed = redeemInvitation();

// fetch that throws temporary errors as {kind, after}, and a missing token as {wait}.
async function request(url, options = {}) {
  let response, body;
  try {
    response = await fetch(url, { ...options, credentials: "same-origin", signal: AbortSignal.timeout(TIMEOUT) });
    body = await response.json().catch((error) => { if (error instanceof SyntaxError) return {}; throw error; });
  } catch {
    throw { kind: "gone" };
  }
  if (response.status === 401) throw { wait: askForToken };
  if (response.status === 503) throw { kind: "busy", after: Number(response.headers.get("Retry-After")) || 1 };
  return { status: response.status, body };
}

// The description of the model, as GET /model gives it.
export async function fetchModel() {
  await redeemed;
  const { body } = await request("/model");
  setUpSharing(body.shared);
  return body;
}

export async function predict(file, explain) {
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  return request(`/predict${explain ? "?explain=1" : ""}`, { method: "POST", body: file, headers: { "Content-Type": type } });
}
