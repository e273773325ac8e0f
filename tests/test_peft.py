"Where a method is one of PEFT's, it equals PEFT"

import pytest
import torch
from helpers import PROMPT, adapted, padded, prompted, rows, tiny
from peft import PeftModel, PromptTuningConfig, TaskType, get_peft_model

from lopa.baselines import BaselineConfig, BaselineModel

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::UserWarning')


def peft_model(kind, vectors):
    "PEFT's prompt tuning in front of the same foundation model, holding these vectors"
    model = get_peft_model(
        tiny(kind),
        PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=len(vectors)),
    )
    with torch.no_grad():
        model.prompt_encoder['default'].embedding.weight.copy_(vectors)
    return model.eval()


@pytest.mark.parametrize('lengths', [(6, 6, 6), (3, 6, 1)], ids=['unpadded', 'right-padded'])
@pytest.mark.parametrize('how', [dict(method='pt'), dict(gate='shared')], ids=['pt', 'shared gate'])
@pytest.mark.parametrize('kind', ['llama', 'gpt2'])
@torch.no_grad()
def test_logits(kind, how, lengths):
    model = prompted(tiny(kind), **how)
    ids, h = rows(lengths)
    batch = padded(ids, 'right')
    ours = model(**batch, instance_features=h).logits
    theirs = peft_model(kind, model.generator.prompt)(**batch).logits
    assert ours.shape == theirs.shape
    for i, n in enumerate(lengths):
        torch.testing.assert_close(
            ours[i, : PROMPT + n], theirs[i, : PROMPT + n], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize('kind', ['llama', 'gpt2'])
def test_loss_and_gradient(kind):
    "The same loss, and the same gradient for the vectors"
    model = prompted(tiny(kind), 'pt')
    ids, _ = rows((6, 6))
    ids = torch.stack(ids)
    peft = peft_model(kind, model.generator.prompt)
    ours = model(ids, labels=ids).loss
    theirs = peft(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(
        model.generator.prompt.grad,
        peft.prompt_encoder['default'].embedding.weight.grad,
        atol=1e-5,
        rtol=1e-4,
    )


def test_same_number_of_parameters():
    "And as many numbers to train"
    model = prompted(tiny(), 'pt')
    count = lambda m: sum(p.numel() for p in m.parameters() if p.requires_grad)
    assert count(model) == count(peft_model('llama', model.generator.prompt))


# --- the baselines are PEFT's ---


def parts(method, kind='llama'):
    "A baseline, and PEFT's own model with the same trained tensors"
    model = adapted(kind, method)
    theirs = get_peft_model(tiny(kind), model.model.peft_config['default'])
    theirs.load_state_dict({k: v for k, v in model.model.state_dict().items()})
    return model, theirs.eval()


@pytest.mark.parametrize('kind', ['llama', 'gpt2'])
@pytest.mark.parametrize('method', ['lora', 'prefix', 'p-tuning'])
@torch.no_grad()
def test_baseline_logits(kind, method):
    "Without padding, or with it on the right (there PEFT's positions are right): PEFT's logits"
    model, theirs = parts(method, kind)
    lengths = (3, 6, 1)
    ids, _ = rows(lengths)
    batch = padded(ids, 'right')
    ours = model(**batch).logits
    peft = theirs(**batch).logits
    m = PROMPT if method == 'p-tuning' else 0
    for i, n in enumerate(lengths):
        torch.testing.assert_close(ours[i, : m + n], peft[i, : m + n], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('method', ['lora', 'prefix'])
@torch.no_grad()
def test_peft_reads_our_adapters(method, tmp_path):
    "A saved LoRA or prefix is an adapter of PEFT's, too"
    model = adapted('llama', method)
    ids, _ = rows((5, 5))
    model.save_pretrained(tmp_path)
    theirs = PeftModel.from_pretrained(tiny(), tmp_path)
    torch.testing.assert_close(
        theirs(torch.stack(ids)).logits, model(torch.stack(ids)).logits, atol=1e-5, rtol=1e-5
    )


def test_lora_is_the_papers():
    "Rank 16, alpha 32, dropout 0.1, on queries, keys, values; only LoRA's dropout is active"
    model = BaselineModel(tiny(), BaselineConfig('lora')).train()
    c = model.model.peft_config['default']
    assert (c.r, c.lora_alpha, c.lora_dropout, sorted(c.target_modules)) == (
        16,
        32,
        0.1,
        ['k_proj', 'q_proj', 'v_proj'],
    )
    awake = {
        n.split('.')[-2] if n.endswith('default') else n
        for n, mod in model.model.named_modules()
        if mod.training
    }
    assert awake and all('lora' in n for n in awake)


@torch.no_grad()
def test_prefix_of_words_is_those_words():
    "Before training, a prefix that starts from words acts as if the words stood there"
    torch.manual_seed(5)
    words = torch.randperm(100)[:PROMPT]
    torch.manual_seed(5)
    model = BaselineModel(tiny(), BaselineConfig('prefix', num_virtual_tokens=PROMPT))
    ids = torch.tensor([[7, 8, 9]])
    torch.testing.assert_close(
        model(ids).logits,
        tiny()(torch.cat([words[None], ids], 1)).logits[:, PROMPT:],
        atol=1e-4,
        rtol=1e-4,
    )
