"""What is asked of a foundation model before a prompt stands before it

A model is right in these laws, or refused in one sentence; nothing in between.
"""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers as tf
from architectures import ARCHITECTURES, HEADLESS, make
from helpers import one_sentence, tiny

from lopa import PromptConfig, get_prompt_model
from lopa.assets import (
    LOADED,
    load_foundation_model,
    load_tokenizer,
    load_tokenizers,
    model_class,
    resolve,
)
from lopa.evaluate.predict import who_reads
from lopa.logits import ask, decoder_input, decoder_start, task_type, unwrap
from lopa.model import PromptModel
from lopa.support import (
    answer,
    check_blind,
    check_length,
    check_model,
    continues,
    distance,
    embedding_scale,
    few_tokens,
    position_limit,
    token_embeddings,
)

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::UserWarning')
SMALL = dict(
    vocab_size=48,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    initializer_range=0.3,
)
IDS = torch.tensor([[5, 9, 31, 44, 12, 6], [7, 8, 20, 10, 11, 13]])
REFUSED = {  # architecture → what the sentence says
    'Funnel': 'padding out',
    'Gemma-3n': 'token ids',
    'Gemma-4': 'cannot be asked',
    'ESM with token dropout': 'token ids',
    'RecurrentGemma': 'padding out',
    'RWKV': 'padding out',
    'FNet': 'padding out',
    'ConvBERT': 'padding out',
    'MobileBERT': 'padding out',
    'Nystromformer': 'padding out',
    'YOSO': 'padding out',
    'XLNet': 'later tokens',
    'BERT without is_decoder': 'later tokens',
    'FSMT': 'later tokens',
    'CPM-Ant': 'cannot be asked',
    'I-BERT': 'cannot be asked',
    'Perceiver': 'no table',
    **dict.fromkeys(HEADLESS, 'no language-model head'),
}


def prompt(base, m=2, position='prefix'):
    "A prompt of random vectors before a model"
    config = PromptConfig('pt', num_virtual_tokens=m, position=position, init='normal')
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_prompt_model(base, config).eval()


def labelled(model, ids=IDS):
    "Two tokens at the end are the answer"
    if model.task_type == 'SEQ_2_SEQ_LM':
        labels = ids[:, -2:]
    else:
        labels = torch.where(torch.arange(ids.shape[1]) < ids.shape[1] - 2, -100, ids)
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)


# --- the laws, for every architecture ---

RIGHT = [name for name in ARCHITECTURES if name not in REFUSED and name not in HEADLESS]


@pytest.mark.parametrize('name', RIGHT)
@torch.no_grad()
def test_an_architecture_is_right(name):
    "It sees words as its ids, no label before it is predicted, and no more than it has places for"
    base = make(name)
    ids = few_tokens(base)
    want = answer(base, input_ids=ids)
    assert distance(answer(base, inputs_embeds=token_embeddings(base, ids)), want) < 1e-4
    for position in 'prefix', 'suffix':
        model = prompt(base, 2, position)
        check_blind(model, labelled(model))
    bare = prompt(base, 0)
    mask = torch.ones_like(ids)
    want = ask(base, base, input_ids=ids, attention_mask=mask).logits
    assert distance(bare(input_ids=ids, attention_mask=mask).logits, want) < 1e-4


@pytest.mark.parametrize('name', RIGHT)
@torch.no_grad()
def test_all_positions_can_be_filled(name):
    base = make(name)
    limit = position_limit(base)
    if limit is None or limit > 500:
        pytest.skip('no table')
    model = prompt(base)
    ids = torch.arange(limit - 2).remainder(40)[None] + 5
    model(**labelled(model, ids))
    with pytest.raises(ValueError) as e:
        model(**labelled(model, torch.cat([ids, ids[:, :1]], 1)))
    one_sentence(e.value, limit + 1, limit)


@pytest.mark.parametrize('name', REFUSED)
def test_an_architecture_is_refused(name):
    base = make(name)
    with pytest.raises(ValueError) as e:
        prompt(base)
    one_sentence(e.value, type(base).__name__, REFUSED[name])


def test_the_first_vectors_are_words_as_the_model_sees_them():
    for name, scale in ('Gemma', 32**0.5), ('BART with scaled embeddings', 32**0.5), ('Pegasus', 1):
        base = make(name)
        model = get_prompt_model(base, PromptConfig('pt', num_virtual_tokens=4))
        known = torch.arange(len(base.get_input_embeddings().weight))
        seen = token_embeddings(base, known)
        assert all((seen == vector).all(1).any() for vector in model.generator.prompt.detach())
        assert torch.allclose(
            base.get_input_embeddings()(known),
            base.get_input_embeddings().weight * scale,
            rtol=1e-2,
        )


def test_the_model_is_left_as_it_was():
    base = tiny()
    base.train()
    base.model.layers[0].eval()
    modes = [module.training for module in base.modules()]
    before = torch.get_rng_state()
    check_model(base)
    embedding_scale(base)
    continues(base)
    assert [module.training for module in base.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None and p.requires_grad for p in base.parameters())


def test_a_model_that_passed_is_not_asked_again(monkeypatch):
    base = tiny()
    check_model(base)
    monkeypatch.setattr('lopa.support.examine', lambda model: 1 / 0)
    check_model(base)
    with pytest.raises(ValueError, match='ZeroDivisionError'):
        check_model(tiny())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', ['Llama', 'Mixtral', 'Gemma-3', 'BERT', 'Marian', 'Jamba'])
def test_half_precision_is_no_reason_to_refuse(name, dtype):
    check_model(make(name).to(dtype))


def test_models_without_numbers_are_not_asked():
    with torch.device('meta'):
        base = tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL))
    check_model(base)
    assert embedding_scale(base) == 1 and continues(base) and position_limit(base) == 64


def test_a_model_that_is_read_in_pieces():
    "Its weights lie elsewhere until a layer runs"
    from accelerate import cpu_offload

    base = tiny('llama', num_key_value_heads=2)
    want = prompt(tiny('llama', num_key_value_heads=2))(IDS).logits
    cpu_offload(base, execution_device=torch.device('cpu'))
    check_model(base)
    assert few_tokens(base).device.type == 'cpu'
    got = answer(base, input_ids=IDS)
    assert got.shape[:2] == IDS.shape and want.shape[1] == IDS.shape[1] + 2


# --- families ---


def test_families():
    "By transformers' lists, and what a configuration says without doubt"
    for name, family in {
        'Llama': 'CAUSAL_LM',
        'BERT': 'MASKED_LM',
        'BART': 'SEQ_2_SEQ_LM',
        'BART as a decoder': 'CAUSAL_LM',
        'BERT as a decoder': 'CAUSAL_LM',
        'XLM': 'CAUSAL_LM',
        'XLM as a masked model': 'MASKED_LM',
        'Marian': 'SEQ_2_SEQ_LM',
    }.items():
        assert task_type(make(name)) == family


class Own(tf.LlamaForCausalLM):
    "A class of a user's own"


def test_a_class_of_ones_own():
    assert task_type(Own(tf.LlamaConfig(**SMALL))) == 'CAUSAL_LM'


@pytest.mark.parametrize(
    'kind', ['BertModel', 'BertForSequenceClassification', 'BertForPreTraining']
)
def test_a_model_without_a_head_is_refused(kind):
    base = getattr(tf, kind)(tf.BertConfig(**SMALL))
    for call in task_type, check_model, prompt:
        with pytest.raises(ValueError) as e:
            call(base)
        one_sentence(e.value, kind, 'language-model head')


def test_a_decoder_without_a_start_is_refused():
    base = make('BART')
    for name in 'decoder_start_token_id', 'bos_token_id':
        setattr(base.config, name, None)
        setattr(base.generation_config, name, None)
    with pytest.raises(ValueError) as e:
        prompt(base)
    one_sentence(e.value, 'decoder_start_token_id')
    base.config.decoder_start_token_id = 3  # as the sentence says
    prompt(base)


@pytest.mark.parametrize('name', ['mBART', 'PLBart', 'M2M100', 'Blenderbot', 'T5', 'T5Gemma'])
def test_a_decoder_reads_no_label_before_it_is_predicted(name):
    "mBART's own function puts the last label first"
    base = make(name)
    start = decoder_start(base)
    for label in 7, 8:
        read = decoder_input(base, torch.tensor([[label]]), torch.ones(1, 3))
        assert read.tolist() == [[start]]
    read = decoder_input(base, torch.tensor([[7, -100, -100]]), torch.ones(1, 3))
    assert read[0, :2].tolist() == [start, 7] and (read >= 0).all()


def test_a_model_that_sees_the_answer_is_noticed():
    class Sees(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base_model = base
            self.task_type = task_type(base)

        def forward(self, input_ids, attention_mask, labels):
            out = ask(
                self.base_model,
                self.base_model,
                labels,
                input_ids=input_ids,
                attention_mask=attention_mask,
            )
            out.logits = out.logits + labels.clamp(min=0).float().mean(1)[:, None, None]
            return out

    for name in 'Llama', 'BERT', 'T5':
        model = Sees(make(name))
        with pytest.raises(ValueError) as e:
            check_blind(model, labelled(model))
        one_sentence(e.value, 'label', 'sees the answer')


# --- wrapped models ---


def lora(base, targets, **settings):
    "LoRA in the layers, as if trained"
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=targets, **settings))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(9)
        for name, p in model.named_parameters():
            if 'lora_' in name:
                p.normal_(0, 0.3)
    return model.eval()


WRAPPERS = {
    'PEFT': lambda model: model,
    'PEFT with a task': lambda model: model,
    'torch.compile': lambda model: torch.compile(model.merge_and_unload(), backend='eager'),
    'torch.compile around PEFT': lambda model: torch.compile(model, backend='eager'),
    'DataParallel': lambda model: torch.nn.DataParallel(model.merge_and_unload()),
}
KINDS = {
    'gpt2': (['c_attn'], 'CAUSAL_LM'),
    'llama': (['q_proj', 'v_proj'], 'CAUSAL_LM'),
    'roberta': (['query', 'value'], None),
    't5': (['q', 'v'], 'SEQ_2_SEQ_LM'),
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_a_wrapped_model_is_the_model_inside(kind, wrapper):
    "As the merged model, padded or alone"
    targets, family = KINDS[kind]
    settings = {'task_type': family} if wrapper == 'PEFT with a task' else {}
    model = prompt(WRAPPERS[wrapper](lora(tiny(kind), targets, **settings)))
    merged = prompt(lora(tiny(kind), targets).merge_and_unload())
    assert isinstance(model.base_model, tf.PreTrainedModel)
    assert model.task_type == merged.task_type
    mask = torch.tensor([[1] * 6, [0] * 3 + [1] * 3])
    kept = dict(labels=IDS[:, -2:]) if kind == 't5' else {}
    got = model(input_ids=IDS, attention_mask=mask, **kept).logits
    want = merged(input_ids=IDS, attention_mask=mask, **kept).logits
    assert distance(got, want) < 1e-4
    alone = {name: labels[1:] for name, labels in kept.items()}
    short = model(input_ids=IDS[1:, 3:], **alone).logits
    columns = slice(2, 5) if kind == 'roberta' else slice(-1, None)
    part = slice(2, 5) if kind == 'roberta' else slice(-1, None)
    assert distance(got[1:, columns], short[:, part]) < 1e-4
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ['generator.prompt']


def test_a_wrapper_that_does_something_is_refused():
    tuned = peft.get_peft_model(tiny(), peft.PromptTuningConfig('CAUSAL_LM', num_virtual_tokens=2))
    invoked = peft.get_peft_model(
        tiny(),
        peft.LoraConfig(
            task_type='CAUSAL_LM', target_modules=['q_proj'], alora_invocation_tokens=[5]
        ),
    )
    for wrong in tuned, invoked, prompt(tiny()), torch.nn.Linear(2, 2), 'gpt2', None:
        with pytest.raises(ValueError) as e:
            unwrap(wrong)
        one_sentence(e.value, type(wrong).__name__)
        with pytest.raises(ValueError):
            get_prompt_model(wrong, PromptConfig('pt'))


# --- folders ---


def folder(path, kind, config, named=True, **more):
    "A model as somebody saved it"
    torch.manual_seed(3)
    model = getattr(tf, kind)(getattr(tf, config)(**SMALL | more))
    model.save_pretrained(path)
    if not named:
        file = Path(path) / 'config.json'
        about = json.loads(file.read_text())
        del about['architectures']
        file.write_text(json.dumps(about))
    return str(path)


T5 = dict(d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0)
DISTIL = dict(dim=32, n_layers=1, n_heads=2, hidden_dim=64)
GPT2 = dict(n_embd=32, n_layer=1, n_head=2, n_positions=64)
LOADS = {
    'RobertaForMaskedLM': ('RobertaConfig', True, {}, 'RobertaForMaskedLM'),
    'BertForPreTraining': ('BertConfig', True, {}, 'BertForMaskedLM'),
    'BertForMaskedLM': ('BertConfig', False, {}, 'BertForMaskedLM'),
    'DebertaV2ForMaskedLM': ('DebertaV2Config', False, {}, 'DebertaV2ForMaskedLM'),
    'DistilBertForMaskedLM': ('DistilBertConfig', False, DISTIL, 'DistilBertForMaskedLM'),
    'BertLMHeadModel': ('BertConfig', True, dict(is_decoder=True), 'BertLMHeadModel'),
    'RobertaForCausalLM': ('RobertaConfig', False, dict(is_decoder=True), 'RobertaForCausalLM'),
    'LlamaForCausalLM': ('LlamaConfig', False, {}, 'LlamaForCausalLM'),
    'GPT2Model': ('GPT2Config', True, GPT2, 'GPT2LMHeadModel'),
    'T5ForConditionalGeneration': ('T5Config', False, T5, 'T5ForConditionalGeneration'),
}


@pytest.mark.parametrize('kind', LOADS)
def test_a_folder_becomes_what_it_is(kind, tmp_path):
    config, named, more, wanted = LOADS[kind]
    where = folder(tmp_path, kind, config, named, **more)
    base = load_foundation_model(where, device='cpu', dtype=torch.float32)
    assert type(base).__name__ == wanted
    model = prompt(base)
    check_blind(model, labelled(model))


LACKS = {
    'RobertaModel': ('RobertaConfig', {}, 'lm_head'),
    'RobertaForSequenceClassification': ('RobertaConfig', {}, 'lm_head'),
    'BertModel': ('BertConfig', {}, 'cls.predictions'),
    'DistilBertModel': ('DistilBertConfig', DISTIL, 'vocab'),
    'ElectraForPreTraining': ('ElectraConfig', {}, 'generator'),
    'LlamaModel': ('LlamaConfig', {}, 'lm_head.weight'),
    'T5EncoderModel': ('T5Config', T5, 'T5EncoderModel'),
    'ViTModel': ('ViTConfig', {}, 'ViTModel'),
}


@pytest.mark.parametrize('kind', LACKS)
def test_a_folder_without_a_head_is_refused(kind, tmp_path):
    config, more, said = LACKS[kind]
    where = folder(tmp_path, kind, config, **more)
    with pytest.raises(ValueError) as e:
        load_foundation_model(where, device='cpu')
    one_sentence(e.value, said)


def test_a_configuration_of_remote_code():
    config = tf.LlamaConfig(auto_map={'AutoModelForMaskedLM': 'modeling_own.OwnForMaskedLM'})
    config.architectures = ['OwnForMaskedLM']
    assert model_class(config) == 'AutoModelForMaskedLM'


def tokenizer(path, words=('a', 'b')):
    "A tokenizer of three words"
    from tokenizers import Tokenizer, models

    numbers = {word: i for i, word in enumerate(['<pad>', *words])}
    words = Tokenizer(models.WordLevel(numbers, unk_token='<pad>'))
    tf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token='<pad>').save_pretrained(path)


def test_a_folder_inside_is_found_by_the_tokenizer_too(tmp_path, monkeypatch):
    monkeypatch.setattr('lopa.assets.LOADED', dict(LOADED))
    folder(tmp_path / 'inside', 'LlamaForCausalLM', 'LlamaConfig')
    tokenizer(tmp_path / 'inside')
    base = load_foundation_model(str(tmp_path), device='cpu', subfolder='inside')
    assert len(load_tokenizer(base.name_or_path)) == 3
    assert len(load_tokenizers(base.name_or_path, None)[0]) == 3


def test_two_revisions_of_one_model(tmp_path, monkeypatch):
    "Each has its own tokenizer (before: that of the last one that was loaded, in silence)"
    monkeypatch.setattr('lopa.assets.LOADED', {})
    revisions, both = {'old': 'ab', 'new': 'ba'}, {}
    for revision, words in revisions.items():
        folder(tmp_path / revision, 'LlamaForCausalLM', 'LlamaConfig')
        tokenizer(tmp_path / revision, words)
        both[revision] = load_foundation_model(str(tmp_path), device='cpu', subfolder=revision)
    for revision, base in both.items():
        first = revisions[revision][0]
        found = load_tokenizer(base), load_tokenizer(str(tmp_path), subfolder=revision)
        assert [each.convert_ids_to_tokens(1) for each in found] == [first] * 2
        start = get_prompt_model(base, PromptConfig('pt', num_virtual_tokens=1, init='text:a'))
        row = base.get_input_embeddings().weight[1 + (first == 'b')]
        assert torch.equal(start.generator.prompt[0], row)
        own = PromptConfig('lopa', num_virtual_tokens=1, encoder_name_or_path='self')
        reads = who_reads(get_prompt_model(base, own))
        assert [t.convert_ids_to_tokens(1) for t in load_tokenizers(base, reads)] == [first] * 2
    with pytest.raises(ValueError) as e:
        load_tokenizer(str(tmp_path))
    one_sentence(e.value, tmp_path, 'pass the model')


def test_revision_and_cache_reach_everything(tmp_path, monkeypatch):
    monkeypatch.setattr('lopa.assets.LOADED', {})
    asked = []
    inside = folder(tmp_path, 'LlamaForCausalLM', 'LlamaConfig')
    tokenizer(tmp_path)
    for kind in tf.AutoConfig, tf.AutoModelForCausalLM, tf.AutoTokenizer:

        def note(name, *args, real=kind.from_pretrained, **kwargs):
            asked.append([kwargs.get('revision'), kwargs.get('cache_dir')])
            return real(name, *args, **kwargs)

        monkeypatch.setattr(kind, 'from_pretrained', note)
    base = load_foundation_model(inside, device='cpu', revision='v2', cache_dir=str(tmp_path / 'c'))
    load_tokenizer(base.name_or_path)
    assert len(asked) >= 3 and all(where == ['v2', str(tmp_path / 'c')] for where in asked)


def test_a_base_without_a_name_or_place_is_told_so(tmp_path):
    base = tiny()
    base.config._name_or_path = base.name_or_path = ''
    with pytest.raises(ValueError) as e:
        get_prompt_model(base, PromptConfig('pt', init='text:a b'))
    one_sentence(e.value, 'no name', 'name_or_path')
    with pytest.raises(ValueError) as e:
        resolve(str(tmp_path / 'gone'))
    one_sentence(e.value, 'gone', 'no folder')


# --- a suffix ---


@pytest.mark.parametrize(
    'name', ['Jamba', 'Bamba', 'Mamba', 'Mamba-2', 'Falcon-H1', 'LFM2', 'Llama']
)
@torch.no_grad()
def test_a_suffix_behind_texts_of_different_lengths(name):
    "As each row alone, written out by hand"
    model = prompt(make(name), 2, 'suffix')
    base = model.base_model
    mask = torch.tensor([[1] * 6, [0] * 2 + [1] * 4])
    labels = torch.full_like(IDS, -100)
    labels[:, -1] = IDS[:, -1]
    got = model(input_ids=IDS, attention_mask=mask, labels=labels).logits[:, 0]
    for row, first in enumerate((0, 2)):
        text = token_embeddings(base, IDS[row : row + 1, first:-1])
        x = torch.cat([text, model.prompt(1)], 1)
        want = answer(base, inputs_embeds=x)[:, -1]
        assert distance(got[row : row + 1], want) < 1e-3


def test_recurrences_are_asked_in_one_call():
    assert not continues(make('Jamba')) and not continues(make('Mamba'))
    assert continues(make('Llama')) and continues(make('GPT-2'))


def test_check_length_names_what_is_too_long():
    base = make('MPNet')
    check_length(2, 60, base)
    with pytest.raises(ValueError) as e:
        check_length(2, 60, base, 3)
    one_sentence(e.value, 65, 62)
    assert position_limit(make('XLNet')) is None


def test_saved_and_loaded(tmp_path):
    "Around a wrapped model, too"
    model = prompt(lora(tiny(), ['q_proj']))
    model.save_pretrained(tmp_path)
    again = PromptModel.from_pretrained(lora(tiny(), ['q_proj']).get_base_model(), tmp_path)
    assert distance(again(IDS).logits, model(IDS).logits) < 1e-5
