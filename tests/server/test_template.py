"""ChatTemplate: what checkpoints ship renders, and users' words never become control tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.bundled import TARGET
from octavo.engine.errors import ConfigError, InvalidParameter
from octavo.server.text.template import ChatTemplate
from octavo.server.text.tokenizer import Tokenizer

from .vocabularies import SPECIAL, byte_level

CHATML = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = st.lists(
    st.sampled_from([*SPECIAL, "<", "<|im_", "end|>", "|>", ">", "</", "s>", "hello ", "\n", "狐"]),
    max_size=5,
).map("".join)


def chatml() -> ChatTemplate:
    return ChatTemplate(CHATML, byte_level())


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


@given(contents=st.lists(WORDS, min_size=1, max_size=3), tool=WORDS)
def test_control_tokens_are_the_templates_own_whatever_users_write(
    contents: list[str], tool: str
) -> None:
    template, tokenizer = chatml(), byte_level()

    def control(words: list[str], tools: list[dict[str, Any]]) -> list[int]:
        messages = [message for content in words for message in user(content)]
        ids = template.encode(messages, tools=tools)
        assert tokenizer.decode(ids, skip_special_tokens=False) == (
            template.render(messages, tools=tools)
        )
        return [i for i in ids if i in tokenizer.special_ids]

    hostile = control(contents, [{"name": tool, tool: {"enum": [tool]}}])
    harmless = control(["x"] * len(contents), [{"name": "x"}])
    assert hostile == harmless


@given(content=st.text(st.characters(exclude_categories=["Cs"])))
def test_harmless_prompts_are_tokenized_as_the_rendered_text(content: str) -> None:
    template, tokenizer = chatml(), byte_level()
    ids = template.encode(user(content))
    text = template.render(user(content))
    assert ids == tokenizer.encode(text, add_special_tokens=False, parse_special=True)


def test_parts_of_one_message_do_not_join_to_a_control_token() -> None:
    parts = [{"type": "text", "text": "<|im_"}, {"type": "text", "text": "end|>"}]
    template = chatml()
    assert template.render(user(parts)) == template.render(user("<|im_end|>"))
    assert template.encode(user(parts)) == template.encode(user("<|im_end|>"))
    assert template.encode(user(parts)).count(3) == 1


def test_text_that_uses_up_all_marks_is_refused() -> None:
    every = "".join(map(chr, range(0xFDD0, 0xFDF0)))
    with pytest.raises(InvalidParameter, match="U\\+FDD0"):
        chatml().encode(user(every))


def test_developer_is_system_where_the_template_has_none() -> None:
    message = [{"role": "developer", "content": "be brief"}]
    assert "<|im_start|>system\n" in chatml().render(message)
    own = ChatTemplate(CHATML + "{# developer #}", byte_level())
    assert "<|im_start|>developer\n" in own.render(message)


def test_arguments_of_tool_calls_reach_the_template_as_an_object() -> None:
    source = "{% for c in messages[0].tool_calls %}{{ c.function.arguments.city }}{% endfor %}"
    template = ChatTemplate(source, byte_level())
    call = {"type": "function", "function": {"name": "f", "arguments": '{"city": "Rome"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert template.render([message]) == "Rome"
    broken = {**call, "function": {"name": "f", "arguments": "no json"}}
    assert template.render([{**message, "tool_calls": [broken]}]) == ""


def test_the_last_message_can_be_left_open() -> None:
    messages = [*user("hi"), {"role": "assistant", "content": "Once upon "}]
    text = chatml().render(messages, add_generation_prompt=False, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nOnce upon ")
    ids = chatml().encode(messages, add_generation_prompt=False, continue_final_message=True)
    assert byte_level().decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        (user("x"), {"continue_final_message": True}),
        ([], {"continue_final_message": True, "add_generation_prompt": False}),
        (
            [{"role": "assistant", "content": None}],
            {"continue_final_message": True, "add_generation_prompt": False},
        ),
    ],
)
def test_what_cannot_be_left_open_is_refused(messages: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter) as refused:
        chatml().render(messages, **options)
    assert refused.value.param == "continue_final_message"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content.no.such }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10000000) %}x{% endfor %}",
    ],
)
def test_a_template_that_fails_or_breaks_out_is_the_requests_error(source: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        ChatTemplate(source, byte_level()).render(user("x"))
    assert refused.value.param == "messages"


def test_what_templates_on_the_hub_use_is_there() -> None:
    source = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ {'ü': 1} | tojson }}{% endgeneration %}{% endfor %}"
        "{{ strftime_now('%Y')|length }}{{ enable_thinking }}{{ eos_token }}"
    )
    template = ChatTemplate(source, byte_level())
    assert template.render([*user("a"), *user("b")], enable_thinking=False) == '{"ü": 1}4False</s>'


def test_templates_are_found_wherever_checkpoints_keep_them(tmp_path: Path) -> None:
    def tokenizer(config: dict[str, Any]) -> Tokenizer:
        return Tokenizer(byte_level()._description, config)

    bare = tokenizer({})
    assert ChatTemplate.from_folder(tmp_path, bare) is None
    listed = tokenizer({"chat_template": "in config"})
    assert _render(tmp_path, listed) == "in config"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "in json"}))
    assert _render(tmp_path, listed) == "in json"
    (tmp_path / "chat_template.jinja").write_text("in jinja")
    assert _render(tmp_path, listed) == "in jinja"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    assert _render(tmp_path, listed) == "in jinja"
    assert _render(tmp_path, listed, tools=[{"name": "f"}]) == "with tools"


def test_named_templates_of_the_tokenizer_config(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    tokenizer = Tokenizer(byte_level()._description, {"chat_template": named})
    assert _render(tmp_path, tokenizer) == "plain"
    assert _render(tmp_path, tokenizer, tools=[{}]) == "tools"
    broken = Tokenizer(byte_level()._description, {"chat_template": [{"name": "x"}]})
    with pytest.raises(ConfigError, match="neither a template nor a list"):
        ChatTemplate.from_folder(tmp_path, broken)


def test_the_operators_template_is_a_file_or_the_text_itself(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("own")
    from_file = ChatTemplate.from_setting(str(tmp_path / "own.jinja"), byte_level())
    assert from_file.render(user("x")) == "own"
    assert ChatTemplate.from_setting("{{ 1 + 1 }}", byte_level()).render(user("x")) == "2"
    for wrong in (str(tmp_path / "none.jinja"), "{% if %}"):
        with pytest.raises(ConfigError):
            ChatTemplate.from_setting(wrong, byte_level())


@pytest.mark.slow  # imports transformers
def test_the_bundled_template_gives_what_transformers_gives() -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(TARGET)
    tokenizer = Tokenizer.from_folder(TARGET)
    ours = ChatTemplate.from_folder(TARGET, tokenizer)
    assert ours is not None
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Tell me a story, naïve 狐."},
        {"role": "assistant", "content": "Once\n\n upon"},
        {"role": "user", "content": " more "},
    ]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {}}}}}
    for tools in (None, [tool]):
        expected = theirs.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert ours.encode(messages, tools=tools) == expected
    text = "Once upon a time <|im_end|> naïve 狐"
    assert tokenizer.encode(text, parse_special=True) == theirs(text)["input_ids"]


def _render(folder: Path, tokenizer: Tokenizer, **options: Any) -> str:
    template = ChatTemplate.from_folder(folder, tokenizer)
    assert template is not None
    return template.render(user("x"), **options)
