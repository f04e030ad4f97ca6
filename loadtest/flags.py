"""The flags that every command shares which sends load to a server."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace

from . import scenario as scenarios
from .asking import calibrated, first_model
from .lengths import lengths
from .report import Slo
from .run import Target
from .scenario import Scenario
from .workload import Asking, Workload


def add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--base-url", default="http://127.0.0.1:8000", metavar="URL")
    group.add_argument("--model", help="a served name; unset: the first the server lists")
    group.add_argument("--api-key")
    group.add_argument(
        "--prompts",
        choices=("ids", "text", "chat"),
        default="ids",
        help="token ids (exact lengths), text, or chat messages for servers that take no ids",
    )
    group.add_argument(
        "--token-ids",
        default="300..3900",
        metavar="FIRST..LAST",
        help="ordinary tokens of the model",
    )
    group.add_argument("--temperature", type=float, default=0.0)
    group.add_argument(
        "--no-ignore-eos",
        action="store_true",
        help="do not send ignore_eos, which some servers refuse; answers may then end early",
    )
    group.add_argument(
        "--extra-body", type=json.loads, default={}, metavar="JSON", help="more of each request"
    )


async def target_of(chosen: argparse.Namespace) -> Target:
    """The server that the flags name; text prompts are calibrated against it."""
    ids = lengths(chosen.token_ids)
    target = Target(
        base_url=chosen.base_url,
        api_key=chosen.api_key,
        asking=Asking(
            model=chosen.model or await first_model(chosen.base_url, chosen.api_key),
            form=chosen.prompts,
            ignore_eos=not chosen.no_ignore_eos,
            temperature=chosen.temperature,
            first_token_id=getattr(ids, "low", 300),
            last_token_id=getattr(ids, "high", 3900),
            extra=chosen.extra_body,
        ),
    )
    return target if chosen.prompts == "ids" else await calibrated(target)


def add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "load", "lengths are written as 128, 64..256, 512~0.8<4096 (log-normal), 128*3,1024*1"
    )
    group.add_argument(
        "--scenario",
        metavar="NAME",
        help=f"one of {', '.join(scenarios.names())}, or a .toml file; the flags below change it",
    )
    group.add_argument("--requests", type=int)
    group.add_argument("--concurrency", type=int, help="requests under way: a closed loop")
    group.add_argument(
        "--rate", type=float, help="requests per second, as a Poisson process: an open loop"
    )
    group.add_argument("--prompt-tokens", type=lengths, metavar="LENGTH")
    group.add_argument("--output-tokens", type=lengths, metavar="LENGTH")
    group.add_argument("--shared-prefix", type=int, metavar="TOKENS")
    group.add_argument("--prefixes", type=int, help="how many different shared prefixes there are")
    group.add_argument("--no-stream", dest="stream", action="store_false", default=None)
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--warm-up", type=int, default=4, metavar="REQUESTS")


def scenario_of(chosen: argparse.Namespace) -> Scenario:
    """What the flags ask for: a scenario file, changed by what is given beside it."""
    if chosen.scenario is None:
        base = Scenario(name="flags", title="Requests", workloads=(Workload(requests=64),))
    else:
        base = scenarios.load(chosen.scenario)
    fields = (
        "requests concurrency rate prompt_tokens output_tokens shared_prefix prefixes stream"
    ).split()
    changes = {
        field: getattr(chosen, field) for field in fields if getattr(chosen, field) is not None
    }
    first, *rest = base.workloads
    return replace(base, workloads=(replace(first, **changes), *rest)).seeded(chosen.seed)


def add_slo(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("service level: what an answer must keep to count")
    group.add_argument("--slo-ttft", type=float, metavar="SECONDS", help="to the first token")
    group.add_argument("--slo-tpot", type=float, metavar="SECONDS", help="per token after it")


def slo_of(chosen: argparse.Namespace) -> Slo | None:
    if chosen.slo_ttft is None and chosen.slo_tpot is None:
        return None
    return Slo(ttft=chosen.slo_ttft, tpot=chosen.slo_tpot)


class Bar:
    """Requests done, drawn over one line of a terminal; silent elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._live = sys.stderr.isatty()

    def advance(self) -> None:
        self._done += 1
        if self._live:
            filled = "#" * (30 * self._done // self._total)
            end = "\n" if self._done == self._total else ""
            sys.stderr.write(f"\r[{filled:<30}] {self._done} of {self._total} requests{end}")
            sys.stderr.flush()
