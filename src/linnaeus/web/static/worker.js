// Predicts in the browser: decodes an image and runs model.onnx, which resizes it, with ONNX Runtime. Sends nothing.
import * as ort from "./ort.js";

const TOP = 5;
const MAX_PIXELS = 16_777_216; // of a canvas on an iPhone; larger images are reduced while they are drawn
const PNG = [0x89, 0x50, 0x4e, 0x47];

const address = (name) => new URL(`./${name}`, import.meta.url).href;
let loaded = null; // promise of {model, session}

async function load() {
  const response = await fetch(address("model.json"));
  if (!response.ok) throw new Error(`model.json: ${response.status}`);
  const model = await response.json();
  const all = model.files["ort-wasm.wasm"] + model.files["model.onnx"];
  let done = 0;
  const advance = (bytes) => self.postMessage({ loading: { done: (done += bytes), all } });
  ort.env.wasm.wasmPaths = { mjs: address("ort-wasm.js"), wasm: address("ort-wasm.wasm") };
  ort.env.wasm.wasmBinary = await download("ort-wasm.wasm", advance);
  const session = await ort.InferenceSession.create(await download("model.onnx", advance), { executionProviders: ["wasm"] });
  return { model, session };
}

async function download(name, advance) {
  const response = await fetch(address(name));
  if (!response.ok) throw new Error(`${name}: ${response.status}`);
  const parts = [];
  const reader = response.body.getReader();
  for (let part; !(part = await reader.read()).done;) {
    parts.push(part.value);
    advance(part.value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

// The pixels at full size as {data, width, height}, RGB, upright, transparency over white, without color management: as
// Linnaeus decodes. null where the browser cannot read the image.
async function decode(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    return null;
  }
  const scale = Math.min(1, Math.sqrt(MAX_PIXELS / (bitmap.width * bitmap.height)));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.floor(side * scale)));
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const data = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    data[to++] = rgba[from];
    data[to++] = rgba[from + 1];
    data[to++] = rgba[from + 2];
  }
  return { data, width, height };
}

// Whether the file is a PNG of 16 bits a channel: browsers keep the upper eight, whatever range the images use.
async function hasSixteenBits(file) {
  const head = new Uint8Array(await file.slice(0, 25).arrayBuffer());
  return PNG.every((byte, i) => head[i] === byte) && head[24] === 16;
}

async function predict({ model, session }, file) {
  const failed = (key) => ({ error: key, error_key: key });
  if ((model.preprocessing.bits ?? 16) < 16 && (await hasSixteenBits(file))) return failed("sixteen_bits");
  const pixels = await decode(file);
  if (pixels === null) return failed("not_decoded");
  const images = new ort.Tensor("uint8", pixels.data, [1, pixels.height, pixels.width, 3]);
  const outputs = session.outputNames.filter((name) => name !== "logits");
  const result = await session.run({ images }, outputs);
  const probabilities = result.probabilities.data;
  if (!probabilities.every(Number.isFinite)) return failed("not_finite");
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a] || a - b);
  const most = probabilities[order[0]];
  const distance = result.distance ? result.distance.data[0] : null;
  const labels = model.thresholds
    ? { labels: order.filter((i) => model.thresholds[i] !== null && probabilities[i] >= model.thresholds[i]).map((i) => model.classes[i].class) } : {};
  return {
    ...labels,
    top: order.slice(0, model.thresholds ? order.length : TOP).map((i) => ({ ...model.classes[i], probability: probabilities[i] })),
    unsure: !(most >= model.threshold),
    unknown: model.unknown && isUnknown(model.unknown, most, distance),
    distance,
    error: null,
  };
}

// As `Thresholds.unknown` of linnaeus.metrics.ood.
function isUnknown(thresholds, probability, distance) {
  const near = !(probability >= thresholds.probability);
  return near || (thresholds.distance !== null && distance !== null && !(distance <= thresholds.distance));
}

let turn = Promise.resolve(); // one image at a time: a photograph takes a few hundred MB on its way
self.addEventListener("message", ({ data: { number, file } }) => {
  turn = turn.then(async () => {
    try {
      loaded ??= load();
      const ready = await loaded;
      self.postMessage({ number, answer: file ? await predict(ready, file) : null });
    } catch (error) {
      self.postMessage({ number, failed: String(error.message ?? error) });
    }
  });
});
