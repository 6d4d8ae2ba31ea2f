"""Seven knowledge-graph embeddings on WN18RR beside their published numbers.

Full size: published sizes, three seeds, for a GPU. `:cpu`: narrower vectors and fewer epochs, one
seed; 64 minutes of a core without TuckER, and 75 or more for TuckER.
TransR is trained from TransE (`margin`), as its authors do.

    python -m recjax.prepare --config=configs/data/wn18rr.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.study --config=configs/studies/kge.py:cpu --workdir=W --config.data_dir=DATA
"""

from configs.studies import common
from recjax import spec

TITLES = {"transe": "TransE, margin", "adversarial": "TransE, adversarial", "transh": "TransH",
          "transr": "TransR, from TransE", "transd": "TransD", "complex": "ComplEx",
          "softmax": "ComplEx, softmax", "proje": "ProjE", "tucker": "TuckER"}
OTHER_LOSSES = {"adversarial": "transe", "softmax": "complex"}  # than a model's own


def get_config(arg=None):
  """Returns the study's config; `arg` is "cpu" or nothing."""
  arg = spec.parse_arg(arg, cpu=False)
  size = "cpu" if arg.cpu else "full"
  config = common.study(
    f"Knowledge-graph embeddings on WN18RR (size {size})",
    prepare=common.prepare("wn18rr"),
    seeds=(0,) if arg.cpu else (0, 1, 2),
    headline=("mrr", "hits@1", "hits@3", "hits@10", "mr"))
  path = f"configs/kge.py:size={size}"
  config.runs = {name: {"config": f"{path},{name}"} for name in TITLES if name not in OTHER_LOSSES}
  config.runs.update({loss: {"config": f"{path},{model},loss={loss}"}
                      for loss, model in OTHER_LOSSES.items()})
  config.runs["transr"].update(source="transe", mode="embedding")
  config.rows = tuple((title, name) for name, title in TITLES.items())
  config.baseline = "transe"
  config.comparisons = (("TuckER – ComplEx", "tucker", "complex"),
                        ("TuckER – ComplEx, softmax", "tucker", "softmax"))
  config.claims = (("TuckER is better than ComplEx",
                    (("tucker", "complex"), ("tucker", "softmax")), "filtered/mrr"),
                   ("TransH, TransR and TransD are better than TransE",
                    tuple((name, "transe") for name in ("transh", "transr", "transd")),
                    "filtered/mrr"))
  config.published = {
    "TransE, adversarial": {"filtered/hits@10": 51.2},
    "TransH": {"filtered/hits@10": 50.7}, "TransR, from TransE": {"filtered/hits@10": 51.9},
    "TransD": {"filtered/hits@10": 50.8}, "ComplEx": {"filtered/hits@10": 48.5},
    "TuckER": {"filtered/mrr": 47.0, "filtered/hits@10": 52.6}}
  config.notes = """\
- The sample of the paired tests are the test triples; a triple's value is the mean over ranking its
  head and its tail. Ties stand in the middle of their ranks.
- Published: TuckER from Balazevic et al. 2019; TransE, TransH, TransR, TransD and ComplEx from the
  results that OpenKE (Han et al. 2018) lists, which were trained with settings of its own. ProjE's
  authors have no WN18RR.
- `filtered` leaves out what makes another triple of train, val or test; `raw` does not."""
  return config
