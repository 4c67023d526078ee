"""The published project's analysis of a Qwen2 model on MMLU, with its options; see `loki analyse`.

Example:
    accelerate launch --mixed_precision bf16 analyse_mmlu_qwen2.py --model_path MODEL --output_dir DIR
"""

from loki.cli.published import run_published_script

if __name__ == "__main__":
    run_published_script()
