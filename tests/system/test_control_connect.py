# SPDX-License-Identifier: Apache-2.0
import contextlib
import json
import subprocess

from harness.daemon import Daemon, image, run


def test_qemu_takes_a_second_disk_s_recipe_beside_the_first_s(tmp_path):
    with contextlib.ExitStack() as stack:
        lines = {}
        for name in ("blkd", "data"):
            (tmp_path / name).mkdir()
            disk = image(tmp_path / name / "demo.img")
            daemon = stack.enter_context(Daemon(disk, tmp_path / name))
            daemon.ready()
            options = ("--memory", "64M", "--id", name, "--json")
            shown = run("connect", "--vmm", "qemu", "--socket", daemon.socket, *options)
            recipe = json.loads(shown.stdout)["text"].replace("accel=kvm", "accel=tcg")
            lines |= dict.fromkeys(recipe.split(" \\\n    "))
        command = ["sh", "-c", f"exec {' '.join(lines)} -nodefaults -display none -qmp stdio -S"]
        qemu = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(qemu.kill)
        assert "QMP" in json.loads(qemu.stdout.readline())


def test_qemu_takes_the_recipe_as_printed(tmp_path):
    with Daemon(image(tmp_path / "demo.img"), tmp_path) as daemon:
        daemon.ready()
        shown = run("connect", "--vmm", "qemu", "--socket", daemon.socket, "--json")
        recipe = json.loads(shown.stdout)["text"].replace("accel=kvm", "accel=tcg")
        command = ["sh", "-c", f"exec {recipe} -nodefaults -display none -qmp stdio -S"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as qemu:
            assert "QMP" in json.loads(qemu.stdout.readline())  # all devices are there
            front_end = daemon.call("show")["front_end"]
            qemu.kill()
    assert "CONFIG" in front_end["protocol_feature_names"]
