"""Where a network looks. In: a model and images; out: heatmaps and feature maps, the model unchanged.

gradcam    heatmaps and feature maps, layer by layer; the share of heat in the middle; overlays
methods    Grad-CAM, Grad-CAM++, LayerCAM, EigenCAM and Score-CAM, by pytorch-grad-cam
layout     what a layer gives, as maps: of convolutions, transformers, channels last
object_masks  where the object is in a photo, and the photo without it
insertion  what hiding and uncovering by heat does: deletion, insertion, ROAD
for_report  what 04 keeps for the report: features and heat of validation photos
shortcuts  does a network look at the object? heat on it, accuracy without it
"""
