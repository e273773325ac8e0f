"A process with a limit of time and a log, and what is said of it afterwards"

import os
import signal
import subprocess
import sys
from contextlib import suppress

# In a rehearsal: no GPU, and of the tests a few lengths, on the CPU
REHEARSAL = {'CUDA_VISIBLE_DEVICES': '', 'LOPA_TEST_DEVICE': 'cpu', 'LOPA_TEST_LENGTHS': '53,63'}


def environment(folder, root, offline=True, rehearse=False):
    "Environment variables of a process that works in `folder`"
    path = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    env = {
        'PYTHONPATH': path,
        'PYTHONUNBUFFERED': '1',
        'TOKENIZERS_PARALLELISM': 'false',
        'LOPA_TEST_LOG': str(folder / 'tests.jsonl'),
    }
    if offline:
        env['HF_HUB_OFFLINE'] = '1'
    return os.environ | env | (REHEARSAL if rehearse else {})


def end_group(process):
    "End a process and whatever it started"
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def carry_out(command, log, limit, **where):
    "Run python → its exit status, or None if it took longer than allowed"
    with open(log, 'w', encoding='utf-8') as out:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **where,
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_group(process)


def last_lines(log, n=15):
    "The end of a log; a progress bar does not hide what follows it on its line"
    text = log.read_text(encoding='utf-8', errors='replace').replace('\r', '\n')
    return [line.rstrip() for line in text.splitlines() if line.strip()][-n:]


def why(code, log, limit):
    "One sentence on a process that did not end well"
    if code is None:
        return f'ran out of time after {limit:.0f} s'
    how = f'ended by signal {-code}' if code < 0 else f'ended with status {code}'
    last = (last_lines(log, 1) or ['it said nothing'])[0]
    return f'{how}: {last.strip()[:300]}'
