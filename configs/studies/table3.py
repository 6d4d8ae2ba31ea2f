"""The survey's Table 3, rating prediction: does pre-training on one domain help to rate the other?

Rows: DACF (an autoencoder), that of Kuchaiev & Ginsburg 2017, BERT4Rec and an autoencoder of ours,
each without transfer and fine-tuned from a pre-training on the source domain; ours also with the
source ratings as a further input alone. Beside them stand the mean rating, item biases, and item
and user biases: a model that does not beat those has learned nothing about taste. Three rows say
why some do not: DACF that predicts what biases leave, our autoencoder without biases, and a
BERT4Rec of ours made for few ratings.

Full size: five seeds with a pre-training each, for a GPU or TPU. `:cpu`: smaller networks,
pre-trained once a model and fine-tuned with five seeds. `:proof`: every row at full size for three
steps, to see that it runs.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/table3.py:cpu --workdir=W --config.data_dir=DIR
"""

from configs.studies import common
from recjax import spec

TITLES = {"oppermann": "DACF", "nvidia": "DACF, re-feeding", "bert4rec": "BERT4Rec",
          "recjax": "biases + autoencoder"}
WHY = (  # (title, run, model, overrides)
  ("DACF on biases", "oppermann_biases", "oppermann", (("model.biases", True),)),
  ("autoencoder without biases", "recjax_alone", "recjax", (("model.biases", False),)),
  ("BERT4Rec, ours", "bert4rec_recjax", "bert4rec_recjax", ()))


def get_config(arg=None):
  """Returns the study's config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, cpu=False, proof=False)
  size = "cpu" if arg.cpu else "full"
  config = common.study(
    f"Table 3: rating prediction on MovieLens-1M (size {size})",
    prepare=common.prepare("ml1m"),
    seeds=(0, 1, 2, 3, 4),
    headline=("rmse", "mae", "user_rmse"))

  config.runs, config.baselines = {}, {}
  rows, comparisons = [], []
  sources = config.seeds[:1] if arg.cpu else config.seeds
  for model, title in TITLES.items():
    path = f"configs/rating_ml1m.py:model={model},size={size}"
    tuned = f"{path},data=tgt" + (",extra" if model == "recjax" else "")
    config.runs[f"{model}_source"] = {"config": f"{path},data=src", "seeds": sources}
    config.runs[model] = {"config": f"{path},data=tgt"}
    config.runs[f"{model}_transfer"] = {
      "config": tuned, "source": f"{model}_source", "mode": "model",
      "source_seeds": sources * (len(config.seeds) // len(sources))}
    config.baselines[f"{model}_transfer"] = model
    names = [(title, model), (f"{title}: transfer", f"{model}_transfer")]
    if model == "recjax":  # Tells what reading more is worth from what pre-training is.
      config.runs["recjax_extra"] = {"config": tuned}
      config.baselines["recjax_extra"] = model
      names.insert(1, (f"{title}: source ratings read", "recjax_extra"))
    comparisons += [(f"{name} – item and user biases", run, "item_user_bias")
                    for name, run in names]
    rows += names
  for title, run, model, overrides in WHY:
    config.runs[run] = {"config": f"configs/rating_ml1m.py:model={model},size={size},data=tgt",
                        "overrides": overrides}
    rows.append((title, run))
    comparisons.append((f"{title} – item and user biases", run, "item_user_bias"))
  comparisons.append(("DACF: on biases – not", "oppermann_biases", "oppermann"))
  comparisons.append(("autoencoder: on biases – not", "recjax", "recjax_alone"))
  comparisons.append(("source ratings read: pre-trained – not", "recjax_transfer", "recjax_extra"))
  config.rows, config.comparisons = tuple(rows), tuple(comparisons)
  config.claims = (
    ("Pre-training helps to predict ratings",
     tuple((f"{model}_transfer", model) for model in TITLES)),
    ("Models of ratings beat item and user biases",
     tuple((model, "item_user_bias") for model in TITLES)))

  # Zeng et al. 2021, Table 3. It does not say which RMSE is meant: by its ratio to the MAE, DACF's
  # is the mean over users and BERT4Rec's pools all ratings.
  config.published = {
    "DACF": {"rating/user_rmse": 0.987, "rating/mae": 0.867},
    "DACF: transfer": {"rating/user_rmse": 0.976, "rating/mae": 0.859},
    "BERT4Rec": {"rating/rmse": 1.371, "rating/mae": 0.960},
    "BERT4Rec: transfer": {"rating/rmse": 1.261, "rating/mae": 0.903}}
  config.notes = """\
- `rmse` and `mae` pool all held-out ratings; `user_rmse` is the mean over users of each user's
  RMSE. With three ratings a user the latter is about 0.9 of the former, for any model.
- Published numbers are from Zeng et al. 2021, "Knowledge Transfer via Pre-training for
  Recommendation: A Review and Prospect", Table 3. DACF's RMSE stands under `user_rmse` and
  BERT4Rec's under `rmse`, as their ratios to the MAE suggest (normal errors have a ratio of 1.25 if
  pooled and 1.15 as a mean over three ratings a user); the survey does not say.
- Transfer carries all parameters but BERT4Rec's head. The target's items are not the source's:
  their rows start fresh. Ours also reads the source ratings of the target's users, from which the
  pre-trained parameters were learned; the others do not."""
  if arg.cpu:
    config.notes += common.SHARED
  if arg.proof:
    common.proof(config, "Table 3 at full size")
  return config
