"""What every picture stands on: colours, the house style, and how a figure is shown."""

import base64
import io
from html import escape
from typing import TYPE_CHECKING

import matplotlib
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers (Wong, Nature Methods 8, 441, 2011).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"
DPI = 90
STYLE = {
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
}


def figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 3.2)):
    """(figure, axes) in the house style; `size` in inches. Not yet shown: end with `show`."""
    # Here, not above: it takes longer to import than the whole course. And not by way of pyplot,
    # which would keep every figure until it is closed.
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        made = Figure(figsize=size)
        return made, made.subplots(rows, columns)


def bundle(fig: "Figure", alt: str) -> dict[str, str]:
    """A figure as what Jupyter displays: an HTML figure with alternative text, and the text alone.

    The picture is a PNG of at most 128 colours, which keeps a notebook small. They are chosen for
    the largest error to be small: a colour that covers few pixels, as in a colour bar, counts too.
    """
    spell_out(fig)
    buffer = io.BytesIO()
    fig.savefig(buffer, dpi=DPI, format="png")
    small = io.BytesIO()
    picture = Image.open(buffer).convert("RGB")
    picture = picture.quantize(128, method=Image.Quantize.MAXCOVERAGE, kmeans=1)
    picture.save(small, "PNG", optimize=True)
    data = base64.b64encode(small.getvalue()).decode()
    source = f"data:image/png;base64,{data}"
    image = f'<img style="max-width:100%" alt="{escape(alt)}" src="{source}">'
    html = f'<figure style="margin:0">{image}</figure>'
    return {"text/html": html, "text/plain": f"[figure: {alt}]"}


def spell_out(fig: "Figure") -> None:
    """Take dollar signs for what they are, "$5 to $10", but in the powers of ten at log axes."""
    from matplotlib.text import Text

    powers = {
        label
        for ax in fig.axes
        for axis in (ax.xaxis, ax.yaxis)
        if axis.get_scale() == "log"
        for label in axis.get_ticklabels(which="both")
    }
    for text in set(fig.findobj(Text)) - powers:
        text.set_parse_math(False)


def show(fig: "Figure", alt: str) -> None:
    """Display a figure with its alternative text, which says in words what there is to see."""
    from IPython.display import display

    display(bundle(fig, alt), raw=True)
