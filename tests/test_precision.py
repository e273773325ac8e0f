"Number formats: a foundation model in 16 bits, what is trained in 32, never the other way"

import pytest
import torch
from helpers import PAIRS, VOCAB, adapted, example, features, padded, prompted, rows, tiny

from lopa.encoders import POOLINGS, make_encoder
from lopa.gating import GATES
from lopa.prompts import METHODS

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::UserWarning')
HALF = [torch.bfloat16, torch.float16]
formats = pytest.mark.parametrize('dtype', HALF, ids=['bfloat16', 'float16'])
methods = pytest.mark.parametrize('method', METHODS)
NAMES = [
    ('self', 'last', True),
    ('self', 'attention', False),
    ('embeddings', 'attention', False),
    ('self', 'mean', False),
]


def trained(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def labelled(model, lengths=(3, 6)):
    "A batch with labels"
    ids, h = rows(lengths)
    batch = padded(ids, 'left')
    if model.encoder:
        batch |= {f'instance_{k}': v for k, v in batch.items()}
    elif model.generator is not None:
        batch |= features(model, h)
    return batch | dict(labels=torch.where(batch['attention_mask'] == 1, batch['input_ids'], -100))


def gradients(model, batch, scale):
    "Output, and gradients of the loss scaled up on their way through the model"
    model.zero_grad()
    torch.manual_seed(0)
    out = model.train()(**batch)
    (out.loss * scale).backward()
    return out, {n: p.grad.div_(scale) for n, p in trained(model).items() if p.grad is not None}


def check_step(model, dtype):
    "Logits in the model's format; the loss, what is trained, its gradients: 32 bits, finite"
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    assert trained(model) and all(p.dtype is torch.float32 for p in trained(model).values())
    for scale in (
        (2.0**16, 2.0**12, 2.0**8) if dtype is torch.float16 else (1.0,)
    ):  # float16's loss is scaled, by less if that is too much
        out, grads = gradients(model, labelled(model), scale)
        assert out.logits.dtype is dtype and out.loss.dtype is torch.float32 and out.loss.isfinite()
        if all(g.isfinite().all() for g in grads.values()):
            break
    assert (
        grads
        and all(g.dtype is torch.float32 and g.isfinite().all() for g in grads.values())
        and any(g.any() for g in grads.values())
    )
    torch.optim.AdamW(trained(model).values(), lr=1e-3).step()
    assert all(p.isfinite().all() for p in trained(model).values())
    assert all(
        torch.equal(p, frozen[n]) and p.dtype is frozen[n].dtype
        for n, p in model.named_parameters()
        if n in frozen
    )


@pytest.mark.parametrize(
    'kind,method,dtype',
    [
        (*p, dtype)
        for p in PAIRS
        for dtype in HALF
        if dtype is torch.bfloat16 or p[0] in ('llama', 'bloom', 'roberta', 't5')
    ],
)
def test_every_method_and_architecture(kind, method, dtype):
    model = adapted(
        tiny(kind).to(dtype), method, shaken=method != 'lora'
    )  # a random change that large is beyond Bloom and T5 in float16
    held = {p.dtype for n, p in model.base_model.named_parameters() if not p.requires_grad}
    assert held == (set() if method == 'full' else {dtype})
    check_step(model, dtype)


@formats
@pytest.mark.parametrize(
    'config',
    [*(dict(gate=g) for g in GATES), dict(position='suffix'), dict(position='after_start')],
    ids=str,
)
def test_gates_and_positions(config, dtype):
    check_step(prompted(tiny().to(dtype), **config), dtype)


@formats
@pytest.mark.parametrize('kind,method', [p for p in PAIRS if p[0] in ('llama', 't5')])
def test_generation(kind, method, dtype):
    "No two formats meet on the way to a text"
    model = adapted(tiny(kind).to(dtype), method)
    given = {k: v for k, v in labelled(model).items() if k != 'labels'}
    assert model.generate(**given, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (
        2,
        3,
    )


# --- encoders ---


@formats
@pytest.mark.parametrize('name,pooling,tuned', NAMES)
@pytest.mark.parametrize('kind', ['llama', 'roberta', 't5'])
def test_encoders_inside_the_model(kind, name, pooling, tuned, dtype):
    "A tuned encoder is held in 32 bits and multiplies in 16; its features always have 32"
    model = prompted(
        tiny(kind).to(dtype),
        encoder_name_or_path=name,
        encoder_pooling=pooling,
        train_encoder=tuned,
    )
    assert model.encoder.narrow == (dtype if tuned else None)
    products = set()
    for m in model.encoder.model.modules():
        if isinstance(m, torch.nn.Linear):
            m.register_forward_hook(lambda module, args, out: products.add(out.dtype))
    given = labelled(model)
    h = model.encoder(given['instance_input_ids'], given['instance_attention_mask'])
    assert h.dtype is torch.float32 and products == ({dtype} if name == 'self' else set())
    check_step(model, dtype)


@formats
@pytest.mark.parametrize('tuned', [True, False])
def test_a_named_encoder(encoder_folder, tuned, dtype):
    model = prompted(
        tiny(vocab_size=50).to(dtype), encoder_name_or_path=encoder_folder, train_encoder=tuned
    )
    assert {p.dtype for p in model.encoder.parameters()} == {
        torch.float32
    } and model.encoder.narrow == (dtype if tuned else None)
    ids = torch.tensor([[3, 4, 5]])
    model.train()(
        ids, labels=ids, instance_input_ids=ids, instance_attention_mask=torch.ones_like(ids)
    ).loss.backward()
    assert all(
        p.grad.isfinite().all() and p.grad.dtype is torch.float32
        for p in trained(model).values()
        if p.grad is not None
    )


@pytest.mark.parametrize('pooling', [p for p in POOLINGS if p != 'pooler'])
@torch.no_grad()
def test_pooling_adds_in_32_bits(pooling):
    "Hidden vectors are rounded to 16 bits, their average is not; float16 does not run over"
    base = tiny().half()
    base.get_input_embeddings().weight.fill_(250.0).add_(torch.arange(VOCAB)[:, None])
    ids = torch.arange(600)[None] % VOCAB
    h = make_encoder('embeddings', base, pooling)(ids, torch.ones_like(ids))
    exact = make_encoder('embeddings', base.float(), pooling)(ids, torch.ones_like(ids))
    assert h.isfinite().all() and torch.equal(h, exact)


# --- mixed precision around the whole model ---


@pytest.mark.parametrize('method,pooling', [*((m, None) for m in METHODS), ('lopa', 'attention')])
def test_the_prompt_is_not_narrowed(method, pooling):
    "Under autocast, generators, learned pooling and DePT's change compute what they did without"
    encoder = dict(encoder_name_or_path='embeddings', encoder_pooling=pooling) if pooling else {}
    model = prompted(tiny(), method, **encoder)
    if pooling:
        torch.nn.init.normal_(model.encoder.pool.query, std=3.0)
    given = {k: v for k, v in labelled(model).items() if k != 'labels'}
    for f in (
        model.prompt_embeds,
        lambda **g: model.prompt(2, **{k: v for k, v in g.items() if k.startswith('instance')}),
    ):
        exact = f(**given)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert torch.equal(f(**given), exact) and exact.dtype is torch.float32


@torch.no_grad()
def test_autocast_does_narrow(llama):
    "The test above would find a difference: the foundation model's own products are 16 bits wide"
    model = prompted(llama)
    batch = example(model)
    exact = model(**batch, labels=batch['input_ids'])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        close = model(**batch, labels=batch['input_ids'])
    assert close.logits.dtype is torch.bfloat16 and exact.logits.dtype is torch.float32
    torch.testing.assert_close(close.loss, exact.loss, atol=0.1, rtol=0.1)


@methods
def test_a_step_under_autocast(method):
    "As the Trainer does it with `bf16=True`: what is trained and its gradients keep 32 bits"
    model = prompted(tiny(), method)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = model.train()(**labelled(model)).loss
    loss.backward()
    assert loss.dtype is torch.float32 and all(
        p.grad.dtype is torch.float32 and p.grad.isfinite().all()
        for p in trained(model).values()
        if p.grad is not None
    )
