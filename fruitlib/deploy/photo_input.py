"""The part of an exported graph that turns photos into images: what `data.preprocess` does, in ONNX.

photos: uint8 (N, H, W, 3), RGB, upright -> images: float32 (N, 3, S, S) in [0, 1]. Resampling is Pillow's bilinear
filter: each output pixel is the mean over the pixels it covers under a triangle, first along rows, then along columns,
rounded to whole numbers after each. Of large photos blocks are averaged first (`data.geometry`). A photo of exactly
S x S pixels is taken as prepared already.
"""

import onnx
from onnx import parser

from fruitlib.core.config import FACTORS  # in the order in which they are applied

OPSET = 20
IR = 10
# What an axis of `size` pixels is resampled with: row i of the matrix has the weights of output pixel i. The area
# begins at `start` and is `length` long; it fills `kept` pixels of S, from pixel `first` on, and its ends are repeated.
# Where an output pixel covers six pixels and more, blocks of `block` pixels are averaged first: of the largest of
# `powers` that goes into it three times.
_WEIGHTS = """
  {axis}_place = Clip ({axis}_at, zero, {axis}_last)
  {axis}_scale = Div ({axis}_length, {axis}_kept)
  {axis}_third = Div ({axis}_scale, three)
  {axis}_enough = GreaterOrEqual ({axis}_third, powers)
  {axis}_fitting = Where ({axis}_enough, powers, one)
  {axis}_block = ReduceMax <keepdims = 0> ({axis}_fitting)
  {axis}_block_scale = Div ({axis}_scale, {axis}_block)
  {axis}_reach = Max ({axis}_block_scale, one)
  {axis}_middle = Add ({axis}_place, half)
  {axis}_scaled = Mul ({axis}_middle, {axis}_scale)
  {axis}_centre = Add ({axis}_scaled, {axis}_start)
  {axis}_centre_block = Div ({axis}_centre, {axis}_block)
  {axis}_column = Unsqueeze ({axis}_centre_block, minus_one)
  {axis}_pixels = Range (zero, {axis}_size, one)
  {axis}_exact_block = Div ({axis}_pixels, {axis}_block)
  {axis}_blocks = Floor ({axis}_exact_block)
  {axis}_block_middle = Add ({axis}_blocks, half)
  {axis}_apart = Sub ({axis}_block_middle, {axis}_column)
  {axis}_far = Abs ({axis}_apart)
  {axis}_share = Div ({axis}_far, {axis}_reach)
  {axis}_fall = Sub (one, {axis}_share)
  {axis}_triangle = Relu ({axis}_fall)
  {axis}_began = Mul ({axis}_blocks, {axis}_block)
  {axis}_left = Sub ({axis}_size, {axis}_began)
  {axis}_filled = Min ({axis}_left, {axis}_block)
  {axis}_counted = Div ({axis}_triangle, {axis}_filled)
  {axis}_total = ReduceSum <keepdims = 1> ({axis}_counted, minus_one)
  {axis}_weights = Div ({axis}_counted, {axis}_total)
"""
_FILLED = """
  {axis}_kept = Identity (side)
  {axis}_last = Sub ({axis}_kept, one)
  {axis}_at = Range (zero, side, one)
"""
_PADDED = """
  {axis}_part = Mul (side, {axis}_length)
  {axis}_exact = Div ({axis}_part, longer)
  {axis}_round = Round ({axis}_exact)
  {axis}_kept = Max ({axis}_round, one)
  {axis}_last = Sub ({axis}_kept, one)
  {axis}_rest = Sub (side, {axis}_kept)
  {axis}_halved = Div ({axis}_rest, two)
  {axis}_first = Floor ({axis}_halved)
  {axis}_all = Range (zero, side, one)
  {axis}_at = Sub ({axis}_all, {axis}_first)
"""
_AREAS = {
    "crop": "shorter = Min (y_size, x_size)\n  y_length = Mul (shorter, share)\n  x_length = Identity (y_length)",
    "squash": "y_length = Mul (y_size, share)\n  x_length = Mul (x_size, share)",
    "pad": "y_length = Mul (y_size, share)\n  x_length = Mul (x_size, share)\n  longer = Max (y_length, x_length)",
}
# Pillow's blend of a picture with its plain version, cut to whole numbers; L is its grey (ITU-R 601-2).
_BLEND = """
  {name}_less = Sub (pixels_{before}, {name}_plain)
  {name}_more = Mul ({name}_less, {name}_factor)
  {name}_sum = Add ({name}_plain, {name}_more)
  {name}_cut = Clip ({name}_sum, zero, white)
  pixels_{name} = Floor ({name}_cut)
"""
_GREY = """
  {name}_parts = Mul (pixels_{before}, grey_parts)
  {name}_added = ReduceSum <keepdims = 1> ({name}_parts, channel)
  {name}_shifted = Add ({name}_added, half)
  {name}_grey = Floor ({name}_shifted)
"""
_PLAIN = {
    "brightness": "\n  brightness_plain = Identity (zero)",
    "contrast": _GREY
    + """
  {name}_mean = ReduceMean <keepdims = 1> ({name}_grey, places)
  {name}_raised = Add ({name}_mean, half)
  {name}_plain = Floor ({name}_raised)""",
    "saturation": _GREY + "\n  {name}_plain = Identity ({name}_grey)",
    "sharpness": """
  {name}_smoothed = Conv <group = 3> (pixels_{before}, smooth)
  {name}_near = Add ({name}_smoothed, half)
  {name}_floor = Floor ({name}_near)
  {name}_within = Clip ({name}_floor, zero, white)
  {name}_inner = Pad ({name}_within, border)
  {name}_edge = Mul (pixels_{before}, edge)
  {name}_plain = Add ({name}_inner, {name}_edge)""",
}


def input_graph(preprocess: dict) -> onnx.ModelProto:
    """The graph "photos" -> "images" for the settings `preprocess` of a checkpoint.

    Those are image_size, resize (crop, squash or pad), center and the factors brightness, contrast, saturation and
    sharpness. A crop to a box or an object is up to the reader.
    """
    side, how = preprocess["image_size"], preprocess["resize"]
    resized, constants = _resized(how), _constants(side, preprocess)
    before = "round"
    for name in FACTORS:
        if preprocess[name] != 1:
            resized += (_PLAIN[name] + _BLEND).format(name=name, before=before)
            before = name
    text = f"""
    <ir_version: {IR}, opset_import: ["" : {OPSET}]>
    photo_input (uint8[batch, height, width, 3] photos) => (float[batch, 3, {side}, {side}] images)
    <{constants}> {{
      shape = Shape (photos)
      both = Slice (shape, one_at, three_at)
      fits = Equal (both, sides)
      numbers = Cast <to = 6> (fits)
      fitting = ReduceMin <keepdims = 0> (numbers)
      prepared = Cast <to = 9> (fitting)
      floats = Cast <to = 1> (photos)
      channels = Transpose <perm = [0, 3, 1, 2]> (floats)
      pixels = If (prepared) <
        then_branch = as_it_is () => (float[batch, 3, {side}, {side}] same) {{ same = Identity (channels) }},
        else_branch = resample () => (float[batch, 3, {side}, {side}] changed) {{
          {resized}
          changed = Identity (pixels_{before})
        }}
      >
      images = Div (pixels, white)
    }}"""
    model = parser.parse_model(text)
    onnx.checker.check_model(model)
    return model


def _resized(how: str) -> str:
    axis_text = (_PADDED if how == "pad" else _FILLED) + _WEIGHTS
    sizes = "".join(
        f"""
  {axis}_whole = Slice (shape, {start}_at, {end}_at)
  {axis}_count = Squeeze ({axis}_whole)
  {axis}_size = Cast <to = 1> ({axis}_count)"""
        for axis, start, end in (("y", "one", "two"), ("x", "two", "three"))
    )
    starts = "".join(
        f"""
  {axis}_outside = Sub ({axis}_size, {axis}_length)
  {axis}_start = Div ({axis}_outside, two)"""
        for axis in "yx"
    )
    return f"""{sizes}
  {_AREAS[how]}
  {starts}
  {axis_text.format(axis="y")}
  {axis_text.format(axis="x")}
  x_columns = Transpose <perm = [1, 0]> (x_weights)
  across = MatMul (channels, x_columns)
  across_half = Add (across, half)
  across_round = Floor (across_half)
  down = MatMul (y_weights, across_round)
  down_half = Add (down, half)
  down_round = Floor (down_half)
  pixels_round = Clip (down_round, zero, white)
"""


def _constants(side: int, preprocess: dict) -> str:
    numbers = {"zero": 0.0, "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "white": 255.0, "side": float(side)}
    numbers |= {"share": float(preprocess["center"])}
    numbers |= {f"{name}_factor": float(preprocess[name]) for name in FACTORS if preprocess[name] != 1}
    texts = [f"float {name} = {{{value!r}}}" for name, value in numbers.items()]
    texts += ["float[8] powers = {1, 2, 4, 8, 16, 32, 64, 128}"]
    texts += [f"int64[1] {name}_at = {{{at}}}" for at, name in enumerate(("one", "two", "three"), 1)]
    texts += ["int64[1] minus_one = {-1}", f"int64[2] sides = {{{side}, {side}}}"]
    if preprocess["contrast"] != 1 or preprocess["saturation"] != 1:
        grey = ", ".join(f"{part / 65536!r}" for part in (19595, 38470, 7471))
        texts += [f"float[1,3,1,1] grey_parts = {{{grey}}}", "int64[1] channel = {1}"]
    if preprocess["contrast"] != 1:
        texts += ["int64[3] places = {1, 2, 3}"]
    if preprocess["sharpness"] != 1:
        texts += ["int64[8] border = {0, 0, 1, 1, 0, 0, 1, 1}"]
        kernel = [1 / 13, 1 / 13, 1 / 13, 1 / 13, 5 / 13, 1 / 13, 1 / 13, 1 / 13, 1 / 13] * 3
        texts += ["float[3,1,3,3] smooth = {" + ", ".join(map(repr, kernel)) + "}"]
        rim = [float(y in (0, side - 1) or x in (0, side - 1)) for y in range(side) for x in range(side)]
        texts += [f"float[1,1,{side},{side}] edge = {{" + ", ".join(map(repr, rim)) + "}"]
    return ", ".join(texts)
