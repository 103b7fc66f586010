"""What an inspection found, in the terminal and as a page."""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from dformer.apps.data_report import count_classes, text_report, write_html
from dformer.d2.data import register_file
from dformer.d2.data.inspection import inspect_datasets
from dformer.data.checks.findings import Finding
from tests import run_script
from tests.d2.data.real import IMAGES, copy_of

pytestmark = pytest.mark.usefixtures("empty_catalogs")


def test_command_line(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = partial(run_script, "tools/check_dataset.py")
    good, bad = copy_of(data_dir, "ids", tmp_path / "good"), copy_of(data_dir, "semantic", tmp_path / "bad")
    page, listed = tmp_path / "page.html", tmp_path / "found.json"
    assert run(good / "dataset.yaml", "--html", page) == 0
    assert "Training can start" in capsys.readouterr().out
    assert page.read_text().count("<figure>") == IMAGES and "src='http" not in page.read_text()
    image = sorted((bad / "images").iterdir())[2]
    image.write_bytes(b"")
    assert run(bad / "dataset.yaml", "--html", page, "--json", listed, "--no-labels") == 1
    said = capsys.readouterr().out
    assert "FATAL: file unreadable (1)" in said and str(image) in said and str(image) in page.read_text()
    (found,) = json.loads(listed.read_text())["bad"]
    assert (found["level"], found["kind"], found["file"]) == ("fatal", "file unreadable", str(image))
    assert run("pedestrian_train", "--html", page) == 2 and run("--html", page) == 2


def test_objects_are_counted_by_class(data_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(data_dir, "instance", tmp_path / "a")
    (inspection,) = inspect_datasets(register_file(folder / "dataset.yaml"), progress=False)
    content = json.loads((folder / "instances.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    expected = Counter(names[a["category_id"]] for a in content["annotations"] if not a["iscrowd"])
    counts = {name: int(count) for name, count in count_classes(inspection)}
    assert Counter(counts) == expected and len(counts) == 80


def test_page_is_bounded_and_escaped(data_dir: Path, tmp_path: Path) -> None:
    """With ten thousand findings and images the page has no more pictures than with a hundred."""
    folder = copy_of(data_dir, "ids", tmp_path / "<b>a")
    (inspection,) = inspect_datasets(register_file(folder / "dataset.yaml"), progress=False)
    write_html([inspection], tmp_path / "few.html")
    inspection.images = inspection.images * 2000
    inspection.findings = [Finding("size", image.file, "<script>") for image in inspection.images[:10000]]
    write_html([inspection], tmp_path / "many.html")
    few, many = (tmp_path / "few.html").read_text(), (tmp_path / "many.html").read_text()
    assert many.count("<figure>") <= 24 + 4 and len(many) < len(few) + 3e6
    assert "<script>" not in many and "<b>a" not in many
    assert "9,950 more" in many and "9,997 more" in text_report([inspection])
