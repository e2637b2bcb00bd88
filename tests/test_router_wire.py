"""The parser of requests: strict where two parsers could disagree, and never anything but `InvalidRequest`."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import InvalidRequest
from router.types import Endpoint
from router.wire import MAX_DEPTH, REFUSED_FIELDS, ClientRequest, parse_object, parse_request

CHAT: Endpoint = "chat/completions"
COMPLETIONS: Endpoint = "completions"
RESPONSES: Endpoint = "responses"
TOKENIZE: Endpoint = "tokenize"
ENDPOINTS = (CHAT, COMPLETIONS, RESPONSES, TOKENIZE)
USER = {"role": "user", "content": "select all users"}
UTF8 = st.characters(exclude_categories=["Cs"])
NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(UTF8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(UTF8, max_size=8), inner, max_size=4),
    max_leaves=12,
)


def chat(**body: object) -> ClientRequest:
    return parse_request(json.dumps({"model": "auto", "messages": [USER], **body}).encode(), CHAT)


def completion(**body: object) -> ClientRequest:
    return parse_request(json.dumps({"model": "auto", "prompt": "p", **body}).encode(), COMPLETIONS)


def response(**body: object) -> ClientRequest:
    return parse_request(json.dumps({"model": "auto", "input": "i", **body}).encode(), RESPONSES)


def tokens_of(**body: object) -> ClientRequest:
    return parse_request(json.dumps({"model": "auto", **body}).encode(), TOKENIZE)


def refusal(raw: bytes, endpoint: Endpoint = CHAT) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        parse_request(raw, endpoint)
    return refused.value


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"auto","model":"base","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"auto","messages":[{"role":"user","role":"system","content":"x"}]}',
        b'{"model":"auto","messages":[],"metadata":{"a":[{"b":1,"b":1}]}}',
        b'{"model":"auto","\\u006dodel":"base","messages":[{"role":"user","content":"x"}]}',
    ],
)
def test_a_key_named_twice_is_refused_at_any_depth(raw: bytes) -> None:
    assert "twice" in refusal(raw).message


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999"])
def test_a_number_that_is_not_json_is_refused(constant: bytes) -> None:
    assert "not valid JSON" in refusal(b'{"model":"auto","temperature":' + constant + b"}").message


@pytest.mark.parametrize("tail", [b"x", b"{}", b"\x00", b'{"model":"base"}', b"\n\n1"])
def test_bytes_after_the_object_are_refused(tail: bytes) -> None:
    assert "not valid JSON" in refusal(b'{"model":"auto","messages":[]}' + tail).message


def test_a_byte_order_mark_is_refused() -> None:
    assert "not valid JSON" in refusal(b"\xef\xbb\xbf{}").message


@pytest.mark.parametrize("raw", [b'{"model":"\xff"}', b"\xff\xfe{\x00}\x00", '{"a": 1}'.encode("utf-16")])
def test_bytes_that_are_not_utf8_are_refused(raw: bytes) -> None:
    assert refusal(raw).message == "the body is not UTF-8"


def test_half_a_surrogate_pair_is_refused_because_no_engine_can_be_sent_it() -> None:
    assert refusal(b'{"model":"auto","messages":[{"role":"user","content":"\\ud800"}]}').message


def test_a_whole_surrogate_pair_is_one_character() -> None:
    request = parse_request(b'{"model":"auto","messages":[{"role":"user","content":"\\ud83d\\ude42"}]}', CHAT)
    assert request.texts == ("🙂",)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 1_000, 200_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_a_body_nested_too_deep_is_refused(depth: int, opening: bytes, closing: bytes) -> None:
    inner = opening * depth + b"1" + closing * depth
    assert refusal(b'{"model":"auto","messages":' + inner + b"}").message


def test_a_body_nested_as_deep_as_allowed_passes() -> None:
    inner = MAX_DEPTH - 1
    assert parse_object(b'{"a":' + b"[" * inner + b"]" * inner + b"}")


def test_an_integer_of_thousands_of_digits_is_refused_and_a_long_one_kept_exactly() -> None:
    assert "not valid JSON" in refusal(b'{"model":"auto","seed":' + b"9" * 5000 + b"}").message
    assert parse_object(b'{"seed":' + b"9" * 400 + b"}") == {"seed": int("9" * 400)}


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b'"auto"', b"1", b"{", b'{"model":}'])
def test_a_body_that_is_no_object_is_refused(raw: bytes) -> None:
    assert refusal(raw).message


@pytest.mark.parametrize("model", [None, "", 7, ["auto"], {"id": "auto"}, True])
def test_a_model_that_is_no_name_is_refused_by_that_name(model: object) -> None:
    assert refusal(json.dumps({"model": model, "messages": [USER]}).encode()).param == "model"


@pytest.mark.parametrize("stream", ["true", 1, [], {}])
def test_a_stream_that_is_no_boolean_is_refused_by_that_name(stream: object) -> None:
    assert refusal(json.dumps({"model": "auto", "messages": [USER], "stream": stream}).encode()).param == "stream"


@pytest.mark.parametrize(("stream", "streams"), [(True, True), (False, False), (None, False)])
def test_stream_is_read_as_openai_reads_it(stream: bool | None, streams: bool) -> None:
    assert chat(stream=stream).stream is streams


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("field", REFUSED_FIELDS)
def test_a_field_that_can_hurt_others_is_refused_everywhere_unless_null(field: str, endpoint: Endpoint) -> None:
    body = {"model": "auto", "messages": [USER], "input": "i", **({} if endpoint == TOKENIZE else {"prompt": "p"})}
    error = refusal(json.dumps({**body, field: {"a": 1}}).encode(), endpoint)
    assert (error.param, error.code) == (field, "unsupported_parameter")
    assert parse_request(json.dumps({**body, field: None}).encode(), endpoint).model == "auto"


@pytest.mark.parametrize("more", [{}, {"logprobs": True}, {"top_logprobs": 0}])
def test_a_chat_with_echo_is_refused_because_that_alone_asks_for_log_probabilities_of_the_prompt(
    more: dict[str, object],
) -> None:
    body = {"model": "auto", "messages": [USER], "echo": True, **more}
    assert refusal(json.dumps(body).encode()).param == "echo"
    assert chat(echo=False).model == "auto"


def test_echo_with_logprobs_is_refused_and_each_alone_is_not() -> None:
    body = {"model": "auto", "prompt": "p", "echo": True, "logprobs": 0}
    assert refusal(json.dumps(body).encode(), COMPLETIONS).param == "echo"
    assert completion(echo=True).body["echo"] is True
    assert completion(echo=False, logprobs=1).body["logprobs"] == 1


@pytest.mark.parametrize("messages", [None, [], "hello", {"role": "user"}, [1], [{"content": "x"}], [{"role": 7}]])
def test_messages_of_another_shape_are_refused_by_their_place(messages: object) -> None:
    assert str(refusal(json.dumps({"model": "auto", "messages": messages}).encode()).param).startswith("messages")


@pytest.mark.parametrize("content", [None, 7, {}, [7], [{"text": "x"}], [["x"]]])
def test_user_content_of_another_shape_is_refused_by_its_place(content: object) -> None:
    messages = [USER, {"role": "user", "content": content}]
    assert refusal(json.dumps({"model": "auto", "messages": messages}).encode()).param == "messages[1].content"


def test_the_texts_are_the_user_turns_newest_first_and_at_most_three_before_the_last() -> None:
    turns = [message for n in range(6) for message in ({"role": "user", "content": f"u{n}"}, assistant(f"a{n}"))]
    assert chat(messages=[{"role": "system", "content": "s"}, *turns]).texts == ("u5", "u4", "u3", "u2")


def test_a_turn_without_text_counts_as_one_of_the_turns_looked_back() -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
    asked = [{"role": "user", "content": f"u{n}"} for n in range(4)]
    assert chat(messages=[*asked, image]).texts == ("u3", "u2", "u1")


def test_text_parts_are_joined_and_other_parts_passed_over() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "input_audio", "input_audio": {}}, {"type": "text", "text": "2"}]
    assert chat(messages=[{"role": "user", "content": parts}]).texts == ("one\n2",)


def test_a_chat_without_user_text_has_nothing_to_classify() -> None:
    assert chat(messages=[assistant("hello"), {"role": "user", "content": " \n"}]).texts == ()


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("select", ("select",)),
        (["first", "second"], ("first",)),
        ([1, 2, 3], ()),
        ([[1, 2], [3]], ()),
        ("", ()),
        ([""], ()),
    ],
)
def test_of_prompts_the_first_string_is_classified_and_token_ids_are_not(
    prompt: object, texts: tuple[str, ...]
) -> None:
    assert completion(prompt=prompt).texts == texts


@pytest.mark.parametrize("prompt", [None, [], 7, {"text": "x"}])
def test_a_prompt_of_another_shape_is_refused_by_its_name(prompt: object) -> None:
    assert refusal(json.dumps({"model": "auto", "prompt": prompt}).encode(), COMPLETIONS).param == "prompt"


# -- /v1/responses ----------------------------------------------------------------------------------------------------


def test_the_input_of_a_response_is_a_text_or_items_of_which_user_messages_are_read_newest_first() -> None:
    parts = [{"type": "input_text", "text": "two"}, {"type": "input_image", "image_url": "x"}]
    items = [
        {"role": "user", "content": "one"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "42"},
        {"type": "message", "role": "user", "content": parts},
        {"role": "developer", "content": "d"},
    ]
    assert response(input="select").texts == ("select",)
    assert response(input=" ").texts == ()
    found = response(input=items)
    assert found.texts == ("two", "one")
    assert found.body["input"] == items


@pytest.mark.parametrize("given_input", [None, [], 7, {"role": "user"}, [7], [{"role": "user", "content": 7}]])
def test_an_input_of_another_shape_is_refused_by_its_place(given_input: object) -> None:
    error = refusal(json.dumps({"model": "auto", "input": given_input}).encode(), RESPONSES)
    assert str(error.param).startswith("input")


@pytest.mark.parametrize(
    ("field", "value"),
    [("previous_response_id", "resp_1"), ("conversation", "conv_1"), ("background", True), ("store", True)],
)
def test_what_needs_state_between_requests_is_refused_with_the_reason(field: str, value: object) -> None:
    error = refusal(json.dumps({"model": "auto", "input": "i", field: value}).encode(), RESPONSES)
    assert (error.param, error.code) == (field, "unsupported_parameter")
    assert "keeps no state between requests: send the whole conversation as `input`" in error.message


def test_an_item_that_refers_to_a_stored_one_is_refused() -> None:
    body = {"model": "auto", "input": [{"type": "item_reference", "id": "msg_1"}]}
    error = refusal(json.dumps(body).encode(), RESPONSES)
    assert (error.param, error.code) == ("input[0]", "unsupported_parameter")


@pytest.mark.parametrize("more", [{}, {"store": False}, {"store": None}, {"background": False}])
def test_an_engine_is_told_to_store_nothing_whatever_the_client_left_out(more: dict[str, object]) -> None:
    assert response(**more).body["store"] is False


# -- /tokenize --------------------------------------------------------------------------------------------------------


def test_tokenize_takes_messages_or_a_prompt() -> None:
    assert tokens_of(messages=[USER]).texts == ("select all users",)
    assert tokens_of(prompt="select").texts == ("select",)
    assert refusal(b'{"model":"auto"}', TOKENIZE).param == "messages"
    assert refusal(b'{"model":"auto","prompt":7}', TOKENIZE).param == "prompt"


def test_tokenize_never_streams() -> None:
    assert refusal(b'{"model":"auto","prompt":"p","stream":true}', TOKENIZE).param == "stream"
    assert not tokens_of(prompt="p", stream=False).stream


# -- anything at all --------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()), st.sampled_from(ENDPOINTS))
def test_arbitrary_bytes_are_parsed_or_refused_and_nothing_else(raw: bytes, endpoint: Endpoint) -> None:
    try:
        request = parse_request(raw, endpoint)
    except InvalidRequest:
        return
    assert request.model


@given(
    st.fixed_dictionaries(
        {"model": st.sampled_from(["auto", "sql@2"])},
        optional={"messages": JSON, "prompt": JSON, "input": JSON, "stream": JSON},
    ),
    st.sampled_from(ENDPOINTS),
)
def test_an_almost_right_body_is_parsed_or_refused_and_nothing_else(
    body: dict[str, object], endpoint: Endpoint
) -> None:
    try:
        request = parse_request(json.dumps(body).encode(), endpoint)
    except InvalidRequest:
        return
    assert all(text.strip() for text in request.texts)


@given(st.dictionaries(st.text(UTF8, max_size=8), JSON, max_size=5))
def test_a_parsed_body_sent_on_and_parsed_again_is_the_same(body: dict[str, object]) -> None:
    once = parse_object(json.dumps(body).encode())
    sent_on = json.dumps(once, ensure_ascii=False, allow_nan=False).encode()
    assert parse_object(sent_on) == once == body


MEMBERS = st.sampled_from(["a", "b", ":", "a:b", "\\u003a", "\\u0061", "\\n", "é"]).map(lambda name: f'"{name}"')
NUMERALS = st.sampled_from(["0", "-0", "1.5", "1e3", "1E400", "-1e-400", "9" * 19, "9" * 30, "1e30", "0.1", "1.0"])
WORDS = st.sampled_from(["null", "true", "NaN", "-Infinity", '"::"', '"\\ud800"', '"\\u003a"', '"http://x:1"', '""'])
WRITTEN = st.recursive(
    NUMERALS | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda values: f"[{', '.join(values)}]")
        | st.lists(st.tuples(MEMBERS, inner), max_size=3).map(
            lambda pairs: "{" + ",".join(f"{name}: {value}" for name, value in pairs) + "}"
        )
    ),
    max_leaves=8,
)


@settings(max_examples=1000)
@given(st.lists(st.tuples(MEMBERS, WRITTEN), max_size=3))
def test_what_is_read_fast_is_what_a_strict_parser_reads_and_what_that_refuses_is_refused(
    members: list[tuple[str, str]],
) -> None:
    raw = "{" + ",".join(f"{name} :{value}" for name, value in members) + "}"
    try:
        expected = read_strictly(raw)
    except ValueError:
        with pytest.raises(InvalidRequest):
            parse_object(raw.encode())
        return
    found = parse_object(raw.encode())
    assert json.dumps(found) == json.dumps(expected)  # tells 1 from 1.0 and True, and -0 from 0


def read_strictly(raw: str) -> object:
    """The standard library's parser with every refusal, each by itself."""

    def distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("twice")
        return dict(pairs)

    value = json.loads(raw, object_pairs_hook=distinct)
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    return value


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
