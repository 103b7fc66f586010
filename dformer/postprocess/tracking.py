"""Tracks of objects through the frames of a video: their state, and how a frame's segments find theirs.

The state is a mask, or an embedding, for each track or query, so memory does not grow with the video.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as rle
from scipy.optimize import linear_sum_assignment
from torch import Tensor

MIN_IOU = 0.2
MIN_COSINE = 0.5  # of the embeddings of a segment and its track
MAX_HIDDEN = 5  # frames


class Tracks(NamedTuple):
    """Hold the tracks that may go on, and the id of the next new one: what each was when last seen, a mask, run-length
    encoded as COCO's, or an embedding; and, of the same length, ids and for how many frames they have been hidden."""

    seen: tuple[Any, ...] = ()
    ids: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    next_id: int = 1

    def advance(self, ids: Sequence[int | None], seen: Sequence[Any]) -> "Advanced":
        """Return the ids of a frame's segments, a new one for each None, and the tracks after the frame.

        A track that is hidden for more than `MAX_HIDDEN` frames has ended.

        Args:
            ids: of the segments' tracks.
            seen: their masks or embeddings.
        """
        new, next_id = [], self.next_id
        for i in ids:
            new.append(next_id if i is None else i)
            next_id += i is None
        kept = [k for k, i in enumerate(self.ids) if i not in new and self.hidden[k] < MAX_HIDDEN]
        tracks = Tracks(
            (*seen, *(self.seen[k] for k in kept)),
            (*new, *(self.ids[k] for k in kept)),
            (*(0 for _ in new), *(self.hidden[k] + 1 for k in kept)),
            next_id,
        )
        return new, tracks

    def of_size(self, size: tuple[int, int]) -> "Tracks":
        """Return the tracks whose masks are of this height and width; the others have ended."""
        return self.of([k for k, mask in enumerate(self.seen) if tuple(mask["size"]) == size])

    def first(self, count: int) -> "Tracks":
        """Return at most so many tracks, those that were seen last; the others have ended."""
        return self.of(range(min(count, len(self.ids))))

    def of(self, kept: Sequence[int]) -> "Tracks":
        """Return the tracks at these places in the tuples."""
        seen = tuple(self.seen[k] for k in kept)
        return Tracks(seen, tuple(self.ids[k] for k in kept), tuple(self.hidden[k] for k in kept), self.next_id)


Advanced = tuple[list[int], Tracks]


def encode_masks(masks: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Encode masks (S, H, W) as compressed RLEs."""
    encoded: list[dict[str, Any]] = rle.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8))
    return encoded


def associate(tracks: Tracks, masks: NDArray[np.bool_]) -> Advanced:
    """Return the track ids of a frame's segments, and the tracks after it: association by overlap, the baseline.

    A segment that no track overlaps begins one. The class does not matter: that of an object is more often wrong in a
    frame than two objects change places (docs/video.md).

    Args:
        tracks: those of the frame before; `Tracks()` at the first.
        masks: (S, H, W).
    """
    return tracks.advance(find_tracks(tracks, masks), encode_masks(masks))


def find_tracks(tracks: Tracks, masks: NDArray[np.bool_], min_iou: float = MIN_IOU) -> list[int | None]:
    """Return the id of the track that each of a frame's segments overlaps, or None.

    Segments and tracks are assigned to each other by the largest sum of IoU.

    Args:
        tracks: those of the frame before.
        masks: (S, H, W). Tracks with masks of another size overlap none.
        min_iou: of a segment and its track.
    """
    found = encode_masks(masks)
    iou = np.zeros((len(found), len(tracks.ids)))
    if iou.size:
        iou[:] = rle.iou(found, list(tracks.seen), [0] * len(tracks.ids))  # -1 for another size
    ids: list[int | None] = [None] * len(found)
    for segment, track in zip(*linear_sum_assignment(iou, maximize=True), strict=True):
        if iou[segment, track] >= min_iou:
            ids[segment] = tracks.ids[track]
    return ids


def associate_embeddings(tracks: Tracks, embeddings: Tensor) -> Advanced:
    """Return the track ids of a frame's segments, and the tracks after it, by their embeddings.

    Segments and tracks are assigned to each other by the largest sum of cosines, which a tracking branch learns to be 1
    for one object and 0 for two. (QDTrack's bi-softmax takes the only track for the only segment, whatever they are.)

    Args:
        tracks: those of the frame before; `Tracks()` at the first.
        embeddings: (S, D), float32.
    """
    ids: list[int | None] = [None] * len(embeddings)
    if tracks.ids and ids:
        cosine = (F.normalize(embeddings, dim=1) @ F.normalize(torch.stack(tracks.seen), dim=1).T).cpu().numpy()
        for segment, track in zip(*linear_sum_assignment(cosine, maximize=True), strict=True):
            if cosine[segment, track] >= MIN_COSINE:
                ids[segment] = tracks.ids[track]
    return tracks.advance(ids, embeddings.unbind())


def match_queries(before: Tensor | None, now: Tensor) -> tuple[list[int], Tensor]:
    """Return the slot of each query, and the embeddings by slot (MinVIS, Huang et al. 2022, Sec. 3.2).

    Queries of two frames are assigned to each other by the largest sum of cosine similarities of their embeddings; a
    query takes the slot of its partner, and the queries of the first frame are the slots.

    Args:
        before: (N, C), by slot, of the frame before; None at the first.
        now: (N, C), by query.
    """
    if before is None:
        return list(range(len(now))), now
    similarity = F.normalize(before, dim=1) @ F.normalize(now, dim=1).T  # (slots, queries)
    _, queries = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
    order = torch.from_numpy(queries)
    return order.argsort().tolist(), now[order.to(now.device)]
