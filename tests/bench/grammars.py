"""What following a grammar costs: llguidance, which serves, and xgrammar where it can be imported.

    .venv/bin/python tests/bench/grammars.py [--glm4 tokenizer.json.gz] [--schemas 60]

For each library and vocabulary (the demo model's, and GLM-4's where its file is given): compiling each of some real
schemas, then a mask before every token of a text that keeps it. Then grammars made to cost, each in a process of its
own for at most 20 s: how long until it is refused or 20 random tokens came, and the memory that took. Times are of CPU,
in milliseconds; the last line printed is one JSON document, and those of record are in `results/`.
"""

import argparse
import gzip
import json
import os
import random
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Protocol

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.hostile_grammars import BOUNDED, REFUSED
from support.schemas import real_schemas

from glm_cluster.bench.host import about
from glm_cluster.launch import model_directory
from glm_cluster.records import Grammar
from glm_cluster.text.grammar.limits import SOURCE_BYTES
from glm_cluster.text.grammar.matcher import Matcher
from glm_cluster.text.grammar.vocabulary import Vocabulary
from glm_cluster.text.tokenizer import Tokenizer

PATIENCE_S = 20
_MEMORY = 6 << 30
HOSTILE = {**REFUSED, **BOUNDED}


class Follower(Protocol):
    """One output of one grammar."""

    def mask(self) -> np.ndarray: ...

    def take(self, token: int) -> None: ...


class Library(Protocol):
    """A library with a vocabulary."""

    def compile(self, kind: str, source: str) -> Any: ...

    def follow(self, compiled: Any) -> Follower: ...


class Ours:
    """llguidance as it serves, with our limits before it."""

    def __init__(self, tokenizer: Tokenizer, stop: int) -> None:
        self._vocabulary = Vocabulary.of(tokenizer, stop_ids=(stop,), vocab_size=tokenizer.vocab_size)

    def compile(self, kind: str, source: str) -> Matcher:
        return Matcher.compile(Grammar(kind, source), self._vocabulary)  # type: ignore[arg-type]

    def follow(self, compiled: Matcher) -> Follower:
        return _OurFollower(compiled.fork())


class _OurFollower:
    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher

    def mask(self) -> np.ndarray:
        return self._matcher.allowed()

    def take(self, token: int) -> None:
        self._matcher.take((token,))


class Xgrammar:
    """Told to write JSON as we do."""

    def __init__(self, tokenizer: Tokenizer, stop: int) -> None:
        import xgrammar

        pieces = list(tokenizer.pieces)
        info = xgrammar.TokenizerInfo(pieces, stop_token_ids=[stop])
        self._library = xgrammar
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._vocab_size = info.vocab_size

    def compile(self, kind: str, source: str) -> Any:
        match kind:
            case "json_schema":
                return self._compiler.compile_json_schema(source, any_whitespace=False, strict_mode=False)
            case "regex":
                return self._compiler.compile_regex(source)
            case "lark":
                return self._compiler.compile_lark(source)
            case _:
                literals = " | ".join(json.dumps(one) for one in json.loads(source))
                return self._compiler.compile_grammar(f"root ::= {literals}")

    def follow(self, compiled: Any) -> Follower:
        return _XFollower(self._library, self._library.GrammarMatcher(compiled), self._vocab_size)


class _XFollower:
    def __init__(self, library: Any, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._mask = library.allocate_token_bitmask(1, vocab_size)

    def mask(self) -> np.ndarray:
        self._matcher.fill_next_token_bitmask(self._mask)
        return self._mask.numpy()[0]

    def take(self, token: int) -> None:
        if not self._matcher.accept_token(token):
            raise ValueError("refused a token of a text that keeps the schema")


LIBRARIES: dict[str, type] = {"llguidance": Ours, "xgrammar": Xgrammar}


def main() -> None:
    """Measure and print."""
    load_before = os.getloadavg()[0]
    arguments = _arguments()
    if arguments.hostile:
        _one_hostile(*arguments.hostile)
        return
    names = [name for name in LIBRARIES if find_spec(name)]
    result = {**about(load_before=load_before), "versions": {name: version(name) for name in names}}
    result["command"] = f"grammars.py --schemas {arguments.schemas}"
    tokenizers = {"demo": Tokenizer.from_directory(model_directory("demo"))}
    if arguments.glm4:
        tokenizers["glm-4"] = Tokenizer(json.loads(gzip.decompress(arguments.glm4.read_bytes())))
    schemas = _schemas(arguments.schemas)
    texts = _texts(schemas)
    result["num_schemas"] = len(schemas)
    for vocabulary, tokenizer in tokenizers.items():
        for name in names:
            figures = _measure(LIBRARIES[name], tokenizer, schemas, texts)
            result.setdefault("following", {}).setdefault(vocabulary, {})[name] = figures
            print(vocabulary, name, figures, file=sys.stderr)
    result["hostile"] = {name: {case: _child(name, case) for case in HOSTILE} for name in names}
    print(json.dumps(result))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glm4", type=Path)
    parser.add_argument("--schemas", type=int, default=60)
    parser.add_argument("--hostile", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def _schemas(count: int) -> dict[str, str]:
    sources = {name: json.dumps(schema) for name, schema in real_schemas().items()}
    fitting = [name for name, source in sources.items() if len(source) <= SOURCE_BYTES]
    return {name: sources[name] for name in random.Random(0).sample(fitting, count)}


def _texts(schemas: dict[str, str]) -> dict[str, str]:
    """A text that keeps each schema: random bytes, of one who likes to close what is open."""
    small = Vocabulary.of_bytes()
    texts = {}
    for name, source in schemas.items():
        rng, output, matcher = random.Random(name), [], Matcher.compile(Grammar("json_schema", source), small)
        while True:
            ids = np.flatnonzero(np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little"))
            ids = ids[(ids >= 32) & (ids < 127) | (ids == 256)]
            closing = [id for id in (34, 93, 125, 256) if id in ids]
            output.append(int(rng.choice(closing if closing and rng.random() < 0.2 else ids)))
            if output[-1] == 256:
                break
            matcher.take(output[-1:])
        texts[name] = bytes(output[:-1]).decode()
    return texts


def _measure(library: type, tokenizer: Tokenizer, schemas: dict[str, str], texts: dict[str, str]) -> dict[str, Any]:
    stop = max(tokenizer.special_ids.values())
    start = time.process_time()
    made: Library = library(tokenizer, stop)
    opening = time.process_time() - start
    compiles, masks, faults = [], [], 0
    for name, source in schemas.items():
        start = time.process_time()
        try:
            compiled = made.compile("json_schema", source)
        except Exception:  # whatever a library raises is a refusal here
            faults += 1
            continue
        compiles.append(time.process_time() - start)
        follower = made.follow(compiled)
        try:
            for token in tokenizer.encode_batch([texts[name]])[0]:
                start = time.thread_time()
                follower.mask()
                masks.append(time.thread_time() - start)
                follower.take(token)
        except Exception:
            faults += 1
    return {
        "open_ms": _ms(opening),
        "compile_ms": {"median": _ms(median(compiles)), "worst": _ms(max(compiles))},
        "mask_ms": {"median": _ms(median(masks)), "p99": _ms(quantiles(masks, n=100)[98]), "worst": _ms(max(masks))},
        "num_masks": len(masks),
        "num_faults": faults,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _child(library: str, case: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--hostile", library, case]
    try:
        run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE_S + 20)
    except subprocess.TimeoutExpired:
        return {"outcome": "killed after its time"}
    if run.returncode:
        return {"outcome": f"died: {run.returncode}"}
    return json.loads(run.stdout.splitlines()[-1])


def _one_hostile(library: str, case: str) -> None:
    """On the demo model's vocabulary."""
    tokenizer = Tokenizer.from_directory(model_directory("demo"))
    stop = max(tokenizer.special_ids.values())
    made: Library = LIBRARIES[library](tokenizer, stop)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kind, source = HOSTILE[case]
    rng, worst, outcome = random.Random(case), 0.0, "followed"
    start = time.process_time()
    compiled_in = 0.0
    try:
        compiled = made.compile(kind, source)
        compiled_in = time.process_time() - start
        follower = made.follow(compiled)
        for _ in range(20):
            begun = time.process_time()
            mask = follower.mask()
            worst = max(worst, time.process_time() - begun)
            ids = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            if (token := int(rng.choice(ids))) == stop:
                break
            follower.take(token)
    except Exception as error:  # whatever a library raises is a refusal here
        outcome = f"refused: {' '.join(str(error).split())[:80]}"
    figures = {
        "compile_ms": _ms(compiled_in),
        "worst_mask_ms": _ms(worst),
        "all_ms": _ms(time.process_time() - start),
        "memory_beyond_opening_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) >> 10,
        "outcome": outcome,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
