// "On another device": a link and its QR code, made when the user asks for them.
import { t } from "./i18n.js";

const $ = (id) => document.getElementById(id);

// `shared`: whether other devices can reach this server.
export function setUpSharing(shared) {
  $("share").hidden = !shared;
}

$("share").addEventListener("toggle", async () => {
  if (!$("share").open) return;
  const response = await fetch("/invitation", { method: "POST", credentials: "same-origin" }).catch(() => null);
  const { link, once, code } = response?.ok ? await response.json() : {};
  $("share-link").textContent = link ?? "";
  if (link) $("share-link").href = link;
  $("share-code").hidden = !code;
  if (code) $("share-code").src = `data:image/svg+xml,${encodeURIComponent(code)}`;
  $("share-note").textContent = t(!link ? "share_failed" : once ? "share_once" : "share_note");
});
