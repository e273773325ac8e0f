"Results as tables, without torch"

from .records import SCHEMA, average, load_results, read_result, row_of, trouble
from .series import (
    AXES,
    FIGURES,
    TITLES,
    USUAL,
    by_row,
    commonest,
    difference,
    hold,
    spread,
    summarise,
)

__all__ = [
    'SCHEMA',
    'average',
    'load_results',
    'read_result',
    'row_of',
    'trouble',
    'AXES',
    'FIGURES',
    'TITLES',
    'USUAL',
    'by_row',
    'commonest',
    'difference',
    'hold',
    'spread',
    'summarise',
]
