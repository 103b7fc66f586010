"""The contrastive loss of a tracking branch (QDTrack, Pang et al. 2021, Eq. 4 and 5; IDOL, Wu et al. 2022, Eq. 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dformer.losses.normalisers import normaliser

NO_PAIR = -1e4  # a similarity whose exponential is 0


def contrastive_losses(embeddings: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss on dot products, which sets an object's embeddings apart from others', and that on cosines.

    The first is log(1 + sum exp(v.n - v.p)), over the others n and the further embeddings p of the object, a mean over
    all v that have such; the second is the mean squared distance of cosines to 1 and 0, a mean of that over pairs of
    one object and that over pairs of two. QDTrack's negatives are of the second frame; ours are of the whole batch.

    Args:
        embeddings: (M, D), of objects in frames.
        same: (M, M) bool, whether two are of one object.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        return _losses(embeddings.float(), same)


def _losses(embeddings: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    similarity = embeddings @ embeddings.T
    none = similarity.new_full((len(same), 1), NO_PAIR)
    positive, negative = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device), ~same
    pull = torch.cat([torch.where(positive, -similarity, NO_PAIR), none], dim=1).logsumexp(1)  # (M,)
    push = torch.cat([torch.where(negative, similarity, NO_PAIR), none], dim=1).logsumexp(1)
    loss = F.softplus(pull + push).sum() / normaliser(positive.any(1).sum().float(), minimum=1)
    unit = F.normalize(embeddings, dim=1)
    error = (unit @ unit.T - same.float()).square()
    aux = [(error * pairs).sum() / normaliser(pairs.sum().float(), minimum=1) for pairs in (positive, negative)]
    return loss, sum(aux, start=loss.new_zeros(())) / 2
