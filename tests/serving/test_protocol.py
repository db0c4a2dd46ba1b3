"""What may be said over the network: bounds of bodies, tokens, the journal's lines."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitpoint.serving.journal import Journal
from splitpoint.serving.protocol import Ask, Images, Join, Timings, Tokens, check_name, read_body

FINE = dict(prompt="red apple", device_step_s=0.1)
BAD = dict(
    prompt=["", " ", 3, None, "x" * 1001, ["a"], {"a": 1}, True],
    seed=[-1, 2**63, 1.5, "1", None, True, [1], 10**400],
    device_step_s=[0, -1, "0.1", None, 1e9, [], True],
    alpha=[-1, "x", None, 1e12, {}],
    deadline_s=[0, -5, "x", 1e12, []],
)


def test_what_is_fine_is_read():
    ask = read_body(Ask, json.dumps(FINE | dict(seed=2**63 - 1, alpha=3, deadline_s=1.5)).encode())
    assert (ask.prompt, ask.seed, ask.alpha, ask.deadline_s) == ("red apple", 2**63 - 1, 3.0, 1.5)


@pytest.mark.parametrize("field, value", [(field, value) for field, values in BAD.items() for value in values])
def test_a_bad_field_is_named_and_its_value_is_not_repeated(field, value):
    with pytest.raises(ValueError) as error:
        read_body(Ask, json.dumps(FINE | {field: value}).encode())
    said = str(error.value)
    assert said.startswith(f"{field}: ") and len(said) <= 200 and "\n" not in said


@pytest.mark.parametrize(
    "content",
    [
        b"", b"null", b"[]", b"3", b'"x"', b"{", b"\xff\xfe", b"[" * 16_000, b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
        b'{"prompt": "a", "device_step_s": NaN}', b'{"prompt": "a", "device_step_s": Infinity}', b'{"prompt": "\\ud800", "device_step_s": 1}',
        b'{"prompt": "a", "device_step_s": 1, "extra": 1}', b'{"prompt": "a", "device_step_s": 1e999}',
    ],
)  # fmt: skip
def test_what_is_no_body_is_refused_in_one_line(content):
    with pytest.raises(ValueError) as error:
        read_body(Ask, content)
    assert len(str(error.value)) <= 200 and "\n" not in str(error.value)


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_nothing_but_a_value_error_comes_of_any_bytes(content):
    for kind in (Ask, Timings, Images, Join):
        try:
            read_body(kind, content)
        except ValueError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", ".", "..", "a b", "\x00", "x" * 41, "-a", "a\n", "é", None, 3, "a\\b", "%2e%2e", "CON:"]
)
def test_names_that_could_be_more_than_a_name_are_refused(name):
    with pytest.raises(ValueError, match="name must be"):
        check_name(name)


def test_no_token_looks_like_an_option():
    tokens = Tokens({})
    assert all(tokens.add(f"user{number}").isalnum() for number in range(100))


def test_a_token_is_its_users_and_nobody_elses():
    tokens = Tokens({"ann": "a" * 8, "ben": "b" * 8})
    assert tokens.user("Bearer " + "a" * 8) == "ann" and tokens.user("bearer " + "b" * 8) == "ben"
    for header in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer " + "a" * 9,
        "a" * 8,
        "Basic " + "a" * 8,
        "Bearer \ud800",
        "Bearer" + "a" * 8,
    ):
        assert tokens.user(header) is None
    new = tokens.add("zoe")
    assert tokens.user(f"Bearer {new}") == "zoe"
    with pytest.raises(ValueError, match="is taken"):
        tokens.add("ann")
    with pytest.raises(ValueError, match="8 characters"):
        tokens.add("kim", "short")


class TestJournal:
    def test_a_line_that_was_cut_off_is_dropped(self, tmp_path):
        file = tmp_path / "journal"
        journal = Journal(file)
        for number in range(5):
            journal.write(dict(kind="accepted", id=number))
        journal.write(dict(kind="over", id=2))
        journal.close()
        whole = file.read_bytes()
        lines = whole.splitlines(keepends=True)
        for cut in range(len(whole) - len(lines[-1]), len(whole)):
            file.write_bytes(whole[:cut])
            again = Journal(file)
            assert [fact["id"] for fact in again.live()] == [0, 1, 2, 3, 4]
            again.write(dict(kind="over", id=4))
            again.close()
            assert [fact["id"] for fact in Journal(file).live()] == [0, 1, 2, 3]

    def test_a_damaged_line_is_named(self, tmp_path):
        file = tmp_path / "journal"
        journal = Journal(file)
        for number in range(3):
            journal.write(dict(kind="accepted", id=number))
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with pytest.raises(ValueError, match="line 2 of 'journal' is damaged"):
            Journal(file)

    def test_compact_keeps_the_living(self, tmp_path):
        journal = Journal(tmp_path / "journal")
        for number in range(50):
            journal.write(dict(kind="accepted", id=number))
            if number % 5:
                journal.write(dict(kind="over", id=number))
        journal.close()
        again = Journal(tmp_path / "journal")
        again.compact()
        again.write(dict(kind="accepted", id=50))
        assert [fact["id"] for fact in Journal(tmp_path / "journal").live()] == [*range(0, 50, 5), 50]
        assert len((tmp_path / "journal").read_bytes().splitlines()) == 11
