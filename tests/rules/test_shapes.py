"""What a field may hold, value by value: texts, patterns, numbers, labels and ids."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cunho_rules import shapes
from cunho_rules.shapes import Problem, labels, matching, number, text


@pytest.mark.rule("ALL-5", "SEL-4")
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("a", None),
        ("12345", None),
        ("Bücher", "must have at most 5 characters, has 6"),
        ("büche", None),
        ("\U0001f4bf" * 5, None),  # characters, not bytes or UTF-16 units
        ("", "must not be empty"),
        ("a b c", None),
        (" a", "must not begin or end with a blank"),
        ("a\u00a0", "must not begin or end with a blank"),  # a no-break space
        ("a\u3000", "must not begin or end with a blank"),  # an ideographic one
        ("a\nb", "must not contain control or invisible characters, has U+000A"),
        ("a\0", "must not contain control or invisible characters, has U+0000"),
        ("a\x7f", "must not contain control or invisible characters, has U+007F"),
        ("a\x85", "must not contain control or invisible characters, has U+0085"),
        ("a\u00ad", "must not contain control or invisible characters, has U+00AD"),  # soft hyphen
        ("a\u200b", "must not contain control or invisible characters, has U+200B"),  # zero-width space
        ("a\u200d", "must not contain control or invisible characters, has U+200D"),  # zero-width joiner
        ("a\u2028", "must not contain control or invisible characters, has U+2028"),  # line separator
        ("\u202ea", "must not contain control or invisible characters, has U+202E"),  # right-to-left override
        ("\u2066a", "must not contain control or invisible characters, has U+2066"),  # isolate
        ("\ufeffa", "must not contain control or invisible characters, has U+FEFF"),  # byte order mark
        ("a\uffff", "must not contain control or invisible characters, has U+FFFF"),  # noncharacter
        ("a\ud800", "must not contain control or invisible characters, has U+D800"),  # surrogate
        ("a\U000e0041", "must not contain control or invisible characters, has U+E0041"),  # tag
        ("u\u0308", "must be in Unicode normal form C"),  # which is one character, ü
        ("\u212b", "must be in Unicode normal form C"),  # the Angstrom sign is Å
        ("ﬁ", None),  # a ligature is a character of its own
    ],
)
def test_a_text_is_visible_of_normal_form_and_neither_too_short_nor_too_long(value: str, problem: str | None) -> None:
    assert text(5, 1)(value) == problem


@pytest.mark.rule("ALL-5")
def test_a_text_may_be_empty_unless_a_minimum_is_set() -> None:
    assert text(5)("") is None
    assert text(5)(" a ") is None
    assert text(5, 3)("ab") == "must have at least 3 characters"
    assert text(5, 3)("abc") is None


@given(st.text(max_size=80))
def test_what_a_name_may_be_prints_and_has_one_to_sixty_characters(value: str) -> None:
    if shapes.name(value) is None:
        assert 1 <= len(value) <= 60
        assert not any(character in "\r\n\t\0" for character in value)


@pytest.mark.rule("ALL-5")
@pytest.mark.parametrize(
    ("problem_of", "value", "problem"),
    [
        (matching("[a-z]+", "letters"), "abc", None),
        (matching("[a-z]+", "letters"), "abc1", "must be letters"),
        (matching("[a-z]+", "letters"), "abc\n", "must be letters"),  # the whole of it, with the line's end
        (matching("[a-z]+", "letters"), "", "must not be empty"),
        (matching("[a-z]+", "letters", optional=True), "", None),
        (matching("a|b", "a or b"), "ab", "must be a or b"),
        (number(1, 5), 1, None),
        (number(1, 5), 5, None),
        (number(1, 5), 0, "must be 1 to 5, is 0"),
        (number(1, 5), 6, "must be 1 to 5, is 6"),
        (number(1, 5), -(2**63), "must be 1 to 5, is -9223372036854775808"),
    ],
)
def test_a_value_matches_as_a_whole(problem_of: Problem, value: Any, problem: str | None) -> None:
    assert problem_of(value) == problem


@pytest.mark.rule("ALL-5")
@pytest.mark.parametrize(
    ("problem_of", "right", "wrong"),
    [
        (
            shapes.image_id,
            ["img-3k9x0q2z"],
            ["", "img-", "img-3k9x0q2", "img-3k9x0q2z0", "IMG-3k9x0q2z", "img-3K9x0q2z"],
        ),
        (shapes.image_id_or_none, ["", "img-3k9x0q2z"], ["ins-3k9x0q2z", "img-3k9x0q2٣"]),  # no digit of another script
        (shapes.instance_id, ["ins-00000000"], ["img-00000000", " ins-00000000"]),
        (shapes.operation_name, ["operations/op-00000000"], ["op-00000000", "operations/op-0000000!"]),
        (shapes.account_id, ["acme", "a" * 60, "1-2"], ["", "a" * 61, "Acme", "a_b", "a b", "ацме"]),
        (shapes.region_id, ["ap-guangzhou"], ["", "ap guangzhou", "AP-1", "r" * 61]),
        (shapes.region_id_or_all, ["-", "ap-guangzhou"], ["", "*", "-!"]),
        (shapes.instance_type, ["S5.MEDIUM4", "m1_large-2.x"], ["", "S5 MEDIUM", "s" * 61]),
        (shapes.family, ["", "debian-12", "a.b"], ["Debian", "a_b", "f" * 61]),
        (shapes.family_required, ["debian-12"], [""]),
        (
            shapes.request_id,
            ["", "7f1f6c1e-3b6f-4f6e-9d0e-2c5c5a8b6d21", "7F1F6C1E-3B6F-4F6E-9D0E-2C5C5A8B6D21"],
            ["1", "7f1f6c1e3b6f4f6e9d0e2c5c5a8b6d21", "{7f1f6c1e-3b6f-4f6e-9d0e-2c5c5a8b6d21}"],
        ),
        (
            shapes.contact_uri,
            ["https://example.org/help", "mailto:help@example.org"],
            ["", "http://example.org", "https://", "javascript:alert(1)", "https://example.org/a b"],
        ),
        (shapes.page_token, ["", "Abc_-"], ["a+b", "a=", "é"]),
        (shapes.page_size, [0, 1, 2**31 - 1], [-1, 2**31]),
        (shapes.description, ["", "d" * 256], ["d" * 257, "\x1b[31m"]),
        (shapes.etag, ["", "v1"], ["v" * 65]),
        (shapes.min_disk, [1, 500 << 30], [0, (500 << 30) + 1]),
        (shapes.file_size, [1, 51 << 30], [0, -1]),
        (shapes.quota_limit, [0, 100_000], [-1, 100_001]),
    ],
)
def test_ids_numbers_and_references_have_their_form(problem_of: Problem, right: list[Any], wrong: list[Any]) -> None:
    assert [value for value in right if problem_of(value) is not None] == []
    assert [value for value in wrong if problem_of(value) is None] == []


@pytest.mark.rule("ALL-5")
@pytest.mark.parametrize(
    "value",
    [
        {},
        {"env": "production"},
        {"a": ""},
        {"k" * 63: "v" * 63},
        {"a.b-c_d.e": "ü"},
        {f"key{number}": "value" for number in range(64)},
    ],
)
def test_labels_are_at_most_64_of_63_characters(value: dict[str, str]) -> None:
    assert labels(value) is None


@pytest.mark.rule("ALL-5")
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({f"key{number}": "" for number in range(65)}, "must have at most 64 labels, has 65"),
        ({"": "value"}, "keys must be"),
        ({"1a": "value"}, "keys must be"),
        ({"Env": "value"}, "keys must be"),
        ({"a b": "value"}, "keys must be"),
        ({"k" * 64: "value"}, "keys must be"),
        ({"a": "v" * 64}, "the value of 'a' must have at most 63 characters, has 64"),
        ({"a": "\n"}, "the value of 'a' must not contain control or invisible characters, has U+000A"),
        ({"b": "\n", "a": "\0"}, "the value of 'a' must not contain control or invisible characters, has U+0000"),
    ],
)
def test_other_labels_are_refused_with_what_is_wrong_with_them(value: dict[str, str], problem: str) -> None:
    assert (labels(value) or "").startswith(problem)
