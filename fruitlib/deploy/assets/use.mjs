import ort from "onnxruntime-node";
import sharp from "sharp";

const classes = [CLASSES];
const session = await ort.InferenceSession.create("model.onnx");
const upright = sharp("photo.jpg").rotate().flatten({ background: "white" }).toColourspace("srgb");
const { data, info } = await upright.raw().toBuffer({ resolveWithObject: true });
const photos = new ort.Tensor("uint8", new Uint8Array(data), [1, info.height, info.width, 3]);
const { probabilities } = await session.run({ photos }, ["probabilities"]);
const best = probabilities.data.indexOf(Math.max(...probabilities.data));
console.log(classes[best], probabilities.data[best]);
