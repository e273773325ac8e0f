"What `make test-gpu` does when there is no GPU, and when a part fails, hangs or lacks a package"

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace as NS

import pytest
import test_cuda
import torch
from helpers import one_sentence
from torch.nn import functional as F

from tools import gpu
from tools.gpu_parts import PARTS, Part, sweep_grid
from tools.gpu_read import only, read_sweep, read_tests, spans
from tools.gpu_run import carry_out, environment

root = Path(__file__).resolve().parents[1]


def fake(name, code, needs=(), limit=60, read=lambda folder: ({'numbers': [1, 2]}, [])):
    "A part that runs some Python in place of the real thing"
    return Part(name, 'a fake', needs, limit, limit, lambda folder, tiny: ['-c', code], read)


def rehearse(parts, folder, monkeypatch, *more):
    "Exit status and report"
    monkeypatch.setattr(gpu, 'PARTS', parts)
    status = gpu.main(['--rehearse', '--out', str(folder), *more])
    return status, json.loads((folder / 'cpu.json').read_text(encoding='utf-8'))


def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)


def test_without_a_gpu_it_says_so_and_runs_nothing(monkeypatch, tmp_path):
    without_gpu(monkeypatch)
    monkeypatch.setattr(gpu, 'carry_out', lambda *_, **__: pytest.fail('something was run'))
    with pytest.raises(SystemExit) as e:
        gpu.main(['--out', str(tmp_path / 'out')])
    one_sentence(e.value.code, 'No CUDA GPU here', 'nothing was run', '--list')
    assert not (tmp_path / 'out').exists()


def test_list(monkeypatch, capsys):
    without_gpu(monkeypatch)
    monkeypatch.setattr(gpu, 'PARTS', [*PARTS, fake('odd', '', needs=('no_such_package',))])
    assert gpu.main(['--list', '--only', 'tests,odd']) is None
    tests, odd = capsys.readouterr().out.splitlines()
    assert tests.startswith('tests') and f'at most {PARTS[0].limit} s' in tests
    assert odd.endswith('left out here, no_such_package not installed')


def test_limits():
    "All parts together stay under 8 minutes, a rehearsal, too"
    real = [p for p in PARTS if p.name != 'notebooks']
    assert sum(p.limit for p in real) < 480 and sum(p.limit_tiny for p in real) < 480


INSIDE = str(root / 'results' / 'gpu' / 'new')


@pytest.mark.parametrize(
    'args',
    [
        ['--rehearse'],
        ['--rehearse', '--out', 'results/gpu'],
        ['--rehearse', '--out', INSIDE],
        ['--only', 'test'],
    ],
)
def test_bad_arguments(args, monkeypatch, capsys):
    monkeypatch.chdir(root)
    with pytest.raises(SystemExit) as e:
        gpu.main(args)
    assert e.value.code == 2 and 'expected' in capsys.readouterr().err.splitlines()[-1]


def test_a_part_that_fails_hangs_or_lacks_a_package(monkeypatch, tmp_path, capsys):
    "Each is on record with its reason, and the others run"
    fails = 'import sys; print("loading", end="\\r"); sys.exit("lopa: no such thing")'
    parts = [
        fake('hangs', 'import time; time.sleep(600)', limit=1),
        fake('fails', fails),
        fake('lacks', '', needs=('no_such_package', 'json')),
        fake('unread', '', read=only('none')),
        fake('good', 'print("fine")'),
    ]
    status, report = rehearse(parts, tmp_path, monkeypatch)
    out = {entry['what']: entry for entry in report['left_out']}
    assert status == 1 and set(out) == {'fails', 'hangs', 'lacks', 'unread'}
    assert out['fails']['why'] == 'ended with status 1: lopa: no such thing'
    assert out['hangs']['why'] == 'ran out of time after 1 s'
    assert out['lacks']['why'] == 'needs what is not installed: no_such_package'
    assert [name for name in out if not out[name]['failed']] == ['lacks']
    assert 'FileNotFoundError' in out['unread']['why'] and report['unread'] is None
    assert report['good'] == {'numbers': [1, 2]} and report['lacks'] is None
    assert list(report['seconds']) == [p.name for p in parts] and report['rehearsal'] is True
    assert (tmp_path / 'cpu-good.log').read_text() == 'fine\n'
    said = capsys.readouterr().out
    assert 'lopa: no such thing' in said and 'left out: lacks: needs what is not installed' in said
    assert not [p for p in tmp_path.iterdir() if p.name[0] == '.']


def test_time_left_over_goes_on(monkeypatch, tmp_path):
    "A part that would be too slow alone ends well after one that was quick"
    given = []
    monkeypatch.setattr(gpu, 'carry_out', lambda command, log, limit, **_: given.append(limit) or 0)
    rehearse([fake('quick', '', limit=50), fake('slow', '', limit=10)], tmp_path, monkeypatch)
    assert given[0] == 50 and 10 < given[1] <= 60


def test_the_report_is_whole_after_every_part(monkeypatch, tmp_path):
    "Whoever cuts the second part short keeps the first"

    def second(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rehearse([fake('first', ''), fake('second', '', read=second)], tmp_path, monkeypatch)
    report = json.loads((tmp_path / 'cpu.json').read_text(encoding='utf-8'))
    assert report['first'] == {'numbers': [1, 2]} and list(report['seconds']) == ['first']


def test_on_a_gpu(monkeypatch, tmp_path):
    "The report is named after the device, and says where and of what it is"
    where = {'device': 'NVIDIA H100 80GB HBM3', 'memory_mb': 81559, 'cuda': '13.0', 'cudnn': 91900}
    monkeypatch.setattr(gpu, 'gpu', lambda: dict(where))
    monkeypatch.setattr(
        gpu,
        'PARTS',
        [
            fake('tests', 'import os; print(os.environ["HF_HUB_OFFLINE"])'),
            fake('notebooks', 'import sys; sys.exit("not asked for")'),
        ],
    )
    assert gpu.main(['--out', str(tmp_path)]) == 0
    report = json.loads((tmp_path / 'nvidia-h100-80gb-hbm3.json').read_text(encoding='utf-8'))
    assert where.items() <= report.items() and report['rehearsal'] is False
    release = torch.__version__.partition('+')[0]  # the rest names the build
    assert report['versions']['torch'].partition('+')[0] == release
    assert {'date', 'commit'} <= set(report)
    assert list(report['seconds']) == ['tests'] and report['left_out'] == []
    assert (tmp_path / 'nvidia-h100-80gb-hbm3-tests.log').read_text() == '1\n'


def test_chosen_parts(monkeypatch, tmp_path):
    "In their own order; a run of which everything was left out is no success"
    parts = [fake('a', ''), fake('b', ''), fake('c', '', needs=('no_such_package',))]
    status, report = rehearse(parts, tmp_path, monkeypatch, '--only', 'b,a')
    assert status == 0 and list(report['seconds']) == ['a', 'b'] and 'c' not in report
    assert rehearse(parts, tmp_path, monkeypatch, '--only', 'c')[0] == 1


def test_nothing_outlives_its_part(tmp_path):
    "What a part started and left behind ends with it"
    psutil, child = pytest.importorskip('psutil'), tmp_path / 'child'
    code = f"""if True:
        import subprocess, sys
        sleeping = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
        open({str(child)!r}, 'w').write(str(sleeping.pid))"""
    assert carry_out(['-c', code], tmp_path / 'log', 60) == 0

    def alive():
        try:
            return psutil.Process(int(child.read_text())).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    while alive():
        time.sleep(0.01)


def test_make_needs_no_environment(tmp_path):
    "`.venv` where there is one, else PYTHON, and no installation"
    if not shutil.which('make'):
        pytest.skip('there is no make')
    shutil.copy(root / 'Makefile', tmp_path)

    def command():
        ask = ['make', '-n', 'test-gpu', 'PYTHON=python3.99', 'ARGS=--list']
        alone = {
            k: v for k, v in os.environ.items() if k not in ('MAKEFLAGS', 'MAKELEVEL', 'MFLAGS')
        }
        said = subprocess.run(ask, cwd=tmp_path, env=alone, capture_output=True, text=True).stdout
        return [line for line in said.splitlines() if line[0] != '#']

    assert command() == ['python3.99 -m tools.gpu --list']
    (tmp_path / '.venv' / 'bin').mkdir(parents=True)
    (tmp_path / '.venv' / 'bin' / 'python').touch()
    assert command() == ['.venv/bin/python -m tools.gpu --list']


# --- what is read from the files that parts leave ---


def test_spans():
    assert spans([7, 1, 2, 3, 2]) == '1–3, 7' and spans([5]) == '5'


TESTS = """
import pytest
refused = {'what': 'cudnn, llama, pt', 'why': 'No available kernel'}
def test_good(record_property): record_property('gpu_peak_mb', 7)
def test_kernels(record_property):
    record_property('kernels', {'flash, llama': {'compared': 3, 'worst': .01}})
    record_property('left_out', [refused | {'lengths': [4, 5]}])
@pytest.mark.parametrize('n', [6, 7])
def test_more(n, record_property):
    record_property('kernels', {'flash, llama': {'compared': 1, 'worst': .02}})
    record_property('left_out', [refused | {'lengths': [n]}])
def test_bad(): assert 1 == 2, 'one is not two'
@pytest.mark.skipif(True, reason='not here')
def test_left(): pass
@pytest.fixture
def broken(): yield; raise ValueError('afterwards')
def test_afterwards(broken): pass
"""


@pytest.mark.parametrize('many', [[], ['-n', '2']])
def test_record_of_tests(many, tmp_path, monkeypatch):
    "A line for each test, whatever became of it, with one process and with two"
    if many:
        pytest.importorskip('xdist')
    for name in [n for n in os.environ if n.startswith('PYTEST_XDIST')]:
        monkeypatch.delenv(name)
    (tmp_path / 'test_some.py').write_text(TESTS)
    ask = [
        '-m',
        'pytest',
        '-q',
        '-p',
        'tools.gpu_log',
        '-p',
        'no:cacheprovider',
        *many,
        str(tmp_path / 'test_some.py'),
        '--rootdir',
        str(tmp_path),
    ]
    assert carry_out(ask, tmp_path / 'log', 600, cwd=root, env=environment(tmp_path, root)) == 1
    found, out = read_tests(tmp_path)
    assert (found['passed'], found['failed'], found['skipped']) == (4, 2, 1)
    assert found['kernels'] == {'flash, llama': {'compared': 5, 'worst': 0.02}}
    by_name = {t['test'].rpartition('::')[2]: t for t in found['cases']}
    assert by_name['test_good']['gpu_peak_mb'] == 7
    assert 'one is not two' in by_name['test_bad']['why']
    failed = {e['what'].rpartition('::')[2] for e in out if e['failed']}
    assert failed == {'test_bad', 'test_afterwards'}
    assert [(e['what'], e['why']) for e in out if not e['failed']] == [
        ('tests: cudnn, llama, pt, lengths 4–7', 'No available kernel'),
        ('tests: test_left (1)', 'not here'),
    ]


def test_record_of_a_sweep(tmp_path):
    "Runs that ended, runs that failed, and steps that the guard left out"
    with pytest.raises(OSError):
        read_sweep(tmp_path)
    (tmp_path / 'runs').mkdir()

    def result(name, dtype='bfloat16', **more):
        run = {'method': 'pt', 'dtype': dtype} | more
        (tmp_path / 'runs' / f'{name}.json').write_text(json.dumps(run))

    result('pt-1')
    assert read_sweep(tmp_path)[0]['left_out_steps'] is None  # nobody counted
    result('pt-2', left_out=[])
    result('pt-3', left_out=[1, 2], dtype='float16')
    result('pt-4.failed', error='OSError: disk full')
    found, out = read_sweep(tmp_path)
    assert found['finished'] == 3 and found['failed'] == {'pt-4': 'OSError: disk full'}
    assert found['left_out_steps'] == 2
    assert [(e['what'], e['why']) for e in out] == [('sweep: pt-4', 'OSError: disk full')]
    result('pt-5', left_out=[{'step': 7}])
    assert read_sweep(tmp_path)[1][1]['what'] == 'sweep: 1 training steps'


@pytest.mark.parametrize('tiny,runs', [(False, 12), (True, 2)])
def test_the_grid_is_one(tiny, runs):
    from lopa.ablate import expand, experiment

    assert len([experiment(e) for e in expand(sweep_grid(tiny))]) == runs


COMMANDS = [p for p in PARTS if p.name in ('demo', 'sweep', 'steps')]


@pytest.mark.parametrize('part', COMMANDS, ids=lambda p: p.name)
def test_commands_are_commands_of_lopa(part, tmp_path):
    "Every option that is passed exists"
    command = part.command(tmp_path, False)
    log, env = tmp_path / 'log', environment(tmp_path, root) | {'COLUMNS': '200'}
    assert carry_out([*command[:3], '--help'], log, 600, cwd=root, env=env) == 0
    missing = [word for word in command if word.startswith('--') and word not in log.read_text()]
    if '--sizes' in missing:
        pytest.skip('`lopa bench` has no --sizes yet')
    assert not missing


# --- the tests for a GPU notice what they are for ---


@pytest.fixture
def on_the_cpu(monkeypatch):
    "Where the kernel that is called cuDNN is the CPU's own"
    kernels = test_cuda.KERNELS
    monkeypatch.setattr(test_cuda, 'DEVICE', 'cpu')
    monkeypatch.setattr(test_cuda, 'KERNELS', kernels | {'cudnn': kernels['flash']})


def plain():
    return torch.backends.cuda.math_sdp_enabled()


def replace_attention(monkeypatch, change):
    "Queries of every kernel but the plain one go through `change`"
    real = F.scaled_dot_product_attention

    def attention(query, *args, **kwargs):
        return real(query if plain() else change(query), *args, **kwargs)

    monkeypatch.setattr(F, 'scaled_dot_product_attention', attention)


class Faulty(torch.autograd.Function):
    "Hands its input on; its gradient is not a number"

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * float('nan')


def found_at(case, t, family='grouped'):
    "What the steps of one length find"
    found = test_cuda.Found(family, 'bfloat16')
    found.steps(test_cuda.in_training(family, torch.float32, case), case, t)
    return found


def test_a_fault_at_one_length_is_noticed(on_the_cpu, monkeypatch):
    "With a prompt of 10 and an answer of one token, a text of 53 tokens makes 64"
    replace_attention(monkeypatch, lambda q: Faulty.apply(q) if q.shape[2] % 128 == 64 else q)
    sound = found_at('pt prefix', 52)
    assert not sound.wrong and sound.compared == {'default': 1, 'flash': 1}
    assert found_at('pt prefix', 53).wrong == [
        'flash, pt prefix, length 53: differs by nan, allowed 0.1'
    ]
    assert found_at('lora', 63).wrong and not found_at('lora', 53).wrong


def test_refusals_are_told(on_the_cpu, monkeypatch):
    "A kernel that takes nothing is left out, and any other error is a failure"

    def refuse(error):
        def change(query):
            raise RuntimeError(error)

        with monkeypatch.context() as m:
            replace_attention(m, change)
            return found_at('pt prefix', 5)

    found = refuse('No available kernel. Aborting execution.')
    assert found.refused == {('flash', 'pt prefix', 'No available kernel'): [5]} and not found.wrong
    assert 'No execution plans' in refuse('cuDNN: No execution plans support the graph.').wrong[0]


def test_a_mask_for_cudnn_is_a_failure(on_the_cpu):
    model = test_cuda.in_training('roberta', torch.float32, 'lora')
    batch = test_cuda.batch_of(model, 'roberta', 5)
    with pytest.raises(RuntimeError, match=test_cuda.MASK):
        test_cuda.gradients(model, batch, 'cudnn')
    assert test_cuda.gradients(model, batch, 'flash')


def test_the_workaround_is_asked_for(on_the_cpu, monkeypatch):
    "Skipped on other versions and GPUs; where the kernel is sound, a sentence says what to do"

    def check(faulty=True, capability=(9, 0)):
        monkeypatch.setitem(sys.modules, 'lopa.attention', NS(faulty_cudnn=lambda: faulty))
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda: capability)
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'Some GPU')
        test_cuda.test_the_workaround_for_cudnn_is_still_needed()

    with pytest.raises(pytest.skip.Exception, match='no workaround'):
        check(faulty=False)
    with pytest.raises(pytest.skip.Exception, match='Some GPU'):
        check(capability=(8, 0))
    with pytest.raises(AssertionError) as e:
        check()
    assert str(e.value).startswith(
        "cuDNN's backward is finite again with torch "
        f'{torch.__version__}: remove the workaround in lopa.attention'
    )
    replace_attention(monkeypatch, Faulty.apply)
    check()


def test_a_place_that_cannot_be_a_folder(tmp_path, capsys):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(SystemExit):
        gpu.main(['--rehearse', '--out', str(tmp_path / 'file'), '--only', 'steps'])
    assert '--out' in capsys.readouterr().err and (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.parametrize('name', ['cpu.json', 'cpu-tests.log'])
@pytest.mark.parametrize('kind', ['folder', 'link', 'foreign'])
def test_what_is_not_ours_is_not_replaced(tmp_path, monkeypatch, capsys, name, kind):
    "Neither a report's place nor that of a log, and nothing is run"
    if (name, kind) == ('cpu-tests.log', 'foreign'):
        return  # a log has no mark
    monkeypatch.setattr(gpu, 'carry_out', lambda *_, **__: pytest.fail('something was run'))
    out = tmp_path / 'out'
    out.mkdir()
    (tmp_path / 'mine').write_text('mine')
    if kind == 'folder':
        (out / name).mkdir()
    elif kind == 'link':
        (out / name).symlink_to('../mine')
    else:
        (out / name).write_text('mine')
    with pytest.raises(SystemExit):
        gpu.main(['--rehearse', '--only', 'tests', '--out', str(out)])
    assert name in capsys.readouterr().err and (tmp_path / 'mine').read_text() == 'mine'
