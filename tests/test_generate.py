"`generate`, against searches that are written out and know no cache"

import pytest
import torch
from helpers import example, prompted, rows

NEW = 5


@torch.no_grad()
def search(model, ids, h, beams):
    "Beam search for one row over `inputs_embeds`, computed anew at every step; 1 is greedy"
    embed = model.base_model.get_input_embeddings()
    start = torch.cat([model.prompt(1, h), embed(ids[None])], 1)  # (1, m + t, d)
    found = [(0.0, [])]
    for _ in range(NEW):
        longer = []
        for score, new in found:
            x = torch.cat([start, embed(torch.tensor([new], dtype=torch.long))], 1)
            logp = model.base_model(inputs_embeds=x, use_cache=False).logits[0, -1].log_softmax(0)
            longer += [(score + p, new + [token]) for token, p in enumerate(logp.tolist())]
        found = sorted(longer, reverse=True)[:beams]
    return found[0][1]


def generate(model, batch, **kwargs):
    return model.generate(
        **batch, **(dict(max_new_tokens=NEW, do_sample=False, pad_token_id=0) | kwargs)
    ).tolist()


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('beams', [1, 3])
def test_equals_a_search_by_hand(base, beams, side):
    "Greedy and beam search in a padded batch find what a plain loop finds for each row"
    model = prompted(base)
    lengths = (2, 7, 4)
    ids, h = rows(lengths)
    expected = [search(model, row, h[i : i + 1], beams) for i, row in enumerate(ids)]
    found = generate(
        model,
        example(model, lengths, side),
        num_beams=beams,
        early_stopping=False,
        length_penalty=1.0,
    )
    assert found == expected


def test_beams_find_something_else(base):
    "Three beams do not simply repeat greedy search, so the test above tells them apart"
    model = prompted(base)
    batch = example(model, (4,) * 8)
    assert generate(model, batch, num_beams=3) != generate(model, batch)


@pytest.mark.parametrize('beams', [1, 3])
@pytest.mark.parametrize('lengths', [(4,), (2, 6, 3)])
def test_cache_changes_nothing(base, beams, lengths):
    model = prompted(base)
    batch = example(model, lengths)
    assert generate(model, batch, num_beams=beams, use_cache=True) == generate(
        model, batch, num_beams=beams, use_cache=False
    )


def test_every_method_generates(model):
    "Each gate, and prompt tuning, gives what a plain loop gives"
    ids, h = rows((5, 5))
    found = generate(model, example(model, (5, 5)))
    assert found == [search(model, row, h[i : i + 1], 1) for i, row in enumerate(ids)]


def test_sampling_repeats_with_its_seed(llama):
    model = prompted(llama)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(generate(model, example(model, (3, 6)), do_sample=True, top_k=0))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize('use_cache', [True, False])
def test_prompt_is_not_ignored(base, use_cache):
    "The same words continue differently for another instance, with and without the cache"
    model = prompted(base)
    with torch.no_grad():
        model.generator.prompt.mul_(5)
    batch = example(model, (4,) * 6)
    other = batch | {'instance_features': -3 * batch['instance_features']}
    assert generate(model, batch, use_cache=use_cache) != generate(
        model, other, use_cache=use_cache
    )


def test_only_new_tokens_come_back(model):
    "As many as were asked for, and neither prompt nor input among them"
    found = model.generate(
        **example(model, (3, 8)),
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        pad_token_id=0,
    )
    assert found.shape == (2, 4)


def test_several_sequences_per_row(llama):
    model = prompted(llama)
    found = generate(model, example(model, (3, 5)), num_beams=3, num_return_sequences=2)
    assert len(found) == 4 and found[0] != found[1]
    assert found[::2] == generate(model, example(model, (3, 5)), num_beams=3)


@torch.no_grad()
def test_prompt_embeds_is_what_the_model_sees(llama):
    "A server that is sent the embeddings gives the logits that we compute"
    model = prompted(llama)
    batch = example(model, (5, 5))
    x = model.prompt_embeds(**batch)
    torch.testing.assert_close(
        llama(inputs_embeds=x).logits, model(**batch).logits, atol=1e-5, rtol=1e-4
    )
