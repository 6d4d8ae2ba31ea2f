"""PeterRec's question: do a few trained parameters in a frozen backbone do what tuning all does?

One task a study, `task=items|gender|age|occupation`: patches of three kinds beside fine-tuning
everything, training the last layer alone, and training from scratch; with quality, trained
parameters, bytes a task and seconds. The paper finds patches as good as tuning all, at 9 % of a
block's parameters, and the last layer alone far behind. `:cpu` takes 7 to 22 minutes on one AVX-512
core (README.md has the numbers); the full size has not been run.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/peterrec.py:task=gender,cpu \\
      --workdir=W --config.data_dir=DIR

`backbone=causal|noncausal|sasrec|bert4rec`; the last two are transformers, with adapters, LoRA,
biases and prefixes in place of PeterRec's patches.
"""

from configs.studies import common
from recjax import spec

CONVOLUTIONAL = {"serial_two": "patch, serial, two", "serial_one": "patch, serial, one",
                 "parallel": "patch, parallel"}
TRANSFORMER = {"adapter": "adapters", "lora": "LoRA", "bias": "biases", "prefix": "prefixes"}


def get_config(arg=None):
  """Returns the study's config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, task="gender", backbone="causal", cpu=False)
  size = "cpu" if arg.cpu else "full"
  patches = TRANSFORMER if arg.backbone in ("sasrec", "bert4rec") else CONVOLUTIONAL
  path = f"configs/peterrec_ml1m.py:backbone={arg.backbone},size={size}"
  config = common.study(
    f"PeterRec on MovieLens-1M: {arg.task}, {arg.backbone} backbone (size {size})",
    prepare=common.prepare("ml1m"),
    seeds=(0, 1, 2, 3, 4),
    headline=("ndcg@10", "recall@10", "mrr") if arg.task == "items" else (
      "accuracy", "macro_f1"))

  sources = config.seeds[:1] if arg.cpu else config.seeds
  config.runs = {"backbone": {"config": path, "seeds": sources}}
  def run(patch, mode):
    started = {} if mode is None else {
      "source": "backbone", "mode": mode,
      "source_seeds": sources * (len(config.seeds) // len(sources))}
    return {"config": f"{path},task={arg.task},patch={patch}", **started}
  config.runs["scratch"] = run("none", None)
  config.runs["last_layer"] = run("none", "patch")
  config.runs["all"] = run("none", "model")
  for patch in patches:
    config.runs[patch] = run(patch, "patch")
  config.rows = (("from scratch", "scratch"), ("last layer alone", "last_layer"),
                 ("everything tuned", "all"),
                 *((title, patch) for patch, title in patches.items()))
  config.baseline = "scratch"
  config.tasks = ((arg.task, f"{'full' if arg.task == 'items' else 'profile'}/{config.headline[0]}",
                   tuple(run for _, run in config.rows)),)
  reference = "popularity" if arg.task == "items" else "majority"
  config.comparisons = (
    *((f"{title} – everything tuned", patch, "all") for patch, title in patches.items()),
    ("everything tuned – the reference", "all", reference))
  config.claims = (
    ("Pre-training helps", (("all", "scratch"),)),
    ("Patches are better than the last layer alone",
     tuple((patch, "last_layer") for patch in patches)),
    ("Patches are better than no pre-training", tuple((patch, "scratch") for patch in patches)))
  config.published = {}
  config.notes = """\
- "everything tuned" starts from the pre-trained backbone and trains all of it. That patches are as
  good cannot be shown by a test that finds no difference: read the intervals of the comparisons."""
  if arg.task != "items":
    config.notes += """
- Accuracy is tested over the users of the test split; macro F1 has no value per user. `majority` is
  the label that most of the training users have."""
  if arg.cpu:
    config.notes += common.SHARED
  return config
