"Rows, questions about them, and batches"

from .batches import Collator, choice_ids, class_ids, tokenize
from .builtin import (
    CASES,
    CLASSES,
    PROBLEMS,
    TASKS,
    case_task,
    class_task,
    empty_task,
    load_task,
    problem_task,
)
from .own import own_label, own_rows, own_task, read_table
from .sources import is_literal, load_rows
from .task import Task, columns_of, hold_out

__all__ = [
    'CASES',
    'CLASSES',
    'Collator',
    'PROBLEMS',
    'TASKS',
    'Task',
    'case_task',
    'choice_ids',
    'class_ids',
    'class_task',
    'columns_of',
    'empty_task',
    'hold_out',
    'is_literal',
    'load_rows',
    'load_task',
    'own_label',
    'own_rows',
    'own_task',
    'problem_task',
    'read_table',
    'tokenize',
]
