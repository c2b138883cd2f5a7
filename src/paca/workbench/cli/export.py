"""`paca export ADAPTER --to FORMAT`: an adapter as what other programs read."""

import argparse

from paca.workbench.cli.verb import Verb

FORMATS = ("merged", "lora", "peft")

EXAMPLE = """\
formats:
  merged   an ordinary model folder: sharded safetensors, tokenizer, generation config
  lora     the exact LoRA of rank r (A selects columns, B holds their updates), for vLLM and other LoRA servers;
           linear layers only, and r at most what the server allows (vLLM: --max-lora-rank)
  peft     the format of PEFT 0.22's own PaCA; nn.Linear only, one rank for all layers

The artefact is loaded again and compared with the adapted model before it gets its name; certificate.json in it says
what was compared. Where something differs, nothing is left and the exit status is 2.

example:
  $ paca export outputs/smollm2-python-reference --to lora
  $ paca export outputs/smollm2-python-reference --to merged --max-shard-size 200MB --output served
  verified: logits differ by … of their spread (rounding explains …; the adapter moved them by …); equal: tensors, …
  merged: served (… files, … MB, and certificate.json)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `paca export` takes."""
    parser.usage = f"%(prog)s ADAPTER --to {'|'.join(FORMATS)} [OPTION ...]"
    parser.add_argument("adapter", metavar="ADAPTER", help="a run's output folder, or an adapter's folder")
    parser.add_argument("--to", required=True, choices=FORMATS, metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--output", metavar="DIR", help="where it goes; beside the adapter when omitted")
    parser.add_argument("--dtype", metavar="NAME", help="hold the base model in it; as in the run when omitted")
    parser.add_argument("--max-shard-size", metavar="SIZE", default="5GB", help="of a merged model's files (5GB)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")


def run(arguments: argparse.Namespace) -> int:
    """Export, and print what was verified and where it lies."""
    from paca.workbench.base.progress import quiet_libraries
    from paca.workbench.export.verified import CERTIFICATE, export

    with quiet_libraries():
        done = export(
            arguments.adapter,
            arguments.to,
            arguments.output,
            arguments.dtype,
            arguments.max_shard_size,
            arguments.overwrite,
        )
    logits = next(check for check in done["checks"] if check["name"] == "logits")
    others = [check["name"].replace("_", " ") for check in done["checks"] if check["name"] != "logits"]
    explained, effect = logits["expected"], done["effect_of_the_adapter"]
    print(
        f"verified: logits differ by {logits['found']:.2g} of their spread (rounding explains {explained:.2g}; "
        f"the adapter moved them by {effect:.2g})" + (f"; equal: {', '.join(others)}" if others else "")
    )
    size = sum(done["files"].values()) / 1e6
    print(f"{arguments.to}: {done['folder']} ({len(done['files'])} files, {size:,.1f} MB, and {CERTIFICATE})")
    return 0


VERB = Verb(
    "export", "Write an adapter as a merged model, a LoRA, or PEFT's own PaCA, verified.", EXAMPLE, add_arguments, run
)
