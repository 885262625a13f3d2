# SPDX-License-Identifier: Apache-2.0
"""The alert rules for Prometheus on made data: each fires when it is to, and is quiet otherwise."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

RULES = Path(__file__).parents[2] / "packaging" / "prometheus" / "blkd-alerts.yml"
STEP = 10  # seconds between two scrapes
WEB = '{instance="host:9750", name="web"}'
UP = {f"blkd_build_info{WEB}": "1x400"}
HOUR = 360  # steps
IDLE = {
    **UP,
    f"blkd_export_wanted{WEB}": "1x400",
    f"blkd_export_up{WEB}": "1x400",
    f"blkd_export_restarts_total{WEB}": "3x400",
    f"blkd_disk_requests_held{WEB}": "0x400",
    f"blkd_disk_oldest_request_seconds{WEB}": "0x400",
    f"blkd_disk_throttled_seconds_total{WEB}": "100x400",
    f"blkd_disk_nearly_full{WEB}": "0x400",
}


def of(metric, values, **labels):
    """A series of the disk `web`."""
    inner = "".join(f', {key}="{value}"' for key, value in labels.items())
    return {f'blkd_{metric}{{instance="host:9750", name="web"{inner}}}': values}


def durations(slow, **labels):
    """A request in ten milliseconds each second, and `slow` in a second each ten."""
    labels = {"operation": "read", "phase": "disk", **labels}
    fast = 10
    return {
        **of("disk_request_duration_seconds_bucket", f"0+{fast}x400", le="0.008388608", **labels),
        **of("disk_request_duration_seconds_bucket", f"0+{fast}x400", le="0.536870912", **labels),
        **of(
            "disk_request_duration_seconds_bucket",
            f"0+{fast + slow}x400",
            le="1.073741824",
            **labels,
        ),
        **of("disk_request_duration_seconds_bucket", f"0+{fast + slow}x400", le="+Inf", **labels),
    }


FIRING = {
    "no-daemon": ("BlkdDown", {"up": "0x400"}, 13),
    "wanted-and-not-up": ("BlkdDiskDown", of("export_up", "1x10 0x390"), 18),
    "dies-each-minute": ("BlkdDiskRestarts", of("export_restarts_total", "0+1x400"), 60),
    "no-space": ("BlkdDiskFailing", of("disk_errors_total", "0x10 1x390", kind="no_space"), 20),
    "io": ("BlkdDiskFailing", of("disk_errors_total", "0x10 1x390", kind="io"), 20),
    "other": ("BlkdDiskFailing", of("disk_errors_total", "0x10 1x390", kind="other"), 20),
    "holds-one": ("BlkdDiskHeld", of("disk_requests_held", "0x10 1x390"), 15),
    "old": ("BlkdDiskStuck", of("disk_oldest_request_seconds", "0+10x400"), 12),
    "one-in-ten-takes-a-second": ("BlkdDiskSlow", durations(1), 70),
    "writes-too": ("BlkdDiskSlow", durations(1, operation="write"), 70),
    "two-wait-for-limits": (
        "BlkdDiskThrottled",
        of("disk_throttled_seconds_total", "0+20x400"),
        200,
    ),
    "little-room": ("BlkdDiskNearlyFull", of("disk_nearly_full", "0x10 1x390"), 20),
}
"""The alert, the series that differ from those of an idle disk, and after how many scrapes."""

QUIET = {
    "idle": ("BlkdDown", {}, HOUR),
    "a-daemon-that-is-restarted": ("BlkdDown", {"up": "0x400"}, 8),
    "stopped-by-intent": (
        "BlkdDiskDown",
        of("export_up", "0x400") | of("export_wanted", "0x400"),
        HOUR,
    ),
    "down-for-a-moment": ("BlkdDiskDown", of("export_up", "1x10 0x3 1x390"), 14),
    "has-died-twice": ("BlkdDiskRestarts", of("export_restarts_total", "0x10 1x10 2x390"), 60),
    "guest-asks-what-cannot-be": (
        "BlkdDiskFailing",
        of("disk_errors_total", "0+1x400", kind="refused")
        | of("disk_errors_total", "0+1x400", kind="unsupported"),
        60,
    ),
    "failed-an-hour-ago": ("BlkdDiskFailing", of("disk_errors_total", "1x400", kind="io"), HOUR),
    "held-for-a-moment": ("BlkdDiskHeld", of("disk_requests_held", "0x10 1x1 0x390"), 13),
    "old-because-it-is-held": (
        "BlkdDiskStuck",
        of("disk_oldest_request_seconds", "0+10x400") | of("disk_requests_held", "1x400"),
        60,
    ),
    "twenty-seconds-old": ("BlkdDiskStuck", of("disk_oldest_request_seconds", "20x400"), 60),
    "fast": ("BlkdDiskSlow", durations(0), HOUR),
    "slow-flushes": ("BlkdDiskSlow", durations(1, operation="flush"), HOUR),
    "long-in-the-throttle": ("BlkdDiskSlow", durations(1, phase="throttle"), HOUR),
    "rarely-throttled": (
        "BlkdDiskThrottled",
        of("disk_throttled_seconds_total", "0+5x400"),
        HOUR,
    ),
    "throttled-for-ten-minutes": (
        "BlkdDiskThrottled",
        of("disk_throttled_seconds_total", "0+20x60 1200x340"),
        HOUR,
    ),
    "room-again": ("BlkdDiskNearlyFull", of("disk_nearly_full", "1x10 0x390"), 60),
}


def promtool(*words, folder):
    return subprocess.run(
        ["promtool", *map(str, words)], cwd=folder, capture_output=True, text=True, check=False
    )


def judged(alert, series, steps, *, fires, folder):
    """What promtool says of whether an alert fires after `steps` scrapes of these series."""
    firing = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": f"{STEP}s",
        "tests": [
            {
                "interval": f"{STEP}s",
                "input_series": [
                    {"series": name, "values": values} for name, values in series.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": firing,
                        "eval_time": f"{steps * STEP}s",
                        "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                    }
                ],
            }
        ],
    }
    (folder / "test.yml").write_text(json.dumps(document))  # YAML has JSON in it
    done = promtool("test", "rules", "test.yml", folder=folder)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("alert", "series", "steps"), FIRING.values(), ids=FIRING)
def test_an_alert_fires(alert, series, steps, tmp_path):
    without = {} if alert == "BlkdDown" else IDLE
    status, said = judged(alert, {**without, **series}, steps, fires=True, folder=tmp_path)
    assert status == 0, said


@pytest.mark.parametrize(("alert", "series", "steps"), QUIET.values(), ids=QUIET)
def test_an_alert_is_quiet(alert, series, steps, tmp_path):
    without = {} if "up" in series else IDLE
    status, said = judged(alert, {**without, **series}, steps, fires=False, folder=tmp_path)
    assert status == 0, said


def test_no_alert_fires_of_an_idle_disk(tmp_path):
    for alert in alerts():
        status, said = judged(alert["alert"], IDLE, HOUR, fires=False, folder=tmp_path)
        assert status == 0, said


def test_promtool_finds_nothing_wrong_with_the_rules(tmp_path):
    done = promtool("check", "rules", RULES, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def alerts():
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return group["rules"]


def test_every_alert_is_tried_both_ways():
    names = {alert["alert"] for alert in alerts()}
    assert {alert for alert, *_ in FIRING.values()} == names
    assert {alert for alert, *_ in QUIET.values()} == names


def test_every_alert_says_what_to_do():
    for alert in alerts():
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(alert["annotations"]) == {"summary", "description"}


def test_the_document_has_every_alert():
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    described = re.findall(r"^\| `(Blkd\w+)` \|", page, re.MULTILINE)
    assert described == [alert["alert"] for alert in alerts()]
