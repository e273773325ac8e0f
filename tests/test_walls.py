"No program reaches another process, another file, or the machine: whoever starts it, on each rung"

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hostile import (
    HIDES,
    PRELUDE,
    REACHES,
    SIGNALS,
    STEERS,
    TALKS,
    USER,
    Victim,
    as_user,
    numbers,
    ordinary_python,
    several,
)

from lopa.sandbox import call_filter, nobody, readable, run_program, why_not
from lopa.sandbox.walls import (
    KERNEL_CALLS,
    PACKAGES,
    call_rules,
    interpreter_parts,
    mounts,
    no_more_namespaces,
)

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='these walls are those of Linux')
WALLED = 'bubblewrap', 'landlock'
WHO = [None] + [USER] * ordinary_python()  # as we are; an ordinary user
REFUSALS = {'EPERM', 'EACCES', 'ENOSYS'}
NOT_THERE = {'ENOENT', 'ESRCH'}  # in namespaces of one's own


def run_jobs(jobs, folder, user):
    "Run (name, rung, source, limits): name → (status, value)"
    if user:
        came = as_user(jobs, folder, user)
        return {
            name: (status, ast.literal_eval(value)) for name, (status, value, _) in came.items()
        }
    done = {}
    for name, rung, source, limits in jobs:
        o = run_program(source, rung=rung, **{'timeout': 20, **limits})
        done[name] = o.status, o.value
    return done


def rungs():
    "The rungs that hold, and are here"
    return [rung for rung in WALLED if not why_not(rung)]


@pytest.fixture(scope='module')
def home():
    "A folder that everybody may enter and write in"
    with tempfile.TemporaryDirectory(dir='/tmp', prefix='walls-') as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


# ---- other processes of the user ----


@pytest.fixture(scope='module', params=WHO, ids=lambda user: 'ordinary' if user else 'as we are')
def reached(request, home):
    "All acts on all rungs, and the victim before and after"
    folder = home / str(request.param)
    folder.mkdir()
    os.chmod(folder, 0o777)
    with Victim(folder, request.param) as victim:
        before = victim.state()
        source = several(REACHES, victim.known)
        jobs = [(rung, rung, source, {}) for rung in rungs()]
        yield run_jobs(jobs, folder, request.param), before, victim.state()


def test_the_victim_is_as_before(reached):
    came, before, after = reached
    assert all(status == 'ok' for status, _ in came.values()), came
    assert before == after and before['keys'] is False


@pytest.mark.parametrize('rung', WALLED)
@pytest.mark.parametrize('kind', ['steers', 'signals', 'talks', 'hides', 'privileged'])
def test_every_act_is_refused(reached, rung, kind):
    if rung not in reached[0]:
        pytest.skip(why_not(rung))
    kinds = dict(steers=STEERS, signals=SIGNALS, talks=TALKS, hides=HIDES)
    names = kinds.get(kind) or REACHES.keys() - {*STEERS, *SIGNALS, *TALKS, *HIDES}
    refusals = REFUSALS | (NOT_THERE if rung == 'bubblewrap' else set())
    _, came = reached[0][rung]
    names = set(names) - (set() if rung == 'landlock' else {'a signal to everybody'})  # of its own
    assert {name: came[name] for name in names if came[name] not in refusals} == {}


@pytest.mark.skipif(not ordinary_python(), reason='needs root, to become an ordinary user')
def test_without_walls_the_acts_are_done(home):
    "Or else the tests above would test nothing"
    folder = home / 'control'
    folder.mkdir()
    os.chmod(folder, 0o777)
    with Victim(folder, USER) as victim:
        source = several({**STEERS, **SIGNALS, **TALKS, **HIDES}, victim.known)
        _, came, errors = as_user([('free', None, source, {})], folder)['free']
    came = ast.literal_eval(came)
    done = [name for name in came if came[name] == 'DONE']
    assert len(done) >= 0.8 * len(came), (came, errors)
    assert {'its limits', 'a datagram', 'a file in a datagram', 'owner of a pipe'} < set(done)


# ---- the keeper ----

LOOKS_AT_THE_KEEPER = f"""{PRELUDE}
keeper = os.getppid()
def opens(name): return open(f"/proc/{{keeper}}/" + name, "r+b").close()
acts = [lambda: opens(name) for name in ("mem", "environ", "maps")]
acts += [lambda: os.listdir(f"/proc/{{keeper}}/fd"), lambda: os.listdir(f"/proc/{{keeper}}/root/")]
acts += [lambda: call("ptrace", 16, keeper, 0, 0), lambda: call("ptrace", 0x4206, keeper, 0, 0)]
acts += [lambda: resource.prlimit(keeper, resource.RLIMIT_CPU, (1, 1))]
acts += [lambda: os.setpriority(0, keeper, 19), lambda: os.sched_setaffinity(keeper, {{0}})]
[attempt(act) for act in acts]"""


@pytest.mark.parametrize('user', WHO, ids=lambda user: 'ordinary' if user else 'as we are')
def test_nobody_inside_looks_into_the_keeper(home, user):
    jobs = [(rung, rung, LOOKS_AT_THE_KEEPER, {}) for rung in rungs()]
    for rung, (status, came) in run_jobs(jobs, home, user).items():
        assert status == 'ok' and set(came) <= REFUSALS, (rung, came)


# ---- memory and room that no limit counts ----

FILLS = """
import os
came = {}
library = os.path.dirname(os.__file__)
for k, folder in enumerate(("/", "/dev", "/dev/shm", "/tmp", "/proc", "/bin", library)):
    came[folder] = 0
    try:
        for n in range(40):
            with open(f"{folder}/{k}-{n}", "wb") as f: came[folder] += f.write(bytes(1 << 20))
    except OSError: pass
came"""


@pytest.mark.parametrize('user', WHO, ids=lambda user: 'ordinary' if user else 'as we are')
def test_all_writable_folders_share_one_room(home, user):
    if 'bubblewrap' not in rungs():
        pytest.skip(why_not('bubblewrap'))
    job = ('fills', 'bubblewrap', FILLS, dict(disk_mb=8))
    status, came = run_jobs([job], home, user)['fills']
    assert status == 'ok' and 0 < sum(came.values()) <= 8 << 20, came


# ---- what is exposed ----

OPENS = """
import os
def may(path):
    try: return os.listdir(path) if os.path.isdir(path) else len(open(path, "rb").read()) > 0
    except OSError: return False
{path: may(path) for path in PATHS}"""
PRIVATE = """/etc/passwd /etc/hostname /etc/os-release /etc/ssl/openssl.cnf /usr/bin/env /bin/ls
/usr/share /usr/share/doc /usr/local /usr/local/lib /usr/include /usr/lib /usr/bin /opt /var/log
/home /root /etc /usr/share/common-licenses /usr/lib/os-release""".split()


@pytest.mark.parametrize('user', WHO, ids=lambda user: 'ordinary' if user else 'as we are')
def test_the_system_is_not_exposed(home, user):
    here = [path for path in PRIVATE if os.path.exists(path)]
    here += [str(path) for path in Path('/usr/lib/python3/dist-packages').glob('*.py')]
    source = OPENS.replace('PATHS', repr(here))
    jobs = [(rung, rung, source, {}) for rung in rungs()]
    for rung, (status, came) in run_jobs(jobs, home, user).items():
        seen = {path for path in came if came[path]}
        folders = {path for path in seen if os.path.isdir(path)} if rung == 'bubblewrap' else set()
        assert status == 'ok' and seen == folders, (rung, seen)  # folders that hold what is needed
        for folder in folders:
            assert not {'passwd', 'env', 'doc', 'os-release', 'ls'} & set(came[folder]), folder


@pytest.fixture(scope='module')
def prefix(home):
    "A Python whose whole prefix is in somebody's home, with a package and secrets around it"
    if not ordinary_python():
        pytest.skip('needs root and a Python of the system, to copy it and to become a user')
    ask = 'import os, sys; print(os.path.realpath(sys.executable), os.path.dirname(os.__file__))'
    ran = subprocess.run(['/usr/bin/python3', '-I', '-c', ask], capture_output=True, text=True)
    binary, library = ran.stdout.split()
    there = home / 'home' / 'prefix'
    leave = shutil.ignore_patterns('test', 'idlelib', 'ensurepip', 'config-*', 'sitecustomize.py')
    shutil.copytree(library, there / 'lib' / Path(library).name, ignore=leave)
    (there / 'bin').mkdir()
    shutil.copy(binary, there / 'bin')
    return there


def furnish(prefix):
    "Secrets around a Python: (paths, the interpreter)"
    library = next((prefix / 'lib').glob('python3*'))
    places = [prefix.parent, prefix, prefix / 'share', prefix / 'lib', library.parent / 'other']
    places += [library / name for name in PACKAGES] + [prefix / 'bin', prefix / 'etc']
    for folder in places:
        folder.mkdir(exist_ok=True)
        (folder / 'secret.py').write_text('SECRET = 1')
    link = library / 'linked.py'
    link.unlink(missing_ok=True)
    link.symlink_to(prefix / 'share' / 'secret.py')
    return [str(folder / 'secret.py') for folder in places] + [str(link)], str(
        next((prefix / 'bin').glob('python3*'))
    )


@pytest.mark.parametrize('where', ['.local', '.pyenv/versions/3.99', 'miniconda3', 'venv'])
@pytest.mark.parametrize('user', [USER, 0], ids=['ordinary', 'root'])
def test_a_python_in_the_home_folder_exposes_nothing_else(prefix, where, user):
    home = prefix.parent
    there = home / ('.local' if where == 'venv' else where)
    there.parent.mkdir(exist_ok=True, parents=True)
    prefix.rename(there)
    try:
        secrets, python = furnish(there)
        os.chmod(home, 0o755 if user else 0o700)
        if where == 'venv':
            made = home / f'venv{user}'
            subprocess.run([python, '-m', 'venv', '--without-pip', str(made)], check=True)
            python = str(made / 'bin' / 'python3')
        source = f'import decimal, sqlite3, zoneinfo\n{OPENS}'.replace('PATHS', repr(secrets))
        jobs = [(rung, rung, source, {}) for rung in rungs()]
        came = as_user(jobs, home.parent, user, python)
    finally:
        os.chmod(home, 0o755)
        there.rename(prefix)
    for rung, (status, value, errors) in came.items():
        assert status == 'ok', (rung, value, errors)
        assert not any(ast.literal_eval(value).values()), (rung, value)


CLIMBS = """
import glob, os
ways = [f"/proc/self/fd/{fd}" + "/.." * up for fd in range(20) for up in range(8)]
places = "secret.py", "*/secret.py", "*/*/secret.py", "*/*/*/secret.py"
found = []
for way in ways:
    for path in (path for place in places for path in glob.glob(f"{way}/{place}")):
        try: found.append((path, open(path).read()))
        except OSError: pass
os.getuid() > 0, "fd" in os.__file__ or any("/fd/" in p for p in __import__("sys").path), found"""


def test_the_door_of_root_leads_to_the_library_only(prefix):
    "On the lowest rung too: up from the library, to what root keeps beside it"
    home = prefix.parent
    there = home / '.local'
    prefix.rename(there)
    try:
        _, python = furnish(there)
        os.chmod(home, 0o700)
        jobs = [(rung, rung, CLIMBS, {}) for rung in (*rungs(), 'child')]
        came = as_user(jobs, home.parent, 0, python)
    finally:
        os.chmod(home, 0o755)
        there.rename(prefix)
    for rung, (status, value, errors) in came.items():
        assert status == 'ok', (rung, value, errors)
        assert ast.literal_eval(value) == (True, rung != 'bubblewrap', []), (rung, value)


def test_what_is_readable_is_what_the_interpreter_needs():
    folders, others = interpreter_parts()
    library = os.path.dirname(os.path.realpath(os.__file__))
    assert library in map(os.path.realpath, folders)
    assert os.path.realpath(sys.executable) in map(os.path.realpath, others)
    assert not {'/', '/usr', '/usr/lib', '/etc', sys.prefix, sys.base_prefix} & set(readable())
    assert not [path for path in readable() if path.rpartition('/')[2] in PACKAGES]
    arguments = mounts(16)
    assert arguments[-4:] == ['--remount-ro', '/', '--chdir', '/tmp']


# ---- honest programs go on as before ----

HONEST = {
    'threads': 'from threading import Thread\nt = Thread(target=print)\nt.start(), t.join()\n5',
    'pool of threads': (
        'from concurrent.futures import ThreadPoolExecutor\n'
        'sum(ThreadPoolExecutor(3).map(abs, [-2, -3]))'
    ),
    'asyncio': (
        'import asyncio\nasync def f():\n  await asyncio.sleep(.01)\n  return 5\nasyncio.run(f())'
    ),
    'asyncio with threads': (
        'import asyncio\nasync def f(): return await asyncio.to_thread(lambda: 5)\nasyncio.run(f())'
    ),
    'pair of sockets': (
        'import socket\na, b = socket.socketpair()\na.sendall(b"12345")\nlen(b.recv(9))'
    ),
    'files': (
        'import tempfile, os\n'
        'with tempfile.TemporaryDirectory() as d, tempfile.NamedTemporaryFile() as f:\n'
        '  f.write(b"12345"); f.flush()\n'
        '  n = os.stat(f.name).st_size\n'
        'n'
    ),
    'a database': (
        'import sqlite3\nc = sqlite3.connect("a.db")\nc.execute("create table t (x)")\n'
        'c.execute("insert into t values (5)")\nc.commit()\n'
        'c.execute("select x from t").fetchone()[0]'
    ),
    'numbers': (
        'import decimal, random, fractions\nint(decimal.Decimal(5) + 0 * random.randrange(9))'
    ),
    'time': 'import time\ntime.sleep(.01), time.perf_counter(), time.localtime()\n5',
    'time zones': 'import zoneinfo\nlen(str(zoneinfo.ZoneInfo("Asia/Tokyo"))) - 5',
    'advice': 'import os\nf = open("a", "w+")\nos.posix_fadvise(f.fileno(), 0, 0, 2)\n5',
    'alarm': (
        'import signal\nn = []\nsignal.signal(14, lambda *a: n.append(5))\n'
        'signal.setitimer(0, .01)\nsignal.pause()\nn[0]'
    ),
    'limits': ('import resource\npair = resource.getrlimit(7)\nresource.setrlimit(7, pair)\n5'),
    'processors': (
        'import os\nos.sched_setaffinity(0, os.sched_getaffinity(0))\nos.cpu_count() and 5'
    ),
    'nice': 'import os\nos.nice(1) and os.getpriority(0, 0) and 5',
    'raise a signal': 'import signal\nsignal.signal(10, lambda *a: 0)\nsignal.raise_signal(10)\n5',
    'memory of a file': (
        'import mmap\nf = open("m", "wb+")\nf.truncate(5)\nlen(mmap.mmap(f.fileno(), 5))'
    ),
    'touch': 'import pathlib\npathlib.Path("t").touch()\nlen(pathlib.Path("t").name) + 4',
    'select': (
        'import os, select\nr, w = os.pipe()\nos.write(w, b"x")\n'
        'p = select.poll()\np.register(r)\nlen(p.poll()) + len(select.select([r], [], [])[0]) + 3'
    ),
    'terminal': 'import os, sys, shutil\nsys.stdout.isatty() or shutil.get_terminal_size() and 5',
    'hashes': 'import hashlib, ssl, uuid\nlen(hashlib.sha256(uuid.uuid4().bytes).digest()) - 27',
    'lists of files': (
        'import glob, shutil\nopen("a1", "w")\nshutil.copyfile("a1", "a2")\n'
        'len(glob.glob("a[12]")) + 3'
    ),
    'ctypes': 'import ctypes\nctypes.CDLL(None).abs(-5)',
}
PROCESSES = {
    'no output': (
        'import subprocess\nsubprocess.call("exit 5", shell=True, stdout=subprocess.DEVNULL)'
    ),
    'a shell': 'import os\nos.waitstatus_to_exitcode(os.system("exit 5"))',
    'text of a shell': 'import subprocess\nint(subprocess.check_output("echo 5", shell=True))',
    'fork': (
        'import os\np = os.fork() or os._exit(5)\nos.waitstatus_to_exitcode(os.waitpid(p, 0)[1])'
    ),
    'another process': (
        'import multiprocessing as m\np = m.get_context("fork").Process(target=exit, args=(5,))\n'
        'p.start(), p.join()\np.exitcode'
    ),
}
POOL = (
    'import multiprocessing\n'
    'with multiprocessing.get_context("fork").Pool(2) as p: x = p.map(abs, [-5])\nx[0]'
)
ALONE = {  # where there is nothing else
    'a copy': 'import shutil\nopen("c1", "w")\nlen(shutil.copy("c1", "c2")) + 3',
    'a mode': 'import os\nopen("c3", "w")\nos.chmod("c3", 0o500)\nos.utime("c3", (1, 1))\n5',
    'a terminated process': (
        'import subprocess\np = subprocess.Popen(["/bin/sh", "-c", "read x"], stdin=-1)\n'
        'p.terminate()\np.wait() + 20'
    ),
    'pool': POOL,
}


@pytest.mark.parametrize('user', WHO, ids=lambda user: 'ordinary' if user else 'as we are')
@pytest.mark.parametrize('rung', WALLED)
def test_honest_programs_go_on(home, rung, user):
    if rung not in rungs():
        pytest.skip(why_not(rung))
    programs = {**HONEST, **PROCESSES, **(ALONE if rung == 'bubblewrap' else {})}
    lines = ['came = {}']
    for name, source in programs.items():
        *body, last = source.split('\n')
        lines += ['try:', *(f'  {line}' for line in body), f'  came[{name!r}] = {last}']
        lines += [f'except Exception as e: came[{name!r}] = repr(e)']
    source = '\n'.join([*lines, 'came'])
    status, came = run_jobs([(rung, rung, source, {})], home, user)[rung]
    assert status == 'ok' and {name: v for name, v in came.items() if v != 5} == {}, came


def test_an_interpreter_starts_another(home):
    "For an ordinary user: the file that is running may be run again"
    if not ordinary_python():
        pytest.skip('needs root, to become an ordinary user')
    source = (
        'import subprocess, sys\nint(subprocess.check_output([sys.executable, "-c", "print(5)"]))'
    )
    came = run_jobs([(rung, rung, source, {}) for rung in rungs()], home, USER)
    assert set(came.values()) <= {('ok', 5)}, came


# ---- the filter itself ----


def numbers_of_headers(path, pattern):
    "Numbers as the kernel's headers have them"
    file = Path(path)
    if not file.exists():
        pytest.skip(f'no {path} here')
    return {name: int(number) for name, number in re.findall(pattern, file.read_text())}


HEADERS = {
    'x86_64': ('/usr/include/x86_64-linux-gnu/asm/unistd_64.h', r'#define __NR_(\w+) (\d+)'),
    'aarch64': ('/usr/include/asm-generic/unistd.h', r'#define __NR(?:3264)?_(\w+) (\d+)'),
}


@pytest.mark.parametrize('machine', HEADERS)
def test_numbers_are_those_of_the_kernel(machine):
    theirs = numbers_of_headers(*HEADERS[machine])
    ours = {name: number for name, number in numbers(machine).items() if number is not None}
    known = ours.keys() & theirs.keys()
    assert {name: ours[name] for name in known} == {name: theirs[name] for name in known}
    assert len(known) > 0.9 * len(ours), ours.keys() - known
    assert len(set(ours.values())) == len(ours)


def judged(program, machine, call, *words):
    "What the kernel would do with a call: imitate its little machine"
    data = call.to_bytes(4, 'little') + KERNEL_CALLS[machine][0].to_bytes(4, 'little') + bytes(8)
    data += b''.join((word % (1 << 64)).to_bytes(8, 'little') for word in words)
    data += bytes(64 - len(data))
    holds = {0x15: int.__eq__, 0x35: int.__ge__, 0x45: lambda a, b: a & b > 0}
    at = register = 0
    while True:
        step = program[8 * at : 8 * at + 8]
        code, constant = step[0], int.from_bytes(step[4:], 'little')
        at += 1
        if code == 0x06:
            return constant
        if code == 0x20:
            register = int.from_bytes(data[constant : constant + 4], 'little')
        else:
            at += step[2] if holds[code](register, constant) else step[3]


ARGUMENTS = [  # call, words, is it allowed?
    ('prlimit64', (0, 7), True),
    ('prlimit64', (77, 7), True),
    ('prlimit64', (78, 7), False),
    ('sched_setattr', (78,), False),
    ('setpriority', (0, 77), True),
    ('setpriority', (2, 0), False),
    ('sendto', (3, 1, 1, 0, 0, 0), True),
    ('sendto', (3, 1, 1, 0, 1 << 40, 0), False),
    ('socketpair', (1, 1), True),
    ('socketpair', (1, 2), False),
    ('clone', (0x1200011,), True),
    ('clone', (0x10000011,), False),
    ('fcntl', (3, 4), True),
    ('fcntl', (3, 8), False),
    ('ioctl', (3, 0x5401), True),
    ('ioctl', (3, 0x8901), False),
    ('mmap', (0, 9, 3, 0x22), True),
    ('mmap', (0, 9, 3, 0x21), False),
    ('kill', (78, 9), False),
    ('keyctl', (0,), False),
]


@pytest.mark.parametrize('machine', KERNEL_CALLS)
def test_filters_of_both_processors(machine):
    program = call_filter(machine, call_rules(machine, alone=False), pid=77)
    assert len(program) < 8 * 4096  # what the kernel takes
    for name, words, allowed in ARGUMENTS:
        came = judged(program, machine, numbers(machine)[name], *words)
        assert came == (0x7FFF0000 if allowed else 0x50001), (name, words)
    for unknown in numbers(machine)['clone3'], 463, 500, 400:
        assert judged(program, machine, unknown) == 0x50026


def test_namespaces_are_forbidden_only_where_they_can_be(monkeypatch):
    no_more_namespaces.cache_clear()
    with monkeypatch.context() as m:
        m.setattr(shutil, 'which', lambda name: '/bin/false')
        assert no_more_namespaces() == []
    no_more_namespaces.cache_clear()
    assert no_more_namespaces() in ([], ['--disable-userns'])
    assert nobody() is None or nobody() > 1000
