"""What settings and policies say about images reaches the packaging job, the registry and the person who asks why; secrets do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from controller_states import NAME, policy, state, version, with_cycle
from pydantic import ValidationError
from test_housekeeping import Home, few

from config.settings import Settings
from controller import explaining
from controller.applying import canonical
from controller.phases import job_id
from controller.state import Phase
from controller.wiring import packaging, withdrawing
from controller.work import wanted_job
from deployers.oci import RegistryAway, RegistryDenied
from deployers.package import Delivery


def packaging_inputs(settings: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """Inputs of the job that packages under a policy with these keys."""
    wanted = policy(**spec)
    made = state(Phase.PACKAGING, policy=canonical(wanted), policy_dir="/policies")
    made = with_cycle(made, job_id=job_id(NAME, 7, Phase.PACKAGING, 1))
    job = wanted_job(made, wanted, Path("/home"), settings)
    assert job is not None
    return dict(json.loads(json.dumps(job.inputs)))


def test_the_packaging_job_is_told_what_the_policy_and_the_settings_say(tmp_path: Path) -> None:
    """The policy's base goes before the setting's; where secrets lie is told, and nothing of what is in them."""
    secret = tmp_path / "secret"
    secret.write_text("robot:hunter2")
    settings = Settings(
        image_builder="registry", registry="registry.example/models", registry_credentials=secret, base_image="r.example/b:1",
        sign_command="sign --key 'a b'",
    )  # fmt: skip
    told = packaging(settings)
    inputs = packaging_inputs(told)
    assert (inputs["base"], inputs["placement"], inputs["requirements"]) == ("r.example/b:1", "image", None)
    delivery = Delivery(**inputs["delivery"])
    assert (delivery.builder, delivery.registry, delivery.credentials) == (
        "registry",
        "registry.example/models",
        str(secret),
    )
    assert delivery.sign_command == ["sign", "--key", "a b"]
    assert "hunter2" not in json.dumps(inputs)
    own = packaging_inputs(
        told, model={"placement": "volume"}, deploy={"base_image": "r.example/own:2", "requirements": "lock.txt"}
    )
    assert (own["base"], own["placement"]) == ("r.example/own:2", "volume")
    assert own["requirements"] == {"folder": "/policies", "path": "lock.txt"}


def test_without_settings_images_stay_in_the_state_folder() -> None:
    """Nothing is pushed, signed or fetched by default."""
    inputs = packaging_inputs(packaging(Settings()))
    assert Delivery(**inputs["delivery"]).builder == "layout"
    assert inputs["base"] is None
    assert withdrawing(Settings(image_builder="registry", registry="r.example")) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_builder": "registry"}, "registry must name one"),
        ({"sign_command": "cosign"}, "image_builder must be registry"),
        ({"image_builder": "kaniko"}, "layout"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    """At the start, not when the first version is packaged."""
    with pytest.raises(ValidationError, match=said):
        Settings(**changes)


def test_a_registry_that_is_none_is_refused_at_the_start() -> None:
    """With how one is named."""
    with pytest.raises(ValueError, match=r"RATCHET_REGISTRY: .*without https://"):
        packaging(Settings(image_builder="registry", registry="https://registry.example"))


# ---------------------------------------------------------------- housekeeping
def test_a_version_given_up_leaves_the_registry_first(tmp_path: Path) -> None:
    """While the registry is away its folder stays, so that the next sweep tries again; one that refuses keeps it, and ours goes."""
    home = Home(tmp_path, few())
    asked: list[tuple[str, str, str | None]] = []

    def sweep(trouble: Exception | None) -> set[int]:
        def withdraw(model: str, digest: str, model_image: str | None) -> None:
            asked.append((model, digest, model_image))
            if trouble is not None:
                raise trouble

        replace(home.keeper(), withdraw=withdraw).sweep()
        return home.unpacked()

    assert sweep(RegistryAway("away")) == {1, 2, 4, 5}
    assert sweep(RegistryDenied("no")) == {1, 2, 5}
    assert asked == [(NAME, home.made.versions[4].digest, None)] * 2
    assert sweep(None) == {1, 2, 5}
    assert len(asked) == 2


# ---------------------------------------------------------------- explaining
@pytest.mark.parametrize("placement", ["image", "volume", "pull"])
def test_explain_says_where_the_model_lies_and_why(placement: str) -> None:
    """Whose choice it was, what follows, and what was pushed where."""
    reference = f"registry.example/models/{NAME}@sha256:{'a' * 64}"
    image = {"placement": placement, "reference": reference, "size_bytes": 60_000_000, "bytes_sent": 2_500_000}
    made = state()
    made = replace(
        made,
        versions={**made.versions, 2: replace(version(2), status=made.versions[2].status, lineage={"image": image})},
    )
    serving = explaining._serving(made, [])
    assert serving is not None
    assert serving.image[0].startswith(f"model placement {placement}, chosen by the policy (spec.model.placement): ")
    assert serving.image[1] == f"pushed as {reference}; 2.5 of its 60.0 MB had to be sent"
