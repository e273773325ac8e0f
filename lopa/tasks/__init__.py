"Rows, questions about them, and batches"

from .batches import Collator, choice_ids, tokenize
from .builtin import TASKS, Task, empty_task, load_task, own_task
from .sources import is_literal, load_rows

__all__ = [
    'is_literal',
    'load_rows',
    'TASKS',
    'Task',
    'empty_task',
    'load_task',
    'own_task',
    'Collator',
    'choice_ids',
    'tokenize',
]
