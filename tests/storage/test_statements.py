"""Queries are composed once, with a numbered placeholder for every argument and every constant."""

import re

import pytest
from peewee import Case

from cunho_rules.orders import Key
from cunho_storage import accounts, facts_of, images, instances, operations, regions, requests, secrets, shares
from cunho_storage.statements import Statement, any_of, arg, cursor, every_row, first_row, literal, locking, together
from cunho_storage.tables import ImageRow, RegionRow

MODULES = (accounts, facts_of, images, instances, operations, regions, requests, secrets, shares)
ALL = ImageRow.select(ImageRow.image_id)


def test_places_are_numbered_in_their_order() -> None:
    statement = Statement(ALL.where((ImageRow.region_id == arg("region_id")) & (ImageRow.name == arg("name"))))
    assert statement.text.endswith('WHERE (("t1"."region_id" = $1) AND ("t1"."name" = $2))')
    assert statement.values({"name": "web", "region_id": "north"}) == ["north", "web"]


def test_an_argument_that_stands_twice_has_one_number() -> None:
    statement = Statement(ALL.where((ImageRow.name == arg("name")) | (ImageRow.family == arg("name"))))
    assert statement.text.endswith('WHERE (("t1"."name" = $1) OR ("t1"."family" = $1))')
    assert statement.values({"name": "web"}) == ["web"]


def test_constants_are_values_with_numbers_of_their_own() -> None:
    statement = Statement(
        ALL.where((ImageRow.state == "FAILED") & (ImageRow.name == arg("name")) & (ImageRow.family == "FAILED"))
    )
    assert statement.values({"name": "web"}) == ["FAILED", "web", "FAILED"]
    assert "FAILED" not in statement.text


def test_a_literal_stands_in_the_text_quoted() -> None:
    statement = Statement(ALL.where(ImageRow.state != literal("it's")))
    assert statement.text.endswith("""WHERE ("t1"."state" != 'it''s')""")
    assert statement.values({}) == []


def test_a_type_is_named_where_the_context_tells_none() -> None:
    assert Statement(ALL.where(arg("wanted", "text") == "")).text.endswith("WHERE (CAST($1 AS text) = $2)")


def test_a_list_is_one_argument() -> None:
    statement = Statement(ALL.where(ImageRow.image_id == any_of("image_ids")))
    assert statement.text.endswith('WHERE ("t1"."image_id" = ANY(CAST($1 AS text[])))')
    assert statement.values({"image_ids": ["img-1", "img-2"]}) == [["img-1", "img-2"]]


def test_what_is_read_together_shares_the_arguments_of_one_name() -> None:
    region = RegionRow.select(RegionRow.currency).where(RegionRow.region_id == arg("region_id"))
    there = ALL.where(ImageRow.region_id == arg("region_id"))
    statement = Statement(together(first_row(region), every_row(there)))
    assert statement.text == (
        "SELECT "
        '(SELECT "row" FROM (SELECT "t1"."currency" FROM "region" AS "t1" WHERE ("t1"."region_id" = $1)) AS "row"), '
        'ARRAY(SELECT "row" FROM (SELECT "t2"."image_id" FROM "image" AS "t2" WHERE ("t2"."region_id" = $1)) AS "row")'
    )
    assert statement.values({"region_id": "north"}) == ["north"]


def test_no_placeholder_is_left_in_any_statement() -> None:
    statements = [value for module in MODULES for value in vars(module).values() if isinstance(value, Statement)]
    assert len(statements) > 60
    for statement in statements:
        numbers = {int(number) for number in re.findall(r"\$(\d+)", statement.text)}
        assert "\0" not in statement.text
        assert numbers == {*range(1, len(numbers) + 1)}


def test_an_argument_that_is_not_given_is_a_mistake() -> None:
    with pytest.raises(KeyError, match="name"):
        Statement(ALL.where(ImageRow.name == arg("name"))).values({})


@pytest.mark.parametrize("strength", ["UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"])
def test_a_lock_is_part_of_the_query(strength: str) -> None:
    assert Statement(locking(ALL, strength)).text.endswith(f" FOR {strength}")
    assert Statement(locking(ALL, strength, skip_locked=True)).text.endswith(f" FOR {strength} SKIP LOCKED")


def test_a_page_comes_after_a_typed_cursor() -> None:
    keys = (Key("create_time", True), Key("size_bytes", False), Key("image_id", False))
    text = Statement(Case(None, [(value.is_null(), value) for value in cursor(keys)])).text
    assert [kind for kind in ("timestamptz", "bigint", "text") if f"AS {kind})" in text] == [
        "timestamptz",
        "bigint",
        "text",
    ]


def test_a_write_names_its_columns_by_argument() -> None:
    statement = Statement(RegionRow.update({RegionRow.currency: arg("currency")}).where(RegionRow.region_id == "north"))
    assert statement.text == 'UPDATE "region" SET "currency" = $1 WHERE ("region"."region_id" = $2)'
    assert statement.values({"currency": "EUR"}) == ["EUR", "north"]
