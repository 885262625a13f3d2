# SPDX-License-Identifier: Apache-2.0
from compare.scrape import measure


async def test_a_scrape_of_disks_in_full_use_has_their_series():
    few, more = [int(dict(await measure(count))["series"]) for count in (1, 3)]
    assert more - 1 == 3 * (few - 1) > 3 * 200
