"""The branch that makes the features which dynamic mask heads read (CondInst, Tian et al. 2020, Sec. 3.2)."""

from collections.abc import Callable

from torch import Tensor, nn

from dformer.layers.group_norm import GroupNorm
from dformer.ops.dynamic_masks import aligned_upsample

# Batch norm as published; group norm for own training with few images a process.
NORMS: dict[str, Callable[[int], nn.Module]] = {"BN": nn.BatchNorm2d, "GN": lambda dim: GroupNorm(32, dim)}


class MaskBranch(nn.Module):
    """Add up three levels of a pyramid at stride 4, and run convolutions over them."""

    def __init__(self, *, in_dim: int, dim: int, channels: int, num_convs: int, norm: str) -> None:
        super().__init__()
        self.refine = nn.ModuleList(_conv_norm_relu(in_dim, dim, norm) for _ in range(3))
        self.tower = nn.Sequential(*(_conv_norm_relu(dim, dim, norm) for _ in range(num_convs)))
        self.mask_features = nn.Conv2d(dim, channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return mask features (B, channels, H/4, W/4) from maps of strides 4, 8, 16.

        (The paper says strides 8, 16, 32; the published code and weights are for these.)
        """
        x, *coarser = (refine(level) for refine, level in zip(self.refine, maps, strict=True))
        height, width = x.shape[2:]
        for factor, level in zip((2, 4), coarser, strict=True):
            x = x + aligned_upsample(level, factor)[..., :height, :width]
        return self.mask_features(self.tower(x))


def _conv_norm_relu(in_dim: int, dim: int, norm: str) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_dim, dim, 3, padding=1, bias=False), NORMS[norm](dim), nn.ReLU())
