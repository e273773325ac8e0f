"A recipe becomes an adapter"

from .folder import run_folder
from .hardware import Execution, environment, explain_memory, is_main, start_of_memory
from .loop import (
    ProgressBar,
    PromptTrainer,
    check_run,
    circumstances,
    gate_spread,
    make_trainer,
    record,
    run_plan,
    test_scores,
    train,
    training_arguments,
    training_data,
)
from .recipes import FAMILIES, RECIPES, Recipe, as_record, parameter_groups, recipe, shown

__all__ = [
    'FAMILIES',
    'RECIPES',
    'Recipe',
    'as_record',
    'parameter_groups',
    'recipe',
    'shown',
    'run_folder',
    'Execution',
    'environment',
    'explain_memory',
    'is_main',
    'start_of_memory',
    'ProgressBar',
    'PromptTrainer',
    'check_run',
    'circumstances',
    'gate_spread',
    'make_trainer',
    'record',
    'run_plan',
    'test_scores',
    'train',
    'training_arguments',
    'training_data',
]
