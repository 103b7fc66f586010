"""Transformer layers that normalise before each block, as in ViT, Pix2Seq and Pix2Seq-D."""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from dformer.layers.attention import Attention, Memory
from dformer.layers.mlp import xavier_linear


class PreNormLayer(nn.Module):
    """Attend to itself, to a memory (only with `cross_attention`), and transform each token.

    Args:
        dropout: of the feed-forward block's hidden units, in training.
        drop_path: probability that a block of an image is skipped, in training.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        *,
        cross_attention: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attn_norm = nn.LayerNorm(dim, eps=1e-6)
        self.self_attn = Attention(dim, num_heads)
        self.cross_attn_norm = nn.LayerNorm(dim, eps=1e-6) if cross_attention else None
        self.cross_attn = Attention(dim, num_heads) if cross_attention else None
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-6)
        self.linear1 = xavier_linear(dim, ffn_dim)
        self.linear2 = xavier_linear(ffn_dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        """Transform tokens (B, N, C); `memory` is what `encode_memory` made of others."""
        y = self.self_attn_norm(x)
        x = x + self.drop_path(self.self_attn(y, self.self_attn.encode_memory(y, y)))
        if self.cross_attn and self.cross_attn_norm and memory:
            x = x + self.drop_path(self.cross_attn(self.cross_attn_norm(x), memory))
        hidden = self.dropout(F.gelu(self.linear1(self.ffn_norm(x))))
        return x + self.drop_path(self.linear2(hidden))

    def encode_memory(self, tokens: Tensor) -> Memory:
        """Project tokens (B, S, C) to the keys and values of the cross-attention."""
        assert self.cross_attn
        return self.cross_attn.encode_memory(tokens, tokens)
