"""Which architectures a prompt can stand before, and what holds there: a table, tried with models

    python -m tools.architectures                              # all of them, some minutes
    python -m tools.architectures --only BERT 'Gemma-3'        # some of them; nothing is written
    python -m tools.architectures --json-file results/architectures.json

Tiny random models of each architecture (tests/architectures.py) are asked every law
(tools/laws.py). A cell is `right`, with how far it is off, or `refused`, with the sentence that
says why; what is `wrong`, or ends in an `error` that is none of ours, is printed, and the program
ends with 1.
"""

import argparse
import json
import sys
from contextlib import redirect_stdout
from importlib.metadata import version

import torch
import transformers
from tqdm.auto import tqdm

from lopa.files import write_files
from tools.laws import LAWS, ROOT, ask_laws

from architectures import ARCHITECTURES, family  # isort: skip (tools.laws says where it is)

FILE = ROOT / 'results' / 'architectures.json'


def row(name):
    "All that is known of one architecture"
    with redirect_stdout(None):  # some models print
        laws = {kind: ask_laws(name, kind) for kind in LAWS}
    return {'family': family(name), 'class': ARCHITECTURES[name][0], 'laws': laws}


def versions():
    "Of what decides whether a cell is right"
    return {name: version(name) for name in ('torch', 'transformers', 'peft')}


def table(names):
    "Versions, and name → row, with a bar while it is made"
    bar = tqdm(names, file=sys.stderr, disable=len(names) < 2)
    rows = {}
    for name in bar:
        bar.set_description(name)
        rows[name] = row(name)
    return {'versions': versions(), 'architectures': rows}


def cells(found):
    "(architecture, model, law, cell), one after the other"
    for name, about in found['architectures'].items():
        for kind, laws in about['laws'].items():
            for law, cell in laws.items():
                yield name, kind, law, cell


def line(name, kind, law, cell):
    "One cell as a line of text"
    ((verdict, what),) = cell.items()
    return f'{name} | {kind} | {law} | {verdict} | {what}'


def write(found, path):
    "Write the table, one architecture a line"
    plain = {'ensure_ascii': False}
    rows = [f'{json.dumps(n)}: {json.dumps(v, **plain)}' for n, v in found['architectures'].items()]
    head = f'{{"versions": {json.dumps(found["versions"])},\n"architectures": {{\n'
    text = head + ',\n'.join(rows) + '\n}}\n'
    write_files(path.parent, {path.name: text.encode()})


def arguments(given=None):
    "What was asked on the command line"
    about, _, more = __doc__.partition('\n\n')
    parser = argparse.ArgumentParser(
        'python -m tools.architectures',
        description=about,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--only', nargs='+', metavar='NAME', help='some architectures, by name')
    parser.add_argument('--json-file', metavar='PATH', help='write the table there')
    asked = parser.parse_args(given)
    unknown = set(asked.only or ()) - set(ARCHITECTURES)
    if unknown:
        parser.error(f'--only: received {sorted(unknown)}, expected some of {list(ARCHITECTURES)}.')
    return asked


def main(given=None):
    asked = arguments(given)
    torch.set_num_threads(1)  # tiny models are slower on several
    transformers.logging.set_verbosity_error()
    found = table(asked.only or list(ARCHITECTURES))
    failed = [cell for cell in cells(found) if {'wrong', 'error'} & set(cell[-1])]
    for cell in failed:
        print(line(*cell))
    print(f'{len(found["architectures"])} architectures, {sum(1 for _ in cells(found))} cells')
    print(f'{len(failed)} neither right nor refused')
    if asked.json_file:
        write(found, ROOT / asked.json_file)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
