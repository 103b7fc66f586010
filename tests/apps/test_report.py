"""The report of saved predictions: its numbers by hand, and against panopticapi's on real annotations."""

import re
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.builtin import register_all_coco
from PIL import Image

from dformer.apps.report import analysis, read_run
from dformer.d2.config import get_cfg
from dformer.visualize import Style
from tests import run_script
from tests.d2.evaluation.oracle import (
    CAT,
    DOG,
    SEA,
    SIZE,
    SKY,
    Results,
    block,
    evaluate,
    perfect_output,
    perturb,
    read_segments,
    register,
    rest,
    write_dataset,
)

pytestmark = pytest.mark.usefixtures("empty_catalogs")

TRUE_CAT, TRUE_DOG, LOST_CAT = block(CAT, 0, 0), block(DOG, 0, 10), block(CAT, 0, 0)
TRUE_SKY, FALSE_DOG = rest(SKY, TRUE_CAT, TRUE_DOG), block(DOG, 10, 30)
TRUTH = [[TRUE_CAT, TRUE_DOG, TRUE_SKY], [LOST_CAT, rest(SEA, LOST_CAT)]]
# The dog is mistaken for a cat, a cat is missed, and a dog predicted where there is none.
PREDICTED = [
    [TRUE_CAT._replace(score=0.9), TRUE_DOG._replace(category_id=CAT, score=0.6), TRUE_SKY._replace(score=0.8)],
    [FALSE_DOG._replace(score=0.7), rest(SEA, FALSE_DOG)._replace(score=0.8)],
]


def write_run(output_dir: Path, name: str, pairs, tasks=("panoptic", "instance", "semantic"), steps=1) -> Results:
    """Predictions with their config, as a run leaves them; returns the evaluator's results."""
    folder = output_dir / "inference" / name
    results = evaluate(name, pairs, folder, tasks)
    cfg = get_cfg()
    cfg.TEST.TASKS = tuple(tasks)
    cfg.DIFFUSION.SAMPLING_STEPS = steps
    (folder / "config.yaml").write_text("# python tools/train_net.py --eval-only\n" + cfg.dump())
    return results


@pytest.fixture
def animals(tmp_path):
    """Inputs of the small data set "animals", its images black."""
    inputs = write_dataset("animals", tmp_path / "data", TRUTH)
    for image in inputs:
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "data" / image["file_name"])
    return inputs


def predicted(inputs: list[dict]):
    return [(image, perfect_output(segments, SIZE, 4)) for image, segments in zip(inputs, PREDICTED, strict=True)]


def test_by_hand(animals, tmp_path):
    results = write_run(tmp_path / "run", "animals", predicted(animals))
    run = read_run(tmp_path / "run")
    found = analysis.analyze(run, "animals")
    assert found.metrics == results
    expected = np.zeros((5, 5), int)  # the last row and column stand for nothing
    for true, guess in [(CAT, CAT), (DOG, CAT), (SKY, SKY), (SEA, SEA), (CAT, 4), (4, DOG)]:
        expected[true, guess] = 1
    assert found.confusion.tolist() == expected.tolist()
    # Of 3 segments, 2 are right; of 2, one with an IoU of 600 / 800.
    assert list(found.qualities.values()) == pytest.approx([100 * 2 / 3, 100 * 0.75 / 2])
    assert [Path(file).name for file in analysis.rank_images(found.qualities)] == ["000002.jpg", "000001.jpg"]
    assert found.calibrations["segments"].error == pytest.approx((0.1 + 0.6 + 0.7 + 2 * 0.2) / 5)
    assert found.calibrations["instances"].error == pytest.approx((0.1 + 0.6 + 0.7) / 3)
    assert found.by_size["all"]["PQ"] == pytest.approx(results["panoptic_seg"]["PQ"])
    assert found.by_size["small (< 32 x 32)"]["segments"] == 5


def test_panoptic_quality_is_panopticapis_on_real_annotations(data_dir, tmp_path):
    register_all_coco(str(data_dir / "coco_panoptic"))
    name = "coco_2017_train_panoptic"
    records = DatasetCatalog.get(name)
    with_crowds = [r for r in records if any(s["iscrowd"] for s in r["segments_info"])]
    DatasetCatalog.remove(name)
    DatasetCatalog.register(name, lambda: with_crowds + records[:4])

    rng = np.random.default_rng(0)
    changed = ((record, perturb(read_segments(record), rng)) for record in DatasetCatalog.get(name))
    pairs = ((record, perfect_output(segments, segments[0].mask.shape, 133)) for record, segments in changed)
    results = write_run(tmp_path, name, pairs, ("panoptic",))["panoptic_seg"]
    by_size = analysis.analyze(read_run(tmp_path), name).by_size
    assert 20 < results["PQ"] < 80
    for metric in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"):
        assert by_size["all"][metric] == pytest.approx(results[metric], abs=1e-9)
    assert sum(by_size[size]["segments"] for size in by_size) == 2 * by_size["all"]["segments"]


@pytest.mark.parametrize(("task", "best"), [("instance", [50, 0]), ("semantic", [100 * (1 / 2 + 0 + 1) / 3, 37.5])])
def test_tasks_alone(animals, tmp_path, task, best):
    write_run(tmp_path / "run", "animals", predicted(animals), (task,))
    found = analysis.analyze(read_run(tmp_path / "run"), "animals")
    assert found.task == task
    assert list(found.qualities.values()) == pytest.approx(best)
    height, width, _ = found.draw(next(iter(found.qualities))).shape
    assert height > 8 * SIZE[0] and width > 3 * 8 * SIZE[1], "three pictures, enlarged"
    bare = analysis.analyze(read_run(tmp_path / "run"), "animals", Style(labels=False))
    labelled, without = (each.draw(next(iter(found.qualities))) for each in (found, bare))
    assert labelled.shape == without.shape and (labelled != without).any()
    if task == "semantic":
        assert found.confusion[DOG, CAT] == 100 and found.confusion.sum() == 2 * 800
        assert not found.calibrations and not found.by_size


def test_a_page_of_two_runs(animals, tmp_path):
    first = write_run(tmp_path / "first", "animals", predicted(animals))
    perfect = [(image, perfect_output(truth, SIZE, 4)) for image, truth in zip(animals, TRUTH, strict=True)]
    write_run(tmp_path / "second", "animals", perfect, steps=4)
    curve = ['{"iteration": 19, "total_loss": 9.5, "lr": 0.1}', '{"iteration": 39, "total_loss": 7.5, "lr": 0.1}']
    (tmp_path / "first" / "metrics.json").write_text("\n".join([*curve, '{"iteration": 59, "tot']))
    runs = [tmp_path / "first", "--compare", tmp_path / "second" / "inference"]
    assert run_script("tools/analyze.py", *runs, "--output", tmp_path / "report.html", "--no-labels") == 0
    page = (tmp_path / "report.html").read_text()
    pq = first["panoptic_seg"]["PQ"]
    assert f"<td>PQ (panoptic)</td><td>{pq:.1f}</td><td>100.0</td><td>{100 - pq:+.1f}</td>" in page
    assert page.count("data:image/jpeg;base64,") == 4, "two images, by two runs"
    assert "<td>DIFFUSION.SAMPLING_STEPS</td><td>1</td><td>4</td>" in page
    assert page.count("<pre>python tools/train_net.py --eval-only</pre>") == 2
    assert "iteration" in page and "<svg" in page
    links = re.findall(r"(?:src|href|url)\s*[=(]\s*['\"]?([^'\"\s>)]+)", page)
    assert links and all(link.startswith(("data:", "#")) for link in links), "it refers to no other file"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "nowhere"),
        (["bare"], "bare"),
        (["foreign"], "--config-file"),
        (["run", "--compare", "other"], "animals.*plants"),
        (["run", "--output", "no/where.html"], "where.html"),
        (["run", "--alpha", "2"], "alpha"),
    ],
)
def test_errors_name_their_cause(animals, tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    Path("bare").mkdir()
    Path("foreign/semantic").mkdir(parents=True)
    write_run(Path("run"), "animals", predicted(animals))
    register("plants", tmp_path / "data")
    write_run(Path("other"), "plants", predicted(animals))
    assert run_script("tools/analyze.py", *arguments) == 2
    assert re.search(named, capsys.readouterr().err)
