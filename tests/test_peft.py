"Where LoPA is prompt tuning, it equals the prompt tuning of PEFT"
import pytest
import torch
from peft import PromptTuningConfig, TaskType, get_peft_model

from helpers import PROMPT, padded, prompted, rows, tiny


def peft_model(kind, vectors):
    "PEFT's prompt tuning in front of the same foundation model, holding these vectors"
    model = get_peft_model(tiny(kind), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=len(vectors)))
    with torch.no_grad(): model.prompt_encoder['default'].embedding.weight.copy_(vectors)
    return model.eval()


@pytest.mark.parametrize('lengths', [(6, 6, 6), (3, 6, 1)], ids=['unpadded', 'right-padded'])
@pytest.mark.parametrize('how', [dict(method='pt'), dict(gate='shared')], ids=['pt', 'shared gate'])
@pytest.mark.parametrize('kind', ['llama', 'gpt2'])
@torch.no_grad()
def test_logits(kind, how, lengths):
    model, (ids, h) = prompted(tiny(kind), **how), rows(lengths)
    batch = padded(ids, 'right')
    ours = model(**batch, instance_features=h).logits
    theirs = peft_model(kind, model.generator.prompt)(**batch).logits
    assert ours.shape == theirs.shape
    for i, n in enumerate(lengths): torch.testing.assert_close(ours[i, :PROMPT+n], theirs[i, :PROMPT+n], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('kind', ['llama', 'gpt2'])
def test_loss_and_gradient(kind):
    "The same loss, and the same gradient for the vectors"
    model, (ids, _) = prompted(tiny(kind), 'pt'), rows((6, 6))
    ids, peft = torch.stack(ids), peft_model(kind, model.generator.prompt)
    ours, theirs = model(ids, labels=ids).loss, peft(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    ours.backward(); theirs.backward()
    torch.testing.assert_close(model.generator.prompt.grad, peft.prompt_encoder['default'].embedding.weight.grad, atol=1e-5, rtol=1e-4)


def test_same_number_of_parameters():
    "And as many numbers to train"
    model = prompted(tiny(), 'pt')
    count = lambda m: sum(p.numel() for p in m.parameters() if p.requires_grad)
    assert count(model) == count(peft_model('llama', model.generator.prompt))
