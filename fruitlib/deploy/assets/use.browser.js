// file: of an <input type="file">; session: await ort.InferenceSession.create("model.onnx"), of onnxruntime-web
async function answer(session, file) {
  const classes = [CLASSES];
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const pen = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  pen.drawImage(bitmap, 0, 0);
  const rgba = pen.getImageData(0, 0, bitmap.width, bitmap.height).data;
  const pixels = new Uint8Array(rgba.filter((_, i) => i % 4 < 3));
  const photos = new ort.Tensor("uint8", pixels, [1, bitmap.height, bitmap.width, 3]);
  const { probabilities } = await session.run({ photos }, ["probabilities"]);
  const best = probabilities.data.indexOf(Math.max(...probabilities.data));
  return [classes[best], probabilities.data[best]];
}
