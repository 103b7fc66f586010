"""Items in one block of memory."""

import pickle

import pytest

from dformer.data.packed import PackedList, pack


def test_items_come_back_and_are_copies():
    items = [{"file_name": "a.jpg", "segments_info": [{"id": 3}]}, [], "text", {"annotations": [1.5]}]
    packed: PackedList = PackedList(pack(items))
    assert len(packed) == 4 and [*packed] == items and packed[-1] == items[-1]
    packed[0]["file_name"] = "other"
    assert packed[0] == items[0]
    with pytest.raises(IndexError):
        packed[4]


def test_no_items():
    assert [*PackedList(pack([]))] == []


def test_a_hundred_thousand_records_are_few_objects():
    """As many as COCO has: one block, not a million Python objects; and it can be sent to a process that is spawned."""
    packed: PackedList = PackedList(pack({"image_id": k} for k in range(1000)))
    assert len(pickle.dumps(packed)) < 60_000
    assert pickle.loads(pickle.dumps(packed))[999] == {"image_id": 999}
