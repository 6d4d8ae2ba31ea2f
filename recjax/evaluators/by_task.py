"""Who judges what an objective predicts: items, ratings, labels, responses, triples or edges."""

from recjax.data import behaviors
from recjax.evaluators import classification, edges, links, ranking, rating, responses

FIXED = {"rating": rating, "classification": classification, "edges": edges, "links": links}


def make(data, *, objective, model, config, cache_dir=None, **common):
  """Returns the evaluator of what an objective predicts, by its `task`.

  Args:
    data: `sequences.Dataset`, or a `graphs.Graph`.
    objective: of `recjax.objectives`.
    model: of `recjax.models`.
    config: `config.eval`.
    cache_dir: folder where candidates are kept; None where they are drawn anew.
    **common: what all of them take: split, contexts, protocols, seed, batch_size, max_users, put,
      and history_length, which graphs have not.
  """
  if objective.task == "rating":
    return rating.Rating(data, **common)
  if objective.task == "classification":
    return classification.Classification(data, profile=objective.profile, **common)
  if objective.task == "response":
    return responses.Responses(
      data, questions=objective.questions, num_negatives=config.num_negatives,
      properties=behaviors.read_by(model), **common)
  if objective.task == "links":
    return links.Links(data, **common)
  if objective.task == "edges":
    return edges.Edges(data, num_negatives=config.num_negatives, **common)
  return ranking.Ranking(
    data, ks=tuple(config.ks), num_negatives=config.num_negatives, cache_dir=cache_dir,
    costly=getattr(model, "costly", False), baskets="baskets" in objective.columns, **common)


def metric_names(objective, config):
  """Returns every "PROTOCOL/METRIC" that `eval.metric` of `config.eval` may name."""
  if objective.task == "response":
    names = responses.metric_names(objective.questions)
  elif kind := FIXED.get(objective.task):
    names = dict.fromkeys(kind.PROTOCOLS, kind.METRICS)
  else:
    names = ranking.metric_names(config.ks)
  return [f"{protocol}/{metric}" for protocol in names for metric in names[protocol]]
