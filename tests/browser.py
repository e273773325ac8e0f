"A notebook in a real browser: servers that always end, and what a reader's hands do"

import os
import re
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat

from tools.execute import runs

root = Path(__file__).resolve().parents[1]
CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)
PATIENCE = 300  # seconds; a limit for what hangs, not an expectation
SHOTS = root / 'runs' / 'browser'
HARMLESS = [
    'cdn.jsdelivr.net/npm/@fortawesome/'
]  # on the console: Voilà asks for icons from outside, and shows the page without them


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as s:
        return s.getsockname()[1]


def clone(folder, notebook):
    "What the notebook reads, laid out as in the repository, without the cells that take long"
    nb = nbformat.read(root / notebook, 4)
    copy = folder / notebook
    nb.cells = [c for c in nb.cells if c.cell_type != 'code' or runs(c)]
    for cell in nb.cells:
        if cell.cell_type == 'code':
            cell.update(outputs=[], execution_count=None)
    copy.parent.mkdir(parents=True)
    nbformat.write(nb, copy)
    (folder / 'results').symlink_to(root / 'results')
    return nb


def environment(folder):
    "Ours, with all that Jupyter reads and writes in a folder of its own"
    places = ['JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR']
    places += ['JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR']
    jupyter = dict.fromkeys(places, str(folder / 'jupyter'))
    return os.environ | {'PYTHONPATH': str(root), 'IPYTHONDIR': str(folder / 'ipython')} | jupyter


def wait_for(server, port, said):
    "Until somebody listens on the port; an error if the server has ended, or nobody ever does"
    end = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(('127.0.0.1', port), timeout=30).close()
            return
        except OSError:
            waiting = server.poll() is None and time.monotonic() < end
            assert waiting, f'Nobody listens on port {port}. {said()}'
            time.sleep(0.2)


def told_address(log):
    "The address that `lopa figures` prints, token and all"
    end = time.monotonic() + PATIENCE
    while not (found := re.search(r'http\S+token=\w+', log.read_text(errors='replace'))):
        assert time.monotonic() < end, 'no address was printed'
        time.sleep(0.2)
    return found[0]


def end(server):
    "Ask it to go, and see to it that it does"
    server.terminate()
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()


@contextmanager
def serving(command, port, folder):
    "A server that listens until the block is left; whatever fails shows the end of its log"
    log = folder / 'server.log'

    def said():
        return f'The server said:\n{log.read_text(errors="replace")[-3000:]}'

    with open(log, 'w') as out:
        server = subprocess.Popen(
            command, cwd=folder, env=environment(folder), stdout=out, stderr=subprocess.STDOUT
        )
    try:
        wait_for(server, port, said)
        try:
            yield
        except Exception as e:
            raise AssertionError(f'{e}\n{said()}') from e
    finally:
        end(server)


@contextmanager
def open_page(browser, address):
    "A page, and at the end a look at what went wrong on it"
    page = browser.new_page(viewport={'width': 1200, 'height': 1400})
    faults = []
    page.set_default_timeout(PATIENCE * 1000)
    page.on(
        'console',
        lambda m: m.type == 'error' and faults.append(f'{m.text} ({m.location.get("url")})'),
    )
    page.on('pageerror', lambda e: faults.append(str(e)))
    page.route(
        lambda url: not url.startswith('http://127.0.0.1'), lambda route: route.abort()
    )  # nothing depends on the world outside
    try:
        page.goto(address)
        yield page
    finally:
        page.close()
    assert not (wrong := [f for f in faults if not any(h in f for h in HARMLESS)]), (
        'on the console: ' + '; '.join(wrong)
    )


PIXELS = """image => {
    if (!image.complete || !image.naturalWidth) return null
    const canvas = document.createElement('canvas')
    canvas.width = image.naturalWidth
    canvas.height = image.naturalHeight
    canvas.getContext('2d').drawImage(image, 0, 0)
    return canvas.toDataURL()
}"""


def until(page, ask, hope):
    "Ask again and again, and give the first answer that is something"
    # (`page.wait_for_function` would take a promise for an answer)
    end = time.monotonic() + PATIENCE
    while not (answer := ask()):
        assert time.monotonic() < end, f'waited in vain: {hope}'
        page.wait_for_timeout(100)
    return answer


def pixels(image, other_than=None):
    "What a picture shows, as soon as it shows something else"
    return until(
        image.page,
        lambda: (seen := image.evaluate(PIXELS)) != other_than and seen,
        'the picture changes',
    )


def one_step(slider):
    "With the keyboard, to the side where there is room"
    at, most = (float(slider.get_attribute(f'aria-value{name}')) for name in ('now', 'max'))
    slider.press('ArrowRight' if at < most else 'ArrowLeft')


def another_choice(menu):
    at, n = menu.evaluate('m => [m.selectedIndex, m.options.length]')
    menu.select_option(index=(at + 1) % n)


def play(page, name):
    "Move the first slider and choose from the first menu: the picture next to each has to follow"
    for what, selector, move in (
        ('slider', '.widget-slider [role=slider]', one_step),
        ('menu', '.widget-dropdown select', another_choice),
    ):
        control = page.locator(f'.widget-box:has(img) {selector}:visible').first
        image = (
            control.locator('xpath=ancestor::*[contains(@class, "widget-box")][.//img][1]')
            .locator('img')
            .first
        )
        image.scroll_into_view_if_needed()
        before = pixels(image)
        shoot(page, f'{name}-{what}-before')
        move(control)
        pixels(image, other_than=before)
        shoot(page, f'{name}-{what}-after')


def shoot(page, name, whole=False):
    "What can be seen, or the whole of a page whose content scrolls inside of it"
    SHOTS.mkdir(parents=True, exist_ok=True)
    usual = page.viewport_size
    height = page.evaluate(
        'Math.max(...[...document.querySelectorAll("*")].map(e => e.scrollHeight))'
    )
    if whole:
        page.set_viewport_size(usual | {'height': min(height, 16000)})
    page.wait_for_timeout(300)  # for the eye: what follows the picture, such as a table
    page.screenshot(path=SHOTS / f'{name}.png')
    if whole:
        page.set_viewport_size(usual)
