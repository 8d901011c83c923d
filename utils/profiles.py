"""What runs where: one table holds every choice that differs between a test, a laptop and a GPU."""

import logging
import os
import random
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

from utils import named_folder


@dataclass(frozen=True)
class Profile:
    """One row of the table. Rows are counts of examples; `None` means all there are."""

    name: str
    summary: str
    offline: bool  # never ask a model hub
    encoder: str  # an asset of `assets.py`, or a hub id
    encoder_revision: str | None
    decoder: str
    decoder_revision: str | None
    lean_base: bool  # a frozen base in the precision of products, without dropout; the paper's recipe has neither
    sentiment: str  # "movies" (local) or "sst2" (hub)
    train_rows: int | None
    eval_rows: int | None
    epochs: int
    batch_size: int
    max_length: int  # tokens
    learning_rate: float  # LoRA's; tuned in benchmarks/sentiment.py
    instructions: str  # "faq" (ours) or "guanaco" (hub)
    instruction_rows: tuple[int | None, int | None]  # train, validation and test
    instruction_epochs: float
    instruction_batch: int
    instruction_length: int  # tokens
    instruction_rate: float  # QLoRA's learning rate
    answer_tokens: int  # the longest answer that is generated
    record_rows: tuple[int | None, int | None]  # of lesson 06's texts: train, validation and test
    record_rate: float  # their learning rate; tuned in benchmarks/triage.py

    @property
    def build(self) -> Path:
        """Where a lesson may write; `build/` is ignored by git, COURSE_BUILD moves it."""
        return named_folder("COURSE_BUILD", "build")


_LOCAL = dict(
    offline=True,
    encoder="minilm-roberta",
    encoder_revision=None,
    decoder="smollm2-llama",
    decoder_revision=None,
    lean_base=True,
    sentiment="movies",
    batch_size=32,
    max_length=128,
    learning_rate=2e-3,
    instructions="faq",
    instruction_batch=8,
    instruction_length=256,
    instruction_rate=1e-3,
    record_rate=2e-3,
)

PROFILES = {
    p.name: p
    for p in (
        Profile(
            name="smoke",
            summary="slices of the real data, real pretrained weights, for the tests",
            train_rows=256,
            eval_rows=256,
            epochs=1,
            instruction_rows=(16, 6),
            answer_tokens=24,
            instruction_epochs=1,
            record_rows=(32, 16),
            **_LOCAL,
        ),
        Profile(
            name="cpu",
            summary="real pretrained weights and real sentences on this machine, no model hub",
            train_rows=None,
            eval_rows=None,
            epochs=3,
            instruction_rows=(240, None),
            answer_tokens=80,
            instruction_epochs=1,
            record_rows=(480, None),
            **_LOCAL,
        ),
        Profile(
            name="gpu",
            summary="RoBERTa-base, Llama-2-7B and SST-2 from the hub, for a GPU",
            offline=False,
            encoder="FacebookAI/roberta-base",
            encoder_revision="e2da8e2f811d1448a5b465c236feacd80ffbac7b",
            decoder="NousResearch/Llama-2-7b-chat-hf",
            decoder_revision="351844e75ed0bcbbe3f10671b3c808d2b83894ee",
            lean_base=False,
            sentiment="sst2",
            train_rows=None,
            eval_rows=None,
            epochs=3,
            batch_size=32,
            max_length=512,
            learning_rate=5e-4,
            instructions="guanaco",
            instruction_rows=(None, 64),
            answer_tokens=200,
            instruction_epochs=1,
            instruction_batch=4,
            instruction_length=512,
            instruction_rate=2e-4,
            record_rows=(640, None),
            record_rate=2e-4,
        ),
    )
}


def get(name: str | None = None) -> Profile:
    """The profile called `name`, or the one COURSE_PROFILE names, or `cpu`. ValueError if there is none such."""
    name = name or os.environ.get("COURSE_PROFILE") or "cpu"
    if name not in PROFILES:
        raise ValueError(
            f"There is no profile {name!r}; the course has {', '.join(PROFILES)}. "
            "Set COURSE_PROFILE to one of these, or leave it unset for 'cpu'."
        )
    return PROFILES[name]


# How long a thread that has nothing to do spins before it sleeps. At a barrier it waits for its partner; when another program
# has the partner's core, spinning takes the processor from whom it waits for: a step of lesson 04 then takes many times as long
# (benchmarks/busy.py). A thousand turns are some microseconds, long enough for the next small product on a quiet machine.
# GOMP_: GNU's runtime, which PyTorch brings on Linux. KMP_: LLVM's on macOS and Intel's on Windows, in milliseconds; not tried
# here, after their documentation (the default is 200).
WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}


def wait_in_passing() -> bool:
    """Let OpenMP's threads sleep soon when they wait; False if torch is loaded already, which reads this only once.

    If the environment says anything about waiting, it is left as it is.
    """
    if any(name in os.environ for name in (*WAITING, "OMP_WAIT_POLICY")):
        return True
    os.environ.update(WAITING)
    return "torch" not in sys.modules


def apply(profile: Profile, seed: int = 0) -> None:
    """Set what a profile needs in this process: offline switches, seeds, and known harmless noise silenced."""
    if profile.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns after every fork otherwise
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice on every load; errors still show
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Harmless, and not ours to mend: PEFT reads an attribute that transformers renamed; bitsandbytes looks for a kernel on a hub,
    # and says of each layer in eight bits that it computes in fp16.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    for place in ("backends.cpu.ops", "autograd._functions"):
        logging.getLogger(f"bitsandbytes.{place}").setLevel(logging.ERROR)
    random.seed(seed)
