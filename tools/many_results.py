"""How long does it take to read a folder of many results?

    python -m tools.many_results 1000 10000

prints the seconds of one core for each number of results: made up, in a folder of their own.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from lopa.files import seal
from lopa.records import SCHEMA, average, load_results


def result(i):
    "A result of about the size that a real one has"
    looks = [{'step': 10 * k, 'loss': 0.5, 'eval_accuracy': 0.5} for k in range(15)]
    return {
        'id': f'{i:012x}',
        'schema': SCHEMA,
        'task': 'rte',
        'method': 'lopa',
        'seed': i % 5,
        'config': {'rank': i // 5, 'num_virtual_tokens': 10},
        'recipe': {'steps': 150, 'batch_size': 8, 'prompt_lr': 0.05, 'variant': 'tuned'},
        'test': {'accuracy': 0.5, 'low': 0.4, 'high': 0.6, 'n': 500},
        'test_right': '01' * 250,
        'history': looks,
    }


def seconds(n):
    "For reading, and for averaging, of n results"
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            Path(folder, f'{i}.json').write_text(json.dumps(seal(result(i))), encoding='utf-8')
        start = time.process_time()
        table = load_results(folder)
        middle = time.process_time()
        average(table)
        assert len(table) == n
        return middle - start, time.process_time() - middle


if __name__ == '__main__':
    for n in map(int, sys.argv[1:] or ['1000', '10000']):
        reading, averaging = seconds(n)
        print(f'{n:6} results: read in {reading:.1f} s, averaged in {averaging:.1f} s')
