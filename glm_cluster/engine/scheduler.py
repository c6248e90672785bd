"""Decide what each step computes. Touches block numbers and token ids, never a tensor.

There is no prefill phase and no decode phase: every sequence has tokens known and tokens computed, and a step closes
the gap under a token budget. Oldest first, among those of one priority; when blocks run out, the youngest running
sequence gives its blocks back and is computed again later. An encode request is a sequence that ends when its prompt is
computed.

In a step all keys and values are written, layer by layer, before any is read. So the blocks that a planned step is to
fill can be found from then on, and requests that come together compute a prefix that they share once.

A small step takes guesses along in rows that cost little: each right one saves a step. A large one takes what a grammar
forces. What is sampled decides, so that tokens are those of a run without.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from glm_cluster.engine.blocks import BlockPool, OutOfBlocks
from glm_cluster.engine.constraint import Constrain, Constraint
from glm_cluster.engine.plan import Slice, StepOutput, StepPlan
from glm_cluster.engine.sequence import Request, Sequence, sequence_key
from glm_cluster.errors import GlmError, InvalidRequest, Overloaded
from glm_cluster.records import GenerationRequest, ReplicaLoad, TokenEvent

# A step with few rows waits for weights: on a CPU one of four rows takes as long as one of one, one of eight a third
# longer (measured). So any guess may ride in the first rows, and in the rest those of sequences whose last was right.
FREE_ROWS = 4
DRAFT_ROWS = 8


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that ends without a last event."""

    request_id: str
    attempt: int
    error: GlmError


class Scheduler:
    """Waiting and running sequences over one block pool.

    Invariant: waiting sequences hold no blocks and no rows; running ones hold exactly the blocks of their computed
    tokens, plus those of the plan in flight. Those that wait stand by priority, then by age.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        block_tokens: int,
        max_running: int,
        max_waiting: int,
        step_tokens: int,
        max_model_len: int,
        speculative_tokens: int = 0,
        constrain: Constrain | None = None,
    ) -> None:
        assert pool.num_blocks * block_tokens >= max_model_len, "one sequence alone must always fit"
        self._pool = pool
        self._block_tokens = block_tokens
        self._max_running = max_running
        self._most_sampled = max(max_running, DRAFT_ROWS)  # rows of a step, see `memory.activation_bytes`
        self._step_tokens = step_tokens
        self._max_waiting = max_waiting
        self._max_len = max_model_len
        self._speculative_tokens = speculative_tokens
        self._constrain = constrain
        self._num_drafted = 0
        self._num_accepted = 0
        self._waiting: deque[Sequence] = deque()
        self._running: dict[str, Sequence] = {}
        self._in_flight: StepPlan | None = None
        self._events: list[TokenEvent] = []
        self._failures: list[Failure] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would do or say anything."""
        return bool(self._waiting or self._running or self._events)

    def add(self, request: Request) -> None:
        """Queue a request, or refuse one that could never run here or finds too many waiting before it.

        One that was tried elsewhere before, and lost or not begun there, is never turned away: its client may have seen
        tokens of it already.
        """
        if len(self._waiting) >= self._max_waiting and request.attempt == 0:
            raise Overloaded(f"{len(self._waiting)} requests are waiting here, the most this engine queues; try later")
        if not request.prompt:
            raise InvalidRequest("the prompt is empty; send at least one token", param="prompt")
        sequence = Sequence(
            request,
            block_tokens=self._block_tokens,
            max_tokens=self._max_tokens(request),
            max_drafts=self._max_drafts(request),
            constraint=self._constraint(request),
        )
        if (finish := sequence.finish_reason) is not None:
            if sequence.constraint is not None:
                sequence.constraint.leave()
            self._events.append(sequence.event((), finish))
        else:
            self._waiting.insert(bisect_right(self._waiting, sequence.priority, key=_priority), sequence)

    def _max_tokens(self, request: Request) -> int:
        """The most output there may be: what was asked for, within the model's length."""
        generates = isinstance(request, GenerationRequest)
        room = self._max_len - len(request.prompt)
        if room < generates:
            bound = "prompt and output together" if generates else "it"
            raise InvalidRequest(
                f"the prompt has {len(request.prompt)} tokens; {bound} may have {self._max_len}", param="prompt"
            )
        return min(request.sampling.max_tokens, room) if isinstance(request, GenerationRequest) else 0

    def _max_drafts(self, request: Request) -> int:
        """The most guesses a step: what was asked for, at most the engine's setting."""
        if not isinstance(request, GenerationRequest):
            return 0
        asked = request.max_drafts
        return self._speculative_tokens if asked is None else min(asked, self._speculative_tokens)

    def _constraint(self, request: Request) -> Constraint | None:
        if not isinstance(request, GenerationRequest) or (grammar := request.sampling.grammar) is None:
            return None
        if self._constrain is None:
            raise InvalidRequest("this engine follows no grammars; send the request without one", param="grammar")
        return self._constrain(grammar)

    def cancel(self, request_id: str, attempt: int) -> None:
        """Forget a request; its blocks are free at once. Unknown ids are ignored: it may just have finished."""
        key = sequence_key(request_id, attempt)
        if (sequence := self._running.pop(key, None)) is None:
            sequence = next((s for s in self._waiting if s.key == key), None)
            if sequence is None:
                return
            self._waiting.remove(sequence)
        if sequence.constraint is not None:
            sequence.constraint.leave()
        self._drop(sequence)
        self._events.append(sequence.event((), "cancelled"))

    def plan(self) -> StepPlan | None:
        """Choose the next step: running sequences first, then as many waiting ones as fit. None when idle.

        A plan that was not committed is of a step that failed.
        """
        failed, self._in_flight = self._in_flight, None
        if failed is not None:
            self._undo(failed)
        self._fail_waiting()
        self._in_flight = self._next_step()
        return self._in_flight

    def _undo(self, plan: StepPlan) -> None:
        """What a failed step was to compute is not found, and its sequences begin anew."""
        for part in reversed(plan.slices):
            stop = (part.start + part.num_known) // self._block_tokens
            self._pool.withdraw(part.blocks[part.start // self._block_tokens : stop])
            if (sequence := self._running.get(part.key)) is not None:
                self._preempt(sequence)

    def _next_step(self) -> StepPlan | None:
        slices: list[Slice] = []
        budget, num_waiting = self._step_tokens, len(self._waiting)
        for sequence in list(self._running.values()):
            if budget and sequence.key in self._running:
                budget -= self._grow(sequence, budget, slices)
        if len(self._waiting) > num_waiting:  # a preemption: what it freed is not given out again at once
            return StepPlan(tuple(slices))
        for sequence in self._admissible():
            if not budget or not (taken := self._admit(sequence, budget, slices)):
                break
            budget -= taken
        self._add_drafts(slices, budget)
        return StepPlan(tuple(slices)) if slices else None

    def commit(self, plan: StepPlan, output: StepOutput) -> list[TokenEvent]:
        """Record what a step computed and sampled; return its events, and those gathered since the last step."""
        self._in_flight = None
        for part in plan.slices:
            if (sequence := self._running.get(part.key)) is not None:
                self._commit_slice(sequence, part, output)
        return self.take_events()

    def take_events(self) -> list[TokenEvent]:
        """Events that no step will bring: cancellations, and requests that were finished when they came."""
        events, self._events = self._events, []
        return events

    def take_failures(self) -> list["Failure"]:
        """Requests that cannot go on, since the last call."""
        failures, self._failures = self._failures, []
        return failures

    def wait(self, timeout_s: float) -> None:
        """Until a sequence may be admitted whose grammar was not ready, but not longer than that."""
        constraint = next((s.constraint for s in self._waiting if not s.is_ready), None)
        if constraint is not None:
            constraint.wait(timeout_s)

    def load(self) -> ReplicaLoad:
        """What the router wants to know."""
        return ReplicaLoad(
            num_waiting=len(self._waiting),
            num_running=len(self._running),
            num_free_blocks=self._pool.num_free,
            num_blocks=self._pool.num_blocks,
            num_drafted=self._num_drafted,
            num_accepted=self._num_accepted,
        )

    def check(self) -> None:
        """Assert the invariants of scheduler and pool. Call between steps."""
        self._pool.check()
        assert all(not s.blocks and s.pooled is None and not s.scores for s in self._waiting)
        assert list(self._waiting) == sorted(self._waiting, key=_priority)
        held = {b for s in self._running.values() for b in s.blocks}
        assert len(held) == self._pool.num_blocks - self._pool.num_free
        for s in self._running.values():
            assert len(s.blocks) == -(-s.num_computed // self._block_tokens)

    def _grow(self, sequence: Sequence, budget: int, slices: list[Slice]) -> int:
        """Plan the next tokens of a running sequence, preempting younger ones for blocks; return how many."""
        count = min(sequence.num_missing, budget)
        while True:
            try:
                sequence.blocks += self._pool.allocate(max(0, sequence.num_blocks_for(count)))
            except OutOfBlocks:
                youngest = next(reversed(self._running.values()))
                self._preempt(youngest)
                if youngest is sequence:
                    return 0
            else:
                return self._put(sequence, count, slices)

    def _put(self, sequence: Sequence, count: int, slices: list[Slice]) -> int:
        """Give a sequence's next tokens a place in the step, and let the blocks that they fill be found; their number.

        Whoever has a place keeps it: those that are preempted for blocks are younger than all that have one.
        """
        slices.append(sequence.slice(count))
        self._publish(sequence, sequence.num_computed + count)
        return count

    def _admissible(self) -> Iterator[Sequence]:
        """The first waiting sequence whose grammar is ready, again and again: whoever takes it must admit it."""
        while len(self._running) < self._max_running:
            if (sequence := next((s for s in self._waiting if s.is_ready), None)) is None:
                return
            yield sequence

    def _fail_waiting(self) -> None:
        """Give up those whose grammar turned out to be none."""
        for sequence in [s for s in self._waiting if s.is_ready and s.error is not None]:
            self._waiting.remove(sequence)
            self._fail(sequence)

    def _fail(self, sequence: Sequence) -> None:
        assert sequence.error is not None
        self._failures.append(Failure(sequence.request.request_id, sequence.request.attempt, sequence.error))

    def _admit(self, sequence: Sequence, budget: int, slices: list[Slice]) -> int:
        """Start a waiting sequence with what the prefix cache has of it; 0 when blocks are short."""
        shared = self._pool.share(sequence.hashes(sequence.num_shareable))
        sequence.blocks, sequence.num_computed = shared, len(shared) * self._block_tokens
        count = min(sequence.num_missing, budget)
        try:
            sequence.blocks += self._pool.allocate(sequence.num_blocks_for(count))
        except OutOfBlocks:
            self._drop(sequence)
            return 0
        if not sequence.was_admitted:
            sequence.was_admitted = True
            sequence.num_cached = min(sequence.num_computed, len(sequence.request.prompt))
        self._waiting.remove(sequence)
        self._running[sequence.key] = sequence
        return self._put(sequence, count, slices)

    def _add_drafts(self, slices: list[Slice], budget: int) -> None:
        """Put guesses behind the tokens of slices that sample, in rows and blocks to spare: those of trust first.

        What a grammar forces comes before them, in any step that samples from few enough rows for the memory set aside:
        its rows are not lost, only computed earlier.
        """
        sequences = {index: self._running[part.key] for index, part in enumerate(slices) if part.samples}
        forced = {index: draft for index, sequence in sequences.items() if (draft := sequence.forced())}
        budget -= self._share_out(slices, forced, min(budget, self._most_sampled - len(sequences)))
        num_rows = sum(len(part.tokens) for part in slices)
        if num_rows >= DRAFT_ROWS:
            return
        free = {index: sequence for index, sequence in sequences.items() if not sequence.is_forced}
        drafts = {index: draft for index, sequence in free.items() if (draft := sequence.draft())}
        for is_trusted, most_rows in ((True, DRAFT_ROWS), (False, FREE_ROWS)):
            chosen = {i: draft for i, draft in drafts.items() if sequences[i].lookup.is_trusted is is_trusted}
            taken = self._share_out(slices, chosen, min(budget, most_rows - num_rows))
            budget, num_rows = budget - taken, num_rows + taken

    def _share_out(self, slices: list[Slice], drafts: dict[int, tuple[int, ...]], room: int) -> int:
        """Add at most `room` guesses to slices, in fair shares; return how many."""
        left = max(0, room)
        for num_served, (index, draft) in enumerate(drafts.items()):
            share = -(-left // (len(drafts) - num_served))
            slices[index] = part = self._with_draft(slices[index], draft[:share])
            left -= part.num_drafts
        return max(0, room) - left

    def _with_draft(self, part: Slice, draft: tuple[int, ...]) -> Slice:
        """The slice with as many of its guesses as nobody must give way for."""
        sequence = self._running[part.key]
        num_slots = (len(sequence.blocks) + self._pool.num_free) * self._block_tokens
        draft = draft[: num_slots - part.start - len(part.tokens)]
        sequence.blocks += self._pool.allocate(max(0, sequence.num_blocks_for(len(part.tokens) + len(draft))))
        return replace(part, tokens=part.tokens + draft, blocks=tuple(sequence.blocks), num_drafts=len(draft))

    def _preempt(self, sequence: Sequence) -> None:
        del self._running[sequence.key]
        self._drop(sequence)
        self._waiting.insert(bisect_left(self._waiting, sequence.priority, key=_priority), sequence)

    def _drop(self, sequence: Sequence) -> None:
        """Forget what was computed of a sequence."""
        self._pool.release(sequence.blocks)
        sequence.blocks, sequence.num_computed, sequence.pooled, sequence.scores = [], 0, None, []

    def _commit_slice(self, sequence: Sequence, part: Slice, output: StepOutput) -> None:
        if sequence.error is not None:  # nothing of this step is to be believed
            self._end(sequence)
            self._fail(sequence)
            return
        sequence.scores += output.scores.get(part.key, ())
        tokens = self._take(sequence, part, output.tokens[part.key]) if part.samples else ()
        self._advance(sequence, part.num_known + max(0, len(tokens) - 1))  # the last one is yet to be computed
        if part.pooling is not None:
            rows = output.rows[part.key]
            sequence.pooled = rows if sequence.pooled is None else sequence.pooled.plus(rows)
        finish = sequence.finish_reason
        if tokens or finish is not None:
            self._events.append(sequence.event(tokens, finish, output.logprobs.get(part.key, ())))
        if finish is not None:
            self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        del self._running[sequence.key]
        self._drop(sequence)

    def _take(self, sequence: Sequence, part: Slice, sampled: tuple[int, ...]) -> tuple[int, ...]:
        """Add the sampled tokens to the sequence, up to one that ends it; return what was added."""
        if part.num_drafts:
            if not sequence.is_forced:
                sequence.lookup.judge(len(sampled) - 1)
            self._num_drafted += part.num_drafts
            self._num_accepted += len(sampled) - 1
        before = len(sequence.tokens)
        for token in sampled:
            sequence.tokens.append(token)
            if sequence.finish_reason is not None:
                break
        return tuple(sequence.tokens[before:])

    def _advance(self, sequence: Sequence, num_tokens: int) -> None:
        """Count tokens as computed, let their full blocks be found, and give back those that only guesses were in."""
        self._publish(sequence, sequence.num_computed + num_tokens)
        sequence.num_computed += num_tokens
        num_blocks = -(-sequence.num_computed // self._block_tokens)
        self._pool.release(sequence.blocks[num_blocks:])
        del sequence.blocks[num_blocks:]

    def _publish(self, sequence: Sequence, num_tokens: int) -> None:
        """Let the blocks be found that are full with the first `num_tokens` tokens and were not before."""
        filled = range(sequence.num_computed // self._block_tokens, num_tokens // self._block_tokens)
        names = sequence.hashes(num_tokens) if filled else []
        for index in filled:
            self._pool.publish(sequence.blocks[index], names[index])


def _priority(sequence: Sequence) -> int:
    return sequence.priority
