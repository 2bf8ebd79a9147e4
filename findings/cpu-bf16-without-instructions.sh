#!/usr/bin/env bash
# torch 2.13.0 (x86-64 CPU): where the CPU has no bfloat16 or AVX-512 instructions, bfloat16 products still
# run, 10 to 100 times slower than float32 ones, and nothing warns. torch.autocast("cpu") takes bfloat16
# without a word, too. The only sign is a private flag. float16 is as slow, also on CPUs with AVX-512.
#
# Such a CPU is simulated by capping the instructions that torch and oneDNN may use at AVX2.
# Seen on an AVX-512 machine, capped (one thread, product of 256 × 256 × 256):
#   flag False, warnings 0, autocast dtype torch.bfloat16, bfloat16 takes more than 5 times as long
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$work/probe.py" << 'PROBE'
import time
import warnings

import torch

torch.set_num_threads(1)


def seconds(dtype):
    left, right = (torch.ones(256, 256, dtype=dtype) for _ in range(2))
    left @ right
    best = float("inf")
    for _ in range(5):
        start = time.thread_time()
        left @ right
        best = min(best, time.thread_time() - start)
    return best


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    ratio = seconds(torch.bfloat16) / seconds(torch.float32)
    with torch.autocast("cpu"):
        dtype = (torch.ones(8, 8) @ torch.ones(8, 8)).dtype
flag = torch.ops.mkldnn._is_mkldnn_bf16_supported()
slow = "more" if ratio > 5 else "not more"
print(
    f"flag {flag}, warnings {len(caught)}, autocast dtype {dtype}, "
    f"bfloat16 takes {slow} than 5 times as long"
)
PROBE
seen=$(ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 "$work/venv/bin/python" "$work/probe.py")
echo "$seen"
expected="flag False, warnings 0, autocast dtype torch.bfloat16, bfloat16 takes more than 5 times as long"
[ "$seen" = "$expected" ] || { echo "this has changed; expected: $expected" >&2; exit 1; }
