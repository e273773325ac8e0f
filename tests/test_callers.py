"Calls as transformers has taught them: they have their effect, or are refused in one sentence"

import copy
import json

import numpy as np
import peft
import pytest
import torch
import transformers as tf
from architectures import make
from helpers import adapted, example, one_sentence, prompted, rows, tiny

from lopa import PromptConfig, PromptModel, assets, get_prompt_model
from lopa.adapter import SAID, pack
from lopa.baselines import BaselineConfig, BaselineModel, adapt_model
from lopa.files import cache_folder

IDS = torch.tensor([[5, 9, 31, 44], [17, 5, 9, 5]])
WORDS = torch.tensor([11, 23, 37])
HOW = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)


def in_words(base):
    "A prompt of three words, so that the model itself can be given the same input"
    model = get_prompt_model(base, PromptConfig('pt', num_virtual_tokens=3))
    with torch.no_grad():
        model.generator.prompt.copy_(base.get_input_embeddings()(WORDS))
    return model.eval()


def bare(base):
    "A prompt of no vectors: the model itself, called through ours"
    return get_prompt_model(base, PromptConfig('pt', num_virtual_tokens=0, init='zeros')).eval()


def refused(call, *mentions):
    with pytest.raises(ValueError) as error:
        call()
    one_sentence(error.value, *mentions)


# --- tokens, masks, labels ---


@pytest.mark.parametrize('kind', ['llama', 'bert', 't5'])
@pytest.mark.parametrize('dtype', [torch.bool, torch.float32, torch.float16, torch.int32])
@torch.no_grad()
def test_masks_of_any_format(kind, dtype):
    model = in_words(tiny(kind))
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    expected = model(IDS, mask).logits
    torch.testing.assert_close(model(IDS, mask.to(dtype)).logits, expected)


@pytest.mark.parametrize(
    'call, mentions',
    [
        (lambda m: m(IDS, torch.ones(2, 3)), ('attention_mask', '(2, 3)', '(2, 4)')),
        (lambda m: m(IDS, torch.ones(2, 5)), ('attention_mask', '(2, 5)')),
        (lambda m: m(IDS, torch.ones(1, 4)), ('attention_mask', '(1, 4)')),
        (lambda m: m(IDS, torch.ones(4)), ('attention_mask', '(4,)')),
        (lambda m: m(IDS, torch.ones(2, 1, 4, 4)), ('attention_mask', '(2, 1, 4, 4)')),
        (lambda m: m(IDS, torch.full((2, 4), -1e9)), ('attention_mask', '-1000000000')),
        (lambda m: m(IDS, torch.tensor([[1, 1, 2, 2]] * 2)), ('attention_mask', '2')),
        (lambda m: m(IDS, tf.GenerationConfig()), ('attention_mask', 'GenerationConfig')),
        (lambda m: m(IDS[0]), ('input_ids', '(4,)')),
        (lambda m: m(IDS.tolist()), ('input_ids', 'list')),
        (lambda m: m(None), ('input_ids', 'NoneType')),
        (lambda m: m(), ('input_ids',)),
        (lambda m: m(IDS[:0]), ('input_ids', 'no rows')),
        (lambda m: m(IDS.float()), ('input_ids', 'torch.float32')),
        (lambda m: m(IDS + 60), ('input_ids', '104', '99')),
        (lambda m: m(IDS - 9), ('input_ids', '-4')),
        (lambda m: m(IDS, labels=IDS[:, 1:]), ('labels', '(2, 3)')),
        (lambda m: m(IDS, labels=IDS + 60), ('labels', '104')),
        (lambda m: m(IDS, labels=torch.full_like(IDS, -1)), ('labels', '-1')),
        (lambda m: m(IDS, token_type_ids=torch.ones_like(IDS)), ('token_type_ids', 'Llama')),
        (lambda m: m(IDS, token_type_ids=torch.zeros(1, 4)), ('token_type_ids', '(1, 4)')),
        (lambda m: m(IDS, atention_mask=IDS), ('atention_mask',)),
        (lambda m: m(IDS, position_ids=IDS), ('position_ids',)),
        (lambda m: m(IDS, use_cache=True), ('use_cache',)),
        (lambda m: m(inputs_embeds=torch.zeros(1, 2, 3)), ('inputs_embeds',)),
        (lambda m: m.generate(IDS[0], **HOW), ('input_ids', '(4,)')),
        (lambda m: m.generate(IDS, torch.ones(2, 3), **HOW), ('attention_mask', '(2, 3)')),
        (lambda m: m.generate(IDS, tf.GenerationConfig()), ('attention_mask', 'Generation')),
        (lambda m: m.generate(**HOW), ('no tokens',)),
        (lambda m: m.prompt_embeds(IDS, torch.ones(2, 3)), ('attention_mask', '(2, 3)')),
    ],
)
def test_refused_by_name(call, mentions):
    refused(lambda: call(in_words(tiny())), *mentions)


def test_labels_of_a_decoder_have_a_length_of_their_own():
    model = in_words(tiny('t5'))
    assert model(IDS, labels=IDS[:, :2]).logits.shape[:2] == (2, 2)
    refused(lambda: model(IDS, labels=IDS[:1]), 'labels')


# --- what goes along ---


@pytest.mark.parametrize('side', ['left', 'right'])
@torch.no_grad()
def test_types_of_tokens(side):
    "A model that knows types sees them beside the prompt, whatever the padding"
    base = tiny('bert')
    model = in_words(base)
    types = torch.tensor([[0, 0, 1, 1]])
    wide, all_types = torch.cat([WORDS, IDS[0]])[None], torch.tensor([[0, 0, 0, 0, 0, 1, 1]])
    expected = base(input_ids=wide, token_type_ids=all_types).logits[0]
    pad = (0, 2) if side == 'right' else (2, 0)
    wider = lambda x: torch.nn.functional.pad(x, pad)
    given = dict(input_ids=wider(IDS[:1]), attention_mask=wider(torch.ones(1, 4)))
    found = model(**given, token_type_ids=wider(types)).logits[0]
    torch.testing.assert_close(found[:7], expected, atol=1e-5, rtol=1e-4)
    without = model(**given).logits[0]
    assert (found[:7] - without[:7]).abs().max() > 0.01
    zeros = model(**given, token_type_ids=wider(0 * types)).logits[0]
    torch.testing.assert_close(zeros, without)


@torch.no_grad()
def test_types_that_mean_nothing():
    "Zeros for a model without types change nothing, in a call and in generating"
    model = in_words(tiny())
    zeros = torch.zeros_like(IDS)
    assert torch.equal(model(IDS, token_type_ids=zeros).logits, model(IDS).logits)
    assert torch.equal(model.generate(IDS, token_type_ids=zeros, **HOW), model.generate(IDS, **HOW))
    refused(lambda: model.generate(IDS, token_type_ids=zeros + 1, **HOW), 'token_type_ids')


@pytest.mark.parametrize('kind', ['llama', 'bert', 't5'])
@torch.no_grad()
def test_hidden_states_and_tuples(kind):
    base = tiny(kind)
    base.set_attn_implementation('eager')
    model = in_words(base)
    labels = IDS.clone()
    labels[:, :2] = -100
    plain = model(IDS, labels=labels)
    found = model(IDS, labels=labels, output_hidden_states=True, output_attentions=True)
    assert torch.equal(found.loss, plain.loss)
    if kind != 't5':
        assert found.hidden_states[0].shape[1] == 7 and found.attentions[0].shape[-1] == 7
    pair = model(IDS, labels=labels, return_dict=False)
    assert isinstance(pair, tuple) and torch.equal(pair[0], plain.loss)
    assert torch.equal(pair[1], plain.logits) and torch.equal(plain[0], plain.loss)
    assert torch.equal(model(IDS, return_dict=False)[0], model(IDS).logits)


@pytest.mark.parametrize('position', ['prefix', 'suffix'])
@torch.no_grad()
def test_hidden_states_of_a_suffix(position):
    "All columns, also where two passes would do without some"
    base = tiny()
    base.set_attn_implementation('eager')
    model = prompted(base, 'pt', position=position)
    labels = torch.full_like(IDS, -100)
    labels[:, -1] = 7
    found = model(IDS, labels=labels, output_hidden_states=True)
    torch.testing.assert_close(found.loss, model(IDS, labels=labels).loss)
    assert found.hidden_states[-1].shape[1] == 7


@pytest.mark.parametrize(
    'other',
    [
        lambda h: h.double(),
        lambda h: h.half().float(),
        lambda h: h.numpy(),
        lambda h: h.numpy().astype(np.float64),
        lambda h: h.tolist(),
    ],
)
@torch.no_grad()
def test_features_of_any_format(other):
    model = prompted(tiny())
    ids, h = rows((5, 5))
    batch = {'input_ids': torch.stack(ids)}
    h = h.half().float()
    expected = model(**batch, instance_features=h).logits
    assert torch.equal(model(**batch, instance_features=other(h)).logits, expected)
    assert torch.equal(model(**batch, instance_features=h.half()).logits, expected)
    found = model.generate(**batch, instance_features=other(h), **HOW)
    assert torch.equal(found, model.generate(**batch, instance_features=h, **HOW))


def test_features_that_are_none():
    model = prompted(tiny())
    refused(lambda: model(IDS, instance_features='features'), 'instance_features', 'str')
    refused(lambda: model(IDS, instance_features=[[1.0], [1.0, 2.0]]), 'instance_features')


# --- number formats after building ---

FORMATS = {
    'half': lambda m: m.half(),
    'float16': lambda m: m.to(torch.float16),
    'bfloat16': lambda m: m.bfloat16(),
    'double': lambda m: m.double(),
    'device and format': lambda m: m.to('cpu', torch.bfloat16),
}


@pytest.mark.parametrize('change', FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize('kind', ['llama', 'bert', 't5'])
def test_formats_after_building(kind, change, tmp_path):
    "The foundation model follows, what trains stays in 32 bits, and adapters stay fine"
    model = prompted(tiny(kind))
    batch = example(model)
    before, state = model(**batch).logits, copy.deepcopy(model.trained_state())
    model = change(model)
    assert model.dtype != torch.float32
    assert {p.dtype for p in model.generator.parameters()} == {torch.float32}
    after = model(**batch).logits
    torch.testing.assert_close(after.float(), before, atol=0.5, rtol=0.2)
    model(**batch, labels=batch['input_ids']).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    if kind != 'bert':
        assert model.generate(**batch, **HOW).shape[0] == 2
    model.save_pretrained(tmp_path)
    again = PromptModel.from_pretrained(tiny(kind), tmp_path)
    found = again.trained_state()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_a_tuned_encoder_keeps_its_format():
    base = tiny()
    model = prompted(base, encoder_name_or_path='embeddings')
    model.half()
    assert model(IDS, instance_input_ids=IDS).logits.dtype == torch.float16


# --- generating ---

SETTINGS = {
    'repetition_penalty': dict(repetition_penalty=5.0),
    'no_repeat_ngram_size': dict(no_repeat_ngram_size=2),
    'no_repeat_ngram_size=1': dict(no_repeat_ngram_size=1),
    'bad_words_ids': dict(bad_words_ids=[[44, 3], [7], [9, 5, 2]]),
    'sequence_bias': dict(sequence_bias=[[[44, 3], -9.0], [[5, 8], 9.0]]),
    'min_length': dict(min_length=8, eos_token_id=list(range(1, 60))),
    'min_new_tokens': dict(min_new_tokens=3, eos_token_id=list(range(1, 60))),
    'max_length': dict(max_length=7, max_new_tokens=None),
    'decay': dict(exponential_decay_length_penalty=(2, 1.5), eos_token_id=3),
    'beams': dict(num_beams=3, num_return_sequences=2),
    'suppress': dict(begin_suppress_tokens=list(range(1, 50))),
    'forced_eos': dict(forced_eos_token_id=4),
    'allowed': dict(prefix_allowed_tokens_fn=lambda i, ids: [int(ids[-1]), (len(ids) * 7) % 90]),
    'beams and penalty': dict(num_beams=3, repetition_penalty=3.0, no_repeat_ngram_size=2),
}


@pytest.mark.parametrize('settings', SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize('kind', ['llama', 'gpt2', 'opt', 'bloom', 't5'])
def test_settings_mean_what_they_mean_without_a_prompt(kind, settings):
    "A prompt of no vectors, and the model itself, with every setting that reads the text"
    base = tiny(kind)
    how = HOW | settings
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    expected = base.generate(input_ids=IDS, attention_mask=mask, **how)
    found = bare(base).generate(IDS, mask, **how)
    assert found.tolist() == expected[:, 1 if kind == 't5' else 4 :].tolist()


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('position', ['prefix', 'suffix'])
def test_a_penalty_sees_the_text(side, position):
    "With a prompt, and padded on either side: no token of the text comes back"
    model = prompted(tiny(), 'pt', position=position)
    ids, _ = rows((8, 3))
    for row, text in zip(range(2), ids, strict=True):
        batch = example(model, (8, 3), side)
        free = model.generate(**batch, **HOW)[row].tolist()
        found = model.generate(**batch, repetition_penalty=1e6, **HOW)[row].tolist()
        assert not set(found) & set(text.tolist()) and len(set(found)) == len(found)
        alone = model.generate(text[None], repetition_penalty=1e6, **HOW)[0].tolist()
        assert found == alone and len(free) == 6


def test_lengths_in_a_generation_config():
    model = in_words(tiny())
    for name, value in dict(max_new_tokens=3, max_length=7).items():
        how = tf.GenerationConfig(**{name: value}, do_sample=False, pad_token_id=0)
        before = copy.deepcopy(how)
        found = model.generate(IDS, generation_config=how)
        assert found.shape == (2, 3) and how.to_dict() == before.to_dict()
        assert torch.equal(found, model.generate(IDS, **{**HOW, 'max_new_tokens': 3}))
    assert model.generate(IDS, do_sample=False, pad_token_id=0).shape == (2, 20)
    for how in (
        dict(max_new_tokens=58),
        dict(max_length=62),
        dict(generation_config=tf.GenerationConfig(max_new_tokens=58)),
        dict(generation_config=tf.GenerationConfig(max_length=62)),
    ):
        refused(lambda how=how: model.generate(IDS, **how), 'Prompt (3)', '64')
    refused(lambda: model.generate(IDS, max_length=4), 'max_length', '4')
    almost = torch.arange(1, 55)[None]  # 54, the prompt 3, and room for 7 of 64
    assert model.generate(almost, do_sample=False, pad_token_id=0).shape == (1, 7)


def test_names_and_places_of_the_input():
    model = in_words(tiny())
    expected = model.generate(IDS, **HOW)
    assert torch.equal(model.generate(inputs=IDS, **HOW), expected)
    assert torch.equal(model.generate(input_ids=IDS, **HOW), expected)
    both = model.generate(IDS, with_input=True, **HOW)
    assert torch.equal(both, torch.cat([IDS, expected], 1))


@pytest.mark.parametrize('kind', ['llama', 't5'])
@pytest.mark.parametrize('beams', [1, 2])
def test_records(kind, beams):
    model = in_words(tiny(kind))
    how = HOW | dict(num_beams=beams)
    found = model.generate(IDS, return_dict_in_generate=True, output_scores=True, **how)
    assert torch.equal(found.sequences, model.generate(IDS, **how))
    assert len(found.scores) == found.sequences.shape[1]
    if beams == 1:
        assert torch.equal(torch.stack(found.scores, 1).argmax(-1), found.sequences)


@pytest.mark.parametrize(
    'name, value',
    [
        ('prompt_lookup_num_tokens', 2),
        ('guidance_scale', 1.5),
        ('encoder_repetition_penalty', 1.2),
        ('encoder_no_repeat_ngram_size', 2),
        ('token_healing', True),
        ('prefill_chunk_size', 2),
        ('inputs_embeds', torch.zeros(2, 4, 32)),
        ('position_ids', IDS),
        ('past_key_values', tf.DynamicCache()),
        ('assistant_model', 'a model'),
        ('custom_generate', 'somewhere'),
    ],
)
@pytest.mark.parametrize('kind', ['llama', 't5'])
def test_settings_that_cannot_be_had(kind, name, value):
    model = in_words(tiny(kind))
    refused(lambda: model.generate(IDS, **{name: value}, **HOW), name)
    if not isinstance(value, (torch.Tensor, str, tf.DynamicCache)):
        how = tf.GenerationConfig(**{name: value})
        refused(lambda: model.generate(IDS, generation_config=how), name)


def test_a_streamer():
    "It is given the text and then each new token, as without a prompt"

    class Streamer(tf.generation.streamers.BaseStreamer):
        def __init__(self):
            self.heard = []

        def put(self, value):
            self.heard.append(value.flatten().tolist())

        def end(self):
            self.heard.append('end')

    model, streamer = in_words(tiny()), Streamer()
    found = model.generate(IDS[:1], streamer=streamer, **HOW)[0].tolist()
    assert streamer.heard == [IDS[0].tolist(), *([n] for n in found), 'end']


# --- classes, names ---


def test_a_class_of_the_readers_own(tmp_path):
    class Mine(PromptModel):
        pass

    prompted(tiny(), 'pt').save_pretrained(tmp_path)
    assert type(Mine.from_pretrained(tiny(), tmp_path)) is Mine
    assert type(PromptModel.from_pretrained(tiny(), tmp_path)) is PromptModel


def test_folders_that_are_none():
    refused(lambda: PromptModel.from_pretrained(tiny(), None), 'None', 'folder')
    refused(lambda: prompted(tiny(), 'pt').push_to_hub(None), 'repo_id', 'None')


def test_a_folder_inside_a_folder(tmp_path):
    prompted(tiny(), 'pt').save_pretrained(tmp_path / 'one' / 'two')
    model = PromptModel.from_pretrained(tiny(), tmp_path / 'one', subfolder='two')
    assert model.prompt_length == 3


def test_a_base_without_a_name(tmp_path):
    base = tiny()
    base.config._name_or_path = base.name_or_path = ''
    model = prompted(base, 'pt')
    card = model.model_card('user/mine')
    assert "load_foundation_model('')" not in card and 'language model , ' not in card
    assert 'without a name' in card
    model.save_pretrained(tmp_path)
    refused(lambda: PromptModel.from_pretrained(tiny(seed=5), tmp_path), 'without a name')


def test_a_prompt_before_a_prompt():
    model = prompted(tiny(), 'pt')
    refused(lambda: get_prompt_model(model, PromptConfig('pt')), 'PromptModel', 'base_model')


# --- under PEFT ---


def under_peft(kind='llama', **config):
    from peft import get_peft_model

    from lopa.peft import LopaConfig

    task = {'llama': 'CAUSAL_LM', 'bert': 'FEATURE_EXTRACTION', 't5': 'SEQ_2_SEQ_LM'}[kind]
    config = dict(method='pt', num_virtual_tokens=3, task_type=task) | config
    return get_peft_model(tiny(kind), LopaConfig(**config)).eval()


def test_peft_hands_on_what_has_a_meaning():
    model = under_peft()
    plain = model(input_ids=IDS)
    found = model(input_ids=IDS, output_hidden_states=True, token_type_ids=0 * IDS)
    assert torch.equal(found.logits, plain.logits) and found.hidden_states[0].shape[1] == 7
    assert torch.equal(model(input_ids=IDS, return_dict=False)[0], plain.logits)
    assert torch.equal(model(input_ids=IDS, attention_mask=IDS > 0).logits, plain.logits)
    for name in 'position_ids', 'past_key_values', 'inputs_embeds':
        refused(lambda name=name: model(input_ids=IDS, **{name: IDS}), name)
    refused(lambda: model(input_ids=IDS, attention_mask=torch.ones(2, 3)), 'attention_mask')
    refused(lambda: model(input_ids=IDS, token_type_ids=1 + 0 * IDS), 'token_type_ids')
    refused(lambda: model(attention_mask=IDS), 'input_ids')


def test_peft_and_types_of_tokens():
    "For each row its own prompt, and its own types"
    from lopa.peft import LopaConfig

    model = under_peft('bert')
    config = LopaConfig('pt', num_virtual_tokens=1, task_type='FEATURE_EXTRACTION')
    model.add_adapter('short', config)
    types = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    both = model(input_ids=IDS, token_type_ids=types, adapter_names=['default', 'short']).logits
    for i, name in enumerate(['default', 'short']):
        model.set_adapter(name)
        alone = model(input_ids=IDS[i : i + 1], token_type_ids=types[i : i + 1]).logits[0]
        torch.testing.assert_close(both[i, : len(alone)], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('kind', ['llama', 't5'])
def test_peft_generates(kind):
    model = under_peft(kind)
    plain = model.generate(input_ids=IDS, **HOW)
    assert torch.equal(model.generate(inputs=IDS, **HOW), plain)
    record = model.generate(input_ids=IDS, return_dict_in_generate=True, **HOW)
    assert torch.equal(record.sequences, plain)
    config = tf.GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(model.generate(input_ids=IDS, generation_config=config), plain)
    new = model.generate(input_ids=IDS, repetition_penalty=1e6, **HOW)[:, 1:]
    assert all(len(set(row.tolist())) == len(row) for row in new[:, 4 if kind == 'llama' else 0 :])


def test_peft_has_one_active_adapter():
    from lopa.peft import LopaConfig

    model = under_peft()
    model.add_adapter('other', LopaConfig('pt', num_virtual_tokens=2))
    refused(lambda: model.base_model.set_adapter(['default', 'other']), 'default', 'other')
    model.base_model.set_adapter(['other'])
    assert model(input_ids=IDS).logits.shape[1] == 6


def test_peft_says_what_the_trainer_drops():
    model = under_peft(method='lopa', rank=2, head_width=8, feature_width=16)
    refused(lambda: model(input_ids=IDS), 'instance', 'remove_unused_columns')


@pytest.mark.parametrize('change', FORMATS.values(), ids=FORMATS)
def test_peft_formats_after_building(change, tmp_path):
    model = under_peft(method='lopa', rank=2, head_width=8, feature_width=16)
    state = {n: p.clone() for n, p in model.named_parameters() if 'tuned_' in n}
    model = change(model)
    h = torch.randn(2, 16, dtype=torch.float64)
    assert model(input_ids=IDS, instance_features=h).logits.dtype != torch.float32
    found = dict(model.named_parameters())
    assert all(torch.equal(found[name], value) for name, value in state.items())


# --- what is no configuration, no place, no number ---


@pytest.mark.parametrize('config', [None, 'pt', {'method': 'pt'}, PromptConfig, 'LoraConfig'])
@pytest.mark.parametrize('build', [get_prompt_model, BaselineModel, adapt_model])
def test_configurations_of_another_kind(config, build):
    config = peft.LoraConfig() if config == 'LoraConfig' else config
    refused(lambda: build(tiny(), config), 'config', type(config).__name__)


def test_configurations_of_the_other_kind():
    refused(lambda: get_prompt_model(tiny(), BaselineConfig('lora')), 'BaselineConfig')
    refused(lambda: BaselineModel(tiny(), PromptConfig('pt')), 'PromptConfig', 'adapt_model')


@pytest.mark.parametrize('method, reader', [('lora', PromptModel), ('pt', BaselineModel)])
def test_an_adapter_of_the_other_kind(method, reader, tmp_path):
    adapted('llama', method).save_pretrained(tmp_path)
    refused(lambda: reader.from_pretrained(tiny(), tmp_path), method, 'load_adapted')
    refused(lambda: reader.from_pretrained(tmp_path, tiny()), 'LlamaForCausalLM', 'hub id')


def test_a_checkpoint_from_before_a_setting():
    old, new = prompted(tiny(), 'lopa'), prompted(tiny(), 'lopa', seed=1)
    state = old.state_dict()
    about = json.loads(bytes(state[SAID].tolist()))
    del about['config']['encoder_max_length']
    new.load_state_dict({**state, SAID: pack(about)})
    batch = example(old)
    torch.testing.assert_close(new(**batch).logits, old(**batch).logits)


@pytest.mark.parametrize('name', ['Falcon-H1', 'CTRL', 'OpenAI GPT'])
def test_models_that_generate_from_tokens_only(name):
    refused(lambda: bare(make(name)).generate(IDS, **HOW), 'tokens only', 'token by token')


@pytest.mark.parametrize('method', ['pt', 'lora'])
def test_a_plan_that_is_a_dictionary(method):
    model = adapted('t5', method)
    refused(lambda: model.generate(IDS, generation_config={'max_new_tokens': 3}), 'dict')


@pytest.mark.parametrize('start', [0, 7])
@pytest.mark.parametrize('method', ['pt', 'full'])
def test_a_decoder_that_has_begun(method, start):
    model = adapted('t5', method)
    given = torch.tensor([[start, 9]] * 2)
    new = model.generate(IDS, decoder_input_ids=given, **HOW)
    whole = model.generate(IDS, decoder_input_ids=given, return_dict_in_generate=True, **HOW)
    assert new.shape == whole.sequences.shape == (2, 6)


@pytest.mark.parametrize('name', ['nan', 'inf', '-inf'])
def test_features_that_are_no_numbers(name):
    model = prompted(tiny(), 'lopa')
    h = torch.zeros(2, 16).fill_(float(name))
    refused(lambda: model(IDS, instance_features=h), 'instance_features', name, 'finite')


@pytest.mark.parametrize('method', ['pt', 'lora', 'full'])
def test_numbers_of_other_formats(method):
    model = adapted('llama', method)
    want = model(IDS, labels=IDS).loss
    torch.testing.assert_close(model(IDS.int(), labels=IDS.int()).loss, want)
    refused(lambda: model(IDS.to(torch.uint8)), 'input_ids', 'torch.uint8')
    refused(lambda: model(IDS, labels=IDS.float()), 'labels', 'torch.float32')
    refused(lambda: model(IDS[:, :0]), 'input_ids', 'no tokens')
    torch.testing.assert_close(model.generate(inputs=IDS, **HOW), model.generate(IDS, **HOW))


def test_places_that_cannot_be_written_to(tmp_path, monkeypatch):
    file = tmp_path / 'file'
    file.write_text('not a folder')
    with pytest.raises(OSError) as error:
        prompted(tiny(), 'pt').save_pretrained(file)
    one_sentence(error.value, file, 'cannot be written')
    monkeypatch.setenv('LOPA_CACHE', str(file))
    with pytest.raises(OSError) as error:
        assets._smollm2()
    one_sentence(error.value, file, 'LOPA_CACHE')
    with pytest.raises(OSError) as error:
        cache_folder('features')
    one_sentence(error.value, file, 'LOPA_CACHE')
