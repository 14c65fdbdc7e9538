"""Key <-> file name: total, reversible, readable, and never a name that the file system or we would
misread."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fsinbox import InvalidKey
from fsinbox.store.names import (
    MAX_ENCODED,
    PLAIN,
    REASON,
    decode_key,
    deferred_name,
    element_name,
    encode_key,
    is_element,
    label_for,
    parse_deferred,
    parse_element,
)

# At most three bytes a byte, four bytes a character: 16 characters always fit.
keys = st.text(min_size=1, max_size=16)
numbers = st.integers(min_value=0, max_value=10**19 - 1)
foreign_names = (
    st.binary(min_size=1, max_size=255).filter(lambda raw: not {0, 47} & set(raw)).map(os.fsdecode)
)


@given(keys)
@example(".")
@example("..")
@example("%41")
@example("a/b\0c")
@example("~reason.txt")
@example("-")
@example("Ünï cødé 🙂")
@example("e\u0301")  # not composed: the file system must not be the one to decide
def test_any_text_round_trips(key: str) -> None:
    assert decode_key(encode_key(key)) == key


@given(keys)
@example("../../etc/passwd")
@example("...")
def test_an_encoded_key_is_a_safe_visible_ascii_name(key: str) -> None:
    name = encode_key(key)
    assert name.isascii()
    assert name.isprintable()
    assert not {"/", "\0", "~", " ", "\n"} & set(name)
    assert name[0] != "."
    assert len(name) <= MAX_ENCODED


@given(keys, keys)
def test_different_keys_have_different_names(one: str, other: str) -> None:
    assert (one == other) == (encode_key(one) == encode_key(other))


@given(st.text(alphabet=PLAIN.decode(), min_size=1, max_size=MAX_ENCODED).filter(lambda key: key[0] != "."))
@example("report-2026_01.json")
@example("user@example.org")
@example("-rf")
def test_a_plain_key_stays_plain(key: str) -> None:
    assert encode_key(key) == key


@given(st.text(max_size=30))
@example("%41")  # "A" needs no escape
@example("%2e")  # lower-case hexadecimal
@example("%C3%A9%")
@example("%C3%A")
@example("%+1")
@example("%-1")
@example("%1_1")
@example("% 1")
@example("%\u0661\u0661")  # digits to int(), not to us
@example(".hidden")
@example("a b")
@example("")
@example("é")
@example("a~b")
def test_only_the_canonical_name_of_a_key_is_accepted(name: str) -> None:
    key = decode_key(name)
    assert key is None or encode_key(key) == name


@pytest.mark.parametrize(
    "name", ["%41", "%2e", "%2E%2E", "a%2Eb", "%7e", "%c3%a9", ".a", "a/b", "a b", "", "%", "%4", "é", "x~y"]
)
def test_what_is_no_key_s_name_is_refused(name: str) -> None:
    assert decode_key(name) is None


@given(foreign_names)
@example(os.fsdecode(b"caf\xe9"))
@example(os.fsdecode(b"\xff\xfe"))
def test_a_file_name_that_is_not_utf8_works_as_a_key(name: str) -> None:
    try:
        encoded = encode_key(name)
    except InvalidKey:
        assert sum(1 if byte in PLAIN else 3 for byte in os.fsencode(name)) > MAX_ENCODED - 2
        return
    assert decode_key(encoded) == name


def test_a_key_of_the_greatest_length_is_accepted_and_one_more_is_not() -> None:
    assert len(encode_key("k" * MAX_ENCODED)) == MAX_ENCODED
    with pytest.raises(InvalidKey, match="shorten it"):
        encode_key("k" * (MAX_ENCODED + 1))
    assert decode_key("k" * (MAX_ENCODED + 1)) is None
    assert len(encode_key("é" * (MAX_ENCODED // 6))) <= MAX_ENCODED
    with pytest.raises(InvalidKey, match=str(MAX_ENCODED)):
        encode_key("é" * (MAX_ENCODED // 6 + 1))


def test_the_longest_key_fits_a_file_name_in_every_folder() -> None:
    name = element_name(10**19 - 1, encode_key("k" * MAX_ENCODED))
    assert len(deferred_name(10**19 - 1, name)) <= 255
    assert len(name + REASON) <= 255


@pytest.mark.parametrize("key", ["", "\ud800", "a\udfffb", None, 7, b"bytes"])
def test_what_is_not_text_is_an_invalid_key(key: object) -> None:
    with pytest.raises(InvalidKey) as caught:
        encode_key(key)  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)
    assert ":" in str(caught.value)  # says what to do, too


@given(numbers, keys)
def test_an_element_s_name_is_read_back(number: int, key: str) -> None:
    name = element_name(number, encode_key(key))
    assert parse_element(name) == (number, encode_key(key))
    assert is_element(name)
    assert parse_deferred(deferred_name(number, name)) == (number, name)


@given(st.lists(numbers, min_size=2, max_size=5))
def test_names_sort_as_their_numbers(some: list[int]) -> None:
    assert [
        parse_element(name)[0] for name in sorted(element_name(number, "k") for number in some)
    ] == sorted(some)  # type: ignore[index]


@given(st.text(max_size=40))
@example("1234567890123456789-")
@example("123456789012345678-a")
@example("+234567890123456789-a")
@example("\u0661" * 19 + "-a")
@example("²" * 19 + "-a")
@example("1234567890123456789_a")
@example("12345678901234567890-a")
def test_a_foreign_name_is_no_element(name: str) -> None:
    parsed = parse_element(name)
    assert parsed is None or element_name(*parsed) == name
    assert not is_element(name) or parsed


@pytest.mark.parametrize(
    "name", ["README", "1-a", "1234567890123456789-", "1234567890123456789-a b", "1234567890123456789-%41"]
)
def test_these_names_are_no_element(name: str) -> None:
    assert not is_element(name)
    assert parse_deferred("0" * 19 + "-" + name) is None


@given(foreign_names)
@example(os.fsdecode(b"\xff" * 255))
@example("..")
@example(".")
@example("a" * 255)
@example("🙂" * 63)
@example("x" * 199 + "é")
def test_a_label_for_a_foreign_name_is_always_a_valid_key(name: str) -> None:
    label = label_for(name)
    assert decode_key(label) is not None
    assert 1 <= len(label) <= MAX_ENCODED
    assert is_element(element_name(1, label))
