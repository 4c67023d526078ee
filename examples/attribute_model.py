"""Attributes the predictions of a model in hand to the rows of every layer's down_proj, and shows which matter most.

On the tiny world, after `loki demo --output runs/demo`:

    python examples/attribute_model.py
    python examples/attribute_model.py --model MODEL "The capital of France is" "Water boils at"
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import loki

TEXTS = ["14 plus 9 mod 31 is", "5 minus 12 mod 31 is", "larger of 41 and 17 is", "sort d a c b :"]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("texts", nargs="*", default=TEXTS, help="texts whose next token is attributed")
parser.add_argument("--model", default="runs/demo/base")
parser.add_argument("--rows", type=int, default=5, help="how many rows to show of each layer")
args = parser.parse_args()

model = AutoModelForCausalLM.from_pretrained(args.model)
tokenizer = AutoTokenizer.from_pretrained(args.model)

found = loki.attribute(model, args.texts, tokenizer=tokenizer, definition="paper")
for text, attribution in zip(args.texts, found, strict=True):
    print(f"{text} {tokenizer.decode(attribution.target)}   (probability {attribution.probability:.3f})")

# [layers, rows]: how much each row matters, whether it speaks for the prediction or against it.
importance = torch.stack([attribution.scores.abs() for attribution in found]).mean(dim=0)
share = importance.sum(dim=1) / importance.sum()
top = importance.topk(args.rows, dim=1)
print("\nlayer  share  rows that matter most (mean absolute score)")
for layer, (rows, scores) in enumerate(zip(top.indices.tolist(), top.values.tolist(), strict=True)):
    listed = ", ".join(f"{row} ({score:.4f})" for row, score in zip(rows, scores, strict=True))
    print(f"{layer:>5}  {share[layer]:>5.1%}  {listed}")
