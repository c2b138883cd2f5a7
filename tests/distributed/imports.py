"""What every rank needs; imported once, by the process that ranks are forked from."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import peft  # noqa: F401
import torch.distributed.fsdp  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401
import trl  # noqa: F401

import paca.tuner.model
import paca.workbench.training.text  # noqa: F401
