"""The masked-attention transformer decoder, of Mask2Former (Cheng et al. 2022, Sec. 3.2) and of DFormer (Sec. 3.2).

Shapes: B images, N queries, K classes, C hidden channels, E channels of the pixel embedding, L layers.
The systems differ in what they start from: learned queries that first predict their own masks (Mask2Former), or
queries and masks from noise and a modulation by the timestep (DFormer).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dformer.layers.attention import CrossAttention, Memory, SelfAttention
from dformer.layers.convolution import convolution
from dformer.layers.embedding import sine_position
from dformer.layers.feed_forward import FeedForward
from dformer.layers.mlp import mlp
from dformer.layers.resize import resize
from dformer.models.pixel_decoder import PixelFeatures


class Prediction(NamedTuple):
    """`logits` (B, N, K + 1), the last one for "no object", and two embeddings whose products are the mask logits.

    The products are the largest tensors of all, so that they are taken only where somebody looks at them.
    """

    logits: Tensor
    mask_embed: Tensor  # (B, N, E)
    mask_features: Tensor  # (B, E, H/4, W/4)

    @property
    def masks(self) -> Tensor:
        """Mask logits (B, N, H/4, W/4)."""
        products = torch.bmm(self.mask_embed, self.mask_features.flatten(2))
        return products.unflatten(2, self.mask_features.shape[-2:])

    def of_image(self, index: int) -> "Prediction":
        """Return the prediction for one image of the batch, as a batch of one."""
        return Prediction(*(x[index : index + 1] for x in self))

    def of_queries(self, rows: Tensor) -> "Prediction":
        """Return the prediction of some queries (M,)."""
        return Prediction(self.logits[:, rows], self.mask_embed[:, rows], self.mask_features)


class ImageMemory(NamedTuple):
    """An image as the decoder's layers look at it, the same for all queries."""

    memories: list[Memory]  # of each layer: the cells of its level
    sizes: list[torch.Size]  # h, w of the three levels
    coarse: list[Tensor]  # the pixel embedding at their cells, (B, E, h * w), without gradient
    mask_features: Tensor  # (B, E, H/4, W/4)


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.cross_attn = CrossAttention(dim, num_heads)
        self.self_attn = SelfAttention(dim, num_heads)
        self.feed_forward = FeedForward(dim, ffn_dim)

    def forward(self, x: Tensor, pos: Tensor, memory: Memory, mask: Tensor) -> Tensor:
        """`x` (B, N, C), `pos` (N, C), `memory` of S cells, `mask` (B, N, S) -> (B, N, C)."""
        x = self.cross_attn(x, pos, memory, mask)
        return self.feed_forward(self.self_attn(x, pos))

    def encode_memory(self, key: Tensor, value: Tensor) -> Memory:
        """`Attention.encode_memory` of the cross-attention."""
        return self.cross_attn.attention.encode_memory(key, value)


class MaskDecoder(nn.Module):
    """Refines queries layer by layer, each layer looking only where the masks so far are."""

    def __init__(
        self,
        *,
        in_channels: int,
        mask_dim: int,
        num_classes: int,
        num_queries: int,
        hidden_dim: int,
        num_heads: int,
        ffn_dim: int,
        num_layers: int,
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.input_proj = nn.ModuleList(
            nn.Identity() if in_channels == hidden_dim else convolution(in_channels, hidden_dim, 1) for _ in range(3)
        )
        self.level_embed = nn.Parameter(torch.randn(3, hidden_dim))
        self.query_embed = nn.Parameter(torch.randn(num_queries, hidden_dim))
        self.layers: Sequence[DecoderLayer] = nn.ModuleList(  # type: ignore[assignment]
            DecoderLayer(hidden_dim, num_heads, ffn_dim) for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = mlp(hidden_dim, hidden_dim, mask_dim, 3)

    def forward(
        self,
        queries: Tensor,
        image: ImageMemory,
        masks: Tensor | None = None,
        modulation: tuple[Tensor, Tensor] | None = None,
    ) -> list[Prediction]:
        """Predictions after each layer, the last one the result.

        Args:
            queries: (B, N, C).
            image: see `encode_memory`.
            masks: (B, N, h, w), positive inside: where the first layer looks. None: where the queries themselves
                predict; that prediction then comes first in the list.
            modulation: scale and shift (B, 1, C) applied to the queries after each layer.
        """
        query_embed = self.query_embed[: queries.shape[1]]
        predictions = [] if masks is not None else [self.predict(queries, image.mask_features)]
        for i, layer in enumerate(self.layers):
            level = i % len(image.sizes)
            if masks is not None and i == 0:
                logits = resize(masks, image.sizes[level]).flatten(2)  # (B, N, S)
            else:
                logits = torch.bmm(predictions[-1].mask_embed.detach(), image.coarse[level])
            queries = layer(queries, query_embed, image.memories[i], attention_mask(logits))
            if modulation is not None:
                scale, shift = modulation
                queries = queries * (1 + scale) + shift
            predictions.append(self.predict(queries, image.mask_features))
        return predictions

    def encode_memory(self, features: PixelFeatures) -> ImageMemory:
        """What the layers see of an image: the same for all its queries and sampling steps."""
        levels = [
            project(level).flatten(2).mT + embedding  # (B, S, C)
            for project, level, embedding in zip(
                self.input_proj, features.multi_scale_features, self.level_embed, strict=True
            )
        ]
        sizes = [level.shape[-2:] for level in features.multi_scale_features]
        located = [
            level + sine_position(h, w, self.hidden_dim, level.device).flatten(1).T
            for level, (h, w) in zip(levels, sizes, strict=True)
        ]
        memories = [layer.encode_memory(located[i % 3], levels[i % 3]) for i, layer in enumerate(self.layers)]
        # A mask resized to a level is the product with the resized embedding: all of them are linear.
        coarse = [resize(features.mask_features.detach(), size).flatten(2) for size in sizes]  # (B, E, S)
        return ImageMemory(memories, sizes, coarse, features.mask_features)

    def predict(self, queries: Tensor, mask_features: Tensor) -> Prediction:
        """Queries (B, N, C) and pixel embedding (B, E, h, w) -> class logits and masks."""
        x = self.decoder_norm(queries)
        return Prediction(self.class_embed(x), self.mask_embed(x), mask_features)


def attention_mask(logits: Tensor) -> Tensor:
    """Where each query may look: masks (B, N, S) at a level's cells, positive inside -> (B, N, S) bool.

    A query whose mask is empty at this level may look everywhere.
    """
    inside = logits >= 0
    return inside | ~inside.any(dim=2, keepdim=True)


def attended_regions(masks: Tensor, predictions: list[Prediction], sizes: list[torch.Size]) -> list[Tensor]:
    """Where each layer looked, told afterwards from what a decoder was given and what it predicted.

    Args:
        masks: (B, N, h, w), as given to `MaskDecoder.forward`.
        predictions: after each layer.
        sizes: of the pyramid's levels, from stride 32 on.

    Returns:
        For each layer (B, N, *size of its level) bool.
    """
    before = [masks, *(prediction.masks for prediction in predictions[:-1])]
    regions = []
    for i, logits in enumerate(before):
        size = sizes[i % len(sizes)]
        regions.append(attention_mask(resize(logits, size).flatten(2)).unflatten(2, size))
    return regions
