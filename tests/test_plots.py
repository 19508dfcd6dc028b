"""Draw figures, and warn without matplotlib."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bioptimus_hf import plots
from bioptimus_hf.plots import plot_versions, save_plot


def draw(axes: Any) -> None:
    axes.plot([0, 1], [0, 1])


def test_a_figure_is_saved(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots are an extra")
    save_plot(tmp_path / "a.png", draw)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_one_warning_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings_of_package: Callable[[], list[str]]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plots._warn_without_matplotlib.cache_clear()
    for name in ("a.png", "b.png"):
        save_plot(tmp_path / name, draw)
    (warning,) = warnings_of_package()
    assert "pip install 'bioptimus-hf[plots]'" in warning
    assert not list(tmp_path.iterdir())
    plots._warn_without_matplotlib.cache_clear()


def test_versions_are_drawn_with_the_means_and_standard_deviations_of_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = pytest.importorskip("matplotlib.figure", reason="plots are an extra").Figure()

    def save(path: Path, draw: Callable[[Any], None], *, size: tuple[float, float], columns: int) -> None:
        draw(figure.subplots(1, columns))

    def row(model: str, mean: float, standard_deviation: float | None) -> dict[str, Any]:
        return {"model": model, "f1": {"mean": mean, "standard_deviation": standard_deviation}}

    monkeypatch.setattr(plots, "save_plot", save)
    rows = {"t": [row("base", 0.5, 0.02), row("v0.1", 0.6, 0.01), row("v0.2", 0.7, None)]}
    plot_versions(tmp_path / "a.png", rows, {("t", "v0.1"): [0.59, 0.61], ("t", "v0.2"): [0.7]}, reference="base")
    (panel,) = figure.axes
    assert panel.get_title() == "t"
    (bars,) = panel.containers
    line, _, (whiskers,) = bars.lines
    assert line.get_ydata() == pytest.approx([60, 70])
    assert [segment[:, 1].tolist() for segment in whiskers.get_segments()] == [
        pytest.approx([59, 61]),
        pytest.approx([70, 70]),
    ]
    points = [line.get_ydata().tolist() for line in panel.lines if line.get_marker() == "."]
    assert points == [pytest.approx([59, 61]), pytest.approx([70])]
    (reference,) = [line for line in panel.lines if line.get_label() == "base, mean ± standard deviation"]
    assert list(reference.get_ydata()) == pytest.approx([50, 50])
    (band,) = panel.patches
    assert (band.get_y(), band.get_height()) == pytest.approx((48, 4))
