"""Settings: precedence, human numbers, near misses, and that the documentation is what is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo.engine.config import EngineConfig
from octavo.engine.errors import ConfigError
from octavo.server.settings import Settings, declarations, load
from octavo.server.settings.listing import help_text, markdown, table

DOCUMENT = Path(__file__).resolve().parents[2] / "deploy" / "SETTINGS.md"


def value(name: str, *words: str, **variables: str) -> Any:
    return getattr(load(words, variables).settings, name)


def test_flags_win_over_variables_over_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "octavo.yaml"
    file.write_text("port: 1\nhost: from-file\nblock-size: 8\nmax_num_seqs: 3\n")
    variables = {"OCTAVO_CONFIG": str(file), "OCTAVO_PORT": "2", "OCTAVO_HOST": "from-variable"}
    loaded = load(["--port", "3"], variables)
    settings = loaded.settings
    assert (settings.port, settings.host, settings.block_size) == (3, "from-variable", 8)
    assert settings.max_num_seqs == 3
    origins = loaded.origins
    assert origins["port"] == "--port"
    assert origins["host"] == "OCTAVO_HOST"
    assert origins["block_size"] == f"{file}: block-size"
    assert origins["threads"] == "default"
    assert load(["--config", str(file)], {}).settings.port == 1


def test_without_anything_said_all_is_default() -> None:
    assert load([], {"PATH": "/bin", "HF_TOKEN": "x"}).settings == Settings()


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("model", ["some/model"], "some/model"),
        ("model", ["--model=some/model"], "some/model"),
        ("max_model_len", ["--max-model-len", "4k"], 4096),
        ("max_model_len", ["--max_model_len=32K"], 32768),
        ("max_model_len", ["--max-model-len", "auto"], None),
        ("max_num_batched_tokens", ["--max-num-batched-tokens=1_024"], 1024),
        ("kv_memory", ["--kv-memory", "1.5GiB"], 3 * 2**29),
        ("kv_memory", ["--kv-cache-memory-bytes", "2000000"], 2_000_000),
        ("kv_memory", ["--kv-memory", "10MB"], 10_000_000),
        ("swap_space", ["--swap-space", "4"], 4 * 2**30),
        ("swap_space", ["--swap-space", "4MiB"], 4 * 2**20),
        ("swap_space", ["--swap-space", "0"], 0),
        ("memory_utilization", ["--gpu-memory-utilization", "0.9"], 0.9),
        ("prefix_caching", ["--no-enable-prefix-caching"], False),
        ("prefix_caching", ["--no-prefix-caching"], False),
        ("prefix_caching", ["--enable-prefix-caching"], True),
        ("prefix_caching", ["--prefix-caching=false"], False),
        ("tensor_parallel_size", ["--tensor-parallel-size", "1"], 1),
        ("tensor_parallel_size", ["-tp", "1"], 1),
        ("dtype", ["--dtype", "bf16"], "bfloat16"),
        ("drain_timeout", ["--drain-timeout", "1.5m"], 90.0),
        ("api_key", ["--api-key", "a", "--api-key=b,c"], ("a", "b", "c")),
        ("served_model_name", ["m", "--served-model-name", "a", "b"], ("a", "b")),
        ("served_model_name", ["m", "--served-model-name", "a,b"], ("a", "b")),
        ("threads", ["--threads", "auto"], None),
    ],
)
def test_flags_take_human_numbers_and_the_spellings_of_vllm(
    name: str, words: list[str], expected: object
) -> None:
    assert value(name, *words) == expected


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        ("prefix-caching: false", "prefix_caching", False),
        ("api-key: [a, b]", "api_key", ("a", "b")),
        ("swap-space: 4", "swap_space", 4 * 2**30),
        ("max-model-len: 4k", "max_model_len", 4096),
        ("max-model-len: null", "max_model_len", None),
        ("gpu-memory-utilization: 0.25", "memory_utilization", 0.25),
        ("", "port", 8000),
    ],
)
def test_the_file_takes_yaml_values(
    tmp_path: Path, content: str, name: str, expected: object
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    assert value(name, "--config", str(file)) == expected


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--max-model-length", "4k"], "--max-model-length; did you mean --max-model-len?"),
        (["--prot=1"], "did you mean --port?"),
        (["--no-prefix-cashing"], "did you mean --no-prefix-caching?"),
        (["--zzzzqqq"], "`octavo serve --help` lists them all."),
        (["--port"], "--port needs a value."),
        (["--port", "--host", "x"], "--port needs a value."),
        (["--port", "99999"], "--port must be a whole number from 0 to 65535, but it is '99999'."),
        (["--port", "1.5"], "--port must be a whole number"),
        (
            ["--dtype", "int3"],
            "--dtype must be auto, bfloat16, float16 or float32, but it is 'int3'.",
        ),
        (["--max-model-len", "0"], "--max-model-len must be a number of tokens >= 1"),
        (["--max-model-len", "long"], "or auto, but it is 'long'."),
        (["--kv-memory", "4XB"], "--kv-memory must be a size, as 512MiB or 4GiB, or auto"),
        (["--kv-memory", "9"], "at least 1KiB"),
        (["--memory-utilization", "1.1"], "above 0 and at most 1, or auto, but it is '1.1'."),
        (["--memory-utilization", "nan"], "above 0 and at most 1"),
        (["--prefix-caching=maybe"], "must be true or false"),
        (["--no-port", "1"], "--port takes a value."),
        (["--tensor-parallel-size", "2"], "--tensor-parallel-size must be 1, but it is '2'."),
        (["a", "b"], "Unexpected word 'b': the model is 'a' already."),
        (["--config", "/no/such.yaml"], "--config /no/such.yaml: No such file"),
        (["--model", ""], "a text that is not empty"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(words, {})
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("prot: 1", "There is no key prot; did you mean port?"),
        ("port: yes", "port must be a whole number"),
        ("- port", "should hold `key: value` lines."),
        ("port: [", "is not valid YAML: line 1 column 8: expected the node content"),
        ("\x00", "is not valid YAML"),
    ],
)
def test_what_is_wrong_in_the_file_is_said_with_its_place(
    tmp_path: Path, content: str, sentence: str
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as refused:
        load(["--config", str(file)], {})
    assert sentence in str(refused.value)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_variables_that_nobody_declared_are_remarked_on() -> None:
    loaded = load([], {"OCTAVO_MAX_MODEL_LENGTH": "1", "OCTAVO_HOST": ""})
    assert loaded.notes == (
        "There is no variable OCTAVO_MAX_MODEL_LENGTH; did you mean OCTAVO_MAX_MODEL_LEN?",
    )
    assert loaded.settings == Settings()
    with pytest.raises(ConfigError, match=r"^OCTAVO_PORT must be .* but it is 'x'\.$"):
        load([], {"OCTAVO_PORT": "x"})


def test_links_that_kubernetes_makes_for_a_service_called_octavo_are_not_settings() -> None:
    links = {
        "OCTAVO_PORT": "tcp://10.0.0.1:8000",
        "OCTAVO_SERVICE_HOST": "10.0.0.1",
        "OCTAVO_SERVICE_PORT": "8000",
        "OCTAVO_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    loaded = load([], links)
    assert loaded.settings.port == 8000
    assert len(loaded.notes) == 4
    assert not any("did you mean" in note for note in loaded.notes)


def test_flags_of_vllm_that_need_nothing_here_are_taken_and_remarked_on() -> None:
    loaded = load(["--seed", "7", "--trust-remote-code", "m"], {})
    assert loaded.settings.model == "m"
    assert [note.split()[0] for note in loaded.notes] == [
        "--seed",
        "--trust-remote-code",
    ]


def test_keys_are_never_shown() -> None:
    loaded = load(["--api-key", "sesame"], {})
    assert "sesame" not in table(loaded)
    assert "(set)" in table(loaded)


def test_config_show_has_every_value_and_where_it_came_from() -> None:
    lines = table(load(["--max-model-len=4k"], {"OCTAVO_PORT": "81"})).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows.keys() == {declared.key for declared in declarations()}
    assert rows["max-model-len"] == ["4096", "--max-model-len"]
    assert rows["port"] == ["81", "OCTAVO_PORT"]


@pytest.mark.parametrize("declared", declarations(), ids=lambda d: d.name)
def test_a_value_is_shown_as_it_can_be_typed(declared: Any) -> None:
    shown = declared.show(declared.default)
    if declared.default != () and not declared.secret:
        assert declared.kind.read(shown) == declared.default


def test_every_flag_means_one_setting() -> None:
    spellings = [s for d in declarations() for s in (d.key, *d.aliases)]
    assert len(spellings) == len(set(spellings))


def test_help_names_every_flag() -> None:
    assert all(f"{declared.flag}" in help_text() for declared in declarations())
    assert max(map(len, help_text(80).splitlines())) <= 110


def test_the_documentation_is_what_the_declarations_say() -> None:
    assert markdown() in DOCUMENT.read_text("utf-8"), "run `octavo config table` into SETTINGS.md"


def test_the_engine_is_told_all_that_concerns_it() -> None:
    words = ["--max-num-seqs=3", "--kv-memory=1MiB", "--no-prefix-caching", "--overlap=off"]
    config = load(words, {}).settings.engine_config(Path("/models/x"))
    assert config == EngineConfig(
        model="/models/x", max_num_seqs=3, kv_memory=2**20, prefix_caching=False, overlap="off"
    )


def test_faults_for_tests_are_checked_where_they_are_written() -> None:
    words = ["--test-fault", "exit@token=17", "--test-fault", "delay:2.50@step=3"]
    settings = load(words, {}).settings
    assert settings.test_fault == ("exit@token=17", "delay:2.5@step=3")
    assert settings.engine_config(Path("/models/x")).test_fault == settings.test_fault
    assert value("test_fault", OCTAVO_TEST_FAULT="oom@token=1,raise@step=2") == (
        "oom@token=1",
        "raise@step=2",
    )
    with pytest.raises(ConfigError, match=r"test-fault.*must say when: @step=N or @token=N"):
        load(["--test-fault", "exit"], {})
