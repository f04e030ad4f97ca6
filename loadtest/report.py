"""The figures of one run: what an operator compares servers by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from .events import Exchange

CLIENT_SHARE_LIMIT = 0.5  # of one core, above which the client may be what is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Of one latency, in seconds: the smallest value that a share of all do not exceed."""

    p50: float
    p90: float
    p99: float
    worst: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Quantiles:
        ordered = sorted(values) or [0.0]
        return cls(
            p50=quantile(ordered, 0.5),
            p90=quantile(ordered, 0.9),
            p99=quantile(ordered, 0.99),
            worst=ordered[-1],
        )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of ascending values, by the nearest rank."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What an answer must keep to count: seconds to its first token, and per token after it."""

    ttft: float | None = None
    tpot: float | None = None

    def kept_by(self, exchange: Exchange) -> bool:
        if not exchange.good:
            return False
        if self.ttft is not None and exchange.ttft > self.ttft:
            return False
        return self.tpot is None or exchange.tpot is None or exchange.tpot <= self.tpot


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Latencies in seconds, rates per second over the whole run."""

    requests: int
    errors: int
    seconds: float
    output_tokens: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens_per_second: float
    requests_per_second: float
    ttft: Quantiles  # request sent to first text
    itl: Quantiles  # between two events of one stream
    tpot: Quantiles  # mean time per output token after the first, one value a request
    client_cpu_share: float  # of one core; near 1 the client was the bottleneck
    within_slo: float | None = None  # share of the requests
    goodput: float | None = None  # requests per second that kept the SLO
    first_error: str | None = None

    @classmethod
    def of(
        cls,
        exchanges: Sequence[Exchange],
        *,
        seconds: float,
        client_cpu: float = 0.0,
        slo: Slo | None = None,
    ) -> Report:
        failed = [e for e in exchanges if e.error is not None or e.status != 200]
        good = [e for e in exchanges if e.good]
        output = sum(e.output_tokens for e in good)
        kept = None if slo is None else sum(map(slo.kept_by, exchanges))
        return cls(
            requests=len(exchanges),
            errors=len(failed),
            seconds=seconds,
            output_tokens=output,
            prompt_tokens=sum(e.prompt_tokens for e in good),
            cached_tokens=sum(e.cached_tokens for e in good),
            output_tokens_per_second=output / seconds,
            requests_per_second=len(good) / seconds,
            ttft=Quantiles.of(e.ttft for e in good),
            itl=Quantiles.of(gap for e in good for gap in e.gaps),
            tpot=Quantiles.of(e.tpot for e in good if e.tpot is not None),
            client_cpu_share=client_cpu / seconds,
            within_slo=None if kept is None else kept / max(1, len(exchanges)),
            goodput=None if kept is None else kept / seconds,
            first_error=failed[0].error or f"status {failed[0].status}" if failed else None,
        )

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For people, one figure a line; latencies in milliseconds."""
        rows = [
            f"requests          {self.requests} ({self.errors} failed) in {self.seconds:.1f} s",
            f"output tokens/s   {self.output_tokens_per_second:.1f}",
            f"requests/s        {self.requests_per_second:.2f}",
            f"cached tokens     {self.cached_tokens} of {self.prompt_tokens}",
        ]
        if self.goodput is not None and self.within_slo is not None:
            rows.append(
                f"goodput           {self.goodput:.2f} requests/s"
                f" ({self.within_slo:.0%} kept the SLO)"
            )
        for name, value in (("TTFT", self.ttft), ("ITL", self.itl), ("TPOT", self.tpot)):
            rows.append(f"{name:<4} ms  {milliseconds(value)}")
        each = self.client_cpu_share * self.seconds / max(1, self.output_tokens)
        rows.append(f"client CPU share  {self.client_cpu_share:.3f} ({each * 1e6:.0f} us a token)")
        if self.first_error is not None:
            rows.append(f"first error       {self.first_error}")
        return rows


def milliseconds(value: Quantiles) -> str:
    return (
        f"p50 {value.p50 * 1e3:.1f}  p90 {value.p90 * 1e3:.1f}"
        f"  p99 {value.p99 * 1e3:.1f}  worst {value.worst * 1e3:.1f}"
    )


def gaps_during(exchanges: Iterable[Exchange], begin: float, end: float) -> list[float]:
    """The gaps of streams that touch the time between `begin` and `end`."""
    return [
        after - before
        for exchange in exchanges
        for before, after in zip(exchange.arrivals, exchange.arrivals[1:], strict=False)
        if after > begin and before < end
    ]
