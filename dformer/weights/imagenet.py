"""Weights of classifiers pretrained on ImageNet, under the names of our backbones.

ResNets as torchvision and Detectron2 save them, Swins as their authors released them
(https://github.com/microsoft/Swin-Transformer) or Mask2Former's tool repacked them, and any backbone as timm saves it.
"""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

# Pattern for names -> why a backbone does not need them.
DROPPED = [
    (r"(stem\.)?(fc|head|norm|classifier|linear)\.(.*\.)?(weight|bias)", "the classifier"),
    (r".*\.(relative_position_index|attn_mask)", "follows from the window size"),
    (r"(attn_pool|fc_norm)\..*|mask_token", "the classifier"),
]

# torchvision's ResNet -> Detectron2's, tried in this order.
RESNET = [
    (r"^conv1\.", r"stem.conv1."),
    (r"^bn1\.", r"stem.conv1.norm."),
    (r"^layer1\.", r"res2."),
    (r"^layer2\.", r"res3."),
    (r"^layer3\.", r"res4."),
    (r"^layer4\.", r"res5."),
    (r"\.downsample\.0\.", r".shortcut."),
    (r"\.downsample\.1\.", r".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
]


def from_imagenet(weights: Mapping[str, Tensor], expected: Collection[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename the weights of a classifier to `backbone. ...`, as `expected` in a model; `backbone.body. ...` is timm's.

    Returns:
        The weights, and for each name that was dropped the reason.
    """
    is_timm = any(name.startswith("backbone.body.") for name in expected)
    # The authors' Swin merges patches at the end of a stage, timm's at the start of the next.
    is_original_swin = "layers.0.downsample.reduction.weight" in weights
    converted: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    for wrapped_name, tensor in weights.items():
        name = wrapped_name.removeprefix("module.")
        reason = next((reason for pattern, reason in DROPPED if re.fullmatch(pattern, name)), None)
        if reason and f"backbone.body.{name}" not in expected:
            dropped[name] = reason
        elif is_timm:
            if is_original_swin:
                name = re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name)
            flat = re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", name)  # of a model made with features_only
            converted[f"backbone.body.{flat if f'backbone.body.{flat}' in expected else name}"] = tensor
        else:
            for pattern, replacement in RESNET:
                name = re.sub(pattern, replacement, name)
            converted[f"backbone.{name}"] = tensor
    return converted, dropped
