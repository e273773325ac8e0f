"""Write README.md and README_files/ from nbs/index.ipynb, without Quarto, which nbdev would need

    make readme
    python -m tools.readme --check     # say whether they are in step, and write nothing

Cells marked `#| hide` or `#| include: false` are left out, `#| echo: false` hides the code and
`#| output: false` the output. Links that are right for a notebook in nbs/ become right for a file
in the root. `{{git_url}}`, `{{user}}`, `{{repo}}` and `{{branch}}` in the text stand for what
settings.ini says.
"""

import base64
import re
import sys
from configparser import ConfigParser
from pathlib import Path
from posixpath import normpath

import nbformat

from lopa.files import write_files
from tools.execute import directives

root = Path(__file__).resolve().parents[1]
header = '<!-- Written from nbs/index.ipynb by `make readme`: edit the notebook. -->\n\n'
pictures = {'image/png': 'png', 'image/jpeg': 'jpg', 'image/svg+xml': 'svg'}


def moved(target):
    "A link as seen from nbs/ → the same as seen from the root; addresses and anchors stay"
    if re.match(r'[\w+.-]+:|[#/]', target):
        return target
    path, hash_, anchor = target.partition('#')
    return normpath(f'nbs/{path}') + hash_ + anchor


def prose(text, cfg):
    "Markdown with links and placeholders resolved, outside of code blocks"

    def fix(part):
        part = re.sub(r'\{\{(\w+)\}\}', lambda m: cfg.get(m[1], m[0]), part)
        part = re.sub(r'(\]\()([^)\s]+)', lambda m: m[1] + moved(m[2]), part)
        part = re.sub(r'^(\[[^\]]+\]:\s*)(\S+)', lambda m: m[1] + moved(m[2]), part, flags=re.M)
        return re.sub(r'(\b(?:src|href)=")([^"]+)', lambda m: m[1] + moved(m[2]), part)

    if '](attachment:' in text:
        pasted = 'a pasted picture cannot go into README.md; keep it in a file.'
        raise SystemExit(f'nbs/index.ipynb: {pasted}')
    parts = re.split(r'(^```.*?^```[ \t]*$|`[^`\n]+`)', text, flags=re.M | re.S)
    return ''.join(part if i % 2 else fix(part) for i, part in enumerate(parts))


def code(source):
    "The code without its directive lines"
    lines = source.splitlines()
    while lines and (not lines[0].strip() or re.match(r'\s*#\s*\|', lines[0])):
        lines.pop(0)
    return '\n'.join(lines)


def fenced(text, language=''):
    return f'```{language}\n{text.rstrip()}\n```' if text.strip() else ''


def output(out, images):
    "One output as Markdown; a picture is added to `images` (name → bytes)"
    if out.output_type == 'stream':
        return fenced(re.sub(r'\x1b\[[\d;]*m', '', out.text)) if out.name == 'stdout' else ''
    data = out.get('data', {})
    for kind, ending in pictures.items():
        if kind not in data:
            continue
        name = f'README_files/figure-{len(images) + 1}.{ending}'
        images[name] = data[kind].encode() if ending == 'svg' else base64.b64decode(data[kind])
        return f'![figure]({name})'
    if 'text/markdown' in data:
        return data['text/markdown'].strip()
    if 'text/html' in data:
        return re.sub(r'<style.*?</style>\s*', '', data['text/html'], flags=re.S).strip()
    return fenced(data.get('text/plain', ''))


def blocks_of(cell, cfg, images):
    "The Markdown that a cell becomes; its pictures are added to `images`"
    if cell.cell_type == 'markdown':
        return [prose(cell.source, cfg)]
    says, blocks = directives(cell.source), []
    if cell.cell_type == 'raw' or 'hide' in says or says.get('include') == 'false':
        return []
    if says.get('echo') != 'false':
        blocks.append(fenced(code(cell.source), 'python'))
    if says.get('output') != 'false':
        blocks += [output(o, images) for o in cell.outputs]
    return blocks


def render(root=root):
    "The notebook → (text of README.md, its pictures as name → bytes)"
    cfg = ConfigParser()
    cfg.read(root / 'settings.ini', encoding='utf-8')
    blocks, images = [], {}
    for cell in nbformat.read(root / 'nbs' / 'index.ipynb', 4).cells:
        blocks += blocks_of(cell, cfg['DEFAULT'], images)
    return header + '\n\n'.join(b.strip() for b in blocks if b.strip()) + '\n', images


def differences(root=root):
    "Names of the files that are not what the notebook says"
    text, images = render(root)
    wanted = {'README.md': text.encode(), **images}
    paths = [root / 'README.md', *(root / 'README_files').glob('*')]
    there = {p.relative_to(root).as_posix(): p.read_bytes() for p in paths if p.exists()}
    return sorted(name for name in {*wanted, *there} if wanted.get(name) != there.get(name))


def main(argv):
    if '--check' in argv:
        if wrong := differences():
            names = ', '.join(wrong)
            raise SystemExit(f'Not what nbs/index.ipynb says: {names}. Run `make readme`.')
        return
    text, images = render()
    for path in (root / 'README_files').glob('figure-*'):
        if path.relative_to(root).as_posix() not in images:
            path.unlink()
    pictures = {Path(name).name: content for name, content in images.items()}
    write_files(root / 'README_files', pictures)
    write_files(root, {'README.md': text.encode()})
    print(f'README.md: {len(text.splitlines())} lines, {len(images)} pictures')


if __name__ == '__main__':
    main(sys.argv[1:])
