"""The small data set that is worked out by hand."""

import pytest

from tests.d2.evaluation.oracle import PETS, write_dataset


@pytest.fixture
def pets(tmp_path, empty_catalogs):
    """Model inputs of the data set "pets", annotated in tmp_path / "data"."""
    return write_dataset("pets", tmp_path / "data", PETS)
