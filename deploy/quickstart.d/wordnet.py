#!/usr/bin/env python3
"""Turns Debian's wordnet-base data files into chat examples for the quickstart.

    wordnet.py --out DIR [--source DIR] [--budget TOKENS] [--fine-tune-budget TOKENS]

Each meaning becomes one chat of two messages: "Define abacus (noun)." and its gloss without the quoted examples. Only whole
definitions are taken, and of these the ones that fit into TOKENS byte-level tokens, the chat's frame included: short
examples make a short quickstart. A word keeps its first meaning only, so that no question has two answers and the
fine-tuning set can be memorized. The order is fixed by a hash of the question: the same package gives the same files.
"""
import argparse
import hashlib
import json
import os
import sys

KINDS = (("noun", "noun"), ("verb", "verb"), ("adj", "adjective"), ("adv", "adverb"))
FRAME_TOKENS = 20  # <|im_start|>user\n ... <|im_end|>\n<|im_start|>assistant\n ... <|im_end|>\n in the byte-level vocabulary


def definitions(source):
    """Yields (question, gloss) in the order of the files: the first sense of each word and kind."""
    seen = set()
    for suffix, kind in KINDS:
        with open(os.path.join(source, "data." + suffix), encoding="latin-1") as lines:
            for line in lines:
                if line.startswith("  "):  # the licence, at the top of each file
                    continue
                fields, _, gloss = line.partition(" | ")
                # The word follows offset, file number, kind and word count; adjectives may carry "(a)", "(p)" or "(ip)".
                word = fields.split()[4].split("(")[0].replace("_", " ")
                gloss = gloss.split('"')[0].strip().rstrip(";:,").strip()
                question = f"Define {word} ({kind})."
                if gloss and gloss.isascii() and question.isascii() and question not in seen:
                    seen.add(question)
                    yield question, gloss


def tokens(row):
    return FRAME_TOKENS + len(row[0]) + len(row[1])


def chosen(source, budget):
    """Those that fit, in an order that has nothing to do with the alphabet."""
    rows = [row for row in definitions(source) if tokens(row) <= budget]
    rows.sort(key=lambda row: hashlib.sha256(row[0].encode()).digest())
    return rows


def write(path, rows):
    with open(path, "w", encoding="utf-8") as out:
        for question, gloss in rows:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": gloss}]
            out.write(json.dumps({"messages": messages}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--source", default="/usr/share/wordnet", help="folder of data.noun, data.verb, data.adj, data.adv")
    parser.add_argument("--budget", type=int, default=72, help="byte-level tokens a chat may have, its frame included")
    parser.add_argument("--fine-tune-budget", type=int, default=64, help="the same, for those to be learned by heart")
    parser.add_argument("--fine-tune-rows", type=int, default=128)
    parser.add_argument("--held-out-rows", type=int, default=512)
    parser.add_argument("--out", required=True, help="folder for pretrain.jsonl, fine-tune.jsonl, held-out.jsonl")
    options = parser.parse_args()
    try:
        rows = chosen(options.source, options.budget)
    except OSError as error:
        sys.exit(f"wordnet.py: cannot read {error.filename}: {error.strerror}; install the package wordnet-base")
    tuned = [row for row in rows if tokens(row) <= options.fine_tune_budget][:options.fine_tune_rows]
    apart = set(tuned)
    others = [row for row in rows if row not in apart]
    if len(tuned) < options.fine_tune_rows or len(others) < 2 * options.held_out_rows:
        sys.exit(f"wordnet.py: only {len(rows)} definitions fit into {options.budget} tokens: raise the budgets")
    held = options.held_out_rows
    os.makedirs(options.out, exist_ok=True)
    for name, part in (("fine-tune", tuned), ("held-out", others[:held]), ("pretrain", others[held:])):
        write(os.path.join(options.out, name + ".jsonl"), part)
        print(f"{name}: {len(part)} definitions, {sum(map(tokens, part)) / len(part):.1f} tokens each")


if __name__ == "__main__":
    main()
