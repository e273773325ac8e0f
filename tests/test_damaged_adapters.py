"A damaged adapter is refused in one sentence, or answers as it did: never otherwise, in silence"

import contextlib
import json
import os
import resource
import shutil
import signal
import warnings
from pathlib import Path

import psutil
import pytest
import torch
from damage import SEEDS, damage_folder, other_json
from helpers import adapted, example, one_sentence, prompted, rows, tiny
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save, save_file

from lopa import PromptConfig, PromptModel
from lopa.adapter import CONFIG_FILE, TRAINER_FILE, WEIGHTS_FILE, fingerprint, seal
from lopa.baselines import BASELINES, BaselineConfig, adapt_model, load_adapted
from lopa.peft import LopaConfig
from lopa.prompts import METHODS

pytestmark = pytest.mark.filterwarnings('ignore')
ENCODERS = {'tuned encoder': True, 'frozen encoder': False}
FORMS = [*METHODS, *BASELINES, *ENCODERS, 'checkpoint', 'PEFT']
GIB = 2**30
SHARE = SEEDS if 'LOPA_FUZZ' in os.environ else range(4)


@contextlib.contextmanager
def little_memory(most=GIB):
    "Whatever is loaded, it must not take more than one GiB"
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def made(form, encoder_folder):
    "An adapted model of this form"
    if form == 'PEFT':
        config = LopaConfig('lopa', num_virtual_tokens=3, rank=2, head_width=8, feature_width=16)
        return get_peft_model(tiny(), config).eval()
    if form in ENCODERS:
        return prompted(tiny(), encoder_name_or_path=encoder_folder, train_encoder=ENCODERS[form])
    return adapted('llama', 'lopa' if form == 'checkpoint' else form)


def batch_for(model, form):
    if form in ENCODERS:
        ids = torch.stack(rows((5, 5))[0]) % 50
        mask = torch.ones_like(ids)
        return {'input_ids': ids, 'instance_input_ids': ids, 'instance_attention_mask': mask}
    if form == 'PEFT':
        ids, h = rows((5, 5))
        return {'input_ids': torch.stack(ids), 'instance_features': h}
    return example(model)


def load(form, folder):
    if form == 'PEFT':
        return PeftModel.from_pretrained(tiny(), folder)
    return load_adapted(tiny(), folder)


@pytest.fixture(scope='module')
def saved(tmp_path_factory, encoder_folder):
    "For each form: (folder with an adapter, a batch, its logits)"
    found = {}
    for form in FORMS:
        model, folder = made(form, encoder_folder), tmp_path_factory.mktemp('saved') / 'adapter'
        if form == 'checkpoint':
            folder.mkdir()
            save_file(model.state_dict(), folder / TRAINER_FILE)
        else:
            model.save_pretrained(folder)
        batch = batch_for(model, form)
        with torch.no_grad():
            found[form] = folder, batch, model(**batch).logits
    return found


def outcome(form, folder, batch, wanted):
    "`same`, or `refused`; anything else fails"
    try:
        with little_memory(), torch.no_grad():
            if form == 'PEFT':  # `PeftModel` would read first which method it is, in its own words
                LopaConfig.from_pretrained(folder)
            found = load(form, folder)(**batch).logits
    except (ValueError, OSError) as e:
        one_sentence(e)
        return 'refused'
    assert torch.equal(found, wanted), 'it loaded, and answers otherwise'
    return 'same'


@pytest.mark.parametrize('form', FORMS)
def test_any_damage(form, saved, tmp_path):
    "Bytes, values in the configuration and the header, files that are none"
    source, batch, wanted = saved[form]
    assert outcome(form, source, batch, wanted) == 'same'
    for seed in SHARE:
        folder = Path(shutil.copytree(source, tmp_path / str(seed)))
        done = damage_folder(folder, f'{form} {seed}')
        try:
            outcome(form, folder, batch, wanted)
        except BaseException as e:
            e.add_note(f'{form}: {done}')
            raise
        shutil.rmtree(folder)


@pytest.mark.parametrize('form', ['lopa', 'pt', 'lora', 'prefix', 'full', 'PEFT'])
def test_no_flipped_bit_is_loaded(form, saved, tmp_path):
    "Bits of the numbers, all over the file (before: 200 of 200 were loaded)"
    source, batch, wanted = saved[form]
    folder = Path(shutil.copytree(source, tmp_path / 'adapter'))
    data = (folder / WEIGHTS_FILE).read_bytes()
    start = 8 + int.from_bytes(data[:8], 'little')
    for seed in SHARE:
        at = start + (7919 * seed + 13) % (len(data) - start)
        flipped = data[:at] + bytes([data[at] ^ 1 << seed % 8]) + data[at + 1 :]
        (folder / WEIGHTS_FILE).write_bytes(flipped)
        with pytest.raises(ValueError) as e:
            load(form, folder)
        one_sentence(e.value, folder, 'hash')


@pytest.mark.parametrize('form', ['frozen encoder', 'PEFT'])
def test_the_encoder_is_another_one_now(form, encoder_folder, tmp_path):
    "Its folder has the same name, and other weights (before: other answers, in silence)"
    encoder = Path(shutil.copytree(encoder_folder, tmp_path / 'encoder'))
    model = made('frozen encoder', encoder)
    if form == 'PEFT':
        small = dict(num_virtual_tokens=3, rank=2, head_width=8, encoder_name_or_path=str(encoder))
        model = get_peft_model(tiny(), LopaConfig('lopa', **small))
    folder = tmp_path / 'adapter'
    model.save_pretrained(folder)
    assert load(form, folder)
    state = load_file(encoder / TRAINER_FILE)
    name = next(n for n in sorted(state) if n.endswith('query.weight'))
    save_file(state | {name: state[name] * 1.1}, encoder / TRAINER_FILE, {'format': 'pt'})
    with pytest.raises(ValueError) as e:
        load(form, folder)
    one_sentence(e.value, encoder, 'other weights')


def test_an_adapter_that_says_nothing_of_its_encoder_loads(saved, tmp_path):
    "As those that were saved before"
    source, batch, wanted = saved['frozen encoder']
    folder = Path(shutil.copytree(source, tmp_path / 'adapter'))
    about = json.loads((folder / CONFIG_FILE).read_bytes())
    assert about.pop('encoder')
    rewrite(folder, about)
    assert outcome('frozen encoder', folder, batch, wanted) == 'same'


# --- someone means it: hash and fingerprint are right ---


def rewrite(folder, about=None, state=None, sealed=True):
    "Other words or numbers, as if they had been saved"
    about = about or json.loads((folder / CONFIG_FILE).read_bytes())
    about.pop('tensors', None)
    state = state or load_file(folder / WEIGHTS_FILE)
    text = json.dumps(seal(about, state) if sealed else about).encode()
    (folder / CONFIG_FILE).write_bytes(text)
    (folder / WEIGHTS_FILE).write_bytes(save(state, metadata={'config': fingerprint(text)}))


@pytest.mark.parametrize('form', [*METHODS, *BASELINES])
def test_another_value(form, saved, tmp_path):
    "A strange value anywhere in the configuration is loaded or refused, and takes no memory"
    import random

    source, batch, _ = saved[form]
    for seed in SHARE:
        folder = Path(shutil.copytree(source, tmp_path / str(seed)))
        text = other_json((folder / CONFIG_FILE).read_bytes(), random.Random(f'{form} {seed}'))
        (folder / CONFIG_FILE).write_bytes(text)
        state = load_file(folder / WEIGHTS_FILE)
        data = save(state, metadata={'config': fingerprint(text)})  # its hash is the old one
        try:
            about = json.loads(text)
            about['tensors'] = seal(about, state)['tensors']
            rewrite(folder, about, state)
        except (ValueError, TypeError, RecursionError, AttributeError):
            (folder / WEIGHTS_FILE).write_bytes(data)
        try:
            with little_memory(), torch.no_grad():
                load(form, folder)(**batch)
        except (ValueError, OSError) as e:
            one_sentence(e)
        except BaseException as e:
            e.add_note(f'{form} {seed}: {text[:3000]}')
            raise
        shutil.rmtree(folder)


HUGE = {
    'lopa': ('num_virtual_tokens', 'rank', 'head_width', 'feature_width'),
    'pt': ('num_virtual_tokens',),
    'idpg': ('num_virtual_tokens', 'head_width', 'feature_width'),
    'dept': ('rank', 'update_length'),
    'lora': ('rank',),
    'prefix': ('num_virtual_tokens',),
    'p-tuning': ('num_virtual_tokens', 'head_width'),
}


@pytest.mark.parametrize('form,name', [(form, n) for form, names in HUGE.items() for n in names])
@pytest.mark.parametrize('sealed', [True, False], ids=['', 'without a hash'])
def test_nothing_is_made_for_a_huge_size(form, name, saved, tmp_path, sealed):
    "Before: a prefix took 18.7 GB; now the shapes in the file are compared first"
    folder = Path(shutil.copytree(saved[form][0], tmp_path / 'adapter'))
    about = json.loads((folder / CONFIG_FILE).read_bytes())
    for size in 1_000_000, 10**12:
        about['config'][name] = size
        rewrite(folder, about, sealed=sealed)
        with little_memory(GIB // 8), pytest.raises(ValueError) as e:
            load(form, folder)
        one_sentence(e.value, folder)


CASTS = {
    torch.int8: 'I8',
    torch.bool: 'BOOL',
    torch.int32: 'I32',
    torch.float8_e4m3fn: 'F8_E4M3',
    torch.uint8: 'U8',
}


@pytest.mark.parametrize('dtype', CASTS, ids=str)
@pytest.mark.parametrize('sealed', [True, False], ids=['', 'without a hash'])
@pytest.mark.parametrize('form', ['lopa', 'lora', 'full'])
def test_only_fractions(form, saved, tmp_path, dtype, sealed):
    "Before: whole numbers were cast in silence"
    folder = Path(shutil.copytree(saved[form][0], tmp_path / 'adapter'))
    state = load_file(folder / WEIGHTS_FILE)
    name = sorted(state)[0]
    rewrite(folder, state=state | {name: state[name].to(dtype)}, sealed=sealed)
    with pytest.raises(ValueError) as e:
        load(form, folder)
    one_sentence(e.value, folder, name, CASTS[dtype])


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')], ids=str)
@pytest.mark.parametrize('form', ['lopa', 'lora', 'full', 'PEFT'])
def test_no_number_is_none(form, saved, tmp_path, encoder_folder, value):
    "Before: NaN gave 50.0 %, exit status 0; now it is neither saved nor loaded"
    source = saved[form][0]
    folder = Path(shutil.copytree(source, tmp_path / 'adapter'))
    state = load_file(folder / WEIGHTS_FILE)
    name = sorted(state)[-1]
    state[name].view(-1)[-1] = value
    if form == 'PEFT':
        about = json.loads((folder / CONFIG_FILE).read_bytes()) | {'tensors': None}
        (folder / CONFIG_FILE).write_text(json.dumps(about))
        save_file(state, folder / WEIGHTS_FILE)
    else:
        rewrite(folder, state=state)
    with pytest.raises(ValueError) as e:
        load(form, folder)
    one_sentence(e.value, folder, name, 'NaN')


@pytest.mark.parametrize('method', ['lopa', 'lora', 'full'])
def test_what_diverged_is_not_saved(method, tmp_path):
    model = adapted('llama', method)
    next(p for p in model.parameters() if p.requires_grad).data.view(-1)[0] = float('nan')
    with pytest.raises(ValueError) as e:
        model.save_pretrained(tmp_path / 'adapter')
    one_sentence(e.value, tmp_path, 'NaN', 'nothing was saved')
    assert not (tmp_path / 'adapter').exists()


@pytest.mark.parametrize('form', ['lopa', 'lora', 'checkpoint', 'PEFT'])
def test_old_adapters_load_with_one_warning(form, saved, tmp_path):
    "Those without a hash"
    source, batch, wanted = saved[form]
    folder = Path(shutil.copytree(source, tmp_path / 'adapter'))
    if form == 'checkpoint':
        state = load_file(folder / TRAINER_FILE)
        about = json.loads(bytes(state['_extra_state'].tolist()))
        del about['tensors']
        said = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
        save_file(state | {'_extra_state': said}, folder / TRAINER_FILE)
    elif form == 'PEFT':
        about = json.loads((folder / CONFIG_FILE).read_bytes())
        del about['tensors']
        (folder / CONFIG_FILE).write_text(json.dumps(about))
    else:
        rewrite(folder, sealed=False)
    with pytest.warns(UserWarning, match='without a hash'):
        assert outcome(form, folder, batch, wanted) == 'same'
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter('always')
        assert outcome(form, folder, batch, wanted) == 'same'
    assert not [w for w in given if 'without a hash' in str(w.message)]


def test_peft_is_kept_from_a_pipe(saved, tmp_path):
    "It would wait for ever"
    folder = Path(shutil.copytree(saved['PEFT'][0], tmp_path / 'adapter'))
    (folder / WEIGHTS_FILE).unlink()
    os.mkfifo(folder / WEIGHTS_FILE)
    with pytest.raises(FileNotFoundError) as e:
        load('PEFT', folder)
    one_sentence(e.value, folder, WEIGHTS_FILE)


# --- pickles and files of others ---


@pytest.mark.parametrize('name', ['adapter_model.bin', 'pytorch_model.bin', 'adapter_model.pt'])
@pytest.mark.parametrize('form', ['lopa', 'lora', 'PEFT'])
def test_no_pickle(form, saved, tmp_path, name):
    "It is named, and not opened"
    folder = Path(shutil.copytree(saved[form][0], tmp_path / 'adapter'))
    state = load_file(folder / WEIGHTS_FILE)
    torch.save(state, folder / name)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(FileNotFoundError) as e:
        load(form, folder)
    one_sentence(e.value, folder, name, 'pickle', 'safetensors')


def put_lora_of_peft(folder):
    from peft import LoraConfig

    get_peft_model(tiny(), LoraConfig(target_modules=['q_proj'])).save_pretrained(folder)


def put_folder(folder):
    (folder / WEIGHTS_FILE).mkdir(parents=True)


def put_link(folder):
    (folder.parent / 'precious.json').write_text('{"config": {"method": 1}, "base_model": 1}')
    folder.mkdir()
    (folder / CONFIG_FILE).symlink_to(folder.parent / 'precious.json')


def put_pipe(folder):
    folder.mkdir()
    os.mkfifo(folder / CONFIG_FILE)


def put_words(folder):
    folder.mkdir()
    (folder / WEIGHTS_FILE).write_text('notes of mine')


@pytest.mark.parametrize('put', [put_lora_of_peft, put_folder, put_link, put_pipe, put_words])
@pytest.mark.parametrize('method', ['pt', 'lora'])
def test_what_others_wrote_stays(method, put, tmp_path):
    "Saving over it is refused, and nothing of it changes"
    put(tmp_path / 'adapter')
    kept = lambda: {p: p.is_file() and p.read_bytes() for p in sorted(tmp_path.rglob('*'))}
    before = kept()
    with pytest.raises(OSError) as e:
        adapted('llama', method).save_pretrained(tmp_path / 'adapter')
    one_sentence(e.value, tmp_path / 'adapter')
    assert kept() == before


def test_a_card_of_others_stays(tmp_path):
    model = adapted('llama', 'pt')
    (tmp_path / 'README.md').write_text('# Mine\n')
    with pytest.raises(FileExistsError) as e:
        model.save_pretrained(tmp_path, card=model.model_card('me/mine'))
    one_sentence(e.value, 'README.md')
    assert [p.name for p in tmp_path.iterdir()] == ['README.md']


@pytest.mark.parametrize('name', [CONFIG_FILE, WEIGHTS_FILE])
def test_a_damaged_adapter_of_ours_is_replaced(saved, tmp_path, name):
    folder = Path(shutil.copytree(saved['pt'][0], tmp_path / 'adapter'))
    (folder / name).write_bytes(b'')
    adapted('llama', 'pt').save_pretrained(folder)
    assert isinstance(load('pt', folder), PromptModel)


@pytest.mark.parametrize(
    'text', ['{', '[]', '3', '{"config": 1}', '[' * 5000, '\udcff'], ids=lambda x: repr(x)[:9]
)
def test_a_damaged_record_beside_it(tmp_path, text):
    "The card says nothing of it, or names the file"
    model = adapted('llama', 'pt')
    model.save_pretrained(tmp_path / 'adapter')
    (tmp_path / 'result.json').write_bytes(text.encode(errors='surrogateescape'))
    try:
        assert 'not recorded' in model.model_card('me/mine')
    except ValueError as e:
        one_sentence(e, 'result.json')


@pytest.mark.parametrize(
    'name', ['', ' ', '\0', 'x' * 5000, '\ud800', 3, None, ['a'], b'a'], ids=lambda x: repr(x)[:9]
)
def test_what_names_no_folder(llama, name):
    for loading in PromptModel.from_pretrained, load_adapted:
        with pytest.raises(ValueError) as e:
            loading(llama, name)
        one_sentence(e.value, 'received', 'expected')


# --- killed while saving ---


def killed_after(n, save, folder):
    "A child that is killed at its n-th file operation in this folder; False: it came to its end"
    child = os.fork()
    if not child:
        import sys

        left = [n]

        def count(event, args):
            if event.partition('.')[0] in ('open', 'os') and str(folder) in ' '.join(
                map(str, args)
            ):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        with contextlib.suppress(BaseException):
            save(folder)
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@torch.no_grad()
def test_killed_at_every_file_operation(tmp_path):
    "What loads afterwards is the old adapter or the new one, which is of another size"
    old, new = prompted(tiny()), prompted(tiny(), seed=1, rank=4)
    batch = example(old)
    wanted = [old(**batch).logits, new(**batch).logits]
    found = []
    for n in range(1, 100):
        folder = tmp_path / f'adapter-{n}'
        old.save_pretrained(folder)
        if not killed_after(n, new.save_pretrained, folder):
            break
        logits = PromptModel.from_pretrained(tiny(), folder)(**batch).logits
        found.append([torch.equal(logits, w) for w in wanted].index(True))
        new.save_pretrained(folder)  # and what was left over is swept up
        assert sorted(p.name for p in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert found == sorted(found) and set(found) == {0, 1} and len(found) > 6


@torch.no_grad()
def test_peft_is_killed_between_two_files(saved, tmp_path):
    "It writes the numbers first: new ones beside the old configuration are refused by the hash"
    source, batch, wanted = saved['PEFT']
    config = LopaConfig('lopa', num_virtual_tokens=3, rank=2, head_width=8, feature_width=16)
    torch.manual_seed(3)
    other = get_peft_model(tiny(), config).eval()
    right = [wanted, other(**batch).logits]
    found = []
    for n in range(1, 50):
        folder = Path(shutil.copytree(source, tmp_path / str(n)))
        if not killed_after(n, other.save_pretrained, folder):
            break
        try:
            LopaConfig.from_pretrained(folder)
        except ValueError as e:
            one_sentence(e, folder)
            found.append('hash' if 'hash' in str(e) else 'refused')
        else:
            logits = load('PEFT', folder)(**batch).logits
            found.append([torch.equal(logits, w) for w in right].index(True))
    assert 'hash' in found and set(found) <= {0, 1, 'hash', 'refused'} and n < 49


# --- configurations ---

STRANGE = (
    *(None, True, False, -1, 0, 0.5, -0.0, 10**9, 10**30, 10**5000, float('nan'), float('inf')),
    *(
        -float('inf'),
        '',
        ' ',
        '3',
        'lora',
        'x' * 5000,
        '\0',
        '\ud800',
        'text:\ud800',
        b'lora',
        [],
        ['lora'],
        (),
        ('',),
    ),
    *((1,), {}, {'a': 1}, {1}, object(), lambda: 0, int, 1j, '(', '*', torch.zeros(2), Path('x')),
)


@pytest.mark.parametrize('kind', [PromptConfig, BaselineConfig])
def test_every_field_has_its_range(kind):
    "Whatever is handed over as whatever: a sentence that names the field, or a model is made"
    for name in kind.__dataclass_fields__:
        for value in STRANGE:
            try:
                config = kind(**{name: value})
            except ValueError as e:
                one_sentence(e, name)
                assert len(str(e)) < 500
            else:
                assert kind(**json.loads(json.dumps(vars(config)))) == config


def accepted(form):
    "Configurations of a form with one strange value that its class takes"
    kind = BaselineConfig if form in BASELINES else PromptConfig
    small = dict(method=form, num_virtual_tokens=3, rank=2, head_width=8)
    small |= {} if form in BASELINES else {'feature_width': 16}
    for name in kind.__dataclass_fields__:
        for value in STRANGE:
            with contextlib.suppress(ValueError):
                yield name, kind(**small | {name: value})


@pytest.mark.parametrize('form', [*METHODS, *BASELINES])
def test_what_is_accepted_can_be_made(form):
    "Or is refused in one sentence, by what only the foundation model knows"
    plain = adapted('llama', form).adapter_config
    for name, config in accepted(form):
        if config == plain:
            continue
        try:
            with torch.no_grad():
                model = adapt_model(tiny(), config)
                if config.method == form and name != 'feature_width':
                    model(**example(model))
        except (ValueError, OSError) as e:
            one_sentence(e)
        except BaseException as e:
            e.add_note(f'{form}: {config!r:.400}')
            raise
