import textwrap

import pytest

from scripts.mutants import mutants_of


def news(source: str) -> list[str]:
    """Return the faulty statements that are made of a source."""
    return [mutant.new for mutant in mutants_of("f.py", textwrap.dedent(source))]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("return a < b", {"return None", "return a <= b", "return a >= b"}),
        ("return a in b", {"return None", "return a not in b"}),
        ("return True", {"return False"}),
        ("return -a", {"return None", "return a"}),
        ("a += 1", {"pass", "a -= 1", "a += 2"}),
        ("a.b = c and d", {"pass", "a.b = c or d"}),
        ("a = min(b, c)", {"pass", "a = max(b, c)"}),
        ("f(a)", {"pass"}),
        ("raise f('x')", {"pass"}),
        ("if a: continue", {"if not a:", "break"}),
        ("while a * b: continue", {"while a / b:", "while not a * b:", "break"}),
    ],
)
def test_a_statement_has_these_faults_and_no_others(statement: str, expected: set[str]) -> None:
    assert set(news(f"def g(a, b, c, d):\n    {statement}")) == expected


def test_types_decorators_docstrings_and_messages_stay_as_they_are() -> None:
    assert not news(
        '''
        """Docstring."""
        import a
        T = TypeVar("T", bound=int)
        Name = dict[str, int] | None
        __all__ = ["f"]

        @decorated(1)
        def f(a: int) -> "str":
            """Docstring."""
            ...

        class P(Protocol):
            def g(self) -> int:
                return 1
        '''
    )


def test_a_message_may_go_but_not_change() -> None:
    assert news("def f():\n    log.warning('text')\n    raise E('text', 1)") == [
        "pass",
        "pass",
        "raise E('text', 2)",
    ]


def test_an_except_clause_catches_more_or_less() -> None:
    faults = news("def f():\n    try:\n        return\n    except BaseException:\n        return")
    assert faults == ["pass", "except Exception:", "pass"]


def test_a_fault_takes_effect_at_import_or_in_its_outermost_function() -> None:
    source = "def f(a=1):\n    def g():\n        return a\n    return g\nclass C:\n    x = 2\n"
    scopes = {mutant.new: mutant.scope for mutant in mutants_of("f.py", source)}
    assert scopes == {"def f(a=2):": "", "return None": "f", "x = 3": ""}


def test_compiling_a_fault_leaves_the_source_sound_for_the_next_one() -> None:
    mutants = mutants_of("f.py", "def f(a):\n    return a + 1\n")
    results: list[object] = []
    for mutant in mutants:
        names: dict[str, object] = {}
        exec(mutant.compile(), names)  # noqa: S102
        function = names["f"]
        assert callable(function)
        results.append(function(10))
    assert sorted(map(str, results)) == ["12", "9", "None"]
