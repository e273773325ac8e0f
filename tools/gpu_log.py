"""For pytest: a line of JSON for every test that has ended, so that tests which were cut short are on record, too

    LOPA_TEST_LOG=tests.jsonl python -m pytest -p tools.gpu_log tests/test_cuda.py
"""
import json
import os

ended = {}              # test → what is known of it so far


def line(report):
    "What is kept of a test; of one that did not pass, why"
    why = report.longrepr[2].removeprefix('Skipped: ') if report.skipped else str(report.longrepr or '').strip()
    return {'test': report.nodeid, 'result': report.outcome, 'seconds': round(report.duration, 2)} | (
        {'why': next((l[1:].strip() for l in why.splitlines() if l.startswith('E ')), why[-500:])} if why else {})


def pytest_runtest_logreport(report):
    "Called by pytest before (setup), for (call) and after (teardown) a test; with pytest-xdist in every process, of which one writes"
    if 'PYTEST_XDIST_WORKER' in os.environ: return
    known = ended.get(report.nodeid)
    if not known or report.failed or report.when == 'call': ended[report.nodeid] = line(report)
    if report.when in ('setup', 'call'): return
    found = ended.pop(report.nodeid) | dict(report.user_properties)             # a worker that died reports once, and neither of the three
    with open(os.environ['LOPA_TEST_LOG'], 'a', encoding='utf-8') as out: out.write(json.dumps(found) + '\n')
