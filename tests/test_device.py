"Devices and number formats: no tensor is made on the wrong device, and 16 bits stay where they belong"
import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from helpers import FEATURES, PROMPT, example, prompted, tiny
from lopa.baselines import BaselineConfig, BaselineModel
from lopa.gating import GATES
from lopa.prompts import METHODS

others = [m for m in METHODS if m != 'lopa']
methods = pytest.mark.parametrize('method', [*sorted(GATES), *others])


def choose(method):
    "Configuration of a method, or of LoPA with a gate"
    return dict(method=method, phm_blocks=4) if method in others else dict(gate=method)


@contextlib.contextmanager
def fake_gpu():
    "A device whose tensors cannot meet those of the CPU; nothing is computed. Labelled positions are counted, hence the `ShapeEnv`"
    with FakeTensorMode(allow_non_fake_inputs=False, shape_env=ShapeEnv(allow_dynamic_output_shape_ops=True)): yield torch.device('meta')


def on(device, method, monkeypatch, **config):
    "A model on `device`, built as the notebook of a GPU user builds it"
    with device, monkeypatch.context() as m:
        m.setattr(torch.Tensor, 'item', lambda self: .5)              # a fake tensor has no values to read,
        m.setattr(torch.utils, 'swap_tensors', lambda *_: None)       # and `.to` cannot exchange it; it has nothing to do here
        base = tiny(use_cache=False)
        return prompted(base, shaken=False, **choose(method), **config)


def step(model, device):
    "Forward, backward and one optimiser step"
    ids = torch.zeros(2, 7, dtype=torch.long, device=device)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    features = torch.zeros(2, FEATURES, device=device) if model.generator.uses_instance else None
    model.train()
    out = model(ids, attention_mask=torch.ones_like(ids), labels=ids, instance_features=features)
    out.loss.backward()
    optimiser.step()
    return out


@methods
def test_training_step(method, monkeypatch):
    with fake_gpu() as device:
        model = on(device, method, monkeypatch)
        assert {p.device.type for p in model.parameters()} == {'meta'}
        assert step(model, device).loss.device.type == 'meta'
        assert any(p.grad is not None for p in model.generator.parameters())


@pytest.mark.parametrize('config', [dict(init='normal'), dict(init='vocab')], ids=str)
def test_first_vectors(config, monkeypatch):
    with fake_gpu() as device: step(on(device, 'sigmoid', monkeypatch, **config), device)


@methods
def test_without_labels_or_mask(method, monkeypatch):
    with fake_gpu() as device:
        model = on(device, method, monkeypatch)
        logits = model(torch.zeros(2, 7, dtype=torch.long, device=device), instance_features=torch.zeros(2, FEATURES, device=device)).logits
        assert logits.device.type == 'meta' and logits.shape[1] == 7 + (2*PROMPT if method == 'concat' else PROMPT)


@pytest.mark.parametrize('where', ['gate', 'features', 'prompt'])
def test_a_planted_mistake_is_found(where, monkeypatch):
    "The tests above fail when one tensor lies on the CPU"
    with fake_gpu() as device:
        model = on(device, 'sigmoid', monkeypatch)
        if where == 'gate': model.generator.gate = lambda prompt, logits: prompt * logits.sigmoid() + torch.zeros(PROMPT, 1)
        if where == 'features': model.generator.heads.u.register_forward_pre_hook(lambda _, args: args[0] + torch.zeros(FEATURES))
        if where == 'prompt': model.generator.prompt = torch.nn.Parameter(torch.zeros(PROMPT, 32, device='cpu'))
        with pytest.raises(RuntimeError, match='[Dd]evice'): step(model, device)


@methods
def test_bfloat16(method):
    "A foundation model in 16 bits: its prompt is generated and trained in 32"
    base = tiny().bfloat16()
    model = prompted(base, **choose(method))
    assert {p.dtype for p in model.generator.parameters()} == {torch.float32}
    batch = example(model, (3, 6))
    out = model.train()(**batch, labels=batch['input_ids'])
    assert out.logits.dtype is torch.bfloat16 and out.loss.dtype is torch.float32 and out.loss.isfinite()
    out.loss.backward()
    grads = [p.grad for p in model.generator.parameters() if p.grad is not None]
    assert grads and all(g.dtype is torch.float32 and g.isfinite().all() for g in grads)
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}
    assert model.eval().generate(**batch, max_new_tokens=3, pad_token_id=0).shape[0] == 2


@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('method', ['lora', 'prefix', 'p-tuning', 'full'])
def test_bfloat16_baselines(method):
    "What PEFT trains is held in 32 bits, and full fine-tuning holds everything in 32 bits and multiplies in 16"
    model = BaselineModel(tiny().bfloat16(), BaselineConfig(method, num_virtual_tokens=3))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    batch = example(model, (3, 6))
    out = model.train()(**batch, labels=batch['input_ids'])
    assert out.logits.dtype is torch.bfloat16
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_bfloat16_encoder_gives_features_in_32_bits(encoder_folder):
    "Whatever the encoder computes in, the heads are fed 32 bits"
    model = prompted(tiny().bfloat16(), encoder_name_or_path=encoder_folder)
    model.encoder.bfloat16()
    ids = torch.tensor([[3, 4, 5]])
    out = model(ids, labels=ids, instance_input_ids=ids, instance_attention_mask=torch.ones_like(ids))
    assert out.loss.isfinite() and model.encoder(ids, torch.ones_like(ids)).dtype is torch.float32


@torch.no_grad()
def test_under_autocast(llama):
    "Weights in 32 bits, computed in 16: close to 32"
    model = prompted(llama)
    batch = example(model)
    exact = model(**batch, labels=batch['input_ids']).loss
    with torch.autocast('cpu', dtype=torch.bfloat16): close = model(**batch, labels=batch['input_ids']).loss
    torch.testing.assert_close(close, exact, atol=.1, rtol=.1)
