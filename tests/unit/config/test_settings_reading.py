"""Settings from a file, variables and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.reading import SettingsError, read_settings
from config.settings import unreadable_files


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RATCHET_TICK_S", "RATCHET_PORT", "RATCHET_HOME", "RATCHET_SETTINGS"):
        monkeypatch.delenv(name, raising=False)


def _file(folder: Path, text: str) -> Path:
    path = folder / "ratchet.yaml"
    path.write_text(text)
    return path


def _refused(file: Path) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        read_settings(file)
    return str(refused.value).replace(f"{file.parent}/", "").splitlines()


def test_the_nearer_place_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command line before variable before file before default."""
    file = _file(tmp_path, "port: 1\nrouter_port: 2\ntick_s: 3\n")
    monkeypatch.setenv("RATCHET_ROUTER_PORT", "20")
    monkeypatch.setenv("RATCHET_PORT", "10")
    found = read_settings(file, port=100, host=None)
    assert (found.port, found.router_port, found.tick_s, found.lease_ttl_s) == (100, 20, 3, 10)


def test_paths_in_the_file_start_at_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the daemon is started; texts that are no paths are left alone."""
    (tmp_path / "sub").mkdir()
    file = _file(tmp_path / "sub", "home: state\nclock: /else/where\ndatabase: sqlite:///x.db\n")
    monkeypatch.chdir(tmp_path)
    found = read_settings(Path("sub/ratchet.yaml"))
    assert (found.home, found.clock) == (file.parent / "state", Path("/else/where"))
    assert found.database == "sqlite:///x.db"


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Each with line, name, rule, value and what to do."""
    file = _file(tmp_path, "tick_z: 5\nport: 70000\nlog_level: loud\nhome: here\n")
    assert _refused(file) == [
        "ratchet.yaml:1: tick_z: unknown setting 'tick_z'; did you mean 'tick_s'?",
        "ratchet.yaml:2: port: must be less than or equal to 65535, but got 70000",
        "ratchet.yaml:3: log_level: must be 'debug', 'info', 'warning' or 'error', but got 'loud'",
    ]


def test_a_mistake_is_told_with_the_place_that_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the file its line, of a variable its name."""
    monkeypatch.setenv("RATCHET_PORT", "many")
    said = _refused(_file(tmp_path, "port: 1\ntick_s: 0\n"))
    assert said[0].startswith("RATCHET_PORT: must be")
    assert said[0].endswith("but got 'many'")
    assert said[1] == "ratchet.yaml:2: tick_s: must be greater than 0, but got 0"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1\n", "must hold a mapping"),
        ("tick_s: 5\ntick_s: 6\n", "a key may stand only once"),
        ("a: &x 1\n", "anchors are not read"),
        ("[" * 10_000, "nested at most"),
        ("tick_s: !!python/object/apply:os.system [id]\n", "tags are not read"),
        ("x" * 2_000_000, "at most 1048576 bytes"),
        ("tick_s: [", "is not valid YAML"),
    ],
)
def test_what_is_no_settings_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """Hostile or broken text ends in one sentence, soon."""
    assert said in _refused(_file(tmp_path, text))[0]


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A daemon that silently ran with defaults would serve the wrong state."""
    assert "cannot be read: no such file" in _refused(tmp_path / "none.yaml")[0]


def test_a_file_of_comments_sets_nothing(tmp_path: Path) -> None:
    """So that everything in it can be commented out."""
    assert read_settings(_file(tmp_path, "# tick_s: 5\n")).tick_s == 5.0


def test_a_secret_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL of a database may hold a password: a mistake in it is told without it."""
    assert not any("hunter2" in line for line in _refused(_file(tmp_path, "database: [hunter2]\n")))
    monkeypatch.setenv("RATCHET_DATABASE", "x")
    assert read_settings(_file(tmp_path, "database: [hunter2]\n")).database == "x"


METRICS = """\
prometheus_url: http://prometheus:9090/
metrics:
  click_rate:
    good: sum by (app, release) (increase(clicks_total[10m]))
    total: sum by (app, release) (increase(shown_total[10m]))
    labels: {model: app, version: release}
"""


def test_named_metrics_stand_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapping; as a variable it is JSON, which goes before the file's."""
    file = _file(tmp_path, METRICS)
    found = read_settings(file)
    assert found.prometheus_url == "http://prometheus:9090"
    assert found.metrics is not None
    assert found.metrics["click_rate"].labels.model == "app"
    monkeypatch.setenv("RATCHET_METRICS", '{"m": {"query": "up"}}')
    assert list(read_settings(file).metrics or ()) == ["m"]
    monkeypatch.setenv("RATCHET_METRICS", "{")
    assert _refused(file) == ["RATCHET_METRICS: must be valid JSON, or stand in a settings file"]


def test_mistakes_in_named_metrics_have_their_place(tmp_path: Path) -> None:
    """A misspelt key with what was meant, also deep down; a rule with the metric that breaks it."""
    file = _file(
        tmp_path,
        "metrics:\n  a: {queri: up}\n  b: {query: up, events: up}\n  c: {query: up, labels: {modell: x}}\n"
        "  d: {events: up}\n  e f: {query: up}\n",
    )
    said = _refused(file)
    assert said[:5] == [
        "ratchet.yaml:2: metrics.a.queri: unknown key 'queri'; did you mean 'query'?",
        "ratchet.yaml:3: metrics.b: give exactly one of query, events, good",
        "ratchet.yaml:4: metrics.c.labels.modell: unknown key 'modell'; did you mean 'model'?",
        "ratchet.yaml:5: metrics.d: events and good need total",
        "ratchet.yaml:6: metrics['e f']: must match pattern '^[a-zA-Z_][a-zA-Z0-9_]{0,63}$', but got 'e f'",
    ]


@pytest.mark.parametrize(
    "url", ["prometheus:9090", "ftp://x", "http://", "http://u:hunter2@x", "http://x?token=hunter2"]
)
def test_an_address_with_secrets_is_refused(tmp_path: Path, url: str) -> None:
    """And not repeated."""
    (line,) = _refused(_file(tmp_path, f"prometheus_url: {url}\n"))
    assert line.startswith("ratchet.yaml:1: prometheus_url: must")
    assert "hunter2" not in line


def test_credentials_of_prometheus_go_together(tmp_path: Path) -> None:
    """A user without a password is a mistake; so are two ways in."""
    assert (
        "prometheus_user and prometheus_password_file go together"
        in _refused(_file(tmp_path, "prometheus_user: ann\n"))[0]
    )
    both = "prometheus_user: ann\nprometheus_password_file: p\nprometheus_token_file: t\n"
    assert "not both" in _refused(_file(tmp_path, both))[0]


def test_settings_that_are_printed_show_no_secret(tmp_path: Path) -> None:
    """A traceback or a debugger prints them whole; what may stand in them instead of in a file is left out."""
    settings = read_settings(
        _file(
            tmp_path,
            "database: postgresql://ann:hunter2@db/ratchet\nwebhooks:\n  ops: {url: https://hooks.example/services/hunter2}\n",
        )
    )
    assert settings.database_url.count("hunter2") == 1
    assert "ops" in repr(settings)
    assert "hunter2" not in repr(settings) + str(settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("webhook: pagr\nwebhooks: {pager: {url: 'http://x'}}\n", "a name in webhooks (pager)"),
        ("slack_channel: '#ops'\n", "slack_channel needs slack_token_file"),
        ("slack_users: [U1]\n", "slack_users needs slack_signing_secret_file"),
        ("alertmanager_user: ann\n", "alertmanager_user needs alertmanager_secret_file"),
    ],
)
def test_a_channel_that_cannot_work_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """At the start: otherwise nobody is told, and nobody notices that."""
    (line,) = _refused(_file(tmp_path, text))
    assert said in line


def test_kinds_are_told_in_the_words_of_yaml(tmp_path: Path) -> None:
    """Nobody who writes YAML knows what a tuple is."""
    assert _refused(_file(tmp_path, "port: many\nslack_users: 5\ntick_s: fast\n")) == [
        "ratchet.yaml:1: port: must be a whole number, but got 'many'",
        "ratchet.yaml:2: slack_users: must be a list, but got 5",
        "ratchet.yaml:3: tick_s: must be a number, but got 'fast'",
    ]


def test_files_that_cannot_be_read_are_known_at_the_start(tmp_path: Path) -> None:
    """Secrets may come later, so the daemon starts; but it says so before the first cycle fails of it."""
    (tmp_path / "ca.pem").write_text("x")
    found = read_settings(_file(tmp_path, "registry_credentials: none\nregistry_ca: ca.pem\nhome: nowhere\n"))
    assert unreadable_files(found) == {"registry_credentials": f"{tmp_path / 'none'}: no such file or directory"}
