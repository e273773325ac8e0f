"Experiments, and who carries them out"

from .experiments import expand, experiment
from .executors import EXECUTORS, make_executor
from .runs import run, sweep

__all__ = ['expand', 'experiment', 'EXECUTORS', 'make_executor', 'run', 'sweep']
