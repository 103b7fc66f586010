"""Where the tests find reference tensors and real images."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests import ROOT

# A busy machine is no fault: timing goes into benchmarks.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")


def _shared_folder(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / name)).resolve()
    if not folder.is_dir():
        reason = f"{folder} does not exist; set {variable} to the folder that holds it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the reference tensors of the published implementations."""
    return _shared_folder("DFORMER_GOLDEN", "golden")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the small real data sets."""
    return _shared_folder("DFORMER_DATA", "data")


@pytest.fixture
def empty_catalogs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectron2's catalogs without any data set: all names are free."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    monkeypatch.setattr(DatasetCatalog, "data", {})
    monkeypatch.setattr(MetadataCatalog, "data", {})
