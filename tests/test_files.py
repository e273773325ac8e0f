"Files: old or new, ours or refused in one sentence"

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from damage import SEEDS, damage, damage_folder
from helpers import one_sentence
from matplotlib.figure import Figure

import lopa.files
from lopa.evaluate import (
    check_predictions,
    judging,
    read_predictions,
    rescore,
    show_score,
    write_predictions,
)
from lopa.figures import gallery, save_gallery
from lopa.figures.gallery import HEADINGS
from lopa.files import (
    HOLDER,
    HOST,
    LOCK,
    MARKER,
    check_replaceable,
    check_room,
    check_writable,
    hidden,
    is_marked,
    locked,
    mark,
    read_file,
    read_json,
    remove_folder,
    settle,
    sweep_up,
    write_files,
    write_whole,
)
from lopa.tasks import Task

posix = pytest.mark.skipif(os.name != 'posix', reason='needs links and pipes')
DEAD = f'.lopa-{HOST}-{2**22 + 1}-00000000'


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()
    }


def refused(call, *args, error=OSError, mentions=(), **kwargs):
    with pytest.raises(error) as e:
        call(*args, **kwargs)
    one_sentence(e.value, *mentions)


@pytest.fixture
def thesis(tmp_path):
    "A folder of somebody else"
    folder = tmp_path / 'thesis'
    (folder / 'chapters').mkdir(parents=True)
    (folder / 'chapters' / '1').write_text('work of years')
    return folder


# --- what is ours ---


@pytest.mark.parametrize(
    'do',
    [remove_folder, mark, lambda f: write_whole(f, lambda new: None)],
    ids=['remove_folder', 'mark', 'write_whole'],
)
@pytest.mark.parametrize('marker', [None, b'', b'[settings of another program]'])
def test_a_foreign_folder_stays(thesis, do, marker):
    if marker is not None:
        (thesis / MARKER).write_bytes(marker)
    before = contents(thesis.parent)
    refused(do, thesis, error=PermissionError, mentions=[str(thesis)])
    assert contents(thesis.parent) == before


@posix
@pytest.mark.parametrize('do', [remove_folder, lambda f: write_whole(f, lambda new: None)])
def test_a_link_is_no_folder_of_ours(tmp_path, do):
    ours = mark(tmp_path / 'ours')
    (tmp_path / 'link').symlink_to(ours)
    (tmp_path / 'dangling').symlink_to(tmp_path / 'nothing')
    for name in 'link', 'dangling':
        refused(do, tmp_path / name, error=PermissionError, mentions=[name])
    assert is_marked(ours) and (tmp_path / 'link').is_symlink()


@posix
def test_links_inside_are_not_followed(tmp_path, thesis):
    ours = mark(tmp_path / 'ours')
    (ours / 'sub').mkdir()
    (ours / 'sub' / 'link').symlink_to(thesis)
    (ours / 'link').symlink_to(thesis / 'chapters' / '1')
    before = contents(thesis)
    remove_folder(ours)
    assert not ours.exists() and contents(thesis) == before


@pytest.mark.skipif(os.name != 'posix' or os.getuid() == 0, reason='root may delete everything')
def test_a_deletion_that_fails_says_so(tmp_path):
    ours = mark(tmp_path / 'ours')
    tmp_path.chmod(0o555)
    try:
        refused(remove_folder, ours, mentions=['cannot be deleted'])
    finally:
        tmp_path.chmod(0o755)
    assert is_marked(ours)


def test_a_deletion_that_fails_half_way_is_swept_up(tmp_path, monkeypatch):
    "It raises, its name is free at once, and what is left is ours still"
    ours = mark(tmp_path / 'ours')
    (ours / 'sub').mkdir()

    def fails(path):
        raise OSError(16, 'busy')

    with monkeypatch.context() as patch:
        patch.setattr(lopa.files.shutil, 'rmtree', fails)
        refused(remove_folder, ours, mentions=['busy'])
    [left] = tmp_path.iterdir()
    assert left.name.endswith('.old') and is_marked(left)
    left.rename(tmp_path / f'{DEAD}.old')
    write_files(tmp_path, {'a': b'1'})
    assert set(contents(tmp_path)) == {'a'}


@posix
@pytest.mark.parametrize('force', [False, True, None])
@pytest.mark.parametrize('kind', ['folder', 'pipe', 'link out', 'link to a folder'])
def test_no_file_to_replace(tmp_path, thesis, kind, force):
    path = tmp_path / 'out' / 'x.json'
    path.parent.mkdir()
    if kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    else:
        path.symlink_to(thesis / 'chapters' / '1' if kind == 'link out' else thesis)
    refused(check_replaceable, path, force=force, mentions=[str(path)])
    if not kind.startswith('link out'):
        refused(check_writable, path, mentions=[str(path)])
        refused(write_files, path.parent, {'a': b'', 'x.json': b''}, mentions=[str(path)])
    assert [p.name for p in path.parent.iterdir()] == ['x.json']


def test_a_foreign_file(tmp_path):
    path = tmp_path / 'README.md'
    path.write_text('# lopa and I')
    refused(check_replaceable, path, mentions=[str(path), '--force'])
    with pytest.raises(FileExistsError) as e:
        check_replaceable(path, force=None)
    assert '--force' not in str(e.value)
    check_replaceable(path, force=True)


def test_room(tmp_path):
    check_room(tmp_path / 'a' / 'b', 1)
    refused(check_room, tmp_path / 'a', 2**60, mentions=['make room'])


# --- old or new ---


def test_several_files_in_the_order_given(tmp_path, monkeypatch):
    seen, real = [], os.replace
    monkeypatch.setattr(os, 'replace', lambda a, b: (seen.append(Path(b).name), real(a, b)))
    write_files(tmp_path, {'b': b'1', 'a': b'2', 'c': b'3'})
    assert seen == ['b', 'a', 'c'] and len(contents(tmp_path)) == 3


def test_a_rename_that_fails_is_made_up_for(tmp_path, monkeypatch):
    "Between two renames there is no way back; the next reader or writer goes on"
    write_files(tmp_path, {'a': b'old', 'b': b'old'})
    real = os.replace

    def fails(new, place):
        if Path(place).name == 'b':
            raise PermissionError('a virus scanner holds it')
        real(new, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', fails)
        with pytest.raises(PermissionError):
            write_files(tmp_path, {'a': b'new', 'b': b'new'})
    settle(tmp_path)
    assert contents(tmp_path) == {'a': b'new', 'b': b'new'}


@pytest.mark.parametrize('seed', SEEDS)
def test_a_damaged_note_does_nothing(tmp_path, seed):
    "Nor one that names files elsewhere: nothing but the two states, and no file outside"
    (tmp_path / 'in').mkdir()
    (tmp_path / 'out').write_text('of somebody else')
    write_files(tmp_path / 'in', {'a': b'old'})
    new = hidden(tmp_path / 'in', 'part')
    new.write_bytes(b'new')
    note = damage(json.dumps({new.name: 'a'}).encode(), seed)
    hidden(tmp_path / 'in', 'note').write_bytes(note)
    settle(tmp_path / 'in')
    assert (tmp_path / 'in' / 'a').read_bytes() in (b'old', b'new')
    assert (tmp_path / 'out').read_text() == 'of somebody else'


@pytest.mark.parametrize(
    'name', ['../out', 'thesis/a', '/etc/x', '..', '.', '', 'a\0', '\ud800'], ids=ascii
)
def test_a_note_of_an_enemy(tmp_path, thesis, name):
    new = hidden(tmp_path, 'part')
    new.write_bytes(b'new')
    hidden(tmp_path, 'note').write_text(json.dumps({new.name: name}))
    before = contents(tmp_path)
    settle(tmp_path)
    assert contents(tmp_path) == before


def test_a_note_never_replaces_a_foreign_folder(tmp_path, thesis):
    new = mark(hidden(tmp_path, 'part'))
    hidden(tmp_path, 'note').write_text(json.dumps({new.name: 'thesis'}))
    refused(settle, tmp_path, error=PermissionError, mentions=['thesis'])
    assert (thesis / 'chapters' / '1').exists()


def test_left_over(tmp_path):
    "Of a dead process: swept up; of a live one and of other programs: left alone"
    mark(tmp_path / f'{DEAD}.part')
    (tmp_path / f'{DEAD}.old').mkdir()
    (tmp_path / f'{DEAD[:-1]}1.part').write_text('half')
    theirs = tmp_path / f'{DEAD[:-1]}2.part'
    theirs.mkdir()
    (theirs / 'a').write_text('not marked')
    mine = hidden(tmp_path, 'part')
    mine.write_text('being written')
    (tmp_path / '.lopa-notes').write_text('mine')
    sweep_up(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {theirs.name, mine.name, '.lopa-notes'}


def test_a_folder_is_new_or_old(tmp_path):
    write_whole(tmp_path / 'm', lambda new: write_files(new, {'a': b'1', 'b': b'1'}))
    write_whole(tmp_path / 'm', lambda new: write_files(new, {'a': b'2'}))
    assert set(contents(tmp_path)) == {'m/a', f'm/{MARKER}'}


# --- reading ---


@posix
def test_no_file_to_read(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'link').symlink_to('/dev/zero')
    for name in 'pipe', 'folder', 'link':
        refused(read_json, tmp_path / name, 'a plan', error=(OSError, ValueError), mentions=[name])
    refused(read_json, tmp_path / 'nothing', 'a plan', error=FileNotFoundError)


def test_too_large(tmp_path):
    (tmp_path / 'a').write_bytes(b'123')
    refused(read_file, tmp_path / 'a', 'a number', 2, error=ValueError, mentions=['3 bytes'])


@pytest.mark.parametrize('seed', SEEDS)
def test_damaged_json(tmp_path, seed):
    "One sentence, or what the bytes say"
    data = json.dumps({'id': 'x', 'loss': [0.5, 1e-3], 'task': {'name': 'rte', 'n': 3}}).encode()
    (tmp_path / 'x.json').write_bytes(data)
    damage_folder(tmp_path, seed)
    try:
        value = read_json(tmp_path / 'x.json', 'a result of lopa')
        json.dumps(value, allow_nan=False)
    except (ValueError, OSError) as e:
        one_sentence(e, 'x.json')


# --- one at a time ---


def test_the_second_is_told_who_is_first(tmp_path):
    said = f'process {os.getpid()}'
    with locked(tmp_path):
        refused(locked(tmp_path).__enter__, error=BlockingIOError, mentions=[said])
        (tmp_path / HOLDER).write_bytes(b'\xff')
        refused(locked(tmp_path).__enter__, error=BlockingIOError, mentions=['another process'])
    with locked(tmp_path):
        pass
    assert not (tmp_path / HOLDER).exists()


@posix
def test_a_lock_is_free_when_its_holder_is_killed(tmp_path):
    code = (
        'import os, sys, lopa.files\nwith lopa.files.locked(sys.argv[1]): os.kill(os.getpid(), 9)'
    )
    assert subprocess.run([sys.executable, '-c', code, str(tmp_path)]).returncode == -9
    with locked(tmp_path):
        pass


@posix
@pytest.mark.parametrize('name', [LOCK, HOLDER])
@pytest.mark.parametrize('kind', ['link', 'link to nothing', 'folder', 'pipe'])
def test_a_lock_that_is_no_file(tmp_path, thesis, name, kind):
    path = tmp_path / 'run' / name
    path.parent.mkdir()
    if kind.startswith('link'):
        path.symlink_to(thesis / 'chapters' / '1' if kind == 'link' else path.parent / 'nothing')
    else:
        (os.mkfifo if kind == 'pipe' else os.mkdir)(path)
    refused(locked(tmp_path / 'run').__enter__, error=FileExistsError, mentions=[name])
    assert contents(thesis) == {'chapters/1': b'work of years'}
    assert not (path.parent / 'nothing').exists()


# --- predictions ---

CLASSES = Task('toy', {}, '{a}', (' no', ' yes'))
TEXTS = Task('texts', {}, '{a}', target=' {b}')
ANSWERS = {
    'toy': [
        {'answer': word, 'right': 'yes', 'correct': word == 'yes', 'row': {'a': 'x', 'b': None}}
        for word in ('yes', 'no', 'yes')
    ],
    'texts': [
        {
            'texts': [' X', 'y'],
            'answer': [' X', 'y'],
            'status': ['ok', 'ok'],
            'correct': [True, False],
            'row': {'a': a, 'b': 'X'},
        }
        for a in 'xyz'
    ],
}
KINDS = pytest.mark.parametrize('task', [CLASSES, TEXTS], ids=['classes', 'texts'])


@KINDS
@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('old', [False, True], ids=['with a hash', 'of an earlier version'])
def test_damaged_predictions(tmp_path, task, seed, old):
    "One sentence, or the score that was written (of earlier versions: of what stands there)"
    path = tmp_path / 'p.jsonl'
    write_predictions(path, judging(task, 'test'), ANSWERS[task.name])
    if old:
        first, _, rest = path.read_text().partition('\n')
        about = {key: value for key, value in json.loads(first).items() if key != 'hash'}
        path.write_text(json.dumps(about) + '\n' + rest)
    before = rescore(path, progress=False)
    damage_folder(tmp_path, seed)
    try:
        after = rescore(path, progress=False)
        show_score(after[1])
        assert old or after == before
    except (ValueError, OSError) as e:
        one_sentence(e, 'p.jsonl')


@pytest.mark.parametrize(
    'text',
    [
        '[' * 10**5,
        '{"a":' * 10**5,
        'NaN',
        '1e999',
        '9' * 10**4,
        '',
        '\n',
        'null\nnull',
        '{"score": {"n": Infinity}}',
        '\ufeff{}',
    ],
    ids=lambda text: text[:9],
)
def test_strange_predictions(tmp_path, text):
    (tmp_path / 'p.jsonl').write_text(text)
    refused(read_predictions, tmp_path / 'p.jsonl', error=ValueError, mentions=['p.jsonl'])


@KINDS
@pytest.mark.parametrize('n', ['Infinity', '1e999', '9' * 400, '-1', 'true', '2.5', '"3"'])
def test_a_score_of_strange_numbers(tmp_path, task, n):
    "In a file without a hash, as earlier versions wrote it"
    path = tmp_path / 'p.jsonl'
    write_predictions(path, judging(task, 'test'), ANSWERS[task.name])
    first, _, rest = path.read_text().partition('\n')
    about = json.loads(first)
    del about['hash']
    for name in 'n', 'accuracy', 'low':
        score = about['score'] | {name: 'HERE'}
        text = json.dumps(about | {'score': score}).replace('"HERE"', n)
        path.write_text(f'{text}\n{rest}')
        try:
            now, saved = rescore(path, progress=False)
            show_score(saved)
            assert name != 'n'
        except ValueError as e:
            one_sentence(e, 'p.jsonl')


@posix
@pytest.mark.parametrize('kind', ['folder', 'notes', 'link out', 'pipe', 'other JSON'])
def test_predictions_replace_only_predictions(tmp_path, thesis, kind):
    path = tmp_path / 'out' / 'p.jsonl'
    path.parent.mkdir()
    if kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'link out':
        path.symlink_to(thesis / 'chapters' / '1')
    else:
        path.write_text('notes' if kind == 'notes' else '{"task": "rte"}\n{}')
    about, lines = judging(CLASSES, 'test'), ANSWERS['toy']
    refused(check_predictions, path, mentions=[str(path)])
    refused(write_predictions, path, about, lines, mentions=[str(path)])
    assert contents(thesis) == {'chapters/1': b'work of years'}
    assert [p.name for p in path.parent.iterdir()] == ['p.jsonl']
    if kind in ('notes', 'other JSON'):
        write_predictions(path, about, lines, force=True)
        write_predictions(path, about, lines)  # our own


@posix
def test_predictions_where_nothing_can_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    refused(check_predictions, tmp_path / 'file' / 'p.jsonl', mentions=['cannot be written'])


# --- the gallery ---


@pytest.fixture
def drawn(monkeypatch):
    "A gallery of one figure; whether it was drawn"
    seen = []

    def figure(have):
        seen.append(have)
        return Figure((1, 1))

    monkeypatch.setattr(gallery, 'stored', lambda results: {'curves': None, 'inside': None})
    monkeypatch.setattr(gallery, 'GALLERY', {'methods': (HEADINGS['methods'], figure)})
    return seen


@posix
@pytest.mark.parametrize('name', ['README.md', 'methods.png', 'methods.svg'])
@pytest.mark.parametrize('kind', ['file', 'link', 'folder', 'pipe'])
def test_a_gallery_replaces_nothing_foreign(tmp_path, thesis, drawn, name, kind):
    out = tmp_path / 'out'
    out.mkdir()
    if kind == 'file':
        (out / name).write_text('# My project: see `lopa gallery`')
    elif kind == 'link':
        (out / name).symlink_to(thesis / 'chapters' / '1')
    else:
        (os.mkdir if kind == 'folder' else os.mkfifo)(out / name)
    before = contents(tmp_path)
    refused(save_gallery, 'results', out, progress=False, mentions=[str(out / name)])
    assert not drawn and contents(tmp_path) == before
    if kind == 'file':
        save_gallery('results', out, progress=False, force=True)
        save_gallery('results', out, progress=False)  # our own


def test_a_gallery_that_is_drawn_again(tmp_path, drawn):
    for _ in range(2):
        save_gallery('results', tmp_path, progress=False)
    assert set(contents(tmp_path)) == {'README.md', 'methods.png', 'methods.svg'}


def test_the_committed_gallery_may_be_drawn_again():
    folder = Path(__file__).parents[1] / 'results' / 'gallery'
    gallery.check_gallery(folder, list(HEADINGS))
