"Memory and time, before and after anything is loaded"

from .bench import bench_report, bench_sizes, bench_steps, show_sizes
from .estimate import GPUS, plan_run, show_plan, task_shape

__all__ = [
    'GPUS',
    'plan_run',
    'show_plan',
    'task_shape',
    'bench_report',
    'bench_sizes',
    'bench_steps',
    'show_sizes',
]
