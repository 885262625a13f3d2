# blkd: every task of a developer or a user, as a visible command.
# `make demo` and `make test` set everything up on Debian 12 or 13 and may be run again at any time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Both that are supported: this one, and the other in a directory of its own.
DEBIAN := $(shell . /etc/os-release && echo $$VERSION_CODENAME)
OTHER_DEBIAN := $(if $(filter bookworm,$(DEBIAN)),trixie,bookworm)
OTHER_ROOT := build/debian/$(OTHER_DEBIAN)
OTHER_VENV := build/venv/$(OTHER_DEBIAN)
IN_OTHER_DEBIAN := tests/other-debian run $(OTHER_ROOT)
GUEST := build/guest/$(DEBIAN)
WHEELS := build/wheels/$(DEBIAN)

# All that is taken from Debian, besides make: to build, to run guests, to test.
BUILD_PACKAGES := gcc libc6-dev liburing-dev python3-dev python3-venv
GUEST_PACKAGES := qemu-system-x86 qemu-utils fio busybox-static cpio kmod
# qemu-storage-daemon is in qemu-system-common on Debian 12, and in qemu-utils from Debian 13 on.
TEST_PACKAGES := bpftrace btrfs-progs e2fsprogs fdisk iperf3 iproute2 procps prometheus qemu-system-common socat strace util-linux util-linux-extra valgrind xfsprogs
# Only in this Debian: the page is the same in both, and they are some 400 MB.
BROWSER_PACKAGES := chromium chromium-driver
OTHER_DEBIAN_PACKAGES := debootstrap util-linux
INSIDE_OTHER_DEBIAN := make $(BUILD_PACKAGES) $(GUEST_PACKAGES) $(TEST_PACKAGES)
BENCH_PACKAGES := git
# Besides BUILD_PACKAGES, to unpack and build the kernel's vsock tests.
SUITE_PACKAGES := xz-utils
# Unpacked under build/, never installed: the kernel that guests boot.
KERNEL_PACKAGE := linux-image-cloud-amd64

SOURCES := $(wildcard src/* src/*/*) setup.py pyproject.toml
PYTHON_FILES := blkd compare demo drills harness suites tests setup.py

RESULTS := compare/results
# The page of the quick run is not the one that is kept.
QUICK_PAGE := build/bench/benchmarks.md

# Of pytest: what to run, here and in the other Debian; there all but what needs two of them, and
# what takes long and goes the same way with any Python, liburing, QEMU and kernel.
TESTS := tests
SAME_IN_BOTH := bench bench_hostile bench_reconnect comparison cost dashboard_page failing_image faulty hostile_guest hung idle \
	inflight limits_at_rest lock_in_migration memory_slots polling registered_memory repeated_steps shrinking_memory storage \
	upgrade_failures vsock_hostile
OTHER_TESTS := tests --ignore=tests/drills --ignore=tests/guest/test_two_debians.py \
	--ignore=tests/ring/test_inflight_every_store.py $(SAME_IN_BOTH:%=--ignore=tests/system/test_%.py)

.PHONY: demo screens wheel wheel-other test test-here test-other check build sanitize drills bench bench-quick bench-guest profile vsock-test vsock-test-other clean

demo: build $(GUEST)/kernel/version packages-guest
	$(BIN)/python -m demo.run

# Pictures of blkd top and of the dashboard, for docs/images.
screens: $(VENV)/tested packages-browser
	$(BIN)/python -m demo.screens

# In this Debian, and in the other one with its Python, liburing, QEMU and kernel.
test: other-debian
	$(MAKE) test-here
	$(MAKE) test-other

test-here: build $(VENV)/tested $(VENV)/packaged $(GUEST)/kernel/version packages-guest packages-test packages-browser
	$(BIN)/pytest $(TESTS) -m "not alone" -n 2
	$(BIN)/pytest $(TESTS) -m alone

test-other: other-debian
	$(IN_OTHER_DEBIAN) $(MAKE) VENV=$(OTHER_VENV) TESTS="$(OTHER_TESTS)" BROWSER_PACKAGES= test-here

check: $(VENV)/checked
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	PATH="$(abspath $(BIN)):$$PATH" cython-lint --max-line-length 100 src
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell $$(git ls-files)

build: $(VENV)/built

# The data path under AddressSanitizer and UBSan, driven by the ring and system tests.
sanitize: $(VENV)/tested packages-test
	tests/sanitize

# What goes wrong in practice, made to go wrong again and again; hours. Writes docs/reliability.md.
drills: $(VENV)/tested $(GUEST)/kernel/version packages-guest packages-test
	$(BIN)/python -m drills.run
	$(BIN)/python -m drills.report

# The kernel's own vsock tests between two guests; its source is fetched, some 150 MB.
vsock-test: build $(VENV)/tested $(GUEST)/vsock-tests/version packages-guest
	$(BIN)/python -m suites.vsock
	$(BIN)/python -m suites.vsock --packed

# Likewise with the kernel of the other Debian, under its QEMU.
vsock-test-other: other-debian
	$(IN_OTHER_DEBIAN) $(MAKE) VENV=$(OTHER_VENV) vsock-test

# What pip installs without a compiler, with liburing in it; and its source.
wheel: $(VENV)/packaged
	rm -rf $(WHEELS)
	$(BIN)/python -m build --no-isolation --outdir $(WHEELS)/source
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --strip --wheel-dir $(WHEELS) $(WHEELS)/source/*.whl
	rm $(WHEELS)/source/*.whl

# Likewise for the Python of the other Debian.
wheel-other: other-debian
	$(IN_OTHER_DEBIAN) $(MAKE) VENV=$(OTHER_VENV) wheel

# Side by side with others, about 20 minutes; writes docs/benchmarks.md.
bench: bench-ready
	$(BIN)/python -m compare.run --plan full
	$(BIN)/python -m compare.report $(RESULTS)/full.json

# Some of it in five minutes; leaves the page as it is.
bench-quick: bench-ready
	$(BIN)/python -m compare.run --plan quick
	$(BIN)/python -m compare.report $(RESULTS)/quick.json --output $(QUICK_PAGE)

# One part anew, the rest of the page as it was measured before.
bench-guest: bench-ready
	$(BIN)/python -m compare.run --plan full --part guest --add
	$(BIN)/python -m compare.report $(RESULTS)/full.json

# Where a request's instructions go.
profile: bench-ready
	$(BIN)/python -m compare.profile

.PHONY: bench-ready
bench-ready: build $(VENV)/benched packages-bench packages-guest packages-test $(GUEST)/kernel/version

clean:
	rm -rf build dist *.egg-info $(VENV) blkd/*.so blkd/*/*.so

$(VENV)/made: | packages-build
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	touch $@

# --no-build-isolation builds with the environment's own Cython, and the result stays in place.
$(VENV)/built: $(VENV)/made $(SOURCES)
	$(BIN)/pip install --quiet --group build
	BLKD_PROBES=1 $(BIN)/pip install --quiet --no-build-isolation --editable .
	touch $@

$(VENV)/tested: $(VENV)/built
	$(BIN)/pip install --quiet --group test
	touch $@

$(VENV)/benched: $(VENV)/built
	$(BIN)/pip install --quiet --group bench
	touch $@

$(VENV)/packaged: $(VENV)/made
	$(BIN)/pip install --quiet --group build --group wheel
	touch $@

$(VENV)/checked: $(VENV)/tested
	$(BIN)/pip install --quiet --group check
	touch $@

$(GUEST)/kernel/version: harness/fetch_kernel.sh | packages-guest
	harness/fetch_kernel.sh $(KERNEL_PACKAGE) $(GUEST)/kernel

$(GUEST)/vsock-tests/version: suites/fetch_vsock.sh $(GUEST)/kernel/version | packages-build packages-suite
	suites/fetch_vsock.sh $(GUEST)/kernel $(GUEST)/vsock-tests

# A minute, once.
.PHONY: other-debian
other-debian: packages-other-debian
	tests/other-debian make $(OTHER_DEBIAN) $(OTHER_ROOT) $(INSIDE_OTHER_DEBIAN)

.PHONY: packages-build packages-guest packages-test packages-browser packages-bench packages-suite packages-other-debian
packages-build:
	@packaging/install-packages $(BUILD_PACKAGES)
packages-guest:
	@packaging/install-packages $(GUEST_PACKAGES)
packages-test:
	@packaging/install-packages $(TEST_PACKAGES)
packages-browser:
	@packaging/install-packages $(BROWSER_PACKAGES)
packages-bench:
	@packaging/install-packages $(BENCH_PACKAGES)
packages-suite:
	@packaging/install-packages $(SUITE_PACKAGES)
packages-other-debian:
	@packaging/install-packages $(OTHER_DEBIAN_PACKAGES)
