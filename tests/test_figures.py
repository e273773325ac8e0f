"Figures show what the files say, and handles move them"

import itertools
import json
import statistics
import sys
from pathlib import Path

import pytest

from lopa.figures import (
    LOOKS,
    explore_ablations,
    explore_gate,
    picture_widget,
    plot_axis,
    plot_figure4,
    plot_heatmap,
    plot_pareto,
    plot_price,
    plot_server,
    to_png,
)
from lopa.figures.gallery import GALLERY, stored, words
from lopa.records import AXES, TITLES, USUAL, load_results

RESULTS = Path(__file__).resolve().parents[1] / 'results'
RECORDS = [json.loads(p.read_text()) for p in (RESULTS / 'ablations').glob('*.json')]
PUBLISHED = json.loads((RESULTS / 'published.json').read_text())


@pytest.fixture(scope='module')
def data():
    return load_results(RESULTS / 'ablations', RESULTS / 'published.json')


@pytest.fixture(scope='module')
def have():
    return stored(RESULTS)


def reads(config):
    "What the instance's vector is made by, as the table has it"
    tuned = ', tuned' if config['train_encoder'] else ''
    return f'{config["encoder_name_or_path"]}, {config["encoder_pooling"]}{tuned}'


def decided(record):
    "Setting → value, as far as it concerns the method of a run"
    config, recipe = record['config'], record['recipe']
    found = {name: recipe[name] for name in ('steps', 'head_lr')}
    found |= {
        'num_virtual_tokens': config['num_virtual_tokens'],
        'train_rows': record['data']['train'],
    }
    if record['method'] == 'lopa':
        found |= {'rank': config['rank'], 'gate': config['gate']}
    if record['method'] != 'pt':
        found |= {'reads': reads(config)}
    return found


def expected(method, axis, value):
    "Mean accuracy of the runs that differ from the usual one in a setting only, from the files"
    mine = [r for r in RECORDS if r['method'] == method]
    rate = statistics.mode(r['recipe']['head_lr'] for r in mine)
    want = USUAL | {'train_rows': 6664, 'steps': 50, 'head_lr': rate} | {axis: value}
    same = [r for r in mine if all(want[k] == v for k, v in decided(r).items())]
    return 100 * statistics.mean(r['test']['accuracy'] for r in same)


def points_of(ax):
    "Method, value under the x axis, and height of every point of a soft prompt"
    methods = {TITLES[method]: method for method in ('lopa', 'idpg', 'pt')}
    values = [text.get_text().replace('\n', ', ') for text in ax.get_xticklabels()]
    for line in ax.lines:
        if line.get_label() in methods:
            for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
                yield methods[line.get_label()], values[round(x)], y


@pytest.mark.parametrize('axis', AXES)
def test_every_plotted_number_of_ours_is_in_its_files(data, axis):
    points = list(points_of(plot_axis(data, axis)))
    assert points
    for method, value, y in points:
        value = value if axis in ('gate', 'reads') else float(value)
        assert y == pytest.approx(expected(method, axis, value)), (method, axis, value)


@pytest.mark.parametrize('method', ['majority', 'zero-shot'])
def test_levels_are_the_baselines_of_the_files(data, method):
    score = next(r['test']['accuracy'] for r in RECORDS if r['method'] == method)
    labels = [line.get_label() for line in plot_axis(data).lines]
    assert f'{TITLES[method]} {100 * score:.1f}' in labels


@pytest.mark.parametrize('task', ['sst2', 'mrpc', 'rte', 'cruxeval-o'])
def test_published_lines_are_the_published_numbers(data, task):
    ax = plot_axis(data, 'num_virtual_tokens', task, 'published')
    found = {line.get_label(): line.get_ydata() for line in ax.lines}
    printed = PUBLISHED['fig3_length'][task]
    for name, values in printed.items():
        if isinstance(values, dict):
            label = {'PT': 'prompt tuning'}.get(name, name.replace(' r=', ', r = '))
            assert list(found[label]) == pytest.approx(list(values.values()))
    assert f'LoRA {printed["LoRA"]:.1f}' in found or task == 'rte'


def test_ranks_are_the_published_numbers(data):
    lines = itertools.chain.from_iterable(ax.lines for ax in plot_figure4(data).axes)
    drawn = [tuple(round(float(y), 2) for y in line.get_ydata()) for line in lines]
    printed = [tuple(v) for k, v in PUBLISHED['fig4_rank'].items() if k not in ('r', 'm')]
    assert sorted(drawn) == sorted(printed)


def leaves(table):
    "All numbers of a nested table"
    for value in table.values():
        yield from leaves(value) if isinstance(value, dict) else [value]


@pytest.mark.parametrize('figure', ['table_glue', 'table_code'])
def test_tables_are_the_published_numbers(data, figure):
    shown = sorted(text.get_text() for text in plot_heatmap(data, figure).texts)
    assert shown == sorted(f'{value:.1f}' for value in leaves(PUBLISHED[figure]))


@pytest.mark.parametrize('base_model', ['roberta-large', 'deepseek-coder-1.3b'])
def test_lopa_with_ten_tokens_is_the_unit_of_the_price(data, base_model):
    lines = plot_price(data, 'published', base_model).lines
    units = [line for line in lines if 1 in list(line.get_ydata())]
    assert [line.get_label().split(',')[0] for line in units] == ['LoPA']
    (pt,) = [line for line in lines if line.get_label() == 'prompt tuning']
    assert max(pt.get_ydata()) < 1


def test_a_price_without_a_unit_says_so(data):
    ax = plot_price(data, 'published', 'no such model')
    assert ax.get_title().startswith('no run of LoPA with m = 10') and not ax.lines


def test_a_point_on_the_front_has_no_better_one_for_less(data):
    step = next(line for line in plot_pareto(data).lines if line.get_label() == 'front')
    front = list(zip(step.get_xdata(), step.get_ydata(), strict=True))
    usual = {'steps': 50, 'variant': 'tuned'}
    runs = [r for r in RECORDS if r.get('config') and r['method'] in LOOKS]
    runs = [r for r in runs if usual.items() <= r['recipe'].items()]
    for r in [r for r in runs if r['data']['train'] == 6664]:
        reached = max((y for x, y in front if x <= r['trainable_parameters']), default=0)
        assert reached >= 100 * mean_over_seeds(r) - 1e-6


def mean_over_seeds(record):
    "Mean accuracy of the runs that differ from one in the seed only"
    about = [record.get(key) for key in ('config', 'recipe', 'data')]
    same = [r for r in RECORDS if [r.get(k) for k in ('config', 'recipe', 'data')] == about]
    return statistics.mean(r['test']['accuracy'] for r in same)


# --- widgets, without a browser ---


def handles(box):
    return {h.description: h for row in box.children[:3] for h in row.children}


MOVES = [
    ('against', 'rank'),
    ('m', 50),  # the rank is held at m = 50 now: other runs, or none
    ('m', 10),
    ('r', 1),
    ('against', 'gate'),
    ('against', 'num_virtual_tokens'),
    ('r', 4),
    ('gate', 'add'),
    ('gate', 'sigmoid'),
    ('method', 'pt'),
    ('method', 'all'),
    ('source', 'published'),
    ('task', 'rte'),
]


def test_every_handle_changes_picture_and_numbers(data):
    box = explore_ablations(data)
    h = handles(box)
    _, image, table = box.children[3:]
    same_table = []
    for name, value in MOVES:
        picture, numbers = bytes(image.value), table.value
        h[name].value = value
        assert bytes(image.value) != picture, (name, value)
        same_table += [name] if table.value == numbers else []
    assert same_table in ([], ['r']), same_table


def test_the_table_has_the_number_of_each_file(data):
    table = explore_ablations(data).children[5]
    runs = [r for r in RECORDS if r['method'] == 'pt' and r['data']['train'] == 6664]
    for r in [r for r in runs if r['recipe']['steps'] == 50]:
        name = f'pt-{r["id"]}.json'
        row = next(row for row in table.value.split('<tr') if name in row)
        assert f'{100 * mean_over_seeds(r):.1f} %' in row


def test_the_table_has_the_place_of_each_published_number(data):
    box = explore_ablations(data)
    handles(box)['source'].value = 'published'
    handles(box)['task'].value = 'mrpc'
    rows = box.children[5].value.split('<tr')
    for m, value in PUBLISHED['fig3_length']['mrpc']['LoPA'].items():
        row = next(row for row in rows if f'fig3_length.mrpc.LoPA.{m}<' in row)
        assert f'{value:.1f} %' in row


def test_a_failing_button_says_so_and_can_be_pressed_again(data):
    def fails(overrides):
        raise ValueError('no memory for rank 8')

    box = explore_ablations(data, fails)
    button, status = handles(box)['train this one'], box.children[3]
    button.click()
    assert 'no memory for rank 8' in status.value and not button.disabled


def test_without_a_function_there_is_nothing_to_press(data):
    assert handles(explore_ablations(data))['train this one'].disabled


def test_gate_slider():
    import torch

    slider, image = explore_gate(torch.rand(2, 3, 8), ['a', 'b']).children
    before = bytes(image.value)
    slider.value = 1
    assert bytes(image.value) != before


def test_sliders_say_what_they_need(data, monkeypatch):
    "One sentence where ipywidgets is missing; what only draws does without"
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    calls = [
        picture_widget,
        lambda: explore_ablations(data),
        lambda: explore_gate(None, ['a']),
    ]
    for call in calls:
        with pytest.raises(ModuleNotFoundError, match=r'pip install "lopa\[figures\]"'):
            call()
    assert plot_axis(data).lines


def test_the_web_page_says_what_it_needs(monkeypatch):
    from lopa.figures import serve_figures

    monkeypatch.setitem(sys.modules, 'voila.app', None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lopa\[web\]"'):
        serve_figures(browser=False)


# --- the gallery ---


def test_the_committed_gallery_is_in_step_with_the_results(have):
    "Pictures depend on matplotlib; the words beside them, which hold the numbers, do not"
    folder = RESULTS / 'gallery'
    page = (folder / 'README.md').read_text(encoding='utf-8')
    for name, (title, make) in GALLERY.items():
        said = words(make(have))
        shown = f'## {title}\n\n![{said.translate(str.maketrans("[]", "()"))}]({name}.png)'
        assert said and shown in page, f'{name}: run `lopa gallery`'
        svg = (folder / f'{name}.svg').read_text(encoding='utf-8')
        assert svg.lstrip().startswith('<?xml')
        assert (folder / f'{name}.png').read_bytes().startswith(b'\x89PNG')


def test_pictures_fit_a_notebook(have):
    width = int.from_bytes(to_png(plot_server())[16:20], 'big')
    assert 300 < width < 1300
    for name, (_, make) in GALLERY.items():
        assert 0 < make(have).get_figwidth() <= 18, name
