"""Every figure of the notebooks, so that they look alike and a notebook's cell stays a line.

Each function takes arrays or tables, knows no stage and no file of the pipeline, and returns a matplotlib Figure.
"""

import matplotlib.pyplot as plt

BLUE, ORANGE, GREEN, GREY = "#3465a4", "#e07b39", "#4e9a06", "#9a9a9a"
plt.rcParams.update({
    "figure.dpi": 100, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.25, "legend.frameon": False, "image.interpolation": "nearest",
})
