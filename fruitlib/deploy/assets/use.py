import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
probabilities = session.run(["probabilities"], {"photos": np.asarray(photo)[None]})[0][0]
best, names = int(probabilities.argmax()), json.loads(facts["class_names"])
print(names[best], probabilities[best])
