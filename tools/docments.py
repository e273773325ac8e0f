"""Docments into docstrings: what an editor shows of a function is its `__doc__`, not its comments

A docment is a comment beside a parameter, a return or a field of a dataclass, or above it when
there is none beside it. Here they move from the source of a module into its docstrings, as the
sections `Args:`, `Returns:` and `Attributes:` (Google's style, which Sphinx and editors read).
`Raises:` names what a function, or a function of the same module that it calls, raises.
What has no docstring keeps its comments, as do functions within functions.
"""

import ast
import inspect
import io
import re
import textwrap
import tokenize
from dataclasses import dataclass, field

WIDTH = 100
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
FOR_TOOLS = re.compile(r'#\s*(noqa|type:|pragma|fmt:|ruff:|pylint|mypy)')


@dataclass
class Place:
    """Where a documented thing stands: its first and last line, and what to call it"""

    first: int
    last: int
    name: str


@dataclass
class Source:
    """A module's text, its comments by line, and the changes to make"""

    text: str
    lines: list[str] = field(init=False)
    comments: dict[int, tuple[int, str]] = field(init=False)  # line → (column, comment)
    tokens: list[tokenize.TokenInfo] = field(init=False)
    edits: list[tuple[tuple[int, int], tuple[int, int], str]] = field(default_factory=list)
    functions: dict[str, ast.AST] = field(default_factory=dict)  # the module's own, by name

    def __post_init__(self):
        self.lines = self.text.splitlines(keepends=True)
        self.tokens = list(tokenize.generate_tokens(io.StringIO(self.text).readline))
        found = (t for t in self.tokens if t.type == tokenize.COMMENT)
        self.comments = {t.start[0]: (t.start[1], t.string) for t in found}

    def beside(self, line):
        """The docment that ends a line of code, if there is one"""
        column, comment = self.comments.get(line, (0, ''))
        own_line = not self.lines[line - 1][:column].strip()
        return '' if own_line or not comment or FOR_TOOLS.match(comment) else comment

    def above(self, line, stop):
        """The lines below `stop` that hold comments only and end right above `line`"""
        first = line
        while first - 1 > stop and self.lines[first - 2].lstrip().startswith('#'):
            first -= 1
        block = range(first, line)
        return [] if any(FOR_TOOLS.match(self.lines[n - 1].strip()) for n in block) else block

    def take(self, place, before):
        """The docment of what stands at a place, which is thereby removed; '' if it has none"""
        for line in range(place.last, place.first - 1, -1):
            if comment := self.beside(line):
                self.cut(line)
                return words(comment)
        block = self.above(place.first, before)
        comments = [self.lines[n - 1].strip() for n in block]
        for line in block:
            self.edits.append(((line, 0), (line + 1, 0), ''))
        return ' '.join(map(words, comments))

    def cut(self, line):
        """Remove the comment that ends a line"""
        column, comment = self.comments[line]
        start = len(self.lines[line - 1][:column].rstrip())
        self.edits.append(((line, start), (line, column + len(comment)), ''))

    def changed(self):
        """The text with all changes made"""
        lines = [*self.lines, '']
        for (first, start), (last, stop), new in sorted(self.edits, reverse=True):
            joined = lines[first - 1][:start] + new + lines[last - 1][stop:]
            lines[first - 1 : last] = [joined, *[''] * (last - first)]
        return ''.join(lines)


def words(comment):
    """A comment without its mark"""
    return comment.lstrip('#').strip()


def parameters(arguments):
    """Every parameter of a signature as (name, first line, last line), in order"""
    stars = {id(arguments.vararg): '*', id(arguments.kwarg): '**'}
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = dict(zip(map(id, reversed(plain)), reversed(arguments.defaults), strict=False))
    defaults |= dict(zip(map(id, arguments.kwonlyargs), arguments.kw_defaults, strict=True))
    order = [*plain, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    for arg in filter(None, order):
        last = max(arg.end_lineno, getattr(defaults.get(id(arg)), 'end_lineno', 0))
        yield Place(arg.lineno, last, stars.get(id(arg), '') + arg.arg)


def closing(source, function):
    """The token that closes a signature's parentheses, and the one before it"""
    depth, before = 0, None
    inside = (t for t in source.tokens if t.start >= (function.lineno, function.col_offset))
    for token in inside:
        if token.string in '([{' and token.type == tokenize.OP:
            depth += 1
        elif token.string in ')]}' and token.type == tokenize.OP:
            depth -= 1
            if not depth:
                return token, before
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            before = token
    raise ValueError(f'{function.name}: its signature has no end.')


def of_signature(source, function):
    """The docments of a function, taken from its signature: name → text, `return` among them"""
    close, comma = closing(source, function)
    found, before = {}, function.lineno
    by_line = {place.first: place for place in parameters(function.args)}  # the last on a line
    for line, place in by_line.items():
        if function.lineno < line or place.last < close.start[0]:
            found[place.name] = source.take(place, before)
        before = place.last
    end = function.body[0].lineno - 1
    last = function.returns.end_lineno if function.returns else close.start[0]
    found['return'] = source.take(Place(close.start[0], min(last, end), 'return'), before)
    if any(found.values()) and comma.string == ',':
        source.edits.append((comma.start, comma.end, ''))  # ruff may then join the lines
    return {name: text for name, text in found.items() if text}


def of_fields(source, cls):
    """The docments of a dataclass's fields, taken from its body: name → text"""
    found, before = {}, cls.lineno
    for node in cls.body:
        if isinstance(node, ast.AnnAssign):
            place = Place(node.lineno, node.end_lineno, ast.unparse(node.target))
            found[place.name] = source.take(place, before)
        before = node.end_lineno
    return {name: text for name, text in found.items() if text}


def wrapper(width):
    """What breaks an entry into lines, without breaking words"""
    return textwrap.TextWrapper(
        width,
        initial_indent=' ' * 4,
        subsequent_indent=' ' * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )


def section(title, entries, width):
    """One section of a docstring, wrapped"""
    lines = [f'{title}:']
    for entry in entries:
        lines += wrapper(width).wrap(entry)
    return '\n'.join(lines)


def sections(found, returns, title, width):
    """Docments (name → text) as the sections of a docstring"""
    named = [f'{name}: {text}' for name, text in found.items() if name != 'return']
    parts = [section(title, named, width)] if named else []
    if 'return' in found:
        kind = f'{ast.unparse(returns)}: ' if returns else ''
        parts.append(section('Returns', [kind + found['return']], width))
    return parts


def extend(source, node, parts):
    """Add sections to the docstring of a function or class"""
    old, indent = node.body[0], ' ' * node.body[0].col_offset
    text = '\n\n'.join([inspect.cleandoc(old.value.value), *parts]).replace('"""', "'''")
    text = textwrap.indent(f'{text}\n', indent).lstrip()
    mark = 'r' if '\\' in text else ''
    last = source.lines[old.end_lineno - 1].encode()[: old.end_col_offset].decode()
    new = f'{mark}"""{text}{indent}"""'
    source.edits.append(((old.lineno, old.col_offset), (old.end_lineno, len(last)), new))


def documented(node):
    """Does a docstring stand on a line of its own below the signature?"""
    first = node.body[0]
    return ast.get_docstring(node) is not None and first.lineno > node.lineno


def is_record(cls):
    """Is a class a dataclass or a named tuple, whose fields stand in its body?"""
    marks = [ast.unparse(d).split('(')[0] for d in cls.decorator_list]
    bases = map(ast.unparse, cls.bases)
    names = {name.split('.')[-1] for name in (*marks, *bases)}
    return bool(names & {'dataclass', 'NamedTuple', 'TypedDict'})


def width_of(node):
    """The columns that are left for the text of a docstring"""
    return WIDTH - node.body[0].col_offset


def own_nodes(function):
    """What stands in a function, but for functions within it and what it may catch itself"""
    waiting = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.Try) and node.handlers:
            waiting += [*node.handlers, *node.orelse, *node.finalbody]
        elif not isinstance(node, FUNCTIONS):
            waiting += ast.iter_child_nodes(node)


def called(node):
    """The name that a call calls, if it is a plain one"""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ''


def raised(function, functions, seen=()):
    """Names of the exceptions that a function raises, or a module's function that it calls"""
    found = set()
    for node in own_nodes(function):
        if isinstance(node, ast.Raise) and node.exc is not None:
            name = called(node.exc)
            found |= {name} if name[:1].isupper() else set()
        name = called(node)
        if name in functions and name not in seen:
            found |= raised(functions[name], functions, (*seen, name))
    return found - {'NotImplementedError', 'AssertionError'}


def do_function(source, function):
    """Move the docments of one function, and say what it raises"""
    if not documented(function):
        return
    width = width_of(function)
    found = of_signature(source, function)
    parts = sections(found, function.returns, 'Args', width) if found else []
    if errors := raised(function, source.functions):
        parts.append(section('Raises', sorted(errors), width))
    if parts:
        extend(source, function, parts)


def do_class(source, cls):
    """Move the docments of a class's fields and of its methods"""
    methods = {m.name: m for m in cls.body if isinstance(m, FUNCTIONS)}
    parts, init = [], methods.get('__init__')
    if documented(cls):
        if is_record(cls) and (found := of_fields(source, cls)):
            parts += sections(found, None, 'Attributes', width_of(cls))
        if init and not ast.get_docstring(init) and (found := of_signature(source, init)):
            parts += sections(found, None, 'Args', width_of(cls))
        if parts:
            extend(source, cls, parts)
    for method in methods.values():
        do_function(source, method)


def into_docstrings(text):
    """The source of a module with its docments in its docstrings"""
    source = Source(text)
    tree = ast.parse(text)
    source.functions = {f.name: f for f in tree.body if isinstance(f, FUNCTIONS)}
    for node in tree.body:
        if isinstance(node, FUNCTIONS):
            do_function(source, node)
        elif isinstance(node, ast.ClassDef):
            do_class(source, node)
    return source.changed()
