"""Maps of classes and ids as bits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dformer.signals import bits as b
from dformer.signals.masks import to_signal


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 12), st.integers(0, 99))
def test_integers_and_back(num_bits, seed):
    values = torch.randint(2**num_bits, (2, 3, 5), generator=generator(seed))
    bits = b.int_to_bits(values, num_bits)
    assert bits.shape == (2, num_bits, 3, 5)
    assert torch.equal(b.bits_to_int(bits > 0.5), values)
    assert torch.equal(b.bits_to_int(to_signal(bits, 0.1) > 0), values)


def test_the_least_significant_bit_comes_first():
    assert b.int_to_bits(torch.tensor([[6]]), 4)[:, 0, 0].tolist() == [0, 1, 1, 0]


def test_void_is_halfway():
    bits = b.int_to_bits(torch.tensor([[3, 0]]), 2, void=0)
    assert bits[:, 0, 0].tolist() == [1, 1] and bits[:, 0, 1].tolist() == [0.5, 0.5]
    assert to_signal(bits, 0.7)[:, 0, 1].tolist() == [0, 0]


def test_expected_bits():
    values = torch.randint(8, (4, 6), generator=generator())
    certain = torch.nn.functional.one_hot(values, 8).movedim(2, 0).float()
    assert torch.equal(b.expected_bits(certain), b.int_to_bits(values, 3))
    torch.testing.assert_close(b.expected_bits(torch.full((8, 1, 1), 1 / 8)), torch.full((3, 1, 1), 0.5))
    mixed = 0.25 * certain + 0.75 * certain.flip(0)  # 7 - k has the other bits
    torch.testing.assert_close(b.expected_bits(mixed), 0.75 - 0.5 * b.int_to_bits(values, 3))


@pytest.mark.parametrize(("order", "highest"), [("random", 9), ("shuffle", 4)])
def test_ids_are_drawn_anew_for_each_image(order, highest):
    drawn = [b.draw_ids(torch.zeros(1, 1), 4, 10, order, generator(seed)).tolist() for seed in range(60)]
    assert all(len(set(ids)) == 4 for ids in drawn)
    assert {i for ids in drawn for i in ids} == set(range(1, highest + 1))
    assert len(set(map(tuple, drawn))) > 10


def test_ids_by_the_place_in_the_image():
    panoptic_map = torch.zeros(40, 60, dtype=torch.int64)
    panoptic_map[:8, :8], panoptic_map[32:, 50:], panoptic_map[32:, 55:] = 1, 2, 3
    ids = b.draw_ids(panoptic_map, 3, 7, "grid", generator())  # two rows of three cells
    assert ids.tolist() == [1, 6, 5]  # the last one's cell is taken
    flipped = b.draw_ids(panoptic_map.flip(1), 3, 7, "grid", generator())
    assert flipped.tolist() == [3, 4, 5]


def test_ids_by_the_class_of_stuff():
    stuff = b.stuff_classes([True, False, True, False])  # things and stuff in turns
    panoptic_map = torch.tensor([[1, 1, 2, 2], [3, 3, 3, 4]])
    for shift in range(4):
        ids = b.draw_ids(panoptic_map.roll(shift, 1), 4, 7, "grid", generator(), stuff[[0, 3, 1, 2]])
        assert ids[[2, 1]].tolist() == [5, 6] and len(set(ids.tolist())) == 4


@pytest.mark.parametrize("order", b.ID_ORDERS)
def test_objects_beyond_the_ids_are_left_out(order):
    panoptic_map = torch.arange(6).view(2, 3)
    ids = b.draw_ids(panoptic_map, 5, 4, order, generator())
    assert sorted(ids.tolist()) == [0, 0, 1, 2, 3]
    labels = b.label_map(panoptic_map, torch.tensor([7, 8, 9, 7, 8]), ids)
    assert torch.equal(labels[1].flatten()[1:], ids)
    assert torch.equal(labels[0].flatten(), torch.cat([ids.new_zeros(1), torch.tensor([8, 9, 10, 8, 9]) * (ids > 0)]))


def test_an_image_without_objects():
    ids = b.draw_ids(torch.zeros(2, 2, dtype=torch.int64), 0, 4, "random", generator())
    assert not b.label_map(torch.zeros(2, 2, dtype=torch.int64), ids, ids).any()


@pytest.mark.golden
def test_golden_bits(golden_dir):
    golden = load_file(golden_dir / "pix2seqd_bits.safetensors")
    num_bits, scale = golden["config.n_bits"].item() // 2, golden["config.b_scale"].item()

    def to_bits(maps):
        return to_signal(b.int_to_bits(maps.movedim(-1, 1), num_bits).flatten(1, 2), scale).movedim(1, -1)

    torch.testing.assert_close(to_bits(golden["label_map"]), golden["bits"], rtol=0, atol=1e-7)
    torch.testing.assert_close(to_bits(golden["cond_map"]), golden["cond_bits"], rtol=0, atol=1e-7)
    decoded = b.bits_to_int(golden["analog"].movedim(-1, 1).unflatten(1, (2, num_bits)) > 0)
    limits = torch.tensor([golden["config.num_classes"].item(), golden["config.max_instances"].item()])
    assert torch.equal(decoded.clamp(max=limits[:, None, None] - 1).movedim(1, -1).int(), golden["panoptic"])


@pytest.mark.golden
@pytest.mark.parametrize("order", ["shuffle", "random"])
def test_golden_labels(golden_dir, order):
    """The published permutations give the published ids."""
    golden = load_file(golden_dir / "pix2seqd_labels.safetensors")
    ids, permutation = golden["ids"][..., 0].long(), golden[f"{order}.permutation"].long()
    count = ids.max().item()
    labels = torch.stack([b.label_map(frame, torch.zeros(count).long(), permutation[:count]) for frame in ids])
    assert torch.equal(labels[:, 1].int(), golden[f"{order}.output"][..., 0])
    highest = golden["config.max_instances"].item() - 1 if order == "random" else count
    assert sorted(permutation.tolist()) == list(range(1, highest + 1))


@pytest.mark.golden
def test_golden_ldmseg_bits(golden_dir):
    golden = load_file(golden_dir / "ldmseg_bits.safetensors")
    for num_bits in sorted({int(key.split(".")[0]) for key in golden}):
        found = {key.split(".")[1]: x for key, x in golden.items() if key.startswith(f"{num_bits}.")}
        bits = b.int_to_bits(found["ids"], num_bits, void=0)
        assert torch.equal(bits, found["bits"])
        assert torch.equal(found["ids"] == 0, found["ignored"])
        assert torch.equal(b.bits_to_int(2 * bits - 1 > 0), found["decoded"])
        assert torch.equal(b.bits_to_int(found["noisy_signal"] > 0), found["decoded_noisy"])
