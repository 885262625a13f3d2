# SPDX-License-Identifier: Apache-2.0
from collections import Counter

from compare.callgrind import Place, own_costs
from compare.counters import counted
from compare.generated import Definitions, plain_name
from compare.profile import by_function

WRITTEN = """\
# callgrind format
events: Ir
fl=(1) /build/ring.c
fn=(1) serve
10 5
+2 7
fi=(2) /usr/include/atomic.h
90 3
fe=(1)
* 1
cfi=(3) /lib/uring.c
cfn=(2) submit
calls=4 100
12 4000
+1 2

fl=(3)
fn=(2)
100 40
"""

SOURCE = """\
static int __pyx_f_5virtq_walk_chain(struct Virtq const *); /* proto */
static CYTHON_INLINE int __pyx_f_5virtq_walk_chain(struct Virtq const *__pyx_v_vq) {
  one();
}
static void __pyx_f_4blkd_4ring_serve(struct Worker *__pyx_v_w) {
  __pyx_f_5virtq_walk_chain(__pyx_v_vq);
}
static PyObject *__pyx_pw_4blkd_4ring_run(PyObject *__pyx_v_self) {
  two();
}
"""


def test_each_line_s_own_costs_are_counted_without_those_of_calls():
    costs = own_costs(WRITTEN.splitlines())
    assert costs[Place("/build/ring.c", "serve", 10)] == 5
    assert costs[Place("/build/ring.c", "serve", 12)] == 7
    assert costs[Place("/build/ring.c", "serve", 13)] == 2
    assert costs[Place("/lib/uring.c", "submit", 100)] == 40
    assert costs.total() == 5 + 7 + 3 + 1 + 2 + 40


def test_inlined_code_of_another_file_is_distinguished():
    costs = own_costs(WRITTEN.splitlines())
    assert costs[Place("/usr/include/atomic.h", "serve", 90)] == 3
    assert costs[Place("/build/ring.c", "serve", 90)] == 1


def test_a_mangled_name_is_made_plain():
    assert plain_name("__pyx_f_5virtq_walk_chain") == "virtq.walk_chain"
    assert plain_name("io_uring_submit") == "io_uring_submit"
    assert plain_name("__pyx_f_4blkd_4ring_serve_rings") == "ring.serve_rings"


def test_a_line_of_c_belongs_to_the_function_that_it_stands_in():
    found = Definitions.of(SOURCE)
    assert [found.owner(line) for line in (1, 2, 3, 5, 6, 9)] == [
        *(None, "virtq.walk_chain", "virtq.walk_chain", "ring.serve", "ring.serve", None)
    ]


def test_what_the_compiler_inlined_is_counted_for_its_own_function():
    costs = Counter(
        {
            Place("ring.c", "__pyx_f_4blkd_4ring_serve", 3): 300,
            Place("ring.c", "__pyx_f_4blkd_4ring_serve", 6): 100,
            Place("uring.c", "io_uring_submit", 9): 50,
        }
    )
    assert by_function(costs, 100, {"ring.c": Definitions.of(SOURCE)}) == [
        *(("virtq.walk_chain", 3.0), ("ring.serve", 1.0), ("io_uring_submit", 0.5))
    ]


def test_what_stands_between_functions_belongs_to_none():
    source = SOURCE + "static int __Pyx_Many(\n    int one,\n    int two)\n{\n  three();\n}\n"
    assert Definitions.of(source).owner(source.count("\n") - 1) is None


def test_cycles_are_read_where_the_machine_counts_them():
    assert counted("1234567,,cycles:u,2000000,100.00,,\n") == 1234567
    assert counted("<not supported>,,cycles:u,0,100.00,,\n") is None
    assert counted("") is None
