"""Pictures: where legends stand, and which numbers stand at an axis."""

from pathlib import Path

import pytest

from metabilevel.figures import Curve, Panel, draw


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`draw` of some panels, as matplotlib's figure, laid out."""
    saved = []

    def keep(self, file, **options):
        self.draw_without_rendering()
        saved.append(self)

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", keep)

    def drawn(*panels):
        draw(tmp_path / "picture.png", "Title", panels)
        return saved[-1]

    return drawn


def panel(names, x=(1, 2, 3), y=(0.5, 1.5, 1.0), **fields):
    return Panel("panel", "x", "y", [Curve(name, x, y) for name in names], **fields)


def test_a_long_legend_stands_below_the_panels_where_it_hides_nothing(figure):
    names = [f"inverse {i}" for i in range(7)]
    drawn = figure(panel(names), panel(names), panel(["another"]))
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert [axes.get_legend() is not None for axes in drawn.axes] == [False, False, True]
    box = legend.get_window_extent()
    assert all(box.y1 <= axes.get_tightbbox().y0 for axes in drawn.axes)
    short = figure(panel(names[:5]), panel(names[:5]))
    assert (len(short.legends), [axes.get_legend() is not None for axes in short.axes]) == (0, [True, False])


def test_a_legend_that_says_what_the_title_says_is_left_out(figure):
    assert [axes.get_legend() is not None for axes in figure(panel(["panel"]), panel(["a"])).axes] == [False, True]


def test_whole_numbers_have_whole_ticks(figure):
    (axes,) = figure(panel(["a"])).axes
    assert all(tick.is_integer() for tick in axes.get_xticks())
    assert not all(tick.is_integer() for tick in axes.get_yticks())
    (axes,) = figure(panel(["a"], x=(0.1, 0.2, 0.35))).axes
    assert not all(tick.is_integer() for tick in axes.get_xticks())


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3))])
def test_panels_stand_in_rows(figure, count, shape):
    grid = figure(*[panel(["a"])] * count).axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == shape
