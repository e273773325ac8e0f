"Answers, judged and scored"

from .floor import encoder_alone, majority, probe, zero_shot
from .metrics import (
    bootstrap_ci,
    check_metrics,
    compare_methods,
    difference_ci,
    linear_probe,
    main_score,
    pass_at_k,
    score,
    show_score,
    wilson_ci,
)
from .predict import classify, encode_rows, prepare
from .predictions import (
    check_predictions,
    check_scoring,
    is_predictions,
    judging,
    read_predictions,
    rescore,
    score_lines,
    write_predictions,
)
from .scoring import answer_lines, error_gallery, evaluate, needs_sandbox

__all__ = [
    'answer_lines',
    'bootstrap_ci',
    'check_metrics',
    'check_predictions',
    'check_scoring',
    'classify',
    'compare_methods',
    'difference_ci',
    'encode_rows',
    'encoder_alone',
    'error_gallery',
    'evaluate',
    'is_predictions',
    'judging',
    'linear_probe',
    'main_score',
    'majority',
    'needs_sandbox',
    'pass_at_k',
    'prepare',
    'probe',
    'read_predictions',
    'rescore',
    'score',
    'score_lines',
    'show_score',
    'wilson_ci',
    'write_predictions',
    'zero_shot',
]
