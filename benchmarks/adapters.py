"""Train the small adapter that lesson 00 shows and other lessons may start from: `make adapters`, about three minutes.

It is run 0 of "LoRA query+value" in benchmarks/sentiment.py, at the learning rate chosen there, kept in data/adapters/.
"""

from benchmarks import record, sentiment
from utils import ROOT, adapters, data

FOLDER = ROOT / "data" / "adapters" / "sentiment"


def main() -> None:
    profile, splits = sentiment.material()
    method = "LoRA query+value"
    rate = sentiment.chosen(record.read("sentiment")["runs"], method)
    result, model, _ = sentiment.train(profile, splits, method, sentiment.QV, rate, seed=0)
    adapters.save_adapter(model, FOLDER, profile.encoder, labels=data.LABELS, max_length=profile.max_length)
    print(f"{FOLDER.relative_to(ROOT)}: test accuracy {result['test']:.4f}")


if __name__ == "__main__":
    main()
