"""Curves as data, and as a picture."""

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .storage.files import replace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito's colours, which everyone can tell apart; the order keeps neighbours far from one another. The last two,
# a wine red and a dark brown, are darker than any of theirs.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F", "#F0E442", "#882255", "#4D2600",
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """Points (x, y), with `band` as the half width of their 95% confidence interval.

    `style`: `"line"` is ours, `"paper"` a published curve (dashed, in the colour of our curve of the same name),
    `"points"` are numbers that stand side by side, each with its interval; `"truth"` is what is to be found, and
    `"data"` the examples that were given.
    """

    name: str
    x: Sequence[float | int]
    y: Sequence[float | int]
    band: Sequence[float | int] | None = None
    style: Literal["line", "paper", "points", "truth", "data"] = "line"


@dataclass(frozen=True)
class Image:
    """Brightness `pixels` [height][width], drawn from its least to its greatest in grey, or colours [...][3] in [0, 1],
    under a `name`."""

    name: str
    pixels: Sequence[Sequence[float | Sequence[float]]]

    def as_json(self) -> dict[str, str]:
        """Name and PNG file, of 8 bits; a grey image has its least brightness at 0 and its greatest at 255."""
        import numpy as np
        from PIL import Image as Picture

        a = np.asarray(self.pixels, float)
        if a.ndim == 2:
            a = (a - a.min()) / max(float(np.ptp(a)), np.finfo(float).tiny)
        file = io.BytesIO()
        Picture.fromarray(np.rint(255 * np.clip(a, 0, 1)).astype(np.uint8)).save(file, "png", optimize=True)
        return {"name": self.name, "png": base64.b64encode(file.getvalue()).decode()}

    @classmethod
    def from_json(cls, fields: Mapping[str, str]) -> "Image":
        """The inverse of `as_json`."""
        import numpy as np
        from PIL import Image as Picture

        with Picture.open(io.BytesIO(base64.b64decode(fields["png"]))) as picture:
            return cls(fields["name"], (np.asarray(picture) / 255).tolist())


@dataclass(frozen=True)
class Panel:
    """Curves in one pair of axes, or `images` side by side in rows of five.

    `log` names the logarithmic axes: "", "x", "y" or "xy".

    `ticks` are names of x = 0, 1, 2, ..., where x counts things; `within` are the least and the greatest value that y
    can have, where a band ends though the normal law of its interval goes on.
    """

    title: str
    xlabel: str
    ylabel: str
    curves: Sequence[Curve]
    log: str = ""
    ticks: Sequence[str] | None = None
    within: Sequence[float | int] | None = None
    images: Sequence[Image] = ()


SEEN = 1.2  # ratio of what a logarithmic axis shows, below which it is widened
LETTERS = 44  # of the title, over one panel
MANY = 5  # names in a legend, above which it would hide curves


def draw(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Draws `panels` into the PNG file `path`, in rows of three, or two rows of two.

    A legend is repeated only where it has something to add. A long one stands below all panels.
    """
    from matplotlib.figure import Figure

    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.5 * rows + 0.4), layout="constrained")
    figure.suptitle(textwrap.fill(title, LETTERS * columns), fontsize=13, fontweight="bold")
    names = [curve.name for panel in panels for curve in panel.curves if curve.style in ("line", "paper", "points")]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(names))}
    explained, below = set(), {}
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        if panel.images:
            _draw_images(axes, panel)
            continue
        _draw_panel(axes, panel, colours)
        alone = len(panel.curves) == 1 and (panel.curves[0].style == "points" or panel.curves[0].name == panel.title)
        handles, labels = axes.get_legend_handles_labels()
        if alone or explained.issuperset(labels):
            continue
        explained.update(labels)
        if len(labels) > MANY:
            below |= dict(zip(labels, handles, strict=True))
        else:
            axes.legend(fontsize=8, framealpha=0.85, edgecolor="none")
    if below:
        beside = 2 * columns
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(below) // beside))
        figure.legend(below.values(), below, loc="outside lower center", ncols=beside, fontsize=8, edgecolor="none")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    replace(path, picture.getvalue())


def _draw_images(axes: "Axes", panel: Panel, columns: int = 5) -> None:
    columns = min(columns, len(panel.images))
    for i, image in enumerate(panel.images):
        x, y = i % columns, -1.25 * (i // columns)
        axes.imshow(image.pixels, cmap="gray", extent=(x, x + 0.94, y, y + 0.94), interpolation="nearest")
        axes.text(x + 0.47, y + 0.97, image.name, ha="center", va="bottom", fontsize=7)
    rows = -(-len(panel.images) // columns)
    axes.set(title=panel.title, xlabel=panel.xlabel, xlim=(0, columns), ylim=(1.2 - 1.25 * rows, 1.2), aspect="equal")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _draw_panel(axes: "Axes", panel: Panel, colours: dict[str, str]) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    least, most = panel.within or (-math.inf, math.inf)
    for curve in panel.curves:
        match curve.style:
            case "line":
                axes.plot(curve.x, curve.y, color=colours[curve.name], label=curve.name, linewidth=1.8)
                if curve.band is not None:
                    ends = ([y + s * b for y, b in zip(curve.y, curve.band, strict=True)] for s in (-1, 1))
                    low, high = ([min(max(y, least), most) for y in end] for end in ends)
                    axes.fill_between(curve.x, low, high, color=colours[curve.name], alpha=0.18, linewidth=0)
            case "paper":
                marker = "o" if len(set(curve.y)) > 1 else ""
                axes.plot(curve.x, curve.y, color=colours[curve.name], label=f"{curve.name} (paper)", linestyle="--",
                          marker=marker, markerfacecolor="white", markersize=4.5, linewidth=1.1)  # fmt: skip
            case "points":
                axes.errorbar(curve.x, curve.y, curve.band, color=colours[curve.name], label=curve.name, fmt="o",
                              markersize=5, capsize=3)  # fmt: skip
            case "truth":
                axes.plot(curve.x, curve.y, color="black", label=curve.name, linewidth=1, alpha=0.6)
            case "data":
                axes.plot(curve.x, curve.y, "k^", label=curve.name, markersize=6, zorder=5)
    axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
    for letter, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        values = [value for curve in panel.curves for value in (curve.x if letter == "x" else curve.y)]
        # Nothing of a method that diverged may be left to take a logarithm of, which matplotlib refuses.
        if letter in panel.log and any(0 < value < math.inf for value in values):
            axes.set(**{f"{letter}scale": "log"})
            low, high = axis.get_view_interval()
            if letter == "y" and high < SEEN * low:  # what is nearly constant is not to look like a cliff
                middle = math.sqrt(low * high)
                axes.set_ylim(middle / 3, middle * 3)
                low, high = axis.get_view_interval()
            subs = (1,) if high > 1e3 * low else (1, 2, 5)
            axis.set_major_locator(LogLocator(subs=subs, numticks=7) if high > 4 * low else MaxNLocator(5))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        elif values and all(float(value).is_integer() for value in values):
            axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    if panel.ticks is not None:
        axes.set_xticks(range(len(panel.ticks)), panel.ticks, rotation=30, ha="right", rotation_mode="anchor")
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
