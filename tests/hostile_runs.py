"""Programs that stay behind, or take more memory than they may: what became of each is looked up

In all of them, MARK is replaced by a name of at most 15 letters, which they and all that they start
carry, so that `marked` finds whoever is left.
"""

import glob
import os
import time
from pathlib import Path

NAMED = """
import ctypes, os, signal, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(15, b'MARK', 0, 0, 0)

def hide():
    os.setsid()
    os.closerange(0, 256)

def fork(*acts):
    "A child that acts, and then sleeps"
    if os.fork() == 0:
        for act in acts: act()
        time.sleep(300)
        os._exit(0)

def in_thread(act):
    "In another thread, which has its own list of children"
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread

def at_the_keeper(sign):
    try: os.kill(os.getppid(), sign)
    except OSError: pass
    time.sleep(.1)

def daemon(*acts):
    "A grandchild, whose parent has ended"
    if os.fork() == 0:
        os.setsid()
        fork(hide, *acts)
        os._exit(0)
"""

STAYS = {  # name → what it does after NAMED
    'a daemon': 'daemon()',
    'a daemon of a thread': 'in_thread(daemon).join()',
    'a daemon of a thread of a daemon': """
def threads():
    for _ in range(3): in_thread(lambda: [fork(hide), time.sleep(300)])
daemon(threads)
time.sleep(.2)""",
    'a thread outlives the first one, and forks': """
def first_thread_ends():
    in_thread(lambda: [time.sleep(.1), fork(hide), time.sleep(300)])
    libc.syscall(60 if os.uname().machine == 'x86_64' else 93, 0)
fork(first_thread_ends)
time.sleep(.3)""",
    'daemons of threads of daemons': """
def again(n):
    if n: in_thread(lambda: [daemon(lambda: again(n - 1)), time.sleep(300)])
again(3)
time.sleep(.4)""",
    'many generations': """
def deeper(n):
    if n: fork(hide, lambda: deeper(n - 1))
deeper(12)
time.sleep(.2)""",
    'always another one': """
def run_away():
    while True:
        if os.fork(): os._exit(0)
daemon(run_away)
time.sleep(.1)""",
    'adopts its own orphans': """
libc.prctl(36, 1, 0, 0, 0)
daemon(lambda: libc.prctl(36, 1, 0, 0, 0), daemon)
time.sleep(.1)""",
    'ignores all signals': """
def ignore():
    for n in {*range(1, 65)} - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)
daemon(ignore)
time.sleep(.1)""",
    'wakes whoever is frozen': """
def wake():
    while True:
        for pid in pids:
            try: os.kill(pid, 18)
            except OSError: pass
pids = [os.getpid()]
for _ in range(6):
    pids.append(os.getpid())
    fork(hide, wake)
time.sleep(.1)""",
    'a sister by clone': """
machine = os.uname().machine
def clone(): return libc.syscall(56 if machine == 'x86_64' else 220, 0x8000 | 17, 0, 0, 0, 0)
if clone() == 0:
    hide()
    time.sleep(300)""",
    'another program': "daemon(lambda: os.execv('/bin/sleep', ['MARK', '300']))\ntime.sleep(.1)",
    'daemons, and time runs out': 'daemon(); in_thread(daemon)\ntime.sleep(300)',
    'fork bomb of daemons': """
while True:
    try: os.fork()
    except OSError: pass
    else: os.setsid() if os.getpid() != os.getsid(0) else None""",
    'kills the keeper': 'daemon(); time.sleep(.1); at_the_keeper(9)',
    'kills the keeper, and follows nobody': """
libc.prctl(1, 0, 0, 0, 0)
daemon(); in_thread(daemon).join()
at_the_keeper(9)
time.sleep(300)""",
    'kills the keeper at once': 'libc.prctl(1, 0, 0, 0, 0); at_the_keeper(9)\ntime.sleep(300)',
    'kills the keeper, and cannot be looked into': """
libc.prctl(4, 0, 0, 0, 0)
daemon(lambda: libc.prctl(4, 0, 0, 0, 0))
time.sleep(.1)
at_the_keeper(9)""",
    'stops the keeper': 'daemon(); time.sleep(.1); at_the_keeper(19)\ntime.sleep(300)',
    'a namespace of its own': """
def leave(): libc.unshare(0x10000000)
daemon(leave, lambda: libc.unshare(0x20000000), daemon)
time.sleep(.1)
at_the_keeper(9)""",
}

HOLDS = """
import mmap
together = 400 << 20
def hold(n, size):
    "n children that hold memory at the same time: do all of them get it?"
    pids = []
    for _ in range(n):
        pids.append(os.fork())
        if not pids[-1]:
            try: x = bytearray(b'x') * size
            except MemoryError: os._exit(1)
            time.sleep(.5)
            os._exit(0)
    return [os.waitpid(p, 0)[1] for p in pids] == [0] * n

def attempt(f):
    try: return 'DONE' if f() else 'no'
    except (OSError, MemoryError, ValueError, AttributeError) as e: return type(e).__name__
"""

HEAVY = {  # name → (its gap, if a rung has one, what it does after NAMED and HOLDS)
    'children': ('total', 'attempt(lambda: hold(4, together // 4))'),
    'many small children': ('total', 'attempt(lambda: hold(16, together // 16))'),
    'children of a thread': (
        'total',
        'came = []\n'
        'in_thread(lambda: came.append(attempt(lambda: hold(4, together // 4)))).join()\n'
        'came[0]',
    ),
    'daemons': (
        'total',
        """
def take():
    global x
    x = bytearray(b'x') * (together // 4)
    os.write(there, b'x')
    time.sleep(1)
here, there = os.pipe()
def hide(): os.setsid()
for _ in range(4): daemon(take)
for _ in range(4): os.read(here, 1)
time.sleep(.2)
'DONE'""",
    ),
    'shared with children': (
        'total',
        """
def shares():
    blocks = []
    for _ in range(4):
        block = mmap.mmap(-1, together // 4)
        if os.fork() == 0:
            for i in range(0, len(block), 4096): block[i] = 1
            time.sleep(.6)
            os._exit(0)
        block.close()
    return [os.wait()[1] for _ in range(4)] == [0] * 4
attempt(shares)""",
    ),
    'files in memory': (
        'total',
        """
def fill():
    for _ in range(together >> 22):
        os.write(os.memfd_create('x'), bytes(4 << 20))
    time.sleep(.3)
    return True
together = 56 * 4 << 20
x = bytearray(b'x') * (100 << 20)
attempt(fill)""",
    ),
    'shared, and no longer mapped': (
        'hidden',
        """
def hide_memory():
    for _ in range(8):
        block = libc.mmap(None, together // 8, 3, 0x21, -1, 0)
        if block in (None, -1): raise OSError
        ctypes.memset(block, 1, together // 8)
        libc.munmap(ctypes.c_void_p(block + 4096), together // 8 - 4096)
    return True
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p] + [ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
ctypes.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
attempt(hide_memory)""",
    ),
    'a full /dev/shm and /tmp': (
        'disk',
        """
def fill():
    for place in '.', '/tmp', '/dev/shm':
        try:
            for i in range(together >> 22):
                open(f'{place}/lopa-MARK-{i}', 'wb').write(bytes(4 << 20))
            return True
        except OSError: pass
        finally:
            for i in range(together >> 22):
                try: os.unlink(f'{place}/lopa-MARK-{i}')
                except OSError: break
attempt(fill)""",
    ),
}
IN_SOCKETS = """
import socket
def stuff(size):
    "Pairs of sockets, as full as they can be: bytes"
    pairs, held = [], 0
    for _ in range(25):
        pairs.append(socket.socketpair())
        for end in pairs[-1]:
            try:
                end.setblocking(False)
                if size: end.setsockopt(1, 7, size)
                for _ in range(together >> 22): held += end.send(bytes(1 << 14))
            except OSError: pass
    os.write(there, b'%9d' % held)
    time.sleep(1)
    os._exit(0)
def stuffed(size):
    for _ in range(25): os.fork() or stuff(size)
    held = sum(int(os.read(here, 9) or 0) for _ in range(25))
    time.sleep(.2)
    return held > together // 2
here, there = os.pipe()
"""
HEAVY |= {
    'in sockets': ('total', IN_SOCKETS + 'attempt(lambda: stuffed(0))'),
    'in large sockets': (
        'hidden',
        IN_SOCKETS + 'together <<= 1\nattempt(lambda: stuffed(1 << 22))',
    ),
}
HEAVY_LIMITS = dict(memory_mb=256, disk_mb=4)


def programs(mark):
    "Name → (gap or None, program, limits), each with a mark of its own"
    found = {}
    for name, act in STAYS.items():
        gap = 'signals' if 'looked into' in name else None
        found[f'stays: {name}'] = gap, NAMED + act, dict(timeout=1.5)
    for name, (gap, act) in HEAVY.items():
        found[f'heavy: {name}'] = gap, NAMED + HOLDS + act, dict(timeout=20, **HEAVY_LIMITS)
    return {
        name: (gap, p.replace('MARK', mark), limits) for name, (gap, p, limits) in found.items()
    }


def marked(mark):
    "Processes that still carry a mark, in one of their threads"
    found = []
    for path in glob.iglob('/proc/[0-9]*/task/*'):  # which minds no process that has just ended
        task = Path(path)
        try:
            names = (task / 'comm').read_text() + (task / 'cmdline').read_text(errors='replace')
            if mark in names and not is_zombie(task):
                found.append(int(task.parts[2]))
        except OSError:
            pass  # it has just ended
    return found


def is_zombie(task):
    return (task / 'stat').read_text().rsplit(')', 1)[1].split()[0] in 'ZX'


def new_mark():
    "A name that no other program has"
    return 'lopa-' + os.urandom(5).hex()


def has_held(mark, status, value):
    "Is nothing left of a program, and had it no more memory than it may?"
    until = time.monotonic() + 1  # whoever has died may wait for init to notice
    while (left := marked(mark)) and time.monotonic() < until:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, 9)
    return not left and value != 'DONE' and status != 'unavailable'


TRY_ALL = """
import json, sys, warnings
warnings.simplefilter('ignore')
sys.path.insert(0, sys.argv[1])
from lopa.sandbox import *
from hostile_runs import programs
done = []
for rung, name, mark in json.load(sys.stdin):
    if why_not(rung): continue
    gap, source, needs = programs(mark)[name]
    o = run_program(source, rung=rung, allow_weak_isolation=True, **needs)
    done.append([rung, name, mark, gap, [o.status, o.value], [*gaps(rung)]])
print(json.dumps(done))
"""  # for an ordinary user: jobs come as JSON, and what came of them leaves as JSON
