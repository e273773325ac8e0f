"Run a program nobody has read"

from .ladder import LADDER, STATUSES, Outcome, choose_rung, gaps, run_program, run_programs, why_not
from .values import same_value

__all__ = [
    'same_value',
    'LADDER',
    'Outcome',
    'STATUSES',
    'choose_rung',
    'gaps',
    'run_program',
    'run_programs',
    'why_not',
]
