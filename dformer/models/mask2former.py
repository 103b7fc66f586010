"""Mask2Former (Cheng et al. 2022): learned queries, no diffusion. The baseline."""

import torch
from torch import Tensor, nn

from dformer.models.mask_decoder import MaskDecoder, Prediction
from dformer.models.pixel_decoder import PixelDecoder


class Mask2FormerHead(nn.Module):
    """Predict masks from backbone features with learned queries."""

    def __init__(self, *, pixel_decoder: PixelDecoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.mask_decoder = mask_decoder
        self.query_feat = nn.Parameter(torch.randn_like(mask_decoder.query_embed))

    def forward(self, features: list[Tensor], num_queries: int | None = None) -> list[Prediction]:
        """Return the predictions before the first and after each layer, of the first `num_queries` (None: all)."""
        image = self.mask_decoder.encode_memory(self.pixel_decoder(features))
        queries = self.query_feat[:num_queries].expand(features[0].shape[0], -1, -1)  # (B, N, C)
        return self.mask_decoder(queries, image)
