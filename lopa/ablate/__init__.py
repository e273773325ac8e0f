"Experiments, and who carries them out"

from .executors import EXECUTORS, make_executor
from .experiments import expand, experiment
from .runs import run, sweep

__all__ = ['expand', 'experiment', 'EXECUTORS', 'make_executor', 'run', 'sweep']
