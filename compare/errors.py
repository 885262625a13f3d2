# SPDX-License-Identifier: Apache-2.0
"""Why there is no figure where one was wanted."""

from blkd.errors import BlkdError


class MeasurementFailed(BlkdError):
    """A run did not end as it should; its figures are not used."""


class SubjectMissing(MeasurementFailed):
    """What was to be measured is not on this host, or cannot serve the case at all."""
