"Answers, judged and scored"

from .metrics import bootstrap_ci, compare_methods, linear_probe, main_score, pass_at_k, score, show_score
from .predict import classify, encode_rows, prepare
from .scoring import answer_lines, error_gallery, evaluate, judging, needs_sandbox, read_predictions, rescore, score_lines, write_predictions
from .floor import encoder_alone, majority, probe, zero_shot

__all__ = ['bootstrap_ci', 'compare_methods', 'linear_probe', 'main_score', 'pass_at_k', 'score', 'show_score', 'classify', 'encode_rows', 'prepare', 'answer_lines', 'error_gallery', 'evaluate', 'judging', 'needs_sandbox', 'read_predictions', 'rescore', 'score_lines', 'write_predictions']
__all__ += ['encoder_alone', 'majority', 'probe', 'zero_shot']
