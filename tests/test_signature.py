"An adapter belongs to one foundation model: which weights count, and in which formats"

import copy
import json

import peft
import pytest
import torch
import transformers as tf
from helpers import ARCHITECTURES, adapted, example, one_sentence, prompted, tiny
from torch import nn

from lopa import PromptConfig, PromptModel, get_prompt_model
from lopa.adapter import CONFIG_FILE, layers, linear_width, same_model, signature
from lopa.baselines import load_adapted
from lopa.logits import unwrap
from lopa.peft import LopaConfig

LORA = dict(r=2, target_modules='all-linear', lora_dropout=0.1)


def tuned(base, std=0.1, **config):
    "With LoRA beside the weights, as if it had been trained"
    model = peft.get_peft_model(base, peft.LoraConfig(**(LORA | config)))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if 'lora_B' in name:
                value.normal_(std=std)
    return model


def matrices(base):
    return [n for n, p in base.named_parameters() if p.ndim >= 2 and p.shape[0] > 1]


@pytest.mark.parametrize('kind', ARCHITECTURES)
def test_every_matrix_counts(kind):
    "A tenth of noise in any one matrix is another model"
    base = tiny(kind)
    mine = signature(base)
    assert same_model(mine, signature(tiny(kind)))
    for name in matrices(base):
        other = tiny(kind)
        with torch.no_grad():
            weight = other.get_parameter(name)
            weight.add_(torch.randn_like(weight) * weight.norm() / weight.numel() ** 0.5 / 10)
        assert not same_model(mine, signature(other)), name


@pytest.mark.parametrize('kind', ['llama', 'gpt2', 'bert'])
def test_vectors_count(kind):
    "So do norms and biases, which some methods tune alone"
    base = tiny(kind)
    mine = signature(base)
    vectors = [n for n, p in base.named_parameters() if p.ndim == 1 and 'norm' in n.lower()]
    for name in vectors[:2]:
        other = tiny(kind)
        with torch.no_grad():
            other.get_parameter(name).add_(0.1 * torch.randn(other.get_parameter(name).shape))
        assert not same_model(mine, signature(other)), name


@pytest.mark.parametrize('kind', ['mixtral', 'mamba'])
def test_experts_and_other_tensors_count(kind):
    torch.manual_seed(0)
    if kind == 'mixtral':
        sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=16, num_hidden_layers=1)
        config = tf.MixtralConfig(**sizes, num_attention_heads=2, num_local_experts=2)
        base = tf.MixtralForCausalLM(config)
    else:
        config = tf.MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, state_size=4)
        base = tf.MambaForCausalLM(config)
    mine = signature(base)
    for name in matrices(base):
        other = copy.deepcopy(base)
        with torch.no_grad():
            other.get_parameter(name).mul_(1.1)
        assert not same_model(mine, signature(other)), name


def test_tied_embeddings_are_not_all():
    "The old signature had embeddings only, where all matrices are tied or quantised"
    base, other = tiny(tie_word_embeddings=True), tiny(tie_word_embeddings=True)
    with torch.no_grad():
        other.model.layers[1].self_attn.k_proj.weight.mul_(-1)  # no length changes
    assert signature(base)['norms'] == signature(other)['norms']
    assert not same_model(signature(base), signature(other))


@pytest.mark.parametrize('kind', ['llama', 'gpt2', 'bert', 't5'])
def test_lora_beside_or_added(kind, tmp_path):
    "A prompt made for a LoRA-tuned model loads onto that model only, merged or not"
    wrapped = tuned(tiny(kind))
    made = prompted(wrapped, 'pt')
    made.save_pretrained(tmp_path)
    batch = example(made)
    again = PromptModel.from_pretrained(tuned_again(kind, wrapped), tmp_path)
    torch.testing.assert_close(again(**batch).logits, made(**batch).logits)
    with pytest.raises(ValueError) as error:
        PromptModel.from_pretrained(tiny(kind), tmp_path)
    one_sentence(error.value, 'weights differ')
    merged = PromptModel.from_pretrained(wrapped.merge_and_unload(), tmp_path)
    torch.testing.assert_close(merged(**batch).logits, made(**batch).logits, atol=1e-3, rtol=1e-2)


def tuned_again(kind, wrapped):
    other = tuned(tiny(kind))
    other.load_state_dict(wrapped.state_dict())
    return other


@pytest.mark.parametrize('kind', ['lora', 'lora and embeddings', 'ia3', 'saved modules', 'dora'])
def test_other_adapters_inside(kind):
    base = tiny()
    if kind == 'lora':
        wrapped = tuned(base, target_modules=['q_proj'])
    elif kind == 'lora and embeddings':
        wrapped = peft.get_peft_model(base, peft.LoraConfig(target_modules=['embed_tokens'], r=2))
        with torch.no_grad():
            wrapped.base_model.model.model.embed_tokens.lora_embedding_A['default'].normal_()
    elif kind == 'ia3':
        config = peft.IA3Config(target_modules=['k_proj'], feedforward_modules=[])
        wrapped = peft.get_peft_model(base, config)
        with torch.no_grad():
            [p.add_(0.2 * torch.randn_like(p)) for n, p in wrapped.named_parameters() if 'ia3' in n]
    elif kind == 'dora':
        wrapped = tuned(base, use_dora=True, target_modules=['q_proj'])
    else:
        wrapped = tuned(base, modules_to_save=['lm_head'], target_modules=['q_proj'], std=0.0)
        with torch.no_grad():
            wrapped.base_model.model.lm_head.modules_to_save['default'].weight.mul_(1.2)
    assert not same_model(signature(tiny()), signature(wrapped))
    with wrapped.disable_adapter():
        assert same_model(signature(tiny()), signature(wrapped))


def test_a_fresh_lora_changes_nothing():
    "Its product is zero, in training mode, too; and the mode stays"
    wrapped = peft.get_peft_model(tiny(), peft.LoraConfig(**LORA)).train()
    assert same_model(signature(tiny()), signature(wrapped)) and wrapped.training
    noisy = tuned(tiny()).train()
    assert signature(noisy) == signature(noisy)


@pytest.mark.parametrize('wrap', [lambda m: torch.compile(m, backend='eager'), nn.DataParallel])
def test_wrappers_change_nothing(wrap, tmp_path):
    prompted(tiny(), 'pt').save_pretrained(tmp_path)
    assert PromptModel.from_pretrained(wrap(tiny()), tmp_path).prompt_length == 3


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('kind', ['llama', 'gpt2', 'bert', 't5'])
def test_number_formats(kind, dtype):
    mine = signature(tiny(kind))
    assert same_model(mine, signature(tiny(kind).to(dtype)))
    assert same_model(signature(tiny(kind).to(dtype)), mine)
    other = signature(tiny(kind, seed=1).to(dtype))
    assert not same_model(mine, other)


def test_tokens_may_be_added(tmp_path):
    base = tiny(vocab_size=1000)
    prompted(base, 'pt').save_pretrained(tmp_path)
    base.resize_token_embeddings(1008)
    assert PromptModel.from_pretrained(base, tmp_path).prompt_length == 3


def test_own_hooks_are_not_called():
    base, seen = tiny(), []
    base.lm_head.register_forward_hook(lambda *_: seen.append(1))
    signature(base)
    assert not seen


def test_layers_are_those_of_the_model():
    base = tiny()
    linear = [m for m in base.modules() if isinstance(m, nn.Linear)]
    assert [m for m in layers(base) if linear_width(m)] == linear


# --- quantised ---


class Packed(nn.Linear):
    "Stands in for a quantised layer: whole numbers, and a scale for each row"

    def __init__(self, layer, bits):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        most = 2 ** (bits - 1) - 1
        self.scale = layer.weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-9) / most
        self.numbers = (layer.weight.detach() / self.scale).round()
        stored = torch.zeros(layer.weight.numel() * bits // 8, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.bias = layer.bias

    def forward(self, x):
        weight = (self.numbers * self.scale).to(x.dtype)
        return nn.functional.linear(x, weight, self.bias)

    def _save_to_state_dict(self, *args):
        raise AssertionError('a quantised layer was asked for its state')


def quantised(base, bits):
    for name, module in list(base.named_modules()):
        if isinstance(module, nn.Linear) and name != 'lm_head':
            base.set_submodule(name, Packed(module, bits))
    return base.requires_grad_(False)


@pytest.mark.parametrize('bits', [4, 8])
@pytest.mark.parametrize('kind', ['llama', 'bert'])
def test_quantised_and_not(kind, bits, tmp_path):
    "Both ways, and never asked for a state: neither by us nor in a Trainer's checkpoint"
    for made_on, used_on in ((tiny(kind), quantised(tiny(kind), bits)), 2 * (None,)):
        made_on = quantised(tiny(kind), bits) if made_on is None else made_on
        used_on = tiny(kind) if used_on is None else used_on
        model = prompted(made_on, 'pt')
        assert set(model.state_dict()) == {'generator.prompt', '_extra_state'}
        model.save_pretrained(tmp_path)
        loaded = PromptModel.from_pretrained(used_on, tmp_path)
        assert torch.equal(loaded.generator.prompt, model.generator.prompt)
    with pytest.raises(ValueError) as error:
        PromptModel.from_pretrained(quantised(tiny(kind, seed=4), bits), tmp_path)
    one_sentence(error.value, 'weights differ')
    stored = json.loads((tmp_path / CONFIG_FILE).read_text())['base_model']['stored']
    assert stored == f'{bits} bits'


def test_quantised_and_tuned():
    "Two models of one format are told apart as well as two that are not quantised"
    mine = signature(quantised(tiny(), 4))
    other = quantised(tiny(), 4)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.numbers.add_(
            0.3 * torch.randn_like(other.model.layers[0].mlp.up_proj.numbers)
        )
    assert same_model(mine, signature(quantised(tiny(), 4)))
    assert not same_model(mine, signature(other))


def test_bitsandbytes_on_a_cpu(tmp_path):
    "Saving leaves the logits of a model with four bits where they are"
    pytest.importorskip('bitsandbytes')
    tiny(width=64).save_pretrained(tmp_path / 'base')
    how = dict(load_in_4bit=True, bnb_4bit_quant_type='nf4')
    base = tf.AutoModelForCausalLM.from_pretrained(
        tmp_path / 'base', quantization_config=tf.BitsAndBytesConfig(**how)
    )
    model = get_prompt_model(base, PromptConfig('pt', 2))
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model(ids).logits
    model.save_pretrained(tmp_path / 'adapter')
    model.state_dict()
    assert torch.equal(model(ids).logits, before)
    plain = tf.AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
    assert PromptModel.from_pretrained(plain, tmp_path / 'adapter').prompt_length == 2


# --- other wrappers, other builds ---


def test_a_mixed_model_is_the_model_inside():
    "PEFT's model for adapters of several kinds, and a tuner without its wrapper"
    one = tuned(tiny('llama'), target_modules=['q_proj'])
    mixed = peft.get_peft_model(tiny('llama'), one.peft_config['default'], mixed=True).eval()
    peft.set_peft_model_state_dict(mixed, peft.get_peft_model_state_dict(one))
    assert unwrap(one.base_model) is unwrap(one) and unwrap(mixed) is mixed.base_model.model
    ids = torch.tensor([[5, 9, 31]])
    want = one.merge_and_unload()
    torch.testing.assert_close(unwrap(mixed)(ids).logits, want(ids).logits)
    assert same_model(signature(unwrap(mixed)), signature(want))


def test_our_prompt_under_peft_is_not_dropped():
    config = LopaConfig(method='pt', num_virtual_tokens=2)
    model = peft.get_peft_model(tiny('llama'), config)
    with pytest.raises(ValueError) as error:
        get_prompt_model(model, PromptConfig('pt', num_virtual_tokens=2))
    one_sentence(error.value, 'LOPA', 'in the wrapper')


@pytest.mark.parametrize('kind', ['bert', 'roberta'])
def test_a_whole_head_that_peft_keeps_a_copy_of(kind):
    "The copy counts, or what it was copied from, and not both"
    name = {'bert': 'cls', 'roberta': 'lm_head'}[kind]
    model = tuned(tiny(kind), modules_to_save=[name], target_modules=['query'])
    with torch.no_grad():
        for key, value in model.named_parameters():
            if 'modules_to_save' in key:
                value.add_(torch.randn_like(value))
    with model.disable_adapter():
        assert same_model(signature(unwrap(model)), signature(tiny(kind)))
    mine = signature(unwrap(model))
    assert not same_model(mine, signature(tiny(kind)))
    assert same_model(mine, signature(model.merge_and_unload()))


@pytest.mark.parametrize('kind', ['llama', 'gpt2', 'bert', 't5'])
@pytest.mark.parametrize('offload', ['cpu_offload', 'disk_offload'])
@torch.no_grad()
def test_weights_that_lie_elsewhere(kind, offload, tmp_path):
    "The prompt keeps its numbers, and the adapter knows its model"
    import accelerate

    model = prompted(tiny(kind), 'pt')
    batch = example(model) | {'labels': torch.full((2, 5), 3)}
    model.save_pretrained(tmp_path / 'adapter')
    where = (tmp_path / 'weights',) if offload == 'disk_offload' else ()
    away = getattr(accelerate, offload)(tiny(kind), *where, execution_device='cpu')
    assert same_model(signature(away), signature(tiny(kind)))
    assert 'stored' in signature(away)
    again = PromptModel.from_pretrained(away, tmp_path / 'adapter')
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits)


def two_in_one():
    parts = [dict(vocab_size=100, hidden_size=32, num_hidden_layers=n) for n in (1, 2)]
    sizes = dict(num_attention_heads=2, intermediate_size=64)
    encoder = tf.BertConfig(**parts[0], **sizes)
    decoder = tf.BertConfig(**parts[1], **sizes, is_decoder=True, add_cross_attention=True)
    config = tf.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 2, 0
    torch.manual_seed(0)
    return tf.EncoderDecoderModel(config=config).eval()


@pytest.mark.parametrize('method', ['pt', 'lora', 'p-tuning', 'full'])
@torch.no_grad()
def test_a_model_of_two_models(method, tmp_path):
    "Whose configuration has no number of layers of its own"
    model = adapted(two_in_one(), method)
    ids, labels = torch.tensor([[5, 9, 31]]), torch.tensor([[7, 8]])
    model.save_pretrained(tmp_path)
    again = load_adapted(two_in_one(), tmp_path)
    want = model(ids, labels=labels).logits
    torch.testing.assert_close(again(ids, labels=labels).logits, want)
    other = model(ids, labels=labels + 20).logits
    torch.testing.assert_close(other[:, 0], want[:, 0])
