"""Metrics: the names, types, labels and buckets that dashboards query, and true numbers."""

from __future__ import annotations

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from octavo.engine.config import EngineConfig
from octavo.engine.executor.base import Capacity
from octavo.engine.params import FinishReason
from octavo.engine.step import StepStats
from octavo.server.observe.metrics import CONTENT_TYPE, REJECTIONS, Metrics
from octavo.server.observe.record import FinishedRequest

CORE = {"model_name": "tiny", "engine": "0"}
# Suffix and type of what vLLM's dashboards ask for; `_total` is how counters are exposed.
EXPECTED = {
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "num_requests_waiting_by_reason": "gauge",
    "engine_sleep_state": "gauge",
    "kv_cache_usage_perc": "gauge",
    "prefix_cache_queries": "counter",
    "prefix_cache_hits": "counter",
    "num_preemptions": "counter",
    "prompt_tokens": "counter",
    "prompt_tokens_by_source": "counter",
    "prompt_tokens_cached": "counter",
    "generation_tokens": "counter",
    "request_success": "counter",
    "request_prompt_tokens": "histogram",
    "request_generation_tokens": "histogram",
    "request_max_num_generation_tokens": "histogram",
    "request_params_max_tokens": "histogram",
    "request_params_n": "histogram",
    "request_prefill_kv_computed_tokens": "histogram",
    "iteration_tokens_total": "histogram",
    "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram",
    "request_time_per_output_token_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram",
    "request_queue_time_seconds": "histogram",
    "request_inference_time_seconds": "histogram",
    "request_prefill_time_seconds": "histogram",
    "request_decode_time_seconds": "histogram",
}
BUCKETS = {
    "request_params_n": [1, 2, 5, 10, 20],
    "request_prompt_tokens": [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000],
    "iteration_tokens_total": [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384],
    "time_to_first_token_seconds": [
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
        *(20, 40, 80, 160, 640, 2560),
    ],
    "inter_token_latency_seconds": [
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
        *(20, 40, 80),
    ],
    "e2e_request_latency_seconds": [
        *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960),
        *(1920, 7680),
    ],
}


def make() -> Metrics:
    return Metrics(model_name="tiny", longest_context=2048)


def families(metrics: Metrics) -> dict[str, Metric]:
    text = metrics.render().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def number(metrics: Metrics, sample: str, **labels: str) -> float:
    wanted = (f"octavo:{sample}", {**CORE, **labels})
    found = [
        one.value
        for family in families(metrics).values()
        for one in family.samples
        if (one.name, one.labels) == wanted
    ]
    assert len(found) == 1, f"{sample} {labels} is exported {len(found)} times"
    return found[0]


def test_every_name_that_dashboards_ask_for_is_there_from_the_start() -> None:
    found = families(make())
    for suffix, kind in EXPECTED.items():
        family = found[f"octavo:{suffix}"]
        assert family.type == kind, suffix
        assert family.documentation, suffix
        assert family.samples, f"{suffix} is silent until something happens"
        for sample in family.samples:
            assert CORE.items() <= sample.labels.items(), suffix


def test_every_family_has_help_and_type() -> None:
    lines = make().render().decode().splitlines()
    helped = {line.split()[2] for line in lines if line.startswith("# HELP")}
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert helped == typed
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_buckets_hold_those_of_vllm() -> None:
    found = families(make())
    for suffix, expected in BUCKETS.items():
        bounds = {
            float(sample.labels["le"])
            for sample in found[f"octavo:{suffix}"].samples
            if sample.name.endswith("_bucket")
        }
        assert set(map(float, expected)) <= bounds, suffix


def test_labels_have_the_values_dashboards_filter_by() -> None:
    metrics = make()
    for reason in ("stop", "length", "abort", "error"):
        assert number(metrics, "request_success_total", finished_reason=reason) == 0
    for source in ("local_compute", "local_cache_hit", "external_kv_transfer"):
        assert number(metrics, "prompt_tokens_by_source_total", source=source) == 0
    for reason in ("capacity", "deferred"):
        assert number(metrics, "num_requests_waiting_by_reason", reason=reason) == 0
    assert number(metrics, "engine_sleep_state", sleep_state="awake") == 1
    assert number(metrics, "engine_sleep_state", sleep_state="discard_all") == 0


def test_steps_move_gauges_and_counters() -> None:
    metrics = make()
    metrics.steps.note(
        StepStats(
            step=1,
            running=3,
            waiting=2,
            swapped=1,
            blocks_total=10,
            blocks_used=4,
            host_blocks_total=4,
            host_blocks_used=1,
            prefix_queries=100,
            prefix_hits=60,
            preemptions_recompute=2,
            preemptions_swap=1,
            tokens_computed=33,
            sequences_computed=3,
            step_seconds=0.01,
            host_seconds=0.0002,
        ),
        0,
    )
    totals = {"prefix_hits": 60, "preemptions_recompute": 2, "preemptions_swap": 1}
    metrics.steps.note(StepStats(step=2, prefix_queries=150, **totals), 0)
    assert number(metrics, "num_requests_running") == 0
    assert number(metrics, "kv_cache_usage_perc") == 0
    assert number(metrics, "prefix_cache_queries_total") == 150
    assert number(metrics, "prefix_cache_hits_total") == 60
    assert number(metrics, "num_preemptions_total") == 3
    assert number(metrics, "preemptions_by_kind_total", kind="swap") == 1
    assert number(metrics, "iteration_tokens_total_sum") == 33
    assert number(metrics, "iteration_tokens_total_count") == 1  # the second computed nothing
    assert number(metrics, "step_time_seconds_count") == 1


def test_drafts_are_counted_by_what_came_of_them() -> None:
    metrics = make()
    metrics.steps.note(StepStats(step=1, drafts=4, draft_tokens=20, drafts_accepted=(3, 1)), 0)
    metrics.steps.note(StepStats(step=2, drafts=6, draft_tokens=35, drafts_accepted=(4, 2, 2)), 0)
    names = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
    assert [number(metrics, f"spec_decode_{name}_total") for name in names] == [6, 35, 8]
    name = "spec_decode_num_accepted_tokens_per_pos_total"
    assert [number(metrics, name, position=str(i)) for i in range(4)] == [4, 2, 2, 0]
    metrics.steps.note(StepStats(step=1, drafts=1, draft_tokens=2, drafts_accepted=(1,)), 1)  # anew
    assert number(metrics, "spec_decode_num_accepted_tokens_total") == 9


def test_gauges_are_those_of_the_latest_step() -> None:
    metrics = make()
    metrics.steps.note(
        StepStats(
            step=1,
            running=3,
            waiting=2,
            swapped=1,
            blocks_total=10,
            blocks_used=4,
            host_blocks_total=4,
            host_blocks_used=1,
        ),
        0,
    )
    assert number(metrics, "num_requests_running") == 3
    assert number(metrics, "num_requests_waiting") == 2
    assert number(metrics, "num_requests_waiting_by_reason", reason="capacity") == 2
    assert number(metrics, "num_requests_swapped") == 1
    assert number(metrics, "kv_cache_usage_perc") == 0.4
    assert number(metrics, "cpu_cache_usage_perc") == 0.25


def test_counters_go_on_when_a_new_engine_begins_at_zero() -> None:
    metrics = make()
    metrics.steps.note(StepStats(step=500, prefix_queries=1000, blocks_copied=5), 0)
    metrics.on_engine(restarts=1, resumed=0, heartbeat_age=0.0)
    metrics.steps.note(StepStats(step=1, prefix_queries=10, blocks_copied=0), 1)
    metrics.steps.note(StepStats(step=2, prefix_queries=12, blocks_copied=1), 1)
    assert number(metrics, "prefix_cache_queries_total") == 1012
    assert number(metrics, "kv_blocks_copied_total") == 6
    assert number(metrics, "engine_restarts_total") == 1


def test_engines_that_die_of_their_first_step_are_counted_each() -> None:
    metrics = make()
    for restarts in range(3):
        metrics.steps.note(StepStats(step=0, prefix_queries=100), restarts)
    assert number(metrics, "prefix_cache_queries_total") == 300


def test_tokens_are_counted_as_they_come() -> None:
    metrics = make()
    metrics.on_first_token(seconds=0.05, prompt_tokens=100, cached_tokens=64)
    metrics.on_tokens(1)
    metrics.on_tokens(3, gap_seconds=0.03)
    assert number(metrics, "prompt_tokens_total") == 100
    assert number(metrics, "prompt_tokens_cached_total") == 64
    assert number(metrics, "prompt_tokens_by_source_total", source="local_compute") == 36
    assert number(metrics, "prompt_tokens_by_source_total", source="local_cache_hit") == 64
    assert number(metrics, "generation_tokens_total") == 4
    assert number(metrics, "time_to_first_token_seconds_count") == 1
    assert number(metrics, "inter_token_latency_seconds_count") == 3
    assert abs(number(metrics, "inter_token_latency_seconds_sum") - 0.03) < 1e-9


def test_a_finished_request_is_counted_once_and_its_choices_by_reason() -> None:
    metrics = make()
    metrics.on_finished(
        FinishedRequest(
            id="x",
            route="/v1/completions",
            status=200,
            total_seconds=2.0,
            prompt_tokens=100,
            cached_tokens=64,
            output_tokens=30,
            longest_output=21,
            n=2,
            max_tokens=21,
            finish_reasons=(FinishReason.STOP, FinishReason.LENGTH),
            queue_seconds=0.1,
            prefill_seconds=0.4,
            decode_seconds=1.0,
        )
    )
    for reason in ("stop", "length"):
        assert number(metrics, "request_success_total", finished_reason=reason) == 1
    sums = {
        "e2e_request_latency_seconds": 2.0,
        "request_queue_time_seconds": 0.1,
        "request_prefill_time_seconds": 0.4,
        "request_decode_time_seconds": 1.0,
        "request_inference_time_seconds": 1.4,
        "request_time_per_output_token_seconds": 0.05,
        "request_prompt_tokens": 100,
        "request_generation_tokens": 30,
        "request_max_num_generation_tokens": 21,
        "request_params_max_tokens": 21,
        "request_params_n": 2,
        "request_prefill_kv_computed_tokens": 36,
    }
    for name, expected in sums.items():
        assert number(metrics, f"{name}_count") == 1, name
        assert abs(number(metrics, f"{name}_sum") - expected) < 1e-9, name


def test_a_request_that_got_nowhere_leaves_no_false_times() -> None:
    metrics = make()
    metrics.on_finished(
        FinishedRequest(
            id="x",
            route="/v1/completions",
            status=499,
            total_seconds=0.1,
            finish_reasons=(FinishReason.ABORT,),
        )
    )
    assert number(metrics, "request_success_total", finished_reason="abort") == 1
    for name in ("request_prefill_time", "request_decode_time", "request_inference_time"):
        assert number(metrics, f"{name}_seconds_count") == 0


def test_refusals_http_and_the_plan_of_the_cache() -> None:
    metrics = make()
    for reason in REJECTIONS:
        metrics.on_rejected(reason)
        assert number(metrics, "requests_rejected_total", reason=reason) == 1
    metrics.on_http(handler="/v1/models/{id}", method="GET", status=404, seconds=0.01)
    capacity = Capacity(
        num_blocks=7,
        block_size=16,
        num_host_blocks=2,
        max_model_len=112,
        vocab_size=10,
        eos_token_ids=(1,),
        recompute_seconds_per_token=0.0,
        swap_seconds_per_block=0.0,
        dtype="float32",
        device="cpu",
        kv_bytes=1,
        weight_bytes=1,
        parameters=1,
        memory={"weights": 5, "kv_cache": 7},
    )
    metrics.on_ready(EngineConfig(model="m"), capacity)
    text = metrics.render().decode()
    assert 'http_requests_total{handler="/v1/models/{id}",method="GET",status="4xx"} 1.0' in text
    (info,) = families(metrics)["octavo:cache_config_info"].samples
    assert info.value == 1
    assert info.labels["num_gpu_blocks"] == "7"
    assert info.labels["enable_prefix_caching"] == "True"
    memory = families(metrics)["octavo:memory_bytes"].samples
    assert {sample.labels["part"]: sample.value for sample in memory} == {
        "weights": 5,
        "kv_cache": 7,
    }


def test_two_daemons_in_one_process_do_not_share_numbers() -> None:
    first, second = make(), make()
    first.on_tokens(5)
    assert number(second, "generation_tokens_total") == 0
