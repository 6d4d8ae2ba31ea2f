"""PeterRec on MovieLens-1M: one backbone is pre-trained, and every task adds patches to it.

`task=pretrain` trains a backbone on the source domain: NextItNet to predict the next item
(`backbone=causal`), or GRec to fill in masked ones (`noncausal`). The other tasks tune it, with the
backbone frozen and bottlenecks of an eighth of its width (2,192 parameters beside the 24,960 of a
block at width 64) trained with the head:

  items                    a user's source history -> what they choose first in the cold target
  next                     a user's items in the cold target -> the next ones
  gender, age, occupation  a user's source history -> a label of users.dat; a tenth of the users
                           validate, a tenth test, by a hash of their ids

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/peterrec_ml1m.py:size=cpu --workdir=runs/backbone \\
      --config.data_dir=DATA
    python -m recjax.train --config=configs/peterrec_ml1m.py:task=gender,size=cpu \\
      --workdir=runs/gender --config.data_dir=DATA \\
      --config.transfer.checkpoint=runs/backbone --config.transfer.mode=patch

`patch=serial_two|serial_one|parallel|bias`, or `none`, with which the head alone is trained;
`transfer.mode=model` tunes everything. `backbone=sasrec|bert4rec` is the survey's transformer
instead, which takes patch=adapter|lora|bias|prefix|none. All of these tasks use softmax; the
authors have binary cross-entropy with one negative. Not measured yet at size=full.

`objective` is what is pre-trained: `masked` or `next` (bidirectional backbones), `causal` (the
others), or `contrast`, which adds contrastive learning over crops, masks and reorderings of a
user's sequence to the backbone's own, with weight 0.1.

Arguments: task, backbone, patch, objective, size=full|cpu.
"""

from configs import bert4rec_ml1m
from configs import common
from configs import sasrec_ml1m
from recjax import errors
from recjax import spec

LABELS = ("gender", "age", "occupation")
OBJECTIVES = {  # of pre-training; a backbone's own comes first
  "causal": {"causal": "causal_next_item"},
  "noncausal": {"masked": "masked_item", "next": "next_item"},
  "sasrec": {"causal": "causal_next_item"},
  "bert4rec": {"masked": "masked_item", "next": "next_item"},
}


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, task="pretrain", backbone="causal", patch="", objective="", size="full")
  errors.choose(dict.fromkeys(("pretrain", "items", "next", *LABELS)), arg.task, "task")
  own = errors.choose(OBJECTIVES, arg.backbone, "backbone")
  small = errors.choose({"full": False, "cpu": True}, arg.size, "size")
  if arg.backbone in ("sasrec", "bert4rec"):
    module = {"sasrec": sasrec_ml1m, "bert4rec": bert4rec_ml1m}[arg.backbone]
    config = module.get_config(f"data=src,size={arg.size}")
    config.model.patch_scale = 1.0  # of LoRA, its a / r
    config.model.user_width = 0  # Tasks read no user: what they learn must hold for others.
  else:
    config = _convolutions(arg.backbone, small)
  if arg.task == "pretrain":
    _pretrain(config, arg.objective or next(iter(own)), own, append_mask="masked" in own)
  else:
    transformer = arg.backbone in ("sasrec", "bert4rec")
    config.model.patch = arg.patch or ("adapter" if transformer else "serial_two")
    _tune(config, arg.task, both=arg.backbone == "noncausal",
          next_item=own.get("next") or own["causal"])
  return config


def _pretrain(config, objective, own, *, append_mask):
  config.objective.name = errors.choose({**own, "contrast": "mix"}, objective, "objective")
  if objective == "contrast":
    config.objective.mix.parts = ((next(iter(own.values())), 1.0), ("contrast", 0.1))
    config.objective.contrast = dict(group=32, append_mask=append_mask)
    config.micro_lengths = ()  # views are not cut


def _convolutions(backbone, small):
  config = common.get_config()
  config.dataset = "ml1m_src"
  config.model.update(name="nextitnet",
                      variant={"causal": "nextitnet", "noncausal": "grec"}[backbone])
  config.model.legacy_inner_skip = False  # True: as the authors' parallel patches, no identity
  if small:
    config.model.update(num_layers=4, item_width=32, max_len=50)
  config.objective.masked_item.rate = 0.3
  config.batch_size = 128
  config.total_epochs = 30.0 if small else 100.0
  config.eval.update(every_epochs=5.0, patience=5)
  return config


def _tune(config, task, *, both, next_item):
  ends = "both" if both else "last"
  config.eval.update(contexts=("train",), patience=5, every_epochs=1.0)
  config.micro_lengths, config.micro_batch = (), None
  config.batch_size = 256
  config.total_epochs = 30.0
  if task == "next":
    config.dataset, config.objective.name = "ml1m_tgt", next_item
    config.eval.metric = "full/ndcg@10"
  elif task == "items":
    config.dataset, config.history = "ml1m_tgt", "ml1m_src"
    config.objective.name = "first_item"
    config.objective.first_item = dict(ends=ends)
    config.eval.metric = "full/ndcg@10"
  else:
    config.objective.name = "profile"
    config.objective.profile = dict(attribute=task, ends=ends, val=0.1, test=0.1, split_seed=0)
    config.eval.update(metric="profile/accuracy", protocols=("profile",))
