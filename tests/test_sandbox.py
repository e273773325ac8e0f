"Programs that cheat, break out or stay: each ends with a status, and leaves us as we were"

import argparse
import errno
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hostile_runs import TRY_ALL, has_held, marked, new_mark, programs
from hypothesis import given, settings
from hypothesis import strategies as st

from lopa.sandbox import (
    GAPS,
    GAPS_AS_YOURSELF,
    LADDER,
    STATUSES,
    VALUE_BYTES,
    below,
    gaps,
    host,
    ladder,
    nobody,
    probe,
    read_message,
    run_on,
    run_program,
    run_programs,
    same_value,
    threads,
    why_not,
)
from lopa.sandbox.child import is_below, tell
from lopa.sandbox.host import Outcome, Report
from lopa.sandbox.values import decode, encode

root = Path(__file__).resolve().parents[1]
posix = pytest.mark.skipif(os.name != 'posix', reason='programs run on Linux and macOS')
linux = pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
strongest = next((r for r in LADDER if not why_not(r)), 'child')
pytestmark = [posix, pytest.mark.filterwarnings('ignore:Programs run on the lowest rung')]


@pytest.fixture(params=list(LADDER))
def rung(request):
    if why_not(request.param):
        pytest.skip(f'{request.param}: {why_not(request.param)}')
    return request.param


def run(source, rung, timeout=2, **kwargs):
    return run_program(source, timeout=timeout, rung=rung, allow_weak_isolation=True, **kwargs)


# ---- what must be as before ----


def owner(pid):
    "User of a process, None if it is gone"
    try:
        status = Path(f'/proc/{pid}/status').read_text()
    except OSError:
        return None
    uid = re.search(r'^Uid:\s+(\d+)', status, re.MULTILINE)
    return int(uid[1]) if uid else None


def serves(pid):
    "Is it one of our children for programs?"
    return 'exec(marshal.loads(' in Path(f'/proc/{pid}/cmdline').read_text(errors='replace')


def left(users):
    "Processes of throwaway users, and our own children"
    own = [pid for pid in below(os.getpid()) if serves(pid)]
    everybody = [int(folder.name) for folder in Path('/proc').glob('[0-9]*')]
    return own + [pid for pid in everybody if owner(pid) in users]


def surroundings():
    "What no program may change: environment, current folder, number of open files"
    environment = {k: v for k, v in os.environ.items() if k != 'PYTEST_CURRENT_TEST'}
    return environment, os.getcwd(), len(os.listdir('/proc/self/fd'))


@pytest.fixture(autouse=True)
def unchanged(monkeypatch):
    "After every test: no process, no temporary file, no open file, and the environment as it was"
    if sys.platform != 'linux':
        yield
        return
    users = set()

    def drawn():
        uid = nobody()
        users.add(uid)
        return uid

    monkeypatch.setattr(host, 'nobody', drawn)
    monkeypatch.setattr(ladder, 'nobody', drawn)
    with tempfile.TemporaryDirectory(dir='/tmp', prefix='test-') as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setattr(tempfile, 'tempdir', folder)
        before = surroundings()
        yield
        assert surroundings() == before
        assert os.listdir(folder) == []
    until = time.monotonic() + 3  # whoever has died may wait for init to notice
    while left(users - {None}) and time.monotonic() < until:
        time.sleep(0.02)
    assert left(users - {None}) == []


@pytest.fixture
def planted(request):
    "A folder of ours: two files, a place for everybody; a program with a secret; a server here"
    user = getattr(request, 'param', None)
    folder = Path(tempfile.mkdtemp(dir='/tmp', prefix='planted-'))
    folder.chmod(0o755)
    for name, mode in ('private', 0o600), ('public', 0o644):
        (folder / name).write_text('as it was')
        (folder / name).chmod(mode)
    (folder / 'everybody').mkdir()
    (folder / 'everybody').chmod(0o1777)
    whose = {}
    if user:
        whose = dict(user=user, group=user, extra_groups=[])
        for path in (folder, *folder.rglob('*')):
            os.chown(path, user, user)
    sleeper = subprocess.Popen(['/bin/sleep', '300'], env={'SECRET': 'open sesame'}, **whose)
    with socket.create_server(('127.0.0.1', 0)) as server:
        yield folder, sleeper, server
    sleeper.kill()
    sleeper.wait()
    shutil.rmtree(folder)


# ---- values ----

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.binary()
    | st.text(st.characters(exclude_categories=()))
)
keys = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)
often = settings(deadline=None, max_examples=200, derandomize=True)


def identical(a, b):
    "Compare by an independent road: types, then repr of scalars, then parts in order"
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return identical(list(a.items()), list(b.items()))
    if isinstance(a, (set, frozenset)):
        return len(a) == len(b) and all(any(identical(x, y) for y in b) for x in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(identical, a, b))
    return repr(a) == repr(b)


@often
@given(values)
def test_values_come_back_as_they_were(value):
    assert identical(decode(encode(value).encode()), value)


@often
@given(values, values)
def test_same_value_means_equal_types_and_parts(a, b):
    assert same_value(a, a)
    if same_value(a, b):
        assert type(a) is type(b) and (a == b or 'nan' in repr(a))


@pytest.mark.parametrize(
    'a, b',
    [
        (1, True),
        (1, 1.0),
        (0, False),
        (1.0, 1 + 0j),
        ('a', b'a'),
        ([1], (1,)),
        ({1}, frozenset({1})),
        ({1: 2}, {1.0: 2}),
        ({1}, {True}),
        ([[0]], [[0.0]]),
        ({'a': [1]}, {'a': (1,)}),
        (None, False),
        ('1', 1),
        ({1, 2}, {1}),
        ([1, 2], [2, 1]),
    ],
)
def test_different_values(a, b):
    assert not same_value(a, b) and not same_value(b, a)


@pytest.mark.parametrize(
    'a, b',
    [
        (math.nan, -math.nan),
        ([{1: math.nan}], [{1: math.nan}]),
        ({1, 2}, {2, 1}),
        ({1: 2, 3: 4}, {3: 4, 1: 2}),
        (0.0, -0.0),
        (10**4000, 10**4000),
        ({(1, 2): {3}}, {(1, 2): {3}}),
    ],
)
def test_equal_values(a, b):
    assert same_value(a, b)


def test_what_is_not_plain_data_equals_nothing():
    class Yes(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    for odd in Yes(3), [Yes(3)], object(), lambda: 0, range(3), bytearray(b'a'):
        assert not same_value(odd, odd) and not same_value(odd, 3)


@often
@given(st.binary(max_size=200) | values.map(lambda v: encode(v).encode()), st.data())
def test_reading_hostile_bytes_never_raises(data, draw):
    nonce, data = b'n' * 16, bytearray(data)
    for _ in range(draw.draw(st.integers(0, 3))):
        if data:
            data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        decode(bytes(data))
    except ValueError:
        pass
    for message in (
        bytes(data),
        nonce + bytes(data),
        nonce + len(data).to_bytes(8, 'big') + bytes(data),
    ):
        status, value = read_message(message, nonce)
        assert status in STATUSES and (status == 'ok' or value is None)


@pytest.mark.parametrize(
    'body',
    [
        b'[' * 200_000,
        b'[["list"]' * 20_000,
        b'9' * 200_000,
        b'["int","' + b'f' * 200_000,
        b'["dict",["list"]]',
        b'["set",["dict"]]',
        b'["bool","yes"]',
        b'["__class__","a"]',
        b'["str","ff"]',
        b'{"a": 1}',
        b'null',
        '["int","1"]'.encode('utf-16'),
        '["int","١"]'.encode(),
    ],
)
def test_malformed_values(body):
    with pytest.raises(ValueError, match='expected a value'):
        decode(body)


def test_keys_that_collide_do_not_hold_us_up():
    "All multiples of 2⁶¹ - 1 have the hash 0; as many as fit into a message"
    begun = time.monotonic()
    body = encode({i * (2**61 - 1) for i in range(8500)})
    assert len(body) < VALUE_BYTES and len(decode(body.encode())) == 8500
    assert time.monotonic() - begun < 20


# ---- honest programs ----

HONEST = {
    'f(2)': ('def f(x): return x + 1\nf(2)', 3),
    'no expression': ('x = 1', None),
    'nothing': ('', None),
    'text': ('"é\\ud800"', 'é\ud800'),
    'several': ('1, 1.0, True', (1, 1.0, True)),
    'big': ('7**9999', 7**9999),
    'main': ('__name__', '__main__'),
    'input': ('import sys\nsys.stdin.read()', ''),
    'dataclass': (
        'from dataclasses import *\n@dataclass\nclass A:\n  x: int = 1\nasdict(A())',
        {'x': 1},
    ),
    'library': (
        'import asyncio, decimal, encodings.idna, re, sqlite3, ssl\n'
        'async def f(): return 3\n'
        'asyncio.run(f())',
        3,
    ),
    'threads': (
        'from threading import Thread\n'
        'x = []\n'
        'for i in range(8): t = Thread(target=x.append, args=(i,)); t.start(); t.join()\n'
        'x',
        list(range(8)),
    ),
    'fork': (
        'import os\n'
        'pid = os.fork()\n'
        'if not pid: os._exit(7)\n'
        'os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])',
        7,
    ),
    'a copy that goes on': (
        'import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\npid > 0',
        True,
    ),
    'a file of its own': ('open("a", "w").write("b")\nopen("a").read()', 'b'),
    'future': ('from __future__ import annotations\ndef f(x: nowhere): return 1\nf(0)', 1),
}


@pytest.mark.parametrize('name', HONEST)
def test_honest_programs(name, rung):
    source, expected = HONEST[name]
    o = run(source, rung, timeout=20)
    assert o.status == 'ok' and same_value(o.value, expected), o
    assert o.isolation == rung and 0 < o.seconds < 25 and 1 < o.peak_mb < 200


def test_what_is_printed(rung):
    source = (
        'import sys\n'
        'print("é", flush=True)\n'
        'print("oh", file=sys.stderr)\n'
        'sys.stdout.buffer.write(b"\\xff\\n")'
    )
    o = run(source, rung)
    assert (o.status, o.stdout, o.stderr) == ('ok', 'é\n\ufffd\n', 'oh\n')


def test_a_traceback_is_the_programs_own(rung):
    o = run('def f(): 1/0\nf()', rung)
    assert o.status == 'error' and 'ZeroDivisionError' in o.stderr
    assert 'line 1, in f' in o.stderr and 'run_cell' not in o.stderr
    assert 'SyntaxError' in run('def (', rung).stderr


def test_a_source_of_100_000_lines(rung):
    o = run('x = 1\n' * 100_000 + 'x', rung, timeout=60, memory_mb=1024)
    assert (o.status, o.value) == ('ok', 1)


# ---- hostile programs ----

attempts = """
import ctypes, os, socket, sys, time
def attempt(f):
    try: return f() or "DONE"
    except (OSError, AttributeError) as e: return type(e).__name__
"""
finds_job = """
import sys, os
f = sys._getframe()
while "job" not in f.f_locals: f = f.f_back
job = f.f_locals["job"]
"""
HOSTILE = {  # name → (program, statuses in which it may end)
    'endless loop': ('while True: pass', 'timeout'),
    'sleep': ('import time\ntime.sleep(99)', 'timeout'),
    'ignores signals': (
        'import signal, time\n'
        'for n in {*range(1, 32)} - {9, 19}: signal.signal(n, signal.SIG_IGN)\n'
        'time.sleep(99)',
        'timeout',
    ),
    'fork bomb': (
        'import os\nfor _ in range(9):\n  try: os.fork()\n  except OSError: pass\nwhile True: pass',
        'timeout',
    ),  # 512 at most, come what may
    'thread bomb': (
        'import threading, time\n'
        'for _ in range(500): threading.Thread(target=time.sleep, args=(99,)).start()',
        'error',
    ),
    'memory bomb': ('x = []\nfor _ in range(4000): x.append(bytes(10**6))', 'memory'),
    'one large block': ('bytes(10**12)', 'memory'),
    'memory bomb in small pieces': (
        'x = None\nfor _ in range(10**8): x = [x]',
        'memory timeout exit',
    ),
    '10 GB of output': ('for _ in range(10**4): print("x"*10**6)', 'output'),
    '10 GB of errors': ('import sys\nfor _ in range(10**4): sys.stderr.write("x"*10**6)', 'output'),
    'output from below': ('import os\nwhile True: os.write(1, b"x"*10**6)', 'output'),
    'deep recursion': ('f = lambda: f()\nf()', 'error'),
    'recursion without limit': (
        'import sys\nsys.setrecursionlimit(10**9)\nf = lambda x: f([x])\nf(0)',
        'error exit memory timeout',
    ),
    'nested source': ('(' * 5000 + ')' * 5000, 'error memory exit'),
    'long chain': ('+'.join('1' for _ in range(50_000)), 'ok error memory exit'),
    'null byte': ('x = 1\0', 'error'),
    'lone surrogate': ('"\ud800"', 'error'),
    'os._exit(0)': ('import os\nos._exit(0)', 'exit'),
    'sys.exit(0)': ('import sys\nsys.exit(0)', 'exit'),
    'exit()': ('exit()', 'exit'),
    'SystemExit': ('raise SystemExit', 'exit'),
    'KeyboardInterrupt': ('raise KeyboardInterrupt', 'error'),
    'BaseException': ('class E(BaseException):\n  def __str__(self): raise self\nraise E', 'error'),
    'segmentation fault': ('import ctypes\nctypes.string_at(0)', 'exit'),
    'kills itself': ('import os\nos.kill(os.getpid(), 9)', 'exit error'),
    'kills its group': ('import os\nos.killpg(0, 9)', 'exit error'),
    'always equal': ('class Yes:\n  def __eq__(self, other): return True\nYes()', 'unserialisable'),
    'always equal integer': (
        'class Yes(int):\n  def __eq__(self, other): return True\nYes(1)',
        'unserialisable',
    ),
    'a class that is a list': (
        'class M(type):\n'
        '  def __eq__(self, other): return True\n'
        '  __hash__ = type.__hash__\n'
        'class L(metaclass=M): pass\n'
        'L()',
        'unserialisable',
    ),
    'a value too large': ('[0]*10**6', 'unserialisable'),
    'a value too deep': ('x = []\nfor _ in range(500): x = [x]\nx', 'unserialisable'),
    'a value within itself': ('x = []\nx.append(x)\nx', 'unserialisable'),
    'a value that doubles': ('x = []\nfor _ in range(60): x = [x, x]\nx', 'timeout memory'),
    'writes to all files it has': (
        'import os\nfor fd in range(256):\n  try: os.write(fd, b"42")\n  except OSError: pass',
        'forged',
    ),
    'sends two results': (
        finds_job + 'os.write(job["result"], job["nonce"] + bytes(7) + b"\\x01x")\n1',
        'forged',
    ),
    'floods the result': (
        finds_job + 'while True: os.write(job["result"], b"x"*10**5)',
        'forged',
    ),
    'closes everything': ('import os, time\nos.closerange(0, 256)\ntime.sleep(99)', 'timeout'),
    'a full folder': (
        'import os\n'
        'for i in range(500): open(str(i), "w")\n'
        'os.mkdir("d"); os.chmod("d", 0); os.symlink("/", "root"); os.chmod(".", 0o500)',
        'ok error',
    ),
    'folders without end': ('import os\nfor _ in range(1100): os.mkdir("d"); os.chdir("d")', 'ok'),
    'a large file': ('open("x", "wb").write(bytes(10**8))', 'error'),
    'many open files': ('x = [open("/dev/null") for _ in range(1000)]', 'error'),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_programs(name, rung):
    source, statuses = HOSTILE[name]
    o = run(source, rung, timeout=1 if 'timeout' in statuses else 15)
    assert o.status in statuses.split(), o
    assert o.value is None or o.status == 'ok'
    assert len(o.stdout) <= 1 << 16 and len(o.stderr) <= 1 << 16 and o.seconds < 20


def test_number_of_processes_is_bounded(rung):
    source = """
import os, time
r, w = os.pipe()
me = os.getpid()
for _ in range(9):
  try: os.fork()
  except OSError: pass
os.write(w, b"x")
if os.getpid() != me: time.sleep(99)
time.sleep(1)
len(os.read(r, 1000))"""
    o = run(source, rung, timeout=15, processes=20)
    most = 20 if host.counted_apart(rung) else 20 + threads()
    assert o.status == 'ok' and 2 <= o.value <= most, o


breaks_all = """
import builtins, json, os, sys
for m in builtins, json, os, sys:
  for n in dir(m):
    if n not in ("setattr", "dir", "__import__"): setattr(m, n, None)
7"""
breaks_some = """
import builtins, json, sys
builtins.len = builtins.type = builtins.any = lambda *a: 0
json.dumps = lambda *a: "1"
sys.stdout = sys.stderr = None
[1, 2]"""


def test_monkey_patches_reach_nothing(rung):
    o = run(breaks_all, rung)
    assert o.status in ('ok', 'exit', 'error') and o.value in (7, None)
    o = run(breaks_some, rung)
    assert (o.status, o.value) == ('ok', [1, 2])


def test_a_forged_result_must_still_be_right(rung):
    forger = finds_job + (
        'b = f.f_globals["encode"](("ok", 41)).encode()\n'
        'os.write(job["result"], job["nonce"] + len(b).to_bytes(8, "big") + b)\n'
        'os._exit(0)'
    )
    o = run(forger, rung)
    assert o.status == 'ok' and not same_value(o.value, 42) and same_value(o.value, 41)


daemons = """
import os, time
for _ in range(5):
  if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
      os.setsid()
      for fd in range(256):
        try: os.close(fd)
        except OSError: pass
      time.sleep(300)
    os._exit(0)
5"""


def test_daemons_do_not_stay(rung):
    o = run(daemons, rung)
    assert (o.status, o.value) == ('ok', 5)  # the fixture looks for them


plants = """
import os, sys
v = "python%d.%d" % sys.version_info[:2]
ours = os.path.expanduser("~/.local/lib/" + v + "/site-packages")
theirs = sys.base_prefix + "/lib/" + v + "/site-packages"
for d in (".", ours, sys.path[-2], theirs):
  for n in "sitecustomize.py", "usercustomize.py", "x.pth":
    try: os.makedirs(d, exist_ok=True); open(d + "/lopa-" + n, "x").close()
    except OSError: pass"""


def test_customisation_does_not_reach_a_program(rung, planted, monkeypatch):
    "Neither ours, nor what another program has tried to leave"
    folder = planted[0]
    (folder / 'sitecustomize.py').write_text('print("customised")')
    (folder / 'x.pth').write_text('import sys; print("customised")')
    if nobody() or rung != 'child':
        assert run(plants, rung).status == 'ok'
    with monkeypatch.context() as m:
        m.setenv('PYTHONPATH', str(folder))
        m.setenv('PYTHONSTARTUP', str(folder / 'sitecustomize.py'))
        o = run('1', rung)
    assert o.status == 'ok' and o.stdout == ''
    assert not list(Path(sys.base_prefix).glob('lib/python*/**/lopa-*custom*'))


writes_everywhere = """
import os, sys
for fd in range(3, 256):
  try: os.pwrite(fd, b"mine", 0)
  except OSError: pass
print(sorted(os.environ), "sesame" in str(os.environ))"""


def test_environment_and_open_files_stay_here(rung, planted, monkeypatch):
    with open(planted[0] / 'private', 'r+') as f, monkeypatch.context() as m:
        m.setenv('LOPA_TEST_SECRET', 'open sesame')
        os.set_inheritable(f.fileno(), True)
        o = run(writes_everywhere, rung)
    assert 'SECRET' not in o.stdout and 'False' in o.stdout
    assert (planted[0] / 'private').read_text() == 'as it was'


# ---- gaps: each rung stops what it says, and nothing else is claimed ----


reaches = """
def keep():
    "All in one mapping, of which only a page stays mapped"
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    for _ in range(3):
        block = libc.mmap(None, 100 << 20, 3, 0x21, -1, 0)
        if block == ctypes.c_void_p(-1).value: raise PermissionError
        ctypes.memset(ctypes.c_void_p(block), 1, 100 << 20)
        libc.munmap(block + 4096, (100 << 20) - 4096)

def has(path, word): return None if word in open(path).read() else "no"
def change(path): os.chmod(path, 0o640); os.utime(path, (1, 1))
def destroy(path): open(path).read(); open(path, "w").close(); os.unlink(path)
def read(*paths):
    for path in paths: open(path).read()
def fill():
    for i in range(6): open(str(i), "wb").write(bytes(3 << 20))
"""


def attacks(folder, sleeper, server):
    "What each gap is about: a program that comes to DONE where the gap is open"
    of_sleeper = f'/proc/{sleeper.pid}'
    tries = dict(
        calls='os.close(os.memfd_create("x"))',
        hidden='keep()',
        names=f'os.stat("{folder}/public").st_size == 9 and None',
        disk='fill()',
        network=f'socket.create_connection({server.getsockname()}, timeout=5).close()',
        readable=f'read("{folder}/public", "/etc/passwd")',
        writable=f'open("{folder}/everybody/x", "w").close()',
        processes=f'has("{of_sleeper}/cmdline", "sleep")',
        modes=f'change("{folder}/public")',
        files=f'destroy("{folder}/private")',
        environment=f'has("{of_sleeper}/environ", "sesame")',
        signals=f'os.kill({sleeper.pid}, 15)',
    )
    return {name: f'{attempts}{reaches}attempt(lambda: {code})' for name, code in tries.items()}


limits = dict(memory_mb=256, disk_mb=4)
known_gaps = [*GAPS['child'], *GAPS_AS_YOURSELF['child']]
known_gaps.remove('kernel')  # which nobody can test


def test_every_gap_has_its_test(planted):
    assert set(attacks(*planted)) == set(known_gaps)
    assert set(gaps('bubblewrap')) < set(gaps('landlock')) < set(gaps('child'))


@linux
@pytest.mark.parametrize('gap', known_gaps)
def test_gaps(gap, rung, planted):
    o = run(attacks(*planted)[gap], rung, timeout=20, **limits)
    assert o.status == 'ok' and (o.value == 'DONE') == (gap in gaps(rung)), (gap, o)
    if gap not in gaps(rung):
        nothing_has_happened(*planted)


def nothing_has_happened(folder, sleeper, server):
    "All of what was planted is as it was"
    assert sleeper.poll() is None
    assert sorted(os.listdir(folder)) == ['everybody', 'private', 'public']
    assert os.listdir(folder / 'everybody') == []
    assert {(folder / name).read_text() for name in ('private', 'public')} == {'as it was'}
    assert (folder / 'public').stat().st_mode & 0o777 == 0o644
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.accept()


USER = 1_900_000_123  # an ordinary user, when we are root
SCRIPT = """
import json, sys, warnings
warnings.simplefilter('ignore')
sys.path.insert(0, sys.argv[1])
from lopa.sandbox import *
jobs, limits = json.load(sys.stdin)
done = {}
limits.update(timeout=20, allow_weak_isolation=True)
for rung, name, source in jobs:
    if why_not(rung): continue
    o = run_program(source, rung=rung, **limits)
    done[rung + ' ' + name] = o.status, repr(o.value)
print(json.dumps([probe(), done, {rung: [*gaps(rung)] for rung in LADDER}]))
"""


def all_but_the_sandbox(folder, names):
    "What not to copy: in the library's own folder, the other rooms and modules"
    if Path(folder).name != 'lopa':
        return set()
    return set(names) - {'sandbox', '_moved.py', '__init__.py'}


def as_user(jobs, folder):
    "Run programs as an ordinary user would: (reasons, what came of each, gaps)"
    return by_user(SCRIPT, [jobs, limits], folder)


def by_user(script, data, folder):
    "What an ordinary user's Python prints, as JSON: `script` gets `data` as JSON"
    shutil.copytree(root / 'lopa', folder / 'lib' / 'lopa', ignore=all_but_the_sandbox)
    shutil.copy(root / 'tests' / 'hostile_runs.py', folder / 'lib')
    ran = subprocess.run(
        ['/usr/bin/python3', '-c', script, str(folder / 'lib')],
        input=json.dumps(data),
        capture_output=True,
        text=True,
        user=USER,
        group=USER,
        extra_groups=[],
        env={'PATH': '/usr/bin:/bin'},
        cwd='/tmp',
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def system_python():
    "Is there a Python of the system, and may we become the user to start it?"
    if os.name != 'posix' or os.geteuid() or not nobody():
        return False
    if not Path('/usr/bin/python3').exists():
        return False
    is_old = 'import sys; sys.exit(sys.version_info < (3, 10))'
    return subprocess.run(['/usr/bin/python3', '-c', is_old]).returncode == 0


@pytest.fixture
def user_folder():
    "A folder of an ordinary user"
    if not system_python():
        pytest.skip('needs root, and a Python of the system that an ordinary user can start')
    folder = Path(tempfile.mkdtemp(dir='/tmp', prefix='user-'))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@linux
@pytest.mark.skipif(
    not system_python(),
    reason='needs root, and a Python of the system that an ordinary user can start',
)
@pytest.mark.parametrize('planted', [USER], indirect=True)
def test_an_ordinary_user_has_the_gaps_that_we_say(planted):
    "From the highest rung down, so that what a lower one breaks is not missed by a higher one"
    sources = attacks(*planted)
    jobs = [(rung, name, source) for rung in LADDER for name, source in sources.items()]
    reasons, done, claims = as_user(jobs, planted[0])
    for rung in LADDER:
        if reasons[rung]:
            continue
        ended = {name: done[f'{rung} {name}'] for name in sources}
        assert {status for status, _ in ended.values()} == {'ok'}, ended
        succeeded = {name for name, (_, value) in ended.items() if value == "'DONE'"}
        assert succeeded == set(claims[rung]) - {'kernel'}, ended
        assert set(claims[rung]) <= {*GAPS[rung], *GAPS_AS_YOURSELF[rung]}
    assert planted[1].wait(5) == -15  # ended by the lowest rung, as we say


@linux
def test_links_and_proc_lead_nowhere(rung, planted):
    "Roads to a file of ours that nobody else may read"
    if 'files' in gaps(rung):
        pytest.skip('as yourself, the lowest rung reads your files')
    path = planted[0] / 'private'
    pid = os.getpid()
    source = f"""{attempts}
path = "{path}"
pid = "{pid}"
parent = str(os.getppid())
def through(road, mode): open(road, mode).close()

os.symlink(path, "link")
roads = ["link", "/proc/self/cwd/../.." + path, "/proc/self/fd/3/../../../../.." + path]
roads += ["/proc/" + p + "/root" + path for p in ("self", "1", pid, parent)]
roads += ["/proc/" + pid + "/cwd/../../../.." + path]
came = [attempt(lambda: through(r, m)) for r in roads for m in ("r", "w")]
for p in ("1", parent, pid):
    came.append(attempt(lambda: through("/proc/" + p + "/mem", "r+b")))
came"""
    o = run(source, rung)
    assert o.status == 'ok' and len(o.value) == 19, o
    assert 'DONE' not in o.value and path.read_text() == 'as it was', o


# ---- the ladder ----


def test_the_highest_rung_is_taken():
    o = run_program('1', allow_weak_isolation=True)
    assert o.isolation == strongest and list(probe()) == list(LADDER)


def test_the_lowest_rung_has_to_be_asked_for(monkeypatch):
    monkeypatch.setattr(ladder, 'why_not', lambda rung: '' if rung == 'child' else 'not here')
    monkeypatch.delenv('LOPA_ALLOW_WEAK_ISOLATION', raising=False)
    found = 'bubblewrap: not here; landlock: not here; child: it is weak, and was not allowed'
    advice = 'apt-get install bubblewrap.*LOPA_ALLOW_WEAK_ISOLATION=1'
    with pytest.raises(OSError, match=f'{found}.*{advice}'):
        run_program('1')
    with pytest.warns(UserWarning, match='lowest rung'):
        assert run_program('1', allow_weak_isolation=True).isolation == 'child'
    with monkeypatch.context() as m:
        m.setenv('LOPA_ALLOW_WEAK_ISOLATION', '1')
        assert run_program('1').isolation == 'child'


def test_reasons(monkeypatch):
    why_not.cache_clear()
    with monkeypatch.context() as m:
        m.setattr(shutil, 'which', lambda name: None)
        assert 'apt-get install bubblewrap' in why_not('bubblewrap')
        m.setattr(sys, 'platform', 'darwin')
        assert why_not('landlock') == 'found darwin, expected Linux'
        m.setattr(os, 'name', 'nt')
        assert 'WSL' in why_not('child')
    why_not.cache_clear()


def test_a_sandbox_that_fails_is_not_the_programs_fault(monkeypatch):
    fails = ['/bin/sh', '-c', 'echo no python >&2; exit 1']
    monkeypatch.setattr(host, 'python', lambda: fails)
    o = run_on('child', '1')
    assert o.status == 'unavailable' and o.stderr == 'the sandbox did not start: no python'


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(timeout=0), 'timeout: received 0'),
        (dict(timeout=math.nan), 'timeout: received nan, expected seconds'),
        (dict(timeout=math.inf), 'timeout: received inf'),
        (dict(timeout='5'), "timeout: received '5'"),
        (dict(timeout=True), 'timeout: received True'),
        (dict(timeout=None), 'timeout: received None'),
        (dict(memory_mb=3), 'at least 64'),
        (dict(memory_mb=math.inf), 'memory_mb: received inf, expected a whole number'),
        (dict(memory_mb='512'), "memory_mb: received '512'"),
        (dict(memory_mb=True), 'memory_mb: received True'),
        (dict(memory_mb=100.5), 'memory_mb: received 100.5'),
        (dict(memory_mb=1 << 60), 'memory_mb: received'),
        (dict(output_kb=-1), 'output_kb: received -1, expected a whole number of at least 0'),
        (dict(disk_mb=0), 'disk_mb: received 0'),
        (dict(processes=0), 'processes: received 0'),
        (dict(speed=9), 'speed: no such limit, expected one of timeout, memory_mb, output_kb'),
        (dict(rung='cellar'), "received 'cellar', expected one of bubblewrap, landlock, child"),
        (dict(rung=['child']), 'rung: received'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        run_program('1', **kwargs)
    with pytest.raises((TypeError, ValueError), match=message):
        run_programs(['1'], progress=False, **kwargs)


@pytest.mark.parametrize('workers', [0, -1, 1.5, True, None, '2', 10**9])
def test_bad_numbers_of_workers(workers):
    with pytest.raises((TypeError, ValueError), match='workers: received .* from 1 to 1000'):
        run_programs(['1'], workers=workers)


@pytest.mark.parametrize('sources', ['1 + 1', b'1', 7, None])
def test_bad_lists_of_programs(sources):
    with pytest.raises(TypeError, match='sources: received .* expected a list of programs'):
        run_programs(sources)


@pytest.mark.parametrize('source', [None, b'1', 7, ['1'], 'a\0b', '"\ud800" + 1', '\ud800', '('])
def test_a_source_that_is_no_program_gets_a_verdict(source):
    o = run(source, strongest)
    assert o.status == 'error' and o.stderr, o
    if not isinstance(source, str):
        assert 'expected the text of a Python program' in o.stderr


def test_imports_without_posix():
    code = """
import sys
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
from lopa.sandbox import same_value
print(same_value(1, 1), "torch" in sys.modules, "numpy" in sys.modules)"""
    ran = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert ran.stdout.split() == ['True', 'False', 'False'], ran.stderr


# ---- nothing stays ----

often_tried = (
    'a daemon of a thread of a daemon',
    'always another one',
    'kills the keeper, and follows nobody',
    'shared with children',
    'files in memory',
)
ALL = bool(os.environ.get('LOPA_FUZZ'))  # the rest is tried by tools/hostile.py, too
TRIED = [name for name in programs('') if ALL or name.endswith(often_tried)]


def wait_until(holds, seconds):
    "Look often, and give up after a while"
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.02)


@linux
@pytest.mark.parametrize('name', TRIED)
def test_nothing_stays_and_nothing_is_too_heavy(name, rung):
    mark = new_mark()
    gap, source, needs = programs(mark)[name]
    begun = time.monotonic()
    o = run(source, rung, **needs)
    assert gap in gaps(rung) or has_held(mark, o.status, o.value), o
    assert time.monotonic() - begun < needs['timeout'] + 4  # nobody had to be waited for


@linux
def test_nothing_of_an_ordinary_user_stays(user_folder):
    jobs = [(rung, name, new_mark()) for rung in LADDER for name in TRIED]
    done = by_user(TRY_ALL, jobs, user_folder)
    assert len(done) >= len(TRIED)
    for _rung, name, mark, gap, ended, claims in done:
        assert gap in claims or has_held(mark, *ended), (name, ended)


@linux
def test_a_signal_reaches_only_our_own(planted):
    "A number that belongs to somebody else by now"
    _, sleeper, _ = planted
    with subprocess.Popen(['/bin/sh', '-c', 'sleep 99 & wait']) as other:
        wait_until(lambda: below(other.pid), seconds=5)
        child = below(other.pid)[0]
        tell(sleeper.pid, 9, lambda pid: is_below(pid, other.pid))
        tell(other.pid, 9, lambda pid: is_below(pid, child))
        time.sleep(0.1)
        assert sleeper.poll() is None and other.poll() is None
        tell(child, 9, lambda pid: is_below(pid, other.pid))
        assert other.wait(5) == 0


SLEEPS = """
import warnings
from lopa.sandbox import run_program

warnings.simplefilter("ignore")
run_program({!r}, timeout=60, rung="{}", allow_weak_isolation=True, output_kb=64)
"""


def is_of_run(pid):
    "Is it bwrap, or one of our children for programs?"
    try:
        command = Path(f'/proc/{pid}/cmdline').read_text(errors='replace')
    except OSError:
        return False
    return 'exec(marshal.loads(' in command or 'bwrap' in command


@linux
@pytest.mark.parametrize('victim', ['caller', 'topmost', 'keeper'])
def test_whoever_is_killed_the_program_goes_too(victim, rung):
    "Us, `bwrap`, or the keeper: of daemons of threads of daemons nothing is left, and no folder"
    mark = new_mark()
    source = programs(mark)['stays: a daemon of a thread of a daemon'][1] + '\ntime.sleep(300)'
    caller = subprocess.Popen(
        [sys.executable, '-c', SLEEPS.format(source, rung)],
        cwd=root,
        env={**os.environ, 'TMPDIR': tempfile.gettempdir()},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: len(set(marked(mark))) >= 5, seconds=30)
    run_of_it = [pid for pid in below(caller.pid) if is_of_run(pid)]
    keeper = run_of_it[1 if rung == 'bubblewrap' else 0]
    os.kill(dict(caller=caller.pid, topmost=run_of_it[0], keeper=keeper)[victim], 9)
    caller.wait(20)
    wait_until(lambda: not marked(mark), seconds=5)
    assert len(run_of_it) >= 2 and marked(mark) == []
    if victim == 'caller':
        run('1', 'child')  # and this sweeps up
    assert os.listdir(tempfile.gettempdir()) == []


def test_folders_of_killed_runs_are_swept_up(planted):
    "Whatever was done to them; but none of a run that lives, none of others, and no link"
    folder = Path(tempfile.gettempdir())
    dead, locked, alive = (Path(tempfile.mkdtemp(prefix=host.PREFIX)) for _ in range(3))
    (dead / 'a').mkdir()
    (dead / 'a' / 'link').symlink_to(planted[0])
    locked.chmod(0)
    handle = host.claim(str(alive))
    link = folder / f'{host.PREFIX}link'
    link.symlink_to(planted[0])
    other = folder / 'lopa-other'
    other.mkdir()
    run('1', 'child')
    assert sorted(folder.iterdir()) == sorted([alive, link, other])
    assert (planted[0] / 'private').read_text() == 'as it was'
    os.close(handle)
    link.unlink()
    other.rmdir()
    run('1', 'child')


# ---- neighbours, and a machine without room ----

NEIGHBOURS = """
import json, sys, warnings
from concurrent.futures import ThreadPoolExecutor
warnings.simplefilter('ignore')
sys.path.insert(0, sys.argv[1])
from lopa.sandbox import *
bomb, honest, many = json.load(sys.stdin)
done = []
def run(source, **needs):
    return run_program(source, rung=rung, allow_weak_isolation=True, **needs)
for rung in LADDER:
    if why_not(rung): continue
    with ThreadPoolExecutor(4) as pool:
        bombs = [pool.submit(run, bomb, timeout=1.5)]
        outcomes = pool.map(lambda source: run(source, timeout=20), [honest] * many)
        done += [[rung, o.status, o.value, o.stderr] for o in outcomes]
        for bomb_run in bombs: assert bomb_run.result().status != 'unavailable'
print(json.dumps(done))
"""
BOMB = """
import os, time
while True:
    try: os.fork()
    except OSError: time.sleep(.01)"""
MANY_THREADS = """
import threading, time
came = []
def work(n): time.sleep(.1); came.append(n)
threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
for t in threads: t.start()
for t in threads: t.join()
len(came)"""


@linux
def test_a_bomb_does_not_disturb_others_of_the_same_user(user_folder):
    done = by_user(NEIGHBOURS, [BOMB, MANY_THREADS, 4], user_folder)
    assert len(done) >= 4
    for _rung, status, value, _err in done:
        assert (status, value) == ('ok', 20), done


def test_without_user_namespaces_programs_take_turns(monkeypatch):
    "Where processes cannot be counted apart, nobody runs beside others"
    monkeypatch.setattr(host, 'counted_apart', lambda rung: False)
    times = 'import time\na = time.time()\ntime.sleep(.1)\na, time.time()'
    settings = dict(workers=3, progress=False, rung='child', allow_weak_isolation=True, timeout=30)
    spans = sorted(o.value for o in run_programs([times] * 4, **settings))
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_a_doubtful_outcome_is_tried_again_alone(monkeypatch):
    wrong = Outcome('error', stderr="RuntimeError: can't start new thread"), Report(started=True)
    right = Outcome('ok', 1), Report(started=True)
    for ways in [wrong, right], [right], [wrong, wrong]:
        left = list(ways)
        monkeypatch.setattr(host, 'run_once', lambda *_, left=left: left.pop(0))
        assert run_on('child', '1') == ways[-1][0] and left == []


def fails(number):
    def raise_error(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return raise_error


WITHOUT_ROOM = [
    (subprocess, 'Popen', fails(errno.EAGAIN)),
    (subprocess, 'Popen', fails(errno.ENOMEM)),
    (os, 'pipe', fails(errno.EMFILE)),
    (tempfile, 'mkdtemp', fails(errno.ENOSPC)),
    (tempfile, 'TemporaryFile', fails(errno.ENOSPC)),
    (shutil, 'disk_usage', lambda folder: argparse.Namespace(free=1 << 20)),
]


@pytest.mark.parametrize('module, name, replaced', WITHOUT_ROOM)
def test_a_machine_without_room_is_no_verdict(module, name, replaced, monkeypatch):
    assert run('1', 'child').value == 1
    with monkeypatch.context() as m:
        m.setattr(module, name, replaced)
        ended = [run(source, 'child') for source in ('1', '1/0')]
    for o in ended:
        assert o.status == 'unavailable' and o.value is None and o.stderr.count('\n') == 0, o
    assert run('1', 'child').value == 1


def test_a_process_that_the_kernel_ended_is_no_verdict(monkeypatch):
    "Killed by signal 9 while the kernel counts one more that it ended for lack of memory"
    counts = iter(range(100))
    source = 'import os\nos.kill(os.getpid(), 9)'
    assert run(source, 'child').status == 'exit'
    monkeypatch.setattr(host, 'out_of_memory', lambda: next(counts))
    o = run(source, 'child')
    assert o.status == 'unavailable' and 'ran out of memory' in o.stderr
    assert run('1/0', 'child').status == 'error'


# ---- many ----


def test_order_and_laziness():
    taken = []

    def sources():
        for n in range(8):
            taken.append(n)
            yield f'import time\ntime.sleep({0.3 if n == 0 else 0})\n{n}'

    outcomes = run_programs(sources(), workers=2, progress=False, allow_weak_isolation=True)
    assert next(outcomes).value == 0 and len(taken) <= 4
    assert [o.value for o in outcomes] == list(range(1, 8))


QUICK = [
    'memory bomb',
    '10 GB of output',
    'deep recursion',
    'os._exit(0)',
    'sys.exit(0)',
    'KeyboardInterrupt',
    'kills its group',
    'always equal',
    'writes to all files it has',
    'sends two results',
    'null byte',
    'a large file',
    'a value within itself',
]
SLOW = ['endless loop', 'ignores signals', 'fork bomb']


def work(n):
    "The n-th program: (source, statuses in which it may end, value)"
    if n % 3:
        source = f'def f(x): return [x*x, str(x), {{x: x/2}}]\nf({n})'
        return source, ['ok'], [n * n, str(n), {n: n / 2}]
    name = QUICK[n // 3 % len(QUICK)] if n % 60 else SLOW[n // 60 % 3]
    source, statuses = HOSTILE[name]
    return source, statuses.split(), None


@pytest.mark.parametrize('where, many', [(strongest, 500 if ALL else 130), ('child', 61)])
def test_programs_under_load(where, many):
    "A third of them hostile, two at a time: all get a status, and the right ones are graded right"
    if why_not(where):
        pytest.skip(why_not(where))
    sources, statuses, values = zip(*map(work, range(many)), strict=True)
    settings = dict(timeout=1.5, rung=where, allow_weak_isolation=True)
    outcomes = list(run_programs(sources, workers=2, progress=False, **settings))
    assert len(outcomes) == many
    for n, o in enumerate(outcomes):
        assert o.status in statuses[n] and same_value(o.value, values[n]), (n, o)
