"""The pair's tokenizer, a byte-level BPE of 4096 entries with single digits, and chat template.

Each chat message is `<|im_start|>role` newline content `<|im_end|>` newline. Tools are listed in
the system message, one JSON object a line; the assistant calls one with
`<|tool_call|>{"name": ..., "arguments": ...}<|/tool_call|>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from bundled.corpus import TOOL_PREAMBLE, Message

VOCABULARY_SIZE = 4096

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
PAD = "<|pad|>"
SPECIAL_TOKENS = (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    IM_START,
    IM_END,
    PAD,
    "<|tool_call|>",
    "<|/tool_call|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    *(f"<|reserved_{index}|>" for index in range(6)),
)
BEGIN_OF_TEXT_ID, END_OF_TEXT_ID, IM_START_ID, IM_END_ID, PAD_ID = range(5)

_SPECIAL = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS))

# JSON schemas are shortened to the form of the corpus: {"city": "string"}.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- set system = namespace(text='') %}"
    "{%- if messages and messages[0].role == 'system' %}"
    "{%- set system.text = messages[0].content %}"
    "{%- endif %}"
    "{%- if tools %}"
    "{%- if system.text %}{%- set system.text = system.text + '\\n' %}{%- endif %}"
    "{%- set system.text = system.text + '" + TOOL_PREAMBLE + "' %}"
    "{%- for tool in tools %}"
    "{%- set function = tool.function if tool.function is defined else tool %}"
    "{%- set fields = namespace(text='') %}"
    "{%- for name, field in ((function.parameters or {}).get('properties') or {}).items() %}"
    "{%- set fields.text = fields.text + (', ' if fields.text else '') + (name | tojson) + ': '"
    " + ((field.type if field.type is defined else 'string') | tojson) %}"
    "{%- endfor %}"
    "{%- set system.text = system.text + '\\n{\"name\": ' + (function.name | tojson)"
    " + ', \"parameters\": {' + fields.text + '}}' %}"
    "{%- endfor %}"
    "{%- endif %}"
    "{%- if system.text %}"
    "{{- '<|im_start|>system\\n' + system.text + '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role != 'system' or not loop.first %}"
    "{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content %}{{- message.content }}{%- endif %}"
    "{%- for call in message.tool_calls or [] %}"
    "{%- set function = call.function if call.function is defined else call %}"
    "{{- '<|tool_call|>{\"name\": ' + (function.name | tojson) + ', \"arguments\": ' }}"
    "{{- function.arguments if function.arguments is string else function.arguments | tojson }}"
    "{{- '}<|/tool_call|>' }}"
    "{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Trains the tokenizer; special tokens in `texts` are skipped, so no merge crosses them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_SPECIAL.sub("\n", text) for text in texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_TEXT} $A",
        pair=f"{BEGIN_OF_TEXT} $A {BEGIN_OF_TEXT} $B",
        special_tokens=[(BEGIN_OF_TEXT, BEGIN_OF_TEXT_ID)],
    )
    return tokenizer


def story_text(story: str) -> str:
    """A story as the model sees it: begin, text, end."""
    return f"{BEGIN_OF_TEXT}{story}{END_OF_TEXT}"


def chat_text(chat: list[Message], *, prompt: bool = False) -> str:
    """What the chat template renders for corpus messages; `prompt` opens the assistant's turn."""
    turns = "".join(f"{IM_START}{turn['role']}\n{turn['content']}{IM_END}\n" for turn in chat)
    return f"{BEGIN_OF_TEXT}{turns}{f'{IM_START}assistant{chr(10)}' if prompt else ''}"
