"""For every exercise: answers that its check must reject (two or more, besides the stub), and other answers that it must accept.

tests/exercised.py puts each in place of the stub and runs the check.
"""

LABELS_FOR = "def labels_for(prompt_ids, answer_ids, length, pad_id):\n"
TODAY = """today = dict(evaluation_strategy="eval_strategy", max_seq_length="max_length", warmup_ratio="warmup_steps")
today["group_by_length"] = "train_sampling_strategy"
"""
# The recipe of lesson A without its faults, written with less than the solution; each wrong answer keeps or makes one fault.
RECIPE = """class LoraLinear(nn.Module):
    def __init__(self, in_features, out_features, r, alpha):
        super().__init__()
        self.base = nn.Linear(in_features, out_features)
        self.lora_A = nn.Parameter(torch.randn(r, in_features))
        self.lora_B = nn.Parameter(torch.zeros(out_features, r))
        self.scaling = alpha / r

    def forward(self, x):
        return self.base(x) + self.scaling * (x @ self.lora_A.T @ self.lora_B.T)


def add_lora(model, r, alpha):
    for block in model.roberta.encoder.layer:
        for which in ("query", "value"):
            linear = getattr(block.attention.self, which)
            wrapped = LoraLinear(linear.in_features, linear.out_features, r, alpha)
            wrapped.base = linear
            setattr(block.attention.self, which, wrapped)
    for name, p in model.named_parameters():
        p.requires_grad = "lora_" in name or "classifier" in name
"""

ANSWERS = {
    "00_start_here": {
        "ex1": dict(
            wrong=[
                "with_copies, with_adapters = 140, 0.2",
                "with_copies, with_adapters = 14, 14.2",
                "with_copies = '140'",
            ],
            right=["with_copies, with_adapters = 140.0, 14.2"],
        ),
    },
    "01_low_rank_maths": {
        "ex1": dict(
            wrong=[
                "rank_P, rank_Q, rank_P_plus_P = 3, 1, 6",
                "rank_P, rank_Q, rank_P_plus_P = 50, 1, 50",
                "rank_P, rank_Q, rank_P_plus_P = 3, 10, 3",
            ],
            right=["rank_P, rank_Q, rank_P_plus_P = 3.0, 1.0, 3.0"],
        ),
        "ex2": dict(
            wrong=["smallest_rank = 100", "smallest_rank = 5", "smallest_rank = len(s)"],
            right=["smallest_rank = 1 + max(r for r in range(1, 300) if lowrank.tail_error(s, r) > 0.10)"],
        ),
        "ex3": dict(
            wrong=[
                "def train_from_zero(target, steps):\n    return train(target, r=2, steps=steps)[0]",
                "def train_from_zero(target, steps):\n    return [0.0] * steps",
                "def train_from_zero(target, steps):\n    return [0.5] * (steps + 1)",
            ],
            right=["def train_from_zero(target, steps):\n    return np.full(steps, 0.5 * (target**2).sum())"],
        ),
        "ex4": dict(
            wrong=["lora_numbers = 147_456", "lora_numbers = 12 * 2 * 768 * 768", "lora_numbers = 300_000"],
            right=["lora_numbers = 24 * 8 * 1536"],
        ),
    },
    "02_lora_layer": {
        "ex1": dict(
            wrong=[
                "moves_first, steps_until_both = 'lora_A', 1",
                "moves_first, steps_until_both = 'lora_B', 0",
                "moves_first, steps_until_both = 'B', 1",
            ],
            right=["moves_first, steps_until_both = 'lora_B', 1.0"],
        ),
        "ex2": dict(
            wrong=["alpha_plain, alpha_rs = 16, 16", "alpha_plain, alpha_rs = 64, 64", "alpha_plain, alpha_rs = 4, 32"],
            right=["alpha_plain, alpha_rs = 16 / 8 * 32, 16 / 8**0.5 * 32**0.5"],
        ),
        "ex3": dict(
            wrong=[
                "plain = copy.deepcopy(reader)",
                "plain = copy.deepcopy(adapted['LoRA'])\nfor _, layer in lora.layers(plain):\n    layer.merge()",
                "plain = copy.deepcopy(adapted['full'])",
            ],
            right=[
                "other = copy.deepcopy(adapted['LoRA'])\n"
                "plain = nn.Sequential(*(m.to_linear() if isinstance(m, lora.LoRALinear) else m for m in other))"
            ],
        ),
        "ex4": dict(
            wrong=[
                "def trustworthy(layer):\n    return not layer.lora_B.any().item()",
                "def trustworthy(layer):\n    return not layer.base_layer.weight.requires_grad",
                "def trustworthy(layer):\n    return False",
                "def trustworthy(layer):\n    x = torch.randn(2, 16)\n    return torch.equal(layer(x), layer.base_layer(x))",
            ],
            right=[
                "def trustworthy(layer):\n"
                "    frozen = {n for n, p in layer.named_parameters() if not p.requires_grad}\n"
                "    zero = {n for n, p in layer.named_parameters() if not p.any()}\n"
                "    return 'base_layer.weight' in frozen and 'lora_B' in zero and 'lora_A' not in zero"
            ],
        ),
    },
    "04_roberta_sst2": {
        "ex1": dict(
            wrong=[
                "lora_only, with_head = 147_456, 739_586",
                "lora_only, with_head = 294_912, 592_130",
                "lora_only, with_head = 300_000, 892_130",
            ],
            right=["lora_only, with_head = 294912.0, 887042.0"],
        ),
        "ex2": dict(
            wrong=[
                "def report(runs):\n    return max(run['test'] for run in runs)",
                "def report(runs):\n    return max(run['validation'] for run in runs)",
                "def report(runs):\n    return runs[1]['test']",
            ],
            right=["def report(runs):\n    return sorted((r['validation'], r['test']) for r in runs)[-1][1]"],
        ),
        "ex3": dict(
            wrong=[
                "targets, rank = ['query', 'value'], 10",
                "targets, rank = ['query', 'key', 'value', 'intermediate.dense'], 8",
                "targets, rank = ['query', 'key', 'value', 'attention.output.dense'], 1",
                "targets, rank = ['q_proj', 'k_proj', 'v_proj', 'o_proj'], 5",
            ],
            right=["targets, rank = ['query', 'key', 'value', 'attention.output.dense', 'intermediate.dense'], 3"],
        ),
        "ex4": dict(
            wrong=[
                "def judge(text, doubt=0.6):\n"
                "    p = training.predict(model, tokenizer, [text])[0]\n"
                "    return data.LABELS[p.argmin()], float(p.max())",
                "def judge(text, doubt=0.6):\n"
                "    p = training.predict(model, tokenizer, [text])[0]\n"
                "    return data.LABELS[p.argmax()], float(p.max())",
                "def judge(text, doubt=0.6):\n"
                "    p = training.predict(model, tokenizer, [text])[0]\n"
                "    return (int(p.argmax()) if p.max() >= doubt else 'undecided'), float(p.max())",
            ],
            right=[
                "def judge(text, doubt=0.6):\n"
                "    negative, positive = training.predict(model, tokenizer, [text])[0]\n"
                "    word, p = ('positive', positive) if positive > negative else ('negative', negative)\n"
                "    return ('undecided' if p < doubt else word), p"
            ],
        ),
    },
    "03_roberta_by_hand": {
        "ex1": dict(
            wrong=[
                "wanted = [n for n, m in fresh.named_modules() if isinstance(m, nn.Linear)]",
                "wanted = [n for n, m in fresh.named_modules() if isinstance(m, nn.Linear) and n.endswith('dense')]",
                "wanted = [n for n, m in fresh.named_modules() if n.endswith(('query', 'value'))]",
                "wanted = [n for n, m in fresh.named_modules() if '.layer.' in n]",
                "wanted = [n for n, m in fresh.named_modules() if isinstance(m, nn.Linear) and '.layer.' in n] * 2",
            ],
            right=[
                "wanted = {n for n, m in fresh.named_modules() if isinstance(m, nn.Linear) and '.layer.' in n}",
            ],
        ),
        "ex2": dict(
            wrong=[
                'parts = {"LoRA": 294_912, "head": 3_074, "LayerNorm": 38_400, "bias": 82_944}',
                'parts = {"LoRA": 294_912, "head": 592_130, "LayerNorm": 38_400, "bias": 83_712}',
                'parts = {"LoRA": 294_912, "head": 1_538, "LayerNorm": 38_400, "bias": 83_712}',
                'parts = {"LoRA": 294_912, "head": 3_074, "LayerNorm": 36_864, "bias": 85_248}',
                'parts = {"LoRA": 420_098}',
            ],
            right=['parts = {"bias": 83_712.0, "LayerNorm": 38_400, "head": 3_074, "LoRA": 294_912}'],
        ),
        "ex3": dict(
            wrong=[
                "def their_slope(step, steps):\n    return slope(step, steps)",
                "def their_slope(step, steps):\n    return min(1, step / 200)",
                "def their_slope(step, steps):\n    return min(step / 200, (600 - step) / 400)",
                "def their_slope(step, steps):\n    return 5e-4 * slope(step, steps, 1 / 3)",
            ],
            right=[
                "def their_slope(step, steps):\n    return min(3 * step / steps, 1.5 * (1 - step / steps))",
            ],
        ),
    },
    "05_four_bits": {
        "ex1": dict(
            wrong=[
                "my_levels = np.linspace(-1, 1, 7)",
                "my_levels = nf4.nf4_levels()[::2]",
                "my_levels = np.array([-1, -0.5, -0.25, -0.1, 0, 0.3, 0.6, 1])",
                "my_levels = np.linspace(-0.9, 0.9, 8)",
                "my_levels = np.array([-1, -1, -0.6, -0.2, 0.2, 0.6, 1, 1])",
            ],
            right=["my_levels = [1, -1, 5 / 7, -5 / 7, 3 / 7, -3 / 7, 1 / 7, -1 / 7]"],
        ),
        "ex2": dict(
            wrong=["saved_gb = 24.2", "saved_gb = 4.06", "saved_gb = 0.373", "saved_gb = '3'"],
            right=["saved_gb = 65 * 0.373 / 8"],
        ),
        "ex3": dict(
            wrong=[
                "def smallest_rank(d):\n    return 4096 // d",
                "def smallest_rank(d):\n    return 4096 / d",
                "def smallest_rank(d):\n    return 4096 // d + 1",
                "def smallest_rank(d):\n    return 11",
            ],
            right=["def smallest_rank(d):\n    return next(r for r in range(1, 5000) if r * d >= 4096)"],
        ),
    },
    "06_llama2_qlora_sft": {
        "ex1": dict(
            wrong=[
                "settings = dict(bits=4, seq=1024, batch=1, checkpointing=True)",
                "settings = dict(bits=4, seq=1024, batch=64, checkpointing=True)",
                "settings = dict(bits=4, seq=512, batch=4, checkpointing=True)",
                "settings = dict(bits=4, seq=1024, batch=1, checkpointing=True, targets='qv')",
            ],
            right=[
                "settings = dict(r=8, bits=4, seq=1024, checkpointing=True)\n"
                "size = {b: planner.plan('llama-2-13b', batch=b, **settings).training.cards for b in range(1, 40)}\n"
                "settings['batch'] = max(b for b in size if 16 in size[b])",
            ],
        ),
        "ex2": dict(
            wrong=[
                LABELS_FOR
                + "    ids = [*prompt_ids, *answer_ids] + [pad_id] * (length - len(prompt_ids + answer_ids))\n"
                "    return [-100 if i < len(prompt_ids) or t == pad_id else t for i, t in enumerate(ids)]",
                LABELS_FOR + "    return [-100] * len(prompt_ids) + list(answer_ids)",
                LABELS_FOR + "    ids = [*prompt_ids, *answer_ids]\n    return ids + [-100] * (length - len(ids))",
                LABELS_FOR + "    return [-100] * length",
            ],
            right=[
                LABELS_FOR + "    labels, n = np.full(length, -100), len(prompt_ids)\n"
                "    labels[n : n + len(answer_ids)] = answer_ids\n    return labels.tolist()",
            ],
        ),
        "ex3": dict(
            wrong=[
                TODAY + 'today["warmup_ratio"] = "warmup_ratio"',
                TODAY + 'today["evaluation_strategy"] = "eval_steps"',
                TODAY + 'del today["group_by_length"]',
                TODAY + 'today["max_seq_length"] = "max_steps"',
            ],
            right=[
                TODAY,
            ],
        ),
    },
    "A_then_and_now": {
        "ex1": dict(
            wrong=[
                RECIPE.replace("torch.zeros(out_features, r)", "torch.randn(out_features, r)"),
                RECIPE.replace("wrapped.base = linear", "wrapped.load_state_dict(linear.state_dict(), strict=False)"),
                RECIPE.replace("self.scaling * (x", "(x"),
                RECIPE.replace("alpha / r", "alpha"),
                RECIPE.replace("alpha / r", "r / alpha"),
                RECIPE.replace(' or "classifier" in name', ""),
                RECIPE.replace('"lora_" in name or "classifier" in name', "True"),
                RECIPE.replace('("query", "value")', '("query",)'),
            ],
            right=[
                "def add_lora(model, r, alpha):\n"
                "    lora.inject(model, ['query', 'value'], r, alpha)\n"
                "    model.classifier.requires_grad_(True)",
                "def add_lora(model, r, alpha):\n"
                "    options = dict(r=r, lora_alpha=alpha, target_modules=['query', 'value'])\n"
                "    peft.get_peft_model(model, peft.LoraConfig(task_type='SEQ_CLS', **options))",
                RECIPE.replace("torch.randn(r, in_features)", "torch.randn(in_features, r)")
                .replace("torch.zeros(out_features, r)", "torch.zeros(r, out_features)")
                .replace("self.lora_A.T @ self.lora_B.T", "self.lora_A @ self.lora_B"),
                RECIPE.replace("torch.randn(r, in_features)", "torch.zeros(r, in_features)").replace(
                    "torch.zeros(out_features, r)", "torch.randn(out_features, r)"
                ),
            ],
        ),
    },
}
