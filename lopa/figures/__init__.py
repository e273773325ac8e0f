"Pictures of runs and of tables of runs"

from .axes import (
    explore_ablations,
    plot_added,
    plot_axis,
    plot_bytes,
    plot_convergence,
    plot_figure3,
    plot_figure4,
    plot_heatmap,
    plot_pareto,
    plot_price,
)
from .gallery import save_gallery
from .pictures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    explore_gate,
    plot_accuracy,
    plot_comparison,
    plot_gate,
    plot_singular_values,
    plot_training,
    start_axes,
    to_png,
)
from .schematics import plot_lopa, plot_methods, plot_server
from .web import serve_figures

__all__ = [
    'BLUE',
    'GREEN',
    'GREY',
    'ORANGE',
    'explore_gate',
    'plot_accuracy',
    'plot_comparison',
    'plot_gate',
    'plot_singular_values',
    'plot_training',
    'start_axes',
    'to_png',
    'explore_ablations',
    'plot_added',
    'plot_axis',
    'plot_bytes',
    'plot_convergence',
    'plot_figure3',
    'plot_figure4',
    'plot_heatmap',
    'plot_pareto',
    'plot_price',
    'plot_lopa',
    'plot_methods',
    'plot_server',
    'save_gallery',
    'serve_figures',
]
