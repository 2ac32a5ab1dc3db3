// node predict.mjs model.onnx image.jpg      (npm install --ignore-scripts onnxruntime-node jpeg-js)
import { readFileSync } from "node:fs";
import jpeg from "jpeg-js";
import ort from "onnxruntime-node";
const [model, image] = process.argv.slice(2);
const { data, width, height } = jpeg.decode(readFileSync(image), { useTArray: true, formatAsRGBA: false });
const session = await ort.InferenceSession.create(model);
const images = new ort.Tensor("uint8", data, [1, height, width, 3]);
const { probabilities } = await session.run({ images }, ["probabilities"]);
console.log(JSON.stringify([...probabilities.data]));
