"""The contract of every op: its name, shapes and dtypes. Implementations are in the other folders.

`Ops` is one implementation of each, chosen for a device by `registry.resolve`. Letters in shapes:
tokens = rows of this step, heads = query heads, kv_heads divides heads. `dtype` is float32 or
bfloat16, the same for all tensors of a call; sums are taken in float32 whatever the dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, dtype


class SetThreads(Protocol):
    """How many threads of this process compute. No result depends on it."""

    def __call__(self, count: int, *, pin: bool = False) -> None:
        """`count` includes the caller's thread. `pin`: tie each of the others to a core of its own
        among those this process may use; it says so of cores that are this process's alone."""


class NotRecordable(Exception):
    """Work cannot be done again from a recording of it; says why."""


class Recording(Protocol):
    """Work that can be done again."""

    def replay(self) -> None:
        """Do it once more, with what its memory holds now."""


class Recorder(Protocol):
    """Records work, in memory that all its recordings share: no two are made or replayed at a time,
    and results are good until the next is."""

    def record(
        self, work: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Recording, tuple[Tensor, ...]]:
        """Do the work and record it. Returns what it returned, in tensors that each replay writes.

        Tensors that were made outside of it are used again at their addresses, and have to be kept
        by somebody. Numbers that it gives to ops are noted as they are.

        Raises:
            NotRecordable: it does something else than make tensors, empty or of zeros, view them,
                and call ops of this provider. It has been done in part.
        """


class MakeRecorder(Protocol):
    """Recorders of work made of ops."""

    def __call__(self) -> Recorder:
        """Raises NotRecordable: not with these kernels."""


class TakeRows(Protocol):
    """Rows of a matrix."""

    def __call__(self, matrix: Tensor, ids: Tensor) -> Tensor:
        """matrix [rows, size], contiguous; ids int64 [count], below rows -> [count, size]."""


class RmsNorm(Protocol):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang and Sennrich 2019)."""

    def __call__(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """x [..., size], weight [size] -> [..., size], a new tensor."""


class AddRmsNorm(Protocol):
    """residual += x, in place; then the RmsNorm of residual.

    What all blocks add up to is kept in float32: rounded to bfloat16 after each of them, it would
    be the largest part of what that costs.
    """

    def __call__(self, x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """x [tokens, size], float32 or of the weight's dtype, left alone; residual float32 of that
        shape; weight [size] -> [tokens, size], of the weight's dtype."""


class Float8Rows(NamedTuple):
    """Rows of float8_e4m3fn, and what each is to be multiplied by: then its largest magnitude is
    that of the row it was rounded from, which has become the largest number there is."""

    numbers: Tensor  # [rows, size]
    scales: Tensor  # float32 [rows, 1]


class AddRmsNormFloat8(Protocol):
    """`AddRmsNorm`, rounded at once for a product of 8-bit floats."""

    def __call__(self, x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> Float8Rows:
        """As for `AddRmsNorm`; what is rounded is in float32."""


class Rotate(Protocol):
    """Rotary position embedding (Su et al. 2021), the two halves of a head being rotated."""

    def __call__(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x [tokens, heads, head_dim], cosine and sine [tokens, 1, rotary_dim] -> like x, new.

        rotary_dim <= head_dim; the rest of a head passes unrotated. `sine` carries the sign: its
        first half is negated, so that out = x * cosine + swap_halves(x) * sine.
        """


class SiluMul(Protocol):
    """silu(gate) * up, the gated linear unit of Shazeer 2020."""

    def __call__(self, gate_up: Tensor) -> Tensor:
        """gate_up [tokens, 2 * size], gate first -> [tokens, size]."""


class SiluMulFloat8(Protocol):
    """`SiluMul`, rounded at once for a product of 8-bit floats."""

    def __call__(self, gate_up: Tensor) -> Float8Rows:
        """As for `SiluMul`; what is rounded is in float32."""


LinearInput = Tensor | Float8Rows
Activation = Callable[[Tensor], LinearInput]
"""What comes between two products, such as `SiluMul`."""


class PackedLinear(Protocol):
    """x @ weight.T + bias. No row's sums depend on the other rows, nor on how many there are."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [tokens, inputs], of the weight's dtype -> [tokens, outputs]."""

    def wide(self, x: Tensor) -> Tensor:
        """The same in float32, as it was before it was rounded to the weight's dtype."""

    def addend(self, x: Tensor) -> Tensor:
        """What is to be added to a float32: the same, not rounded where the device saves itself
        that for nothing."""

    def gated(self, x: Tensor, silu_mul: Activation) -> LinearInput:
        """silu_mul(self(x)), where the device does both at once not rounded in between; `silu_mul`
        is its `SiluMul` or, for `PackedFloat8`, its `SiluMulFloat8`."""

    def rows(self, ids: Tensor) -> Tensor:
        """The weight's own rows: ids int64 [count], below outputs -> [count, inputs]."""


class PackLinear(Protocol):
    """Brings a matrix into the form that this device multiplies with fastest, once."""

    def __call__(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """weight [outputs, inputs], bias [outputs]. `weight` is used up: its memory may hold the
        new form. Nothing but the result needs to be kept."""


class PackQuantized(Protocol):
    """Like `PackLinear`, with a matrix rounded to 8 or 4 bits, and inputs that are to 8."""

    def __call__(self, weight: Tensor, bias: Tensor | None, bits: int) -> PackedLinear:
        """weight [outputs, inputs] and bias [outputs] are floats. `rows` gives the rounded rows.

        How both are rounded, and in which groups, is said in `reference/quantized.py`: all
        implementations multiply the same numbers.
        """


class PackedFloat8(PackedLinear, Protocol):
    """A product of 8-bit floats: inputs are rounded here, unless they have been already."""

    def __call__(self, x: LinearInput) -> Tensor:
        """As for `PackedLinear`; of rounded inputs, in the dtype that it was packed for."""

    def wide(self, x: LinearInput) -> Tensor:
        """As for `PackedLinear`."""

    def addend(self, x: LinearInput) -> Tensor:
        """As for `PackedLinear`."""

    def gated(self, x: LinearInput, silu_mul: Activation) -> LinearInput:
        """As for `PackedLinear`."""


class PackFloat8(Protocol):
    """Like `PackLinear`, with a matrix and inputs of float8_e4m3fn: a scale for each output of the
    one, and for each token of the other. Rows' sums may depend on how many rows there are."""

    def __call__(
        self, weight: Tensor, bias: Tensor | None, scales: Tensor | None, dtype: dtype
    ) -> PackedFloat8:
        """weight [outputs, inputs], floats that are rounded here and `scales` None, or
        float8_e4m3fn and scales float32 [outputs, 1] that it is to be multiplied by; bias
        [outputs]; `dtype` of what `rows` gives, and of products of rounded inputs.

        Raises:
            NotImplementedError: the device does not multiply such numbers.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLayer:
    """What attention of one layer is, the same in every step.

    The norms are RmsNorm's weights, [head_dim], for each head of query and key; none or both.
    """

    scale: float  # of scores
    window: int | None = None  # positions that a token sees, itself included
    softcap: float | None = None
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
    epsilon: float = 0.0
    key_scale: float = 1.0  # of a cache of 8 bits
    value_scale: float = 1.0


class AttentionPlan(Protocol):
    """Paged attention of one step: what all its layers share is worked out once.

    A layer's cache is [blocks, 2, block_size, kv_heads, head_dim]. What is moved about are whole
    blocks; where in a block a number stands is its implementation's business. The reference and
    those for GPUs have keys at 0 and values at 1. All that is in it was stored, or is zero.

    It may be of float8_e4m3fn where the rest is wider: then what stands in it times the scale of
    keys or values is meant, and what lies beyond its range is stored as its largest number.
    """

    def store(self, cache: Tensor, key: Tensor, value: Tensor, layer: AttentionLayer) -> None:
        """Write this step's cells: key and value [tokens, kv_heads, head_dim].

        Whatever is stored, also NaN, no sequence may feel it that does not own the block now.
        """

    def attend(self, cache: Tensor, query: Tensor, layer: AttentionLayer) -> Tensor:
        """query [tokens, heads, head_dim] -> [tokens, heads, head_dim].

        The token at position p of its sequence sees the positions 0 .. p of it, or with a window
        the last `window` of these, itself included; all of them have been stored. Scores are
        scale * (query . key), with a softcap c then c * tanh(scores / c). The layer's norms are
        left to `AttendProjected`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedSlices:
    """The slices of a step, of any mixture of lengths, and where their cells are.

    Tensors as in `engine/batch.py`: offsets, lengths and tables int32, slots int64. The last
    `query_lengths[i]` positions of sequence i's context are its queries; some may have none.

    tree_masks int64 [tokens], for queries that are nodes of a tree (Miao et al. 2023, "SpecInfer"):
    bit j says that the query sees the j-th query of its sequence, itself and its ancestors, of at
    most 63; -1 is any other query. A node stands as many positions after the context as it has
    ancestors, and with a window this is what the context is counted from; the tree is not deeper
    than a window is wide.
    """

    query_offsets: Tensor  # [sequences + 1]
    context_lengths: Tensor  # [sequences], this step's tokens included
    block_tables: Tensor  # [sequences, max_blocks]
    slot_mapping: Tensor  # [tokens]
    query_lengths: tuple[int, ...]
    context_lengths_host: tuple[int, ...]
    block_size: int
    tree_masks: Tensor | None = None


class PlanAttention(Protocol):
    """Plans paged attention of a step."""

    def __call__(self, slices: PagedSlices) -> AttentionPlan:
        """head_dim is even."""


class AttendProjected(Protocol):
    """All of a layer's attention between its two matrices: the norms of heads, Rotate of queries
    and keys, and then the plan's `store` and `attend`. The plan is one of the same provider's."""

    def __call__(
        self,
        plan: AttentionPlan,
        cache: Tensor,
        projected: Tensor,
        cosine: Tensor,
        sine: Tensor,
        layer: AttentionLayer,
    ) -> Tensor:
        """projected [tokens, (heads + 2 * kv_heads) * head_dim], the queries first, then keys and
        values; it is left alone. cosine and sine [tokens, 1, rotary_dim], rotary_dim <= head_dim,
        also 0 -> [tokens, heads * head_dim].

        On a CPU `projected` may be float32 where all else is bfloat16, as then the result is: so
        queries and keys are rounded once.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceState:
    """What the device keeps of every sequence, a row each."""

    token_ids: Tensor  # int32 [rows, longest]: known tokens, and drafts after them
    computed: Tensor  # int32 [rows]: tokens whose cells are in the cache
    block_tables: Tensor  # int32 [rows, max_blocks]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """A step's inputs, as in `engine/batch.py`. There may be room for more than a step has."""

    token_ids: Tensor  # int64 [tokens]
    positions: Tensor  # int64 [tokens]
    slot_mapping: Tensor  # int64 [tokens]
    context_lengths: Tensor  # int32 [sequences]
    block_tables: Tensor  # int32 [sequences, max_blocks]


class BuildStep(Protocol):
    """A step's inputs from what the device keeps: no token has to visit the host before it."""

    def __call__(
        self,
        state: SequenceState,
        rows: Tensor,
        query_offsets: Tensor,
        inputs: StepInputs,
        block_size: int,
    ) -> None:
        """rows int32 [sequences], -1 for padding; query_offsets int32 [sequences + 1]; fills all
        of `inputs` but the entries of block tables that are past a context.

        A sequence's tokens are those after its computed ones. Padding has the token and the
        position 0, the slot -1 and the context 0, and so have the tokens after the last offset.
        """


class Verify(Protocol):
    """Which drafts are right: those that equal what is drawn where they stand (`GumbelArgmax`)."""

    def __call__(
        self,
        token_ids: Tensor,
        drawn: Tensor,
        query_offsets: Tensor,
        parents: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """token_ids int64 [tokens], of each sequence its last known token and then its drafts;
        drawn int64 [tokens], the token that follows each; query_offsets int32 [sequences + 1];
        parents int32 [tokens], after which of its sequence's tokens a draft stands, lower than its
        own index, siblings being different; None: after the one before it.

        -> accepted int32 [sequences], how many drafts are right; the token that follows the last
        of them, int64 [sequences]; and int32 [tokens], the step on the accepted path at which a
        token stands, 0 for the first, or -1 beside it.
        """


class CopyBlocks(Protocol):
    """Copy whole blocks, within one cache or between the device's and the host's."""

    def __call__(self, source: Tensor, target: Tensor, pairs: Tensor) -> None:
        """target[pairs[i, 1]] = source[pairs[i, 0]]; pairs int64 [count, 2].

        All are read before the first is written, so a target may be another pair's source.
        """


class GumbelArgmax(Protocol):
    """Draw one column per row from softmax(logits / temperature), by the Gumbel-max trick.

    argmax(logits + temperature * noise) is the same draw as argmax(logits / temperature + noise)
    and overflows at no temperature; 0 is greedy (Gumbel 1954; Maddison, Tarlow, Minka 2014). The
    noise is a pure function of (seed, position, token id), the one of `reference/sampling.py`.
    """

    def __call__(
        self,
        logits: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        positions: Tensor,
        token_ids: Tensor | None = None,
    ) -> Tensor:
        """logits float32 [rows, columns], -inf is never drawn; temperature float32 [rows];
        seeds int64 [rows], 64 bits in two's complement; positions int64 [rows], of the token to be
        drawn; token_ids int64 [rows, columns], None: the columns' numbers -> int64 [rows], the
        chosen columns; of equal ones the first.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrowing:
    """What may be drawn of each row: what min-p, top-k and top-p leave.

    Min-p keeps what has at least that share of the likeliest token's probability, top-k the k
    likeliest in the order of `Largest`, and top-p of what both left the smallest number of the
    likeliest that together have the probability p of it, one at least. A row of temperature 0 keeps
    everything.
    """

    top_k: Tensor  # int64 [rows]; columns or more: off
    top_p: Tensor  # float32 [rows]; 1: off
    min_p: Tensor  # float32 [rows]; 0: off


class Draw(Protocol):
    """`GumbelArgmax` of what a narrowing leaves, without a look at how many columns that are: for
    devices whose work the host runs ahead of."""

    def __call__(
        self,
        logits: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        positions: Tensor,
        narrowing: Narrowing | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As for `GumbelArgmax` -> int64 [rows], the chosen columns, and int64 [rows], the same
        but -1 where the largest logit of a row is not finite (NaN where there is one): there any
        column is chosen."""


class Largest(Protocol):
    """The `count` largest of each row, descending, of equal values the lower column first."""

    def __call__(self, values: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """values float32 [rows, columns], no NaN; count 0 .. columns
        -> values float32 and columns int64, both [rows, count].
        """


class Rank(Protocol):
    """How many of its row come before a column in the order of `Largest`, plus one."""

    def __call__(self, values: Tensor, columns: Tensor) -> Tensor:
        """values float32 [rows, columns], no NaN; columns int64 [rows] -> int64 [rows]."""


class Penalise(Protocol):
    """Lower what has been said before.

    Repetition (Keskar et al. 2019, "CTRL") divides a positive logit and multiplies a negative one,
    for tokens of prompt or output; then OpenAI's penalties are subtracted: `frequency` per
    occurrence in the output, `presence` once.
    """

    def __call__(
        self,
        logits: Tensor,
        prompt_seen: Tensor,
        output_counts: Tensor,
        presence: Tensor,
        frequency: Tensor,
        repetition: Tensor,
    ) -> Tensor:
        """logits float32, prompt_seen bool, output_counts int32, all [rows, vocab]; presence,
        frequency and repetition float32 [rows] -> float32 [rows, vocab].
        """


class AllowOnly(Protocol):
    """Minus infinity for every token that a packed mask leaves out, in place."""

    def __call__(self, logits: Tensor, bitmask: Tensor) -> None:
        """logits float32 [rows, vocab]; bitmask int32 [rows, ceil(vocab / 32)], token t is bit
        t % 32 of word t // 32, and allowed where it is 1.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Ops:
    """One implementation of every op, for one device."""

    set_threads: SetThreads
    recorder: MakeRecorder
    take_rows: TakeRows
    rms_norm: RmsNorm
    add_rms_norm: AddRmsNorm
    add_rms_norm_float8: AddRmsNormFloat8
    rotate: Rotate
    silu_mul: SiluMul
    silu_mul_float8: SiluMulFloat8
    pack_linear: PackLinear
    pack_quantized: PackQuantized
    pack_float8: PackFloat8
    plan_attention: PlanAttention
    attend_projected: AttendProjected
    build_step: BuildStep
    verify: Verify
    copy_blocks: CopyBlocks
    gumbel_argmax: GumbelArgmax
    draw: Draw
    largest: Largest
    rank: Rank
    penalise: Penalise
    allow_only: AllowOnly
