"""For pytest: a line of JSON for every test that has ended, so that a run cut short is on record

LOPA_TEST_LOG=tests.jsonl python -m pytest -p tools.gpu_log tests/test_cuda.py
"""

import json
import os

ended = {}  # test → what is known of it so far


def reason(report):
    "Why a test was skipped or failed, without the code around it"
    text = report.longrepr
    if report.skipped and isinstance(text, tuple):
        return text[2].removeprefix('Skipped: ')
    lines = str(text or '').strip().splitlines()
    error = next((line[1:] for line in lines if line.startswith('E ')), ' '.join(lines[-3:]))
    return error.strip()[:500]


def entry(report):
    "What is kept of a test"
    found = {'test': report.nodeid, 'result': report.outcome, 'seconds': round(report.duration, 2)}
    return found | ({'why': why} if (why := reason(report)) else {})


def pytest_runtest_logreport(report):
    "Called before (setup), for (call) and after (teardown) a test"
    if 'PYTEST_XDIST_WORKER' in os.environ:
        return  # of several processes, one writes
    known = ended.get(report.nodeid)
    news = report.failed and known and known['result'] != 'failed'
    if not known or report.when == 'call' or news:
        ended[report.nodeid] = entry(report)
    if report.when in ('setup', 'call'):
        return  # a worker that died: neither
    found = ended.pop(report.nodeid) | dict(report.user_properties)
    with open(os.environ['LOPA_TEST_LOG'], 'a', encoding='utf-8') as out:
        out.write(json.dumps(found) + '\n')
