"The tutorial with sliders, as readers meet it: in JupyterLab, and as a page of `lopa figures`"

import json
import re
import sys

import pytest
from browser import (
    CHROMIUM,
    clone,
    free_port,
    open_page,
    play,
    serving,
    shoot,
    told_address,
    until,
)

from lopa.figures.web import TUTORIAL

playwright = pytest.importorskip(
    'playwright.sync_api', reason='playwright is not installed: pip install playwright'
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no Chromium here: apt-get install chromium')
CODE = '.jp-CodeCell .jp-InputArea'

# The page is drawn long before its kernel listens; cells run too early are silently not run.
READY = """async () => {
    const app = window.jupyterapp
    if (!app) return false
    await app.restored
    const panel = app.shell.currentWidget
    if (!panel?.sessionContext) return false
    await panel.revealed
    await panel.sessionContext.ready
    const kernel = panel.sessionContext.session?.kernel
    if (kernel?.connectionStatus !== 'connected') return false
    await kernel.info
    return kernel.status === 'idle'
}"""
RAN = """() => {
    const panel = jupyterapp.shell.currentWidget
    const cells = [...panel.content.model.cells].filter(c => c.type === 'code')
    const outputs = cells.flatMap(c => c.outputs.toJSON())
    const failures = outputs.filter(o => o.output_type === 'error')
    const errors = failures.map(o => `${o.ename}: ${o.evalue}`)
    const idle = panel.sessionContext.session.kernel.status === 'idle'
    const done = cells.every(c => c.executionCount) && idle
    return errors.length || done ? {errors, cells: cells.length} : null
}"""
SETTINGS = {
    'apputils-extension/notification': {
        'fetchNews': 'false',
        'checkForUpdates': False,
    },  # no question, no address outside
    'notebook-extension/tracker': {'windowingMode': 'none'},
}  # cells out of sight stay on the page


@pytest.fixture(scope='module')
def chromium():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=CHROMIUM,
            args=['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'],
        )
        yield browser
        browser.close()


def test_in_jupyterlab(chromium, tmp_path):
    nb = clone(tmp_path, TUTORIAL)
    port = free_port()
    for name, value in SETTINGS.items():
        path = tmp_path / f'jupyter/@jupyterlab/{name}.jupyterlab-settings'
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(value))
    command = [
        sys.executable,
        '-m',
        'jupyterlab',
        '--no-browser',
        '--allow-root',
        '--ip=127.0.0.1',
        f'--port={port}',
        '--ServerApp.port_retries=0',
        '--IdentityProvider.token=',
        '--LabApp.expose_app_in_browser=True',
        f'--ServerApp.root_dir={tmp_path}',
    ]
    with (
        serving(command, port, tmp_path),
        open_page(chromium, f'http://127.0.0.1:{port}/doc/tree/{TUTORIAL}?reset') as page,
    ):
        until(page, lambda: page.evaluate(READY), 'the kernel is connected and idle')
        page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
        ran = until(page, lambda: page.evaluate(RAN), 'all cells have run')
        assert not ran['errors'], ran['errors']
        assert (
            ran['cells']
            == page.locator(CODE).count()
            == sum(c.cell_type == 'code' for c in nb.cells)
        )
        shoot(page, 'lab')
        play(page, 'lab')


def test_as_a_web_page(chromium, tmp_path):
    nb = clone(tmp_path, TUTORIAL)
    port = free_port()
    command = [
        sys.executable,
        '-c',
        f'from lopa.figures import serve_figures; serve_figures({port}, browser=False)',
    ]
    with (
        serving(command, port, tmp_path),
        open_page(chromium, told_address(tmp_path / 'server.log')) as page,
    ):
        page.locator('.widget-slider').first.wait_for()
        kinds = [f'[data-mime-type="application/vnd.jupyter.{k}"]' for k in ('stderr', 'error')]
        said = page.locator(', '.join(kinds)).all_inner_texts()
        assert not said, said
        assert page.locator(CODE).count() == 0, 'code is shown'
        prose = [
            c.source
            for c in nb.cells
            if c.cell_type == 'markdown' and not c.id.startswith('colab-')
        ]
        assert page.locator('.jp-MarkdownCell').count() == len(prose)
        assert re.search(r'^# (.+)', prose[0], re.M)[1] in page.locator('h1').first.inner_text()
        shoot(page, 'page', whole=True)
        play(page, 'page')
