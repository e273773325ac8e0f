"Low-Rank Prompt Adaptation: a small soft prompt for every input, in front of a frozen model"

__version__ = '0.1.0'
__all__ = ['PromptConfig', 'PromptModel', 'get_prompt_model']

from importlib import import_module
from typing import TYPE_CHECKING

from . import _moved

if TYPE_CHECKING:
    from .model import PromptModel, get_prompt_model
    from .prompts import PromptConfig

_home = {
    'PromptConfig': 'lopa.prompts',
    'PromptModel': 'lopa.model',
    'get_prompt_model': 'lopa.model',
}
_moved.install()


def __getattr__(name):
    "Import a public name when it is first asked for, so that `import lopa` stays light"
    if name not in _home:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(import_module(_home[name]), name)
    return value


def __dir__():
    return sorted({*globals(), *__all__})
