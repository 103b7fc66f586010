"""The decoder that refines boxes stage by stage (Sparse R-CNN, Sun et al. 2021; with time, DiffusionDet, Chen et al.
2022) and predicts a mask head for each (DiffusionInst, Gu et al. 2022, Sec. 3.2).

Shapes: B images, N boxes, K classes, C channels, P numbers of a mask head, R x R cells of a region.
Boxes are x0 y0 x1 y1 in pixels of the image, float32. They are a set: nothing encodes their order.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dformer.layers.attention import AttentionBlock
from dformer.layers.embedding import TimeEmbedding, TimeProjection
from dformer.layers.feed_forward import FeedForward
from dformer.layers.roi_align import PyramidCells, roi_align

RESOLUTION = 7  # R
PRIOR = 0.01  # initial probability of a class (RetinaNet, Lin et al. 2017)
MAX_SCALE = 100_000 / 16  # by which a stage can enlarge a box


class BoxPrediction(NamedTuple):
    """Hold what a stage predicts for each box: `logits` (B, N, K), each class on its own and without one for "no
    object", the refined `boxes` (B, N, 4), and `kernels` (B, N, P), the mask heads."""

    logits: Tensor
    boxes: Tensor
    kernels: Tensor


class DynamicConv(nn.Module):
    """Apply two layers, C -> D -> C, to each region, with weights that its own query predicts."""

    def __init__(self, dim: int, dynamic_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.dynamic_layer = nn.Linear(dim, 2 * dim * dynamic_dim)
        self.norm1 = nn.LayerNorm(dynamic_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.out_layer = nn.Linear(RESOLUTION**2 * dim, dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, regions: Tensor) -> Tensor:
        """Return (B, N, C) from queries (B, N, C) and regions (B, N, R * R, C)."""
        first, second = self.dynamic_layer(queries).chunk(2, dim=2)  # (B, N, C * D), (B, N, D * C)
        x = self.norm1(regions @ first.unflatten(2, (self.dim, -1))).relu_()  # (B, N, R * R, D)
        x = self.norm2(x @ second.unflatten(2, (-1, self.dim))).relu_()  # (B, N, R * R, C)
        return self.norm3(self.out_layer(x.flatten(2))).relu()  # (B, N, C)


class RoIStage(nn.Module):
    """Let boxes attend to each other and to their regions; then classify and refine them, and predict mask heads."""

    def __init__(
        self, *, dim: int, num_heads: int, ffn_dim: int, dynamic_dim: int, num_classes: int, num_kernel_parameters: int
    ) -> None:
        super().__init__()
        self.self_attn = AttentionBlock(dim, num_heads)
        self.dynamic_conv = DynamicConv(dim, dynamic_dim)
        self.norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, ffn_dim)
        self.time_projection = TimeProjection(dim)
        self.class_branch = _branch(dim, 1)
        self.box_branch = _branch(dim, 3)
        self.class_embed = nn.Linear(dim, num_classes)
        self.box_embed = nn.Linear(dim, 4)
        self.kernel_embed = nn.Linear(dim, num_kernel_parameters)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        # The published code sets every parameter whose last dimension is K or K + 1, such as a 3x3 kernel's for K = 2.
        nn.init.constant_(self.class_embed.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(
        self, queries: Tensor, regions: Tensor, boxes: Tensor, embedding: Tensor
    ) -> tuple[Tensor, BoxPrediction]:
        """Return the queries of the next stage (B, N, C) and this one's prediction.

        Args:
            queries: (B, N, C).
            regions: (B, N, R * R, C) of the boxes.
            boxes: (B, N, 4).
            embedding: of the time (B, 4 C).
        """
        x = self.self_attn(queries, queries.new_zeros(1))  # (B, N, C)
        # The predicted weights, N x 2 C D numbers, are the largest tensor of a stage: made again for the gradient.
        interaction = checkpoint(self.dynamic_conv, x, regions, use_reentrant=False, preserve_rng_state=False)
        x = self.feed_forward(self.norm(x + interaction))
        scale, shift = self.time_projection(embedding)  # (B, 1, C)
        modulated = x * (1 + scale) + shift
        logits = self.class_embed(self.class_branch(modulated))  # (B, N, K)
        refined = self.box_branch(modulated)  # (B, N, C)
        return x, BoxPrediction(logits, apply_deltas(boxes, self.box_embed(refined)), self.kernel_embed(refined))


class RoIDecoder(nn.Module):
    """Refine boxes by stages that do not share weights."""

    def __init__(
        self,
        *,
        dim: int,
        num_stages: int,
        num_heads: int,
        ffn_dim: int,
        dynamic_dim: int,
        num_classes: int,
        num_kernel_parameters: int,
    ) -> None:
        super().__init__()
        self.time_embedding = TimeEmbedding(dim)
        self.stages = nn.ModuleList(
            RoIStage(
                dim=dim,
                num_heads=num_heads,
                ffn_dim=ffn_dim,
                dynamic_dim=dynamic_dim,
                num_classes=num_classes,
                num_kernel_parameters=num_kernel_parameters,
            )
            for _ in range(num_stages)
        )

    def forward(self, cells: PyramidCells, boxes: Tensor, t: Tensor) -> list[BoxPrediction]:
        """Return the predictions of all stages, the last one the result, from boxes (B, N, 4) at times t (B,)."""
        embedding = self.time_embedding(t)  # (B, 4 C)
        predictions: list[BoxPrediction] = []
        queries = None
        for stage in self.stages:
            regions = roi_align(cells, boxes, RESOLUTION)  # (B, N, R * R, C)
            queries = regions.mean(2) if queries is None else queries  # (B, N, C)
            queries, prediction = stage(queries, regions, boxes, embedding)
            predictions.append(prediction)
            boxes = prediction.boxes.detach()
        return predictions


def apply_deltas(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Move boxes (..., 4) by half of the first two deltas times their size, and scale them by exp of the others.

    In float32 always: float16 has steps of a pixel above 1024.
    """
    deltas = deltas.float()
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + size / 2 + deltas[..., :2] / 2 * size
    half = deltas[..., 2:].clamp(max=math.log(MAX_SCALE)).exp() * size / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def _branch(dim: int, num_layers: int) -> nn.Sequential:
    layers = [[nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim), nn.ReLU()] for _ in range(num_layers)]
    return nn.Sequential(*sum(layers, []))
