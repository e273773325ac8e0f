"Rooms: every path and name of the flat modules works for this release, and old paths say so"

import importlib
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from lopa._moved import MOVED

root = Path(__file__).resolve().parents[1]
flat = json.loads((root / 'tests' / 'data' / 'public_names.json').read_text(encoding='utf-8'))

FILES = {'write_whole', 'write_files', 'check_writable', 'refuse_folder', 'cache_dir'}
GONE = {
    'assets': FILES,
    'web': {'free_port'},  # Voilà finds a free port itself
    'bench': {'rounded'},  # a comprehension
}


@pytest.mark.parametrize('name', flat)
def test_every_old_name_is_found(name):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        module = importlib.import_module(f'lopa.{name}')
    gone = GONE.get(name, set())
    missing = [each for each in flat[name] if each not in gone and not hasattr(module, each)]
    assert not missing, f'lopa.{name} has lost {missing}'


def test_what_left_assets_is_in_files():
    import lopa.files

    assert FILES <= set(flat['assets']) & set(lopa.files.__all__)


def run(code):
    "What a fresh interpreter prints"
    ran = subprocess.run(
        [sys.executable, '-W', 'always::DeprecationWarning', '-c', code],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip(), ran.stderr.strip()


@pytest.mark.parametrize('name', ['series', 'values'])
@pytest.mark.parametrize('form', ['import lopa.{}', 'from lopa import {}'])
def test_an_old_path_is_the_module_and_says_one_sentence(name, form):
    new = f'lopa.{MOVED[name]}'
    same = f'import lopa, importlib; print(lopa.{name} is importlib.import_module({new!r}))'
    out, err = run(f'{form.format(name)}\n{same}')
    assert out == 'True'
    says = (
        f'lopa.{name} has moved to {new}, and this path goes with the next release: import {new}.'
    )
    assert err.count('DeprecationWarning') == 1 and says in err
    assert '<string>:1' in err, 'the sentence names the line that imports'


def test_new_paths_say_nothing():
    rooms = sorted({new.split('.')[0] for new in MOVED.values()})
    out, err = run('\n'.join(f'import lopa.{name}' for name in rooms))
    assert 'DeprecationWarning: lopa' not in err


def test_an_unknown_module_is_still_unknown():
    with pytest.raises(ModuleNotFoundError, match='lopa.no_such_module'):
        importlib.import_module('lopa.no_such_module')
