"""The tracking branch: embeddings by which an object is known in other frames (DFormer, Appendix B).

The paper says no more of it; head and losses are those of QDTrack (Pang et al. 2021) and IDOL (Wu et al. 2022).
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from dformer.layers.mlp import mlp
from dformer.losses.tracking import contrastive_losses


class TrackingBranch(nn.Module):
    """Embed queries, so that those of one object are alike in all frames.

    Args:
        query_dim: C.
        embed_dim: D.
        weight, aux_weight: of the losses on dot products and on cosines.
    """

    def __init__(self, query_dim: int, embed_dim: int, weight: float, aux_weight: float) -> None:
        super().__init__()
        self.track_embed = mlp(query_dim, query_dim, embed_dim, 3)
        self.weights = weight, aux_weight

    def forward(self, queries: Tensor) -> Tensor:
        """Return the embeddings (..., D) of a decoder's queries (..., C)."""
        embeddings: Tensor = self.track_embed(queries)
        return embeddings

    def losses(
        self, queries: Tensor, costs: Sequence[Tensor], tracks: Sequence[Sequence[Hashable | None]]
    ) -> dict[str, Tensor]:
        """Return `loss_track` and `loss_track_aux`, weighted, see `contrastive_losses`.

        An object's query is the one that costs least; it need not be the one that it is matched with, where another
        object takes that.

        Args:
            queries: (B, N, C).
            costs: of each image, (1, N, G) as for matching.
            tracks: of each image, what its G objects are known by; None for those that are not embedded.
        """
        kept = [[k for k, track in enumerate(of_image) if track is not None] for of_image in tracks]
        known = [track for of_image in tracks for track in of_image if track is not None]
        device = queries.device
        rows = [
            cost[0].argmin(0)[torch.tensor(k, dtype=torch.int64).to(device, non_blocking=True)]  # (M_b,)
            for cost, k in zip(costs, kept, strict=True)
        ]
        embeddings = self(torch.cat([of_image[row] for of_image, row in zip(queries, rows, strict=True)]))
        numbers = torch.tensor([known.index(track) for track in known], dtype=torch.int64)
        same = (numbers[:, None] == numbers).to(device, non_blocking=True)
        loss, aux = contrastive_losses(embeddings, same)
        return {"loss_track": self.weights[0] * loss, "loss_track_aux": self.weights[1] * aux}
