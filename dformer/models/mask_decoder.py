"""The masked-attention transformer decoder, of Mask2Former (Cheng et al. 2022, Sec. 3.2) and of DFormer (Sec. 3.2).

Shapes: B images, N queries, K classes, C hidden channels, E channels of the pixel embedding, L layers.
The systems differ in what they start from: learned queries that first predict their own masks (Mask2Former), or
queries and masks from noise and a modulation by the timestep (DFormer).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dformer.layers.attention import CrossAttention, FeedForward, Memory, SelfAttention
from dformer.layers.convolution import convolution
from dformer.layers.embedding import sine_position
from dformer.layers.mlp import mlp
from dformer.layers.resize import resize
from dformer.models.pixel_decoder import PixelFeatures


class Prediction(NamedTuple):
    """`logits` (B, N, K + 1), the last one for "no object", and two embeddings whose products are the mask logits.

    The products are the largest tensors of all, so that they are taken only where somebody looks at them.
    """

    logits: Tensor
    mask_embedding: Tensor  # (B, N, E)
    pixel_embedding: Tensor  # (B, E, H/4, W/4)

    @property
    def masks(self) -> Tensor:
        """Mask logits (B, N, H/4, W/4)."""
        products = torch.bmm(self.mask_embedding, self.pixel_embedding.flatten(2))
        return products.unflatten(2, self.pixel_embedding.shape[-2:])


class Image(NamedTuple):
    """An image as the decoder's layers look at it, the same for all queries."""

    memories: list[Memory]  # of each layer: the cells of its level
    sizes: list[torch.Size]  # h, w of the three levels
    coarse: list[Tensor]  # the pixel embedding at their cells, (B, E, h * w), without gradient
    embedding: Tensor  # (B, E, H/4, W/4)


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.cross_attention = CrossAttention(dim, num_heads)
        self.self_attention = SelfAttention(dim, num_heads)
        self.feed_forward = FeedForward(dim, ffn_dim)

    def forward(self, x: Tensor, pos: Tensor, memory: Memory, mask: Tensor) -> Tensor:
        """`x` (B, N, C), `pos` (N, C), `memory` of S cells, `mask` (B, N, S) -> (B, N, C)."""
        x = self.cross_attention(x, pos, memory, mask)
        return self.feed_forward(self.self_attention(x, pos))

    def remember(self, key: Tensor, value: Tensor) -> Memory:
        """`Attention.remember` of the cross-attention."""
        return self.cross_attention.attention.remember(key, value)


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
        self.input_projections = nn.ModuleList(
            nn.Identity() if in_channels == hidden_dim else convolution(in_channels, hidden_dim, 1) for _ in range(3)
        )
        self.level_embedding = nn.Parameter(torch.randn(3, hidden_dim))
        self.query_position = nn.Parameter(torch.randn(num_queries, hidden_dim))
        self.layers: Sequence[DecoderLayer] = nn.ModuleList(  # type: ignore[assignment]
            DecoderLayer(hidden_dim, num_heads, ffn_dim) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)
        self.class_head = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_head = mlp(hidden_dim, hidden_dim, mask_dim, 3)

    def forward(
        self,
        queries: Tensor,
        image: Image,
        masks: Tensor | None = None,
        modulation: tuple[Tensor, Tensor] | None = None,
    ) -> list[Prediction]:
        """Predictions after each layer, the last one the result.

        Args:
            queries: (B, N, C).
            image: see `look_at`.
            masks: (B, N, h, w), positive inside: where the first layer looks. None: where the queries themselves
                predict; that prediction then comes first in the list.
            modulation: scale and shift (B, 1, C) applied to the queries after each layer.
        """
        predictions = [] if masks is not None else [self.predict(queries, image.embedding)]
        for i, layer in enumerate(self.layers):
            level = i % len(image.sizes)
            if masks is not None and i == 0:
                logits = resize(masks, image.sizes[level]).flatten(2)  # (B, N, S)
            else:
                logits = torch.bmm(predictions[-1].mask_embedding.detach(), image.coarse[level])
            queries = layer(queries, self.query_position, image.memories[i], attention_mask(logits))
            if modulation is not None:
                scale, shift = modulation
                queries = queries * (1 + scale) + shift
            predictions.append(self.predict(queries, image.embedding))
        return predictions

    def look_at(self, features: PixelFeatures) -> Image:
        """What the layers see of an image: the same for all its queries and sampling steps."""
        levels = [
            project(level).flatten(2).mT + embedding  # (B, S, C)
            for project, level, embedding in zip(
                self.input_projections, features.pyramid, self.level_embedding, strict=True
            )
        ]
        sizes = [level.shape[-2:] for level in features.pyramid]
        located = [
            level + sine_position(h, w, self.hidden_dim, level.device).flatten(1).T
            for level, (h, w) in zip(levels, sizes, strict=True)
        ]
        memories = [layer.remember(located[i % 3], levels[i % 3]) for i, layer in enumerate(self.layers)]
        # A mask resized to a level is the product with the resized embedding: all of them are linear.
        coarse = [resize(features.embedding.detach(), size).flatten(2) for size in sizes]  # (B, E, S)
        return Image(memories, sizes, coarse, features.embedding)

    def predict(self, queries: Tensor, embedding: Tensor) -> Prediction:
        """Queries (B, N, C) and pixel embedding (B, E, h, w) -> class logits and masks."""
        x = self.norm(queries)
        return Prediction(self.class_head(x), self.mask_head(x), embedding)


def attention_mask(logits: Tensor) -> Tensor:
    """Where each query may look: masks (B, N, S) at a level's cells, positive inside -> (B, N, S) bool.

    A query whose mask is empty at this level may look everywhere.
    """
    inside = logits >= 0
    return inside | ~inside.any(dim=2, keepdim=True)
