"Seeds: the same seed gives the same adapter to the last bit, another seed gives another"

import pytest
import torch
from helpers import FEATURES, MASKED, PAIRS, PROMPT, SEQ2SEQ, features, padded, rows, tiny
from transformers import set_seed

from lopa import PromptConfig
from lopa.baselines import BASELINES, BaselineConfig, adapt_model
from lopa.gating import GATES

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::UserWarning')
KINDS = 'llama', 'roberta', 't5'
OTHERS = [
    *(dict(gate=g) for g in GATES if g != 'sigmoid'),
    dict(init='normal'),
    dict(position='suffix'),
    dict(encoder_name_or_path='self', encoder_pooling='last', train_encoder=True),
    dict(encoder_name_or_path='embeddings', encoder_pooling='attention'),
]


def train(seed, kind='llama', method='lopa', checkpointing=False, **config):
    "An adapter after three steps, heads and LoRA dropping some of their inputs at random"
    set_seed(seed)
    if method in BASELINES:
        model = adapt_model(
            tiny(kind), BaselineConfig(method, rank=2, num_virtual_tokens=PROMPT, head_width=8)
        )
    else:
        model = adapt_model(
            tiny(kind),
            PromptConfig(
                method,
                rank=2,
                num_virtual_tokens=PROMPT,
                head_width=8,
                phm_blocks=4,
                feature_width=None if 'encoder_name_or_path' in config else FEATURES,
                **config,
            ),
        )
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids, h = rows((3, 6))
    text = padded(ids, 'left')
    given = text | (
        {f'instance_{k}': v for k, v in text.items()} if model.encoder else features(model, h)
    )
    labels = (
        torch.tensor([[5, 7], [6, 7]])
        if kind in SEQ2SEQ
        else torch.where(torch.arange(6) == (4 if kind in MASKED else 5), text['input_ids'], -100)
    )
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model.train()(**given, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return {k: v.detach().clone() for k, v in model.trained_state().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize('kind,method', [p for p in PAIRS if p[0] in KINDS])
def test_every_method(kind, method):
    a = train(0, kind, method)
    assert (
        a
        and same(a, train(0, kind, method))
        and same(a, train(1, kind, method)) == (kind == 'llama' and method == 'full')
    )  # Llama has no dropout: nothing is drawn


@pytest.mark.parametrize('config', OTHERS, ids=str)
def test_gates_positions_and_encoders(config):
    a = train(0, **config)
    assert same(a, train(0, **config)) and not same(a, train(1, **config))


@pytest.mark.parametrize('method', ['lopa', 'lora'])
def test_dropout_is_drawn_again_behind_checkpointing(method):
    "What is computed twice drops the same both times"
    assert same(train(0, method=method), train(0, method=method, checkpointing=True))
