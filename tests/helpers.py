"Tiny models, batches and one assertion that several test files share"

import torch
import transformers as tf
from hypothesis import settings

from lopa import PromptConfig, get_prompt_model
from lopa.baselines import BASELINES, BaselineConfig, BaselineModel
from lopa.prompts import METHODS

VOCAB, WIDTH, FEATURES, PROMPT = 100, 32, 16, 3
few = settings(deadline=None, max_examples=25, derandomize=True)


def sizes(width, heads=2):
    return dict(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=heads,
        max_position_embeddings=64,
    )


ARCHITECTURES = {  # kind → (class, its configuration for a width)
    'llama': ('Llama', 'ForCausalLM', lambda w: dict(num_key_value_heads=1, **sizes(w))),
    'qwen2': ('Qwen2', 'ForCausalLM', lambda w: dict(num_key_value_heads=1, **sizes(w))),
    'phi': ('Phi', 'ForCausalLM', sizes),
    'gpt-neox': ('GPTNeoX', 'ForCausalLM', lambda w: dict(is_decoder=True, **sizes(w))),
    'gpt2': ('GPT2', 'LMHeadModel', lambda w: dict(n_embd=w, n_layer=2, n_head=2, n_positions=64)),
    'opt': (
        'OPT',
        'ForCausalLM',
        lambda w: dict(
            ffn_dim=2 * w,
            word_embed_proj_dim=w,
            init_std=0.2,
            **{k: v for k, v in sizes(w).items() if k != 'intermediate_size'},
        ),
    ),
    'bloom': ('Bloom', 'ForCausalLM', lambda w: dict(hidden_size=w, n_layer=2, n_head=2)),
    'roberta': ('Roberta', 'ForMaskedLM', sizes),
    'bert': ('Bert', 'ForMaskedLM', sizes),
    't5': (
        'T5',
        'ForConditionalGeneration',
        lambda w: dict(
            d_model=w,
            d_kv=w // 2,
            d_ff=2 * w,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
            initializer_factor=1.0,
        ),
    ),
}
MASKED = ['roberta', 'bert']
SEQ2SEQ = ['t5']
CAUSAL = [kind for kind in ARCHITECTURES if kind not in MASKED + SEQ2SEQ]


def tiny(kind='llama', seed=0, width=WIDTH, **config):
    "A random language model whose weights are large enough for positions and prompt to matter"
    family, head, size = ARCHITECTURES[kind]
    common = (
        dict(
            vocab_size=VOCAB,
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        | size(width)
        | config
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(tf, family + head)(getattr(tf, family + 'Config')(**common))
    model.config._name_or_path = model.name_or_path = f'tiny-{kind}'
    return model.eval()


@torch.no_grad()
def shake(module, by=0.3):
    "Move all weights away from where they begin"
    for p in module.parameters():
        p.add_(torch.randn_like(p) * by)
    return module


def prompted(base, method='lopa', seed=0, shaken=True, **config):
    "A small prompt in front of `base`, as if it had been trained"
    if not config.get('encoder_name_or_path'):
        config.setdefault('feature_width', FEATURES)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_prompt_model(
            base,
            PromptConfig(
                method, **(dict(num_virtual_tokens=PROMPT, rank=2, head_width=8) | config)
            ),
        )
        if shaken:
            shake(model.generator)
    return model


def adapted(kind, method, seed=0, shaken=True, **config):
    "A tiny model or a fresh one of an architecture, adapted by any method, as if trained"
    base = tiny(kind) if isinstance(kind, str) else kind
    if method not in BASELINES:
        return prompted(base, method, seed, shaken, **config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BaselineModel(
            base,
            BaselineConfig(
                method, **(dict(num_virtual_tokens=PROMPT, rank=2, head_width=8) | config)
            ),
        )
        if shaken:
            [
                p.data.add_(torch.randn_like(p) * (0.02 if method == 'full' else 0.3))
                for p in model.parameters()
                if p.requires_grad
            ]
    return model


PAIRS = [
    (kind, method)
    for kind in ARCHITECTURES
    for method in [*METHODS, *BASELINES]
    if not (kind in MASKED and method == 'prefix')
]


def rows(lengths, seed=0):
    "Random token ids, one list per length, and random features"
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (n,), generator=g) for n in lengths], torch.randn(
        len(lengths), FEATURES, generator=g
    )


def padded(ids, side, filler=7):
    "Stack rows of different lengths; the padding is a token like any other, only the mask tells"
    pad = lambda xs, value: torch.nn.utils.rnn.pad_sequence(
        xs, batch_first=True, padding_value=value, padding_side=side
    )
    return {
        'input_ids': pad(ids, filler),
        'attention_mask': pad([torch.ones_like(i) for i in ids], 0),
    }


def example(model, lengths=(5, 5), side='left', seed=0):
    "A padded batch for `model`, with features only if it looks at the instance"
    ids, h = rows(lengths, seed)
    return padded(ids, side) | features(model, h)


def features(model, h):
    "What a method that looks at the instance is given besides"
    return (
        {'instance_features': h}
        if model.generator is not None and model.generator.uses_instance
        else {}
    )


def one_sentence(error, *mentions):
    "The message is one line that names what it is about"
    text = str(error)
    assert text and '\n' not in text and text.endswith(('.', '?', '!')), repr(text)
    for word in mentions:
        assert str(word) in text, f'{word!r} is not in {text!r}'


WORDS = 'red big new deep tall blue good bad old dry wet cold'.split()


def word_task():
    "44 rows of different lengths: five whole steps of eight in an epoch, and four left out"
    from datasets import Dataset

    from lopa.tasks import own_task

    rows = Dataset.from_list(
        [
            dict(text=' '.join(WORDS[(i * k) % 12] for k in range(2 + i % 7)), label=i % 2)
            for i in range(44)
        ]
    )
    return own_task(
        'own',
        {'train': rows, 'validation': rows.select(range(10)), 'test': rows.select(range(5, 25))},
        'Say {text}',
        (' yes', ' no'),
    )


def one_tokenizer():
    "In a process of its own: let tiny models be read with the packaged encoder's tokenizer"
    from lopa import assets
    from lopa.evaluate import predict

    tokenizer = assets.load_tokenizer(assets.ENCODER, 'left')

    def load_tokenizers(base, encoder):
        return tokenizer, tokenizer if encoder else None

    predict.load_tokenizers = load_tokenizers
    return tokenizer
