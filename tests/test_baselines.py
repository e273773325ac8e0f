"LoRA, prefix, P-tuning and full fine-tuning on every architecture, for every caller"

import pytest
import torch
import transformers as tf
from architectures import make
from helpers import adapted, one_sentence, padded, tiny

from lopa.baselines import BASELINES, BaselineConfig, BaselineModel, load_adapted

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::UserWarning')
SMALL = dict(rank=2, num_virtual_tokens=3, head_width=8)
HOW = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
TEXTS = [torch.tensor(row) for row in ([5, 9, 31, 44, 12, 6], [13, 9, 7], [8, 22, 4, 19])]


def model_of(name, method, by=0.2, **config):
    "A baseline on a tiny architecture, as if it had been trained"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = BaselineModel(make(name), BaselineConfig(method, **SMALL | config))
        for p in model.parameters():
            if p.requires_grad:
                p.data.add_(torch.randn_like(p) * (0.05 if method == 'full' else by))
    return model


def refused(call, *mentions):
    with pytest.raises(ValueError) as e:
        call()
    one_sentence(e.value, *mentions)


def near(a, b):
    return (a - b).abs().max() <= 1e-3 * b.abs().max()


def columns(model, logits, mask):
    "Logits of the text of a row: those of P-tuning's prompt come first"
    if model.task_type == 'SEQ_2_SEQ_LM':
        return logits
    return logits[logits.shape[0] - len(mask) :][mask.bool()]


@torch.no_grad()
def check_padding(model):
    "Rows of a padded batch are the rows alone, wherever the padding is"
    for side in 'left', 'right':
        batch = padded(TEXTS, side, 17)
        together = model(**batch).logits
        for row, mask, text in zip(together, batch['attention_mask'], TEXTS, strict=True):
            alone = model(text[None]).logits[0]
            mine = columns(model, row, mask)
            assert near(mine, alone[-len(mine) :])
        if model.task_type == 'MASKED_LM':
            continue
        for row, text in zip(model.generate(**batch, **HOW), TEXTS, strict=True):
            assert row.tolist() == model.generate(text[None], **HOW)[0].tolist()


TARGETS = {
    'DeBERTa': {'in_proj'},
    'DeBERTa-v2': {'query_proj', 'key_proj', 'value_proj'},
    'DistilBERT': {'q_lin', 'k_lin', 'v_lin'},
    'ModernBERT': {'Wqkv'},
    'MPT': {'Wqkv'},
    'CTRL': {'Wq', 'Wk', 'Wv'},
    'DeepSeek-V3': {'q_a_proj', 'q_b_proj', 'kv_a_proj_with_mqa', 'kv_b_proj'},
    'Mamba': {'in_proj', 'x_proj', 'dt_proj'},
    'Llama': {'q_proj', 'k_proj', 'v_proj'},
    'GPT-2': {'c_attn'},
    'Falcon': {'query_key_value'},
    'ConvBERT': {'query', 'key', 'value'},
    'T5': {'q', 'k', 'v'},
}


@pytest.mark.parametrize('name', TARGETS)
def test_lora_finds_queries_keys_and_values(name):
    model = BaselineModel(make(name), BaselineConfig(rank=2))
    changed = {n.split('.lora_')[0].rpartition('.')[2] for n in model.trained_state()}
    assert changed == TARGETS[name]


PADDED = [
    *('Llama', 'Mistral', 'Gemma-3', 'Gemma-3n', 'GPT-2', 'OPT-350m', 'BLOOM', 'MPT', 'Falcon'),
    *('XGLM', 'Mamba', 'RWKV', 'DeepSeek-V3', 'BERT', 'ALBERT', 'ELECTRA', 'DistilBERT'),
    *('DeBERTa', 'ModernBERT', 'T5', 'BART', 'Marian', 'M2M100', 'Pegasus'),
]
REFUSED = {  # architecture and method → what the sentence mentions
    ('Gemma-3n', 'p-tuning'): 'embeddings',
    ('RWKV', 'p-tuning'): 'padding',
    ('RWKV', 'prefix'): 'keys and values',
    ('Mamba', 'prefix'): 'keys and values',
    ('DeepSeek-V3', 'prefix'): 'keys and values',
    **{
        (name, 'prefix'): 'cache'
        for name in ('BERT', 'ALBERT', 'ELECTRA', 'DistilBERT', 'DeBERTa', 'ModernBERT')
    },
}


@pytest.mark.parametrize('method', BASELINES)
@pytest.mark.parametrize('name', PADDED)
def test_a_padded_row_is_the_row_alone(name, method):
    if (name, method) in REFUSED:
        refused(lambda: model_of(name, method), REFUSED[name, method])
    else:
        check_padding(model_of(name, method))


@pytest.mark.parametrize('method', ['lora', 'full'])
@pytest.mark.parametrize('name', ['FNet', 'ConvBERT', 'Funnel'])
def test_rows_that_cannot_be_padded(name, method):
    "Rows of one length are right, others are refused"
    model = model_of(name, method)
    assert model(torch.stack([t[:3] for t in TEXTS])).logits.isfinite().all()
    refused(lambda: model(**padded(TEXTS, 'right')), 'padding', 'one length')


def test_what_is_written_is_what_the_model_says():
    "Transformers counts the positions of this decoder from another number than the model"
    model = model_of('RoBERTa as a decoder', 'lora')
    new = model.generate(TEXTS[0][None], **HOW)[0]
    for i, token in enumerate(new):
        row = torch.cat([TEXTS[0], new[:i]])[None]
        assert model(row).logits[0, -1].argmax() == token
    model = model_of('RoBERTa as a decoder', 'prefix')  # PEFT leaves position numbers out
    refused(lambda: model.generate(TEXTS[0][None], **HOW), 'generate')


@pytest.mark.parametrize('name', ['CTRL', 'OpenAI GPT'])
def test_models_that_do_not_write_from_embeddings(name):
    model = model_of(name, 'p-tuning')
    refused(lambda: model.generate(TEXTS[0][None], **HOW), 'generate', 'embeddings')


@pytest.mark.parametrize('name', ['Falcon', 'Gemma-2', 'Gemma-3', 'Mistral', 'MPT', 'XGLM'])
@torch.no_grad()
def test_a_prefix_of_words_is_these_words(name):
    base = make(name)
    torch.manual_seed(3)
    words = torch.randperm(len(base.get_input_embeddings().weight))[:5]
    torch.manual_seed(3)
    model = BaselineModel(make(name), BaselineConfig('prefix', num_virtual_tokens=5))
    longer = base(torch.cat([words, TEXTS[0]])[None]).logits[:, 5:]
    assert near(model(TEXTS[0][None]).logits, longer)


def test_more_words_than_there_are():
    config = BaselineConfig('prefix', num_virtual_tokens=101)
    refused(lambda: BaselineModel(tiny(max_position_embeddings=256), config), 101, 'normal')
    config.init = 'normal'
    assert BaselineModel(tiny(max_position_embeddings=256), config).prompt_length == 101


WRONG = [
    (dict(rank=0), 'rank'),
    (dict(rank=2.0), 'rank'),
    (dict(alpha=0), 'alpha'),
    (dict(alpha='32'), 'alpha'),
    (dict(dropout=3), 'dropout'),
    (dict(dropout=-0.1), 'dropout'),
    (dict(dropout=True), 'dropout'),
    (dict(num_virtual_tokens=-1), 'num_virtual_tokens'),
    (dict(method='prefix', num_virtual_tokens=0), 'num_virtual_tokens'),
    (dict(head_width=None), 'head_width'),
    (dict(ranks=3), 'rank'),
    (dict(init='zeros'), 'init'),
    (dict(target_modules=()), 'target_modules'),
    (dict(target_modules=''), 'target_modules'),
    (dict(target_modules=(1,)), 'target_modules'),
]


@pytest.mark.parametrize('config,mention', WRONG, ids=lambda x: str(x))
def test_configurations_that_cannot_be_meant(config, mention):
    refused(lambda: BaselineConfig(**config), mention)


@pytest.mark.parametrize('targets', [('w_proj',), 'w_proj', ('q_proj', 'w_proj')])
def test_modules_that_are_not_there(targets):
    config = BaselineConfig(target_modules=targets)
    refused(lambda: BaselineModel(tiny(), config), 'w_proj', 'q_proj')


@pytest.mark.parametrize('targets', [('v_proj', 'up_proj'), 'all-linear', r'.*\.0\..*_proj'])
def test_chosen_modules_are_stored(targets, tmp_path):
    model = adapted('llama', 'lora', target_modules=targets)
    model.save_pretrained(tmp_path)
    again = load_adapted(tiny(), tmp_path)
    assert again.adapter_config == model.adapter_config
    assert torch.equal(again(TEXTS[0][None]).logits, model(TEXTS[0][None]).logits)


@pytest.mark.parametrize('method', BASELINES)
@pytest.mark.parametrize('kind', ['llama', 't5'])
@torch.no_grad()
def test_records_of_generate(kind, method):
    model = adapted(kind, method)
    rows = torch.stack([t[:3] for t in TEXTS])
    plain = model.generate(rows, **HOW)
    record = model.generate(rows, **HOW, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(record.sequences, plain) and len(record.logits) == 3
    if kind == 'llama' and method in ('prefix', 'p-tuning'):
        batch = padded(TEXTS, 'left')
        how = HOW | dict(return_dict_in_generate=True)
        refused(lambda: model.generate(**batch, **how), 'return_dict_in_generate')


@pytest.mark.parametrize('method', BASELINES)
@torch.no_grad()
def test_several_texts_and_a_configuration(method):
    model, batch = adapted('llama', method), padded(TEXTS, 'left')
    config = tf.GenerationConfig(**HOW | dict(num_beams=2, num_return_sequences=2))
    pairs = model.generate(**batch, generation_config=config)
    assert pairs.shape == (6, 3)
    for i, text in enumerate(TEXTS):
        alone = model.generate(text[None], generation_config=config)
        assert torch.equal(pairs[2 * i : 2 * i + 2], alone)
    long = tf.GenerationConfig(max_new_tokens=60)
    refused(lambda: model.generate(**batch, generation_config=long), 'positions')


@pytest.mark.parametrize('method', BASELINES)
@torch.no_grad()
def test_what_callers_pass(method):
    model, batch = adapted('llama', method), padded(TEXTS, 'left')
    mask, ids = batch['attention_mask'], batch['input_ids']
    want = model(**batch).logits
    assert torch.equal(model(ids, mask.bool()).logits, want)
    assert torch.equal(model.generate(ids, mask.bool(), **HOW), model.generate(**batch, **HOW))
    assert torch.equal(model(**batch, instance_features=torch.ones(3, 4)).logits, want)
    assert torch.equal(model(**batch, token_type_ids=torch.zeros_like(ids)).logits, want)
    assert torch.equal(model(**batch, return_dict=False)[0], want)
    refused(lambda: model(ids, mask[:, 1:]), 'attention_mask')
    refused(lambda: model.generate(ids, mask[:, 1:]), 'attention_mask')
    refused(lambda: model(ids, atention_mask=mask), 'atention_mask')
    refused(lambda: model.generate(ids, mask * 0), 'without tokens')
    refused(lambda: model(torch.ones(1, 65, dtype=torch.long)), 'positions')


@torch.no_grad()
def test_types_of_tokens_are_seen():
    ids, types = TEXTS[0][None], torch.tensor([[0, 0, 0, 1, 1, 1]])
    base = tiny('bert')
    model = BaselineModel(tiny('bert'), BaselineConfig('lora'))
    assert near(model(ids, token_type_ids=types).logits, base(ids, token_type_ids=types).logits)
    assert not near(model(ids).logits, base(ids, token_type_ids=types).logits)


@pytest.mark.parametrize('change', ['half', 'double', 'bfloat16'])
@pytest.mark.parametrize('method', BASELINES)
@torch.no_grad()
def test_another_number_format_after_building(method, change):
    model = getattr(adapted('llama', method), change)()
    batch = padded(TEXTS, 'left')
    out = model(**batch, labels=batch['input_ids'])
    assert out.loss.isfinite() and model.generate(**batch, **HOW).shape == (3, 3)
    assert model.dtype == model.base_model.dtype == out.logits.dtype


@pytest.mark.parametrize('method', BASELINES)
@torch.no_grad()
def test_wrapped_models(method):
    text = TEXTS[0][None]
    want = BaselineModel(tiny(), BaselineConfig(method, rank=2, dropout=0.0))
    state = {k: v.clone() for k, v in want.trained_state().items()}
    for wrap in torch.compile, torch.nn.DataParallel:
        model = BaselineModel(wrap(tiny()), BaselineConfig(method, rank=2, dropout=0.0))
        model.take_state(state)
        assert torch.equal(model(text).logits, want(text).logits)
    lora = BaselineModel(tiny(), BaselineConfig('lora', rank=2))
    config = BaselineConfig(method, rank=2)
    refused(lambda: BaselineModel(lora, config), 'adapted')
    refused(lambda: BaselineModel(lora.model, config), 'PEFT')
    refused(lambda: BaselineModel(lora.base_model, config), 'PEFT')


def test_a_subclass_comes_back(tmp_path):
    class Mine(BaselineModel):
        pass

    adapted('llama', 'lora').save_pretrained(tmp_path / 'inner')
    assert type(Mine.from_pretrained(tiny(), tmp_path, subfolder='inner')) is Mine


@pytest.mark.parametrize('name', ['BERT without a head', 'BERT without is_decoder', 'Perceiver'])
@pytest.mark.parametrize('method', BASELINES)
def test_models_that_cannot_be_adapted(name, method):
    refused(lambda: BaselineModel(make(name), BaselineConfig(method)))


@pytest.mark.parametrize('name, module', [('T5', 'shared'), ('BART', 'shared')])
def test_modules_that_are_not_called(name, module):
    "An adapter on them would be trained, and change nothing"
    targets = dict(rank=2, target_modules=(module,))
    refused(
        lambda: BaselineModel(make(name), BaselineConfig('lora', **targets)),
        'target_modules',
        module,
    )


@pytest.mark.parametrize('kind', ['llama', 'gpt2', 't5'])
def test_a_prefix_needs_its_cache(kind):
    model = adapted(kind, 'prefix')
    ids = torch.tensor([[5, 9, 31, 44], [17, 5, 9, 8]])
    want = model.generate(ids, **HOW)
    for settings in dict(use_cache=False), dict(cache_implementation='dynamic'):
        assert torch.equal(model.generate(ids, **HOW, **settings), want)
    model.base_model.generation_config.use_cache = False
    assert torch.equal(model.generate(ids, **HOW), want)
    static = dict(cache_implementation='static')
    refused(lambda: model.generate(ids, **HOW, **static), 'prefix', "'static'", "'dynamic'")
