"""A byte-level tokenizer trained on a few lines, chat templates of the common kinds, and conversations for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from edgelora.language.tokens import Tokens

VOCABULARY = 400
BOS, EOS = "<|im_start|>", "<|im_end|>"
LINES = (
    "Once upon a time there was a little girl who lived by the sea.",
    "What is the capital of France? Paris is the capital of France.",
    "She said: «Ça va très bien, merci!» and laughed — 東京 is far away 🙂.",
    "the quick brown fox jumps over the lazy dog, 1234567890 times\n\nand again\t!",
)

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
TAGGED = """{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}
    {%- else %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
STRICT = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
BLOCKS = """{%- set ns = namespace(count=0, tools=[]) %}{{ bos_token }}
{%- for message in messages %}
{%- set ns.count = ns.count + 1 %}
{%- if message.role == 'tool' %}{% continue %}{% endif %}
[{{ ns.count }}] {{ message.role | upper }}: {{ message.content | tojson }}{{ eos_token }}
{% endfor %}
{%- if add_generation_prompt %}[{{ ns.count + 1 }}] ASSISTANT: {% endif %}"""
THINKING = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

ASK = ({"role": "user", "content": "What is the capital of France?"},)
ANSWER = ({"role": "assistant", "content": "Paris — of course."},)
LONG = (
    *ASK,
    *ANSWER,
    {"role": "user", "content": "And of <Japan> & «others»?"},
    {"role": "assistant", "content": "東京"},
)


@cache
def tokenizer() -> Tokenizer:
    """Byte-level BPE of `VOCABULARY` tokens with ChatML's; it puts none around a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(LINES * 3, trainer)
    return made


def tokens(folder: Path, template: str | None = CHATML, begins: bool = False, vocabulary: int = VOCABULARY) -> Tokens:
    """The tokenizer as a bundle has it, which with `begins` puts a token before each text."""
    one = Tokenizer.from_str(tokenizer().to_str())
    if begins:
        one.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, one.token_to_id(BOS))]
        )
    path, chat = folder / "tokenizer.json", folder / "chat_template.jinja"
    one.save(str(path))
    if template is not None:
        chat.write_text(template, encoding="utf-8")
    bos, eos = (int(one.token_to_id(name) or 0) for name in (BOS, EOS))
    return Tokens(path, vocabulary, bos, (eos,), None if template is None else chat)
