"""Bad data, bad policies and damaged logs on a model that serves: a sentence that names what is wrong, and nothing lost."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from fast_rig import HEADER, Rig, labels_on_record, on_record, rows_of, running, small_spec, wait_until, write_csv
from live_client import Clients

pytestmark = pytest.mark.slow

LABEL, X1, AT = HEADER.index("label"), HEADER.index("x1"), HEADER.index("at")
NEVER = {"performance": {"metric": "roc_auc", "below": 0.01, "window": "1h", "min_rows": 20}}
"""A trigger that does not fire, but has the live traffic measured."""


@dataclass(frozen=True, slots=True)
class House:
    """A model whose first version serves, and clients that ask it and report labels all the while."""

    rig: Rig
    clients: Clients

    def spec(self, path: str = "data.csv", kind: str = "csv", **data: Any) -> dict[str, Any]:
        data = {"source": {"kind": kind, "path": path}, **data}
        return small_spec(data=data, triggers=NEVER, approval="required")

    def check_champion(self) -> None:
        """The champion answers, and has always answered."""
        model = self.rig.model()
        assert (model["champion"], model["target"]["weights"]) == (1, {"1": 100.0})
        assert {answer.version for answer in self.clients.more(5)} == {1}
        assert self.clients.failures == []


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("bad input")
    write_csv(folder / "data.csv", rows_of(1))
    with running(folder) as rig:
        champion = rig.first_champion(small_spec())
        with Clients(champion["address"], champion["name"], feedback=True) as clients:
            yield House(rig, clients)


# ---------------------------------------------------------------- what is wrong with the data
@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A way in which data are bad, and what the cycle that meets them must say."""

    name: str
    write: Callable[[Path], None]
    says: tuple[str, ...]
    kind: str = "csv"
    suffix: str = ".csv"
    data: dict[str, Any] = field(default_factory=dict)


def missing(_: Path) -> None:
    """The owner forgot the file."""


def with_header(**renamed: str) -> Callable[[Path], None]:
    return lambda path: write_csv(path, rows_of(2), [renamed.get(name, name) for name in HEADER])


def with_column(column: int, value: Callable[[int, Any], Any]) -> Callable[[Path], None]:
    """Good rows but for one column: `value` of the row's number and what it had."""

    def write(path: Path) -> None:
        rows = rows_of(2)
        for i, row in enumerate(rows):
            row[column] = value(i, row[column])
        write_csv(path, rows)

    return write


def of_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A good CSV file whose bytes are changed."""

    def write(path: Path) -> None:
        write_csv(path, rows_of(2))
        path.write_bytes(change(path.read_bytes()))

    return write


def header_only(path: Path) -> None:
    write_csv(path, [])


def doubled_ids(path: Path) -> None:
    write_csv(path, [*rows_of(2), *rows_of(2)[:3]])


def in_the_future(path: Path) -> None:
    write_csv(path, rows_of(2, newest=datetime.now(UTC) + timedelta(days=400)))


def truncated_parquet(path: Path) -> None:
    parquet(path, rows=1500)
    path.write_bytes(path.read_bytes()[:-200])


def parquet(path: Path, *, rows: int) -> None:
    write_csv(path, rows_of(2))
    pq.write_table(pyarrow.csv.read_csv(path).slice(0, rows), path)


CASES = [
    Case(name="missing-file", write=missing, says=("data.source.path: there is no file", "missing-file.csv")),
    Case(
        name="renamed-column", write=with_header(label="labels"),
        says=("data.label", "renamed-column.csv has no column 'label'", "did you mean 'labels'?"),
    ),
    Case(name="wrong-time", write=with_header(at="when"), says=("data.time", "has no column 'at'", "there are id, when")),
    Case(
        name="null-label", write=with_column(LABEL, lambda i, v: ""),
        says=("data.label: column 'label'", "all 1500 values are missing"),
    ),
    Case(
        name="one-class", write=with_column(LABEL, lambda i, v: 1),
        says=("data.label: column 'label'", "at least two classes but all have the label 1"),
    ),
    Case(
        name="infinite-label", write=with_column(LABEL, lambda i, v: "inf" if i % 100 == 0 else v),
        says=("data.label: column 'label'", "must be a class but 15 values are infinite"),
    ),
    Case(
        name="few-labels", write=with_column(LABEL, lambda i, v: v if i < 50 else ""),
        says=("data.min_rows", "at least 200 matured rows but there are 40", "1450 have none"),
    ),
    Case(name="no-bytes", write=of_bytes(lambda b: b""), says=("no-bytes.csv", "the file is empty", "header line")),
    Case(name="header-only", write=header_only, says=("data.source", "header-only.csv holds 0 rows", "at least 200")),
    Case(
        name="no-rows", write=lambda path: parquet(path, rows=0), kind="parquet", suffix=".parquet",
        says=("data.source", "no-rows.parquet holds 0 rows", "at least 200"),
    ),
    Case(
        name="doubled-ids", write=doubled_ids, data={"id": "id", "exclude": []},
        says=("data.id: column 'id'", "3 occur more than once, such as 'r2-0'"),
    ),
    Case(
        name="truncated-gzip", write=of_bytes(lambda b: gzip.compress(b)[:-400]), suffix=".csv.gz",
        says=("truncated-gzip.csv.gz", "not a whole CSV file (truncated or damaged?)"),
    ),
    Case(
        name="truncated-parquet", write=truncated_parquet, kind="parquet", suffix=".parquet",
        says=("truncated-parquet.parquet", "not a whole Parquet file (truncated or damaged?)"),
    ),
    Case(
        name="not-text", write=of_bytes(lambda b: bytes(range(256)) * 50), says=("not-text.csv", "not a whole CSV file"),
    ),
    Case(
        name="no-times", write=with_column(AT, lambda i, v: "last Tuesday" if i == 7 else v),
        says=("data.time: column 'at'", "1 of 1500 values are none, such as 'last Tuesday' in row 8"),
    ),
    Case(
        name="milliseconds", write=with_column(AT, lambda i, v: 1_700_000_000_000 + i),
        says=("data.time: column 'at'", "seconds since 1970", "are they milliseconds?"),
    ),
    Case(
        name="future", write=in_the_future,
        says=("data.time: column 'at'", "all 1500 rows lie after the present time", "has the clock gone back?"),
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_data_end_the_cycle_with_a_sentence_and_leave_the_champion_alone(house: House, case: Case) -> None:
    """The cycle fails at once, saying which field or file breaks which rule by which value; the champion goes on serving."""
    rig, path = house.rig, house.rig.folder / f"{case.name}{case.suffix}"
    case.write(path)
    rig.apply(house.spec(path.name, case.kind, **case.data))
    cycle = rig.run_cycle()
    assert (cycle["outcome"], cycle["attempt"]) == ("failed", 1)
    assert [part for part in case.says if part not in cycle["sentence"]] == [], cycle["sentence"]
    assert cycle["sentence"].startswith("preparing failed: ")
    assert cycle["sentence"].endswith("; v1 keeps serving")
    assert "Traceback" not in cycle["sentence"]
    house.check_champion()


@pytest.mark.parametrize(
    ("column", "says"),
    [
        pytest.param(X1, ("10 infinite values of 'x1' count as missing",), id="features"),
        pytest.param(LABEL, ("15 have none",), id="labels"),
    ],
)
def test_gaps_that_can_be_dealt_with_are_told_and_the_cycle_goes_on(
    house: House, column: int, says: tuple[str, ...]
) -> None:
    """NaN and infinities among a feature's values and NaN among labels stop nothing, but the cycle says how many there are."""

    def gap(i: int, value: Any) -> Any:
        if i % 100 == 0:
            return "nan"
        return "-inf" if column == X1 and i % 150 == 1 else value

    with_column(column, gap)(house.rig.folder / "gaps.csv")
    house.rig.apply(house.spec("gaps.csv"))
    number = house.rig.trigger()
    cycle = house.rig.wait_for(lambda m: m["phase"] == "awaiting_approval", "it was judged")["cycle"]
    house.rig.order("abort")  # a rejected model would be known again in the next of these tests
    assert house.rig.wait_closed(number)["outcome"] == "aborted"
    assert [part for part in says if part not in cycle["said"]["preparing"]] == [], cycle["said"]["preparing"]
    house.check_champion()


# ---------------------------------------------------------------- policies
MALFORMED = """\
apiVersion: ratchet.dev/v1
kind: ModelPolicy
metadata: {name: weather-vane}
spec:
  task: binary
  data:
    source: {kind: csv, path: data.csv}
    label: label
    tiem: at
  train: {component: sklearn.logistic_regression}
  tune: {trials: -3}
  objective: {metric: roc_auk}
"""


def test_a_malformed_policy_is_refused_with_its_lines_and_the_old_one_stays(house: House) -> None:
    """`ratchet apply` names file, line, field, rule and value of every fault at once; the daemon refuses the same by itself."""
    path = house.rig.folder / "bad.yaml"
    path.write_text(MALFORMED)
    before = house.rig.model()["policy_digest"]
    refused = house.rig.ratchet("apply", str(path), check=False)
    assert refused.returncode == 5
    for part in (
        "bad.yaml:9",
        "did you mean 'time'",
        "bad.yaml:11",
        "spec.tune.trials",
        "-3",
        "bad.yaml:12",
        "roc_auk",
    ):
        assert part in refused.stderr
    document = {"text": MALFORMED, "file": "bad.yaml", "directory": str(house.rig.folder)}
    answer = house.rig.http.post("/policies", json={"actor": "test@e2e", "documents": [document]})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_policy")
    assert house.rig.model()["policy_digest"] == before
    house.check_champion()


@pytest.mark.parametrize("text", ["spec: [", "\t- x", "", "a: &a [*a]", "- 1\n- 2", "null", "\x00"], ids=repr)
def test_what_is_no_policy_at_all_is_refused(house: House, text: str) -> None:
    """Whatever the file holds, the answer is a refusal, not a failure."""
    document = {"text": text, "file": "odd.yaml", "directory": str(house.rig.folder)}
    answer = house.rig.http.post("/policies", json={"actor": "test@e2e", "documents": [document]})
    assert answer.status_code in (400, 422), answer.text
    assert [m["name"] for m in house.rig.get("/models")["models"]] == ["weather-vane"]


# ---------------------------------------------------------------- the log of what was answered
def test_a_damaged_segment_of_the_log_is_reported_once_and_the_rest_still_measured(house: House) -> None:
    """A truncated Parquet segment costs its own rows only: the daemon names it in its log and goes on measuring."""
    rig = house.rig
    rig.apply(house.spec())
    segment = rig.home / "log" / "weather-vane" / "predictions" / "20200101T000000000000-1-cafe.parquet"
    pq.write_table(pa.table({"id": ["a", "b"]}), segment)
    segment.write_bytes(segment.read_bytes()[:-20])

    def reports() -> list[str]:
        return [line for line in rig.log.read_text().splitlines() if "prediction_log.damaged" in line]

    wait_until(lambda: any(segment.name in line for line in reports()), "the damaged segment is reported")
    measured = rig.wait_for(lambda m: "roc_auc" in m["sentence"], "the performance is measured")
    assert "unknown" not in measured["sentence"], measured["sentence"]
    assert len(reports()) == 1
    house.check_champion()
    segment.unlink()


# ---------------------------------------------------------------- the daemon's own state
def test_a_damaged_database_stops_the_daemon_at_its_start_and_not_what_serves(house: House) -> None:
    """The daemon ends with 3, naming the file and what to do, and leaves the file as it was; with a backup it goes on."""
    rig = house.rig
    before = rig.model()
    rig.stop()
    database = rig.home / "state.db"
    backup = database.read_bytes()
    damaged = backup[:4096] + b"\xff" * 8192 + backup[4096 + 8192 :]
    database.write_bytes(damaged)
    try:
        rig.launch()
        assert rig.exit_code() == 3
        assert database.read_bytes() == damaged
        for part in ("state.db: the database is damaged", "put a backup in place", ".recover"):
            assert part in rig.said()
        assert "Traceback" not in rig.said()
        assert {answer.version for answer in house.clients.more(20)} == {1}
    finally:
        database.write_bytes(backup)
        rig.start()
    after = rig.model()
    assert (after["versions"], after["row_version"]) == (before["versions"], before["row_version"])
    house.check_champion()


def test_a_second_daemon_on_the_same_folder_says_who_is_there(house: House) -> None:
    """It ends with 3 and disturbs nothing."""
    second = Rig(house.rig.home, house.rig.folder / "second")
    second.launch()
    assert second.exit_code() == 3
    assert "another daemon (" in second.said()
    house.check_champion()


def test_nothing_was_lost(house: House) -> None:
    """After all of this: one version, cycles and events without a gap, every answer and every label on record exactly once."""
    answers = list(house.clients.answers)
    reported = {answer.id for answer in answers[:-10]}
    rig = house.rig
    assert [v["number"] for v in rig.model()["versions"]] == [1]
    cycles = rig.cycles()
    assert sorted(cycles) == list(range(1, len(cycles) + 1))
    seqs = [event["seq"] for event in rig.events()]
    assert seqs == list(range(1, len(seqs) + 1))
    recorded = on_record(rig.home)
    assert len(recorded) == len(set(recorded))
    assert {answer.id for answer in answers} <= set(recorded)
    assert reported <= set(labels_on_record(rig.home))
    assert house.clients.feedback_problems == []
