"Run a program nobody has read"

from .values import same_value
from .ladder import LADDER, Outcome, STATUSES, choose_rung, gaps, run_program, run_programs, why_not

__all__ = ['same_value', 'LADDER', 'Outcome', 'STATUSES', 'choose_rung', 'gaps', 'run_program', 'run_programs', 'why_not']
