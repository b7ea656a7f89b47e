"""Files and folders: what is read, what is refused, and that nothing hostile gets through."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_texts import EXAMPLES, SMALL, only_problem, read, small

from policies.documents import SIZE_MAX
from policies.reading import read_policies
from policies.schema import ModelPolicy


def test_a_folder_is_searched(tmp_path: Path) -> None:
    """All *.yaml and *.yml below a folder are read, hidden ones and others are not, each once."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    for name, file in {"x": "a/b/x.yaml", "y": "a/y.yml", "z": ".git/z.yaml", "h": "a/.h.yaml"}.items():
        (tmp_path / file).write_text(small(("name: small", f"name: {name}")))
    (tmp_path / "a" / "readme.txt").write_text("no policy")
    reading = read_policies([tmp_path, tmp_path / "a" / "y.yml"])
    assert reading.problems == ()
    assert [one.policy.name for one in reading.policies] == ["y", "x"]
    assert reading.policies[1].directory == tmp_path / "a" / "b"


def test_directory_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths in a policy start at its file's folder, wherever the daemon runs."""
    (tmp_path / "p.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    (one,) = read_policies(["p.yaml"]).policies
    assert one.directory == tmp_path
    assert one.file == "p.yaml"


def test_errors_of_all_files_come_at_once(tmp_path: Path) -> None:
    """Good files are read though others are bad, and every bad file is reported."""
    (tmp_path / "a.yaml").write_text(SMALL)
    (tmp_path / "b.yaml").write_text(small(("name: small", "name: B")))
    (tmp_path / "c.yaml").write_text("a: [")
    reading = read_policies([tmp_path])
    assert [one.policy.name for one in reading.policies] == ["small"]
    assert [Path(p.file).name for p in reading.problems] == ["b.yaml", "c.yaml"]


def test_a_name_in_two_files_is_nobodys(tmp_path: Path) -> None:
    """Two files with one model name: the error names both, and neither is followed."""
    (tmp_path / "a.yaml").write_text(SMALL)
    (tmp_path / "b.yaml").write_text(SMALL)
    (tmp_path / "c.yaml").write_text(small(("name: small", "name: other")))
    reading = read_policies([tmp_path])
    assert [one.policy.name for one in reading.policies] == ["other"]
    rule = f"a model's name may stand in one file only, and {tmp_path}/a.yaml:3 has it too"
    assert [str(p) for p in reading.problems] == [f"{tmp_path}/b.yaml:3: metadata.name: {rule}, but got 'small'"]


def test_missing_and_odd_files(tmp_path: Path) -> None:
    """A missing file names its likely sibling; a pipe is not opened; a dangling link is reported."""
    (tmp_path / "policy.yaml").write_text(SMALL)
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "nowhere")
    names = ["polcy.yaml", "pipe.yaml", "link.yaml", "no/such/folder", "nul\0"]
    problems = [str(p).removeprefix(f"{tmp_path}/") for p in read_policies([tmp_path / n for n in names]).problems]
    assert problems[:4] == [
        "polcy.yaml: no such file or folder; did you mean 'policy.yaml'?",
        "pipe.yaml: must be a file or a folder",
        "link.yaml: links to a file that is not there",
        "no/such/folder: no such file or folder",
    ]
    assert len(problems) == 5
    assert [one.policy.name for one in read_policies([tmp_path]).policies] == ["small"]


def test_linked_files_are_followed(tmp_path: Path) -> None:
    """A mounted ConfigMap, whose files are links into a hidden folder, is read once."""
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "p.yaml").write_text(SMALL)
    (tmp_path / "p.yaml").symlink_to(tmp_path / "..data" / "p.yaml")
    (one,) = read_policies([tmp_path]).policies
    assert one.directory == tmp_path


HOSTILE = {
    "not UTF-8": (b"a: 1\nb: \xff\xfe", "p.yaml:2: must be UTF-8, but got byte 0xff"),
    "too large": (b"#" * (SIZE_MAX + 1), f"p.yaml: a policy file is at most {SIZE_MAX} bytes, but got {SIZE_MAX + 1}"),
    "two documents": ("a: 1\n---\nb: 2\n", "p.yaml:2: a policy file holds one document"),
    "anchor": ("a: &x 1\nb: *x\n", "p.yaml:1: a: anchors are not read, leave out &x"),
    "alias": ("b: *x\n", "p.yaml:1: b: aliases are not read, write the value out instead of *x"),
    "tag": ("a: !!python/object:os.system x\n", "p.yaml:1: a: tags are not read, leave out tag:yaml.org,2002:python/object:os.system"),
    "deep lists": ("[" * 100_000, "a policy file is nested at most 32 deep"),
    "deep mappings": ("{a: " * 100_000, "a policy file is nested at most 32 deep"),
    "deep blocks": ("- " * 100_000, "a policy file is nested at most 32 deep"),
    "very many values": ("a: [" + "1," * 300_000 + "1]", "a policy file holds at most 20000 values"),
    "list as a key": ("? [a]\n: 1\n", "p.yaml:1: a key must be text, but got a list"),
    "a control character": ("a: \x07\n", "p.yaml:1: is not valid YAML: a character that may not stand in it, but got 7"),
    "open bracket": ("a: [1\n", "is not valid YAML: while parsing a flow sequence, expected ',' or ']'"),
    "bad indentation": ("a: 1\n   b: 2\n", "p.yaml:2: is not valid YAML: mapping values are not allowed here"),
    "tab": ("a:\n\tb: 1\n", "p.yaml:2: is not valid YAML: while scanning for the next token, found character '\\t'"),
    "a list": ("- 1\n", "p.yaml:1: a policy file must hold a mapping that starts with apiVersion: ratchet.dev/v1, but got a list"),
    "nothing": ("", "must hold a mapping that starts with apiVersion: ratchet.dev/v1, but got nothing"),
    "only a comment": ("# later\n", "must hold a mapping that starts with apiVersion: ratchet.dev/v1, but got nothing"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_input(text: str | bytes, message: str) -> None:
    """What is no YAML, no mapping, or an attack gives one message, soon."""
    began = time.process_time()
    assert message in str(only_problem(text))
    assert time.process_time() - began < 5


def test_a_number_too_long_to_read() -> None:
    """An integer beyond what Python converts is a message like others."""
    problems = [str(p) for p in read(small(more=f"  tune: {{trials: {'9' * 5000}}}\n")).problems]
    assert any("spec.tune.trials: is not a number that can be read, but got '999" in p for p in problems)


@pytest.mark.parametrize("number", ["0x" + "f" * 4000, "-0x" + "f" * 4000, "0o" + "7" * 9000, str(2**63)])
@pytest.mark.parametrize("place", ["  tune: {{trials: {}}}", "  cooldown: {}", "  train: {{parameters: {{x: {}}}}}"])
def test_a_number_that_python_cannot_print(place: str, number: str) -> None:
    """Bases of two are read whatever their length, and then break whoever writes the value down: refused here."""
    problems = [str(p) for p in read(small(more=place.format(number) + "\n")).problems]
    assert any("a whole number has at most 64 bits" in p for p in problems)
    assert all(len(p) < 500 for p in problems)


def test_doubled_keys() -> None:
    """A key that stands twice in a mapping is an error in the second line, and the first value counts for the rest."""
    problem = only_problem(small(("    label: late", "    label: late\n    label: later")))
    assert (
        str(problem)
        == "p.yaml:9: spec.data.label: a key may stand only once in a mapping, but got it again (first in line 8)"
    )


def test_yaml_1_2() -> None:
    """`on` and `12:30` and dates are text, as in YAML 1.2; a byte order mark is skipped."""
    text = small(("{name: small}", "{name: small, labels: {a: on, b: 12:30, c: 2026-01-02, d: =}}"))
    (one,) = read(b"\xef\xbb\xbf" + text.encode()).policies
    assert dict(one.policy.metadata.labels) == {"a": "on", "b": "12:30", "c": "2026-01-02", "d": "="}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_are_read(path: Path) -> None:
    """Every example file is a policy without problems, named after its model."""
    reading = read_policies([path])
    assert reading.problems == ()
    assert [one.policy.name for one in reading.policies] == [path.stem]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_canonical_json_reads_back(path: Path) -> None:
    """A policy's canonical JSON gives the same policy, through pydantic and through the reader."""
    (one,) = read_policies([path]).policies
    text = one.policy.model_dump_json(by_alias=True)
    assert ModelPolicy.model_validate_json(text) == one.policy
    assert ModelPolicy.model_validate(json.loads(text)) == one.policy
    assert [again.policy for again in read(text).policies] == [one.policy]
    assert one.policy.model_dump_json(by_alias=True) == read(text).policies[0].policy.model_dump_json(by_alias=True)


INDICATORS = ":-[]{},'\"|>?#%@&*!\t\n\x85\u2028\ufeff "
PIECES = st.one_of(
    st.sampled_from(INDICATORS),
    st.sampled_from(
        ["a", "spec", "triggers", "any", ": ", "\n  ", "\n- ", "? ", "5%", "null", "&x ", "*x", "!t ", "\n---\n"]
    ),
)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=40).map("".join)))
def test_reading_never_raises(content: str | bytes) -> None:
    """Whatever the bytes, reading ends with a policy or with problems."""
    reading = read(content)
    assert reading.problems
    assert all(str(problem).startswith("p.yaml") for problem in reading.problems)


JSON_VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["1d", "recall"])
    ),
    lambda below: st.one_of(
        st.lists(below, max_size=3),
        st.dictionaries(
            st.sampled_from(["any", "metric", "for", "below", "kind", "at_least", "of", "hold", "x"]), below, max_size=4
        ),
    ),
    max_leaves=8,
)
PLACES = [
    "spec",
    "metadata",
    "data",
    "train",
    "tune",
    "objective",
    "triggers",
    "cooldown",
    "budget",
    "gates",
    "rollout",
    "notify",
]


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(PLACES), JSON_VALUES)
def test_any_value_anywhere_is_read_or_explained(place: str, value: object) -> None:
    """Any value in any section gives a policy or problems that name a place and a rule."""
    document = json.loads(read(SMALL).policies[0].policy.model_dump_json(by_alias=True))
    (document if place in ("spec", "metadata") else document["spec"])[place] = value
    reading = read(json.dumps(document))
    assert bool(reading.policies) != bool(reading.problems)
    assert all(problem.rule and (problem.path or problem.line) for problem in reading.problems)
