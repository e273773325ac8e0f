"To a hub and back: a fake one on loopback, asked by huggingface_hub's own client"

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fake_hub import Hub
from helpers import one_sentence, prompted, tiny

from lopa import PromptModel
from lopa.adapter import CONFIG_FILE, WEIGHTS_FILE
from lopa.baselines import BaselineConfig, BaselineModel
from lopa.hub import UNKNOWN, adapter_folder, found_result, model_card

root = Path(__file__).resolve().parents[1]
SCORE = {'accuracy': 0.75, 'low': 0.65, 'high': 0.85, 'n': 80}


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture
def run(tmp_path):
    "The folder of a run: an adapter, and its record"
    model = prompted(tiny())
    model.save_pretrained(tmp_path / 'run' / 'adapter')
    result = {'task': 'my task', 'config': model.about()['config'], 'test': SCORE, 'seed': 3}
    result |= {'data': {'train': 1200, 'test': 80}, 'source': 'a file', 'trainable_parameters': 9}
    (tmp_path / 'run' / 'result.json').write_text(json.dumps(result))
    return tmp_path / 'run'


def ask(hub, tmp_path, *what, online=True):
    "Run functions of on_hub.py against this hub; what they return"
    known = {'HF_ENDPOINT': hub.address, 'HF_HOME': str(tmp_path / 'home'), 'HF_HUB_OFFLINE': '0'}
    known |= {'HF_HUB_DISABLE_XET': '1', 'HF_HUB_DISABLE_TELEMETRY': '1', 'HF_TOKEN': ''}
    known |= {'PYTHONPATH': f'{root}{os.pathsep}{root / "tests"}', 'OMP_NUM_THREADS': '1'}
    known |= {} if online else {'HF_HUB_OFFLINE': '1'}
    command = [sys.executable, str(root / 'tests' / 'on_hub.py'), json.dumps(what)]
    env = {k: v for k, v in os.environ.items() if 'proxy' not in k.lower()} | known
    ran = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_there_and_back(hub, run, tmp_path):
    "Published with a card that says what the record says; loaded by its name, equal"
    hub.commit('user/mine', {'pytorch_model.bin': b'a pickle', 'evil.py': b'import os'})
    url, found = ask(hub, tmp_path, ('push', str(run), 'hf_writer'), ('load', str(run)))
    files = hub.repos['user/mine']['main']
    assert url.startswith(hub.address) and 'Bearer hf_writer' in hub.tokens
    assert {'README.md', CONFIG_FILE, WEIGHTS_FILE} < set(files)
    assert files[CONFIG_FILE] == (run / 'adapter' / CONFIG_FILE).read_bytes()
    card = files['README.md'].decode()
    for said in 'my task', '75.0 % [65.0, 85.0] (95 % interval, 80 rows)', '1,200 train', 'a file':
        assert said in card
    assert UNKNOWN not in card and "folder = 'user/mine'" in card
    assert found == {'equal': True, 'files': sorted([CONFIG_FILE, WEIGHTS_FILE])}
    fetched = {r.rpartition('/')[2] for r in hub.asked if '/resolve/' in r}
    assert fetched == {CONFIG_FILE, WEIGHTS_FILE}


def test_revision_and_token(hub, tmp_path):
    "A commit before the newest can be named, and the token is passed on"
    prompts = {}
    for seed in 0, 1:
        model = prompted(tiny(), seed=seed)
        model.save_pretrained(tmp_path / str(seed))
        files = {p.name: p.read_bytes() for p in (tmp_path / str(seed)).iterdir()}
        prompts[hub.commit('user/two', files)] = model.generator.prompt.sum().item()
    (first, old), (_, new) = prompts.items()
    assert old != new
    two = 'prompt_of', 'user/two'
    assert ask(hub, tmp_path, two, (*two, first)) == [new, old]
    assert 'Bearer hf_reader' in hub.tokens


def test_a_folder_that_exists_wins(hub, tmp_path):
    model = prompted(tiny(), seed=4)
    model.save_pretrained(tmp_path / 'user' / 'mine')
    found = ask(hub, tmp_path, ('prompt_of', 'user/mine'))
    assert found == [model.generator.prompt.sum().item()]
    assert not any('user/mine' in request for request in hub.asked)


def test_what_is_not_there_is_refused_in_one_sentence(hub, tmp_path):
    hub.commit('user/empty', {'README.md': b'# Nothing'})
    wrong = [
        ('user/none',),
        ('user/empty',),
        ('user/empty', 'no-such-branch'),
        ('user/-bad..name',),
    ]
    found = ask(hub, tmp_path, *[('refused', *names) for names in wrong])
    for message, names in zip(found, wrong, strict=True):
        one_sentence(message, *([CONFIG_FILE] if names == ('user/empty',) else names))
    (message,) = ask(hub, tmp_path, ('refused', 'user/other'), online=False)
    one_sentence(message, 'user/other')


def test_what_the_hub_does_not_take_is_one_sentence(hub, tmp_path):
    wrong = [('refused_push', 'a b/c', 'hf_x'), ('refused_push', 'user/mine', False)]
    name, token = ask(hub, tmp_path, *wrong)
    one_sentence(name, 'a b/c', 'user/name')
    one_sentence(token, 'user/mine', 'token')


def test_a_record_of_another_adapter_is_left_alone(run):
    "Trained on since, or of another configuration: its score is not this one's"
    model = PromptModel.from_pretrained(tiny(), run / 'adapter')
    assert '75.0 %' in model.model_card('user/mine')
    model.generator.prompt.data.add_(1)
    assert '75.0 %' not in model.model_card('user/mine')
    assert UNKNOWN in model.model_card('user/mine')
    about, state = prompted(tiny(), rank=3).about(), prompted(tiny(), rank=3).trained_state()
    assert found_result(run / 'adapter', about, state) is None


def test_a_card_is_read_as_one():
    "Metadata at its head; a value cannot leave its cell"
    about = prompted(tiny()).about() | {'base_model_name_or_path': 'someone/their-model'}
    card = model_card(about, 'user/mine', {'task': 'a | b\n# c', 'test': SCORE})
    head = yaml.safe_load(card.split('---')[1])
    assert head['base_model'] == 'someone/their-model' and head['library_name'] == 'lopa'
    assert 'a \\| b # c |' in card and '\n# c' not in card
    assert 'base_model' not in yaml.safe_load(
        model_card(prompted(tiny()).about(), 'user/mine').split('---')[1]
    )


def test_a_card_beside_the_files(tmp_path):
    model = prompted(tiny())
    model.save_pretrained(tmp_path, card=model.model_card('user/mine', {'test': SCORE}))
    assert '75.0 %' in (tmp_path / 'README.md').read_text()
    PromptModel.from_pretrained(tiny(), tmp_path)


def test_the_card_of_a_baseline_names_its_class():
    card = BaselineModel(tiny(), BaselineConfig('lora', rank=2)).model_card('user/lora')
    assert (
        'from lopa.baselines import BaselineModel' in card and "adapter_folder('user/lora')" in card
    )


def test_a_path_is_no_name(tmp_path):
    assert adapter_folder(tmp_path / 'nowhere') == tmp_path / 'nowhere'
    assert adapter_folder('a/b/c') == Path('a/b/c')
