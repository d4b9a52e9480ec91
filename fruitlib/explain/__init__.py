"""Where a network looks. In: a model and images; out: heatmaps and feature maps, the model unchanged.

gradcam    heatmaps by pytorch-grad-cam, layer by layer
layout     what a layer gives, as maps: of convolutions, transformers, channels last
"""
