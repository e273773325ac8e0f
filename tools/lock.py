"""Write constraints.txt: one version of everything for each Python from settings.ini's floor up

make lock                     # keep today's versions, change only what settings.ini asks for
make lock ARGS=--upgrade      # move everything to the newest that fits
make lock ARGS='--upgrade-package peft'
"""

import re
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

from lopa.files import write_files

root = Path(__file__).resolve().parents[1]
# Which of these a torch needs depends on its build (CPU or CUDA), and it pins them itself.
of_torch = re.compile(r'(nvidia|cuda|triton)\b')
header = [
    '# The exact versions that CI uses, for every supported Python; settings.ini holds the floors.',
    '# Written by `make lock`: do not edit. To change one version:',
    "# make lock ARGS='--upgrade-package NAME==VERSION'",
    '# What only a CUDA build of torch needs is left out: such a build pins it itself.',
]
compiler = 'uv pip compile --quiet --universal --no-header --no-annotate --python-version'


def wanted(cfg):
    "Everything that a user or developer of the package may install"
    return [line for name in cfg if name.endswith('requirements') for line in cfg[name].split()]


def compiled(cfg, before, args):
    "Lines that fit together; versions of before are kept where they fit"
    with tempfile.TemporaryDirectory() as tmp:
        asked, found = Path(tmp) / 'asked.in', Path(tmp) / 'found.txt'
        asked.write_text('\n'.join(wanted(cfg)) + '\n')
        if before.exists():
            shutil.copy(before, found)  # uv keeps the versions that it finds there
        command = [*compiler.split(), cfg['min_python'], *args, str(asked), '-o', str(found)]
        subprocess.run(command, check=True)
        return found.read_text().splitlines()


def main(args):
    cfg = ConfigParser()
    cfg.read(root / 'settings.ini', encoding='utf-8')
    out = root / 'constraints.txt'
    found = compiled(cfg['DEFAULT'], out, args)
    lines = [line for line in found if line and not of_torch.match(line)]
    write_files(root, {out.name: '\n'.join([*header, *lines, '']).encode()})
    print(f'constraints.txt: {len(lines)} lines')


if __name__ == '__main__':
    main(sys.argv[1:])
