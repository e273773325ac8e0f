"Low-Rank Prompt Adaptation: a small soft prompt for every input, in front of a frozen foundation model"

__version__ = "0.1.0"
__all__ = ['PromptConfig', 'PromptModel', 'get_prompt_model']

_home = {'PromptConfig': 'lopa.prompts', 'PromptModel': 'lopa.model', 'get_prompt_model': 'lopa.model'}


def __getattr__(name):
    "Import a public name when it is first asked for, so that `import lopa` stays light"
    if name not in _home: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    value = globals()[name] = getattr(import_module(_home[name]), name)
    return value


def __dir__(): return sorted({*globals(), *__all__})
