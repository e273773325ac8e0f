"A recipe becomes an adapter"

from .hardware import Execution, environment, is_main, start_of_memory
from .loop import train
from .recipes import RECIPES, Recipe, parameter_groups, recipe

__all__ = [
    'RECIPES',
    'Recipe',
    'parameter_groups',
    'recipe',
    'Execution',
    'environment',
    'is_main',
    'start_of_memory',
    'train',
]
