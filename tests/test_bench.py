"The race: fair turns, real sizes with random weights, competitors that fail, the command"

import copy
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import one_sentence, tiny

from lopa.plan import bench, sizes
from lopa.plan.footprint import Ledger
from lopa.plan.sizes import (
    EVERYWHERE,
    SIZES,
    Limit,
    competitors,
    find_size,
    random_base,
    random_batch,
    training_step,
)

root = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings('ignore')
SMALL = {
    'causal': SIZES['tiny'],
    'masked': sizes.Size(
        'Roberta',
        2,
        12,
        16,
        sizes.ROBERTA_LARGE
        | dict(
            vocab_size=500,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
        ),
    ),
}
CASES = [(kind, name) for kind, size in SMALL.items() for name in competitors(size)]


@pytest.fixture(params=SMALL)
def size(request):
    return SMALL[request.param]


def test_turns():
    order = []
    seconds = bench.race({name: lambda name=name: order.append(name) for name in 'abc'}, 2, False)
    assert order == list('abc') * 3 and all(len(turns) == 2 for turns in seconds.values())
    assert bench.ratio({'a': [2.0, 9.0, 1.0], 'b': [1.0, 1.0, 7.0]}, 'a', 'b') == 2


def test_the_small_race_is_as_it_was():
    "README and others read these names"
    base = tiny().requires_grad_(False)
    seconds = bench.bench_steps(base, 2, 8, 1, feature_width=16, progress=False)
    report = bench.bench_report(seconds)
    assert list(seconds) == ['LoPA, cached features', 'bare soft prompt', 'PEFT prompt tuning']
    assert list(report) == ['seconds', 'LoPA / bare soft prompt', 'LoPA / PEFT prompt tuning']


@pytest.mark.parametrize('kind,name', CASES)
def test_a_competitor_learns_and_leaves_the_model_alone(kind, name):
    size = SMALL[kind]
    base, batch = random_base(size), random_batch(size)
    before = copy.deepcopy(base.state_dict())
    model, inputs = competitors(size)[name](base, size, batch)
    trained = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]
    training_step(model, inputs)()
    assert any(not torch.equal(a, b) for a, b in zip(start, trained, strict=True))
    assert all(p.grad is None for p in model.parameters())
    after = base.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)
    assert not any(p.requires_grad for p in base.parameters())


def test_batches(size):
    for left in True, False:
        batch = random_batch(size, left=left)
        assert batch['input_ids'].shape == (size.batch, size.length)
        real, lengths = batch['input_ids'] != 0, (batch['input_ids'] != 0).sum(1)
        assert lengths[0] == size.length and (lengths >= size.length // 2).all()
        assert real[:, -1 if left else 0].all()
        assert ('attention_mask' in batch) == (left or size.masked)
        if 'attention_mask' in batch:
            assert torch.equal(batch['attention_mask'] == 1, real)
        asked = batch['labels'] != -100
        assert (asked.sum(1) == size.answer).all() and real[asked].all()
        assert torch.equal(batch['labels'][asked], batch['input_ids'][asked])


def test_a_mask_changes_no_loss():
    "With padding on the right, a causal model needs none"
    size = SMALL['causal']
    base, batch = random_base(size, dtype=torch.float32), random_batch(size)
    model, masked = Limit(base), Limit(base, masked=True)
    masked.load_state_dict(model.state_dict())
    told = masked(**batch, attention_mask=(batch['input_ids'] != 0).long())
    assert torch.allclose(model(**batch).loss, told.loss, atol=1e-5)


@pytest.mark.parametrize('name', SIZES)
def test_every_id_and_position_has_its_vector(name):
    "On a GPU, an index out of range takes the whole process with it"
    size = find_size(name)
    if size.masked:
        assert size.length + 10 + 2 <= size.shape['max_position_embeddings']
        return
    with torch.device('meta'), Ledger():
        reader = sizes.AuthorsWay(random_base(size, 'meta'), size).encoder
    assert reader.config.vocab_size >= size.shape['vocab_size']
    assert reader.config.max_position_embeddings >= size.padded >= size.length
    assert size.shape['max_position_embeddings'] >= size.padded + 10


def test_what_fails_is_reported(monkeypatch):
    def broken(base, size, batch):
        raise torch.OutOfMemoryError('too much')

    monkeypatch.setitem(EVERYWHERE, 'broken', broken)
    row = bench.bench_size('tiny', 1, 'cpu', progress=False)
    assert row['broken_error'] == 'OutOfMemoryError: too much' and 'broken' not in row['ms']
    assert set(row['ms']) == set(row['planned_mb']) == set(competitors(SIZES['tiny'])) - {'broken'}


def test_without_a_limit_there_is_no_ratio(monkeypatch):
    def broken(base, size, batch):
        raise ValueError('no')

    monkeypatch.setitem(EVERYWHERE, 'limit', broken)
    row = bench.bench_size('tiny', 1, 'cpu', progress=False)
    assert row['over_limit'] == {} and row['limit_error'] == 'ValueError: no'
    bench.show_sizes({'rows': [row]})


def test_a_wrong_size_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(bench, 'bench_size', None)
    with pytest.raises(ValueError) as e:
        bench.bench_sizes(['tiny', 'huge'])
    one_sentence(e.value, 'huge')


def test_a_cpu_is_warned(monkeypatch):
    monkeypatch.setattr(bench, 'bench_size', lambda name, *_: {'model': name})
    with pytest.warns(UserWarning, match='minutes'):
        bench.bench_sizes(['roberta-large'], device='cpu')


def test_real_sizes_are_those_that_were_measured():
    rows = json.loads(
        (root / 'results' / 'gpu' / 'nvidia-h100-80gb-hbm3-left-padding.json').read_text()
    )['steps']
    for row in rows:
        size = find_size(row['model'])
        assert (size.batch, size.length) == (row['batch'], row['length'])
        assert set(row['ms']) == set(competitors(size)) - {'lora'}


def test_a_batch_that_cannot_be(monkeypatch):
    "Refused before the system takes the memory away, or counts wrongly"
    base = tiny().requires_grad_(False)
    monkeypatch.setattr('psutil.virtual_memory', lambda: SimpleNamespace(available=2**30))
    for rows, length, kind in (10**13, 40, ValueError), (10**6, 50, MemoryError):
        with pytest.raises(kind) as e:
            bench.bench_steps(base, rows, length, 1, feature_width=16, progress=False)
        one_sentence(e.value, 'batch_size')


def lopa(*args):
    "Run the command"
    code = 'from lopa.cli import main; main()'
    call = [sys.executable, '-c', code, *map(str, args)]
    return subprocess.run(call, cwd=root, capture_output=True, text=True)


def test_command(tmp_path):
    to = tmp_path / 'new' / 'steps.json'
    ran = lopa('bench', '--sizes', 'tiny', '--rounds', 1, '--json-file', to, '--json')
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert {'about': 'Written by lopa bench.'} | report == json.loads(to.read_text())
    to.write_text('mine')
    ran = lopa('bench', '--sizes', 'tiny', '--json-file', to)
    assert ran.returncode == 2 and '--force' in ran.stderr and to.read_text() == 'mine'
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['steps.json']
    assert report['rows'][0]['model'] == 'tiny' and report['rows'][0]['rounds'] == 1
    ran = lopa('bench', '--sizes', 'tiny', '--length', 5)
    assert ran.returncode == 2 and ran.stdout == '' and '--length' in ran.stderr
