"""The masked-attention transformer decoder, of Mask2Former (Cheng et al. 2022, Sec. 3.2) and of DFormer (Sec. 3.2).

Shapes: B images, N queries, K classes, C hidden channels, E channels of the mask features, L layers.
The systems start from different inputs: learned queries that first predict their own masks (Mask2Former), or queries
and masks from noise and a modulation by the timestep (DFormer).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dformer.layers.attention import AttentionBlock, Memory
from dformer.layers.convolution import convolution
from dformer.layers.embedding import sine_position
from dformer.layers.feed_forward import FeedForward
from dformer.layers.mlp import mlp
from dformer.layers.resize import resize
from dformer.models.pixel_decoder import PixelFeatures


class Prediction(NamedTuple):
    """Hold `logits` (B, N, K + 1), the last one for "no object", two embeddings whose products are the masks, and the
    normalised queries of which logits and `mask_embed` are made.

    The masks are by far the largest tensors, and are computed only on access.
    """

    logits: Tensor
    mask_embed: Tensor  # (B, N, E)
    mask_features: Tensor  # (B, E, H/4, W/4)
    queries: Tensor  # (B, N, C)

    @property
    def masks(self) -> Tensor:
        """Compute the mask logits (B, N, H/4, W/4)."""
        products = torch.bmm(self.mask_embed, self.mask_features.flatten(2))
        return products.unflatten(2, self.mask_features.shape[-2:])

    def of_image(self, index: int) -> "Prediction":
        """Return the prediction for one image of the batch, as a batch of one."""
        return Prediction(*(x[index : index + 1] for x in self))

    def of_queries(self, rows: Tensor) -> "Prediction":
        """Return the prediction of some queries (M,)."""
        return Prediction(self.logits[:, rows], self.mask_embed[:, rows], self.mask_features, self.queries[:, rows])


class ImageMemory(NamedTuple):
    """Hold what the decoder's layers need of an image, the same for all queries and sampling steps."""

    memories: list[Memory]  # for each layer: the cells of its level
    sizes: list[torch.Size]  # h, w of the three levels
    coarse: list[Tensor]  # the mask features at their cells, (B, E, h * w), without gradient
    mask_features: Tensor  # (B, E, H/4, W/4)

    def with_evidence(self, evidence: Tensor) -> "ImageMemory":
        """Return the memory with maps (B, M * N, h, w), M a query, as further channels of the mask features."""
        evidence = evidence.to(self.mask_features.dtype)
        features = torch.cat([self.mask_features, resize(evidence, self.mask_features.shape[-2:])], dim=1)
        coarse = [
            torch.cat([maps, resize(evidence, size).flatten(2)], dim=1)
            for maps, size in zip(self.coarse, self.sizes, strict=True)
        ]
        return self._replace(mask_features=features, coarse=coarse)


class DecoderLayer(nn.Module):
    """Apply masked cross-attention, self-attention and feed-forward."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.cross_attn = AttentionBlock(dim, num_heads)
        self.self_attn = AttentionBlock(dim, num_heads)
        self.feed_forward = FeedForward(dim, ffn_dim)

    def forward(self, x: Tensor, pos: Tensor, memory: Memory, mask: Tensor) -> Tensor:
        """Update queries `x` (B, N, C) with position `pos` (N, C) from `memory` where `mask` (B, N, S) is True."""
        x = self.cross_attn(x, pos, memory, mask)
        return self.feed_forward(self.self_attn(x, pos))


class MaskDecoder(nn.Module):
    """Refine queries layer by layer, each attending only to the masks predicted by the one before."""

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
        num_evidence: int = 0,
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
        self.evidence_weight = nn.Linear(hidden_dim, num_evidence) if num_evidence else None
        if self.evidence_weight is not None:
            nn.init.zeros_(self.evidence_weight.weight)
            nn.init.constant_(self.evidence_weight.bias, 1 / num_evidence)

    def forward(
        self,
        queries: Tensor,
        image: ImageMemory,
        masks: Tensor | None = None,
        modulation: tuple[Tensor, Tensor] | None = None,
        evidence: Tensor | None = None,
        embedded: Tensor | None = None,
    ) -> list[Prediction]:
        """Return the predictions after each layer; the last one is the result.

        Args:
            queries: (B, N, C), N at most as many as in `query_embed`.
            image: see `encode_memory`.
            masks: (B, N, h, w), positive inside, to which the first layer attends. None: those that the queries
                themselves predict; the returned list then begins with that prediction.
            modulation: scale and shift (B, 1, C) applied to the queries after each layer.
            evidence: (B, M * N, h, w), for a decoder that takes M maps a query: what is known of its mask beside the
                image, as logits; added to the mask with weights that the query predicts (Bayes' rule: 1 in all).
            embedded: (B, N) bool, to which queries the embedding of their slot is added; None: to all.
        """
        image = image if evidence is None else image.with_evidence(evidence)
        query_embed = self.query_embed[: queries.shape[1]]  # (N, C)
        if embedded is not None:
            query_embed = query_embed * embedded[..., None]  # (B, N, C)
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
        """Compute what the layers need of an image, once for all its queries and sampling steps."""
        levels, with_pos_embed, sizes = [], [], []
        for project, x, embedding in zip(self.input_proj, features.multi_scale_features, self.level_embed, strict=True):
            sizes.append(x.shape[-2:])
            levels.append(project(x).flatten(2).mT + embedding)  # (B, S, C)
            position = sine_position(x.shape[-2], x.shape[-1], self.hidden_dim, x.device)
            with_pos_embed.append(levels[-1] + position.flatten(1).T)
        memories = [
            layer.cross_attn.attention.encode_memory(with_pos_embed[i % 3], levels[i % 3])
            for i, layer in enumerate(self.layers)
        ]
        # Resizing is linear: the product with the resized mask features is the resized mask.
        coarse = [resize(features.mask_features.detach(), size).flatten(2) for size in sizes]  # (B, E, S)
        return ImageMemory(memories, sizes, coarse, features.mask_features)

    def predict(self, queries: Tensor, mask_features: Tensor) -> Prediction:
        """Predict class logits and masks from queries (B, N, C) and mask features (B, E, h, w)."""
        x = self.decoder_norm(queries)
        mask_embed = self.mask_embed(x)
        if self.evidence_weight is not None:  # of each query's own maps among the last M * N channels
            own = torch.diag_embed(self.evidence_weight(x).mT)  # (B, M, N, N)
            mask_embed = torch.cat([mask_embed, *own.unbind(1)], dim=2)
        return Prediction(self.class_embed(x), mask_embed, mask_features, x)


def attention_mask(logits: Tensor) -> Tensor:
    """Compute where each query may attend, (B, N, S) bool, from its mask logits (B, N, S) at a level's cells.

    A query whose mask is empty at this level may attend everywhere.
    """
    inside = logits >= 0
    return inside | ~inside.any(dim=2, keepdim=True)


def attended_regions(masks: Tensor, predictions: list[Prediction], sizes: list[torch.Size]) -> list[Tensor]:
    """Compute where each layer attended, (B, N, *size of its level) bool, from a decoder's masks and predictions."""
    before = [masks, *(prediction.masks for prediction in predictions[:-1])]
    levels = [sizes[i % len(sizes)] for i in range(len(before))]
    return [
        attention_mask(resize(logits, size).flatten(2)).unflatten(2, size)
        for logits, size in zip(before, levels, strict=True)
    ]
