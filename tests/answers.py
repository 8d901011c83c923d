"""For every exercise: answers that its check must reject (two or more, besides the stub), and other answers that it must accept.

tests/test_exercises.py puts each in place of the stub and runs the check.
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
}
