# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus scrapes a daemon whose disks are under load.

What the dashboard asks of it and what the alerts look for is there.
"""

import contextlib
import json
import math
import re
import threading
from pathlib import Path

import pytest

from harness.frontend import FrontEnd
from harness.host import HostDaemon
from harness.prometheus import Prometheus, free_port
from harness.storage import mounted

PACKAGING = Path(__file__).parents[2] / "packaging"
DASHBOARD = json.loads((PACKAGING / "grafana" / "blkd.json").read_text())
RULES = PACKAGING / "prometheus" / "blkd-alerts.yml"
MIB = 1 << 20
WINDOW = "10s"
PAUSE = 0.01  # seconds between two rounds of the load


def queries():
    """Each query of the dashboard, by the title of its panel."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")


def asked(expression):
    """What Grafana makes of a query, for all disks."""
    asked = expression.replace("$__rate_interval", WINDOW).replace("$name", ".*")
    assert "$" not in asked, f"a variable that no dashboard has: {asked}"
    return asked


class Load:
    """Requests of every kind for a disk, until it is left."""

    def __init__(self, socket):
        self._front_end = FrontEnd.connect(socket)
        self._disk = self._front_end.disk()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()
        self._front_end.close()

    def _run(self):
        while not self._ended.wait(PAUSE):
            for size in (4096, 65536):
                self._disk.write(0, bytes(size))
                self._disk.read(0, size)
            self._disk.flush()
            self._disk.get_id()
            self._disk.discard([(256, 128)])
            self._disk.write_zeroes([(512, 128)])


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A daemon that tells its metrics, whose images lie in 16 MiB."""
    folder = tmp_path_factory.mktemp("host")
    listen = f"127.0.0.1:{free_port()}"
    settings = {"metrics.listen": listen, "nearly_full": "100M"}
    with (
        mounted("none", folder / "images", "-t", "tmpfs", "-o", "size=16m"),
        HostDaemon(folder, **settings) as started,
    ):
        started.listen = listen
        started.ready()
        yield started


@pytest.fixture(scope="module")
def prometheus(host, tmp_path_factory):
    """It, and the daemon's disks under load: one as any, one that fails, one that is limited."""
    web = host.add("web", host.image("web.img", 64 * MIB), cache="writeback")
    bad = f"faulty:fail@read/10:{host.image('bad.img', 64 * MIB)}"
    failing = host.add("bad", bad, cache="writeback")
    limited = host.add("limited", host.image("limited.img", 64 * MIB), limit="iops=100")
    with contextlib.ExitStack() as stack:
        for each in (web, failing, limited):
            stack.enter_context(Load(each["sockets"][0]))
        folder = tmp_path_factory.mktemp("prometheus")
        started = stack.enter_context(Prometheus(folder, host.listen, [RULES]))
        started.ready()
        yield started


@pytest.mark.parametrize("expression", list(queries()))
def test_the_dashboard_finds_data(prometheus, expression):
    found = prometheus.wait_for(asked(expression))
    values = [float(series["value"][1]) for series in found]
    assert not all(map(math.isnan, values)), found


def test_a_query_for_what_is_not_there_would_find_none(prometheus):
    prometheus.wait_for("blkd_build_info")
    assert prometheus.query("blkd_disk_no_such_metric") == []


def test_every_disk_is_scraped(prometheus):
    up = prometheus.wait_for("blkd_export_up == 1")
    assert {series["metric"]["name"] for series in up} == {"web", "bad", "limited"}
    assert prometheus.value('up{job="blkd"}') == 1


@pytest.mark.parametrize("kind", ["reads_completed", "writes_completed", "flush_requests"])
def test_counters_grow_under_load(prometheus, kind):
    assert prometheus.wait_for(f'rate(blkd_disk_{kind}_total{{name="web"}}[{WINDOW}]) > 1')


def test_times_and_requests_are_as_many(prometheus):
    for operation, counter in (("read", "reads_completed"), ("write", "writes_completed")):
        times = f'blkd_disk_request_duration_seconds_count{{name="web", operation="{operation}"}}'
        counted = f'blkd_disk_{counter}_total{{name="web"}}'
        same = f"{counted} == on (name) group_left () {times}"
        phases = [series["metric"].get("phase") for series in prometheus.wait_for(times)]
        assert sorted(phases) == ["disk", "ring"]
        assert prometheus.value(f"count({times} == on (name) group_left () {counted})") == 2, same


def test_errors_of_the_image_are_counted_by_kind(prometheus):
    errors = 'increase(blkd_disk_errors_total{{name="{name}", kind="io"}}[10s])'
    assert prometheus.wait_for(errors.format(name="bad") + " > 0")
    assert prometheus.value(errors.format(name="web")) == 0


def test_limits_are_seen(prometheus):
    assert prometheus.value('blkd_disk_limit{name="limited", limit="iops"}') == 100
    waiting = 'rate(blkd_disk_throttled_seconds_total{name="limited"}[10s]) > 0'
    assert prometheus.wait_for(waiting)


def test_every_rule_is_evaluated_without_an_error(prometheus):
    prometheus.wait_for("ALERTS")
    rules = prometheus.rules()
    assert len(rules) == len(re.findall("- alert:", RULES.read_text()))
    assert {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")} == {}
    assert {rule["health"] for rule in rules} == {"ok"}


def test_alerts_see_what_is_wrong(prometheus):
    assert prometheus.wait_for('ALERTS{alertname="BlkdDiskNearlyFull", name="web"}')
    assert prometheus.wait_for('ALERTS{alertname="BlkdDiskFailing", name="bad"}')
    assert prometheus.query('ALERTS{alertname="BlkdDiskFailing", name="web"}') == []


def test_an_export_that_is_removed_leaves_no_series(prometheus, host):
    host.add("gone", host.image("gone.img", MIB), cache="writeback")
    of_it = 'count({name="gone", job="blkd"}) > 10'
    prometheus.wait_for(of_it)
    host.call("DELETE", "/v1/exports/gone")
    prometheus.wait_for('absent(blkd_export_up{name="gone"})')
    assert prometheus.query('{name="gone", job="blkd", __name__!~"ALERTS.*"}') == []


def test_a_record_that_somebody_has_spoiled_costs_the_others_nothing(tmp_path):
    with HostDaemon(tmp_path) as started:
        started.ready()
        for name in ("good", "odd"):
            started.add(name, started.image(f"{name}.img", MIB), cache="writeback", limit="iops=9")
        started.call("POST", "/v1/exports/odd/stop")
        started.kill()
        record = started.records / "odd.toml"
        record.write_text(record.read_text().replace('limit = "iops=9"', "limit = 9\ngroup = 7"))
        started.restart()
        text = started.stream("/metrics")
    assert 'blkd_disk_limit{limit="iops",name="good"} 9.0' in text
    assert 'blkd_export_wanted{name="odd"} 0.0' in text
    assert 'blkd_disk_limit{limit="iops",name="odd"}' not in text
