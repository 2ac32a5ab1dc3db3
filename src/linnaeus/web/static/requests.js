// Predictions in this browser, for the queue. A worker has the model, so that the page stays responsive.
import { handlers } from "./queue.js";

const pending = new Map(); // number of a message to the worker -> its promise
let worker = null;
let number = 0;

function startWorker() {
  worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  worker.addEventListener("message", ({ data }) => {
    if (data.loading) return handlers.loading(data.loading.done, data.loading.all);
    const { resolve, reject } = pending.get(data.number);
    pending.delete(data.number);
    if (data.failed) {
      reject({ kind: "no_model", reason: data.failed });
      stopWorker(data.failed); // ONNX Runtime does not start twice in one worker
    } else {
      resolve(data.answer);
    }
  });
  worker.addEventListener("error", (event) => {
    event.preventDefault();
    stopWorker(event.message || "worker.js");
  });
}

function stopWorker(reason) {
  worker?.terminate();
  worker = null;
  for (const { reject } of pending.values()) reject({ kind: "no_model", reason });
  pending.clear();
}

function ask(message) {
  if (!worker) startWorker();
  number += 1;
  return new Promise((resolve, reject) => {
    pending.set(number, { resolve, reject });
    worker.postMessage({ ...message, number });
  });
}

// The description of the model. Loading the network begins at once, unless the visitor saves data.
export async function fetchModel() {
  let response;
  try {
    response = await fetch(new URL("./model.json", import.meta.url));
    if (!response.ok) throw new Error(`model.json: ${response.status}`);
    const model = await response.json();
    if (!navigator.connection?.saveData) ask({}).then(keepForOffline, () => {});
    return model;
  } catch (error) {
    throw { kind: "no_model", reason: error.message };
  }
}

export async function predict(file) {
  const prediction = await ask({ file });
  return { status: 200, body: { predictions: [prediction] } };
}

// After the model, so that both do not share the network: the service worker gets the same files from the browser's cache.
function keepForOffline() {
  navigator.serviceWorker?.register(new URL("./service-worker.js", import.meta.url)).catch(() => {});
}

document.getElementById("start").remove();
