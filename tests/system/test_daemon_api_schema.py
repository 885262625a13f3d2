# SPDX-License-Identifier: Apache-2.0
"""The API of the daemon beside its own document: what schemathesis thinks of to ask.

Always the same requests: a failure comes again.
"""

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from blkd.control.daemon_models import EVENTS
from blkd.daemon.api.openapi import openapi_document
from tests.played_exports import served_in_thread
from tests.unix_adapter import UnixAdapter

LIMIT = 10  # seconds for an answer
EXAMPLES = 25  # of each call

SCHEMA = schemathesis.openapi.from_dict(openapi_document())


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("api") / "s")
    with served_in_thread(path), requests.Session() as opened:
        opened.mount("http://", UnixAdapter(path))
        yield opened


@SCHEMA.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_call_keeps_to_its_document(session, case):
    if case.path == EVENTS:
        case.query = {**(case.query or {}), "follow": "false"}  # or it would not end
    case.call_and_validate(
        base_url="http://blkd",
        session=session,
        timeout=LIMIT,
        excluded_checks=[positive_data_acceptance] if has_rules(case) else [],
    )


def has_rules(case):
    """Whether there are rules of the body that no schema says, such as a power of two."""
    return len(case.operation.body) > 0
