"""The figures of one run: what an operator compares servers by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from .client import Exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Of one latency, in seconds."""

    p50: float
    p90: float
    p99: float
    worst: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Quantiles:
        ordered = sorted(values) or [0.0]

        def at(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

        return cls(p50=at(0.5), p90=at(0.9), p99=at(0.99), worst=ordered[-1])


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
    first_error: str | None = None

    @classmethod
    def of(cls, exchanges: list[Exchange], *, seconds: float, client_cpu: float) -> Report:
        failed = [e for e in exchanges if e.error is not None or e.status != 200]
        good = [e for e in exchanges if e.error is None and e.status == 200 and e.arrivals]
        output = sum(e.output_tokens for e in good)
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
            tpot=Quantiles.of(
                (e.arrivals[-1] - e.arrivals[0]) / (e.output_tokens - 1)
                for e in good
                if e.output_tokens > 1
            ),
            client_cpu_share=client_cpu / seconds,
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
        for name, value in (("TTFT", self.ttft), ("ITL", self.itl), ("TPOT", self.tpot)):
            rows.append(
                f"{name:<4} ms  p50 {value.p50 * 1e3:.1f}  p90 {value.p90 * 1e3:.1f}"
                f"  p99 {value.p99 * 1e3:.1f}  worst {value.worst * 1e3:.1f}"
            )
        rows.append(f"client CPU share  {self.client_cpu_share:.2f}")
        if self.first_error is not None:
            rows.append(f"first error       {self.first_error}")
        return rows
