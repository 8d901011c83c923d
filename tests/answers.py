"""For every exercise: answers that its check must reject (two or more, besides the stub), and other answers that it must accept.

tests/exercised.py puts each in place of the stub and runs the check.
"""

LABELS_FOR = "def labels_for(prompt_ids, answer_ids, length, pad_id):\n"
TODAY = """today = dict(evaluation_strategy="eval_strategy", max_seq_length="max_length", warmup_ratio="warmup_steps")
today["group_by_length"] = "train_sampling_strategy"
"""
RANDOM_A = "np.random.default_rng(0).standard_normal((r, W.shape[1])) / np.sqrt(W.shape[1])"
TRAIN_LORA = """def train_lora(W, X, Y, r, alpha, steps=3000, rate=0.02):
    B, A = np.zeros((W.shape[0], r)), {A}
    for _ in range(steps):
        G = ((W + {update}) @ X - Y) @ X.T / X.shape[1]
        grad_B, grad_A = alpha / r * G @ A.T, alpha / r * B.T @ G
        B, A = B - rate * grad_B, A - rate * grad_A
{then}    return B, A"""

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
                "rank_P, rank_Q, rank_P_plus_P, rank_P_plus_R = 3, 1, 6, 6",
                "rank_P, rank_Q, rank_P_plus_P, rank_P_plus_R = 50, 1, 50, 50",
                "rank_P, rank_Q, rank_P_plus_P, rank_P_plus_R = 3, 10, 3, 6",
                "rank_P, rank_Q, rank_P_plus_P, rank_P_plus_R = 3, 1, 3, 3",
            ],
            right=["rank_P, rank_Q, rank_P_plus_P, rank_P_plus_R = 3.0, np.int64(1), 3.0, 6.0"],
        ),
        "ex2": dict(
            wrong=[
                "def rank_for(values, error):\n    return len(values)",
                "def rank_for(values, error):\n"
                "    return sum(lowrank.tail_error(values, r) > error for r in range(len(values))) - 1",
                "def rank_for(values, error):\n"
                "    return sum(lowrank.tail_error(values, r) > error for r in range(len(values))) + 1",
                "def rank_for(values, error):\n    return sum(value / values[0] > error for value in values)",
                "def rank_for(values, error):\n"  # without the squares
                "    return next(r for r in range(1, len(values) + 1) if sum(values[r:]) <= error * sum(values))",
                "def rank_for(values, error):\n"  # without the root
                "    v = np.square(values)\n"
                "    return next(r for r in range(1, len(v) + 1) if v[r:].sum() <= error * v.sum())",
                "def rank_for(values, error):\n    return 54",
            ],
            right=[
                "def rank_for(values, error):\n"
                "    return float(sum(lowrank.tail_error(values, r) > error for r in range(len(values))))",
                "def rank_for(values, error):\n"
                "    kept = np.cumsum(np.square(values)) / np.sum(np.square(values))\n"
                "    return 1 + np.argmax(1 - kept <= error**2)",
                "def rank_for(values, error):\n"
                "    missed = [np.linalg.norm(values[r:]) for r in range(len(values) + 1)]\n"
                "    return next(r for r, norm in enumerate(missed) if norm <= error * missed[0])",
            ],
        ),
        "ex3": dict(
            wrong=[
                "left_r1_alpha16, left_r1_alpha1, left_r2_alpha16 = 5, 5, 1",
                "left_r1_alpha16, left_r1_alpha1, left_r2_alpha16 = 1.5, 1.5, 0.5",
                "left_r1_alpha16, left_r1_alpha1, left_r2_alpha16 = 0, 2.5, 0",
                "left_r1_alpha16, left_r1_alpha1, left_r2_alpha16 = 2.5, 2.5, 2.5",
                "left_r1_alpha16, left_r1_alpha1, left_r2_alpha16 = 4.5, 4.5, 6.5",
            ],
            right=[
                "left_r1_alpha16 = left_r1_alpha1 = 2.5\nleft_r2_alpha16 = np.float32(0.5)",
                "left_r1_alpha16 = left_r1_alpha1 = 5 / 2\nleft_r2_alpha16 = 1 / 2",
            ],
        ),
        "ex4": dict(
            wrong=[
                TRAIN_LORA.format(A=RANDOM_A, update="B @ A", then=""),
                TRAIN_LORA.format(A="np.zeros((r, W.shape[1]))", update="alpha / r * B @ A", then=""),
                TRAIN_LORA.format(A=RANDOM_A, update="alpha / r * B @ A", then="        W -= rate * G\n"),
                TRAIN_LORA.format(A=RANDOM_A, update="alpha * B @ A", then=""),
                TRAIN_LORA.format(A=RANDOM_A, update="alpha / r * B @ A", then="").replace("B - rate", "B + rate"),
                TRAIN_LORA.format(A=RANDOM_A, update="alpha / r * B @ A", then="").replace("np.zeros", "np.ones"),
                TRAIN_LORA.format(A=RANDOM_A, update="alpha / r * B @ A", then="        break\n"),
            ],
            right=[
                "def train_lora(W, X, Y, r, alpha, steps=3000, rate=0.02):\n"
                "    draw = np.random.default_rng(3)\n"
                "    A, B = np.zeros((r, W.shape[1])), draw.standard_normal((W.shape[0], r)) / 2\n"
                "    for _ in range(steps):\n"
                "        G = (W @ X + alpha / r * B @ (A @ X) - Y) @ X.T / X.shape[1]\n"
                "        grad_B, grad_A = alpha / r * G @ A.T, alpha / r * B.T @ G\n"
                "        B -= rate * grad_B\n"
                "        A -= rate * grad_A\n"
                "    return B, A",
                TRAIN_LORA.format(A="np.random.randn(r, W.shape[1])", update="lowrank.delta(B, A, alpha)", then=""),
            ],
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
}
