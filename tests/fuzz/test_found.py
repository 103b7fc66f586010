"""Inputs that once crashed a reader, took all memory or passed a check."""

import pickle

import pytest
import torch
from pycocotools import mask as rle

from dformer.d2.config import get_cfg, merge_text
from dformer.data.annotations import annotation_reader
from dformer.data.images import read_image, read_panoptic_png, read_size
from dformer.data.segmentations import fault_of
from dformer.utils.errors import UserError
from dformer.utils.files import read_json
from dformer.weights.checkpoint import read_checkpoint
from tests.fuzz import inputs
from tests.fuzz.bounds import address_space, bounded

SQUARE = [1.0, 1.0, 5.0, 1.0, 5.0, 5.0]
EMPTY = rle.frPyObjects({"size": [24, 24], "counts": [576]}, 24, 24)


@pytest.mark.parametrize("coordinate", [float("nan"), float("inf"), 1e9, -1e300])
def test_a_polygon_far_away_crashed_pycocotools(coordinate):
    assert "far outside" in fault_of([SQUARE, [*SQUARE[:5], coordinate]], (24, 24))
    record = {"file_name": "a.jpg", "annotations": [{"segmentation": [[*SQUARE[:5], coordinate]], "category_id": 0}]}
    with pytest.raises(UserError, match="a.jpg"):
        annotation_reader("instance", 1, 255)(record, (24, 24))
    assert fault_of([SQUARE], (24, 24)) == ""


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [10**6, 10**6], "counts": "0"},
        {"size": [24, 24], "counts": [10**12]},
        {"size": [24, 24], "counts": [-5, 581]},
        {"size": None, "counts": "0"},
        {"size": [24, 24], "counts": None},
        "polygon",
        [["a"]],
    ],
)
def test_run_lengths_were_believed(segmentation):
    with address_space(), bounded():
        assert fault_of(segmentation, (24, 24))
    assert not fault_of(EMPTY, (24, 24))


def test_deep_json_overran_the_stack(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="a.json"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("side", [10**5, 2**31 - 1])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "GIF", "JPEG", "WEBP"])
def test_a_header_may_claim_any_size(tmp_path, form, side):
    content = inputs.PICTURES[form]
    file = tmp_path / "a"
    file.write_bytes(inputs.png(side, side) if form == "PNG" else inputs.claiming(content, side))
    with address_space(), bounded():
        read_size(file)
    with address_space(), bounded():
        read_image(file)


def test_formats_that_run_other_programs_are_not_read(tmp_path):
    (tmp_path / "a.jpg").write_bytes(inputs.PICTURES["EPS"])
    with pytest.raises(UserError, match="a.jpg"):
        read_image(tmp_path / "a.jpg")


def test_segment_ids_in_another_format_than_png(tmp_path):
    (tmp_path / "a.png").write_bytes(inputs.PICTURES["JPEG"])  # whose pixels are near what was saved, ids or not
    with pytest.raises(UserError, match="a.png"):
        read_panoptic_png(tmp_path / "a.png")


@pytest.mark.parametrize(
    "text", ["- 1", "2024-99-99", "MODEL: 3", "a: &a\n  b: *a", "!!python/object/apply:os.system [a]"]
)
def test_a_checkpoints_config_that_is_none(text):
    with bounded(), pytest.raises(UserError, match="model.pth"):
        merge_text(get_cfg(), text, "the config in model.pth")


def test_a_tensor_that_repeats_one_number(tmp_path):
    torch.save({"model": {"w": torch.zeros(1).expand(10**6, 10**6)}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match='a.pth.*"w"'):
        read_checkpoint(tmp_path / "a.pth")


def test_a_tensor_without_numbers(tmp_path):
    torch.save({"model": {"w": torch.zeros(3, device="meta")}}, tmp_path / "a.pth")
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / "a.pth")


def test_bytes_in_a_pickle_took_as_much_memory_as_they_were_asked_to(tmp_path):
    call = inputs.call("__builtin__ bytes", 10**11)
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}" + pickle.dumps("model", 2)[2:-1] + call + b"s.")
    with address_space(), bounded(), pytest.raises(UserError, match="a.pkl"):
        read_checkpoint(tmp_path / "a.pkl")
