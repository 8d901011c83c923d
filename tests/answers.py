"""For every exercise: answers that its check must reject (two or more, besides the stub), and other answers that it must accept.

tests/exercised.py puts each in place of the stub and runs the check.
"""

LABELS_FOR = "def labels_for(prompt_ids, answer_ids, length, pad_id):\n"
TODAY = """today = dict(evaluation_strategy="eval_strategy", max_seq_length="max_length", warmup_ratio="warmup_steps")
today["group_by_length"] = "train_sampling_strategy"
"""
ROOM = "call = 'max_length=48, max_new_tokens=12'\nroom = {{'max_length=48': {}, 'max_new_tokens=12': {}, call: {}, 'max_length=24': {}}}\n"
TRANSLATE = """NEW = dict(evaluation_strategy="eval_strategy", max_seq_length="max_length", warmup_ratio="warmup_steps")


def translate(old):
    new = dict(old)
    for name in NEW.keys() & old.keys():
        new[NEW[name]] = new.pop(name)
    if new.pop("group_by_length", False):
        new["train_sampling_strategy"] = "group_by_length"
    if old.get("lr_scheduler_type") == "constant" and old.get("warmup_ratio"):
        new["lr_scheduler_type"] = "constant_with_warmup"
    return new
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
RANDOM_A = "np.random.default_rng(0).standard_normal((r, W.shape[1])) / np.sqrt(W.shape[1])"
TRAIN_LORA = """def train_lora(W, X, Y, r, alpha, steps=3000, rate=0.02):
    B, A = np.zeros((W.shape[0], r)), {A}
    for _ in range(steps):
        G = ((W + {update}) @ X - Y) @ X.T / X.shape[1]
        grad_B, grad_A = alpha / r * G @ A.T, alpha / r * B.T @ G
        B, A = B - rate * grad_B, A - rate * grad_A
{then}    return B, A"""
FREE = "'lora_' in path or 'classifier' in path"


def adapt(
    which="'classifier' not in path", inside="old", parent="model.get_submodule(path.rpartition('.')[0])", trained=FREE
):
    """Lesson 03's `adapt`, right but for what is given."""
    return (
        "def adapt(model, r=8, alpha=16):\n"
        "    for path, old in list(model.named_modules()):\n"
        f"        if isinstance(old, nn.Linear) and {which}:\n"
        f"            setattr({parent}, path.split('.')[-1], lora.LoRALinear({inside}, r, alpha))\n"
        "    for path, parameter in model.named_parameters():\n"
        f"        parameter.requires_grad_({trained})"
    )


def targets(*numbers):
    """Lesson 04's `per_block` with these numbers."""
    lists = ("query, value", "dense", "output.dense", "attention.output.dense, key", "query, values")
    return f"per_block = {dict(zip(lists, numbers, strict=True))}"


def threshold(*lines):
    """Lesson 04's `threshold` with these lines."""
    return "\n    ".join(("def threshold(certainty, hit, wanted):", *lines))


def compare(
    rates="rates[method]",
    by="validation",
    of="np.mean",
    reported="test",
    seeds="seeds",
    difference='means["LoRA"] - means["full"]',
):
    """Lesson 04's `compare`, right but for what is given."""
    return (
        "def compare(run, rates, seeds):\n"
        "    means = {}\n"
        '    for method in ("LoRA", "full"):\n'
        f'        best = max({rates}, key=lambda rate: run(method, rate, seeds[0])["{by}"])\n'
        f'        means[method] = {of}([run(method, best, seed)["{reported}"] for seed in {seeds}])\n'
        f"    return {difference}"
    )


def compare_by_lora(full):
    """Lesson 04's `compare` with a rate for full fine-tuning that follows from LoRA's best."""
    return (
        "def compare(run, rates, seeds):\n"
        '    best = max(rates["LoRA"], key=lambda rate: run("LoRA", rate, seeds[0])["validation"])\n'
        f'    chosen = {{"LoRA": best, "full": {full}}}\n'
        '    mean = {m: np.mean([run(m, rate, seed)["test"] for seed in seeds]) for m, rate in chosen.items()}\n'
        '    return mean["LoRA"] - mean["full"]'
    )


def merging(*merge, attributes="kept", unmerge=("self.base_layer.weight.data, self.kept = self.kept, None",)):
    """Lesson 02's layer with a merge that keeps the weight: these lines follow when there is none kept, and undo it when there is."""
    lines = [f"    {attributes} = None", "    def forward(self, x):"]
    lines += ["        return super().forward(x) if self.kept is None else self.base_layer(x)"]
    lines += ["    def merge(self):", "        if self.kept is None:"]
    lines += [f"            {line}" for line in ("self.kept = self.base_layer.weight.data", *merge)]
    lines += [
        "    def unmerge(self):",
        "        if self.kept is not None:",
        *(f"            {line}" for line in unmerge),
    ]
    return "\n".join(["class Merging(LoRALinear):", *lines])


QUANTISED = "codes, absmax = nf4.quantise(weight, levels)"
PACKED = "return nf4.pack(codes), absmax"
BACK = "return nf4.dequantise(nf4.unpack(packed, 2 * packed.size), absmax, levels, shape)"
UNPACKED = (
    "codes = np.stack([packed >> 4, packed & 15], axis=1).ravel()",
    "return (levels[codes] * np.repeat(absmax, 64)).reshape(shape)",
)


def stored(*store, back=(BACK,)):
    """Lesson 05's `store` and `restore` of these lines."""
    return (
        "\n    ".join(["def store(weight, levels):", *store])
        + "\n\n\n"
        + "\n    ".join(["def restore(packed, absmax, levels, shape):", *back])
    )


def influence(layers="(at.query, at.value)", on="True", moved="np.abs(now - whole).mean()", back="moved"):
    """Lesson 03's `influence`, right but for what is given."""
    return (
        "def influence(model):\n"
        "    whole, moved = training.predict(model, tokenizer, sentences)[:, 1], []\n"
        "    for at in (block.attention.self for block in model.roberta.encoder.layer):\n"
        f"        for each in {layers}:\n"
        "            each.enabled = False\n"
        "        now = training.predict(model, tokenizer, sentences)[:, 1]\n"
        f"        moved.append({moved})\n"
        f"        for each in {layers}:\n"
        f"            each.enabled = {on}\n"
        f"    return {back}"
    )


ANSWERS = {
    "00_start_here": {
        "ex1": dict(
            wrong=[
                "billions_full, billions_lora = 6, 12",
                "billions_full, billions_lora = 1.5, 1.5",
                "billions_full, billions_lora = 3, 12",
                "billions_full, billions_lora = 1.5, 6",
                "billions_full, billions_lora = 1.5e9, 12e9",
                "billions_full, billions_lora = 24 * 16, 24 * 2",
            ],
            right=[
                "billions_full, billions_lora = 24e9 / (4 + 4 + 4 + 4) / 1e9, 24e9 / 2 / 1e9",
                "billions_full, billions_lora = 1.5, 24 / (2 + 0.003 * 16)",
            ],
        ),
    },
    "01_low_rank_maths": {
        "ex1": dict(
            wrong=[
                "rank_P, rank_Q, rank_P_plus_P, rank_P_plus_R = 3, 1, 6, 6",
                "rank_P, rank_Q, rank_P_plus_P, rank_P_plus_R = 50, 1, 50, 50",
                "rank_P, rank_Q, rank_P_plus_P, rank_P_plus_R = 3, 10, 3, 6",
                "rank_P, rank_Q, rank_P_plus_P, rank_P_plus_R = 3, 0, 3, 6",
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
                "def rank_for(values, error):\n"  # below in place of at most
                "    return next(r for r in range(1, len(values) + 1) if lowrank.tail_error(values, r) < error)",
                "def rank_for(values, error):\n"  # no whole number
                "    return sum(lowrank.tail_error(values, r) > error for r in range(len(values))) + 0.5",
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
                "def rank_for(values, error):\n"  # squares them in place
                "    values *= values\n"
                "    return next(r for r in range(1, len(values) + 1) if values[r:].sum() <= error**2 * values.sum())",
            ],
        ),
        "ex3": dict(
            wrong=[
                "left_r1_alpha16, left_r1_alpha1, left_r2_alpha16 = 5, 5, 1",
                "left_r1_alpha16, left_r1_alpha1, left_r2_alpha16 = 1.5, 1.5, 0.5",
                "left_r1_alpha16, left_r1_alpha1, left_r2_alpha16 = 0, 2.5, 0",
                "left_r1_alpha16, left_r1_alpha1, left_r2_alpha16 = 2.5, 2.5, 2.5",
                "left_r1_alpha16, left_r1_alpha1, left_r2_alpha16 = 4.5, 4.5, 6.5",
                "left_r1_alpha16, left_r1_alpha1, left_r2_alpha16 = np.nan, 2.5, np.nan",
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
                TRAIN_LORA.format(A="np.ones((r, W.shape[1]))", update="alpha / r * B @ A", then=""),
                TRAIN_LORA.format(A=RANDOM_A, update="alpha / r * B @ A", then="").replace("alpha / r * G", "G"),
                TRAIN_LORA.format(A=RANDOM_A, update="alpha / r * B @ A", then="")  # from both gradients
                .replace("alpha / r * G", "G")
                .replace("alpha / r * B.T", "B.T"),
                "def train_lora(W, X, Y, r, alpha, steps=3000, rate=0.02):\n"  # nothing is trained
                "    U, s, Vt = np.linalg.svd((Y - W @ X) @ np.linalg.pinv(X))\n"
                "    return (steps > 0) * r / alpha * U[:, :r] * s[:r], Vt[:r]",
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
                TRAIN_LORA.format(A="0.01 * np.random.randn(r, W.shape[1])", update="alpha / r * B @ A", then=""),
                TRAIN_LORA.format(
                    A=RANDOM_A, update="alpha / r * B @ A", then=""
                ).replace(  # B first, then A with the new B
                    "alpha / r * B.T @ G", "alpha / r * (B - rate * alpha / r * G @ A.T).T @ G"
                ),
            ],
        ),
    },
    "02_lora_layer": {
        "ex1": dict(
            wrong=[
                "first_to_fail = {'new base': 1, 'bias learns': 2, 'A zero too': 3, 'no alpha': 4, 'copied base': 0}",
                "first_to_fail = {'new base': 1, 'bias learns': 2, 'A zero too': 3, 'no alpha': 5, 'copied base': 1}",
                "first_to_fail = {'new base': 3, 'bias learns': 3, 'A zero too': 3, 'no alpha': 5, 'copied base': 0}",
                "first_to_fail = {'new base': 1, 'bias learns': 2, 'A zero too': 1, 'no alpha': 5, 'copied base': 0}",
                "first_to_fail = [1, 2, 3, 5, 0]",
                "first_to_fail = {'new base': 1}",
            ],
            right=[
                "first_to_fail['new base'], first_to_fail['bias learns'], first_to_fail['A zero too'] = 1, 2, 3\n"
                "first_to_fail['no alpha'], first_to_fail['copied base'] = 5, 0"
            ],
        ),
        "ex2": dict(
            wrong=[
                "def wrap(network, r, alpha):\n"
                "    network.requires_grad_(False)\n"
                "    network[-1] = LoRALinear(network[-1], r, alpha)\n"
                "    return network",
                "def wrap(network, r, alpha):\n"
                "    for i, module in enumerate(network):\n"
                "        if isinstance(module, nn.Linear):\n"
                "            network[i] = LoRALinear(module, r, alpha)\n"
                "    return network",
                "def wrap(network, r, alpha):\n"
                "    for i, module in enumerate(network):\n"
                "        if isinstance(module, nn.Linear):\n"
                "            network[i] = LoRALinear(module, r, alpha)\n"
                "    network.requires_grad_(False)\n"
                "    return network",
                "def wrap(network, r, alpha):\n"
                "    network.requires_grad_(False)\n"
                "    for i, module in enumerate(network):\n"
                "        if isinstance(module, nn.Linear):\n"
                "            new = nn.Linear(module.in_features, module.out_features)\n"
                "            network[i] = LoRALinear(new, r, alpha)\n"
                "    return network",
                "def wrap(network, r, alpha):\n"
                "    network.requires_grad_(False)\n"
                "    for i, module in enumerate(network):\n"
                "        if isinstance(module, nn.Linear):\n"
                "            network[i] = LoRALinear(module, alpha, r)\n"
                "    return network",
                "def wrap(network, r, alpha):\n"
                "    network.requires_grad_(False)\n"
                "    for i, module in enumerate(network):\n"
                "        if isinstance(module, nn.Linear):\n"
                "            network[i] = LoRALinear(LoRALinear(module, r, alpha), r, alpha)\n"
                "    return network",
                # a new network: the one that went in is not wrapped
                "def wrap(network, r, alpha):\n"
                "    network.requires_grad_(False)\n"
                "    return nn.Sequential(*(LoRALinear(m, r, alpha) if isinstance(m, nn.Linear) else m for m in network))",
                "def wrap(network, r, alpha):\n"
                "    network = copy.deepcopy(network).requires_grad_(False)\n"
                "    lora.inject(network, [n for n, m in network.named_modules() if isinstance(m, nn.Linear)], r, alpha)\n"
                "    return network",
                # fits the first network alone: its r and alpha, its places
                "def wrap(network, r, alpha):\n"
                "    network.requires_grad_(False)\n"
                "    for i, module in enumerate(network):\n"
                "        if isinstance(module, nn.Linear):\n"
                "            network[i] = LoRALinear(module, 2, 6)\n"
                "    return network",
                "def wrap(network, r, alpha):\n"
                "    network.requires_grad_(False)\n"
                "    for i in (0, 2, 4):\n"
                "        network[i] = LoRALinear(network[i], r, alpha)\n"
                "    return network",
                # nothing is returned
                "def wrap(network, r, alpha):\n"
                "    lora.inject(network, [n for n, m in network.named_modules() if isinstance(m, nn.Linear)], r, alpha)",
            ],
            right=[
                "def wrap(network, r, alpha):\n"
                "    lora.inject(network, [n for n, m in network.named_modules() if isinstance(m, nn.Linear)], r, alpha)\n"
                "    return network",
                "def wrap(network, r, alpha):\n"
                "    for i in range(len(network)):\n"
                "        if type(network[i]) is nn.Linear:\n"
                "            network[i] = LoRALinear(network[i], r, alpha)\n"
                "    for name, p in network.named_parameters():\n"
                "        p.requires_grad = 'lora_' in name\n"
                "    return network",
            ],
        ),
        "ex3": dict(
            wrong=[
                # the factor alone
                "class Merging(LoRALinear):\n"
                "    def merge(self):\n"
                "        self.base_layer.weight.data += self.scaling * self.lora_B @ self.lora_A\n"
                "    def unmerge(self):\n"
                "        self.base_layer.weight.data -= self.scaling * self.lora_B @ self.lora_A",
                # and a flag: the way back still rounds
                "class Merging(LoRALinear):\n"
                "    merged = False\n"
                "    def forward(self, x):\n"
                "        return self.base_layer(x) if self.merged else super().forward(x)\n"
                "    def merge(self):\n"
                "        if not self.merged:\n"
                "            self.base_layer.weight.data += self.scaling * self.lora_B @ self.lora_A\n"
                "        self.merged = True\n"
                "    def unmerge(self):\n"
                "        if self.merged:\n"
                "            self.base_layer.weight.data -= self.scaling * self.lora_B @ self.lora_A\n"
                "        self.merged = False",
                # a copy is kept, taken anew at the second merge
                "class Merging(LoRALinear):\n"
                "    merged = False\n"
                "    def forward(self, x):\n"
                "        return self.base_layer(x) if self.merged else super().forward(x)\n"
                "    def merge(self):\n"
                "        self.kept, self.merged = self.base_layer.weight.data.clone(), True\n"
                "        self.base_layer.weight.data += self.scaling * self.lora_B @ self.lora_A\n"
                "    def unmerge(self):\n"
                "        self.base_layer.weight.data, self.merged = self.kept.clone(), False",
                # the factor of one layer, 12 / 4, for all
                merging("self.base_layer.weight.data = self.kept + 3 * (self.lora_B @ self.lora_A).detach()"),
                # the first update is kept for every later merge
                merging(
                    "if self.update is None:",
                    "    self.update = self.scaling * (self.lora_B @ self.lora_A).detach()",
                    "self.base_layer.weight.data = self.kept + self.update",
                    attributes="kept = update",
                ),
                # nothing is merged at all
                "class Merging(LoRALinear):\n    def merge(self):\n        pass\n    def unmerge(self):\n        pass",
                # the merged weight learns
                merging(
                    "new = self.kept + self.scaling * (self.lora_B @ self.lora_A).detach()",
                    "self.base_layer.weight = nn.Parameter(new)",
                    unmerge=(
                        "self.base_layer.weight = nn.Parameter(self.kept, requires_grad=False)",
                        "self.kept = None",
                    ),
                ),
            ],
            right=[
                "class Merging(LoRALinear):\n"
                "    def __init__(self, *args, **options):\n"
                "        super().__init__(*args, **options)\n"
                "        self.original = self.base_layer.weight.detach().clone()\n"
                "        self.merged = False\n"
                "    def forward(self, x):\n"
                "        return self.base_layer(x) if self.merged else super().forward(x)\n"
                "    @torch.no_grad()\n"
                "    def merge(self):\n"
                "        self.base_layer.weight.copy_(self.original + self.scaling * self.lora_B @ self.lora_A)\n"
                "        self.merged = True\n"
                "    @torch.no_grad()\n"
                "    def unmerge(self):\n"
                "        self.base_layer.weight.copy_(self.original)\n"
                "        self.merged = False",
                "Merging = lora.LoRALinear",
            ],
        ),
        "ex4": dict(
            wrong=[
                "times, new_rate = 4, 7.5e-5",
                "times, new_rate = 1, 3e-4",
                "times, new_rate = 2, 6e-4",
                "times, new_rate = 2**0.5, 3e-4 / 2**0.5",
                "times, new_rate = 0.5, 1.5e-4",
                "times, new_rate = 2, 3e-4",
                "times, new_rate = 1.65, 1.8e-4",
                "times, new_rate = 2.4, 1.5e-4",
                "times, new_rate = 0, 1.5e-4",
                "times, new_rate = -2, 1.5e-4",
                "times, new_rate = 2, 0",
            ],
            right=["times, new_rate = 2.0, 0.00015", "times, new_rate = 1.98, 1.52e-4"],
        ),
    },
    "04_roberta_sst2": {
        "ex1": dict(
            wrong=[
                targets(2, 4, 1, 2, 1),  # with the head's dense; the whole name only
                targets(2, 3, 1, 2, 1),
                targets(2, 3, 2, 3, 1),
                targets(2, 3, 2, 2, 0),
                targets(2, 3, 2, 2, 2),
                targets(12, 18, 12, 12, 6),
            ],
            right=[targets(2.0, 3.0, 2.0, 2.0, 1.0)],
        ),
        "ex2": dict(
            wrong=[
                threshold("return wanted"),
                threshold("return np.quantile(certainty, 1 - wanted)"),
                threshold("return np.sort(certainty)[0]"),
                threshold("return max(certainty[hit])"),
                threshold("return min([c for c in certainty if hit[certainty > c].mean() >= wanted], default=None)"),
                threshold("return min([c for c in certainty if hit[certainty >= c].mean() > wanted], default=None)"),
                threshold("return max([c for c in certainty if hit[certainty >= c].mean() >= wanted], default=None)"),
                threshold("return min([c for c, h in zip(certainty, hit) if h and c >= wanted], default=None)"),
                threshold("return next((c for c in certainty if hit[certainty >= c].mean() >= wanted), None)"),
                # one by one from the surest down: stops at the first that falls short, and parts equals
                threshold(
                    "order, best = np.argsort(-certainty, kind='stable'), None",
                    "for n, i in enumerate(order, start=1):",
                    "    if hit[order[:n]].mean() < wanted:",
                    "        break",
                    "    best = certainty[i]",
                    "return best",
                ),
            ],
            right=[
                threshold("return min([c for c in certainty if hit[certainty >= c].mean() >= wanted], default=None)"),
                threshold(
                    "values = np.unique(certainty)",
                    "shares = np.array([np.mean([h for h, c in zip(hit, certainty) if c >= v]) for v in values])",
                    "return float(values[np.argmax(shares >= wanted)]) if (shares >= wanted).any() else None",
                ),
            ],
        ),
        "ex3": dict(
            wrong=[
                compare(by="test"),
                compare(of="max"),
                compare(of="np.median"),
                compare(seeds="seeds[:1]"),
                compare(rates='rates["LoRA"]'),
                compare(reported="validation"),
                compare(difference='means["full"] - means["LoRA"]'),
                compare(difference='(means["LoRA"] - means["full"]) / means["full"]'),
                compare(of='(max if method == "LoRA" else np.mean)'),
                "def compare(run, rates, seeds):\n    return 0.0",
                # full at a tenth of LoRA's rate, at the place of LoRA's best; then nothing chosen at all
                compare_by_lora("best / 10"),
                compare_by_lora('rates["full"][rates["LoRA"].index(best)]'),
                compare(rates="rates[method][len(rates[method]) // 2 :][:1]"),
                compare(seeds="(0, 1, 2)"),
            ],
            right=[
                compare(of="statistics.mean").replace("    means", "    import statistics\n\n    means", 1),
                # every seed chooses, by the mean on validation
                "def compare(run, rates, seeds):\n"
                "    means = []\n"
                "    for method in rates:\n"
                "        tried = {rate: [run(method, rate, seed) for seed in seeds] for rate in rates[method]}\n"
                "        best = max(tried, key=lambda rate: sum(each['validation'] for each in tried[rate]))\n"
                "        means.append(sum(each['test'] for each in tried[best]) / len(seeds))\n"
                "    return means[list(rates).index('LoRA')] - means[list(rates).index('full')]",
            ],
        ),
    },
    "03_roberta_by_hand": {
        "ex1": dict(
            wrong=[
                "changed = dict.fromkeys(changed, (True, True))",
                "changed = dict(query=(True, True), key=(True, True), value=(True, True), intermediate=(False, True))",
                "changed = dict(query=(True, True), key=(False, True), value=(False, True), intermediate=(False, True))",
                "changed = dict(query=(True, False), key=(True, False), value=(False, False), intermediate=(False, False))",
                "changed = dict(query=(True, True), key=(True, True), value=(False, True), intermediate=(False, False))",
                "changed = dict.fromkeys(changed, 'no')",
            ],
            right=["changed = dict(intermediate=[0, 1], value=[0, 1], key=[1, 1], query=[1, 1])"],
        ),
        "ex2": dict(
            wrong=[
                adapt(which="True"),
                adapt(which="'dense' in path"),
                adapt(inside="nn.Linear(old.in_features, old.out_features)"),
                adapt(parent="model"),
                adapt(trained="'lora_' in path"),
                adapt(trained="'lora_' in path or 'classifier' in path or 'bias' in path"),
                adapt(trained="True"),
                adapt().replace("r, alpha))", "alpha, r))"),
                adapt().replace("r, alpha))", "8, 16))"),
            ],
            right=[
                adapt(),
                "def adapt(model, r=8, alpha=16):\n"
                "    lora.inject(model, r'.*\\.layer\\..*\\.(query|key|value|dense)', r, alpha)\n"
                "    model.classifier.requires_grad_(True)",
            ],
        ),
        "ex3": dict(
            wrong=[
                influence(on="False"),
                influence(layers="(at.query,)"),
                influence(moved="(now - whole).mean()"),
                influence(moved="np.abs(now - whole).max()"),
                influence(moved="(now.round() != whole.round()).mean()"),
                influence(back="moved[::-1]"),
                influence(back="moved[:-1]"),
            ],
            right=[
                influence(back="np.array(moved)"),
                "def influence(model):\n"
                "    found = []\n"
                "    for block in range(config.num_hidden_layers):\n"
                "        here = [m for name, m in lora.layers(model) if f'.layer.{block}.' in name]\n"
                "        answers = []\n"
                "        for on in (False, True):\n"
                "            for m in here:\n"
                "                m.enabled = on\n"
                "            answers.append(training.predict(model, tokenizer, sentences))\n"
                "        found.append(np.abs(answers[0] - answers[1])[:, 0].mean())\n"
                "    return found",
            ],
        ),
    },
    "05_four_bits": {
        "ex1": dict(
            wrong=[
                "comes_back = [1, -0.5, 0, 0]\nwith_outlier = [0, 0, 1, 0]",
                "comes_back = [0.6, -0.3, 0, 0]\nwith_outlier = [0.6, -0.3, 3.0, 0]",
                "comes_back = [0.6, -0.3, 0.1, -0.05]\nwith_outlier = [0.6, -0.3, 3.0, -0.05]",
                "comes_back = [0.6, -0.3, 0, -0.3]\nwith_outlier = [0, 0, 3, 0]",
                "comes_back = [0.5, -0.5, 0, 0]\nwith_outlier = [0.5, -0.5, 1, 0]",
                "comes_back = [0.6, -0.3, 0, 0]\nwith_outlier = [0, 0, 3]",
            ],
            right=["comes_back, with_outlier = (0.6, -0.3, -0.0, 0), np.array([[0.0, 0, 3, 0]])"],
        ),
        "ex2": dict(
            wrong=[
                "my_levels = np.linspace(-1, 1, 7)",
                "my_levels = nf4.nf4_levels()[::2]",
                "my_levels = bell_levels(3)",
                "my_levels = np.array([-1, -0.5, -0.25, -0.1, 0, 0.3, 0.6, 1])",
                "my_levels = np.linspace(-0.9, 0.9, 8)",
                "my_levels = np.array([-1, -1, -0.6, -0.2, 0.2, 0.6, 1, 1])",
            ],
            right=["my_levels = [1, -1, 5 / 7, -5 / 7, 3 / 7, -3 / 7, 1 / 7, -1 / 7]"],
        ),
        "ex3": dict(
            wrong=[
                "saved_gb = 24.2",
                "saved_gb = 4.06",
                "saved_gb = 3.047",
                "saved_gb = 65 / 8 * (32 / 64 - 8 / 64)",
                "saved_gb = 65 / 8 * (32 / 64 - 8 / 64 - 32 / 256)",
                "saved_gb = 3",
                "saved_gb = 2.823",
                "saved_gb = 0.373",
                "saved_gb = '3'",
            ],
            right=["saved_gb = 65 * 0.373 / 8", "saved_gb = 3.03"],
        ),
        "ex4": dict(
            wrong=[
                stored(
                    "blocks = weight.reshape(-1, 64)",
                    "absmax = np.abs(blocks).max(axis=1)",
                    "scaled = (blocks / absmax[:, None]).ravel()",
                    "codes = np.searchsorted(levels, scaled).clip(0, 15).astype(np.uint8)",
                    "return codes[::2] << 4 | codes[1::2], absmax",
                    back=UNPACKED,
                ),
                stored(QUANTISED, "return codes[::2] << 4 + codes[1::2], absmax", back=UNPACKED),
                stored(
                    QUANTISED,
                    "return codes[1::2] << 4 | codes[::2], absmax",
                    back=(UNPACKED[0].replace("packed >> 4, packed & 15", "packed & 15, packed >> 4"), UNPACKED[1]),
                ),
                stored(QUANTISED, PACKED, back=(UNPACKED[0], UNPACKED[1].replace("repeat", "tile"))),
                stored(
                    QUANTISED,
                    "return codes, absmax",
                    back=(BACK.replace("nf4.unpack(packed, 2 * packed.size)", "packed"),),
                ),
                stored(
                    "blocks = weight.reshape(-1, 64)",
                    "absmax = blocks.max(axis=1)",
                    "codes, _ = nf4.quantise(weight, levels)",
                    PACKED,
                ),
                stored(
                    "absmax = np.abs(weight).max()",
                    "codes, _ = nf4.quantise(weight, levels, weight.size)",
                    PACKED,
                    back=("return (levels[nf4.unpack(packed, 2 * packed.size)] * absmax).reshape(shape)",),
                ),
            ],
            right=[
                stored(QUANTISED, PACKED),
                stored(
                    "blocks = weight.reshape(-1, 64)",
                    "absmax = np.maximum(blocks.max(1), -blocks.min(1))",
                    "codes = np.abs(blocks[..., None] / absmax[:, None, None] - levels).argmin(-1).reshape(-1, 2)",
                    "return (16 * codes[:, 0] + codes[:, 1]).astype(np.uint8), absmax[:, None]",
                    back=(
                        "codes = np.array([code for byte in packed for code in divmod(int(byte), 16)]).reshape(-1, 64)",
                        "return (levels[codes] * np.reshape(absmax, (-1, 1))).reshape(shape)",
                    ),
                ),
            ],
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
                ROOM.format(48, 12, 12, 24),  # takes max_length for the answer's
                ROOM.format(10, 12, 10, '"refused"'),  # the smaller limit
                ROOM.format(10, 12, 12, 0),
                ROOM.format(10, 50, 12, '"refused"'),
                ROOM.format(10, 12, 12, '"refused"') + 'del room["max_length=24"]',
            ],
            right=[
                "n = len(chat_tokenizer.apply_chat_template(story, add_generation_prompt=True)['input_ids'])\n"
                + ROOM.format("48 - n", "12.0", "12", '"refused"'),
            ],
        ),
        "ex2": dict(
            wrong=[
                TRANSLATE.replace('new["lr_scheduler_type"] = "constant_with_warmup"', "pass"),
                TRANSLATE.replace(
                    'if new.pop("group_by_length", False)',
                    'if "group_by_length" in new and [new.pop("group_by_length")]',
                ),
                TRANSLATE.replace('"train_sampling_strategy"] = "group_by_length"', '"group_by_length"] = True'),
                TRANSLATE.replace("dict(old)", "old"),
                TRANSLATE.replace("dict(old)", "{name: old[name] for name in NEW if name in old}"),
                TRANSLATE.replace('old.get("lr_scheduler_type") == "constant" and ', ""),
                TRANSLATE.replace('"warmup_steps"', '"warmup_steps_ratio"'),
                TRANSLATE.replace('"eval_strategy"', '"eval_steps"'),
            ],
            right=[
                TRANSLATE,
                TRANSLATE.split("\n")[0] + "\n\n\ndef translate(old):\n"
                "    new = {}\n"
                "    for name, value in old.items():\n"
                "        if name == 'group_by_length':\n"
                "            name, value = 'train_sampling_strategy', 'group_by_length' if value else 'random'\n"
                "        elif name == 'lr_scheduler_type' and value == 'constant':\n"
                "            value = 'constant_with_warmup'\n"
                "        new[NEW.get(name, name)] = value\n"
                "    return new",
            ],
        ),
        "ex3": dict(
            wrong=[
                RECIPE.replace("torch.zeros(out_features, r)", "torch.randn(out_features, r)"),
                RECIPE.replace("wrapped.base = linear", "wrapped.load_state_dict(linear.state_dict(), strict=False)"),
                RECIPE.replace("self.scaling * (x", "(x"),
                RECIPE.replace("alpha / r", "alpha"),
                RECIPE.replace("alpha / r", "r / alpha"),
                RECIPE.replace(' or "classifier" in name', ""),
                RECIPE.replace('"lora_" in name or "classifier" in name', "True"),
                RECIPE.replace('("query", "value")', '("query",)'),
                RECIPE.replace("torch.randn(r, in_features)", "torch.zeros(r, in_features)"),  # both at zero
                RECIPE.replace('("query", "value")', '("query", "key")'),
                RECIPE.replace(
                    'which in ("query", "value")',
                    'at, which in ((block.attention.self, "query"), (block.attention.output, "dense"))',
                ).replace("block.attention.self, which", "at, which"),
                RECIPE.replace("encoder.layer:", "encoder.layer[:-1]:"),
                RECIPE.replace("wrapped.base = linear", "wrapped.base.weight = linear.weight"),  # the bias is lost
                RECIPE.replace(
                    "setattr(block", 'wrapped.scaling = alpha / r if which == "query" else 1\n            setattr(block'
                ),
                RECIPE.replace("alpha / r", "4"),
                RECIPE.replace("alpha / r", "alpha / 8"),
                RECIPE.replace("alpha / r", "alpha / r**0.5"),
                RECIPE.replace("@ self.lora_B.T)", "@ self.lora_B.T).detach()"),
                RECIPE.replace("x @ self.lora_A.T @", "(x @ self.lora_A.T).detach() @"),  # A never learns
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
                RECIPE.replace("torch.zeros(out_features, r)", "torch.zeros(r, out_features)").replace(
                    "self.lora_B.T", "self.lora_B"
                ),
                RECIPE.replace("torch.randn(r, in_features)", "torch.randn(in_features, r)").replace(
                    "self.lora_A.T", "self.lora_A"
                ),
                RECIPE.replace("nn.Parameter(torch.randn(r, in_features))", "nn.Linear(in_features, r, bias=False)")
                .replace("nn.Parameter(torch.zeros(out_features, r))", "nn.Linear(r, out_features, bias=False)")
                .replace("self.scaling =", "nn.init.zeros_(self.lora_B.weight)\n        self.scaling =")
                .replace("x @ self.lora_A.T @ self.lora_B.T", "self.lora_B(self.lora_A(x))"),
                # Both at random, and their first product taken off
                RECIPE.replace("torch.zeros(out_features, r)", "torch.randn(out_features, r)")
                .replace(
                    "self.scaling = alpha",
                    "self.first = (self.lora_B @ self.lora_A).detach()\n        self.scaling = alpha",
                )
                .replace("self.lora_B.T)", "self.lora_B.T - x @ self.first.T)"),
            ],
        ),
    },
}
