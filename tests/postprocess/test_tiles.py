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
