"""Parameters of a component: known names only, each error with the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pipelines.components.base import ParameterValue
from pipelines.jobs.port import PermanentJobError


def merged(
    component: str, defaults: Mapping[str, ParameterValue], given: Mapping[str, ParameterValue]
) -> dict[str, ParameterValue]:
    """`defaults` with `given` over them. Raises PermanentJobError for a name that the component does not have."""
    for name in given:
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(defaults))}"
            raise PermanentJobError(f"train.parameters: {component} has no parameter {name!r}; {hint}")
    return {**defaults, **given}
