"Experiments, and who carries them out"

from ..evaluate import probe, zero_shot
from ..records import load_results
from .executors import (
    EXECUTORS,
    DaskExecutor,
    RayExecutor,
    SlurmExecutor,
    begin,
    cores,
    end_with_parent,
    make_executor,
    processes,
    share_threads,
)
from .experiments import (
    DEFAULT,
    FLOOR,
    REAL,
    check_keys,
    check_values,
    expand,
    experiment,
    file_name,
    floor_experiment,
    identity,
)
from .runs import (
    Busy,
    attempt,
    carry_out,
    cut,
    outcomes,
    result_in,
    result_of,
    run,
    score_one,
    sweep,
    train_one,
)

__all__ = [
    'Busy', 'DEFAULT', 'DaskExecutor', 'EXECUTORS', 'FLOOR', 'REAL', 'RayExecutor', 'SlurmExecutor',
    'attempt', 'begin', 'carry_out', 'check_keys', 'check_values', 'cores', 'cut',
    'end_with_parent', 'expand', 'experiment', 'file_name', 'floor_experiment', 'identity',
    'load_results', 'make_executor', 'outcomes', 'probe', 'processes', 'result_in', 'result_of',
    'run', 'score_one', 'share_threads', 'sweep', 'train_one', 'zero_shot',
]
