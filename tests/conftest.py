# SPDX-License-Identifier: Apache-2.0
from hypothesis import settings

# Machines that run many tests at once are slow at times: that is no failure.
settings.register_profile("blkd", deadline=None)
settings.load_profile("blkd")
