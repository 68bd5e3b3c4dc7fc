"""Chat templates render as transformers renders them, in a sandbox."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from text_models import byte_level

from bestiary.core.errors import RequestError
from bestiary.core.text.chat import ChatTemplate

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a "
    "helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] "
    "+ '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n'"
    " }}{% endif %}"
)
TEMPLATES = {
    "smollm2": SMOLLM2,
    "blocks": """{{ bos_token }}
{%- for message in messages %}
    {% if message.role == 'system' %}
{% continue %}
    {% endif %}
  [{{ message.role | upper }}] {{ message['content'] | trim }}{{ eos_token }}
{% endfor %}
""",
    "tools": """{% if tools is not none %}{{ tools | tojson(indent=2) }}{% endif %}{{ messages | tojson }}{{ documents }}""",
    "generation": """{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}""",
    "namespace": """{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ extra | default('none') }}""",
}
CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": '  <b>é</b> & "q"\n'},
        {"role": "assistant", "content": "x"},
    ],
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<é>", "parameters": {}}}]


@pytest.fixture(scope="module")
def reference():
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=byte_level().backend, bos_token="<bos>", eos_token="<end>")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS, ids=["short", "long"])
@pytest.mark.parametrize("prompt", [True, False])
def test_rendering_is_transformers(reference, name, chat, prompt):
    template = ChatTemplate(TEMPLATES[name], {"bos_token": "<bos>", "eos_token": "<end>"})
    for variables in ({}, {"tools": TOOLS}, {"extra": "more"}):
        expected = reference.apply_chat_template(
            chat, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=prompt, **variables
        )
        assert template.render(chat, add_generation_prompt=prompt, **variables) == expected


def test_the_clock_is_shown_as_asked():
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2024, 7, 26))
    assert template.render(CHATS[0]) == "26 Jul 2024"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[5].content.x }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ lipsum.__globals__['os'] }}",
        "{{ messages.append(1) }}",
        "{{ range(10**9) | list }}",
        "{{ 1 / 0 }}",
        "{% include 'x' %}",
    ],
)
def test_a_failing_template_is_a_request_error(source):
    with pytest.raises(RequestError) as raised:
        ChatTemplate(source).render(CHATS[0])
    assert raised.value.code == "E-REQ-CHAT" and len(str(raised.value)) < 500


def test_a_broken_template_is_refused():
    with pytest.raises(RequestError, match="E-REQ-TEMPLATE"):
        ChatTemplate("{% for %}")


@pytest.mark.parametrize("messages", [[], "hello", {"role": "user"}, [1], [{"content": "x"}], [{"role": 3}], None])
def test_malformed_messages_are_refused(messages):
    with pytest.raises(RequestError, match="E-REQ-CHAT"):
        ChatTemplate(SMOLLM2).render(messages)


@pytest.mark.parametrize(
    "message", [{"role": "user"}, {"role": "user", "content": None}, {"role": "user", "tool_calls": []}]
)
def test_a_message_that_says_nothing_is_named(message):
    with pytest.raises(RequestError, match=r"messages\[1\]: says nothing.*expected a content, or tool_calls"):
        ChatTemplate(SMOLLM2).render([{"role": "user", "content": "Hi"}, message])
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    assert ChatTemplate("{{ messages[0].tool_calls[0].name }}").render([call]) == "f"


def test_templates_are_found_in_a_model_directory(tmp_path):
    assert ChatTemplate.load(tmp_path, {}) is None
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "named"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate.load(tmp_path, {}).render(CHATS[0]) == "named"
    (tmp_path / "chat_template.jinja").write_text("file {{ bos_token }}")
    assert ChatTemplate.load(tmp_path, {"bos_token": "<s>"}).render(CHATS[0]) == "file <s>"
