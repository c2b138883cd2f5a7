"""What `paca eval` measures: lm-evaluation-harness's tasks, MMLU from local files, perplexity, MT-Bench."""
