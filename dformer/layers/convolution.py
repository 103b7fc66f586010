"""Convolutions that keep the size, initialised as Detectron2's `c2_xavier_fill`."""

from torch import nn

from dformer.layers.group_norm import GroupNorm


def convolution(in_dim: int, out_dim: int, kernel_size: int) -> nn.Conv2d:
    """Build a convolution with a bias that is initially zero."""
    conv = nn.Conv2d(in_dim, out_dim, kernel_size, padding=kernel_size // 2)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    nn.init.constant_(conv.bias, 0)  # type: ignore[arg-type]  # not None
    return conv


def convolution_norm(in_dim: int, out_dim: int, kernel_size: int, bias: bool = False) -> nn.Sequential:
    """Build a convolution followed by group norm in 32 groups."""
    conv = convolution(in_dim, out_dim, kernel_size)
    if not bias:
        conv.register_parameter("bias", None)
    return nn.Sequential(conv, GroupNorm(32, out_dim))
