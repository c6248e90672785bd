"""The arguments of `glm-cluster bench` and what each of its commands does, in order.

Knows arguments and the terminal. What measures is imported by the command that measures.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from glm_cluster.records import Quantization

if TYPE_CHECKING:
    from glm_cluster.bench.floor import Floor
    from glm_cluster.bench.prompts import Prompt
    from glm_cluster.bench.serving import Run
    from glm_cluster.config import EngineConfig
    from glm_cluster.text.tokenizer import Tokenizer

    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

_MODEL = "checkpoint directory or a name that `glm-cluster models` lists"
_DTYPES = ("auto", "float32", "bfloat16")
_DEVICES = ("auto", "cpu", "cuda")
_WARMUP_TOKENS_SEED = 7919  # rounds take seed, seed + 1, ...; the warm-up's prompts are none of theirs


def add_bench(commands: "Commands") -> None:
    """Add `bench` and its commands."""
    parser = commands.add_parser(
        "bench",
        help="measure the engine, a server, or the floor that this machine sets",
        description="Measure the engine alone, a server as its clients see it, or the floor that this machine sets.",
    )
    parser.set_defaults(load_before=os.getloadavg()[0])  # before anything of ours adds to it
    benches = parser.add_subparsers(title="benches", metavar="BENCH", required=True)
    _add_throughput(benches)
    _add_serve(benches)
    _add_floor(benches)


def _add_throughput(benches: "Commands") -> None:
    parser = benches.add_parser(
        "throughput",
        help="a whole job by an engine in this process, without a server",
        description="Time a job of N requests by an engine in this process: the first one, then others when warm.",
    )
    _add_model(parser)
    parser.add_argument("--requests", type=_count, metavar="N", default=16, help="default 16")
    parser.add_argument("--prompt-tokens", type=_count, metavar="P", default=128, help="default 128")
    parser.add_argument("--max-tokens", type=_count, metavar="T", default=128, help="of each answer (default 128)")
    parser.add_argument("--rounds", type=_count, metavar="N", default=3, help="warm runs after the first (default 3)")
    parser.add_argument("--seed", type=_number, metavar="N", default=0, help="of the prompts (default 0)")
    parser.add_argument(
        "--quantization", choices=get_args(Quantization), default="none", help="of weights and activations"
    )
    parser.add_argument(
        "--speculative-tokens", type=_number, metavar="N", default=0, help="most tokens guessed in a step (default 0)"
    )
    parser.add_argument("--floor", action="store_true", help="measure the job's GEMMs alone too, and give the share")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.set_defaults(run=_throughput)


def _add_serve(benches: "Commands") -> None:
    parser = benches.add_parser(
        "serve",
        help="a running server, as its clients see it",
        description="Load a server with clients that wait for their answers, or with --rate at times of its own, and "
        "say when tokens came.",
    )
    parser.add_argument("--url", metavar="U", default="http://127.0.0.1:8000", help="http(s)://... or grpc://host:port")
    parser.add_argument("--against", metavar="URL", help="a peer, measured by turns with the server")
    parser.add_argument("--model", metavar="NAME", help="as served (default: the first listed)")
    parser.add_argument("--peer-model", metavar="NAME", help="as the peer serves it (default: the first listed)")
    parser.add_argument("--tokenizer", metavar="PATH|NAME", default="demo", help=f"{_MODEL} (default: demo)")
    parser.add_argument("--requests", type=_count, metavar="N", default=32, help="in a round (default 32)")
    parser.add_argument("--prompt-tokens", type=_count, metavar="P", default=128, help="default 128")
    parser.add_argument("--max-tokens", type=_count, metavar="T", default=64, help="of each answer (default 64)")
    parser.add_argument("--seed", type=_number, metavar="N", default=0, help="of prompts and arrivals (default 0)")
    parser.add_argument("--rounds", type=_count, metavar="N", help="default 1, with --against 3")
    parser.add_argument("--warmup", type=_number, metavar="N", default=1, help="requests before the first (default 1)")
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument("--clients", type=_count, metavar="N", default=4, help="closed loop (default 4)")
    loop.add_argument("--rate", type=_positive, metavar="R", help="open loop: requests a second")
    parser.add_argument("--arrivals", choices=("poisson", "fixed"), default="poisson", help="of --rate")
    parser.add_argument("--slo-ttft-ms", type=_positive, metavar="MS", help="a good answer's first token")
    parser.add_argument("--slo-tpot-ms", type=_positive, metavar="MS", help="a good answer's mean time of a token")
    parser.add_argument("--slo-e2e-ms", type=_positive, metavar="MS", help="a good answer's end")
    parser.add_argument("--prompt-text", action="store_true", help="send text, for servers that take no ids")
    parser.add_argument("--ignore-eos", action="store_true", help="sent to the peer only, which must know it")
    parser.add_argument("--token-ids", action="store_true", help="ask our server for ids: an event for each step")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--report", type=Path, metavar="FILE", help="x.html, or x.png where matplotlib is installed")
    parser.set_defaults(run=_serve)


def _add_floor(benches: "Commands") -> None:
    parser = benches.add_parser(
        "gemm-floor",
        help="a model's GEMMs and weight reads alone",
        description="Time a model's GEMMs alone, with weights from memory: needs config.json or a recipe, no weights.",
    )
    _add_model(parser)
    parser.add_argument("--rows", type=_count, nargs="+", metavar="M", default=[1, 16], help="decode (default 1 16)")
    parser.add_argument("--prompt-tokens", type=_count, metavar="P", default=1024, help="prefill (default 1024)")
    parser.add_argument("--step-tokens", type=_count, metavar="N", default=512, help="of a prefill (default 512)")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.set_defaults(run=_floor)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="PATH|NAME", default="demo", help=f"{_MODEL} (default: demo)")
    parser.add_argument("--dtype", choices=_DTYPES, default="auto", help="default auto: what the model says")
    parser.add_argument("--device", choices=_DEVICES, default="auto", help="default auto: cuda if there is one")


def _throughput(options: argparse.Namespace) -> None:
    from glm_cluster.model.threads import prepare_threads

    prepare_threads()
    from glm_cluster.bench.prompts import draw_ids
    from glm_cluster.bench.table import aligned
    from glm_cluster.bench.throughput import report, run_job
    from glm_cluster.config import EngineConfig
    from glm_cluster.engine.engine import open_engine
    from glm_cluster.launch import engine_with_room, model_directory
    from glm_cluster.terminal import weights_bar
    from glm_cluster.text.tokenizer import Tokenizer

    directory = model_directory(options.model)
    settings = {
        "model": str(directory),
        "dtype": options.dtype,
        "device": options.device,
        "quantization": options.quantization,
        "speculative_tokens": options.speculative_tokens,
    }
    config, _ = engine_with_room(EngineConfig.from_mapping(settings))
    tokenizer = Tokenizer.from_directory(directory)
    with weights_bar() as on_read:
        engine = open_engine(config, on_read=on_read)
    size = {"count": options.requests, "length": options.prompt_tokens}
    jobs = [
        run_job(engine, draw_ids(tokenizer, **size, seed=options.seed + number), options.max_tokens)
        for number in range(options.rounds + 1)
    ]
    found = report(jobs)
    if options.floor:
        found |= _share_of_floor(options, config, found["warm"]["seconds"])
    rows = [{"job": name, **found[name]} for name in ("cold", "warm")]
    extra = [f"floor {found['floor_seconds']} s, share {found['floor_share']:.1%}"] if options.floor else []
    _show({"bench": "throughput", **found}, [*aligned(rows), *extra], options)


def _share_of_floor(options: argparse.Namespace, config: "EngineConfig", seconds: float) -> dict[str, float]:
    """What part of the job's time its GEMMs alone would take."""
    from glm_cluster.bench.throughput import floor_seconds

    floor = floor_seconds(
        _open_floor(options),
        num_requests=options.requests,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.max_tokens,
        max_running=config.max_running,
        step_tokens=config.step_tokens,
    )
    return {"floor_seconds": round(floor, 3), "floor_share": round(floor / seconds, 4)}


def _serve(options: argparse.Namespace) -> None:
    import asyncio

    from glm_cluster.bench.order import Order
    from glm_cluster.bench.serving import Load, Target, measure
    from glm_cluster.bench.summary import Slo
    from glm_cluster.launch import model_directory
    from glm_cluster.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_directory(model_directory(options.tokenizer))
    order = Order(max_tokens=options.max_tokens, model=options.model, return_token_ids=options.token_ids)
    peer_order = Order(max_tokens=options.max_tokens, model=options.peer_model, ignore_eos=options.ignore_eos)
    run = asyncio.run(
        measure(
            Target(url=options.url, order=order),
            Target(url=options.against, order=peer_order) if options.against else None,
            Load(num_clients=options.clients, rate_per_s=options.rate, arrivals=options.arrivals, seed=options.seed),
            Slo(
                ttft_s=_seconds(options.slo_ttft_ms),
                tpot_s=_seconds(options.slo_tpot_ms),
                e2e_s=_seconds(options.slo_e2e_ms),
            ),
            num_rounds=options.rounds or (3 if options.against else 1),
            prompts_of=lambda number: _prompts(options, tokenizer, number),
            warmup=options.warmup,
        )
    )
    _show_run(run, options)


def _prompts(options: argparse.Namespace, tokenizer: "Tokenizer", number: int) -> "list[Prompt]":
    """The prompts of a round, counted from 0; of the warm-up where it is -1."""
    from glm_cluster.bench.prompts import as_text, draw_ids

    seed = options.seed + (number if number >= 0 else _WARMUP_TOKENS_SEED)
    ids = draw_ids(tokenizer, count=options.requests, length=options.prompt_tokens, seed=seed)
    return as_text(tokenizer, ids) if options.prompt_text else list(ids)


def _show_run(run: "Run", options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from glm_cluster.bench.host import about
    from glm_cluster.bench.report import write_report
    from glm_cluster.bench.table import comparison_lines, histogram_lines, summary_lines

    lines: list[str] = []
    for side in run.sides:
        for summary in side.rounds:
            lines += summary_lines(side.name, summary)
        lines += histogram_lines(side.name, side.whole)
    lines += comparison_lines(run.comparison) if run.comparison else ()
    sides = [{"url": side.name, "rounds": [summary.row() for summary in side.rounds]} for side in run.sides]
    compared = {"comparison": asdict(run.comparison)} if run.comparison else {}
    _show({"bench": "serve", "sides": sides, **compared}, lines, options)
    if options.report is not None:
        written = write_report(options.report, about(load_before=options.load_before), run.sides, run.comparison)
        why = " (matplotlib is not installed: pip install 'glm-cluster[report]')" if written != options.report else ""
        print(f"{written}{why}", file=sys.stderr)


def _floor(options: argparse.Namespace) -> None:
    from glm_cluster.model.threads import prepare_threads

    prepare_threads()
    from glm_cluster.bench.table import aligned

    floor = _open_floor(options)
    read_bytes_per_s = floor.read_bytes_per_s()
    decodes = [floor.decode(rows) for rows in options.rows]
    prefill = floor.prefill(options.prompt_tokens, options.step_tokens)
    passes = [each.row(read_bytes_per_s) for each in (*decodes, prefill)]
    times = [time.row() for time in floor.times]
    read = round(read_bytes_per_s / 1e9, 2)
    lines = [*aligned(times), "", *aligned(passes), "", f"reading alone: {read} GB/s"]
    found = {
        "bench": "gemm-floor",
        "dtype": floor.dtype_name,
        "threads": floor.num_threads,
        "passes": passes,
        "gemms": times,
        "read_gb_per_s": read,
    }
    _show(found, lines, options)


def _open_floor(options: argparse.Namespace) -> "Floor":
    """The floor of a directory's config.json or, where the model is not here, of its recipe's shape."""
    from glm_cluster.bench.floor import Floor
    from glm_cluster.bench.shapes import config_of
    from glm_cluster.model.loading import resolve_dtype
    from glm_cluster.model.ranks import resolve_device

    config = config_of(options.model)
    return Floor(config, resolve_dtype(config, options.dtype), resolve_device(options.device))


def _show(found: Mapping[str, Any], lines: Iterable[str], options: argparse.Namespace) -> None:
    from glm_cluster.bench.host import about

    print(json.dumps({**about(load_before=options.load_before), **found}) if options.json else "\n".join(lines))


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, not {text!r}")
    return int(text)


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"must be a whole number of 0 or more, not {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return value
