"""What has to hold for every foundation model, with whatever is put before it or into it

A law is asked of one adapted model and answers with a number: how far it is from right. What is
more than `TOLERANCE` is wrong. `ask_laws` also says what was refused, and in which sentence.
"""

import copy
import sys
import tempfile
import traceback
import warnings
from functools import cache
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from lopa import PromptConfig, get_prompt_model
from lopa.baselines import BaselineConfig, BaselineModel, load_adapted

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / 'tests'))
from architectures import MASK, POSITIONS, VOCAB, make  # noqa: E402

TOLERANCE = 1e-3  # of the largest logit
FEATURES, PROMPT = 16, 2
SPARE = 4  # positions around the limit that are tried
FILLER = 17  # padding is a token like any other: only the mask tells
WORDS = range(3, VOCAB - 1)  # tokens that mean nothing special


# --- models ---


def prompted(base, method='lopa', **config):
    "A prompt before `base`, as if it had been trained"
    if 'encoder_name_or_path' not in config:
        config['feature_width'] = FEATURES
    sizes = dict(num_virtual_tokens=PROMPT, rank=2, head_width=8, update_length=4)
    model = get_prompt_model(base, PromptConfig(method, **sizes, **config))
    return shaken(model, 0.3)


def changed(base, method):
    "One of the baselines, as if it had been trained"
    sizes = dict(num_virtual_tokens=PROMPT, rank=2, head_width=8)
    model = BaselineModel(base, BaselineConfig(method, **sizes))
    return shaken(model, 0.02 if method == 'full' else 0.3)


@torch.no_grad()
def shaken(model, by):
    "Move everything that trains away from where it begins"
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * by)
    return model


MODELS = {  # what stands before a foundation model or changes it → how it is made
    'no prompt': lambda base: get_prompt_model(base, PromptConfig('pt', num_virtual_tokens=0)),
    'LoPA': prompted,
    'after start': lambda base: prompted(base, 'pt', position='after_start'),
    'suffix': lambda base: prompted(base, 'pt', position='suffix'),
    'DEPT': lambda base: prompted(base, 'dept'),
    'encoder self': lambda base: prompted(base, encoder_name_or_path='self'),
    'encoder embeddings': lambda base: prompted(base, encoder_name_or_path='embeddings'),
    'LoRA': lambda base: changed(base, 'lora'),
    'prefix tuning': lambda base: changed(base, 'prefix'),
    'P-tuning': lambda base: changed(base, 'p-tuning'),
    'full': lambda base: changed(base, 'full'),
}


# --- batches ---


def texts(model, lengths=(6, 3, 4), seed=0):
    "Rows of random tokens; a masked model finds a mask in each"
    g = torch.Generator().manual_seed(seed)
    ids = [torch.randint(WORDS[0], WORDS[-1] + 1, (n,), generator=g) for n in lengths]
    for row in ids:
        if model.task_type == 'MASKED_LM':
            row[len(row) // 2] = MASK
    return ids


def pad(ids, side, filler=FILLER):
    "Rows of different lengths as one tensor"
    return pad_sequence(ids, batch_first=True, padding_value=filler, padding_side=side)


def padded(ids, side='right'):
    "Tokens and their mask"
    mask = pad([torch.ones_like(row) for row in ids], side, 0)
    return {'input_ids': pad(ids, side), 'attention_mask': mask}


def about(model, ids, side, first=0):
    "What is said of the instances, if the model looks at them"
    if model.generator is None or not model.generator.uses_instance:
        return {}
    if model.encoder is not None:
        return {f'instance_{name}': value for name, value in padded(ids, side).items()}
    g = torch.Generator().manual_seed(1)
    return {'instance_features': torch.randn(8, FEATURES, generator=g)[first : first + len(ids)]}


def one_label(model, ids, first=0):
    "The last token of each row; the one behind the mask; an answer of two tokens for a decoder"
    if model.task_type == 'SEQ_2_SEQ_LM':
        return [torch.tensor([5 + first + i, 7]) for i in range(len(ids))]
    labels = [torch.full_like(row, -100) for row in ids]
    for row, label in zip(ids, labels, strict=True):
        place = len(row) // 2 if model.task_type == 'MASKED_LM' else -1
        label[place] = 9 if model.task_type == 'MASKED_LM' else row[-1]
    return labels


def batch(model, ids, side='right', labels=None, first=0):
    "Everything that the model's `forward` takes"
    labels = one_label(model, ids, first) if labels is None else labels
    side_of_labels = 'right' if model.task_type == 'SEQ_2_SEQ_LM' else side
    labels = {'labels': pad(labels, side_of_labels, -100)}
    return padded(ids, side) | labels | about(model, ids, side, first)


def far(one, other):
    "The largest difference, as a share of the largest number"
    return ((one - other).abs().max() / other.abs().max().clamp(min=1e-9)).item()


# --- laws: each says how far from right a model is ---


@torch.no_grad()
def same_logits(model, name):
    "Without a prompt, the logits are those of the model that is given token ids"
    ids = texts(model, (6,))[0][None]
    inputs = {'input_ids': ids, 'attention_mask': torch.ones_like(ids)}
    asked = dict(inputs)
    if model.task_type == 'SEQ_2_SEQ_LM':
        start = model.base_model.config.decoder_start_token_id
        inputs['decoder_input_ids'] = torch.tensor([[start, 7]])
        asked['labels'] = torch.tensor([[7, 8]])
    return far(model(**asked).logits, model.base_model(**inputs).logits)


@torch.no_grad()
def padding(model, name):
    "A row of a padded batch is answered as it is alone, whatever the side"
    ids = texts(model)
    alone = [model(**batch(model, [row], first=i)).logits for i, row in enumerate(ids)]
    both = [model(**batch(model, ids, side)).logits for side in ('left', 'right')]
    return max(far(together, torch.cat(alone)) for together in both)


@torch.no_grad()
def next_token(model, name):
    "The last logits of a row that is padded on the left, without labels, are those of it alone"
    ids = texts(model)
    if model.task_type != 'CAUSAL_LM':  # the law is about the next token
        return 0
    alone = [padded([row]) | about(model, [row], 'left', i) for i, row in enumerate(ids)]
    together = model(**padded(ids, 'left'), **about(model, ids, 'left')).logits[:, -1]
    return far(together, torch.cat([model(**inputs).logits[:, -1] for inputs in alone]))


@torch.no_grad()
def label(model, name):
    "The logits of an answer's first token do not depend on the answer that is handed over"
    row, answers = texts(model, (5,))[0], list(WORDS)
    if model.task_type == 'SEQ_2_SEQ_LM':
        pairs = [torch.tensor([v, VOCAB - 1 - v]) for v in answers]
        given = [([row] * len(pairs), pairs), ([row] * len(pairs), [p[:1] for p in pairs])]
    elif model.task_type == 'MASKED_LM':
        blank = torch.full_like(row, -100)
        labels = [blank.index_fill(0, torch.tensor(len(row) // 2), v) for v in answers]
        given = [([row] * len(labels), labels)]
    else:
        tails = [torch.tensor([v, VOCAB - 1 - v]) for v in answers]
        ids = [torch.cat([row, tail]) for tail in tails]
        given = [(ids, [torch.cat([torch.full_like(row, -100), tail]) for tail in tails])]
    logits = [first_answers(model, ids, labels) for ids, labels in given]
    return max(far(found, found[:1].expand_as(found)) for found in logits)


def first_answers(model, ids, labels):
    "Logits of the first token of each answer, all of one instance"
    inputs = batch(model, ids, labels=labels)
    for key, value in about(model, ids[:1], 'right').items():
        if key == 'instance_features':
            inputs[key] = value.expand(len(ids), -1)
        else:
            inputs[key] = value[:, :5].expand(len(ids), -1)
    return model(**inputs).logits[:, 0]


@torch.no_grad()
def one_pass(model, name):
    "Reading the text first gives what one pass over everything gives"
    model.base_model.set_attn_implementation('eager')
    inputs = batch(model, texts(model), 'left')
    two = model(**inputs).logits
    model.reads_text_first = lambda: False
    return far(two, model(**inputs).logits)


@torch.no_grad()
def reloaded(model, name):
    "What was saved answers the same, around a foundation model built anew"
    inputs = batch(model, texts(model), 'left')
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = load_adapted(make(name), folder)
    return far(again(**inputs).logits, model(**inputs).logits)


def training(model, name):
    "A short step along the gradient lowers the loss; what is frozen has none"
    inputs = batch(model, texts(model))
    model.train()(**inputs).loss.backward()  # with dropout
    wrong = sum(not p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    wrong += sum(p.grad is not None for p in model.parameters() if not p.requires_grad)
    model.zero_grad()
    before = model.eval()(**inputs).loss
    before.backward()
    free = [p for p in model.parameters() if p.grad is not None]
    steepness = torch.stack([p.grad.norm() for p in free]).norm()
    with torch.no_grad():
        for p in free:  # a short way, and on a steep slope a shorter one
            p -= 1e-3 * p.grad / steepness / steepness.clamp(min=1)
        return wrong + int(not model(**inputs).loss < before)


@torch.no_grad()
def generation(model, name):
    "Greedy generation is a loop over `forward` by hand, alone and in a padded batch"
    ids, new = texts(model, (6, 4)), 3
    kwargs = dict(max_new_tokens=new, do_sample=False)
    found = [
        model.generate(**padded(ids, side), **about(model, ids, side), **kwargs)
        for side in ('left', 'right')
    ]
    wrong = 0
    first = padded(ids[:1]) | about(model, ids[:1], 'right')
    found.append(model.generate(**first, **kwargs))
    for i, row in enumerate(ids):
        expected = by_hand(model, row, i, new)
        for got in (rows[i] for rows in found if i < len(rows)):
            wrong += got[: len(expected)].tolist() != expected
    return wrong


def by_hand(model, row, i, new):
    "The most probable token again and again, until the end token"
    out, about_row = [], about(model, [row], 'left', i)
    while len(out) < new and model.base_model.config.eos_token_id not in out:
        if model.task_type == 'SEQ_2_SEQ_LM':
            inputs = padded([row]) | {'labels': torch.tensor([[*out, 5]])}
        else:
            inputs = padded([torch.cat([row, torch.tensor(out, dtype=torch.long)])])
        out.append(model(**inputs, **about_row).logits[0, -1].argmax().item())
    return out


@torch.no_grad()
def length(model, name):
    """As long a row as the model reads by itself runs, and one that is longer is refused

    A few tokens fewer may be refused, too: tables keep places free, windows have to be full.
    """
    limit, front = longest(name), model.prompt_length
    if model.task_type == 'SEQ_2_SEQ_LM' and model.adapter_config.method == 'prefix':
        front = 0  # it stands in the decoder's cache, and the row goes to the encoder
    most = min(limit, POSITIONS)
    answered = [runs(model, n - front) for n in range(most - SPARE, most + 1)]
    wrong = int(not answered[0]) + int(answered != sorted(answered, reverse=True))
    return wrong + int(limit < POSITIONS + SPARE and runs(model, limit + 1 - front))


@cache
def longest(name):
    "How many tokens the model reads by itself, up to a few more than it is configured for"
    base = make(name)
    for n in range(POSITIONS - SPARE, POSITIONS + SPARE):
        ids = torch.full((1, n + 1), 9)
        more = {'decoder_input_ids': ids[:, :2]} if base.config.is_encoder_decoder else {}
        try:
            base(input_ids=ids, attention_mask=torch.ones_like(ids), **more)
        except (IndexError, RuntimeError, ValueError):
            return n
    return POSITIONS + SPARE


def runs(model, n):
    "Is a row of n tokens answered? False if it is refused in a sentence of ours"
    ids = texts(model, (n,))
    try:
        return bool(model(**batch(model, ids)).logits.isfinite().all())
    except ValueError as error:
        if sentence(error) is None:
            raise
        return False


@torch.no_grad()
def width(model, name):
    "The encoder's vectors are as wide as the heads expect"
    ids = texts(model)
    found = model.encoder(*padded(ids).values()).shape
    return int(found != (len(ids), model.adapter_config.feature_width))


ALL = {
    'padding': padding,
    'next token': next_token,
    'label': label,
    'generation': generation,
    'length': length,
    'reloaded': reloaded,
    'training': training,
}
PLACED = {'padding': padding, 'label': label}
ENCODED = {'width': width, 'padding': padding}
LAWS = {  # model → name of a law → the law
    'no prompt': {'same logits': same_logits, 'padding': padding, 'generation': generation},
    'LoPA': ALL,
    'after start': PLACED,
    'suffix': PLACED | {'one pass': one_pass},
    'DEPT': PLACED,
    'encoder self': ENCODED,
    'encoder embeddings': ENCODED,
    **dict.fromkeys(['LoRA', 'prefix tuning', 'P-tuning', 'full'], ALL),
}


# --- asking ---


def sentence(error):
    "What a refusal says; None if the error is no refusal of ours in one sentence"
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    text = str(error)
    ours = type(error) is ValueError and raised_in.is_relative_to(ROOT / 'lopa')
    return text if ours and '\n' not in text and text.endswith(('.', '?', '!')) else None


def refused_or_error(error):
    "The verdict on an exception"
    said = sentence(error)
    if said is not None:
        return {'refused': said}
    return {'error': f'{type(error).__name__}: {" ".join(str(error).split())}'}


def ask_law(law, model, name):
    "The verdict of one law, and how far it is off or what was said"
    torch.manual_seed(0)
    try:
        number = law(model, name)
    except Exception as error:
        return refused_or_error(error)
    right = number <= TOLERANCE  # not a number is not right
    return {'right' if right else 'wrong': float(f'{number:.0e}')}


def ask_laws(name, kind):
    "Law → {verdict: number or sentence}, of one architecture and one kind of model"
    laws = LAWS[kind]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            model = MODELS[kind](make(name))
        except Exception as error:
            return {law: refused_or_error(error) for law in laws}
        return {law: ask_law(check, copy_of(model, law), name) for law, check in laws.items()}


def copy_of(model, law):
    "The model itself, or a copy for a law that changes it"
    return copy.deepcopy(model) if law in ('training', 'one pass') else model
