"""Plain words: each comment is understood without its neighbour, and threads, files and code are no people.

Two habits are found in every Python and C file, the second in the documents too. What needs judgement (a dangling
pronoun, a riddle, a private word for a thing that has a name) is left to readers.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for pattern in ("fastlstm/**/*.py", "tests/**/*.py", "bench/*.py", "examples/**/*.py", "setup.py")
    + ("csrc/**/*.py", "csrc/**/*.[ch]", "tests/**/*.[ch]")
    for path in ROOT.glob(pattern)
)
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "*.toml", "Makefile", "docs/*.md", "bench/*.md", "examples/**/*.md", ".ci/*")
    for path in ROOT.glob(pattern)
)

# Words for people. "Whose" is an ordinary relative pronoun of things ("a layer whose weights ..."), but not where a
# sentence begins with it.
PEOPLE = re.compile(
    r"\b(?:who|whom|whoever|whomever|(?:no|some|any|every)body|no one|(?:some|any|every)one|theirs"
    r"|he|she|him|his|hers?|himself|herself)\b|\b(?-i:Whose)\b",
    re.IGNORECASE,
)
# Where persons are meant: by file, the words about them.
PERSONS = {
    "CONTRIBUTING.md": ('no "who", "nobody", "theirs"',),  # the rule itself
    "README.md": ("those who run recurrent networks", "those who want to train one"),
    "fastlstm/nn/initializers.py": ("he uniform", "He et al."),
    "fastlstm/nn/residual.py": ("He et al.",),
}

# What no sentence ends with.
OPEN_END = re.compile(r"(?:,|\b(?:and|or|but|nor|of|the|an?|for at (?:most|least)|that|whose))$")
# What no sentence, and no noun phrase, begins with.
CONTINUATION = re.compile(
    r"(?:and|or)\b(?! NULL| empty| \()"
    r"|(?:but|nor|so|then|else|which|who|whom|whose|because|while|for so|those|they)\b"
)


class Comment(NamedTuple):
    first: int  # line
    last: int
    beside: bool  # there is code before the comment in its first line
    text: str


def python_comments(code: str) -> list[Comment]:
    """The comments of a Python file; lines of one block are one comment."""
    found: list[Comment] = []
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            line, text = token.start[0], token.string.lstrip("# ")
            beside = bool(token.line[: token.start[1]].strip())
            if not beside and found and not found[-1].beside and found[-1].last == line - 1:
                found[-1] = found[-1]._replace(last=line, text=f"{found[-1].text} {text}")
            else:
                found.append(Comment(line, line, beside, text))
    return found


C_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|/\*.*?\*/|//[^\n]*', re.DOTALL)


def c_tokens(code: str, start: str) -> Iterator[tuple[int, str]]:
    """(offset, text) of the comments or, with '"', the texts of a C file."""
    for token in C_TOKEN.finditer(code):
        if token[0].startswith(start):
            yield token.start(), token[0]


def c_comments(code: str) -> list[Comment]:
    found = []
    for offset, comment in c_tokens(code, "/"):
        first = code.count("\n", 0, offset) + 1
        beside = bool(code[code.rfind("\n", 0, offset) + 1 : offset].strip())
        text = re.sub(r"\n\s*\*?\s*", " ", comment.strip("/*\n "))
        found.append(Comment(first, first + comment.count("\n"), beside, text))
    return found


def spread_sentences(comments: list[Comment]) -> Iterator[tuple[int, str]]:
    """(line, text) of comments that a comment beside the next line goes on with, or would have to."""
    for comment in comments:
        if OPEN_END.search(comment.text):
            yield comment.first, comment.text
    for before, comment in pairwise(comments):
        text = re.sub(r"^\([^)]*\),? ", "", comment.text)  # a shape that precedes the words
        if comment.beside and comment.first == before.last + 1 and CONTINUATION.match(text):
            yield comment.first, f"{before.text} | {comment.text}"


def spread_fields(code: str) -> Iterator[tuple[int, str]]:
    """(line, text) of a docstring's fields that end with a comma: the sentence goes on with the next field."""
    for line, text in docstrings(code):
        lines = [one for one in text.expandtabs().splitlines() if one.strip()]
        for one, after in pairwise(lines):
            if one.endswith(",") and len(after) - len(after.lstrip()) < len(one) - len(one.lstrip()):
                yield line, one.strip()


def docstrings(code: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def python_prose(code: str) -> Iterator[tuple[int, str]]:
    """(line, text) of comments, docstrings, texts of more than a word, and names of functions and classes."""
    yield from ((comment.first, comment.text) for comment in python_comments(code))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.lineno, node.name.replace("_", " ")


def c_prose(code: str) -> Iterator[tuple[int, str]]:
    yield from ((comment.first, comment.text) for comment in c_comments(code))
    for offset, text in c_tokens(code, '"'):
        yield code.count("\n", 0, offset) + 1, text.strip('"')


def document_prose(text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every paragraph."""
    for paragraph in re.finditer(r"(?:.+(?:\n|\Z))+", text):
        yield text.count("\n", 0, paragraph.start()) + 1, paragraph[0]


def people(prose: Iterator[tuple[int, str]], allowed: tuple[str, ...] = ()) -> Iterator[tuple[int, str]]:
    """(line, words around it) of every word for people that is not among the allowed words."""
    for line, text in prose:
        plain = " ".join(text.split())
        for words in allowed:
            plain = plain.replace(words, "")
        for word in PEOPLE.finditer(plain):
            yield line, plain[max(word.start() - 40, 0) : word.end() + 40]


def shown(path: Path, found: Iterator[tuple[int, str]]) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{line}: {text}" for line, text in found]


# ------------------------------------------------------------------------------------------------------ the two habits
def test_no_sentence_is_spread_over_several_comments() -> None:
    found = []
    for path in SOURCES:
        code = path.read_text()
        found += shown(path, spread_sentences(python_comments(code) if path.suffix == ".py" else c_comments(code)))
        found += shown(path, spread_fields(code)) if path.suffix == ".py" else []
    assert not found, "a comment is understood without its neighbour:\n" + "\n".join(found)


def test_threads_and_code_are_no_people() -> None:
    found = []
    for path in SOURCES + DOCUMENTS:
        if path == Path(__file__).resolve():
            continue
        text = path.read_text()
        if path.suffix == ".py":
            prose = python_prose(text)
        elif path.suffix in (".c", ".h"):
            prose = c_prose(text)
        else:
            prose = document_prose(text)
        found += shown(path, people(prose, PERSONS.get(str(path.relative_to(ROOT)), ())))
    assert not found, "the subject of a sentence is a thing of the code:\n" + "\n".join(found)


def test_architecture_names_what_there_is() -> None:
    """Each module and C file is named in docs/architecture.md, and each file that a table names is there."""
    named = set()
    folder = "fastlstm"
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines():
        if cells := re.match(r"\| (.*?) \| (.*) \|$", line):
            if head := re.fullmatch(r"`(\w+)/`", cells[1].strip()):
                folder = head[1] if (ROOT / head[1]).is_dir() else folder
            named |= {(folder, name) for name in re.findall(r"`([\w.*/]+)`", line)}
    names = {name.rstrip("/") for folder, name in named}
    modules = {p.stem for p in (ROOT / "fastlstm").glob("*") if p.suffix == ".py" or (p / "__init__.py").is_file()}
    files = {p.name for p in (ROOT / "csrc").rglob("*") if p.is_file() and not p.name.startswith("isa_")}
    missing = sorted((modules - {"__init__", "__main__"} | files) - names)
    assert not missing, f"docs/architecture.md does not name {', '.join(missing)}"
    gone = sorted(
        f"{folder}/{name}"
        for folder, name in named
        if re.search(r"\.(py|[ch])$|/$", name) and not list(ROOT.glob(f"{folder}/**/{name.rstrip('/')}"))
        if not (ROOT / name).exists()
    )
    assert not gone, f"docs/architecture.md names {', '.join(gone)}"


# ---------------------------------------------------------------------------------------------------- the test can fail
# Lines of csrc/internal.h, csrc/forward.h and fastlstm/schedules.py as they were before this test.
SPREAD = [
    "    int parts;       /* a team's members for each direction, */\n"
    "    int short_steps; /* who gain only where they meet quickly */\n",
    "    ptrdiff_t first, first_y; /* which of the tape's rows, and of y's, are theirs: from here on, */\n"
    "    const int64_t *y_rows;    /* (n) or, of y's, those so far on */\n",
    "    int alone; /* the walk is of one sequence: one row in every step */\n"
    "    int turn;  /* whose products then begin, in every second step, with the last k */\n",
]
SPREAD_FIELDS = '''
def f():
    """Reduces.

    threshold : float
        By how much a better measure must be better,
    threshold_mode : {"rel", "abs"}
        as a share of the best one, or as a difference.
    """
'''


@pytest.mark.parametrize("code", SPREAD, ids=["comma and who", "comma and or", "whose"])
def test_a_spread_sentence_is_found(code: str) -> None:
    assert list(spread_sentences(c_comments(code)))
    python = code.replace("/*", "#").replace(" */", "").replace(";", "")
    python = re.sub(r"^ *(?:const )?[\w ]*?\*?(\w+(?:, \w+)?) +#", r"\1 = 0  #", python, flags=re.MULTILINE)
    assert list(spread_sentences(python_comments(python)))


def test_a_sentence_spread_over_fields_of_a_docstring_is_found() -> None:
    assert len(list(spread_fields(SPREAD_FIELDS))) == 1


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("/* nobody ever waits for a thread to *arrive* */", "nobody"),
        ("/* pieces are claimed one by one, and who is there takes what is free */", "who"),
        ("/* Whose rows these are. */", "Whose"),
        ('printf("everyone has gone");', "everyone"),
    ],
)
def test_threads_as_people_are_found(code: str, word: str) -> None:
    ((_, text),) = people(c_prose(code))
    assert word in text


@pytest.mark.parametrize(
    "code",
    [
        "# nobody waits",
        "def f():\n    '''The thread, who waits.'''",
        "raise ValueError(f'{x} is theirs')",
        "def test_nobody_waits():\n    pass",
        "x = 1  # someone has it",
    ],
)
def test_people_in_python_are_found(code: str) -> None:
    assert len(list(people(python_prose(code)))) == 1


def test_good_comments_pass() -> None:
    code = (
        "    float *h, *c;  /* (n, R), (n, H) state of the step, or NULL */\n"
        "    float *h_new;  /* (n, R), or NULL */\n"
        "    int ready;     /* claims 0..ready-1 are at that tick; the others are not */\n"
        "    int half;      /* 0 or 1: the half of the start values in use */\n"
        "    /* A panel whose gates share no vectors, so that a row's gates stay in registers,\n"
        "     * and which is packed once. */\n"
    )
    assert not list(spread_sentences(c_comments(code))) and not list(people(c_prose(code)))
