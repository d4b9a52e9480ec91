"""Where a network looks. In: a model and images; out: heatmaps and feature maps, the model unchanged.

gradcam    heatmaps by pytorch-grad-cam, layer by layer
layout     what a layer gives, as maps: of convolutions, transformers, channels last
object_masks  where the object is in a photo, and the photo without it
insertion  what hiding and uncovering by heat does: deletion, insertion, ROAD
shortcuts  does a network look at the object? heat on it, accuracy without it
"""
