"""The residual feed-forward block, normalised after the sum, as in DETR and Mask2Former."""

import torch.nn.functional as F
from torch import Tensor, nn


class FeedForward(nn.Module):
    """Transform each cell or query by two linear layers with ReLU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        self.norm = nn.LayerNorm(dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (..., C) into the same shape."""
        return self.norm(x + self.linear2(F.relu_(self.linear1(x))))
