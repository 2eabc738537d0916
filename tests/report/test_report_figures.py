"""Numbers to places: axes, labels and marks by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w4afp8.report import svg
from w4afp8.report.scales import Axis, column, index_ticks, linear_axis, log_axis, number, size
from w4afp8.report.summary import _exponents

POSITIVE = st.floats(min_value=1e-9, max_value=1e9)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.034, "0.034"), (4.7e-6, "4.7e-6"), (1e-5, "1e-5"), (999.4, "999"), (2824, "2,824"), (65536, "65.5 k"),
     (3e6, "3 M"), (-0.5, "-0.5")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (13_163_536, "13.2 MB"), (689e9, "689 GB"), (None, "unknown")]
)
def test_sizes_are_decimal(count: float | None, text: str) -> None:
    assert size(count) == text


def test_columns_keep_their_zeros():
    assert column(0.11) == "0.110" and column(0.1172) == "0.117"


@given(st.lists(POSITIVE, min_size=1))
def test_a_logarithmic_axis_holds_its_values_and_labels(values: list[float]) -> None:
    axis = log_axis(values)
    assert all(0 <= axis.place(value) <= 1 for value in values)
    ticks = axis.ticks()
    assert len(ticks) <= 6 and all(0 <= tick.place <= 1 for tick in ticks)


@given(st.lists(POSITIVE, min_size=1))
def test_a_linear_axis_begins_at_zero(values: list[float]) -> None:
    axis = linear_axis(values)
    assert axis.place(0) == 0 and all(0 <= axis.place(value) <= 1 for value in values)
    assert 1 <= len(axis.ticks()) <= 7


def test_an_axis_of_nothing_is_an_axis():
    assert log_axis([]).place(0.1) == 0 and linear_axis([]).place(1.0) == 1
    assert Axis(1, 100, True).place(10) == pytest.approx(0.5) and Axis(1, 100, True).down(100) == 0


def test_labels_are_evenly_spaced_from_the_first():
    ticks = index_ticks([str(i) for i in range(256)], 10)
    assert [tick.text for tick in ticks] == [str(i) for i in range(0, 256, 32)]
    assert ticks[0].place == pytest.approx(0.5 / 256)
    assert [tick.text for tick in index_ticks(["3", "4", "5 MTP"], 10)] == ["3", "4", "5 MTP"]
    assert index_ticks([], 10) == []


def test_cells_join_neighbours_and_leave_holes():
    drawn = svg.cells([[0, 0, 1, None], [1, 1, 1, 1]], levels=2)
    assert drawn == (
        '<path class="heat h0" d="M0 0H500V500H0z"/><path class="heat h1" d="M500 0H750V500H500zM0 500H1000V1000H0z"/>'
    )


def test_marks_stay_inside_the_drawing():
    assert svg.dots([(2.0, -1.0)], "a") == '<path class="dots a" d="M1000 0h0"/>'
    assert svg.bars([0.5, 0.0], "a", gap=0.0) == '<path class="area a" d="M0 1000V500H500V1000z"/>'


def test_labels_are_escaped():
    plot = svg.Plot(svg.dots([], "a"), [], [], label='"><script>')
    assert "<script>" not in plot.svg


def test_exponents_read_as_a_formula():
    assert _exponents(0, 0) == _exponents(None) == "no fold"
    assert _exponents(0.25, 0.5) == "x^0.25 / w^0.5" and _exponents(0, 1) == "1 / w" and _exponents(0.5) == "x^0.5"
