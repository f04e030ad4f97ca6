"""`Metrics`: what the daemon counts, in Prometheus' text format.

Suffixes, labels and types are those of vLLM's dashboards, under the prefix `octavo:`. At the end
stands what only octavo tells: step time, host overhead, rejections, restarts, audits.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from octavo.engine.config import EngineConfig
from octavo.engine.executor.base import Capacity
from octavo.engine.params import FinishReason

from . import families
from .families import PREFIX, Families
from .record import FinishedRequest
from .steps import StepMetrics

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
REJECTIONS = (
    *("invalid", "unauthorized", "unavailable", "draining"),
    *("queue_requests", "queue_tokens"),  # which limit of the queue was reached
    "deadline",  # its turn would have come too late
    "bodies",  # together with others' it brought too much
)


class Metrics:
    """One daemon's metrics. Use it from one thread.

    `steps` is told what the engine does. What happens for each step or token is only noted:
    `render` makes metrics of it, when somebody asks for them.
    """

    def __init__(self, *, model_name: str, longest_context: int, engine: str = "0") -> None:
        """`longest_context` in tokens bounds the histograms of token numbers."""
        self._families = f = Families(model_name=model_name, engine=engine)
        self._engine = engine
        self.steps = StepMetrics(f)
        self.prompt_tokens_seen = 0
        self.output_tokens_seen = 0
        self._output_tokens_counted = 0

        states = ("awake", "weights_offloaded", "discard_all")
        sleep = f.gauges("engine_sleep_state", "1 for the engine's state.", "sleep_state", states)
        sleep["awake"].set(1)

        # Counters.
        self._prompt_tokens = f.counter("prompt_tokens", "Prompt tokens processed.")
        self._prompt_tokens_by_source = f.counters(
            "prompt_tokens_by_source",
            "Prompt tokens, by where their KV cells came from.",
            "source",
            ("local_compute", "local_cache_hit", "external_kv_transfer"),
        )
        self._prompt_tokens_cached = f.counter(
            "prompt_tokens_cached", "Prompt tokens found in the prefix cache."
        )
        self._output_tokens = f.counter("generation_tokens", "Tokens generated.")
        self._ended = f.counters(
            "request_success",
            "Choices that ended, by reason.",
            "finished_reason",
            [reason.value for reason in FinishReason],
        )

        # Histograms.
        self._first_token = f.histogram(
            "time_to_first_token_seconds", "Arrival to first token.", families.FIRST_TOKEN
        )
        self._between_tokens = f.unlocked_histogram(
            "inter_token_latency_seconds", "One token to the next.", families.BETWEEN_TOKENS
        )
        self._per_output_token = f.histogram(
            "request_time_per_output_token_seconds",
            "First to last token, divided by the tokens after the first.",
            families.BETWEEN_TOKENS,
        )
        self._times = {
            name: f.histogram(f"{name}_seconds", text, families.WHOLE_REQUEST)
            for name, text in (
                ("e2e_request_latency", "Arrival to the end of the answer."),
                ("request_queue_time", "Arrival to first step."),
                ("request_inference_time", "First step to last token."),
                ("request_prefill_time", "First step to first token."),
                ("request_decode_time", "First to last token."),
            )
        }
        self._lengths = {
            name: f.histogram(name, text, families.lengths(longest_context))
            for name, text in (
                ("request_prompt_tokens", "Prompt tokens of a request."),
                ("request_generation_tokens", "Tokens generated for a request."),
                ("request_max_num_generation_tokens", "Tokens of a request's longest choice."),
                ("request_params_max_tokens", "max_tokens of a request."),
                ("request_prefill_kv_computed_tokens", "Prompt tokens not found in the cache."),
            )
        }
        self._n = f.histogram("request_params_n", "n of a request.", families.CHOICES)

        # What only octavo tells.
        self._rejected = f.counters(
            "requests_rejected", "Requests refused by the front end.", "reason", REJECTIONS
        )
        self._expired = f.counter("requests_expired", "Requests whose time was up too early.")
        self._queue = {
            kind: f.gauge(f"queue_{kind}", f"{text} that wait for their first token.")
            for kind, text in (("requests", "Requests"), ("tokens", "Tokens of prompts"))
        }
        self._restarts = f.counter("engine_restarts", "Engines started after one died.")
        self._resumed = f.counter(
            "requests_resumed", "Requests that went on in another engine after theirs died."
        )
        self._heartbeat_age = f.gauge(
            "engine_heartbeat_age_seconds", "Last sign of life of an engine with work; 0: idle."
        )
        self._seen_restarts = self._seen_resumed = 0
        self._cache_config = Gauge(
            PREFIX + "cache_config_info",
            "The KV cache as planned: always 1.",
            _CACHE_LABELS,
            registry=f.registry,
        )
        self._memory = Gauge(
            PREFIX + "memory_bytes",
            "Memory of the device that computes, by what it was planned for.",
            ("engine", "part"),
            registry=f.registry,
        )
        self._http_requests = Counter(
            "http_requests",
            "HTTP requests, by route and class of status.",
            ("handler", "method", "status"),
            registry=f.registry,
        )
        self._http_seconds = Histogram(
            "http_request_duration_seconds",
            "HTTP requests, arrival to last byte.",
            ("handler", "method"),
            buckets=families.HTTP_SECONDS,
            registry=f.registry,
        )

    def on_ready(self, config: EngineConfig, capacity: Capacity) -> None:
        """The engine has planned its memory."""
        self._cache_config.clear()
        self._cache_config.labels(
            engine=self._engine,
            block_size=capacity.block_size,
            cache_dtype=capacity.dtype,
            num_gpu_blocks=capacity.num_blocks,
            num_cpu_blocks=capacity.num_host_blocks,
            gpu_memory_utilization=config.memory_utilization or "auto",
            enable_prefix_caching=config.prefix_caching,
        ).set(1)

        self._memory.clear()
        for part, size in capacity.memory.items():
            self._memory.labels(engine=self._engine, part=part).set(size)

    def on_first_token(self, *, seconds: float, prompt_tokens: int, cached_tokens: int) -> None:
        """A prompt has been computed: its first token is here, `seconds` after arrival."""
        self.prompt_tokens_seen += prompt_tokens
        self._first_token.observe(seconds)
        self._prompt_tokens.inc(prompt_tokens)
        self._prompt_tokens_cached.inc(cached_tokens)
        self._prompt_tokens_by_source["local_cache_hit"].inc(cached_tokens)
        self._prompt_tokens_by_source["local_compute"].inc(max(0, prompt_tokens - cached_tokens))

    def on_tokens(self, count: int, *, gap_seconds: float | None = None) -> None:
        """A choice got `count` tokens, `gap_seconds` after its previous ones (None: its first)."""
        self.output_tokens_seen += count
        if gap_seconds is not None:
            self._between_tokens.observe(gap_seconds / count, count)  # they share the gap

    def on_finished(self, record: FinishedRequest) -> None:
        """A request that reached the engine is over."""
        for reason in record.finish_reasons:
            self._ended[reason.value].inc()
        times: dict[str, float | None] = {
            "e2e_request_latency": record.total_seconds,
            "request_queue_time": record.queue_seconds,
            "request_prefill_time": record.prefill_seconds,
            "request_decode_time": record.decode_seconds,
            "request_inference_time": record.inference_seconds,
        }
        for name, seconds in times.items():
            if seconds is not None:
                self._times[name].observe(seconds)
        if record.decode_seconds is not None and record.longest_output > 1:
            self._per_output_token.observe(record.decode_seconds / (record.longest_output - 1))
        computed = max(0, record.prompt_tokens - record.cached_tokens)
        self._lengths["request_prompt_tokens"].observe(record.prompt_tokens)
        self._lengths["request_generation_tokens"].observe(record.output_tokens)
        self._lengths["request_max_num_generation_tokens"].observe(record.longest_output)
        self._lengths["request_prefill_kv_computed_tokens"].observe(computed)
        if record.max_tokens is not None:
            self._lengths["request_params_max_tokens"].observe(record.max_tokens)
        self._n.observe(record.n)

    def on_rejected(self, reason: str) -> None:
        """A request was refused; `reason` is one of REJECTIONS."""
        self._rejected[reason].inc()

    def on_refused(self, status: int) -> None:
        """What came over a connection was answered with `status` before it was a request."""
        self._http_requests.labels("none", "other", f"{status // 100}xx").inc()
        self.on_rejected("unavailable" if status == 503 else "invalid")

    def on_expired(self) -> None:
        """A request's time was up before its answer was complete."""
        self._expired.inc()

    def follow_queue(self, *, requests: Callable[[], int], tokens: Callable[[], int]) -> None:
        """Ask these how much waits whenever somebody wants to know."""
        self._queue["requests"].set_function(requests)
        self._queue["tokens"].set_function(tokens)

    def on_engine(self, *, restarts: int, resumed: int, heartbeat_age: float) -> None:
        """How the engine fares: numbers since the start, and seconds."""
        self._restarts.inc(restarts - self._seen_restarts)
        self._resumed.inc(resumed - self._seen_resumed)
        self._seen_restarts, self._seen_resumed = restarts, resumed
        self._heartbeat_age.set(heartbeat_age)

    def on_http(self, *, handler: str, method: str, status: int, seconds: float) -> None:
        """An HTTP request was answered. `handler` is the route's pattern, never a raw path."""
        self._http_requests.labels(handler, method, f"{status // 100}xx").inc()
        self._http_seconds.labels(handler, method).observe(seconds)

    def render(self) -> bytes:
        """Everything in text format 0.0.4, to be sent as `CONTENT_TYPE`."""
        self.steps.count()
        self._output_tokens.inc(self.output_tokens_seen - self._output_tokens_counted)
        self._output_tokens_counted = self.output_tokens_seen
        return generate_latest(self._families.registry)


_CACHE_LABELS = (
    "engine",
    "block_size",
    "cache_dtype",
    "num_gpu_blocks",
    "num_cpu_blocks",
    "gpu_memory_utilization",
    "enable_prefix_caching",
)
