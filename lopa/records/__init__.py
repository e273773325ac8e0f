"Results as tables, without torch"

from .published import DEEPSEEK, NAMES, ROBERTA, parameter_rows, published_rows
from .records import (
    COLUMNS,
    KINDS,
    PARTS,
    SCHEMA,
    SETTINGS,
    average,
    find,
    fits,
    load_results,
    read_folder,
    read_result,
    row_of,
    trouble,
)
from .series import (
    AXES,
    BUDGET,
    CONCERNS,
    DECIDED,
    FIGURES,
    TITLES,
    USUAL,
    by_row,
    commonest,
    concerns,
    difference,
    hold,
    points_of,
    spread,
    summarise,
)

__all__ = [
    'AXES', 'BUDGET', 'COLUMNS', 'CONCERNS', 'DECIDED', 'DEEPSEEK', 'FIGURES', 'KINDS', 'NAMES',
    'PARTS', 'ROBERTA', 'SCHEMA', 'SETTINGS', 'TITLES', 'USUAL', 'average', 'by_row', 'commonest',
    'concerns', 'difference', 'find', 'fits', 'hold', 'load_results', 'parameter_rows', 'points_of',
    'published_rows', 'read_folder', 'read_result', 'row_of', 'spread', 'summarise', 'trouble',
]
