"""On a real GPU: it computes what the CPU computes, in 16 bits too, and each reads what the other
writes; and at every length each attention kernel computes what the plain one does

Skipped where there is no GPU. LOPA_TEST_DEVICE=cpu runs it all the same, on the CPU and with its
kernels, to find mistakes in this file; LOPA_TEST_LENGTHS=1,54,63 tries these lengths only.
"""

import contextlib
import math
import os
from collections import Counter, defaultdict
from importlib.util import find_spec
from types import SimpleNamespace as NS
from unittest.mock import patch

import pytest
import torch
from helpers import FEATURES, PAIRS, adapted, features, padded, rows, tiny
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lopa.baselines import BASELINES, load_adapted
from lopa.evaluate.predict import predict
from lopa.prompts import METHODS
from lopa.train.guard import StepGuard

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::UserWarning'),
]
DEVICE = os.environ.get('LOPA_TEST_DEVICE', 'cuda')
gpu_only = pytest.mark.skipif(DEVICE != 'cuda', reason='asks the GPU itself')
CASES = [p for p in PAIRS if p[0] in ('llama', 'roberta', 't5')]
each = pytest.mark.parametrize('kind,method', CASES)
ENCODERS = [('self', 'last', False), ('self', 'last', True), ('embeddings', 'attention', False)]
gb = 2**30


@pytest.fixture(autouse=True)
def exact():
    "Products of 32-bit numbers are not rounded to TF32"
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def half():
    return (
        torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    )


def on(device, kind, method, dtype=torch.float32, **config):
    "A model adapted on a device; what is trained holds the numbers that it holds on the CPU"
    model = adapted(tiny(kind).to(device, dtype), method, **config)
    model.take_state(adapted(kind, method, **config).trained_state())
    return model


def labelled(model, kind):
    "A batch with labels, where the model lies"
    ids, h = rows((3, 6))
    text = padded(ids, 'left')
    labels = (
        torch.tensor([[5, 7], [6, 7]])
        if kind == 't5'
        else torch.where(text['attention_mask'] == 1, text['input_ids'], -100)
    )
    more = {f'instance_{k}': v for k, v in text.items()} if model.encoder else features(model, h)
    return {k: v.to(model.device) for k, v in (text | dict(labels=labels) | more).items()}


def learn(model, kind):
    "Loss and gradients of a batch, without dropout, and a step that leaves everything finite"
    loss = model.eval()(**labelled(model, kind)).loss
    loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    grads = {n: p.grad.cpu().clone() for n, p in trained.items() if p.grad is not None}
    torch.optim.AdamW(trained.values(), lr=1e-3).step()
    assert grads and all(
        p.isfinite().all() and p.device.type == model.device.type and p.dtype is torch.float32
        for p in trained.values()
    )
    return loss.item(), grads


@each
def test_a_step_in_32_bits(kind, method):
    "The same loss and the same gradients"
    a, ours = learn(on('cpu', kind, method), kind)
    b, theirs = learn(on(DEVICE, kind, method), kind)
    assert b == pytest.approx(a, abs=1e-3) and ours.keys() == theirs.keys()
    for n in ours:
        torch.testing.assert_close(theirs[n], ours[n], atol=1e-3, rtol=1e-2)


@each
def test_a_step_in_16_bits(kind, method):
    "The same loss up to the rounding of the foundation model"
    model = on(DEVICE, kind, method, half(), shaken=method != 'lora')
    loss, grads = learn(model, kind)
    exact, _ = learn(on('cpu', kind, method, shaken=method != 'lora'), kind)
    assert loss == pytest.approx(exact, abs=0.3) and all(
        g.dtype is torch.float32 and g.isfinite().all() for g in grads.values()
    )
    assert method == 'full' or {
        p.dtype for p in model.base_model.parameters() if not p.requires_grad
    } == {half()}


@pytest.mark.parametrize('name,pooling,tuned', ENCODERS)
@pytest.mark.parametrize('dtype', ['float32', 'half'])
def test_encoders_inside_the_model(name, pooling, tuned, dtype):
    model = on(
        DEVICE,
        'llama',
        'lopa',
        half() if dtype == 'half' else torch.float32,
        encoder_name_or_path=name,
        encoder_pooling=pooling,
        train_encoder=tuned,
    )
    loss, grads = learn(model, 'llama')
    exact, _ = learn(
        on(
            'cpu',
            'llama',
            'lopa',
            encoder_name_or_path=name,
            encoder_pooling=pooling,
            train_encoder=tuned,
        ),
        'llama',
    )
    assert (
        loss == pytest.approx(exact, abs=0.3 if dtype == 'half' else 1e-3)
        and any(n.startswith('encoder.') for n in grads) == model.encoder.trainable
    )


@pytest.mark.parametrize('position', ['after_start', 'suffix'])
def test_positions(position):
    (a, ours), (b, theirs) = (
        learn(on(d, 'llama', 'lopa', position=position), 'llama') for d in ('cpu', DEVICE)
    )
    assert b == pytest.approx(a, abs=1e-3)
    for n in ours:
        torch.testing.assert_close(theirs[n], ours[n], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize('kind,method', [p for p in CASES if p[0] != 'roberta'])
def test_generation(kind, method):
    "In 32 bits, the same tokens"

    def write(model):
        return model.generate(
            **{k: v for k, v in labelled(model, kind).items() if k != 'labels'},
            max_new_tokens=5,
            do_sample=False,
            pad_token_id=0,
        ).cpu()

    assert torch.equal(write(on(DEVICE, kind, method)), write(on('cpu', kind, method)))


class Rows:
    "Four rows, as a tokenized split has them"

    def __init__(self, model, kind):
        ids, self.h = rows((3, 6, 4, 5))
        self.ids = ids
        self.kind = kind
        self.read = model.generator is not None and model.generator.uses_instance

    def __getitem__(self, i):
        return [len(x) for x in self.ids] if i == 'length' else i

    def collate(self, places):
        text = padded([self.ids[i] for i in places], 'left')
        labels = (
            torch.full((len(places), 1), 5)
            if self.kind == 't5'
            else torch.full_like(text['input_ids'], -100)
        )
        labels[:, -1] = 5
        return (
            text
            | dict(labels=labels)
            | ({'instance_features': self.h[places]} if self.read else {})
        )


@each
def test_predictions(kind, method):
    "Rows on the CPU, answers on the CPU, and the model where it lies"
    model = on(DEVICE, kind, method)
    data = Rows(model, kind)
    there, here = (
        predict(m, data, data.collate, [5, 6, 7], 2, progress=False)
        for m in (model, on('cpu', kind, method))
    )
    assert there.shape == (4, 3) and abs(there - here).max() < 1e-3


@each
def test_what_a_gpu_wrote_a_cpu_reads(kind, method, tmp_path):
    "Identical tensors, and from them the same logits"
    model = on(DEVICE, kind, method)
    model.save_pretrained(tmp_path)
    again = load_adapted(tiny(kind), tmp_path)
    assert again.device.type == 'cpu' and all(
        torch.equal(v.cpu(), again.trained_state()[k]) for k, v in model.trained_state().items()
    )
    with torch.no_grad():
        there, here = (m.eval()(**labelled(m, kind)).logits.cpu() for m in (model, again))
    torch.testing.assert_close(there, here, atol=1e-3, rtol=1e-3)
    back = load_adapted(tiny(kind).to(DEVICE), tmp_path)
    with torch.no_grad():
        assert back.device.type == DEVICE and torch.equal(
            back.eval()(**labelled(back, kind)).logits.cpu(), there
        )


@gpu_only
@pytest.mark.parametrize('method', ['lopa', 'lora', 'full'])
def test_gradient_checkpointing_saves_memory(method):
    "Peak of a step behind a model of many layers; the loss stays"

    def step(checkpointing):
        model = adapted(
            tiny(num_hidden_layers=12, width=128, max_position_embeddings=512).to(DEVICE), method
        )
        if checkpointing:
            model.gradient_checkpointing_enable()
        ids = torch.ones(16, 256, dtype=torch.long, device=DEVICE)
        labels = torch.full_like(ids, -100)
        labels[:, -1] = 5
        given = {k: v.to(DEVICE) for k, v in features(model, torch.zeros(16, FEATURES)).items()}
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = model.eval()(ids, labels=labels, **given).loss
        loss.backward()
        return loss.item(), torch.cuda.max_memory_allocated() - before

    a, much = step(False)
    b, little = step(True)
    assert a == pytest.approx(b, rel=1e-5) and little < much / 2, (
        f'{much / gb:.2f} GB, and {little / gb:.2f} GB with checkpointing'
    )


def test_autocast_leaves_the_prompt_alone():
    model = on(DEVICE, 'llama', 'lopa')
    given = {k: v for k, v in labelled(model, 'llama').items() if k != 'labels'}
    exact = model.prompt_embeds(**given)
    with torch.autocast(DEVICE, dtype=half()):
        assert torch.equal(model.prompt_embeds(**given), exact)


@gpu_only
@pytest.mark.skipif(find_spec('bitsandbytes') is None, reason='bitsandbytes is not installed')
@pytest.mark.parametrize('method', ['lopa', 'pt', 'lora'])
@pytest.mark.parametrize('bits', [4, 8])
def test_quantised(bits, method, tmp_path):
    "A foundation model in few bits: a step is finite, it generates, an adapter comes back"
    from lopa.assets import load_foundation_model

    tiny(width=64).save_pretrained(tmp_path / 'base')

    def load():
        return load_foundation_model(tmp_path / 'base', device=DEVICE, dtype=half(), bits=bits)

    model = adapted(load(), method, shaken=False)
    loss, grads = learn(model, 'llama')
    assert loss == loss and all(g.isfinite().all() for g in grads.values())
    given = {k: v for k, v in labelled(model, 'llama').items() if k != 'labels'}
    assert model.generate(**given, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (
        2,
        3,
    )
    model.save_pretrained(tmp_path / 'adapter')
    with torch.no_grad():
        assert torch.equal(
            load_adapted(load(), tmp_path / 'adapter').eval()(**given).logits,
            model.eval()(**given).logits,
        )


# --- every length, method, attention kernel and number format ---

SOME = os.environ.get('LOPA_TEST_LENGTHS')
LENGTHS = [int(n) for n in SOME.split(',')] if SOME else [*range(1, 201)]
BLOCKS = [LENGTHS[i : i + 10] for i in range(0, len(LENGTHS), 10)]
SIZE = dict(width=128, attn_implementation='sdpa')  # two heads, each 64 wide
ONE = SIZE | dict(num_hidden_layers=1, max_position_embeddings=512, initializer_range=0.1)
STILL = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
SMOOTH = dict(
    num_layers=1, dropout_rate=0.0, initializer_factor=0.5, feed_forward_proj='gated-gelu'
)
MODELS = {  # family → architecture and its configuration
    'grouped': ('llama', ONE | dict(num_key_value_heads=1)),  # its heads share keys and values
    'llama': ('llama', ONE | dict(num_key_value_heads=2)),
    'roberta': ('roberta', ONE | STILL),
    't5': ('t5', SIZE | SMOOTH),
}
PLACED = [f'{method} {place}' for place in ('prefix', 'suffix') for method in METHODS]
CASES = {  # family → methods, with the prompt's place
    'grouped': PLACED + BASELINES,
    'llama': PLACED + BASELINES,
    'roberta': ['lopa prefix', 'lora', 'p-tuning', 'full'],
    't5': ['lopa prefix', *BASELINES],
}
RACERS = {  # family → kernels, each against the plain one; masks are passed in the last two
    'grouped': ['cudnn', 'flash'],
    'llama': ['efficient'],
    'roberta': ['default', 'efficient'],
    't5': ['default', 'efficient'],
}
ROUNDING = {'bfloat16': 0.1, 'float16': 0.02, 'float32': 1e-3}  # relative difference allowed
FORMATS = [
    (family, name)
    for family in MODELS
    for name in ROUNDING
    if (family, name) != ('grouped', 'float32')
]  # neither kernel has 32 bits
KERNELS = {
    'math': SDPBackend.MATH,
    'cudnn': SDPBackend.CUDNN_ATTENTION,
    'flash': SDPBackend.FLASH_ATTENTION,
    'efficient': SDPBackend.EFFICIENT_ATTENTION,
}
REFUSED = 'No available kernel', 'No viable backend'  # in torch's words
MASK = 'a mask was passed'


class Attention:
    "Send every attention through one kernel, whatever is allowed around it; `default` lets be"

    def __init__(self, kernel):
        self.kernel = kernel
        self.calls = 0
        self.real = F.scaled_dot_product_attention
        self.patch = patch.object(F, 'scaled_dot_product_attention', self.attend)

    def __enter__(self):
        self.patch.start()
        return self

    def __exit__(self, *_):
        self.patch.stop()

    def attend(self, query, key, value, attn_mask=None, *args, **kwargs):
        self.calls += 1
        if self.kernel == 'cudnn' and attn_mask is not None:
            raise RuntimeError(MASK)
        free = self.kernel == 'default'
        with contextlib.nullcontext() if free else sdpa_kernel(KERNELS[self.kernel]):
            return self.real(query, key, value, attn_mask, *args, **kwargs)


def in_training(family, dtype, case):
    "A model as it is trained, but without dropout: kernels are to be compared"
    kind, config = MODELS[family]
    method, _, place = case.partition(' ')
    more = dict(position=place) if place else dict(alpha=2) if method == 'lora' else {}
    base = tiny(kind, **config).to(DEVICE, dtype)
    model = adapted(base, method, shaken=False, num_virtual_tokens=10, **more).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.manual_seed(0)
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(torch.randn(p.shape).to(p) * 0.05)
    return model


def batch_of(model, family, t):
    "Rows of t, t/2 and 1 tokens as the collator pads them; in a causal model an answer besides"
    causal = model.task_type == 'CAUSAL_LM'
    lengths = [n + causal for n in (t, (t + 1) // 2, 1)]
    ids, h = rows(lengths)
    batch = padded(ids, 'right') | features(model, h)
    labels = torch.full_like(batch['input_ids'], -100)
    for row, n in enumerate(lengths):
        labels[row, n - 1] = ids[row][-1]
    batch['labels'] = torch.tensor([[5, 7], [6, 7], [8, 7]]) if family == 't5' else labels
    return {k: v.to(DEVICE) for k, v in batch.items()}


def gradients(model, batch, kernel):
    "Loss and gradients in a list; None if attention does not go through torch's function"
    model.zero_grad()
    with Attention(kernel) as attention:
        loss = model(**batch).loss
        loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return [loss.detach(), *grads] if attention.calls else None


def deviation(ours, theirs):
    "Largest relative difference of a tensor (a small one: to all together); NaN if ours has one"
    difference = torch.stack(torch._foreach_norm(torch._foreach_sub(ours, theirs)))
    size = torch.stack(torch._foreach_norm(theirs))
    return (difference / (size + 0.05 * size[1:].norm())).max().item()


class Found:
    "What a test has seen of each kernel"

    def __init__(self, family, name):
        self.family = family
        self.name = name
        self.wrong = []
        self.compared = Counter()
        self.worst = Counter()
        self.refused = defaultdict(list)

    def steps(self, model, case, t):
        "One step by the plain kernel, and one by each of the others"
        batch = batch_of(model, self.family, t)
        truth = gradients(model, batch, 'math')
        if truth and not torch.stack(torch._foreach_norm(truth)).isfinite().all():
            self.fault('math', case, t, 'not finite')
        for kernel in RACERS[self.family] if DEVICE != 'cpu' else ['default', 'flash']:
            try:
                self.compare(kernel, case, t, gradients(model, batch, kernel), truth)
            except RuntimeError as e:
                self.refusal(kernel, case, t, str(e))

    def compare(self, kernel, case, t, ours, truth):
        "Are these the plain kernel's, up to rounding?"
        if ours is None:
            return self.refused[kernel, case, 'another way of attention'].append(t)
        off = deviation(ours, truth)
        allowed = ROUNDING[self.name]
        self.compared[kernel] += 1
        if off <= allowed:
            self.worst[kernel] = max(self.worst[kernel], off)
        else:
            self.fault(kernel, case, t, f'differs by {off:.2g}, allowed {allowed}')

    def refusal(self, kernel, case, t, error):
        "A kernel may refuse, and nothing else may go wrong"
        known = next((words for words in REFUSED if words in error), None)
        if known:
            self.refused[kernel, case, known].append(t)
        else:
            self.fault(kernel, case, t, error)

    def fault(self, kernel, case, t, what):
        self.wrong.append(f'{kernel}, {case}, length {t}: {what}')

    def record(self, record_property):
        "For the report of `make test-gpu`"
        name = f'{self.family}, {self.name}'
        record_property(
            'kernels',
            {
                f'{k}, {name}': {'compared': n, 'worst': self.worst[k]}
                for k, n in self.compared.items()
            },
        )
        record_property(
            'left_out',
            [
                {'what': f'{k}, {name}, {case}', 'why': why, 'lengths': at}
                for (k, case, why), at in self.refused.items()
            ],
        )


@pytest.mark.parametrize('lengths', BLOCKS, ids=lambda b: f'{b[0]}-{b[-1]}')
@pytest.mark.parametrize('family,name', FORMATS)
def test_every_length(family, name, lengths, record_property):
    "Training: loss and gradients are finite, and the plain kernel's; what a kernel refuses is told"
    found = Found(family, name)
    for case in CASES[family]:
        model = in_training(family, getattr(torch, name), case)
        for t in lengths:
            found.steps(model, case, t)
    found.record(record_property)
    n = sum(found.compared.values())
    told = f'{len(found.wrong)} faults, {n} compared: ' + '; '.join(found.wrong[:5])
    assert not found.wrong, told
    if not n:
        pytest.skip('; '.join(sorted({f'{k}: {why}' for k, _, why in found.refused})))


# --- cuDNN's fault, and what guards against it ---


def low_scores(t, dtype, width=64):
    "Queries, keys, values `(2, 1, t, width)`; every score is about -120, where exp is 0 in 32 bits"
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 1, t, width, device=DEVICE, dtype=dtype) / 10 for _ in range(3))
    q[..., 0] = 1.0
    k[..., 0] = -120 * math.sqrt(width)
    return [x.requires_grad_() for x in (q, k, v)]


def attended(kernel, t, dtype=torch.bfloat16, masked=True):
    "Gradients of queries, keys and values by one kernel, which gets a causal mask or is told of it"
    given = low_scores(t, dtype)
    mask = torch.ones(t, t, dtype=torch.bool, device=DEVICE).tril()[None, None] if masked else None
    with sdpa_kernel(KERNELS[kernel]):
        out = F.scaled_dot_product_attention(*given, attn_mask=mask, is_causal=not masked)
    out.backward(torch.linspace(-1, 1, 64, device=DEVICE).to(dtype).expand_as(out))
    return [x.grad.float() for x in given]


def refuses(kernel, *args, **kwargs):
    "What it says if it takes no such attention here"
    try:
        attended(kernel, *args, **kwargs)
    except RuntimeError as e:
        if not any(words in str(e) for words in REFUSED):
            raise
        return str(e)


@pytest.mark.parametrize('name', ['bfloat16', 'float16'])
@pytest.mark.parametrize('kernel', ['cudnn', 'flash'])
def test_low_scores_without_a_mask(kernel, name):
    "What the library relies on: no mask, and the same low scores do no harm"
    dtype = getattr(torch, name)
    if why := refuses(kernel, 64, dtype, masked=False):
        pytest.skip(f'{kernel}: {why}')
    for t in (1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193):
        ours, theirs = (attended(k, t, dtype, masked=False) for k in (kernel, 'math'))
        assert all(g.isfinite().all() for g in ours + theirs), f'length {t}'
        assert (ours[2] - theirs[2]).norm() <= ROUNDING[name] * theirs[2].norm(), f'length {t}'


@gpu_only
def test_the_workaround_for_cudnn_is_still_needed():
    "Its backward pass is not finite with a mask, length 64 and low scores (PyTorch issue 196678)"
    version = torch.__version__
    gone = "cuDNN's backward is finite again with torch"
    if not pytest.importorskip('lopa.attention').faulty_cudnn():
        pytest.skip(f'torch {version}: the library applies no workaround')
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip(f'{torch.cuda.get_device_name()}: the fault is one of H100 and H200')
    if why := refuses('cudnn', 64):
        pytest.skip(f'cudnn: {why}')
    assert attended('math', 64)[0].isfinite().all()
    finite = attended('cudnn', 64)[0].isfinite().all()
    assert not finite, f'{gone} {version}: remove the workaround in lopa.attention'


@gpu_only
def test_the_guard_does_not_wait_for_the_gpu():
    "Around an ordinary step and around one that is left out, its hooks synchronise nothing"
    model = in_training('llama', torch.bfloat16, 'lopa prefix')
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    guard = StepGuard(optimiser, [].append, {'dtype': 'bfloat16', 'attention': 'sdpa'}, str)
    batch = batch_of(model, 'llama', 20)
    kept = model.generator.prompt.detach().clone()
    for step, spoilt in enumerate((False, True)):
        loss = model(**batch).loss
        loss.backward()
        if spoilt:
            model.generator.prompt.grad.view(-1)[0] = float('nan')
        torch.cuda.synchronize()
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode('error')  # from here on, waiting raises
        try:
            guard.saw(loss.detach(), (3, 30))
            guard.on_pre_optimizer_step(None, NS(global_step=step), None)
            optimiser.step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
        now = model.generator.prompt.detach().clone()
        assert torch.equal(now, kept) == spoilt
        kept = now
        optimiser.zero_grad()
    with pytest.warns(UserWarning, match='Step 2 was left out'):
        guard.look()
