"""Models: names, folders, the hub, and what is said when there is nothing to serve."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.engine.bundled import TARGET
from octavo.engine.errors import BrokenCheckpoint, ModelNotFound, UnsupportedArchitecture
from octavo.server.models import ModelPool, ServedModel, find_model
from octavo.server.settings import load

from ..fakes.hub import FakeHub, running

SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def silent(stage: str, done: int, total: int) -> None:
    """Nobody watches."""


def find(*words: str) -> Path:
    return find_model(load(words, {}).settings, silent)


def served(*words: str) -> ServedModel:
    settings = load(words, {}).settings
    return ServedModel.load(find_model(settings, silent), settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The bundled model without weights, under a name of its own."""
    model = tmp_path / "my-model"
    model.mkdir()
    for name in SMALL_FILES:
        (model / name).write_bytes((TARGET / name).read_bytes())
    return model


def test_without_a_name_the_bundled_model_is_served() -> None:
    assert find() == find("bundled") == TARGET
    model = served()
    assert model.names == ("octavo",)
    assert model.template is not None
    assert model.max_model_len is None
    assert model.config.eos_token_ids == (1, 3)


def test_a_folder_is_served_under_its_own_name_and_by_what_was_typed(folder: Path) -> None:
    model = served(str(folder), "--load-format=dummy")
    assert model.names == ("my-model",)
    pool = ModelPool((model,))
    assert pool.get("my-model") is pool.get(str(folder)) is pool.get(None) is model
    assert pool.get("octavo") is None
    assert served(str(folder), "--load-format=dummy").created == model.created


def test_operators_choose_other_names() -> None:
    pool = ModelPool((served("--served-model-name", "gpt-4,small"),))
    first = pool.get("gpt-4")
    assert first is not None
    assert first is pool.get("small")
    assert first.name == "gpt-4"
    assert pool.get("octavo") is None


def test_the_context_is_known_when_the_engine_is_ready() -> None:
    pool = ModelPool((served(),))
    pool.ready(1024)
    assert [model.max_model_len for model in pool] == [1024]


def test_sampling_defaults_are_the_checkpoints_unless_told_otherwise(folder: Path) -> None:
    stated = {"temperature": 0.6, "top_k": 20, "max_new_tokens": 9, "eos_token_id": 3}
    (folder / "generation_config.json").write_text(json.dumps(stated))
    words = (str(folder), "--load-format=dummy")
    assert served(*words).sampling_defaults == {"temperature": 0.6, "top_k": 20, "max_tokens": 9}
    assert served(*words, "--generation-config=none").sampling_defaults == {}
    (folder / "generation_config.json").write_text(json.dumps({"top_p": 7}))
    with pytest.raises(BrokenCheckpoint, match=r"top_p must be .*--generation-config none"):
        served(*words)


def test_the_operators_chat_template_wins(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("own {{ messages[0].content }}")
    model = served("--chat-template", str(tmp_path / "t.jinja"))
    assert model.template is not None
    assert model.template.render([{"role": "user", "content": "x"}]) == "own x"


def test_what_is_no_model_is_refused_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="There is no folder /no/such"):
        find("/no/such/folder")
    (tmp_path / "weights.gguf").touch()
    with pytest.raises(ModelNotFound, match="is a file; octavo serves folders"):
        find(str(tmp_path / "weights.gguf"))
    with pytest.raises(BrokenCheckpoint, match=r"no config\.json"):
        find(str(tmp_path))
    with pytest.raises(BrokenCheckpoint, match=r"no \*\.safetensors file"):
        find(str(folder))
    assert find(str(folder), "--load-format", "dummy") == folder
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["Mamba"]}))
    with pytest.raises(UnsupportedArchitecture, match="'Mamba' is not supported; supported are"):
        find(str(folder))


# The hub's library reads its environment once, when it is imported: each test has its process.

PROGRAM = """
import sys
from octavo.engine.errors import ConfigError
from octavo.server.models import find_model
from octavo.server.settings import load
try:
    print("folder", find_model(load(sys.argv[1:], {}).settings, lambda *told: print(*told)))
except ConfigError as error:
    print(type(error).__name__, error)
"""


def from_hub(
    hub: FakeHub, home: Path, *words: str, longest_file: int | None = None, **environment: str
) -> list[str]:
    """What is said while a model is looked for, line by line. `longest_file` in bytes."""
    variables = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        preexec_fn=None if longest_file is None else lambda: limit_files(longest_file),
    )
    return done.stdout.splitlines()


def limit_files(longest: int) -> None:
    """As on a disk that is full: a file cannot grow beyond that."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (longest, longest))


def repository() -> dict[str, bytes]:
    files = {name: (TARGET / name).read_bytes() for name in SMALL_FILES}
    return {
        **files,
        "model.safetensors": bytes(300_000),
        "pytorch_model.bin": bytes(10),
        "README.md": b"#",
        "original/consolidated.safetensors": bytes(10),
    }


def test_a_hub_id_is_downloaded_once_and_found_again_without_the_hub(tmp_path: Path) -> None:
    with running(FakeHub({"org/model": repository()})) as hub:
        *told, last = from_hub(hub, tmp_path, "org/model")
        folder = Path(last.removeprefix("folder "))
        assert sorted(p.name for p in folder.iterdir()) == sorted(
            [*SMALL_FILES, "model.safetensors"]
        )
        assert sorted(hub.fetched) == sorted([*SMALL_FILES, "model.safetensors"])
        total = sum(p.stat().st_size for p in folder.iterdir())
        assert told[0] == f"downloading org/model 0 {total}"
        assert told[-1] == f"downloading org/model {total} {total}"
        come = [int(line.split()[2]) for line in told]
        assert come == sorted(come)
        assert from_hub(hub, tmp_path, "org/model")[-1] == last
        assert len(hub.fetched) == 5
    offline = from_hub(hub, tmp_path, "org/model", HF_HUB_OFFLINE="1")
    assert offline == [last]
    assert from_hub(hub, tmp_path, "org/model") == [last]  # the hub is gone


def test_what_the_hub_refuses_is_said_in_a_sentence(tmp_path: Path) -> None:
    only_bin = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    models = {"org/model": repository(), "org/gated": repository(), "org/bin": only_bin}
    with running(FakeHub(models, gated=frozenset({"org/gated"}))) as hub:
        (line,) = from_hub(hub, tmp_path, "org/none")
        assert line.startswith("ModelNotFound There is no folder org/none here and no repository")
        (line,) = from_hub(hub, tmp_path, "org/model", "--revision", "v9")
        assert line == "ModelNotFound org/model has no revision 'v9'."
        line = from_hub(hub, tmp_path, "org/gated")[-1]
        assert line.startswith("ModelNotFound org/gated is gated: ask for access")
        assert from_hub(hub, tmp_path, "org/gated", HF_TOKEN=hub.token)[-1].startswith("folder ")
        (line,) = from_hub(hub, tmp_path, "org/bin")
        assert line.startswith("BrokenCheckpoint org/bin has no safetensors files")
    (line,) = from_hub(hub, tmp_path, "org/new")
    assert "the hub cannot be reached" in line
    (line,) = from_hub(hub, tmp_path, "org/new", HF_HUB_OFFLINE="1")
    assert "offline mode is enabled" in line


def test_a_cache_that_cannot_be_written_is_said_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with running(FakeHub({"org/model": repository()})) as hub:
        for home in (tmp_path / "file", Path("/proc/none")):
            said = from_hub(hub, home, "org/model")[-1]
            assert said.startswith(f"ModelNotFound org/model cannot be kept in the cache, {home}")
            assert said.endswith("or name another place with HF_HOME.")


def test_a_disk_that_fills_up_while_downloading_is_said_and_the_rest_comes_later(
    tmp_path: Path,
) -> None:
    with running(FakeHub({"org/model": repository()})) as hub:
        said = from_hub(hub, tmp_path, "org/model", longest_file=200_000)[-1]
        assert said.startswith("ModelNotFound org/model cannot be kept in the cache")
        assert "File too large" in said
        assert "Make room there and start again" in said
        before = list(hub.fetched)
        assert from_hub(hub, tmp_path, "org/model")[-1].startswith("folder ")
        assert set(hub.fetched[len(before) :]) == {"model.safetensors"}


def test_offline_a_revision_that_is_not_cached_is_named(tmp_path: Path) -> None:
    with running(FakeHub({"org/model": repository()})) as hub:
        from_hub(hub, tmp_path, "org/model")
        (line,) = from_hub(hub, tmp_path, "org/model", "--revision", "v9", HF_HUB_OFFLINE="1")
    assert "org/model@v9 is not in the local cache" in line
