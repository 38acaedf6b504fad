"""Moments of all replicas of a TensorFlow strategy, merged by count."""

from functools import reduce

from batchnorm.keras import namespace as xp
from batchnorm.keras.namespace import ops
from batchnorm.statistics import Moments, merge


def over_replicas(moments: Moments) -> Moments:
    """Return the moments of the batches of all replicas taken together; outside a strategy, those given.

    What is gathered is O(C) numbers a replica. Gradients flow back to each replica's own batch. A replica whose batch
    is empty, or masked altogether, changes nothing.
    """
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return moments
    like = ops.zeros_like(moments.mean)
    mine = ops.stack([a + like for a in moments])
    everyone = context.all_gather(ops.expand_dims(mine, 0), axis=0)
    own = (Moments(*ops.unstack(everyone[i], 4)) for i in range(context.num_replicas_in_sync))
    return reduce(lambda a, b: merge(a, b, xp), own)
