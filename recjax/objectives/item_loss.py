"""What the objectives share that tell an item from others at the labeled positions."""

import dataclasses

import jax.numpy as jnp

from recjax import errors
from recjax.objectives import losses
from recjax.objectives import negatives as negatives_lib
from recjax.objectives import objective

CRITERIA = ("softmax", "bce", "gbce", "bpr", "sampled_softmax")
SHARED = ("position", "row", "batch")
COLUMNS = ("items", "labels", "segments", "ages")  # inputs [B, T]
PROPOSALS = ("uniform", "popularity", "in_batch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemLoss(objective.Objective):
  """A criterion over item scores, and the negatives that it needs.

    softmax          all ids 0..N compete (Klenitskiy & Vasilev 2023: SASRec's best)
    bce              binary cross-entropy; with one negative, SASRec (Kang & McAuley 2018)
    gbce             calibrated for the share of negatives drawn (Petrov & Macdonald 2023, gSASRec)
    bpr              the label before each negative, in pairs (Rendle et al. 2009)
    sampled_softmax  softmax over the drawn, corrected for their number

  `proposal` says where negatives come from: "uniform" over the items of the domain, "popularity",
  q ~ count^power (Mikolov et al. 2013), or "in_batch", where the labels of random positions of the
  batch are drawn and q is an item's share of the training data. `sampled_softmax` corrects for q,
  bce does not: it learns to tell what is popular by more than its popularity.

  `negatives` says whose they are: each position's own, drawn apart (with repeats, as gSASRec);
  those of all positions of a row; those of the whole batch, as in_batch always is (uniform ones
  without repeats, where the catalog is small). Sharing leaves the expected gradient of bce and gbce
  as it is and costs a small matmul: a step of gSASRec on MovieLens-1M (width 128, 200 positions,
  256 negatives, 3,416 items) takes 10 ms of a CPU a user, with own negatives 20, with full softmax
  21.
  """
  criterion: str = "softmax"
  num_negatives: int = 256  # K
  calibration: float = 0.75  # t of gbce
  negatives: str = "position"  # whose they are: position, row or batch
  unseen: bool = False  # only items that the user has not trained on, each position its own
  proposal: str = "uniform"  # uniform, popularity or in_batch
  power: float = 0.75  # of popularity
  model_inputs = ("items", "users", "segments", "ages")  # of those, what is there

  def __post_init__(self):
    errors.choose(dict.fromkeys(CRITERIA), self.criterion, "config.objective: criterion")
    errors.choose(dict.fromkeys(SHARED), self.negatives, "config.objective: negatives")
    if self.num_negatives < 1 or not 0 <= self.calibration <= 1:
      raise errors.UserError("config.objective: num_negatives must be at least 1 and calibration "
                             f"in 0..1, not {self.num_negatives} and {self.calibration}")
    errors.choose(dict.fromkeys(PROPOSALS), self.proposal, "config.objective: proposal")
    if self.unseen and (self.negatives != "position" or self.proposal != "uniform"):
      raise errors.UserError("config.objective: unseen negatives are a position's own and uniform; "
                             "set negatives=position and proposal=uniform")
    if self.criterion == "gbce" and self.proposal != "uniform":
      raise errors.UserError("config.objective: gbce is calibrated for uniform negatives; set "
                             "proposal=uniform, or criterion=sampled_softmax or bce")
    if not 0 <= self.power <= 2:
      raise errors.UserError(f"config.objective: power must be in 0..2, not {self.power}")

  @property
  def columns(self):
    """Returns what `batches.resident` adds."""
    return ("seen",) if self.unseen and self.criterion != "softmax" else ()

  @property
  def popularity(self):
    """Returns the power of `batches.resident`, None where draws are uniform."""
    powers = {"uniform": None, "popularity": self.power, "in_batch": 1.0}
    return None if self.criterion == "softmax" else powers[self.proposal]

  @property
  def item_inputs(self):
    """Returns the inputs that hold all items that the loss reads."""
    return () if self.criterion == "softmax" else ("items", "labels", "negatives")

  def item_ids(self, inputs):
    """Returns arrays that hold the items of `item_inputs`; what is shared only once."""
    drawn = inputs["negatives"]
    return inputs["items"], inputs["labels"], drawn[:1] if self._sharing == "batch" else drawn

  def with_negatives(self, rng, inputs, resident):
    """Returns `inputs` and, where the criterion needs them, "negatives", "offered", "log_q".

    Args:
      rng: key of this draw.
      inputs: {"labels" [B, T], "users" [B], ...}.
      resident: of `batches.resident`; negatives are drawn from its "pool".

    "negatives" are int32 [B, T, K] or [B, K], "offered" int32 [B] how many there were to draw from,
    the same in every row, and "log_q" float32, like "negatives", how likely each was, where they
    were not drawn uniformly.
    """
    if self.criterion == "softmax":
      return inputs
    (rows, columns), count = inputs["labels"].shape, self.num_negatives
    pool = resident["pool"]
    distinct = self._sharing != "position" and self.proposal == "uniform"
    if self.criterion == "gbce" and count >= len(pool) or distinct and count > len(pool):
      raise errors.UserError(f"config.objective: num_negatives={count} is too many for the "
                             f"{len(pool)} items of the domain; lower it")
    shape = {"position": (rows, columns, count), "row": (rows, count), "batch": (1, count)}[
      self._sharing]
    if self.unseen:
      drawn = negatives_lib.unseen(rng, inputs["users"], resident, columns * count).reshape(shape)
    elif self.proposal == "uniform":
      drawn = negatives_lib.uniform(rng, pool, shape, distinct=distinct)
    elif self.proposal == "popularity":
      drawn = negatives_lib.by_popularity(rng, resident, shape)
    else:
      drawn = negatives_lib.of_batch(rng, inputs["labels"], min(count, rows * columns))
    if self._sharing == "batch":
      drawn = jnp.broadcast_to(drawn, (rows, drawn.shape[-1]))
    out = {**inputs, "negatives": drawn, "offered": jnp.full(rows, len(pool), jnp.int32)}
    return out if self.popularity is None else {**out, "log_q": resident["log_q"][drawn]}

  def labels(self, inputs):
    """Returns int32 [B]: how many labels each row has."""
    return jnp.sum(inputs["labels"] > 0, axis=1)

  def trim(self, inputs, columns):
    """Returns `inputs` without all but the last columns of [B, T] and [B, T, K]."""
    last = lambda name, x: x[:, -columns:] if name in COLUMNS or x.ndim == 3 else x
    return {name: last(name, x) for name, x in inputs.items()}

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum, weight, {"dropped": labels without room}) over the labeled positions.

    Args:
      apply_fn: of `step.make_apply`.
      params: the model's parameters.
      inputs: of `prepare`.
      shards: S, runs of rows whose labels are gathered apart.
      capacity: C, room for labels in a shard.
      rng: dropout key or None.
    """
    rows, columns = inputs["labels"].shape
    if self.criterion != "softmax" and self._sharing == "row":
      shards, capacity = rows, min(columns, capacity)  # a run shares its negatives
    positions, labels, weights, dropped = losses.labeled_positions(
      inputs["labels"], shards=shards, capacity=capacity)
    seen = {name: inputs[name] for name in self.model_inputs if name in inputs}
    if self.criterion == "softmax":
      total = apply_fn(params, seen, rng, positions=positions,
                       readout=lambda scores: scores.cross_entropy(labels, weights))
      return total, jnp.sum(weights), {"dropped": dropped}
    drawn = self._drawn(inputs["negatives"], positions)
    positive, negative = apply_fn(params, seen, rng, positions=positions,
                                  candidates=(labels[..., None], drawn))
    offered = inputs["offered"][0]
    if self.criterion == "sampled_softmax":
      keep = (drawn != labels[..., None]) & (drawn > 0)
      log_expected = None
      if self.popularity is not None:
        count = jnp.sum(drawn > 0, axis=-1, keepdims=True)
        log_expected = self._drawn(inputs["log_q"], positions) + jnp.log(jnp.maximum(count, 1))
      total, weight = losses.sampled_cross_entropy(positive, negative, keep, weights,
                                                   offered=offered, log_expected=log_expected)
    elif self.criterion == "bpr":
      total, weight = losses.bayesian_ranking(positive, negative, drawn > 0, weights)
    else:
      beta = 1.0 if self.criterion == "bce" else losses.calibrated_beta(
        self.calibration, num_negatives=self.num_negatives, offered=offered)
      total, weight = losses.binary_cross_entropy(positive, negative, drawn > 0, weights, beta=beta)
    return total, weight, {"dropped": dropped}

  def _drawn(self, drawn, positions):
    """Returns what `with_negatives` says of every labeled position: [S, C, K], or [S, 1, K]."""
    shards, count = positions.shape[0], drawn.shape[-1]
    if self._sharing != "position":
      return drawn.reshape(shards, -1, count)[:, :1]
    return jnp.take_along_axis(drawn.reshape(shards, -1, count), positions[..., None], axis=1)

  @property
  def _sharing(self):
    return "batch" if self.proposal == "in_batch" else self.negatives
