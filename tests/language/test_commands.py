"""`edgelora generate` and `edgelora chat`."""

from __future__ import annotations

import io
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch

from edgelora.cli import main
from edgelora.language.conversation import Chat
from edgelora.language.sampling import GenerationConfig
from tests.language_models import build

TEN = ("--max-new-tokens", "10")
CONFIG = GenerationConfig(max_new_tokens=10)


@pytest.fixture
def run(language_bundle: Path, model, drawn, capsys):
    """run(verb, *options): exit status, standard output and error; the store holds anna and ben."""
    model.store.save("anna", drawn(1))
    model.store.save("ben", drawn(2))

    def command(verb: str, *options: str) -> tuple[int, str, str]:
        status = main([verb, str(language_bundle), "--store", str(model.store.root), *options])
        said = capsys.readouterr()
        return status, said.out, said.err

    return command


def typed(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_a_prompt_goes_on_with_an_adapter(run, model):
    wanted = model.generate(["Once"], "anna", config=CONFIG)[0].text
    assert run("generate", "--prompt", "Once", "--adapter", "anna", *TEN) == (0, wanted + "\n", "")
    assert run("generate", "--prompt", "Once", "--adapter", "anna", "--stream", *TEN) == (0, wanted + "\n", "")


def test_settings_that_draw_turn_drawing_on(run, model):
    config = GenerationConfig(max_new_tokens=10, do_sample=True, temperature=0.7, top_k=9, top_p=0.9, seed=4)
    options = ("--temperature", "0.7", "--top-k", "9", "--top-p", "0.9", "--seed", "4")
    wanted = model.generate(["Once"], config=config)[0].text
    assert run("generate", "--prompt", "Once", *options, *TEN)[1] == wanted + "\n"
    drawn = {run("generate", "--prompt", "Once", "--sample", *TEN)[1] for _ in range(3)}
    assert len(drawn) > 1


def test_prompts_from_lines_and_from_data_with_an_adapter_each(run, model, monkeypatch, tmp_path):
    wanted = model.generate(["Once", "What"], adapters=["anna", None], config=CONFIG)
    typed(monkeypatch, "Once\n\nWhat\n")
    status, said, _ = run("generate", "--json", *TEN)
    assert status == 0
    assert [one["text"] for one in json.loads(said)] == [
        one.text for one in model.generate(["Once", "What"], config=CONFIG)
    ]
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "Once", "adapter": "anna"}\n{"prompt": "What"}\n', encoding="utf-8")
    results = json.loads(run("generate", "--data", str(data), "--json", *TEN)[1])
    assert results == [
        {"prompt": prompt, "adapter": adapter, "text": one.text, "finish_reason": one.finish_reason,
         "prompt_tokens": one.prompt_tokens, "new_tokens": len(one.tokens)}
        for prompt, adapter, one in zip(("Once", "What"), ("anna", None), wanted, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize("verb", ["generate", "predict"])
@pytest.mark.parametrize("name", ["txt", "coco", "voc", "yolo"])
def test_prompts_and_inputs_are_records_alone(run, verb, name):
    status, _, said = run(verb, "--data", "-", "--format", name)
    assert status == 2 and "csv, jsonl)" in said.replace("'", "")


def test_a_conversation_of_data_is_answered(run, model, tmp_path):
    messages = [{"role": "user", "content": "What?"}]
    data = tmp_path / "asked.jsonl"
    data.write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    (result,) = json.loads(run("generate", "--data", str(data), "--json", *TEN)[1])
    assert result["text"] == model.generate([messages], config=CONFIG)[0].text
    assert result["prompt"] == messages


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--prompt", "a", "--top-p", "2"), "top_p"),
        (("--prompt", "a", "--adapter", "carl"), "no adapter 'carl'"),
        (("--prompt", "a", "--prompt", "b", "--stream"), "--stream"),
        (("--prompt", "a", "--data", "x.jsonl"), "--prompt and --data"),
        (("--prompt", "a " * 200), "shorten it"),
        (("--prompt", "caf\udce9"), "prompt 1: the text is not valid Unicode"),
        (("--prompt", "a", "--lora-r", "4"), "unrecognized arguments: --lora-r 4; `edgelora generate --help`"),
    ],
)
def test_what_cannot_be_generated_is_named(run, options, named):
    status, said, error = run("generate", *options)
    assert (status, said) == (2, "")
    assert named in error


def test_lines_are_turns_and_commands(run, model, monkeypatch):
    chat = Chat(model, "anna", "Be brief.", CONFIG)
    answers = [chat.ask("What?").text, chat.ask("And?").text]
    chat.use("ben")
    answers.append(chat.ask("And?").text)
    chat.reset()
    answers.append(chat.ask("And?").text)
    typed(monkeypatch, "What?\n\n  And?\n/adapter ben\nAnd?\n/reset\n/adapter carl\n/what\nAnd?\n/exit\nnot asked\n")
    status, said, error = run("chat", "--adapter", "anna", "--system", "Be brief.", *TEN)
    assert status == 0
    assert said == "".join(f"{answer}\n" for answer in answers)
    for told in ("ben answers", "forgotten", "no adapter 'carl'", "/what is no command"):
        assert told in error


def test_an_answer_that_is_cut_off_says_so(run, model, monkeypatch):
    ended = Chat(model, None, None, GenerationConfig(max_new_tokens=2)).ask("What?").text
    typed(monkeypatch, "What?\n")
    status, said, error = run("chat", "--max-new-tokens", "2")
    assert (status, said) == (0, f"{ended}\n")
    assert error == "(cut off after 2 tokens; --max-new-tokens allows more)\n"
    typed(monkeypatch, "What?\n")
    assert run("chat", "--stop", ended[-1], *TEN)[2] == ""


def test_answers_as_lines_of_json(run, model, monkeypatch):
    chat = Chat(model, None, None, CONFIG)
    wanted = [chat.ask("What?"), chat.ask("And?")]
    typed(monkeypatch, f"What?\n{'too long' * 200}\nAnd?\n")
    lines = [json.loads(line) for line in run("chat", "--json", *TEN)[1].splitlines()]
    failed = lines.pop(1)
    assert failed["kind"] == "DataError" and "more than the 192 that the model takes" in failed["error"]
    assert [line["text"] for line in lines] == [one.text for one in wanted]
    assert [line["finish_reason"] for line in lines] == ["length", "length"]
    assert lines[1]["read_tokens"] == chat.read
    assert [line["new_tokens"] for line in lines] == [len(one.tokens) for one in wanted]


class InterruptedOutput(io.StringIO):
    """Standard output at which Ctrl-C arrives once, when something is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.interrupted = False

    def write(self, text: str) -> int:
        written = super().write(text)
        if text.strip() and not self.interrupted:
            self.interrupted = True
            signal.raise_signal(signal.SIGINT)
        return written


def test_ctrl_c_stops_the_answer_and_not_the_program(run, model, monkeypatch):
    whole = Chat(model, None, None, CONFIG).ask("What?").text
    output = InterruptedOutput()
    monkeypatch.setattr(sys, "stdout", output)
    typed(monkeypatch, "What?\nAnd?\n")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores the signal
    try:
        status, _, error = run("chat", *TEN)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert (status, output.interrupted, "(stopped)" in error) == (0, True, True)
    first = next(n for n in range(1, len(whole)) if output.getvalue().startswith(whole[:n] + "\n"))
    chat = Chat(model, None, None, CONFIG)
    chat.messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": whole[:first]}]
    assert output.getvalue() == f"{whole[:first]}\n{chat.ask('And?').text}\n"


def test_ctrl_c_stops_a_text_and_nothing_goes_on_later(run, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgelora.cli.language.show", interrupted)
    assert run("generate", "--prompt", "Once", "--stream", *TEN) == (130, "", "edgelora: interrupted\n")


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        (
            ("--max-new-tokens", "500"),
            "500 new ones (max_new_tokens) would make more than the 192 that the model takes",
        ),
        (("--cache-memory", "4kB"), "would make more than the 7 that cache_memory holds"),
    ],
)
def test_a_conversation_without_room_says_what_leaves_none(run, options, limit):
    status, said, error = run("chat", *options)
    assert (status, said) == (2, "") and limit in error


def test_the_end_of_input_leaves_the_terminal_at_the_start_of_a_line(run, monkeypatch):
    def ended(_: str) -> str:
        raise EOFError

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", ended)
    status, _, error = run("chat")
    assert status == 0 and error.endswith("Ctrl-C stops an answer\n\n")


def test_an_exported_adapter_is_a_decoders_in_peft(run, model, tmp_path):
    """Which programs that read PEFT's directories go by."""
    assert run("export", "--adapter", "anna", "-o", str(tmp_path / "anna"))[0] == 0
    wrapped = peft.PeftModel.from_pretrained(build("llama"), str(tmp_path / "anna"))
    assert type(wrapped) is peft.PeftModelForCausalLM
    ids = model.encoder.encode("Once").ids
    made = wrapped.generate(input_ids=torch.from_numpy(ids[None]), max_new_tokens=10, do_sample=False)
    assert tuple(made[0, len(ids) :].tolist()) == model.generate(["Once"], "anna", config=CONFIG)[0].tokens


def test_an_adapter_that_is_not_there_is_named_before_the_first_turn(run, monkeypatch):
    typed(monkeypatch, "What?\n")
    status, said, error = run("chat", "--adapter", "carl")
    assert (status, said) == (2, "")
    assert "no adapter 'carl'" in error
