"""Panoptic quality by size, by hand; on real annotations against panopticapi's: tests/apps/test_report.py."""

import pytest

from dformer.metrics.segments import MatchedSegment, quality_by_size


def test_quality_by_size_counts_a_false_segment_by_its_own_size():
    segments = [
        MatchedSegment(0, 0, 0.8, 0.9, 100),
        MatchedSegment(0, None, 0.0, None, 5000),
        MatchedSegment(None, 0, 0.0, 0.5, 20000),
        MatchedSegment(0, 0, 0.6, 0.9, 20000),
    ]
    by_size = quality_by_size(segments, {0: {"name": "cat", "isthing": True}})
    assert [by_size[size]["PQ"] for size in by_size] == pytest.approx([80, 0, 60 / 1.5, 140 / 3])
    assert [by_size[size]["segments"] for size in by_size] == [1, 1, 1, 3]
