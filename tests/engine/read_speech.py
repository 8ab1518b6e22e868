"""Writes a president's speech to standard output: `python read_speech.py FILE YEAR`. Needs pyarrow in its path."""

import sys

import pyarrow.parquet as parquet

sys.stdout.reconfigure(encoding="utf-8")
table = parquet.read_table(sys.argv[1], columns=["date", "speech_text"])
for date, text in zip(table["date"].to_pylist(), table["speech_text"].to_pylist(), strict=True):
    if str(date).startswith(sys.argv[2]) and text and len(text) > 400:
        sys.stdout.write(text)
        break
