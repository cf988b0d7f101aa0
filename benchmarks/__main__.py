"""`python -m benchmarks CASE`: measure, print the table, write JSON and a plot."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import (
    clinc,
    conversion,
    convolutions,
    decoding,
    inference,
    language,
    memory,
    methods,
    methods_report,
    people,
    quantized,
    report,
    speed,
    speed_report,
    stages,
    sweep,
    tasks,
    variants,
    vision,
    vision_cases,
)
from benchmarks.cases import CASES
from benchmarks.measure import BenchmarkError
from benchmarks.rivals import RIVALS
from benchmarks.tasks.case import Grid

ALL_LINEAR = "all-linear"


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        body = options.run(options)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(options.markdown(body))
    if options.json is not None:
        options.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    if getattr(options, "markdown_file", None) is not None:
        options.markdown_file.write_text(options.markdown(body) + "\n", encoding="utf-8")
    if getattr(options, "page", None) is not None:
        options.put_into_page(body, options.page)
    if options.plot is not None:
        options.draw(body, options.plot)
    return 0


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m benchmarks", description="EdgeLoRA and its rivals, in turn.")
    cases = root.add_subparsers(dest="case", required=True)
    case = cases.add_parser("clinc", help="PEFT and EdgeLoRA on all-MiniLM-L6 and CLINC150", description=clinc.__doc__)
    default = clinc.ClincOptions()
    case.add_argument("--epochs", type=positive, default=default.epochs)
    case.add_argument("--repeats", type=positive, default=default.repeats, help="runs of each side")
    case.add_argument("--per-intent", type=positive, default=default.per_intent, help="training utterances an intent")
    case.add_argument(
        "--targets", nargs="+", default=list(default.targets), metavar="NAME", help=f"target modules, or {ALL_LINEAR}"
    )
    case.add_argument("--batch-size", type=positive, default=default.batch_size)
    case.add_argument(
        "--micro-batch-size",
        type=positive,
        metavar="N",
        help="let EdgeLoRA cut each batch into parts of N texts of similar length (default: pad as PEFT does)",
    )
    case.add_argument("--threads", type=positive, default=default.threads, help="threads of each process")
    case.add_argument("--seed", type=int, default=default.seed)
    case.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    case.add_argument("--plot", type=Path, metavar="FILE", help="write accuracy and loss curves")
    case.add_argument("--quick", action="store_true", help="a smoke run of a few steps; its figures mean nothing")
    case.set_defaults(run=lambda o: clinc.run(clinc_options(o), progress), markdown=report.markdown, draw=report.plot)
    add_speed(cases)
    add_sweep(cases)
    add_tasks(cases)
    add_choose(cases)
    case = cases.add_parser(
        "conversion", help="conversion time and memory by the size of the graph", description=conversion.__doc__
    )
    case.add_argument("--layers", nargs="+", type=positive, default=[2, 4, 8, 16, 30], metavar="N")
    case.add_argument("--size", choices=list(conversion.SIZES), default="thin", help="width of the decoder (thin)")
    case.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    case.set_defaults(run=lambda o: conversion.run(o.layers, o.size, progress), markdown=conversion.markdown, plot=None)
    case = cases.add_parser(
        "convolutions", help="the ways of a convolution's input gradient", description=convolutions.__doc__
    )
    case.add_argument("--threads", nargs="+", type=positive, default=[1, 2], metavar="N")
    case.add_argument("--batch-size", type=positive, default=4)
    case.add_argument("--runs", type=positive, default=21, help="of each way")
    case.add_argument("--only", nargs="+", metavar="KIND", help=f"of {', '.join(k.name for k in convolutions.KINDS)}")
    case.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    case.add_argument("--markdown", type=Path, metavar="FILE", dest="markdown_file", help="write the table")
    case.set_defaults(
        run=lambda o: convolutions.run(o.threads, o.batch_size, o.runs, o.only, progress),
        markdown=convolutions.markdown,
        plot=None,
    )
    case = cases.add_parser("decoding", help="what adapters cost where text is written", description=decoding.__doc__)
    case.add_argument("--source", default="recipe:smollm2-135m", help="as `edgelora convert` takes it (%(default)s)")
    case.add_argument("--lengths", nargs="+", type=positive, default=[32, 256], metavar="N", help="tokens read before")
    case.add_argument("--threads", type=positive, default=2)
    case.add_argument("--tokens", type=positive, default=100, help="written by each side")
    case.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    case.set_defaults(
        run=lambda o: decoding.run(o.source, o.lengths, o.threads, o.tokens, progress),
        markdown=decoding.markdown,
        plot=None,
    )
    add_vision(cases)
    add_language(cases)
    case = cases.add_parser("memory", help="memory budgets, predicted and measured", description=memory.__doc__)
    budgets = memory.MemoryOptions()
    case.add_argument("--ram", nargs="*", default=budgets.ram, metavar="SIZE", help="the budgets")
    case.add_argument("--whole", nargs="+", default=[], metavar="SIZE", help="budgets in which no batch is split")
    case.add_argument("--joined", type=positive, default=budgets.joined, help="utterances of a text (1)")
    case.add_argument("--batch-size", type=positive, default=budgets.batch_size)
    case.add_argument("--repeats", type=positive, default=budgets.repeats)
    case.add_argument("--steps", type=positive, default=budgets.steps, help="updates of each run (an epoch)")
    case.add_argument("--threads", type=positive, default=budgets.threads)
    case.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    case.set_defaults(run=lambda o: memory.run(memory_options(o), progress), markdown=memory.markdown, plot=None)
    case = cases.add_parser("methods", help="adapter methods beside each other", description=methods.__doc__)
    add_methods(case)
    case = cases.add_parser("inference", help="what adapters cost at inference", description=inference.__doc__)
    case.add_argument(
        "--lengths", nargs="+", type=positive, default=[16, 64, 128], metavar="N", help="tokens of a text"
    )
    case.add_argument("--stored", type=positive, default=10_000, help="adapters on disk")
    case.add_argument("--threads", type=positive, default=2)
    case.add_argument("--runs", type=positive, default=100, help="runs of each side")
    case.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    case.set_defaults(
        run=lambda o: inference.run(o.lengths, o.stored, o.threads, o.runs, progress),
        markdown=inference.markdown,
        plot=None,
    )
    case = cases.add_parser("people", help="many people on one device", description=people.__doc__)
    case.add_argument("--stored", type=positive, default=10_000, help="adapters on disk")
    case.add_argument("--people", type=positive, default=64, help="and as many threads")
    case.add_argument("--calls", type=positive, default=10, help="of each thread")
    case.add_argument("--threads", type=positive, default=2, help="cores for an operator")
    case.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    case.set_defaults(
        run=lambda o: people.run(o.stored, o.people, o.calls, o.threads, progress),
        markdown=people.markdown,
        plot=None,
    )
    case = cases.add_parser("stages", help="what a stage of the conversion brings", description=stages.__doc__)
    case.add_argument("source", nargs="?", default="benchmarks.stages:llama", metavar="SOURCE", help="as for convert")
    case.add_argument("--stage", choices=list(stages.STAGES), default="composites", help="the one to leave out")
    case.add_argument("--batch-size", type=positive, default=4)
    case.add_argument("--length", type=positive, default=128)
    case.add_argument("--steps", type=positive, default=30)
    case.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    case.set_defaults(
        run=lambda o: stages.run(o.stage, o.source, o.batch_size, o.length, o.steps, progress),
        markdown=stages.markdown,
        plot=None,
    )
    case = cases.add_parser("quantize", help="int8 and int4 bases beside float32", description=quantized.__doc__)
    case.add_argument("--steps", type=positive, default=20)
    case.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    case.set_defaults(run=lambda o: quantized.run(o.steps, progress), markdown=quantized.markdown, plot=None)
    return root


def add_vision(cases: Any) -> None:
    default = vision.VisionOptions()
    case = cases.add_parser("vision", help="a vision network's step against torch's", description=vision.__doc__)
    case.add_argument("--case", choices=list(vision_cases.CASES), default=default.case, dest="work")
    case.add_argument("--rounds", nargs="+", choices=vision_cases.ROUNDS, help="(all that the case has)")
    case.add_argument("--size", type=positive, metavar="N", help="of the pictures (the case's own)")
    case.add_argument("--batch-size", type=positive, metavar="N", help="(the case's own)")
    case.add_argument("--steps", type=positive, default=default.steps, help="of each run, or of its epochs")
    case.add_argument("--repeats", type=positive, default=default.repeats, help="runs of each contender")
    case.add_argument("--threads", type=positive, default=default.threads, help="threads of each process")
    add_spinning(case)
    case.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    case.set_defaults(run=lambda o: vision.run(vision_options(o), progress), markdown=vision.markdown, plot=None)


def add_spinning(case: argparse.ArgumentParser) -> None:
    case.add_argument(
        "--spinning",
        action=argparse.BooleanOptionalAction,
        help="whether our threads that wait stay awake, as PyTorch's do (as edgelora has it by default)",
    )


def add_language(cases: Any) -> None:
    default = language.LanguageOptions()
    case = cases.add_parser("language", help="a language model's training beside PEFT's", description=language.__doc__)
    case.add_argument("--model", type=Path, metavar="DIR", help=f"a Hugging Face directory (recipe:{language.RECIPE})")
    case.add_argument("--rounds", nargs="+", choices=language.ROUNDS, default=list(default.rounds))
    case.add_argument("--bases", nargs="+", choices=language.BASES, default=list(default.bases))
    case.add_argument("--rivals", nargs="+", choices=list(language.RIVALS), default=list(default.rivals))
    case.add_argument("--steps", type=positive, default=default.steps, help="of each run")
    case.add_argument("--repeats", type=positive, default=default.repeats, help="runs of each contender")
    case.add_argument("--threads", type=positive, default=default.threads, help="threads of each process")
    add_spinning(case)
    case.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    case.add_argument("--markdown", type=Path, metavar="FILE", dest="markdown_file", help="write the tables")
    case.add_argument("--quick", action="store_true", help="a smoke run of a few steps; its figures mean nothing")
    case.set_defaults(run=lambda o: language.run(language_options(o), progress), markdown=language.markdown, plot=None)


def language_options(options: argparse.Namespace) -> language.LanguageOptions:
    chosen = language.LanguageOptions(
        model=options.model,
        rounds=tuple(options.rounds),
        bases=tuple(options.bases),
        rivals=tuple(options.rivals),
        steps=options.steps,
        repeats=options.repeats,
        threads=options.threads,
        spinning=options.spinning,
    )
    return chosen.quick() if options.quick else chosen


def vision_options(options: argparse.Namespace) -> vision.VisionOptions:
    return vision.VisionOptions(
        case=options.work,
        rounds=options.rounds and tuple(options.rounds),
        size=options.size,
        batch_size=options.batch_size,
        steps=options.steps,
        repeats=options.repeats,
        threads=options.threads,
        spinning=options.spinning,
    )


def add_sweep(cases: Any) -> None:
    case = cases.add_parser("sweep", help="how a step's cost grows, ours and PEFT's", description=sweep.__doc__)
    case.add_argument("--axis", choices=list(sweep.AXES), required=True)
    case.add_argument("--values", type=positive, nargs="+", metavar="N", help="along the axis (a usual choice)")
    case.add_argument("--steps", type=positive, default=21, help="steps at each value (21)")
    case.add_argument("--threads", type=positive, default=2, help="threads of each process")
    case.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    case.add_argument("--plot", type=Path, metavar="FILE", help="write step time and memory along the axis")
    case.set_defaults(
        run=lambda o: sweep.run(o.axis, o.values and tuple(o.values), o.steps, o.threads, progress),
        markdown=sweep.markdown,
        draw=sweep.plot,
    )


def add_methods(case: argparse.ArgumentParser) -> None:
    default, names = methods.MethodsOptions(), list(methods.METHODS)
    case.add_argument("--only", nargs="+", choices=names, default=names, metavar="METHOD", help=", ".join(names))
    case.add_argument("--epochs", type=positive, default=default.epochs)
    case.add_argument("--per-intent", type=positive, default=default.per_intent, help="training utterances an intent")
    case.add_argument("--seeds", nargs="+", type=int, default=list(default.seeds), metavar="N")
    case.add_argument("--rates", type=positive, default=default.rates, help="learning rates to try for each (1)")
    case.add_argument("--threads", type=positive, default=default.threads)
    case.add_argument("--no-peft", action="store_true", help="leave PEFT's runs out")
    case.add_argument(
        "--json", type=Path, metavar="FILE", help="keep every run there; go on from those that it holds already"
    )
    case.add_argument("--markdown", dest="markdown_file", type=Path, metavar="FILE", help="write the table")
    case.add_argument("--page", type=Path, metavar="FILE", help="put the table into a page, as docs/methods.md")
    case.add_argument("--plot", type=Path, metavar="FILE", help="write accuracy against parameters")
    case.add_argument("--quick", action="store_true", help="a smoke run of a few steps; its figures mean nothing")
    case.set_defaults(
        run=lambda o: methods.run(methods_options(o), progress),
        markdown=methods_report.markdown,
        put_into_page=methods_report.put_into_page,
        draw=methods_report.plot,
    )


def methods_options(options: argparse.Namespace) -> methods.MethodsOptions:
    return methods.MethodsOptions(
        only=tuple(options.only),
        epochs=options.epochs,
        per_intent=options.per_intent,
        seeds=tuple(options.seeds),
        rates=options.rates,
        threads=options.threads,
        peft=not options.no_peft,
        quick=options.quick,
        keep=options.json,
    )


def memory_options(options: argparse.Namespace) -> memory.MemoryOptions:
    return memory.MemoryOptions(
        ram=tuple(options.ram),
        whole=tuple(options.whole),
        joined=options.joined,
        batch_size=options.batch_size,
        repeats=options.repeats,
        steps=options.steps,
        threads=options.threads,
    )


def add_speed(cases: Any) -> None:
    default = speed.SpeedOptions()
    case = cases.add_parser("speed", help="every variant of ours against every rival", description=speed.__doc__)
    case.add_argument("--case", choices=list(CASES), default=default.case, dest="work")
    case.add_argument("--repeats", type=positive, default=default.repeats, help="runs of each contender")
    case.add_argument("--epochs", type=positive, default=default.epochs, help="epochs of a run of the cost round")
    case.add_argument(
        "--accuracy-repeats",
        type=int,
        default=default.accuracy_repeats,
        metavar="N",
        help="runs of the accuracy round, 0 to leave it out (1)",
    )
    case.add_argument("--accuracy-epochs", type=positive, default=default.accuracy_epochs, metavar="N")
    case.add_argument("--rivals", nargs="*", metavar="NAME", help=f"of {', '.join(r.name for r in RIVALS)} (all)")
    known = ", ".join(dict.fromkeys(v.name for v in (*variants.COST, *variants.FASTEST, variants.BUDGET)))
    case.add_argument("--variants", nargs="*", metavar="NAME", help=f"of {known} (all)")
    case.add_argument("--threads", type=positive, default=default.threads, help="threads of each process")
    case.add_argument("--seed", type=int, default=default.seed)
    case.add_argument("--max-steps", type=positive, metavar="N", help="cut the cost and prefix rounds short")
    case.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    case.add_argument("--markdown", type=Path, metavar="FILE", dest="markdown_file", help="write the tables")
    case.add_argument("--plot", type=Path, metavar="FILE", help="write bars of time and memory")
    case.add_argument("--quick", action="store_true", help="a smoke run of a few steps; its figures mean nothing")
    case.set_defaults(
        run=lambda o: speed.run(speed_options(o), progress), markdown=speed_report.markdown, draw=speed_report.plot
    )


def add_tasks(cases: Any) -> None:
    case = cases.add_parser("tasks", help="each task on real data, beside PEFT", description=tasks.__doc__)
    case.add_argument("--case", nargs="+", choices=list(tasks.CASES), default=list(tasks.CASES), dest="names")
    case.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    case.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    case.add_argument("--kept", type=Path, metavar="FOLDER", help="keep the bundles there, and take them from there")
    case.add_argument("--plot", type=Path, metavar="FILE", help="write bars of each case's first metric")
    case.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    case.set_defaults(
        run=lambda o: tasks.run(o.names, o.quick, o.seeds, progress, o.kept), markdown=tasks.markdown, draw=tasks.draw
    )


def add_choose(cases: Any) -> None:
    case = cases.add_parser("choose", help="settings of tasks, on training data", description=tasks.choose.__doc__)
    tried = [name for name in tasks.CASES if name not in ("raccoon", "speakers")]
    case.add_argument("--case", nargs="+", choices=tried, default=tried, dest="names")
    case.add_argument("--rates", nargs="+", type=float, required=True, metavar="RATE")
    case.add_argument("--epochs", nargs="+", type=positive, required=True, metavar="N")
    case.add_argument("--ranks", nargs="+", type=int, default=[0, 8], metavar="N", help="0 is a head alone (0 8)")
    case.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    case.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    case.add_argument("--kept", type=Path, metavar="FOLDER", help="keep the bundles there, and take them from there")
    case.set_defaults(
        run=lambda o: tasks.choose(o.names, Grid(o.rates, o.epochs, o.ranks, o.seeds), progress, o.kept),
        markdown=tasks.markdown,
        plot=None,
    )


def speed_options(options: argparse.Namespace) -> speed.SpeedOptions:
    chosen = speed.SpeedOptions(
        case=options.work,
        repeats=options.repeats,
        epochs=options.epochs,
        accuracy_repeats=options.accuracy_repeats,
        accuracy_epochs=options.accuracy_epochs,
        rivals=None if options.rivals is None else tuple(options.rivals),
        variants=None if options.variants is None else tuple(options.variants),
        threads=options.threads,
        seed=options.seed,
        max_steps=options.max_steps,
    )
    return chosen.quick() if options.quick else chosen


def clinc_options(options: argparse.Namespace) -> clinc.ClincOptions:
    chosen = clinc.ClincOptions(
        epochs=options.epochs,
        repeats=options.repeats,
        per_intent=options.per_intent,
        targets=ALL_LINEAR if options.targets == [ALL_LINEAR] else tuple(options.targets),
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size,
        threads=options.threads,
        seed=options.seed,
    )
    return chosen.quick() if options.quick else chosen


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
