// The dialog that asks for the token of a server, which gives the browser a cookie in exchange.
import { t } from "./i18n.js";

const $ = (id) => document.getElementById(id);
let granted = () => {};

// Ask for the token; `then` runs when the server has accepted it.
export function askForToken(then) {
  granted = then;
  if (!$("token-dialog").open) $("token-dialog").showModal();
}

// A link with an invitation replaces the token once; the address must not keep it.
const invitation = new URLSearchParams(location.hash.slice(1)).get("invitation");
if (invitation) history.replaceState(null, "", location.pathname);

// Exchange the invitation in the address, if there is one, before the first request.
export async function redeemInvitation() {
  if (invitation) await fetch("/login", { method: "POST", headers: { Authorization: `Invitation ${invitation}` } }).catch(() => null);
}

async function login(event) {
  event.preventDefault();
  $("token-error").textContent = "";
  const response = await fetch("/login", { method: "POST", headers: { Authorization: `Bearer ${$("token").value}` } }).catch(() => null);
  if (response?.ok) {
    $("token").value = "";
    $("token-dialog").close();
    granted();
  } else {
    $("token-error").textContent = t(response ? "token_invalid" : "gone", { seconds: 0 });
  }
}

$("token-dialog").querySelector("form").addEventListener("submit", login);
$("token-dialog").addEventListener("cancel", (event) => event.preventDefault());
