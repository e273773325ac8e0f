"Tiny models, batches and one assertion that several test files share"
import torch
from hypothesis import settings
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lopa import PromptConfig, get_prompt_model

VOCAB, WIDTH, FEATURES, PROMPT = 100, 32, 16, 3
few = settings(deadline=None, max_examples=25, derandomize=True)


def tiny(kind='llama', seed=0, width=WIDTH, **config):
    "A random causal language model whose weights are large enough for positions and prompt to matter"
    common = dict(vocab_size=VOCAB, initializer_range=.2, bos_token_id=None, eos_token_id=None, pad_token_id=0) | config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == 'llama':
            model = LlamaForCausalLM(LlamaConfig(hidden_size=width, intermediate_size=2*width, num_hidden_layers=2, num_attention_heads=2,
                                                 num_key_value_heads=1, max_position_embeddings=64, **common))
        else: model = GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=2, n_head=2, n_positions=64, **common))
    model.config._name_or_path = model.name_or_path = f'tiny-{kind}'
    return model.eval()


@torch.no_grad()
def shake(module, by=.3):
    "Move all weights away from where they begin"
    for p in module.parameters(): p.add_(torch.randn_like(p)*by)
    return module


def prompted(base, method='lopa', seed=0, shaken=True, **config):
    "A small prompt in front of `base`, as if it had been trained"
    if not config.get('encoder_name_or_path'): config.setdefault('feature_width', FEATURES)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_prompt_model(base, PromptConfig(method, **(dict(num_virtual_tokens=PROMPT, rank=2, head_width=8) | config)))
        if shaken: shake(model.generator)
    return model


def rows(lengths, seed=0):
    "Random token ids, one list per length, and random features"
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (n,), generator=g) for n in lengths], torch.randn(len(lengths), FEATURES, generator=g)


def padded(ids, side, filler=7):
    "Stack rows of different lengths; the padding is a token like any other, only the mask tells"
    pad = lambda xs, value: torch.nn.utils.rnn.pad_sequence(xs, batch_first=True, padding_value=value, padding_side=side)
    return {'input_ids': pad(ids, filler), 'attention_mask': pad([torch.ones_like(i) for i in ids], 0)}


def example(model, lengths=(5, 5), side='left', seed=0):
    "A padded batch for `model`, with features only if it looks at the instance"
    ids, h = rows(lengths, seed)
    return padded(ids, side) | ({'instance_features': h} if model.generator.uses_instance else {})


def one_sentence(error, *mentions):
    "The message is one line that names what it is about"
    text = str(error)
    assert text and '\n' not in text and text.endswith(('.', '?', '!')), repr(text)
    for word in mentions: assert str(word) in text, f'{word!r} is not in {text!r}'
