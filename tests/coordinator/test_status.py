"""A status goes over the wire as JSON and comes back as it was."""

from __future__ import annotations

import json
import math

from coordinator.edge.status import ValidationStatus


def test_a_loss_that_is_no_finite_number_survives_the_wire() -> None:
    for loss in (math.inf, math.nan, 5.5):
        sent = ValidationStatus(version=1, val_loss=loss, val_loss_se=0.1).model_dump_json()
        json.loads(sent, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
        got = ValidationStatus.model_validate_json(sent).val_loss
        assert got == loss or (math.isnan(got) and math.isnan(loss))
