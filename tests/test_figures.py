"Figures show what the files say, and handles move them"

import itertools
import json
import re
import statistics
from pathlib import Path

import pytest

from lopa.figures import (
    explore_ablations,
    explore_gate,
    plot_axis,
    plot_figure4,
    plot_heatmap,
    plot_pareto,
    to_png,
)
from lopa.figures.axes import LOOKS
from lopa.figures.gallery import GALLERY, stored, words
from lopa.records import AXES, TITLES, USUAL, load_results

RESULTS = Path(__file__).resolve().parents[1] / 'results'
RECORDS = [json.loads(p.read_text()) for p in (RESULTS / 'ablations').glob('*.json')]
PUBLISHED = json.loads((RESULTS / 'published.json').read_text())
SETTINGS = {
    'num_virtual_tokens': 'num_virtual_tokens',
    'rank': 'rank',
    'gate': 'gate',
}  # ours → in the configuration


@pytest.fixture(scope='module')
def data():
    return load_results(RESULTS / 'ablations', RESULTS / 'published.json')


def reads(config):
    return (
        f'{config["encoder_name_or_path"]}, {config["encoder_pooling"]}'
        + ', tuned' * config['train_encoder']
    )


def expected(method, axis, value):
    "Mean accuracy of the runs whose configuration differs from the usual one in a setting only, straight from the files"
    about = lambda r: (
        {
            'num_virtual_tokens': r['config']['num_virtual_tokens'],
            'train_rows': r['data']['train'],
            'steps': r['recipe']['steps'],
            'head_lr': r['recipe']['head_lr'],
        }
        | ({'rank': r['config']['rank'], 'gate': r['config']['gate']} if method == 'lopa' else {})
        | ({'reads': reads(r['config'])} if method != 'pt' else {})
    )
    rate = statistics.mode(r['recipe']['head_lr'] for r in RECORDS if r['method'] == method)
    want = USUAL | {'train_rows': 6664, 'steps': 50, 'head_lr': rate} | {axis: value}
    scores = [
        r['test']['accuracy']
        for r in RECORDS
        if r['method'] == method and all(v == want[k] for k, v in about(r).items())
    ]
    return 100 * statistics.mean(scores)


@pytest.mark.parametrize('axis', AXES)
def test_every_plotted_number_of_ours_is_in_its_files(data, axis):
    ax, seen = plot_axis(data, axis), 0
    for line in ax.lines:
        method = next((m for m, title in TITLES.items() if title == line.get_label()), None)
        if method not in ('lopa', 'idpg', 'pt'):
            continue
        values = [t.get_text().replace('\n', ', ') for t in ax.get_xticklabels()]
        for x, y in zip(line.get_xdata(), line.get_ydata()):
            value = values[round(x)]
            assert y == pytest.approx(
                expected(method, axis, float(value) if axis not in ('gate', 'reads') else value)
            ), (method, axis, value)
            seen += 1
    assert seen


def test_levels_are_the_baselines_of_the_files(data):
    for method in ('majority', 'zero-shot'):
        score = next(r['test']['accuracy'] for r in RECORDS if r['method'] == method)
        assert f'{TITLES[method]} {100 * score:.1f}' in [
            line.get_label() for line in plot_axis(data).lines
        ]


@pytest.mark.parametrize('task', ['sst2', 'mrpc', 'rte', 'cruxeval-o'])
def test_published_lines_are_the_published_numbers(data, task):
    found = {
        line.get_label(): line.get_ydata()
        for line in plot_axis(data, 'num_virtual_tokens', task, 'published').lines
    }
    for name, values in PUBLISHED['fig3_length'][task].items():
        if not isinstance(values, dict):
            continue
        label = {'PT': 'prompt tuning'}.get(name, name.replace(' r=', ', r = '))
        assert list(found[label]) == pytest.approx(list(values.values()))
    assert f'LoRA {PUBLISHED["fig3_length"][task]["LoRA"]:.1f}' in found or task == 'rte'


def test_ranks_and_tables_are_the_published_numbers(data):
    drawn = sorted(
        tuple(round(float(y), 2) for y in line.get_ydata())
        for ax in plot_figure4(data).axes
        for line in ax.lines
    )
    assert drawn == sorted(
        tuple(v) for k, v in PUBLISHED['fig4_rank'].items() if k not in ('r', 'm')
    )
    for figure in ('table_glue', 'table_code'):
        shown = sorted(t.get_text() for t in plot_heatmap(data, figure).texts)
        leaves = (
            PUBLISHED[figure].values()
            if figure == 'table_glue'
            else itertools.chain.from_iterable(m.values() for m in PUBLISHED[figure].values())
        )
        assert shown == sorted(f'{v:.1f}' for scores in leaves for v in scores.values())


def test_a_point_on_the_front_has_no_better_one_for_less(data):
    step = next(line for line in plot_pareto(data).lines if line.get_label() == 'front')
    best = {x: y for x, y in zip(step.get_xdata(), step.get_ydata())}
    for r in RECORDS:
        same = [
            q['test']['accuracy']
            for q in RECORDS
            if all(q.get(k) == r.get(k) for k in ('config', 'recipe', 'data'))
        ]
        if (
            r.get('config')
            and r['data']['train'] == 6664
            and r['recipe']['steps'] == 50
            and r['method'] in LOOKS
            and r['recipe']['variant'] == 'tuned'
        ):
            assert (
                max((y for x, y in best.items() if x <= r['trainable_parameters']), default=0)
                >= 100 * statistics.mean(same) - 1e-6
            )


# --- widgets, without a browser ---


def handles(box):
    return {h.description: h for row in box.children[:3] for h in row.children}


def test_every_handle_changes_picture_and_numbers(data):
    box = explore_ablations(data)
    h, (_, image, table) = handles(box), box.children[3:]
    changed = []

    def move(name, value):
        before = bytes(image.value), table.value
        h[name].value = value
        changed.append((name, bytes(image.value) != before[0], table.value != before[1]))

    move('against', 'rank')
    move('m', 50)  # the rank is held at m = 50 now: other runs, or none
    move('m', 10)
    move('r', 1)
    move('against', 'gate')
    move('against', 'num_virtual_tokens')
    move('r', 4)
    move('gate', 'add')
    move('gate', 'sigmoid')
    move('method', 'pt')
    move('method', 'all')
    move('source', 'published')
    move('task', 'rte')
    assert all(picture for _, picture, _ in changed), changed
    assert [name for name, _, numbers in changed if not numbers] in ([], ['r']), changed


def test_the_table_has_the_number_of_each_file(data):
    box = explore_ablations(data)
    h, table = handles(box), box.children[5]
    h['against'].value = 'num_virtual_tokens'
    for r in RECORDS:
        if r['method'] == 'pt' and r['data']['train'] == 6664 and r['recipe']['steps'] == 50:
            name = f'pt-{r["id"]}.json'
            row = next(row for row in table.value.split('<tr') if name in row)
            same = [
                q['test']['accuracy']
                for q in RECORDS
                if all(q.get(k) == r[k] for k in ('config', 'recipe', 'data'))
            ]
            assert f'{100 * statistics.mean(same):.1f} %' in row
    h['source'].value, h['task'].value = 'published', 'mrpc'
    for m, value in PUBLISHED['fig3_length']['mrpc']['LoPA'].items():
        row = next(row for row in table.value.split('<tr') if f'fig3_length.mrpc.LoPA.{m}<' in row)
        assert f'{value:.1f} %' in row


def test_a_failing_button_says_so_and_can_be_pressed_again(data):
    def fails(overrides):
        raise ValueError('no memory for rank 8')

    box = explore_ablations(data, fails)
    h, status = handles(box), box.children[3]
    h['train this one'].click()
    assert 'no memory for rank 8' in status.value and not h['train this one'].disabled


def test_without_a_function_there_is_nothing_to_press(data):
    assert handles(explore_ablations(data))['train this one'].disabled


def test_gate_slider(data):
    import torch

    box = explore_gate(torch.rand(2, 3, 8), ['a', 'b'])
    slider, image = box.children
    before = bytes(image.value)
    slider.value = 1
    assert bytes(image.value) != before


# --- the gallery ---


def test_the_committed_gallery_is_in_step_with_the_results():
    "Pictures depend on the version of matplotlib; the words beside them, which hold the numbers, do not"
    page, have = (RESULTS / 'gallery' / 'README.md').read_text(encoding='utf-8'), stored(RESULTS)
    for name, (title, make) in GALLERY.items():
        figure = make(have)
        said = words(getattr(figure, 'figure', figure))
        assert (
            said
            and f'## {title}\n\n![{said.translate(str.maketrans("[]", "()"))}]({name}.png)' in page
        ), f'{name}: run `lopa gallery`'
        assert (RESULTS / 'gallery' / f'{name}.svg').read_text(
            encoding='utf-8'
        ).lstrip().startswith('<?xml') and (
            RESULTS / 'gallery' / f'{name}.png'
        ).read_bytes().startswith(b'\x89PNG')


def test_pictures_fit_a_notebook():
    from lopa.figures import plot_server

    width = int.from_bytes(to_png(plot_server())[16:20], 'big')
    assert 300 < width < 1300
    have = stored(RESULTS)
    for name, (_, make) in GALLERY.items():
        figure = make(have)
        assert (
            re.match(r'[\d.]+', str(getattr(figure, 'figure', figure).get_figwidth()))
            and getattr(figure, 'figure', figure).get_figwidth() <= 18
        ), name
