# SPDX-License-Identifier: Apache-2.0
import asyncio

import pytest
from hypothesis import settings

from demo.guest import Machine

# Machines that run many tests at once are slow at times: that is no failure.
settings.register_profile("blkd", deadline=None)
settings.load_profile("blkd")


@pytest.fixture(scope="session")
def machine() -> Machine:
    """What guests are made of; to try KVM takes a while, so once."""
    return asyncio.run(Machine.prepare())
