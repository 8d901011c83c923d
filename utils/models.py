"""Load the models a profile names: safetensors only, no remote code."""

import json

from utils import assets

# Llama 2's own form of a conversation, for copies of the model that come without it.
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for turn in turns %}{% if turn['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + turn['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + turn['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def load_encoder(profile, num_labels: int = 2, seed: int = 0, frozen: bool = False, **config):
    """(model, tokenizer): the profile's RoBERTa with a new, random classification head of `num_labels` outputs.

    The head is drawn with `seed`, so two calls give equal models. `config` reaches the model's configuration (id2label …).
    frozen: the body will not learn (LoRA, or the head alone), so its gradients are off and, where the profile says so, it is
    lean (`lean`). Leave it out for full fine-tuning, and for merging, which needs the weights in full precision.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source, revision = origin(profile, "encoder")
    torch.manual_seed(seed)
    # The body is loaded in fp32: mixed precision autocasts the work, and the small updates need fp32 to add up in.
    config = dict(dtype=torch.float32, attn_implementation=attention()) | config
    model = AutoModelForSequenceClassification.from_pretrained(
        source, revision=revision, num_labels=num_labels, **config
    )
    if frozen:
        model.base_model.requires_grad_(False)
        lean(model.base_model, profile)
    return model.eval(), AutoTokenizer.from_pretrained(source, revision=revision)


def lean(body, profile):
    """`body`, of which what is frozen is made quick to train on top of: weights in the precision that this hardware computes in,
    and no dropout, whose random numbers cost a quarter of a step. Unchanged where the profile keeps the paper's recipe.

    Only the modules change; the configuration, and so what is saved, keeps the dropout of the pretrained model.
    """
    from torch import nn

    from utils import training

    if not profile.lean_base:
        return body
    for name, module in body.named_modules():
        if isinstance(module, nn.Dropout) and "lora_" not in name:
            module.p = 0.0
    for name, parameter in body.named_parameters():  # one by one: a model in four bits refuses to be cast as a whole
        if parameter.is_floating_point() and not parameter.requires_grad and "lora_" not in name:
            parameter.data = parameter.data.to(training.compute_dtype())
    return body


def attention() -> str:
    """The attention that trains fastest here: on a CPU step by step, for PyTorch's fused one has a slow backward pass there."""
    import torch

    return "sdpa" if torch.cuda.is_available() else "eager"


def load_encoder_in_4_bits(profile, num_labels: int = 2, seed: int = 0, **config):
    """As `load_encoder` frozen, with the linear layers of the blocks in NF4; the new head keeps its precision."""
    config.setdefault("quantization_config", four_bits(skip=["classifier"]))
    model, tokenizer = load_encoder(profile, num_labels, seed, frozen=True, **config)
    return _stay_trainable(model), tokenizer


def load_decoder(profile, **options):
    """(model, tokenizer): the profile's chat Llama; `options` reach `from_pretrained` (dtype, quantization_config …).

    Without options: in the 16 bits that this hardware computes in (`training.compute_dtype`), on the GPU if there is one.
    The tokenizer pads with a token that is not the end of text, so that a model trained on padded batches still learns to stop.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from utils import training

    source, revision = origin(profile, "decoder")
    options = dict(dtype=training.compute_dtype(), attn_implementation=attention()) | options
    if torch.cuda.is_available():
        options.setdefault("device_map", {"": 0})
    model = AutoModelForCausalLM.from_pretrained(source, revision=revision, **options)
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        # get_vocab(), for convert_tokens_to_ids() answers <unk>'s id for a token that is not there
        tokenizer.pad_token = next(token for token in ("<|endoftext|>", "<unk>") if token in tokenizer.get_vocab())
    if not tokenizer.chat_template and model.config.model_type == "llama":
        tokenizer.chat_template = LLAMA2
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    return _stay_trainable(model.eval()), tokenizer


def four_bits(skip: list[str] | None = None):
    """The `quantization_config` of QLoRA: NF4, double quantisation, products in the precision this hardware is fast in.

    skip: modules to leave alone (a new head); None: the output embeddings. RuntimeError where bitsandbytes cannot run.
    """
    from transformers import BitsAndBytesConfig

    from utils import training

    try:
        import bitsandbytes  # noqa: F401
    except Exception as error:
        raise RuntimeError(
            f"Four-bit weights need bitsandbytes, which does not load on this platform ({type(error).__name__}: {error}). "
            "Run `pip install bitsandbytes`, or leave quantization_config out and train LoRA on the 16-bit model."
        ) from None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=training.compute_dtype(),
        llm_int8_skip_modules=skip,
    )


def _stay_trainable(model):
    """`model`, its 4-bit layers kept from repacking their weights at the first forward pass in eval mode.

    bitsandbytes repacks on CPUs with AVX512-BF16. The packed path is quicker and has no gradient: training after an evaluation
    would fail or learn nothing.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def stored_bytes(parameter) -> int:
    """Bytes that a parameter takes, the constants of a 4-bit weight included (the table of levels, the same for all, left out)."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return parameter.nbytes
    constants = [state.absmax] + ([state.state2.absmax, state.offset] if state.nested else [])
    return parameter.nbytes + sum(tensor.nbytes for tensor in constants)


def base_sha256(base: str) -> str | None:
    """The hash of a local base's weights; None for a hub id, whose revision identifies it."""
    if base not in assets.ASSETS:
        return None
    return json.loads((assets.path(base) / "manifest.json").read_text())["files"]["model.safetensors"]["sha256"]


def base_revision(base: str) -> str | None:
    """The revision at which the profiles load a hub's model; None for a local base, whose hash identifies it."""
    from utils.profiles import PROFILES

    pinned = [(p.encoder, p.encoder_revision) for p in PROFILES.values()]
    return dict(pinned + [(p.decoder, p.decoder_revision) for p in PROFILES.values()]).get(base)


def origin(profile, kind: str):
    """(folder or hub id, revision) of the profile's encoder or decoder; OSError if a hub's model cannot be had.

    A profile that asks no hub takes a hub's model from the cache, by its folder: nothing then has a name to ask for.
    """
    name, revision = getattr(profile, kind), getattr(profile, f"{kind}_revision")
    if name in assets.ASSETS:
        return assets.path(name), None
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if profile.offline:
            return snapshot_download(name, revision=revision, local_files_only=True), None
        hf_hub_download(name, "config.json", revision=revision)
    except Exception as error:  # transformers' own message does not even name the model
        raise OSError(
            f"Profile {profile.name!r} needs {name} (revision {revision}), which is not in the cache and could not be fetched "
            f"({type(error).__name__}). Connect to the internet and try again, or set COURSE_PROFILE=cpu, which asks no hub."
            if not profile.offline
            else f"{name} (revision {revision}) is not in the cache, and profile {profile.name!r} asks no hub for it. "
            "Set COURSE_PROFILE=gpu, which does, or choose a model that is here."
        ) from error
    return name, revision
