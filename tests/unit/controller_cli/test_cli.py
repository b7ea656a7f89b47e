"""The commands, as they are typed, against a daemon in memory."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from controller_world import TOKEN, World, policy_text, served
from ruamel.yaml import YAML

from controller.cli import client, main
from controller.cli.overrides import HELP
from controller.overrides import Verb

REPOSITORY = Path(__file__).parents[3]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def world() -> World:
    return World().serving()


@pytest.fixture
def ratchet(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs `ratchet ARGS`; exit code, output, errors."""
    with served(world) as url:
        monkeypatch.setenv("RATCHET_SERVER", url)
        monkeypatch.setenv("RATCHET_TOKEN", TOKEN)
        monkeypatch.setenv("COLUMNS", "80")
        yield lambda *args: run(capsys, monkeypatch, *args)


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["ratchet", *args])
    with pytest.raises(SystemExit) as ended:
        main.main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def on_terminal(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Somebody sits at the terminal and types `answer`."""
    import io

    keyboard = io.StringIO(answer + "\n")
    monkeypatch.setattr(keyboard, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", keyboard)


# ---------------------------------------------------------------- looking
def test_models_in_each_format(ratchet: Run) -> None:
    """A table for people; JSON and YAML hold the same data."""
    code, table, _ = ratchet("get", "models")
    assert code == 0
    assert table.split()[:2] == ["NAME", "CHAMPION"]
    as_json = json.loads(ratchet("get", "models", "-o", "json")[1])
    as_yaml = YAML(typ="safe").load(ratchet("get", "models", "-o", "yaml")[1])
    assert as_json["models"][0]["name"] == as_yaml["models"][0]["name"] == "late"
    assert json.loads(ratchet("get", "models", "late", "-o", "json")[1])["champion"] == 1


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("get", "versions", "late"), "champion"), (("get", "cycles"), "the first version"), (("get", "cycles", "late"), "promoted"),
        (("get", "events", "late", "--limit", "2"), "cycle.promoted"), (("explain", "late"), "ratchet pause late"),
        (("explain", "late", "--replay", "3"), "the same decision"),
    ],
)  # fmt: skip
def test_tables_say_what_there_is(ratchet: Run, args: tuple[str, ...], expected: str) -> None:
    """Every verb that looks prints a table, and the same as JSON."""
    code, out, _ = ratchet(*args)
    assert code == 0
    assert expected in " ".join(out.split())
    assert json.loads(ratchet(*args, "-o", "json")[1])


def test_explanation_fits_80_columns(ratchet: Run, world: World) -> None:
    """At 3 a.m. in a small terminal, in every state, no line is longer than 80 columns and the way out is there."""
    ratchet("trigger", "late", "-r", "x", "-y")
    world.live()
    code, out, _ = ratchet("explain", "late")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "ratchet rollback late" in out
    assert "/v1/models/late:predict" in out
    assert "v2" in out


@pytest.mark.parametrize("what", ["models", "versions", "cycles", "events"])
def test_tables_fit_80_columns(ratchet: Run, what: str) -> None:
    """In a small terminal the last column stands below its row, whole; in a pipe it stands beside it."""
    _, out, _ = ratchet("get", what, "late")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("  ")


def test_events_are_told_to_the_second(ratchet: Run) -> None:
    """Minutes do not tell in which order things happened."""
    _, out, _ = ratchet("get", "events", "late")
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", out)
    assert "no events of 'nope'" in ratchet("get", "events", "nope")[2]


def test_no_text_steers_the_terminal(ratchet: Run, world: World) -> None:
    """A reason may hold escape sequences and line ends; they are shown, not obeyed, in every format and in errors."""
    reason = "look \x1b]0;gotcha\x07 \x9b2J \u202etxt\r\n99 late cycle.promoted: forged"
    ratchet("pause", "late", "--yes", "--reason", reason)
    for args in [
        ("explain", "late"), ("get", "events"), ("get", "events", "-o", "json"), ("get", "models", "-o", "yaml"),
        ("pause", "late", "--yes", "--reason", "again"), ("pause", "late", "--dry-run", "--reason", reason),
            ("resume", "late", "--yes", "--reason", reason),
    ]:  # fmt: skip
        _, out, err = ratchet(*args)
        assert not set(out + err) & set("\x1b\x07\x9b\r" if "yaml" in args else "\x1b\x07\x9b\r\u202e"), args
    assert any(reason in e.sentence for e in world.store.events("late", limit=1000))


def test_newest_events_come_last(ratchet: Run, world: World) -> None:
    """Without --after the newest are shown, in order."""
    told = json.loads(ratchet("get", "events", "-o", "json", "--limit", "3")[1])["events"]
    last = world.service.events(newest=True, limit=1)[0].seq
    assert [e["seq"] for e in told] == [last - 2, last - 1, last]


# ---------------------------------------------------------------- overrides
def test_order_is_previewed_asked_and_carried_out(ratchet: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal: preview, question, order, with what was previewed on record."""
    before = world.state().row_version
    on_terminal(monkeypatch, "y")
    code, out, _ = ratchet("trigger", "late", "--reason", "new data")
    assert code == 0
    assert "cycle 2, queued" in out
    assert world.state().cycle is not None
    event = next(e for e in world.service.events() if e.kind == "override.trigger")
    assert event.data["previewed"] == before
    assert event.actor == client.actor()


def test_no_means_no(ratchet: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not say yes changes nothing."""
    on_terminal(monkeypatch, "n")
    code, _, err = ratchet("pause", "late", "-r", "x")
    assert (code, world.state().paused) == (1, None)
    assert "nothing was changed" in err


def test_without_a_terminal_yes_must_be_said(ratchet: Run, world: World) -> None:
    """A script that forgot --yes is refused, not stuck."""
    code, _, err = ratchet("pause", "late", "-r", "x")
    assert (code, world.state().paused) == (2, None)
    assert "--yes" in err


def test_dry_run_changes_nothing(ratchet: Run, world: World) -> None:
    """A dry run prints the preview and leaves no trace."""
    before = world.state()
    told = json.loads(ratchet("pin", "late", "-r", "x", "--dry-run", "-o", "json")[1])
    assert told["row_version"] == before.row_version
    assert world.state() == before


def test_preview_of_a_hold_is_one_line(ratchet: Run, world: World) -> None:
    """What a hold leaves alone is not listed; what another order leaves alone is."""
    told = ratchet("pause", "late", "-r", "x", "--dry-run")[1]
    assert " ".join(told.splitlines()[0].split()) == "held no → paused"
    assert "unchanged" not in told
    assert "(unchanged)" in ratchet("trigger", "late", "-r", "x", "--dry-run")[1]


def test_stale_preview_is_refused_with_its_own_code(ratchet: Run, world: World) -> None:
    """An order that names an outdated state ends with code 4 and changes nothing."""
    row_version = world.state().row_version
    assert ratchet("freeze", "late", "-r", "x", "-y")[0] == 0
    code, _, err = ratchet("pause", "late", "-r", "x", "-y", "--row-version", str(row_version))
    assert (code, world.state().paused) == (4, None)
    assert "has changed since the preview" in err


def test_model_that_changes_while_somebody_thinks(ratchet: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is ordered is what was shown: if the model changes before the answer, the order is refused."""
    from controller.cli import overrides

    def think(_question: str, *, yes: bool) -> None:
        world.service.order("late", overrides_order(Verb.FREEZE))

    monkeypatch.setattr(overrides, "confirm", think)
    code, _, _ = ratchet("pause", "late", "-r", "x")
    assert (code, world.state().paused) == (4, None)


def overrides_order(verb: Verb) -> Any:
    from controller.overrides import Order

    return Order(verb=verb, actor="bob@desk", reason="meanwhile")


def test_all_overrides_are_commands() -> None:
    """Every verb of the controller can be typed."""
    assert set(HELP) == {verb.value for verb in Verb}


@pytest.mark.parametrize("verb", sorted(HELP))
def test_reason_is_required(ratchet: Run, verb: str) -> None:
    """No order without a reason."""
    code, _, err = ratchet(verb, "late", "--yes")
    assert code == 2
    assert "--reason" in err


@pytest.mark.parametrize("verb", ["approve", "reject", "abort", "promote", "rollback", "unpin", "unfreeze", "resume"])
def test_orders_that_make_no_sense_are_refused(ratchet: Run, world: World, verb: str) -> None:
    """What does not fit the state is refused in words, with code 1, and changes nothing."""
    before = world.state()
    code, _, err = ratchet(verb, "late", "-r", "x", "-y")
    assert (code, world.state()) == (1, before)
    assert err.startswith("ratchet: ")


# ---------------------------------------------------------------- policies
def test_validate_says_everything_at_once(ratchet: Run, tmp_path: Path) -> None:
    """Problems of all files, each with its line; code 5."""
    (tmp_path / "a.yaml").write_text(policy_text().replace("task: binary", "task: binaery"))
    (tmp_path / "b.yaml").write_text(policy_text("b").replace("cooldown: 2h", "cooldown: 2"))
    code, _, err = ratchet("validate", str(tmp_path))
    assert code == 5
    assert "a.yaml:5: spec.task" in err
    assert "b.yaml:10: spec.cooldown" in err


def test_validate_explains_in_words(ratchet: Run, tmp_path: Path) -> None:
    """A good file is explained: when triggers fire, what must be passed."""
    (tmp_path / "a.yaml").write_text(policy_text())
    code, out, _ = ratchet("validate", str(tmp_path / "a.yaml"))
    assert code == 0
    assert "A cycle opens when nothing newer was trained on" in out


def with_data(path: str, **columns: str) -> str:
    """A policy whose rows are in `path`; label, id and the like by keyword."""
    more = "".join(f", {key}: {value}" for key, value in columns.items())
    document = YAML(typ="safe").load(f"{{source: {{kind: csv, path: {path}}}{more}}}")
    policy = YAML(typ="safe").load(policy_text("rows"))
    policy["spec"]["data"] = document
    return json.dumps(policy)


def test_data_file_that_is_not_there_is_warned_of(ratchet: Run, world: World, tmp_path: Path) -> None:
    """A path starts at the policy's folder; what is missing is said on standard error with its line, by both verbs, and is no error."""
    file = tmp_path / "rows.yaml"
    file.write_text(with_data("rows.csv", label="late"))
    (tmp_path / "row.csv").write_text("late\n1\n")
    place = f"rows.yaml:1: spec.data.source.path: no such file: {tmp_path / 'rows.csv'}"
    expected = f"{place}; the first cycle will fail unless it is there by then"
    for verb in ("validate", "apply"):
        code, _, err = ratchet(verb, str(file))
        assert (code, err.count("warning: ")) == (0, 1)
        assert expected in err
        assert "did you mean 'row.csv'?" in err
    assert "rows" in [m.name for m in world.service.models()]
    assert len(json.loads(ratchet("validate", str(file), "-o", "json")[1])["warnings"]) == 1


def test_lock_file_that_is_not_there_is_warned_of(ratchet: Run, tmp_path: Path) -> None:
    """Before a cycle has searched and trained, and fails when it packages."""
    (tmp_path / "rows.csv").write_text("late\n1\n")
    policy = json.loads(with_data("rows.csv", label="late"))
    policy["spec"]["deploy"] = {"requirements": "model.lock"}
    file = tmp_path / "rows.yaml"
    file.write_text(json.dumps(policy))
    expected = f"spec.deploy.requirements: no such file: {tmp_path / 'model.lock'}; the first cycle will fail unless"
    assert expected in ratchet("validate", str(file))[2]
    (tmp_path / "model.lock").touch()
    assert "warning" not in ratchet("validate", str(file))[2]


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_columns_that_the_header_does_not_name_are_warned_of(ratchet: Run, tmp_path: Path, name: str) -> None:
    """Each with its place in the policy and the nearest name; columns that are there are not mentioned."""
    header = b"\xef\xbb\xbfid,at,distance,late\n1,2026-01-01,5,0\n"
    (tmp_path / name).write_bytes(gzip.compress(header) if name.endswith(".gz") else header)
    file = tmp_path / "rows.yaml"
    file.write_text(
        with_data(name, label="latte", time="at", id="id", include="[distance, temperature]", exclude="[at]")
    )
    code, _, err = ratchet("validate", str(file))
    assert (code, err.count("warning: ")) == (0, 2)
    assert f"spec.data.label: {tmp_path / name} has no column 'latte'; did you mean 'late'?" in err
    assert f"spec.data.include[1]: {tmp_path / name} has no column 'temperature'; it has id, at, distance, late" in err


def test_data_that_cannot_be_read_is_warned_of(ratchet: Run, tmp_path: Path) -> None:
    """A folder, a torn archive, no text, nothing at all: a warning that says why, never a stack trace."""
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "torn.csv.gz").write_bytes(gzip.compress(b"a,b\n" * 9)[:12])
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.csv").touch()
    for name in ("folder.csv", "torn.csv.gz", "binary.csv", "empty.csv"):
        (tmp_path / "rows.yaml").write_text(with_data(name, label="a"))
        code, _, err = ratchet("validate", str(tmp_path / "rows.yaml"))
        assert (code, err.count("warning: ")) == (0, 1)
        assert f"{name} {'is empty' if name == 'empty.csv' else 'cannot be read'}; " in err


def test_apply_asks_before_it_ends_a_cycle(ratchet: Run, world: World, tmp_path: Path) -> None:
    """A changed policy that would end an open cycle needs a yes; created, unchanged and updated are said."""
    file = tmp_path / "new.yaml"
    file.write_text(policy_text("new"))
    world.jobs.automatic = False
    assert ratchet("apply", str(file))[1] == "new created\n"
    assert ratchet("apply", str(file))[1] == "new unchanged\n"
    world.live("new")
    file.write_text(policy_text("new", approval="required"))
    assert ratchet("apply", str(file))[0] == 2
    assert ratchet("apply", str(file), "--dry-run")[1] == "new would be updated; cycle 1 is superseded\n"
    assert world.state("new").cycle is not None
    assert ratchet("apply", str(file), "--yes")[1] == "new updated; cycle 1 is superseded\n"
    assert world.state("new").cycle is None


def test_apply_refuses_bad_files_before_anything_is_sent(ratchet: Run, world: World, tmp_path: Path) -> None:
    """One bad file among good ones: code 5, nothing applied."""
    (tmp_path / "good.yaml").write_text(policy_text("good"))
    (tmp_path / "bad.yaml").write_text("apiVersion: nonsense\n")
    assert ratchet("apply", str(tmp_path))[0] == 5
    assert [m.name for m in world.service.models()] == ["late"]


def test_delete_forgets_the_model(ratchet: Run, world: World) -> None:
    """Deletion needs a yes and a reason."""
    assert ratchet("delete", "late", "-r", "x")[0] == 2
    assert ratchet("delete", "late", "-r", "x", "--yes")[0] == 0
    assert world.service.models() == []


def test_schema_is_json(ratchet: Run) -> None:
    """What is printed is a JSON Schema document."""
    assert json.loads(ratchet("schema")[1])["$schema"].startswith("https://json-schema.org")


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        (["0", "1"], "binary"),
        (["a", "b", "c"], "multiclass"),
        (["1.5", "2.25", "7"], "regression"),
        (["yes", "no", ""], "binary"),
    ],
)
def test_init_writes_a_policy_that_validates(ratchet: Run, tmp_path: Path, labels: list[str], task: str) -> None:
    """From a CSV file alone: the task inferred, the result valid."""
    data = tmp_path / "rows.csv"
    data.write_text("at,x,late\n" + "".join(f"2026-01-01,1,{label}\n" for label in labels * 3))
    file = tmp_path / "late.yaml"
    code, out, _ = ratchet("init", "late", "--from", str(data), "--label", "late", "--time", "at", "-w", str(file))
    assert code == 0, out
    assert f"task: {task}" in file.read_text()
    assert "path: rows.csv" in file.read_text()
    assert ratchet("validate", str(file))[0] == 0
    assert ratchet("init", "late", "--from", str(data), "--label", "late", "-w", str(file))[0] == 2


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        ("a,b\n1,2\n", "c", "no column 'c'; it has a, b"), ("a,b\n1,2\n1,3\n", "a", "fewer than two different values"),
        ("", "a", "no column 'a'"), ("a\n\x00\n\xff", "a", ""), ("a,b\n,\nNaN,\n", "a", "fewer than two"),
    ],
)  # fmt: skip
def test_init_names_what_is_wrong_with_the_data(
    ratchet: Run, tmp_path: Path, text: str, label: str, expected: str
) -> None:
    """A wrong column or useless labels: code 2, naming them."""
    data = tmp_path / "rows.csv"
    data.write_bytes(text.encode("latin-1"))
    code, _, err = ratchet("init", "late", "--from", str(data), "--label", label)
    assert code == 2
    assert expected in err
    assert ratchet("init", "late", "--from", str(tmp_path / "none.csv"), "--label", label)[0] == 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [("2026-01-01T00:00:{i:02}", "looks like a time"), ("order-{i}", "looks like an id or free text")],
)
def test_init_refuses_a_label_that_names_rows(ratchet: Run, tmp_path: Path, value: str, expected: str) -> None:
    """A time or an id predicts nothing: code 2, why, and which columns there are instead."""
    data = tmp_path / "rows.csv"
    data.write_text("what,x,late\n" + "".join(f"{value.format(i=i)},{i},{i % 2}\n" for i in range(60)))
    code, _, err = ratchet("init", "late", "--from", str(data), "--label", "what")
    assert code == 2
    assert f"--label: 'what' {expected}: 60 different" in err
    assert "name the column that is to be predicted, one of x, late" in err
    assert "task: regression" in ratchet("init", "late", "--from", str(data), "--label", "x")[1]


# ---------------------------------------------------------------- the edges
def test_release_is_said(ratchet: Run) -> None:
    """Whoever reports a bug can say of which release."""
    assert re.fullmatch(r"ratchet \d+\.\d+\.\d+\n", ratchet("--version")[1])


def test_no_daemon_is_said_with_its_own_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code 3 when no daemon ever ran, when nothing listens, and when something else answers."""
    for name in ("RATCHET_SERVER", "RATCHET_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    code, _, err = run(capsys, monkeypatch, "--home", str(tmp_path), "get", "models")
    assert code == 3
    assert "ratchet daemon" in err
    code, _, err = run(capsys, monkeypatch, "--server", "http://127.0.0.1:1", "get", "models")
    assert code == 3
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "daemon.json").write_text("{")
    assert run(capsys, monkeypatch, "--home", str(tmp_path), "get", "models")[0] == 3
    assert run(capsys, monkeypatch, "--server", "ftp://x", "get", "models")[0] == 2


def test_wrong_token_is_said(ratchet: Run) -> None:
    """A token that the daemon does not accept: code 1 and how to give another."""
    code, _, err = ratchet("--token", "wrong", "get", "models")
    assert code == 1
    assert "--token" in err


def test_unknown_model_is_refused(ratchet: Run) -> None:
    """A model that is not there: code 1, naming it, and where to look; odd names cannot break out of the path."""
    for name in ("nope", "../../healthz", "a/b", "ü"):
        code, _, _ = ratchet("explain", name)
        assert code == 1


def _process(world_url: str, *args: str, **env: str) -> subprocess.Popen[bytes]:
    surroundings = {**os.environ, "RATCHET_SERVER": world_url, "RATCHET_TOKEN": TOKEN, **env}
    command = [sys.executable, "-m", "controller.cli.main", *args]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )  # fmt: skip


def test_watch_prints_lines_in_a_pipe_and_survives_its_reader(world: World) -> None:
    """Each event is a line as it happens; when the reader leaves, the command ends quietly."""
    with served(world) as url:
        watching = _process(url, "watch", "--after", "0")
        assert watching.stdout is not None
        assert b"policy.applied" in watching.stdout.readline()
        watching.stdout.close()
        world.service.order("late", overrides_order(Verb.PAUSE))
        for _ in range(3):  # a pipe notices that nobody reads when it is written to
            world.service.order("late", overrides_order(Verb.RESUME))
            world.service.order("late", overrides_order(Verb.PAUSE))
        assert watching.wait(20) == 1
        assert watching.stderr is not None
        assert watching.stderr.read() == b""
        watching.stderr.close()


def test_plain_terminals_get_plain_characters(world: World) -> None:
    """In ASCII, and with NO_COLOR, nothing fails and no escape sequence is printed."""
    with served(world) as url:
        for args in (("explain", "late"), ("get", "models"), ("pause", "late", "-r", "naïve", "--dry-run")):
            process = _process(url, *args, PYTHONIOENCODING="ascii", NO_COLOR="1", FORCE_COLOR="", PYTHONUTF8="0")
            out, err = process.communicate(timeout=20)
            assert process.returncode == 0, err
            assert out.isascii()
            assert b"\x1b" not in out


def test_help_is_quick_and_loads_no_heavy_library() -> None:
    """Nothing of the daemon, the web or machine learning is imported to say what there is."""
    probe = (
        "import sys, controller.cli.main as m\n"
        "heavy = {'httpx', 'litestar', 'sqlalchemy', 'pydantic', 'numpy', 'pandas', 'sklearn', 'pyarrow', 'rich', 'ruamel'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
