#!/usr/bin/env bash
# torch 2.13.0 (x86-64 CPU with AVX-512): FlexAttention compiled while ATEN_CPU_CAPABILITY caps torch at AVX2
# is kept in the cache of compiled kernels, whose key leaves the cap out. A later process without the cap takes
# the kernel from the same cache and answers wrongly, without an error or a warning.
#
# Seen (softmax(q·k/4 + bias)·v for 70 tokens, largest error over three processes):
#   compiled for AVX2: right; from its cache, not capped: off by more than 0.1; own cache, not capped: right
set -euo pipefail
grep -qw avx512f /proc/cpuinfo || { echo "needs a CPU with AVX-512"; exit 0; }
command -v g++ > /dev/null || { echo "needs g++, which torch.compile calls"; exit 0; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$work/attend.py" << 'PROBE'
import torch
from torch.nn.attention.flex_attention import flex_attention

torch.manual_seed(0)
torch.set_num_threads(1)
query, key, value = (torch.randn(1, 2, 70, 16) for _ in range(3))
bias = torch.randn(70)
visible = torch.ones(70, dtype=torch.bool)


def biased(score, row, head, at, to):
    return torch.where(visible[to], score + bias[to], -1e9)


expected = torch.softmax(query @ key.mT / 4 + bias, -1) @ value
with torch.no_grad():
    found = torch.compile(flex_attention, dynamic=False)(query, key, value, score_mod=biased)
print("off by more than 0.1" if (found - expected).abs().max() > 0.1 else "right")
PROBE
attend() { TORCHINDUCTOR_CACHE_DIR="$work/$1" "$work/venv/bin/python" -W ignore "$work/attend.py"; }
first=$(ATEN_CPU_CAPABILITY=avx2 attend shared)
second=$(attend shared)
third=$(attend own)
seen="compiled for AVX2: $first; from its cache, not capped: $second; own cache, not capped: $third"
echo "$seen"
expected="compiled for AVX2: right; from its cache, not capped: off by more than 0.1; own cache, not capped: right"
[ "$seen" = "$expected" ] || { echo "this has changed; expected: $expected" >&2; exit 1; }
