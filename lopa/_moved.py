"Modules that moved into rooms: their old paths work for this release, with one sentence"

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

MOVED = {
    'data': 'tasks.sources',
    'batches': 'tasks.batches',
    'values': 'sandbox.values',
    'metrics': 'evaluate.metrics',
    'predict': 'evaluate.predict',
    'judges': 'evaluate.judges',
    'recipes': 'train.recipes',
    'hardware': 'train.hardware',
    'guard': 'train.guard',
    'resume': 'train.resume',
    'sizes': 'plan.sizes',
    'footprint': 'plan.footprint',
    'bench': 'plan.bench',
    'series': 'records.series',
    'experiments': 'ablate.experiments',
    'executors': 'ablate.executors',
    'pictures': 'figures.pictures',
    'schematics': 'figures.schematics',
    'gallery': 'figures.gallery',
    'web': 'figures.web',
}


class Moved(MetaPathFinder, Loader):
    "Finds a module under the path that it had before"

    def find_spec(self, fullname, path=None, target=None):
        "Where the module is, if it had this path before"
        package, _, name = fullname.rpartition('.')
        if package == 'lopa' and name in MOVED:
            return ModuleSpec(fullname, self)
        return None

    def exec_module(self, module):
        "Say where it is, and hand it out"
        old = module.__name__
        new = f'lopa.{MOVED[old.removeprefix("lopa.")]}'
        says = f'{old} has moved to {new}, and this path goes with the next release: import {new}.'
        warnings.warn(says, DeprecationWarning, stacklevel=2)
        sys.modules[old] = import_module(new)


def install():
    "Old paths are looked up when nothing else is found"
    sys.meta_path.append(Moved())
