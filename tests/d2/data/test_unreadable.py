"""Images that go missing in the middle of a run, and workers that are killed."""

import logging
import os
import signal
from functools import partial

import numpy as np
import pytest
from detectron2.data import MapDataset, build_detection_test_loader
from PIL import Image
from torch.utils.data import DataLoader

from dformer.d2.data.unreadable import count_unreadable, map_or_replace, map_or_stop, workers_explained
from dformer.data.images import read_image
from dformer.utils.errors import UserError


@pytest.fixture
def records(tmp_path):
    files = [tmp_path / f"{k}.png" for k in range(8)]
    for k, file in enumerate(files):
        Image.fromarray(np.full((4, 4, 3), k, np.uint8)).save(file)
    return [{"file_name": str(file)} for file in files]


def mapper(record):
    return {"value": int(read_image(record["file_name"])[0, 0, 0])}


def batches(records, limit, workers=0, epochs=2):
    """Of two images, in the order of the records."""
    map_record = partial(map_or_replace, mapper=mapper, records=records, max_unreadable=limit)
    dataset = MapDataset(epochs * records, map_record)
    stream = DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=list)
    return [[item["value"] for item in batch] for batch in count_unreadable(stream, limit)]


def test_another_image_takes_the_place_always_the_same(records, caplog):
    whole = batches(records, 1)
    os.remove(records[2]["file_name"])
    with caplog.at_level(logging.WARNING, "dformer"):
        once, again, by_workers = batches(records, 1), batches(records, 1), batches(records, 1, workers=2)
    assert once == again == by_workers
    assert whole[1] == [2, 3] and once[1] == once[5] != whole[1]  # in both epochs
    assert once[1][1] == 3 and [*once[:1], *once[2:5]] == [*whole[:1], *whole[2:5]]
    assert len(caplog.records) == 3  # once a run, though met in each epoch
    assert "2.png" in caplog.text and "1 so far" in caplog.text


def test_training_stops_at_too_many(records):
    for k in (2, 5, 7):
        os.remove(records[k]["file_name"])
    assert len(batches(records, 3)) == 8
    with pytest.raises(UserError, match=r"(?s)MAX_UNREADABLE(?=.*2\.png)(?=.*5\.png)(?=.*7\.png)"):
        batches(records, 2)


def test_training_stops_when_all_are_gone(records):
    for record in records:
        os.remove(record["file_name"])
    with pytest.raises(UserError, match="MAX_UNREADABLE"), workers_explained():
        batches(records, 3, workers=1)


def test_an_unreadable_image_ends_an_evaluation_with_its_name(records):
    os.remove(records[2]["file_name"])
    loader = build_detection_test_loader(records, mapper=partial(map_or_stop, mapper=mapper), num_workers=1)
    with pytest.raises(UserError) as caught, workers_explained():
        list(loader)
    assert records[2]["file_name"] in str(caught.value) and "Traceback" not in str(caught.value)


def test_a_killed_worker_is_explained(records):
    def dies(record):
        os.kill(os.getpid(), signal.SIGKILL)

    loader = build_detection_test_loader(records, mapper=dies, num_workers=1)
    with pytest.raises(UserError, match="DATALOADER.NUM_WORKERS"), workers_explained():
        list(loader)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="of ours"), workers_explained():
        raise RuntimeError("a bug of ours")
    with pytest.raises(UserError, match="of the user"), workers_explained():
        raise UserError("a mistake of the user")
