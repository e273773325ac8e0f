"""Damage that is the same for a seed: what a disk, a network, an editor or an enemy does to files

damage(data, seed)            # other bytes
damage_folder(folder, seed)   # one file of it damaged, missing, or something that is no file
SEEDS                         # as many as LOPA_FUZZ says, else few: for pytest's parametrize
"""

import json
import os
import random
from pathlib import Path

SEEDS = range(int(os.environ.get('LOPA_FUZZ', 20)))
STRANGE = (
    '{}',
    '[]',
    '""',
    'null',
    'true',
    '-1',
    '0',
    '1.5',
    'NaN',
    'Infinity',
    '-Infinity',
    '1e999',
    '1e300',
    '9' * 30,
    '9' * 5000,
    '"\\ud800"',
    '"../../../etc/passwd"',
    '[' * 3000 + ']' * 3000,
    '{"a":' * 3000 + '1' + '}' * 3000,
)


def flip_bit(data, chance):
    i = chance.randrange(len(data))
    return data[:i] + bytes([data[i] ^ 1 << chance.randrange(8)]) + data[i + 1 :]


def truncate(data, chance):
    return data[: chance.randrange(len(data))]


def block_of(data, chance):
    "Start and end of a piece of at least one byte"
    start = chance.randrange(len(data))
    return start, min(len(data), start + 1 + chance.randrange(max(1, len(data) // 4)))


def zero_block(data, chance):
    start, end = block_of(data, chance)
    return data[:start] + bytes(end - start) + data[end:]


def double_block(data, chance):
    start, end = block_of(data, chance)
    return data[:end] + data[start:]


def drop_block(data, chance):
    start, end = block_of(data, chance)
    return data[:start] + data[end:]


def random_bytes(data, chance):
    return chance.randbytes(len(data))


def empty(data, chance):
    return b''


def append(data, chance):
    return data + chance.randbytes(1 + chance.randrange(64))


BYTES = (
    flip_bit,
    truncate,
    zero_block,
    double_block,
    drop_block,
    random_bytes,
    empty,
    append,
)


def places_in(value, path=()):
    "Paths to everything inside a JSON value, itself first"
    yield path
    if isinstance(value, dict):
        for key, each in value.items():
            yield from places_in(each, (*path, key))
    if isinstance(value, list):
        for i, each in enumerate(value[:20]):
            yield from places_in(each, (*path, i))


def other_value(value, chance):
    "JSON text in which one value is a strange one, or one key is missing"
    value, hole = {'': json.loads(json.dumps(value))}, 'a hole that is filled below'
    *way, last = ('', *chance.choice(list(places_in(value['']))))
    holder = value
    for step in way:
        holder = holder[step]
    if way and isinstance(holder, dict) and chance.random() < 0.2:
        del holder[last]
    else:
        holder[last] = hole
    return json.dumps(value['']).replace(json.dumps(hole), chance.choice(STRANGE), 1)


def other_json(data, chance):
    "JSON, or one line of JSON lines, or the header of safetensors, with another value; or None"
    try:
        if data[8:9] == b'{' and (n := int.from_bytes(data[:8], 'little')) < len(data):
            header = other_value(json.loads(data[8 : 8 + n]), chance).encode()
            return len(header).to_bytes(8, 'little') + header + data[8 + n :]
        lines = data.decode().split('\n')
        try:
            return other_value(json.loads(data), chance).encode()
        except ValueError:
            i = chance.randrange(len(lines) - (not lines[-1]))
            lines[i] = other_value(json.loads(lines[i]), chance)
            return '\n'.join(lines).encode()
    except (ValueError, RecursionError):
        return None


def damage(data, seed):
    "Other bytes than `data`: of JSON and safetensors, every second time in what it says"
    chance = random.Random(seed)
    while True:
        new = other_json(data, chance) if data and chance.random() < 0.5 else None
        if new is None:
            new = chance.choice(BYTES)(data, chance) if data else chance.randbytes(8)
        if new != data:
            return new


def put_in_place_of(path, kind):
    "Something that is no file, or none, where a file was"
    data = path.read_bytes()
    path.unlink()
    if kind == 'folder':
        path.mkdir()
    elif kind == 'link to nothing':
        path.symlink_to(path.parent / 'nothing-here')
    elif kind == 'link to a folder':
        path.symlink_to(path.parent, target_is_directory=True)
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'swapped':
        others = [p for p in sorted(path.parent.iterdir()) if p.is_file()]
        path.write_bytes(others[0].read_bytes()[::-1] if others else data[::-1])


KINDS = 'missing', 'folder', 'link to nothing', 'link to a folder', 'pipe', 'swapped'


def damage_folder(folder, seed, names=None):
    "One file in it (or of `names`) is damaged, missing or no file; says what was done"
    chance = random.Random(f'folder {seed}')
    files = sorted(p for p in Path(folder).rglob('*') if p.is_file() and not p.is_symlink())
    if names:
        files = [p for p in files if p.name in names]
    path = chance.choice(files)
    if chance.random() < 0.75:
        path.write_bytes(damage(path.read_bytes(), seed))
        return f'{path.name}: other bytes (seed {seed})'
    kind = chance.choice(KINDS)
    put_in_place_of(path, kind)
    return f'{path.name}: {kind}'
