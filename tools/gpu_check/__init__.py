"""What a GPU host is asked in one command: `make gpu-check`, or `python -m tools.gpu_check`.

Four blocks, each in a process of its own that stands or falls alone: `kernels` (every kernel
against float64, and how fast), `steps` (tiny models against the CPU, graphs, overlap, crowds; step
times of large ones), `bench` (offline throughput, Hugging Face's generation beside it) and `server`
(rates over HTTP). Figures go to JSON as they come, with the share of what this machine was measured
to be capable of; at the end stands the table of goals.

None of this has run on a GPU yet: without one each block says so, and `--device cpu` runs the same
code with tiny models and Triton's interpreter, to see that it does not fall over.
"""
