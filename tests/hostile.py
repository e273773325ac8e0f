"""Programs that reach for what is not theirs, and a process that they reach for

Each is Python that raises OSError if it is refused. `program` makes it a whole program, whose value
is 'DONE' or the name of an error; `several` runs many, and its value is a dict of them.
"""

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from lopa.sandbox.walls import JUDGED, MACHINE, PROCESSORS, REFUSED, call_number

root = Path(__file__).resolve().parents[1]
USER = 1_900_000_123  # an ordinary user, when we are root


def numbers(machine=MACHINE):
    "Name of a system call → its number on a processor, None where there is none"
    calls = [entry for calls in REFUSED.values() for entry in calls.split(', ')]
    entries = [*calls, *JUDGED, 'clone3 435 435']
    return {entry.split()[0]: call_number(entry, machine) for entry in entries}


PRELUDE = """
import ctypes, errno, mmap, os, resource, signal, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *words):
    "A system call by its name"
    if NUMBERS[name] is None: raise OSError(errno.ENOSYS, name)
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
    result = libc.syscall(ctypes.c_long(NUMBERS[name]), *words)
    if result < 0: raise OSError(ctypes.get_errno(), name)
    return result
def attempt(act):
    try: act()
    except OSError as e: return errno.errorcode.get(e.errno, str(e))
    return "DONE"
def apart(act):
    "The same in a process of its own"
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(w, attempt(act).encode())
        os._exit(0)
    os.close(w)
    os.waitpid(pid, 0)
    said = os.read(r, 99).decode()
    os.close(r)
    return said or "ended"
kept = []
def pair(kind):
    kept.append(socket.socketpair(socket.AF_UNIX, kind))
    return kept[-1]
def own(command, ask):
    "Have a signal sent to another process as soon as there is something to read"
    import fcntl
    r, w = os.pipe()
    ask(r)
    fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)
    os.write(w, b"x")
"""
if MACHINE in PROCESSORS:
    PRELUDE += f'NUMBERS = {numbers()}\n'

STEERS = {  # how another process is to be changed or read → a line
    'its limits': 'resource.prlimit(VICTIM, resource.RLIMIT_FSIZE, (0, 0))',
    'its limits, high bits': 'call("prlimit64", VICTIM + (1 << 32), 7, b"\\0" * 16, None)',
    'priority of a process': 'os.setpriority(os.PRIO_PROCESS, VICTIM, 19)',
    'priority of a group': 'os.setpriority(os.PRIO_PGRP, GROUP, 19)',
    'priority of a user': 'os.setpriority(os.PRIO_USER, os.getuid(), 19)',
    'priority is asked': 'os.getpriority(os.PRIO_PROCESS, VICTIM)',
    'its processors': 'os.sched_setaffinity(VICTIM, {0})',
    'its scheduler': 'os.sched_setscheduler(VICTIM, os.SCHED_BATCH, os.sched_param(0))',
    'parameters of its scheduler': 'os.sched_setparam(VICTIM, os.sched_param(0))',
    'attributes of its scheduler': 'call("sched_setattr", VICTIM, struct.pack("IIQiIQQQ", 48, 3, '
    '0, 19, 0, 0, 0, 0), 0)',
    'priority of its input': 'call("ioprio_set", 1, VICTIM, 3 << 13)',
    'priority of all input': 'call("ioprio_set", 3, os.getuid(), 3 << 13)',
    'priority of its input is asked': 'call("ioprio_get", 1, VICTIM)',
    'who shares its core': 'call("prctl", 62, 1, VICTIM, 0, 0)',
    'attaches': 'call("ptrace", 16, VICTIM, 0, 0)',
    'seizes': 'call("ptrace", 0x4206, VICTIM, 0, 0)',
    'reads its memory': 'call("process_vm_readv", VICTIM, None, 0, None, 0, 0)',
    'writes its memory': 'call("process_vm_writev", VICTIM, None, 0, None, 0, 0)',
    'opens its memory': 'open(f"/proc/{VICTIM}/mem", "r+b").close()',
    'opens its environment': 'open(f"/proc/{VICTIM}/environ").read()',
    'opens its files': 'os.listdir(f"/proc/{VICTIM}/fd")',
    'moves its pages': 'call("move_pages", VICTIM, 0, None, None, None, 0)',
    'migrates its pages': 'call("migrate_pages", VICTIM, 8, b"\\1" + bytes(7), b"\\1" + bytes(7))',
    'compares its files': 'call("kcmp", os.getpid(), VICTIM, 5, 0, 0)',
    'opens a handle on it': 'os.pidfd_open(VICTIM)',
    'its locks': 'call("get_robust_list", VICTIM, bytes(8), bytes(8))',
    'its processor time': 'call("timer_create", ~VICTIM << 3 | 2, None, bytes(4))',
    'who is killed first': 'open(f"/proc/{VICTIM}/oom_score_adj", "w").write("1000")',
}
SIGNALS = {  # 28 is SIGWINCH, which the victim counts
    'a signal': 'os.kill(VICTIM, 28)',
    'a signal to a group': 'os.killpg(GROUP, 28)',
    'a signal to a thread': 'call("tkill", VICTIM, 28)',
    'a signal to a thread of a group': 'call("tgkill", VICTIM, VICTIM, 28)',
    'a signal with a message': 'call("rt_sigqueueinfo", VICTIM, 28, '
    'struct.pack("iiii", 28, 0, -1, 0) + bytes(112))',
    'a signal to everybody': 'os.kill(-1, 28)',
    'a signal by a handle': 'signal.pidfd_send_signal(os.pidfd_open(VICTIM), 28)',
    'owner of a pipe': 'own("F_SETOWN", lambda r: call("fcntl", r, 8, VICTIM))',
    'owner of a pipe, by kind': 'own("F_SETOWN_EX", lambda r: call("fcntl", r, 15, '
    'struct.pack("ii", 1, VICTIM)))',
    'signal of a pipe': 'own("F_SETSIG", lambda r: call("fcntl", r, 10, 28))',
    'owner of a socket': 'call("ioctl", pair(1)[0].fileno(), 0x8901, struct.pack("i", VICTIM))',
    'group of a socket': 'call("ioctl", pair(1)[0].fileno(), 0x8902, struct.pack("i", VICTIM))',
    'owner, high bits': 'own("F_SETOWN", lambda r: call("fcntl", r, 8 + (1 << 32), VICTIM))',
}
TALKS = {
    'a datagram': 'pair(2)[0].sendto(b"hostile", ADDRESS)',
    'a datagram to a name': 'pair(2)[0].sendto(b"hostile", NAME)',
    'a file in a datagram': 'socket.send_fds(pair(2)[0], [b"hostile"], [0], 0, ADDRESS)',
    'a connected datagram': 'p = pair(2)[0]; p.connect(ADDRESS); p.send(b"hostile")',
    'many datagrams': 'call("sendmmsg", pair(2)[0].fileno(), None, 0, 0)',
    'a pair of packets': 'pair(5)',
    'raw pairs': 'pair(3)',
    'room in a pair': 'pair(1)[0].setsockopt(1, 7, 1 << 22)',
    'a bound pair': 'pair(2)[0].bind("\\0hostile")',
    'a socket of UNIX': 'socket.socket(socket.AF_UNIX)',
    'a socket of the network': 'socket.socket(socket.AF_INET)',
    'a socket of the kernel': 'socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)',
    'attaches shared memory': 'call("shmat", MEMORY, None, 0)',
    'finds shared memory': 'call("shmget", KEY, 0, 0)',
    'makes shared memory': 'call("shmctl", call("shmget", 0, 4096, 0o600), 0, None)',
    'removes shared memory': 'call("shmctl", MEMORY, 0, None)',
    'finds semaphores': 'call("semget", KEY, 0, 0)',
    'makes semaphores': 'call("semctl", call("semget", 0, 1, 0o600), 0, 0)',
    'takes a message': 'call("msgrcv", QUEUE, ctypes.create_string_buffer(99), 8, 0, 0o4000)',
    'leaves a message': 'call("msgsnd", QUEUE, struct.pack("q8s", 1, b"hostile"), 8, 0o4000)',
    'removes a queue': 'call("msgctl", QUEUE, 0, None)',
    'a queue of POSIX': 'call("mq_unlink", b"lopa-hostile") '
    'if call("mq_open", b"lopa-hostile", 0o102, 0o600, None) else 0',
    'leaves a key': 'key = call("add_key", b"user", b"lopa-%d" % KEY, b"x", 1, -4); '
    'call("keyctl", 15, key, 3)',
    'leaves a key in the session': 'call("add_key", b"user", b"lopa-%d" % KEY, b"x", 1, -3)',
    'finds a key': 'call("request_key", b"user", b"lopa-planted", None, 0)',
    'reads the session': 'call("keyctl", 11, -3, ctypes.create_string_buffer(99), 99)',
    'reads the list of keys': 'assert open("/proc/keys").read()',
}
HIDES = {  # memory that no limit counts, views of the machine, files of ours
    'memory without a name': 'os.memfd_create("x")',
    'shared memory without a file': 'mmap.mmap(-1, 1 << 20)',
    'shared zeros': 'mmap.mmap(os.open("/dev/zero", os.O_RDWR), 1 << 20)',
    'a namespace of users': 'call("unshare", 0x10000000)',
    'a namespace of files': 'call("unshare", 0x10020000); '
    'call("mount", b"x", b"/tmp", b"tmpfs", 0, None)',
    'a child in a namespace': 'call("clone", 0x10000011, 0, 0, 0, 0) or os._exit(0)',
    'a child by another call': 'call("clone3", struct.pack("QQQQQQQQ", 0x10000000, 0, 0, 0, 17, 0, '
    '0, 0), 64) or os._exit(0)',
    'a sibling': 'call("clone", 0x8011, 0, 0, 0, 0) or os._exit(0)',
    'the namespace of another': 'call("setns", os.open(f"/proc/{VICTIM}/ns/user", 0), 0)',
    'mode of a file': 'os.chmod(FILE, 0o640)',
    'owner of a file': 'os.chown(FILE, os.getuid(), -1)',
    'time of a file': 'os.utime(FILE, (1, 1))',
    'label of a file': 'os.setxattr(FILE, "user.hostile", b"x")',
    'a lease': 'import fcntl; fcntl.fcntl(os.open("leased", os.O_CREAT), 1024, 0)',
    'news of a folder': 'import fcntl; fcntl.fcntl(os.open(".", 0), 1026, 1)',
    'a watch': 'call("inotify_add_watch", call("inotify_init1", 0), os.fsencode(FILE), 0xFFF)',
    'a handle instead of a path': 'call("name_to_handle_at", -100, os.fsencode(FILE), '
    'ctypes.create_string_buffer(struct.pack("ii", 128, 0) + bytes(128)), bytes(8), 0)',
    'another personality': 'call("personality", 0x40000)',
    'hides from its keeper': 'if libc.prctl(4, 0, 0, 0, 0): raise OSError(ctypes.get_errno(), "x")',
    'a large pipe': 'import fcntl; fcntl.fcntl(os.pipe()[0], 1031, 1 << 20)',
    'much input at a time': 'call("io_setup", 1, ctypes.byref(ctypes.c_ulong()))',
}
PRIVILEGED = {  # what an ordinary user may not, or may not everywhere
    'input of a terminal': 'call("ioctl", 0, 0x5412, b"x")',
    'a selection of a terminal': 'call("ioctl", 0, 0x541C, b"x")',
    'input without calls': 'call("io_uring_setup", 1, ctypes.create_string_buffer(120))',
    'faults of pages': 'call("userfaultfd", 1)',
    'programs in the kernel': 'call("bpf", 0, ctypes.create_string_buffer(128), 128)',
    'counters': 'call("perf_event_open", ctypes.create_string_buffer(struct.pack("II", 1, 128) + '
    'bytes(120)), 0, -1, -1, 0)',
    'a socket of the host': 'socket.socket(40, socket.SOCK_STREAM)',
    'another root': 'os.chroot(".")',
    'a mount': 'call("mount", b"x", b"/tmp", b"tmpfs", 0, None)',
    'a new mount': 'call("fsopen", b"tmpfs", 0)',
    'a copy of a mount': 'call("open_tree", -100, b"/", 1)',
    'no mount': 'call("umount2", b"/tmp", 2)',
    'another name': 'socket.sethostname("hostile")',
    'another time': 'time.clock_settime(time.CLOCK_REALTIME, 0)',
    'a file by its handle': 'call("open_by_handle_at", -100, bytes(16), 0)',
    'messages of the kernel': 'call("syslog", 3, bytes(64), 64)',
    'a list of accounts': 'call("acct", b"/tmp/hostile")',
    'the end': 'call("reboot", 0, 0, 0, None)',
    'another kernel': 'call("kexec_load", 0, 0, None, 0)',
    'a module': 'call("init_module", bytes(8), 8, b"")',
    'quotas': 'call("quotactl", 0x800001 << 8, None, 0, None)',
    'a hangup': 'call("vhangup")',
}
REACHES = {**STEERS, **SIGNALS, **TALKS, **HIDES, **PRIVILEGED}

IS_REACHED_FOR = """
import ctypes, json, os, resource, signal, socket, sys, time
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
caught = []
for number in (10, 12, 23, 28, 29): signal.signal(number, lambda n, frame: caught.append(n))
signal.siginterrupt(28, False)
def listen(address):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind(address)
    s.setblocking(False)
    return s
os.umask(0)
sockets = [listen(address) for address in sys.argv[1:3]]
key = 0x10_0000 + os.getpid()
memory = libc.shmget(key, 4096, 0o1666)
semaphore = libc.semget(key, 1, 0o1666)
queue = libc.msgget(key, 0o1666)
text = ctypes.create_string_buffer(b"\\1" + bytes(7) + b"planted")
libc.msgsnd(queue, text, 8, 0)
def heard(s):
    try: return s.recv(99).decode()
    except OSError: return ""
def state():
    return dict(
        limits=[resource.getrlimit(n) for n in range(16)], nice=os.getpriority(0, 0),
        processors=sorted(os.sched_getaffinity(0)), scheduler=os.sched_getscheduler(0),
        caught=list(caught), heard=[heard(s) for s in sockets],
        memory=libc.shmat(memory, None, 0) not in (None, 2**64 - 1),
        queue=libc.msgget(key, 0), oom=open("/proc/self/oom_score_adj").read(),
        keys=f"lopa-{key}" in open("/proc/keys").read(),
        input=libc.syscall(ctypes.c_long(INPUT), 1, 0))
print(json.dumps([key, memory, semaphore, queue]), flush=True)
for line in sys.stdin: print(json.dumps(state()), flush=True)
"""


class Victim:
    "A process of a user (None: our own) that notices what is done to it, and a file of its user"

    def __init__(self, folder, user=None):
        self.folder = Path(folder)
        address = str(self.folder / 'socket')
        name = f'\0lopa{self.folder}'
        whose = dict(user=user, group=user, extra_groups=[]) if user else {}
        code = IS_REACHED_FOR.replace('INPUT', str(numbers()['ioprio_get']))
        code = code.replace('sys.argv[1:3]', repr([address, name]))
        python = '/usr/bin/python3' if user else sys.executable
        self.process = subprocess.Popen(
            [python, '-I', '-c', code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd='/',
            **whose,
        )
        key, memory, self.semaphore, queue = json.loads(self.process.stdout.readline())
        (self.folder / 'file').write_text('as it was')
        os.chown(self.folder / 'file', user or -1, user or -1)
        self.known = dict(
            VICTIM=self.process.pid,
            GROUP=self.process.pid,
            ADDRESS=address,
            NAME=name,
            KEY=key,
            MEMORY=memory,
            QUEUE=queue,
            FILE=str(self.folder / 'file'),
        )

    def state(self):
        "What the victim says of itself, and how its file is"
        os.kill(self.process.pid, signal.SIGCONT)  # a tracer leaves it stopped
        if self.process.poll() is not None:
            return f'ended with {self.process.returncode}'
        self.process.stdin.write('state\n')
        self.process.stdin.flush()
        file = (self.folder / 'file').stat()
        return {
            **json.loads(self.process.stdout.readline()),
            'file': (file.st_mode, file.st_uid, file.st_mtime),
            'labels': os.listxattr(self.folder / 'file'),
        }

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait(9)
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        library = ctypes.CDLL(None)  # what the kernel keeps for nobody
        library.shmctl(self.known['MEMORY'], 0, None)
        library.semctl(self.semaphore, 0, 0)
        library.msgctl(self.known['QUEUE'], 0, None)


def text(name, known):
    "One act as Python, with what is known about the victim"
    lines = REACHES[name].split('; ')
    body = 'def act():\n' + ''.join(f'    {line}\n' for line in lines)
    return re.sub('|'.join(rf'\b{word}\b' for word in known), lambda m: repr(known[m[0]]), body)


def program(name, known):
    "One act as a whole program: its value is 'DONE' or the name of an error"
    return f'{PRELUDE}{text(name, known)}\nattempt(act)'


def several(names, known):
    "Many acts as one program: its value is a dict, name → 'DONE' or the name of an error"
    lines = [PRELUDE, 'came = {}']
    for name in names:
        lines += [text(name, known), f'came[{name!r}] = apart(act)']
    return '\n'.join([*lines, 'came'])


# ---- an ordinary user, when we are root ----

AS_USER = """
import ctypes, json, os, subprocess, sys, warnings
warnings.simplefilter('ignore')
sys.path.insert(0, sys.argv[1])
from lopa.sandbox import run_program, why_not
key, jobs = json.load(sys.stdin)
if key: ctypes.CDLL(None).syscall(ctypes.c_long(key), b"user", b"lopa-planted", b"sesame", 6, -3)
done = {}
for name, rung, source, limits in jobs:
    if rung is None:
        code = source + "\\nprint(repr(came))"
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=sys.argv[2]
        )
        done[name] = "ok", ran.stdout or repr(ran), ran.stderr
    elif why_not(rung):
        done[name] = "missing", why_not(rung), ""
    else:
        limits.setdefault("timeout", 20)
        o = run_program(source, rung=rung, allow_weak_isolation=True, **limits)
        done[name] = o.status, repr(o.value), o.stderr
print(json.dumps(done))
"""


def only_the_sandbox(folder, names):
    "What not to copy: in the library's own folder, the other rooms and modules"
    if Path(folder).name != 'lopa':
        return set()
    return set(names) - {'sandbox', '_moved.py', '__init__.py'}


def as_user(jobs, folder, user=USER, python='/usr/bin/python3', env=()):
    "Run (name, rung or None, source, limits) as a user: name → (status, repr of the value, errors)"
    library = Path(folder) / 'lib'
    if not library.exists():
        shutil.copytree(root / 'lopa', library / 'lopa', ignore=only_the_sandbox)
    whose = dict(user=user, group=user, extra_groups=[]) if os.geteuid() == 0 else {}
    ran = subprocess.run(
        [python, '-I', '-c', AS_USER, str(library), str(folder)],
        input=json.dumps([numbers()['add_key'], jobs]),
        capture_output=True,
        text=True,
        cwd='/tmp',
        env={'PATH': '/usr/bin:/bin', **dict(env)},
        **whose,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def ordinary_python():
    "Is there a Python of the system, and may we become the user to start it?"
    if sys.platform != 'linux' or os.geteuid() or not Path('/usr/bin/python3').exists():
        return False
    is_old = 'import sys; sys.exit(sys.version_info < (3, 10))'
    try:
        return subprocess.run(['/usr/bin/python3', '-c', is_old], user=USER).returncode == 0
    except OSError:
        return False
