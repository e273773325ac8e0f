"The install cells of the tutorials, in a made-up Colab: a folder, a git and a pip that take notes"

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tools import colab

root = Path(__file__).resolve().parents[1]
tutorials = sorted((root / 'nbs' / 'tutorials').glob('*.ipynb'))
wheel = 'lopa-0.1.0-py3-none-any.whl'
repository = 'setup.py', 'nbs/tutorials/1_x.ipynb', 'results/published.json'
quoting = "P = Path('../../results')"  # a tutorial that cannot do without results
upload = 'upload lopa-*.whl (a wheel) or lopa*.zip (the repository) to the Files pane'
upload_zip = 'upload lopa*.zip (the repository; wheels lack results) to the Files pane'

python3 = f'exec "{sys.executable}" "$@"'
git = '''
echo "$@" >> "$LOGS/git"
for folder; do :; done                                      # the last argument
mkdir -p "$folder/nbs"
if [ -e "$LOGS/no-network" ]; then echo "fatal: unable to access"; exit 128; fi
mkdir "$folder/nbs/tutorials"'''
pip = """
echo "$@" >> "$LOGS/pip"
case "$*" in
  *"$(cat "$LOGS/pip-refuses" 2>/dev/null || echo nothing)"*)
    [ $TERM = dumb ] || red="[31m"                           # pip in a kernel loves colours
    echo "${red}ERROR: No matching distribution found for torch>=2.5" >&2
    echo "[notice] A new release of pip is available" >&2
    exit 1;;
  "install ./"*)
    mkdir -p "$LOGS/site/lopa"
    touch "$LOGS/site/lopa/__init__.py";;
esac"""


class Colab:
    "A session: its /content, what was asked of git and pip, and cells to run"

    def __init__(self, folder):
        self.content, self.logs = folder / 'content', folder / 'logs'
        self.content.mkdir()
        (folder / 'bin').mkdir()
        self.logs.mkdir()
        for name, script in {'python3': python3, 'git': git, 'pip': pip}.items():
            (folder / 'bin' / name).write_text(f'#!/bin/sh\n{script}\n')
            (folder / 'bin' / name).chmod(0o755)

    def cell(self, code='', user=colab.UNDECIDED):
        "The cells of a tutorial with this code, as one"
        about = colab.settings() | {'user': user, 'git_url': f'https://example.org/{user}/lopa'}
        cells = colab.templates('nbs/tutorials/1_x.ipynb', f'import lopa\n{code}', about)[1]
        return '\n\n'.join(cells.values()).replace('/content', str(self.content))

    def run(self, *args, **kwargs):
        "Run the cell; the sentence that it stops with, if it does"
        try:
            exec(self.cell(*args, **kwargs), {})
        except Exception as e:
            assert type(e).__name__ == 'Stop' and e._render_traceback_() == [str(e)]
            return str(e).replace(str(self.content), '/content')

    def asked(self, of):
        "What was asked of git or pip since the last look"
        path = self.logs / of
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.replace(str(self.logs), '') for line in lines]

    def upload(self, name, inner=None, age=0):
        "Put a file there: anything, or a zip with the repository in a folder"
        path = self.content / name
        path.write_bytes(b'no zip')
        if inner is not None:
            with zipfile.ZipFile(path, 'w') as z:
                for file in repository:
                    z.writestr(inner + file, '{}')
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
        return path


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = Colab(tmp_path)
    monkeypatch.setitem(sys.modules, 'google.colab', ModuleType('google.colab'))
    monkeypatch.setenv('PATH', f'{tmp_path}/bin{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('PYTHONPATH', str(session.logs / 'site'))
    monkeypatch.setenv('LOGS', str(session.logs))
    return session


def installs(source):
    "What pip is asked when all goes well"
    return [
        'uninstall -y lopa',
        f'install ./{source}',
        'install --no-deps --require-hashes -r /site/lopa/assets.txt',
    ]


def sentence(why, do=upload):
    "What the cell says when it stops"
    return f'lopa is not installed: {why}; {do}, and run this cell again.'


def test_elsewhere_it_does_nothing(session, monkeypatch):
    monkeypatch.delitem(sys.modules, 'google.colab')
    session.upload(wheel)
    before, names = os.getcwd(), {}
    exec(session.cell(), names)
    assert os.getcwd() == before and not session.asked('pip')
    assert {*names} - {'__builtins__'} == {'glob', 'os', 'subprocess', 'sys', 'zipfile'}


@pytest.mark.parametrize(
    'code, none, do', [('', 'zip or wheel', upload), (quoting, 'zip', upload_zip)]
)
def test_nothing_there_and_no_address(session, code, none, do):
    why = f'/content has no lopa {none}, and lopa has no public address yet'
    assert session.run(code) == sentence(why, do)
    assert not session.asked('git') and not session.asked('pip')


def test_a_wheel_is_enough_without_stored_results(session, capsys):
    session.upload(wheel)
    for _ in range(2):
        assert session.run() is None
        assert session.asked('pip') == installs(wheel) and Path.cwd() == session.content
        assert capsys.readouterr().out == f'lopa is installed from {wheel}\n'


def test_a_wheel_is_not_enough_for_stored_results(session):
    session.upload(wheel)
    why = '/content has no lopa zip, and lopa has no public address yet'
    assert session.run(quoting) == sentence(why, upload_zip)
    assert not session.asked('pip')


@pytest.mark.parametrize('inner', ['', 'lopa/', 'lopa-main/'])
def test_a_zip_brings_everything(session, inner):
    session.upload('lopa-main.zip', inner)
    session.upload(wheel)  # newer, but it holds less
    for again in False, True:
        assert session.run(quoting) is None
        assert session.asked('pip') == installs(f'lopa-unzipped/{inner}')
        assert Path.cwd() == (session.content / 'lopa-unzipped' / inner / 'nbs' / 'tutorials')
        assert Path('../../results/published.json').exists()
        assert Path('runs').exists() == again, 'what a first run left is gone'
        Path('runs').mkdir(exist_ok=True)


def test_the_newest_upload_counts(session):
    session.upload('lopa.zip', 'old/', age=10)
    session.upload('lopa (1).zip', 'new/')
    assert session.run() is None and session.asked('pip') == installs('lopa-unzipped/new/')
    for name in ('lopa.zip', 'lopa (1).zip'):
        (session.content / name).unlink()
    session.upload(wheel, age=10)
    session.upload('lopa-0.1.0-py3-none-any (1).whl')
    assert session.run() is None
    assert session.asked('pip') == installs('lopa-0.1.0-py3-none-any (1).whl')


def test_half_a_zip_stops_and_leaves_nothing_that_counts(session):
    path = session.upload('lopa.zip', 'lopa/')
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert re.search('unzip lopa.zip ended with ".*File is not a zip file"; upload', session.run())
    path.write_bytes(whole.replace(b'{}', b'[}', 2).replace(b'[}', b'{}', 1))  # a damaged file
    assert re.search('unzip lopa.zip ended with ".*Bad CRC-32.*"; upload', session.run())
    assert (session.content / 'lopa-unzipped').exists() and not session.asked('pip')
    path.unlink()
    assert 'has no lopa zip or wheel' in session.run()  # what was unpacked of it does not count
    session.upload('lopa.zip', 'lopa/')
    assert session.run() is None and session.asked('pip') == installs('lopa-unzipped/lopa/')


def test_a_zip_of_something_else(session):
    with zipfile.ZipFile(session.content / 'lopa-runs.zip', 'w') as z:
        z.writestr('result.json', '{}')
    assert session.run() == sentence('lopa-runs.zip holds no nbs/tutorials')


def test_a_decided_address_is_cloned_once(session):
    for asked in ['clone --depth 1 -b main https://example.org/somebody/lopa part'], []:
        assert session.run(quoting, user='somebody') is None
        assert session.asked('git') == asked
        assert session.asked('pip') == installs('lopa-clone')
        assert Path.cwd() == session.content / 'lopa-clone' / 'nbs' / 'tutorials'


def test_uploads_come_before_the_clone(session):
    session.upload(wheel)
    assert session.run(user='somebody') is None
    assert session.run(quoting, user='somebody') is None
    session.upload('lopa.zip', 'lopa/')
    assert session.run(quoting, user='somebody') is None
    used = installs(wheel), installs('lopa-clone'), installs('lopa-unzipped/lopa/')
    assert session.asked('pip') == sum(used, [])


def test_half_a_clone_does_not_count(session):
    (session.content / 'lopa' / '.git').mkdir(parents=True)  # somebody else's attempt
    (session.logs / 'no-network').touch()
    why = '/content has no lopa zip or wheel, and git clone ended with "fatal: unable to access"'
    for _ in range(2):
        assert session.run(user='somebody') == sentence(why)
    assert (session.content / 'part').exists() and not session.asked('pip')
    (session.logs / 'no-network').unlink()
    assert session.run(user='somebody') is None
    assert Path.cwd() == session.content / 'lopa-clone' / 'nbs' / 'tutorials'


@pytest.mark.parametrize(
    'refused, name', [('.whl', f'pip install {wheel}'), ('assets.txt', 'pip -r assets.txt')]
)
def test_pip_that_fails_is_quoted(session, refused, name):
    session.upload(wheel)
    (session.logs / 'pip-refuses').write_text(refused)
    why = f'{name} ended with "ERROR: No matching distribution found for torch>=2.5"'
    assert session.run() == sentence(why, 'mend that')
    assert refused in session.asked('pip')[-1], 'it went on'
    (session.logs / 'pip-refuses').unlink()
    assert session.run() is None and session.asked('pip') == installs(wheel)


@pytest.mark.parametrize('found', [True, False], ids=['installed', 'stopped'])
def test_in_a_kernel(session, found):
    "The sentence is all that is shown, and the next cell does not run"
    if found:
        session.upload(wheel)
    make_colab = "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')"
    cells = [nbformat.v4.new_code_cell(c) for c in (make_colab, session.cell(), "print('next')")]
    nb = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(nb, timeout=120)
    if found:
        client.execute()
    else:
        with pytest.raises(CellExecutionError):
            client.execute()
    _, (shown,), last = [cell.outputs for cell in nb.cells]
    if found:
        assert (shown.text, last[0].text) == (f'lopa is installed from {wheel}\n', 'next\n')
    else:
        why = f'{session.content} has no lopa zip or wheel, and lopa has no public address yet'
        assert shown.output_type == 'error' and not last
        assert shown.traceback == [shown.evalue] == [sentence(why)]


@pytest.mark.parametrize('path', tutorials, ids=lambda p: p.stem)
def test_every_tutorial_has_its_cell(path):
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == 'code']
    code = '\n'.join(c.source for c in cells if not c.id.startswith('colab-'))
    for user in colab.UNDECIDED, 'a-name-of-usual-length':
        about = colab.settings() | {'user': user, 'git_url': f'https://github.com/{user}/lopa'}
        badge, cells = colab.templates(path.relative_to(root).as_posix(), code, about)
        assert ('[Open in Colab]' in badge) == (user in badge) == (user != colab.UNDECIDED)
        assert (not cells) == (path.stem == '1_lopa_by_hand')
        if not cells:
            continue
        for cell in cells.values():
            assert len(cell.splitlines()) <= 25 and max(map(len, cell.splitlines())) <= 100
        text = '\n\n'.join(cells.values())
        assert (user in text) == (user != colab.UNDECIDED)
        compile(text, path.name, 'exec')
        needs_results = path.stem in ('3_methods_compared', '6_ablations')
        assert ('wheels lack results' in text) == needs_results


@pytest.fixture(scope='session')
def built(tmp_path_factory):
    "A wheel of this checkout, built without a network"
    if not importlib.util.find_spec('setuptools'):
        pytest.skip('needs setuptools')
    copy, out = tmp_path_factory.mktemp('copy'), tmp_path_factory.mktemp('wheels')
    for path in root.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    shutil.copytree(root / 'lopa', copy / 'lopa', ignore=shutil.ignore_patterns('__pycache__'))
    wheel_here = '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', out, copy
    ran = subprocess.run([sys.executable, *wheel_here], capture_output=True, text=True)
    assert not ran.returncode, ran.stderr
    assert not (copy / 'lopa' / 'assets.txt').exists()  # one list, in the root
    return next(out.glob('lopa-*.whl'))


def test_the_wheel_has_modules_and_assets(built):
    with zipfile.ZipFile(built) as z:
        names = {n for n in z.namelist() if '.dist-info/' not in n}
        modules = {p.relative_to(root).as_posix() for p in root.glob('lopa/**/*.py')}
        assert names == modules | {'lopa/assets.txt', 'lopa/py.typed'}
        assert z.read('lopa/assets.txt') == (root / 'assets.txt').read_bytes()
