"A GPU that no machine has: its tensors cannot meet those of the CPU, and nothing is computed"

import contextlib

import numpy as np
import pytest
import torch
from helpers import adapted, tiny
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import BertConfig, BertModel

LAYERS = dict(gpt2='n_layer', bloom='n_layer', t5='num_layers')
UNREAD = {  # read from values, which a fake tensor does not have: all count, each is one half
    'item': lambda self: 0.5,
    '__int__': lambda self: 3,
    'tolist': lambda self: list(range(len(self))),
    'unique': lambda self: [5],
    'nonzero': lambda self: torch.arange(len(self), device=self.device)[:, None],
    'numpy': lambda self: np.zeros(tuple(self.shape)),
}
with torch.device('cpu'):
    torch.empty(0)  # torch lists its constructors at this moment, for good: it must not list ours


class Fake(FakeTensorMode):
    def __deepcopy__(self, memo):
        return self  # a copied model lies on the same device


def move(module, fn, recurse=True):
    "`Module._apply`, which `.to` and `.float` use: fake parameters refuse a change in place"
    for child in module.children():
        child._apply(fn)
    with torch.no_grad():
        new = {k: (p, fn(p)) for k, p in module._parameters.items() if p is not None}
    module._parameters.update(
        {k: p if q is p else torch.nn.Parameter(q, p.requires_grad) for k, (p, q) in new.items()}
    )
    module._buffers.update({k: fn(b) for k, b in module._buffers.items() if b is not None})
    return module


def small_encoder(name, device=None):
    "In the place of `load_encoder`"
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    return BertModel(BertConfig(vocab_size=100, **sizes)).to(device)


@contextlib.contextmanager
def fake_gpu():
    "Within this context, the device 'meta' is one more device beside the CPU"
    real = torch.tensor
    look_up = torch.nn.functional.embedding

    def embedding(ids, weight, *args, **kwargs):
        "`F.embedding`, which checks no devices when tensors are fake"
        if ids.device != weight.device:
            raise RuntimeError(f'ids on device {ids.device}, their embeddings on {weight.device}')
        return look_up(ids, weight, *args, **kwargs)

    def tensor(*args, **kwargs):
        "`torch.tensor`, which makes real tensors on 'meta'"
        made = real(*args, **kwargs)
        return made if isinstance(made, FakeTensor) else mode.from_tensor(made)

    def getitem(self, key):
        "Indexing, with lists made into tensors where the indexed tensor lies"
        if isinstance(key, tuple):
            key = tuple(tensor(k, device=self.device) if isinstance(k, list) else k for k in key)
        return torch.Tensor.__getitem__(self, key)

    with Fake(allow_non_fake_inputs=False) as mode, pytest.MonkeyPatch.context() as m:
        for name, f in UNREAD.items():
            m.setattr(FakeTensor, name, f, raising=False)
        m.setattr(FakeTensor, '__getitem__', getitem)
        m.setattr(torch.nn.Module, '_apply', move)
        m.setattr(torch, 'tensor', tensor)
        m.setattr(torch.nn.functional, 'embedding', embedding)
        m.setattr('lopa.encoders.load_encoder', small_encoder)
        yield torch.device('meta')


def on(device, kind='llama', method='lopa', size=None, **config):
    "A model of one layer on `device`; whatever adapts it has to find the device by itself"
    one_layer = {LAYERS.get(kind, 'num_hidden_layers'): 1}
    with device:
        base = tiny(kind, **one_layer | (size or {}))
    return adapted(base, method, shaken=False, **config)


def batch(model, device):
    "Two rows for `model`, all of them labelled"
    ids = torch.zeros(2, 7, dtype=torch.long, device=device)
    text = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
    if model.encoder:
        return text | dict(labels=ids) | {f'instance_{k}': v for k, v in text.items()}
    rows = text | dict(labels=ids)
    if model.generator is not None and model.generator.uses_instance:
        width = model.adapter_config.feature_width
        rows['instance_features'] = torch.zeros(2, width, device=device)
    return rows


def step(model, batch):
    "Forward, backward and one optimiser step, all of it where the model lies"
    trained = [p for p in model.parameters() if p.requires_grad]
    where = model.device
    optimiser = torch.optim.AdamW(trained, lr=1e-3)
    out = model.train()(**batch)
    out.loss.backward()
    optimiser.step()
    assert {t.device for t in [*model.parameters(), *model.buffers(), out.loss, out.logits]} == {
        where
    }
    assert (grads := [p.grad for p in trained if p.grad is not None]) and {
        g.device for g in grads
    } == {where}
    return out


def ask_only(model, monkeypatch):
    "Instead of generating, look where everything lies that generation is given"
    asked = []

    def generate(**given):
        tensors = {k: v for k, v in given.items() if isinstance(v, torch.Tensor)}
        assert {'attention_mask'} < tensors.keys()
        for k, v in tensors.items():
            assert v.device == model.device, f'generate is given {k} on device {v.device}'
        rows, start = (
            tensors['attention_mask'].shape
            if 'input_ids' in given and model.task_type == 'CAUSAL_LM'
            else (len(tensors['attention_mask']), 1)
        )
        asked.append(tensors)
        return torch.zeros(rows, start + 2, dtype=torch.long, device=model.device)

    monkeypatch.setattr(model.base_model, 'generate', generate)
    return asked
