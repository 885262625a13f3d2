# SPDX-License-Identifier: Apache-2.0
import json
import subprocess

from tests.daemon import Daemon, image, run


def test_qemu_takes_the_recipe_as_printed(tmp_path):
    with Daemon(image(tmp_path / "demo.img"), tmp_path) as daemon:
        daemon.ready()
        told = run("connect", "--vmm", "qemu", "--socket", daemon.socket, "--json")
        recipe = json.loads(told.stdout)["text"].replace("accel=kvm", "accel=tcg")
        command = ["sh", "-c", f"exec {recipe} -nodefaults -display none -qmp stdio -S"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as qemu:
            assert "QMP" in json.loads(qemu.stdout.readline())  # all devices are there
            front_end = daemon.call("show")["front_end"]
            qemu.kill()
    assert "CONFIG" in front_end["protocol_feature_names"]
