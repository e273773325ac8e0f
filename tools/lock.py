"""Write constraints.txt: one version of everything for each Python from settings.ini's floor up

    make lock                          # keep today's versions, add or change only what settings.ini asks for
    make lock ARGS=--upgrade           # move everything to the newest that fits
    make lock ARGS='--upgrade-package peft'
"""
import re, shutil, subprocess, sys, tempfile
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parents[1]
# Which of these a torch needs depends on its build (CPU or CUDA), and it pins them itself.
of_torch = re.compile(r'(nvidia|cuda|triton)\b')
header = '''# The exact versions that CI uses, for every supported Python; settings.ini holds the floors.
# Written by `make lock`: do not edit. To change one version: make lock ARGS='--upgrade-package NAME==VERSION'
# What only a CUDA build of torch needs is left out: such a build pins it itself.
'''


def wanted(cfg): return cfg['requirements'].split() + cfg['dev_requirements'].split()


def main(args):
    cfg = ConfigParser()
    cfg.read(root/'settings.ini', encoding='utf-8')
    cfg, out = cfg['DEFAULT'], root/'constraints.txt'
    with tempfile.TemporaryDirectory() as tmp:
        asked, found = Path(tmp)/'asked.in', Path(tmp)/'found.txt'
        asked.write_text('\n'.join(wanted(cfg)) + '\n')
        if out.exists(): shutil.copy(out, found) # uv keeps the versions that it finds there
        subprocess.run(['uv', 'pip', 'compile', '--quiet', '--universal', '--python-version', cfg['min_python'],
                        '--no-header', '--no-annotate', *args, str(asked), '-o', str(found)], check=True)
        lines = [line for line in found.read_text().splitlines() if line and not of_torch.match(line)]
    out.write_text(header + '\n'.join(lines) + '\n')
    print(f'constraints.txt: {len(lines)} lines')


if __name__ == '__main__': main(sys.argv[1:])
