"On a real GPU: it computes what the CPU computes, in 16 bits too, and what one writes the other reads (skipped where there is none)"
from importlib.util import find_spec

import pytest
import torch

from helpers import FEATURES, PAIRS, adapted, features, padded, rows, tiny
from lopa.baselines import load_adapted
from lopa.predict import predict

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::UserWarning')]
DEVICE = 'cuda'
CASES = [p for p in PAIRS if p[0] in ('llama', 'roberta', 't5')]
each = pytest.mark.parametrize('kind,method', CASES)
ENCODERS = [('self', 'last', False), ('self', 'last', True), ('embeddings', 'attention', False)]
gb = 2**30


@pytest.fixture(autouse=True)
def exact():
    "Products of 32-bit numbers are not rounded to TF32"
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def half(): return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def on(device, kind, method, dtype=torch.float32, **config):
    "A model adapted on a device; what is trained holds the numbers that it holds on the CPU"
    model = adapted(tiny(kind).to(device, dtype), method, **config)
    model.take_state(adapted(kind, method, **config).trained_state())
    return model


def labelled(model, kind):
    "A batch with labels, where the model lies"
    ids, h = rows((3, 6))
    text = padded(ids, 'left')
    labels = torch.tensor([[5, 7], [6, 7]]) if kind == 't5' else torch.where(text['attention_mask'] == 1, text['input_ids'], -100)
    more = {f'instance_{k}': v for k, v in text.items()} if model.encoder else features(model, h)
    return {k: v.to(model.device) for k, v in (text | dict(labels=labels) | more).items()}


def learn(model, kind):
    "Loss and gradients of a batch, without dropout, and a step that leaves everything finite"
    loss = model.eval()(**labelled(model, kind)).loss
    loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    grads = {n: p.grad.cpu().clone() for n, p in trained.items() if p.grad is not None}
    torch.optim.AdamW(trained.values(), lr=1e-3).step()
    assert grads and all(p.isfinite().all() and p.device.type == model.device.type and p.dtype is torch.float32 for p in trained.values())
    return loss.item(), grads


@each
def test_a_step_in_32_bits(kind, method):
    "The same loss and the same gradients"
    (a, ours), (b, theirs) = learn(on('cpu', kind, method), kind), learn(on(DEVICE, kind, method), kind)
    assert b == pytest.approx(a, abs=1e-3) and ours.keys() == theirs.keys()
    for n in ours: torch.testing.assert_close(theirs[n], ours[n], atol=1e-3, rtol=1e-2)


@each
def test_a_step_in_16_bits(kind, method):
    "The same loss up to the rounding of the foundation model"
    model = on(DEVICE, kind, method, half(), shaken=method != 'lora')
    loss, grads = learn(model, kind)
    exact, _ = learn(on('cpu', kind, method, shaken=method != 'lora'), kind)
    assert loss == pytest.approx(exact, abs=.3) and all(g.dtype is torch.float32 and g.isfinite().all() for g in grads.values())
    assert method == 'full' or {p.dtype for p in model.base_model.parameters() if not p.requires_grad} == {half()}


@pytest.mark.parametrize('name,pooling,tuned', ENCODERS)
@pytest.mark.parametrize('dtype', ['float32', 'half'])
def test_encoders_inside_the_model(name, pooling, tuned, dtype):
    model = on(DEVICE, 'llama', 'lopa', half() if dtype == 'half' else torch.float32, encoder_name_or_path=name, encoder_pooling=pooling, train_encoder=tuned)
    loss, grads = learn(model, 'llama')
    exact, _ = learn(on('cpu', 'llama', 'lopa', encoder_name_or_path=name, encoder_pooling=pooling, train_encoder=tuned), 'llama')
    assert loss == pytest.approx(exact, abs=.3 if dtype == 'half' else 1e-3) and any(n.startswith('encoder.') for n in grads) == model.encoder.trainable


@pytest.mark.parametrize('position', ['after_start', 'suffix'])
def test_positions(position):
    (a, ours), (b, theirs) = (learn(on(d, 'llama', 'lopa', position=position), 'llama') for d in ('cpu', DEVICE))
    assert b == pytest.approx(a, abs=1e-3)
    for n in ours: torch.testing.assert_close(theirs[n], ours[n], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize('kind,method', [p for p in CASES if p[0] != 'roberta'])
def test_generation(kind, method):
    "In 32 bits, the same tokens"
    def write(model): return model.generate(**{k: v for k, v in labelled(model, kind).items() if k != 'labels'}, max_new_tokens=5, do_sample=False, pad_token_id=0).cpu()
    assert torch.equal(write(on(DEVICE, kind, method)), write(on('cpu', kind, method)))


class Rows:
    "Four rows, as a tokenized split has them"
    def __init__(self, model, kind):
        ids, self.h = rows((3, 6, 4, 5))
        self.ids, self.kind, self.read = ids, kind, model.generator is not None and model.generator.uses_instance
    def __getitem__(self, i): return [len(x) for x in self.ids] if i == 'length' else i
    def collate(self, places):
        text = padded([self.ids[i] for i in places], 'left')
        labels = torch.full((len(places), 1), 5) if self.kind == 't5' else torch.full_like(text['input_ids'], -100)
        labels[:, -1] = 5
        return text | dict(labels=labels) | ({'instance_features': self.h[places]} if self.read else {})


@each
def test_predictions(kind, method):
    "Rows on the CPU, answers on the CPU, and the model where it lies"
    model = on(DEVICE, kind, method)
    data = Rows(model, kind)
    there, here = (predict(m, data, data.collate, [5, 6, 7], 2, progress=False) for m in (model, on('cpu', kind, method)))
    assert there.shape == (4, 3) and abs(there - here).max() < 1e-3


@each
def test_what_a_gpu_wrote_a_cpu_reads(kind, method, tmp_path):
    "Identical tensors, and from them the same logits"
    model = on(DEVICE, kind, method)
    model.save_pretrained(tmp_path)
    again = load_adapted(tiny(kind), tmp_path)
    assert again.device.type == 'cpu' and all(torch.equal(v.cpu(), again.trained_state()[k]) for k, v in model.trained_state().items())
    with torch.no_grad(): there, here = (m.eval()(**labelled(m, kind)).logits.cpu() for m in (model, again))
    torch.testing.assert_close(there, here, atol=1e-3, rtol=1e-3)
    back = load_adapted(tiny(kind).to(DEVICE), tmp_path)
    with torch.no_grad(): assert back.device.type == DEVICE and torch.equal(back.eval()(**labelled(back, kind)).logits.cpu(), there)


@pytest.mark.parametrize('method', ['lopa', 'lora', 'full'])
def test_gradient_checkpointing_saves_memory(method):
    "Peak of a step behind a model of many layers; the loss stays"
    def step(checkpointing):
        model = adapted(tiny(num_hidden_layers=12, width=128, max_position_embeddings=512).to(DEVICE), method)
        if checkpointing: model.gradient_checkpointing_enable()
        ids = torch.ones(16, 256, dtype=torch.long, device=DEVICE)
        labels = torch.full_like(ids, -100); labels[:, -1] = 5
        given = {k: v.to(DEVICE) for k, v in features(model, torch.zeros(16, FEATURES)).items()}
        torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = model.eval()(ids, labels=labels, **given).loss
        loss.backward()
        return loss.item(), torch.cuda.max_memory_allocated() - before
    (a, much), (b, little) = step(False), step(True)
    assert a == pytest.approx(b, rel=1e-5) and little < much/2, f'{much/gb:.2f} GB, and {little/gb:.2f} GB with checkpointing'


def test_autocast_leaves_the_prompt_alone():
    model = on(DEVICE, 'llama', 'lopa')
    given = {k: v for k, v in labelled(model, 'llama').items() if k != 'labels'}
    exact = model.prompt_embeds(**given)
    with torch.autocast(DEVICE, dtype=half()): assert torch.equal(model.prompt_embeds(**given), exact)


@pytest.mark.skipif(find_spec('bitsandbytes') is None, reason='bitsandbytes is not installed')
@pytest.mark.parametrize('method', ['lopa', 'pt', 'lora'])
@pytest.mark.parametrize('bits', [4, 8])
def test_quantised(bits, method, tmp_path):
    "A foundation model in few bits: a step is finite, it generates, and an adapter comes back as it was saved"
    from lopa.assets import load_foundation_model
    tiny(width=64).save_pretrained(tmp_path/'base')
    def load(): return load_foundation_model(tmp_path/'base', device=DEVICE, dtype=half(), bits=bits)
    model = adapted(load(), method, shaken=False)
    loss, grads = learn(model, 'llama')
    assert loss == loss and all(g.isfinite().all() for g in grads.values())
    given = {k: v for k, v in labelled(model, 'llama').items() if k != 'labels'}
    assert model.generate(**given, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (2, 3)
    model.save_pretrained(tmp_path/'adapter')
    with torch.no_grad(): assert torch.equal(load_adapted(load(), tmp_path/'adapter').eval()(**given).logits, model.eval()(**given).logits)
