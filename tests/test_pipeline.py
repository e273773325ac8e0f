"Transformers' pipelines with a prompted model: what they give is what `generate` gives"

import pytest
import torch
from helpers import FEATURES, adapted, one_sentence, prompted, tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, pipeline

NEW = dict(max_new_tokens=4, do_sample=False)


@pytest.fixture(scope='module')
def tokenizer():
    "A hundred words, one token each"
    words = {'[PAD]': 0, '[MASK]': 1} | {f'w{i}': i for i in range(2, 100)}
    kind = Tokenizer(models.WordLevel(words, unk_token='[PAD]'))
    kind.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    known = dict(pad_token='[PAD]', mask_token='[MASK]', padding_side='left')
    return PreTrainedTokenizerFast(tokenizer_object=kind, **known)


def written(model, tokenizer, text, **instance):
    "The new text by `generate`"
    batch = tokenizer(text, return_tensors='pt')
    batch = {name: batch[name] for name in ('input_ids', 'attention_mask')}
    new = model.generate(**batch, **instance, **NEW, pad_token_id=0)
    return tokenizer.decode(new[0], skip_special_tokens=True)


@pytest.mark.parametrize('method', ['pt', 'dept'])
def test_what_generate_gives(method, tokenizer):
    model = adapted('llama', method)
    pipe = pipeline('text-generation', model=model, tokenizer=tokenizer)
    text = 'w5 w7 w9'
    new = written(model, tokenizer, text)
    assert new
    assert pipe(text, return_full_text=False, **NEW)[0]['generated_text'].split() == new.split()
    assert pipe(text, **NEW)[0]['generated_text'].startswith(text)


@pytest.mark.parametrize('size', [1, 2])
def test_a_list_of_texts(size, tokenizer):
    "One by one, or in padded batches"
    model = adapted('llama', 'pt')
    pipe = pipeline('text-generation', model=model, tokenizer=tokenizer, batch_size=size)
    texts = ['w5 w7 w9', 'w8']
    found = pipe(texts, return_full_text=False, **NEW)
    expected = [written(model, tokenizer, text).split() for text in texts]
    assert [f[0]['generated_text'].split() for f in found] == expected


def test_features_go_along(tokenizer):
    "A method that looks at the instance is handed its features with the call"
    model = prompted(tiny())
    pipe = pipeline('text-generation', model=model, tokenizer=tokenizer)
    for h in torch.randn(2, 1, FEATURES):
        found = pipe('w5 w7', return_full_text=False, instance_features=h, **NEW)
        expected = written(model, tokenizer, 'w5 w7', instance_features=h)
        assert found[0]['generated_text'].split() == expected.split()
    with pytest.raises(ValueError) as e:
        pipe('w5 w7', **NEW)
    one_sentence(e.value, 'instance_features')


def test_several_answers(tokenizer):
    model = adapted('llama', 'pt')
    pipe = pipeline('text-generation', model=model, tokenizer=tokenizer)
    found = pipe('w5 w7', num_beams=3, num_return_sequences=2, return_full_text=False, **NEW)
    assert len(found) == 2 and all(f['generated_text'] for f in found)


def test_input_in_front_on_demand():
    model, ids = adapted('llama', 'pt'), torch.tensor([[5, 7, 9], [6, 8, 4]])
    new = model.generate(ids, **NEW, pad_token_id=0)
    both = model.generate(ids, with_input=True, **NEW, pad_token_id=0)
    assert torch.equal(both, torch.cat([ids, new], 1))
    told = model.generate(ids, return_dict_in_generate=True, **NEW, pad_token_id=0)
    assert torch.equal(told.sequences, new)


def test_what_it_says_of_itself_is_the_foundation_model():
    for kind, generates in ('llama', True), ('t5', True), ('bert', False):
        model = adapted(kind, 'pt')
        base = model.base_model
        assert model.config is base.config
        assert model.generation_config is getattr(base, 'generation_config', None)
        assert model.device == base.device and model.dtype == base.dtype
        assert model.name_or_path == f'tiny-{kind}' and model.can_generate() == generates


def test_filling_masks_is_refused(tokenizer):
    "The pipeline would read the logits in the wrong columns"
    pipe = pipeline('fill-mask', model=adapted('bert', 'pt'), tokenizer=tokenizer)
    with pytest.raises(ValueError) as e:
        pipe('w5 [MASK] w7')
    one_sentence(e.value, 'fill-mask')


def test_no_tokens_are_refused():
    with pytest.raises(ValueError) as e:
        adapted('llama', 'pt').generate(None)
    one_sentence(e.value, 'no tokens')
