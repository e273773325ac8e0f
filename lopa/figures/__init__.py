"Pictures of runs and of tables of runs"

from .axes import (
    LOOKS,
    SHADES,
    lines_of,
    plot_axis,
    plot_figure3,
    plot_figure4,
    plot_price,
)
from .comparisons import plot_added, plot_bytes, plot_convergence, plot_heatmap, plot_pareto
from .explorer import Explorer, exact_table, explore_ablations, overrides
from .gallery import save_gallery
from .pictures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    explore_gate,
    picture_widget,
    plot_accuracy,
    plot_comparison,
    plot_gate,
    plot_reliability,
    plot_singular_values,
    plot_training,
    start_axes,
    to_png,
)
from .schematics import plot_lopa, plot_method, plot_methods, plot_server
from .web import serve_figures

__all__ = [
    'BLUE',
    'GREEN',
    'GREY',
    'LOOKS',
    'ORANGE',
    'SHADES',
    'Explorer',
    'exact_table',
    'explore_ablations',
    'explore_gate',
    'lines_of',
    'overrides',
    'picture_widget',
    'plot_accuracy',
    'plot_added',
    'plot_axis',
    'plot_bytes',
    'plot_comparison',
    'plot_convergence',
    'plot_figure3',
    'plot_figure4',
    'plot_gate',
    'plot_heatmap',
    'plot_lopa',
    'plot_method',
    'plot_methods',
    'plot_pareto',
    'plot_price',
    'plot_reliability',
    'plot_server',
    'plot_singular_values',
    'plot_training',
    'save_gallery',
    'serve_figures',
    'start_axes',
    'to_png',
]
