"""200,000 rows: divided in both ways; two million where slow tests are asked for, and in `make bench`."""

import pytest
from benchmarks import scale


@pytest.mark.parametrize("way", scale.WAYS)
def test_two_hundred_thousand_rows_are_divided(way):
    result = scale.measured(200_000, way)  # which checks what came out
    assert result["peak_gib"] < 0.8 and result["total"] < 60


@pytest.mark.slow
@pytest.mark.parametrize("way", scale.WAYS)
def test_two_million_rows_are_divided_within_two_gibibytes(way):
    assert scale.measured(2_000_000, way)["peak_gib"] < scale.PEAK_GIB == 2
