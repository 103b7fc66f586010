"""Truth, cut into tiles and merged again, is the truth."""

import pytest
import torch

from dformer.postprocess.queries import InstanceResult, boxes_of
from dformer.postprocess.tiles import InstanceMosaic, PanopticMosaic, SemanticMosaic, Tile, tiles

SIZE = 150, 210
THINGS = [(20, 30, 9), (70, 66, 11), (75, 130, 30), (140, 205, 9), (40, 110, 3)]  # y, x, radius
LAYOUTS = [(64, 24), (64, 0), (300, 24), (50, 35)]


def scene() -> tuple[torch.Tensor, list[dict]]:
    """A panoptic map: two kinds of stuff, and discs."""
    y, x = torch.meshgrid(*map(torch.arange, SIZE), indexing="ij")
    ids = torch.where(x < 100, 1, 2).int()
    segments = [{"id": k, "isthing": False, "category_id": 10 + k, "score": 0.9} for k in (1, 2)]
    for k, (row, column, radius) in enumerate(THINGS, start=3):
        ids[(y - row) ** 2 + (x - column) ** 2 < radius**2] = k
        segments.append({"id": k, "isthing": True, "category_id": k % 2, "score": 0.5 + k / 100})
    return ids, segments


def cut(tile: Tile, ids: torch.Tensor, segments: list[dict]) -> tuple[torch.Tensor, list[dict]]:
    """What a perfect model finds in a tile, with ids of its own."""
    part, found = ids[tile.place], []
    own = torch.zeros_like(part)
    for segment in reversed(segments):
        area = int((part == segment["id"]).sum())
        if area:
            found.append({**segment, "id": len(found) + 1, "area": area})
            own[part == segment["id"]] = len(found)
    return own, found


@pytest.mark.parametrize(("side", "overlap"), LAYOUTS)
def test_tiles_cover_the_image_and_overlap(side: int, overlap: int) -> None:
    owner = torch.full(SIZE, -1)
    found = list(tiles(SIZE, SIZE, side, overlap))
    for k, tile in enumerate(found):
        assert tile.crop == tile.place
        assert owner[tile.place].shape == (min(side, SIZE[0]), min(side, SIZE[1]))
        owner[tile.own] = k
    assert owner.min() >= 0
    widths = sorted({(tile.place[1].start, tile.place[1].stop) for tile in found})
    assert all(before[1] - after[0] >= overlap for before, after in zip(widths, widths[1:], strict=False))
    resized = list(tiles(SIZE, (75, 105), side, overlap))
    assert [tile.crop for tile in resized] == [tile.crop for tile in found]
    assert resized[-1].place[0].stop == 75 and resized[-1].place[1].stop == 105


@pytest.mark.parametrize(("side", "overlap"), [layout for layout in LAYOUTS if layout[1]])
def test_panoptic_maps(side: int, overlap: int) -> None:
    ids, segments = scene()
    mosaic = PanopticMosaic(SIZE)
    for tile in tiles(SIZE, SIZE, side, overlap):
        mosaic.add(tile, cut(tile, ids, segments))
    merged, found = mosaic.result()
    assert sorted(s["category_id"] for s in found) == sorted(s["category_id"] for s in segments)
    assert [s["id"] for s in found] == list(range(1, len(found) + 1))
    for segment in found:
        (truth,) = ids[merged == segment["id"]].unique().tolist()
        assert torch.equal(merged == segment["id"], ids == truth)
        assert segment["area"] == (ids == truth).sum() and segment["category_id"] == segments[truth - 1]["category_id"]


def test_instances() -> None:
    ids, segments = scene()
    mosaic = InstanceMosaic(SIZE, top_k=4)
    for tile in tiles(SIZE, SIZE, 64, 24):
        part, found = cut(tile, ids, [s for s in segments if s["isthing"]])
        masks = (
            torch.stack([part == s["id"] for s in found]) if found else torch.zeros(0, *part.shape, dtype=torch.bool)
        )
        scores, classes = (torch.tensor([s[key] for s in found]) for key in ("score", "category_id"))
        mosaic.add(tile, InstanceResult(masks, boxes_of(masks), scores, classes))
    masks, boxes, scores, classes = mosaic.result()
    best = sorted((s for s in segments if s["isthing"]), key=lambda s: -s["score"])[:4]
    assert torch.equal(masks, torch.stack([ids == s["id"] for s in best]))
    assert torch.equal(boxes, boxes_of(masks)) and classes.tolist() == [s["category_id"] for s in best]
    assert scores.tolist() == pytest.approx([s["score"] for s in best])


def square(tile: Tile, *pieces: tuple[slice, slice, dict]) -> tuple[torch.Tensor, list[dict]]:
    """A tile's panoptic map that has these pieces of the image, and their segments."""
    ids = torch.zeros(SIZE, dtype=torch.int32)
    for k, (rows, columns, _) in enumerate(pieces, start=1):
        ids[rows, columns] = k
    kept = [k for k in range(1, len(pieces) + 1) if (ids[tile.place] == k).any()]
    ids = torch.stack([ids == k for k in kept]).int() * torch.arange(1, len(kept) + 1)[:, None, None] if kept else ids
    segments = [{**pieces[k - 1][2], "id": number, "area": 1} for number, k in enumerate(kept, start=1)]
    return (ids.sum(0).int() if kept else ids)[tile.place], segments


CAT = {"isthing": True, "category_id": 1, "score": 0.9}
DOG = {"isthing": True, "category_id": 2, "score": 0.8}


def merge(shown) -> tuple[torch.Tensor, list[dict]]:
    """The merged map of two tiles of 64, of columns 0 to 64 and 32 to 96."""
    mosaic = PanopticMosaic((64, 96))
    for k, tile in enumerate(tiles((64, 96), (64, 96), 64, 32)):
        mosaic.add(tile, square(tile, *shown[k]))
    return mosaic.result()


def test_a_thing_has_the_mask_of_the_tile_that_it_is_furthest_inside_of() -> None:
    """The second tile sees all of a cat; what the first sees of it is a poor piece, or nothing."""
    whole = slice(20, 40), slice(40, 72), CAT
    for first in (whole[:2] + (DOG,), (slice(20, 40), slice(40, 60), CAT), None):
        merged, (found,) = merge([[first] if first else [], [whole]])
        expected = torch.zeros(64, 96, dtype=torch.int32)
        expected[whole[:2]] = 1
        assert torch.equal(merged, expected) and found["category_id"] == 1 and found["area"] == 20 * 32


def test_what_only_the_tile_further_away_sees_does_not_count() -> None:
    assert merge([[], [(slice(20, 40), slice(36, 46), CAT)]])[1] == []
    assert len(merge([[(slice(20, 40), slice(36, 46), CAT)], []])[1]) == 1


def test_a_large_thing_does_not_become_a_small_one_that_is_like_its_piece() -> None:
    """Where the tiles overlap, the dog, whole in its tile, has most of what is there of the cat, which is larger."""
    cat, dog, other = (
        (slice(20, 40), slice(*x), info) for x, info in (((0, 64), CAT), ((36, 62), DOG), ((70, 90), CAT))
    )
    merged, found = merge([[cat], [dog, other]])
    assert sorted(s["category_id"] for s in found) == [1, 1, 2]
    assert len(merged[30].unique()) == 4 and merged[30, 10] != merged[30, 80]


def test_semantic_scores() -> None:
    scores = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    mosaic = SemanticMosaic(SIZE)
    for tile in tiles(SIZE, SIZE, 64, 24):
        mosaic.add(tile, scores[(slice(None), *tile.place)])
    assert torch.equal(mosaic.result(), scores)


def test_nothing_is_found_anywhere() -> None:
    panoptic, instances = PanopticMosaic(SIZE), InstanceMosaic(SIZE, 5)
    for tile in tiles(SIZE, SIZE, 64, 24):
        nothing = torch.zeros(*torch.zeros(SIZE)[tile.place].shape, dtype=torch.int32)
        panoptic.add(tile, (nothing, []))
        none = torch.zeros(0)
        instances.add(tile, InstanceResult(nothing[None][:0].bool(), none.view(0, 4), none, none.long()))
    assert panoptic.result()[0].max() == 0 and panoptic.result()[1] == [] and len(instances.result().scores) == 0
