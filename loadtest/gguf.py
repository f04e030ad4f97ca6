"""Run llama.cpp's own converter on a checkpoint of `octavo bench make-model`.

    python -m octavo.loadtest.gguf LLAMA_CPP_SOURCE CHECKPOINT OUT.gguf [--outtype bf16]

The converter knows a pre-tokenizer by a hash of what the whole tokenizer makes of one text, so it
refuses every new vocabulary. Ours splits text as GPT-2's does: it is told so, nothing else differs.
Needs torch, transformers, numpy and pyyaml, as the converter does.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str]) -> int:
    if len(words) < 3:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    source, checkpoint, out, *flags = words
    script = Path(source) / "convert_hf_to_gguf.py"
    if not script.is_file():
        sys.stderr.write(f"octavo bench: {script} is not there; name llama.cpp's source folder\n")
        return 2
    sys.path[:0] = [str(script.parent), str(script.parent / "gguf-py")]
    text_model = importlib.import_module("conversion.base").TextModel
    text_model.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    sys.argv = [str(script), str(checkpoint), "--outfile", str(out), *(flags or _PRECISION)]
    runpy.run_path(str(script), run_name="__main__")
    return 0


_PRECISION = ("--outtype", "bf16")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
