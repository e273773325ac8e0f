"Encoders that the foundation model brings along, and pooling that is learned"

import pytest
import torch
from helpers import WIDTH, padded, prompted, rows, tiny

from lopa import PromptModel
from lopa.adapter import read_adapter
from lopa.encoders import encode_dataset, hidden_width, make_encoder

KINDS = ['llama', 'gpt2', 'roberta', 't5']
TRAINED = {
    ('self', 'last', True): 'encoder.model.',
    ('embeddings', 'attention', False): 'encoder.pool.',
    ('self', 'attention', False): 'encoder.pool.',
}


def batch(lengths=(3, 6), side='right'):
    "A text for the model, and the same text for its encoder"
    b = padded(rows(lengths)[0], side)
    return b | {f'instance_{k}': v for k, v in b.items()}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    'name,pooling,tuned',
    [
        ('self', 'last', False),
        ('self', 'mean', False),
        ('self', 'last', True),
        ('self', 'attention', False),
        ('embeddings', 'mean', False),
        ('embeddings', 'attention', False),
    ],
)
def test_training_and_reload(kind, name, pooling, tuned, tmp_path):
    "What is trained changes and is stored, nothing else does, and the foundation model never moves"
    base = tiny(kind)
    model = prompted(base, encoder_name_or_path=name, encoder_pooling=pooling, train_encoder=tuned)
    b = batch()
    before = {n: p.clone() for n, p in model.named_parameters()}
    part = TRAINED.get((name, pooling, tuned), 'nothing')
    assert model.encoder.trainable == (part != 'nothing')
    assert model.adapter_config.feature_width == WIDTH
    labels = (
        torch.full((2, 2), 7)
        if kind == 't5'
        else torch.where(b['attention_mask'] == 1, b['input_ids'], -100)
    )
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()(**b, labels=labels).loss.backward()
    optimiser.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert all(n.startswith(('generator.', part)) for n in moved)
    assert part == 'nothing' or any(n.startswith(part) for n in moved)
    model.eval().save_pretrained(tmp_path)
    assert {
        k.split('.')[0] + '.' + k.split('.')[1] + '.'
        for k in read_adapter(tmp_path)[1]
        if k.startswith('encoder')
    } == ({part} if part != 'nothing' else set())
    again = PromptModel.from_pretrained(tiny(kind), tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**b, labels=labels).logits, model(**b, labels=labels).logits)


@pytest.mark.parametrize('name', ['self', 'embeddings'])
@pytest.mark.parametrize('pooling', ['mean', 'last', 'cls', 'attention'])
@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_padding(kind, name, pooling):
    "A text has the vector that it has alone"
    encoder = make_encoder(name, tiny(kind), pooling)
    b = batch((3, 6))
    if pooling == 'attention':
        encoder.pool.query.normal_(std=3.0)
    together = encoder(b['input_ids'], b['attention_mask'])[0]
    alone = encoder(b['input_ids'][:1, :3], torch.ones(1, 3, dtype=torch.long))[0]
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_attention_pooling_starts_as_the_mean(llama):
    b = batch()
    vectors = [
        make_encoder('embeddings', llama, p)(b['input_ids'], b['attention_mask'])
        for p in ('mean', 'attention')
    ]
    torch.testing.assert_close(*vectors)


def test_a_frozen_foundation_model_is_not_copied(llama):
    model = prompted(llama, encoder_name_or_path='self', encoder_pooling='last')
    assert model.encoder.model is llama.base_model
    count = sum(p.numel() for p in model.parameters())
    assert count == sum(p.numel() for p in llama.parameters()) + sum(
        p.numel() for p in model.generator.parameters()
    )


def test_learned_pooling_is_not_cached(llama):
    with pytest.raises(ValueError, match='tuned'):
        encode_dataset(None, make_encoder('embeddings', llama, 'attention'), None)


@pytest.mark.parametrize('name', ['self', 'embeddings'])
@pytest.mark.parametrize(
    'kind, sizes',
    [
        ('OPTForCausalLM', dict(word_embed_proj_dim=16, ffn_dim=32)),
        ('AlbertForMaskedLM', dict(embedding_size=16)),
        ('ElectraForMaskedLM', dict(embedding_size=16)),
        ('RemBertForMaskedLM', dict(input_embedding_size=16)),
    ],
)
def test_width_of_what_an_encoder_gives(kind, sizes, name):
    "It is asked for, since a configuration names that of the inner vectors"
    import transformers as tf

    from lopa import PromptConfig, get_prompt_model

    common = dict(vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    common |= dict(pad_token_id=0, bos_token_id=None, eos_token_id=None)
    config = getattr(tf, kind).config_class(**common | dict(intermediate_size=32) | sizes)
    base = getattr(tf, kind)(config).eval()
    config = PromptConfig('lopa', 3, head_width=8, encoder_name_or_path=name)
    model = get_prompt_model(base, config)
    b = batch()
    found = model.encoder(b['input_ids'], b['attention_mask'])
    assert found.shape == (2, model.encoder.width)
    assert model.adapter_config.feature_width == model.encoder.width
    with torch.no_grad():
        model(**b)


def test_asking_for_the_width_changes_nothing():
    "Neither the mode of a model nor what is drawn next"
    base, before = tiny('gpt2').train(), torch.get_rng_state()
    hidden_width(base.transformer)
    assert base.transformer.training
    assert torch.equal(before, torch.get_rng_state())
