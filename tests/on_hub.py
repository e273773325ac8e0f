"In a process of its own, whose hub is the one that HF_ENDPOINT names: what test_hub.py asks for"

import json
import sys
from pathlib import Path

import torch
from helpers import example, prompted, tiny

from lopa import PromptModel
from lopa.hub import adapter_folder


def push(folder, token):
    "Publish an adapter from the folder of a run"
    model = PromptModel.from_pretrained(tiny(), Path(folder) / 'adapter')
    return model.push_to_hub('user/mine', token=token, private=True, message='First')


def load(folder):
    "Load it by its name; are the logits those of the folder's adapter?"
    there = PromptModel.from_pretrained(tiny(), 'user/mine')
    here = PromptModel.from_pretrained(tiny(), Path(folder) / 'adapter')
    batch = example(here)
    with torch.no_grad():
        equal = torch.equal(there(**batch).logits, here(**batch).logits)
    return {'equal': equal, 'files': sorted(p.name for p in adapter_folder('user/mine').iterdir())}


def prompt_of(name, revision=None):
    "Sum of the numbers of a prompt"
    model = PromptModel.from_pretrained(tiny(), name, revision=revision, token='hf_reader')
    return model.generator.prompt.sum().item()


def refused(name, revision=None):
    "The message of what is refused"
    try:
        PromptModel.from_pretrained(tiny(), name, revision=revision)
    except FileNotFoundError as e:
        return str(e)


def refused_push(name, token):
    "The message of what is refused on the way there"
    try:
        prompted(tiny()).push_to_hub(name, token=token)
    except (ValueError, OSError) as e:
        return str(e)


if __name__ == '__main__':
    print(json.dumps([globals()[name](*args) for name, *args in json.loads(sys.argv[1])]))
