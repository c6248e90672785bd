"""One replica of three ranks: the ids of one rank, a third of the weights each, and what a dead or hung rank costs."""

import asyncio
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.cluster import RANK, REPLICA, AtToken, Case, RunningCluster, all_at_once, events, eventually, stream_ids

from glm_cluster.model.kernels.build import Refusal, native_kernels

MakeCases = Callable[..., list[Case]]
TP = 3
STEP_DEADLINE_S = 5.0
HEAVY = {"vocab_size": 60_000, "hidden_size": 384, "num_attention_heads": 6, "num_key_value_heads": 6}


@pytest.fixture(scope="module")
def cluster(start_cluster: Callable[..., RunningCluster], settings: Callable[..., dict[str, Any]]) -> RunningCluster:
    return start_cluster(settings(tp=TP, step_deadline_s=STEP_DEADLINE_S))


@pytest.fixture(scope="module")
def heavy(tiny: Path, checkpoint: Callable[..., Path]) -> Path:
    """A model whose weights stand out of a process, with the tiny one's tokenizer."""
    directory = checkpoint(**HEAVY, intermediate_size=768)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (directory / file).write_bytes((tiny / file).read_bytes())
    return directory


async def test_three_ranks_make_the_ids_of_one(cluster: RunningCluster, cases: MakeCases):
    assert len(cluster.processes(RANK)) == TP
    many = cases(8, seed=10, max_tokens=(1, 60))
    for case, ids in zip(many, await all_at_once(cluster, many), strict=True):
        assert tuple(ids) == case.expected


def test_ranks_of_one_host_share_memory_without_a_name(cluster: RunningCluster):
    kernels = native_kernels()
    if isinstance(kernels, Refusal):
        pytest.skip(kernels.reason)
    eventually(cluster.healthy, "health is green")
    maps = of_ranks(cluster, "maps")
    assert ["/memfd:glm_cluster (deleted)" in text for text in maps] == [True] * TP


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
@pytest.mark.parametrize("index", [0, TP - 1])
async def test_a_lost_rank_costs_no_token(cluster: RunningCluster, cases: MakeCases, blow: signal.Signals, index: int):
    """The whole group is made anew: every rank has a new process, and the stream goes on with the right ids."""
    (case,) = cases(1, seed=11, max_tokens=(400, 400))
    before = sorted(cluster.processes(RANK), key=lambda p: p.create_time())
    (replica,) = cluster.processes(REPLICA)
    begun = AtToken(5, lambda: before[index].send_signal(blow))
    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=120) as client:
        stream = asyncio.create_task(stream_ids(client, case.token_by_token(), on_tokens=begun))
        await asyncio.to_thread(eventually, lambda: not cluster.healthy(), "health turns red", timeout_s=60)
        red_at = time.monotonic()
        begun.check()
        assert blow is signal.SIGSTOP or red_at - begun.fell_at < STEP_DEADLINE_S
        assert tuple(await stream) == case.expected
    await asyncio.to_thread(eventually, cluster.healthy, "health turns green")
    after = {p.pid for p in cluster.processes(RANK)}
    assert len(after) == TP
    assert not after & {p.pid for p in before}
    assert cluster.processes(REPLICA) == [replica]


@pytest.mark.parametrize("index", [0, TP - 1])
async def test_a_lost_rank_costs_no_choice_a_token_or_a_logprob(cluster: RunningCluster, index: int):
    """Three choices of one prompt, each sampled, judged and penalised for itself, as where nothing happens."""
    asked = {"n": 3, "logprobs": 2, "temperature": 0.8, "seed": 5, "presence_penalty": 0.5, "max_tokens": 120}
    one_by_one = {"prompt_lookup_num_tokens": 0, "ignore_eos": True}
    case = Case(tuple(range(40, 90)), {**asked, **one_by_one}, expected=())
    rank = sorted(cluster.processes(RANK), key=lambda p: p.create_time())[index]
    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=120) as client:
        undisturbed = await told_of_choices(client, case)
        assert [len(told) for told in undisturbed.values()] == [120] * 3
        assert len({tuple(told) for told in undisturbed.values()}) == 3
        blow = AtToken(5, rank.kill)
        disturbed = await told_of_choices(client, case, on_tokens=blow)
    blow.check()
    assert not rank.is_running()
    assert disturbed == undisturbed
    await asyncio.to_thread(eventually, cluster.healthy, "health turns green")


async def told_of_choices(
    client: httpx.AsyncClient, case: Case, *, on_tokens: Callable[[int], None] = lambda count: None
) -> dict[int, list[tuple[Any, ...]]]:
    """Of each choice, by index, its tokens: id, place in the text, spelling, log-probability, and the likeliest."""
    told: defaultdict[int, list[tuple[Any, ...]]] = defaultdict(list)
    async for chunk in events(client, case):
        for choice in chunk["choices"]:
            ids, said = choice["token_ids"], choice["logprobs"]
            if ids:
                columns = (said["text_offset"], said["tokens"], said["token_logprobs"], map(str, said["top_logprobs"]))
                told[choice["index"]] += zip(ids, *columns, strict=True)
                on_tokens(len(ids))
    return dict(sorted(told.items()))


async def test_a_killed_replica_leaves_no_rank(cluster: RunningCluster, cases: MakeCases):
    ranks = cluster.processes(RANK)
    (replica,) = cluster.processes(REPLICA)
    replica.kill()
    eventually(lambda: not any(r.is_running() for r in ranks), "the ranks die with it", timeout_s=30)
    (case,) = cases(1, seed=12, max_tokens=(20, 20))
    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=120) as client:
        assert tuple(await stream_ids(client, case)) == case.expected


async def test_each_rank_holds_a_third_of_the_weights(
    cluster: RunningCluster, settings: Callable[..., dict[str, Any]], heavy: Path
):
    """Measured in the processes: what their own memory gains over the same ranks of a model that weighs nothing.

    In bfloat16, because the fp32 weights of an fp32 file are never copied: they stay mapped.
    """
    light = anonymous_bytes(cluster)
    weights = (heavy / "model.safetensors").stat().st_size / 2
    cluster.ask("deploy", args=settings(tp=TP, model=str(heavy), dtype="bfloat16"))
    eventually(lambda: len(cluster.processes(RANK)) == TP, "the old ranks are gone")
    heavier = anonymous_bytes(cluster)
    gains = [after - before for before, after in zip(light, heavier, strict=True)]
    cluster.ask("deploy", args=settings(tp=TP, step_deadline_s=STEP_DEADLINE_S))
    assert all(0.75 < gain / (weights / TP) < 1.25 for gain in gains), [round(gain / weights, 2) for gain in gains]


def anonymous_bytes(cluster: RunningCluster) -> list[int]:
    """Memory of each rank that is no file's: RSS without what libraries and a mapped checkpoint take.

    Rank 0, which has a tokenizer too, is last.
    """
    lines = [line for status in of_ranks(cluster, "status") for line in status.splitlines()]
    return sorted(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def of_ranks(cluster: RunningCluster, file: str) -> list[str]:
    """What /proc tells of each rank; one that has just ended is passed over."""
    texts = []
    for process in cluster.processes(RANK):
        with suppress(FileNotFoundError, ProcessLookupError):
            texts.append(Path(f"/proc/{process.pid}/{file}").read_text())
    return texts
