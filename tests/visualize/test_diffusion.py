"""Sheets and animations of the diffusion: what lies in their cells. Whether they please was judged by looking."""

import numpy as np

from dformer.visualize.diffusion import (
    LayerMaps,
    Objects,
    StepMaps,
    denoising_frames,
    draw_denoising,
    draw_noising,
    noising_frames,
)

IMAGE = np.full((240, 480, 3), (200, 100, 40), np.uint8)
COLORS = [(250, 0, 0), (0, 250, 0)]


def masks() -> np.ndarray:
    halves = np.zeros((2, 240, 480), bool)
    halves[0, :, :240] = halves[1, :, 240:] = True
    return halves


OBJECTS = Objects(IMAGE, masks(), ["cat", "dog"], COLORS)


def step(t: int) -> StepMaps:
    attended = np.array([[[True, False]], [[False, True]]])  # (2, 1, 2)
    layers = [
        LayerMaps(attended, masks(), ["cat 40%", "dog 60%"]),
        LayerMaps(~attended, masks(), ["cat 90%", "dog 80%"]),
    ]
    return StepMaps(t, np.array([[[0.0, 1.0]], [[0.5, 0.5]]]), layers, np.full((240, 480, 3), (t, 0, 250), np.uint8))


def share(picture: np.ndarray, color: tuple[int, int, int]) -> float:
    return float((picture == color).all(axis=2).mean())


def test_denoising_has_two_rows_a_step_and_a_column_a_layer():
    one, two = draw_denoising(IMAGE, [step(7)], COLORS), draw_denoising(IMAGE, [step(7), step(9)], COLORS)
    assert one.shape[1] == two.shape[1] > 3 * 480 and len(two) == 2 * len(one)
    assert (two[: len(one)][:, -480:] == one[:, -480:]).all()
    result = (two == (9, 0, 250)).all(axis=2)
    below = result[len(one) + 100 :, :490]  # the noise
    assert result.sum() == below.sum() == 240 * 480


def test_attention_is_the_image_dark_where_a_layer_does_not_look():
    sheet = draw_denoising(IMAGE, [step(7)], COLORS)
    left, right = [], []  # sides of the lit halves: of the first object, which is on the left, and of the second
    for layer in (sheet[: len(sheet) // 2, 486:972], sheet[: len(sheet) // 2, 972:]):
        lit, dark = (np.nonzero((layer == color).all(axis=2))[1] for color in (IMAGE[0, 0], IMAGE[0, 0] // 4))
        assert len(lit) == len(dark) > 10_000
        left.append(lit[lit < 243].max() < dark[dark < 243].min())
        right.append(lit[lit > 243].min() > dark[dark > 243].max())
    assert left == right == [True, False], "the first layer looks at the objects, the second elsewhere"


def test_noising_has_a_row_a_mask_and_a_column_a_time():
    noisy = [masks()[:, ::60, ::60].astype(float), np.full((2, 4, 8), 0.5), 1 - masks()[:, ::60, ::60]]
    sheet = draw_noising(OBJECTS, noisy, [0, 5, 9])
    column, row = sheet.shape[1] // 4, sheet.shape[0] // 2
    for k in range(2):
        cells = [sheet[k * row : (k + 1) * row, c * column + 3 : (c + 1) * column + 3] for c in range(4)]
        assert share(cells[2], (128, 128, 128)) > 0.8
        for c, bright in ((1, k), (3, 1 - k)):
            y, x = np.nonzero((cells[c] == 0).all(axis=2))
            assert (np.median(x) > column / 2) == (bright == 0), "black is where the mask is not"


def test_frames_have_one_size_and_the_result_comes_with_the_last_layer():
    frames = list(denoising_frames(IMAGE, [step(7), step(9)], COLORS))
    assert len(frames) == 4 and len({frame.shape for frame in frames}) == 1
    assert [share(frame, (7, 0, 250)) > 0.2 for frame in frames] == [False, True, True, False]
    assert share(frames[3], (9, 0, 250)) > 0.2
    noisy = [np.zeros((2, 4, 8)), np.ones((2, 4, 8))]
    frames = list(noising_frames(OBJECTS, noisy, [0, 5]))
    assert len(frames) == 2 and frames[0].shape == frames[1].shape
    assert share(frames[0], (0, 0, 0)) > 0.15 > share(frames[1], (0, 0, 0))


def test_a_system_without_layers_shows_noise_and_result():
    steps = [step(7)._replace(layers=[]), step(9)._replace(layers=[])]
    sheet = draw_denoising(IMAGE, steps, COLORS)
    assert share(sheet, (7, 0, 250)) > 0.2 and share(sheet, (9, 0, 250)) > 0.2
    frames = list(denoising_frames(IMAGE, steps, COLORS))
    assert len(frames) == 2 and share(frames[1], (9, 0, 250)) > 0.4
