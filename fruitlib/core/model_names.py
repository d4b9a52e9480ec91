"""The models that can be trained, each with the image size its weights were trained at."""

BASE_CLASSES = 5  # what model base tells apart
OURS = ("end2end", "base")
# Every model and the side its weights were trained at (a test compares with torchvision). Convolutional ones only:
# Grad-CAM wants feature maps, and transformers want more photos than this project is about.
_AT_224 = """resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d
wide_resnet50_2 wide_resnet101_2 vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn densenet121 densenet161
densenet169 densenet201 efficientnet_b0 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large convnext_tiny convnext_small
convnext_base convnext_large regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf
regnet_x_32gf regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf
shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0"""
MODELS = dict.fromkeys(OURS, 96) | dict.fromkeys(_AT_224.split(), 224)
MODELS |= {"efficientnet_b1": 240, "efficientnet_b2": 288, "efficientnet_b3": 300, "efficientnet_b4": 380}
MODELS |= {"efficientnet_b5": 456, "efficientnet_b6": 528, "efficientnet_b7": 600}
MODELS |= {"efficientnet_v2_s": 384, "efficientnet_v2_m": 480, "efficientnet_v2_l": 480}
