"The page of `lopa figures`, without a browser: who may ask, and how many kernels there are"

import json
import sys
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
from browser import free_port, serving, told_address

from lopa.figures.web import TUTORIAL

pytest.importorskip('voila', reason='voila is not installed: pip install "lopa[web]"')


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    "A clone with a small tutorial, and its page: (port, address with token)"
    folder = tmp_path_factory.mktemp('clone')
    tutorial = folder / TUTORIAL
    tutorial.parent.mkdir(parents=True)
    about = dict(metadata={}, execution_count=None, outputs=[], source='print("is", 6 * 7)')
    cells = [dict(cell_type='code', id='answer', **about)]
    kernel = dict(name='python3', display_name='python3', language='python')
    nb = dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
    tutorial.write_text(json.dumps(nb))
    port = free_port()
    code = f'from lopa.figures import serve_figures; serve_figures({port}, browser=False)'
    with serving([sys.executable, '-c', code], port, folder):
        yield port, told_address(Path(folder / 'server.log'))


def asked(address, **headers):
    "Status and text"
    try:
        with urlopen(Request(address, headers=headers), timeout=120) as page:
            return page.status, page.read().decode()
    except HTTPError as e:
        return e.code, e.read().decode()


def kernels():
    "Processes below this one that run a notebook"
    below = psutil.Process().children(recursive=True)
    return [p for p in below if 'ipykernel_launcher' in ' '.join(p.cmdline())]


def test_strangers_are_refused(served):
    "Without the token, with another one, by another name"
    port, address = served
    plain = f'http://127.0.0.1:{port}/'
    for wrong in plain, f'{plain}?token=x', f'{plain}?token=', f'{plain}api/kernels/1-1-1-1-1':
        assert asked(wrong)[0] == 403, wrong
    for name in 'evil.example', '10.0.0.1', f'evil.example:{port}':
        assert asked(address, Host=name)[0] == 403, name
    assert not kernels()


def test_one_kernel_for_many_requests(served):
    "All at once: one is served, the others are told to wait; then who comes waits, too"
    _, address = served
    answers = []
    together = [threading.Thread(target=lambda: answers.append(asked(address))) for _ in range(4)]
    for visitor in together:
        visitor.start()
    for visitor in together:
        visitor.join()
    statuses = sorted(status for status, _ in answers)
    assert statuses == [200, 503, 503, 503] and len(kernels()) == 1
    assert any('is 42' in text for status, text in answers if status == 200)
    assert all('in the queue' in text for status, text in answers if status == 503)
    assert asked(address)[0] == 503 and len(kernels()) == 1
